//! Program types, map types and helpers of this kernel.

use aya::{
    maps::MapType,
    programs::{LsmAttachType, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use super::{Check, State};
use crate::config::error_text;

/// What to do where the kernel itself lacks something.
const NEWER_KERNEL: &str =
    "use a kernel of version 6.6 or later with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET_CLS_ACT";

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![jit()];
    for (name, kind, what) in [
        ("TC programs", ProgramType::SchedClassifier, "they judge every packet: nothing can be enforced"),
        (
            "cgroup socket programs",
            ProgramType::CgroupSock,
            "they tell whose a socket is: PUs cannot be made of cgroups",
        ),
        (
            "sockops programs",
            ProgramType::SockOps,
            "they write the proof of liveness: no connection can be authenticated",
        ),
    ] {
        checks.push(needed(name, is_program_supported(kind).map_err(|error| root_cause(&error)), what));
    }
    for (name, kind, what) in [
        ("ring buffers", MapType::RingBuf, "they carry first contacts to the agent: none can be verified"),
        ("socket storage", MapType::SkStorage, "it holds whose a socket is: packets cannot be attributed"),
        ("prefix tries", MapType::LpmTrie, "they hold networks: external networks cannot be judged"),
    ] {
        checks.push(needed(name, is_map_supported(kind).map_err(|error| root_cause(&error)), what));
    }
    for (name, kind, helper, what) in [
        (
            "sockops header options",
            ProgramType::SockOps,
            BpfHelper::BPF_FUNC_store_hdr_opt,
            "the ACK cannot carry the proof of liveness: no connection can be authenticated",
        ),
        (
            "listener look-up in TC",
            ProgramType::SchedClassifier,
            BpfHelper::BPF_FUNC_skc_lookup_tcp,
            "listeners of PUs cannot be found: nothing can be accepted",
        ),
        (
            "packet growth in TC",
            ProgramType::SchedClassifier,
            BpfHelper::BPF_FUNC_skb_change_tail,
            "credentials cannot be attached: there is no first contact",
        ),
        (
            "socket storage in TC",
            ProgramType::SchedClassifier,
            BpfHelper::BPF_FUNC_sk_storage_get,
            "packets cannot be attributed to PUs: nothing can be enforced",
        ),
    ] {
        checks.push(needed(name, is_helper_supported(kind, helper).map_err(|error| root_cause(&error)), what));
    }
    checks.push(match is_program_supported(ProgramType::Xdp) {
        Ok(true) => Check::ok("XDP programs", "supported"),
        Ok(false) => Check::limited("XDP programs", "not supported", "forged packets cost more to drop", NEWER_KERNEL),
        Err(error) => undecided("XDP programs", &root_cause(&error)),
    });
    checks.push(match is_program_supported(ProgramType::Lsm(LsmAttachType::Mac)) {
        Ok(true) => Check::ok("BPF LSM", "supported"),
        // Not used yet; the operator of a host may still want to know.
        Ok(false) | Err(_) => Check::limited(
            "BPF LSM",
            "not usable",
            "nothing in this version, which has no file policies",
            "boot with `lsm=…,bpf` on the kernel's command line",
        ),
    });
    checks
}

fn needed(name: &str, supported: Result<bool, String>, cost: &str) -> Check {
    match supported {
        Ok(true) => Check::ok(name, "supported"),
        Ok(false) => Check::missing(name, "not supported", cost, NEWER_KERNEL),
        Err(error) => undecided(name, &error),
    }
}

fn undecided(name: &str, error: &str) -> Check {
    Check::unknown(name, format!("cannot ask the kernel: {error}"), "run `enforcer doctor` as root")
}

/// The kernel's own words, from beneath aya's.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.downcast_ref().map_or_else(|| cause.to_string(), error_text)
}

fn jit() -> Check {
    match std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(value) if value.trim() == "0" => Check::limited(
            "BPF JIT",
            "off",
            "every packet costs several times as much",
            "`sysctl net.core.bpf_jit_enable=1`",
        ),
        Ok(_) => Check::ok("BPF JIT", "on"),
        // Kernels with CONFIG_BPF_JIT_ALWAYS_ON have no switch in other network namespaces than the first.
        Err(_) => Check { state: State::Ok, ..Check::ok("BPF JIT", "no switch in this network namespace") },
    }
}
