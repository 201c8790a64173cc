//! The kernel's version, file systems, privileges, clock.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
};

use caps::CapSet;
use nix::sys::{resource, statfs};

use super::{Check, mounts};
use crate::{
    config::{Config, error_text},
    hardening::{capabilities, landlock_version},
};

/// First version with tcx links, and of what is tested.
const FULL: (u32, u32) = (6, 6);
/// First version with everything that is needed.
const LEAST: (u32, u32) = (5, 15);

pub(super) fn checks(config: &Config) -> Vec<Check> {
    vec![
        kernel(),
        btf(),
        bpffs(&config.paths.bpffs),
        cgroup(config),
        tun(),
        capabilities(config),
        hardening(config),
        memlock(),
        clock(),
        ipv6(),
    ]
}

fn kernel() -> Check {
    let Ok(names) = nix::sys::utsname::uname() else {
        return Check::unknown("kernel", "uname(2) failed", "look why");
    };
    let release = names.release().to_string_lossy().into_owned();
    let found = format!("Linux {release}");
    let remedy = "use a kernel of version 6.6 or later";
    match version(&release) {
        Some(version) if version >= FULL => Check::ok("kernel", found),
        Some(version) if version >= LEAST => Check::limited(
            "kernel",
            found,
            "before 6.6 there are no tcx links: classic TC filters are used, which other tools may remove",
            remedy,
        ),
        Some(_) => Check::missing("kernel", found, "before 5.15 what the programs need does not exist", remedy),
        None => Check::unknown("kernel", found, "see `uname -r`: 6.6 or later is wanted"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn btf() -> Check {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Check::ok("BTF", "/sys/kernel/btf/vmlinux");
    }
    Check::limited(
        "BTF",
        "the kernel describes no types of its own",
        "`bpftool` cannot show all that lies in maps",
        "use a kernel with CONFIG_DEBUG_INFO_BTF",
    )
}

/// The directory itself may not exist yet: its nearest ancestor decides.
fn bpffs(path: &Path) -> Check {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let is_bpffs = statfs::statfs(existing).is_ok_and(|fs| fs.filesystem_type() == statfs::BPF_FS_MAGIC);
    if is_bpffs {
        return Check::ok("bpffs", path.display().to_string());
    }
    Check::missing(
        "bpffs",
        format!("{} is on no BPF file system", path.display()),
        "maps and programs cannot outlive the agent",
        "`mount -t bpf bpf /sys/fs/bpf`, or set `paths.bpffs`",
    )
}

fn cgroup(config: &Config) -> Check {
    let root: PathBuf = match config.cgroup_root() {
        Ok(root) => root,
        Err(error) => {
            let cost = "processes cannot be made PUs";
            return Check::missing("cgroup v2", error.to_string(), cost, "mount it, or set `paths.cgroup`");
        }
    };
    let found = root.display().to_string();
    match statfs::statfs(&root) {
        Ok(fs) if fs.filesystem_type() == statfs::CGROUP2_SUPER_MAGIC => {}
        Ok(_) => {
            let cost = "processes cannot be made PUs";
            let mounted = mounts::cgroup2().ok().flatten().map(|path| path.display().to_string());
            let remedy = format!("set `paths.cgroup` to {}", mounted.as_deref().unwrap_or("where cgroup2 is mounted"));
            return Check::missing("cgroup v2", format!("{found} is no cgroup v2 directory"), cost, &remedy);
        }
        Err(error) => {
            let cost = "processes cannot be made PUs";
            return Check::missing("cgroup v2", format!("{found}: {error}"), cost, "set `paths.cgroup`");
        }
    }
    match nix::unistd::access(&root, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Check::ok("cgroup v2", found),
        Err(_) => Check::missing(
            "cgroup v2",
            format!("{found} is not writable"),
            "`enforcer exec` cannot make cgroups",
            "run as root; in a container, mount cgroups writable",
        ),
    }
}

fn tun() -> Check {
    let device = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Check::ok("TUN", device),
        Err(error) => Check::missing(
            "TUN",
            format!("{device}: {}", error_text(&error)),
            "verified packets cannot go back into the kernel: there is no first contact",
            "`modprobe tun`; in a container, pass the device in; run as root",
        ),
    }
}

fn capabilities(config: &Config) -> Check {
    let held = match caps::read(None, CapSet::Effective) {
        Ok(held) => held,
        Err(error) => return Check::unknown("capabilities", error.to_string(), "look at `capsh --print`"),
    };
    let needed = capabilities::needed(config);
    let reasons = capabilities::NEEDED.iter().chain(capabilities::CONDITIONAL);
    let lacking: Vec<_> =
        reasons.filter(|(capability, _)| needed.contains(capability) && !held.contains(capability)).collect();
    if lacking.is_empty() {
        return Check::ok("capabilities", "all that are needed");
    }
    let names: Vec<_> = lacking.iter().map(|(capability, _)| capability.to_string()).collect();
    let reasons: Vec<_> = lacking.iter().map(|(capability, reason)| format!("{capability} {reason}")).collect();
    Check::missing(
        "capabilities",
        format!("without {}", names.join(", ")),
        &format!("needed: {}", reasons.join("; ")),
        "run as root, or grant them (docs/capabilities.md)",
    )
}

/// What the agent can give up here. How a running one fares, `enforcer status` says.
fn hardening(config: &Config) -> Check {
    let wanted = config.hardening;
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let seccomp = actions.split_whitespace().any(|action| action == "errno");
    let landlock = landlock_version();
    let layers = [
        ("capabilities", wanted.capabilities, true),
        ("no_new_privileges", wanted.no_new_privileges, true),
        ("seccomp", wanted.seccomp && wanted.no_new_privileges, seccomp),
        ("landlock", wanted.landlock, landlock > 0),
    ];
    let lacking: Vec<_> = layers
        .iter()
        .filter(|(_, wanted, there)| !wanted || !there)
        .map(|(name, _, there)| format!("{name} ({})", if *there { "switched off" } else { "not in this kernel" }))
        .collect();
    if lacking.is_empty() {
        return Check::ok(
            "hardening",
            format!("capabilities, no_new_privileges, seccomp, landlock version {landlock}"),
        );
    }
    Check::limited(
        "hardening",
        format!("without {}", lacking.join(", ")),
        "whoever takes the agent over can do more than it needed",
        "leave `[hardening]` as it is by default, on a kernel with CONFIG_SECCOMP_FILTER and CONFIG_SECURITY_LANDLOCK",
    )
}

/// Since 5.11 BPF memory is accounted to the cgroup, not to this limit.
fn memlock() -> Check {
    let accounted = nix::sys::utsname::uname()
        .ok()
        .and_then(|names| version(&names.release().to_string_lossy()))
        .is_some_and(|version| version >= (5, 11));
    match resource::getrlimit(resource::Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if accounted => {
            let shown = if soft == resource::RLIM_INFINITY { "unlimited".into() } else { format!("{soft} bytes") };
            Check::ok("locked memory", format!("{shown}; this kernel does not apply it to BPF"))
        }
        Ok((resource::RLIM_INFINITY, _)) => Check::ok("locked memory", "unlimited"),
        Ok((soft, _)) => Check::limited(
            "locked memory",
            format!("{soft} bytes"),
            "maps may not fit",
            "`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the unit",
        ),
        Err(error) => Check::unknown("locked memory", error.to_string(), "look at `ulimit -l`"),
    }
}

/// Whether somebody keeps the clock right (adjtimex(2)); an unsynchronised one may still be right.
fn clock() -> Check {
    // SAFETY: all bytes zero is a valid timex, and modes 0 makes the call read only.
    let (state, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&mut timex), timex)
    };
    if state >= 0 && timex.status & libc::STA_UNSYNC == 0 {
        return Check::ok("clock", format!("synchronised, at most {} us off", timex.maxerror));
    }
    Check::limited(
        "clock",
        "not known to be synchronised",
        "if it is off by more than the peers' `identity.clock_skew`, they refuse this host",
        "run chrony or systemd-timesyncd",
    )
}

fn ipv6() -> Check {
    if Path::new("/proc/net/if_inet6").exists() {
        return Check::ok("IPv6", "enabled");
    }
    let cost = "nothing over IPv6; IPv4 is not concerned";
    Check::limited("IPv6", "disabled", cost, "enable it if you need it (`ipv6.disable=0`)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_understood() {
        assert_eq!(version("6.18.0-rc1+deb"), Some((6, 18)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("x"), None);
    }

    #[test]
    fn every_capability_is_documented() {
        let docs = include_str!("../../../docs/capabilities.md");
        let rows: Vec<_> = docs.lines().filter(|line| line.starts_with("| `CAP_")).collect();
        let all = || capabilities::NEEDED.iter().chain(capabilities::CONDITIONAL);
        for (capability, _) in all() {
            assert!(rows.iter().any(|row| row.starts_with(&format!("| `{capability}` |"))), "{capability}");
        }
        assert_eq!(rows.len(), all().count());
    }

    #[test]
    fn a_directory_on_another_file_system_is_no_bpffs() {
        let check = bpffs(Path::new("/proc/nothing/here"));
        assert_eq!(check.state, crate::probe::State::Missing);
        assert_eq!(check.found, "/proc/nothing/here is on no BPF file system");
    }
}
