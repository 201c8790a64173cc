//! cgroup/sock_create: every new socket learns its PU from the cgroup of the process that makes it.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    cty::c_void,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie,
        bpf_sk_storage_get,
    },
    macros::cgroup_sock,
    programs::SockContext,
};
use common::{
    abi::{CONFIG_HAS_PU, CONFIG_WATCHES, MAX_CGROUP_DEPTH, PU_TOO_DEEP, PU_UNSORTED},
    drop_reason::Reason,
};

use crate::{
    attribute::UNMANAGED,
    emit::{config, count_reason},
    host::{self, is_withdrawn},
    maps::{PU_CGROUPS, PU_SOCKETS, UNSORTED},
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const SOCK_RAW: u32 = 3;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    if config().is_none_or(|config| config.flags & (CONFIG_HAS_PU | CONFIG_WATCHES) == 0) {
        return ALLOW;
    }
    let mut pu = cgroup_pu();
    let mut sorted = pu != PU_UNSORTED;
    if pu == UNMANAGED {
        pu = unsorted_or_host();
        sorted = false;
    }
    // What lives in a namespace of its own is another's to manage.
    if pu != UNMANAGED && !sorted && is_elsewhere(&ctx) {
        pu = UNMANAGED;
    }
    if pu != UNMANAGED && !is_withdrawn(pu) && !is_enforceable(&ctx) {
        return REFUSE;
    }
    let map = core::ptr::from_ref(&PU_SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: the context of this program type is the socket; the value is ours and copied.
    let stored = unsafe {
        bpf_sk_storage_get(map, ctx.as_ptr(), core::ptr::from_mut(&mut pu).cast(), BPF_SK_STORAGE_GET_F_CREATE as u64)
    };
    // A socket of a PU that cannot be marked would be taken for unmanaged.
    if stored.is_null() && pu != UNMANAGED { REFUSE } else { ALLOW }
}

/// Whether what this socket sends and receives can be judged: by a protocol the programs know, in the namespace they
/// watch. MPTCP listens through a socket the kernel makes itself, which no program is asked about; programs that try
/// it fall back to TCP.
#[inline(always)]
fn is_enforceable(ctx: &SockContext) -> bool {
    // SAFETY: the context is valid for the whole program; plain words.
    let (kind, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    if kind != SOCK_RAW && !matches!(protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_ICMP | IPPROTO_ICMPV6) {
        count_reason(Reason::ProtocolDenied, false);
        return false;
    }
    if is_elsewhere(ctx) {
        count_reason(Reason::OtherNamespace, false);
        return false;
    }
    true
}

/// Whether this socket is in another network namespace than the programs watch.
#[inline(always)]
fn is_elsewhere(ctx: &SockContext) -> bool {
    // SAFETY: a helper call on our own context.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    config().is_some_and(|config| config.netns_cookie != 0 && config.netns_cookie != namespace)
}

/// The PU the current process belongs to.
#[inline(always)]
pub fn current_pu() -> u32 {
    let pu = cgroup_pu();
    if pu == UNMANAGED { unsorted_or_host() } else { pu }
}

/// The PU of a current process whose cgroup is in none.
#[inline(always)]
fn unsorted_or_host() -> u32 {
    let pu = unsorted_pu();
    if pu == UNMANAGED { host::of_current() } else { pu }
}

/// What stands for the PU of a current process that has to be sorted out.
#[inline(always)]
fn unsorted_pu() -> u32 {
    // SAFETY: a helper without arguments; read-only values of scalars.
    unsafe {
        if config().is_some_and(|config| config.flags & CONFIG_WATCHES != 0)
            && UNSORTED.get((bpf_get_current_pid_tgid() >> 32) as u32).is_some()
        {
            return PU_UNSORTED;
        }
        UNMANAGED
    }
}

/// The PU of the current process's cgroup, or the nearest around it.
#[inline(always)]
pub fn cgroup_pu() -> u32 {
    // SAFETY: helpers about the current task; read-only values of scalars.
    unsafe {
        let own = bpf_get_current_cgroup_id();
        if let Some(pu) = PU_CGROUPS.get(own) {
            return *pu;
        }
        let mut nearest = UNMANAGED;
        for level in 1..MAX_CGROUP_DEPTH {
            let ancestor = bpf_get_current_ancestor_cgroup_id(level as i32);
            if ancestor == 0 || ancestor == own {
                return nearest;
            }
            if let Some(pu) = PU_CGROUPS.get(ancestor) {
                nearest = *pu;
            }
        }
        if nearest == UNMANAGED { PU_TOO_DEEP } else { nearest }
    }
}
