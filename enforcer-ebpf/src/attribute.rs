//! Which PU a packet belongs to. The truth is the socket's own storage; cgroup and interface lead to it.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup, bpf_sock, bpf_sock_tuple,
    },
    cty::c_void,
    helpers::generated::{
        bpf_fib_lookup as helper_fib_lookup, bpf_get_listener_sock, bpf_sk_fullsock, bpf_sk_lookup_tcp,
        bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
    },
    programs::TcContext,
};
use common::{
    abi::{MAX_CGROUP_DEPTH, PU_TOO_DEEP},
    flow::FlowKey,
    identity::{PU_INCOMPLETE, PU_OBSERVED, Pu},
};

use crate::{
    cleared::{Clear, cleared},
    host,
    maps::{PU_CGROUPS, PU_IFACES, PU_SOCKETS, PUS},
    packet::{Ip, TCP},
};

/// How a hook finds the PU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// By the socket that sent, or will receive.
    Socket,
    /// By the interface the program is attached to.
    Interface,
}

/// PU number of an unmanaged packet.
pub const UNMANAGED: u32 = 0;

impl Source {
    /// The interface to note in the flow, 0 if the PU is attributed by its socket.
    #[inline(always)]
    pub fn interface(self, ctx: &TcContext) -> u32 {
        match self {
            Source::Socket => 0,
            Source::Interface => ifindex(ctx),
        }
    }

    /// The PU that sent this packet.
    #[inline(always)]
    pub fn sender(self, ctx: &TcContext) -> u32 {
        in_force(match self {
            Source::Socket => sending_socket(ctx),
            Source::Interface => interface_pu(ctx),
        })
    }

    /// The PU that would receive this packet. What opens a connection is also for a listener whose former connection on
    /// these ports waits for its last segments.
    #[inline(always)]
    pub fn receiver(self, ctx: &TcContext, ip: &Ip, key: &FlowKey, opening: bool) -> u32 {
        in_force(match self {
            Source::Socket => receiving_socket(ctx, ip, key, opening),
            Source::Interface => interface_pu(ctx),
        })
    }
}

#[inline(always)]
fn in_force(pu: u32) -> u32 {
    if pu != UNMANAGED && host::is_withdrawn(pu) { UNMANAGED } else { pu }
}

/// Identity, handle and credential of a PU; `None` if it is not set up (yet).
#[inline(always)]
pub fn pu_info(pu: u32) -> Option<&'static Pu> {
    // SAFETY: the agent replaces entries whole; one that is removed while it is read stays readable for this run.
    unsafe { PUS.get(pu) }.filter(|info| info.identity != 0)
}

/// Whether this PU's namespace is in observe mode.
#[inline(always)]
pub fn is_observed(pu: u32) -> bool {
    pu_info(pu).is_some_and(observes)
}

/// As [`is_observed`], of a PU at hand.
#[inline(always)]
pub fn observes(info: &Pu) -> bool {
    info.flags & PU_OBSERVED != 0
}

/// Whether all tags of a PU are known; until then it may not communicate.
#[inline(always)]
pub fn is_complete(info: &Pu) -> bool {
    info.flags & PU_INCOMPLETE == 0
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the whole program.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Whether a PU is behind this interface: its programs follow on those of every interface.
#[inline(always)]
pub fn is_pu_interface(ctx: &TcContext) -> bool {
    interface_pu(ctx) != UNMANAGED
}

#[inline(always)]
fn interface_pu(ctx: &TcContext) -> u32 {
    // SAFETY: read-only value of a scalar.
    unsafe { PU_IFACES.get(ifindex(ctx)) }.copied().unwrap_or(UNMANAGED)
}

/// The storage of a socket, as a plain value.
#[inline(always)]
pub fn stored(sk: *mut c_void) -> Option<u32> {
    let map = core::ptr::from_ref(&PU_SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: the caller got `sk` from the kernel and checked it; the helper answers null or a valid value.
    unsafe {
        let value = bpf_sk_storage_get(map, sk, core::ptr::null_mut(), 0).cast::<u32>();
        if value.is_null() { None } else { Some(*value) }
    }
}

#[inline(never)]
fn sending_socket(ctx: &TcContext) -> u32 {
    // SAFETY: skb->sk and what the helpers answer are null-checked before use, as the verifier demands.
    unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return UNMANAGED;
        }
        let full: *mut bpf_sock = bpf_sk_fullsock(sk);
        if full.is_null() {
            let listener = bpf_get_listener_sock(sk);
            if listener.is_null() {
                return UNMANAGED;
            }
            return stored(listener.cast()).unwrap_or(UNMANAGED);
        }
        match stored(full.cast()) {
            Some(pu) => pu,
            None => match sending_cgroup(ctx) {
                // The kernel's own sockets bear no mark either; they are nobody's.
                UNMANAGED if (*full).family == AF_PACKET => host::of_packet_socket(),
                pu => pu,
            },
        }
    }
}

/// Sockets no program saw being made (packet sockets, sockets older than the enforcer): by their cgroup.
#[inline(never)]
fn sending_cgroup(ctx: &TcContext) -> u32 {
    let skb = ctx.skb.skb;
    // SAFETY: helpers on our own context.
    let own = unsafe { bpf_skb_cgroup_id(skb) };
    if own == 0 {
        return UNMANAGED;
    }
    // SAFETY: read-only value of a scalar.
    if let Some(pu) = unsafe { PU_CGROUPS.get(own) } {
        return *pu;
    }
    let mut nearest = UNMANAGED;
    for level in 1..MAX_CGROUP_DEPTH {
        // SAFETY: as above.
        let ancestor = unsafe { bpf_skb_ancestor_cgroup_id(skb, level as i32) };
        if ancestor == 0 || ancestor == own {
            return nearest;
        }
        // SAFETY: as above.
        if let Some(pu) = unsafe { PU_CGROUPS.get(ancestor) } {
            nearest = *pu;
        }
    }
    if nearest == UNMANAGED { PU_TOO_DEEP } else { nearest }
}

/// Aligned so that it is cleared by words.
#[repr(align(8))]
struct Tuple(bpf_sock_tuple);

// SAFETY: addresses and ports only, aligned to eight bytes, of a size that is a multiple of eight.
unsafe impl Clear for Tuple {}

#[inline(never)]
fn receiving_socket(ctx: &TcContext, ip: &Ip, key: &FlowKey, opening: bool) -> u32 {
    cleared!(storage: Tuple);
    let tuple = &mut storage.0;
    // SAFETY: plain fields of a union we own; the socket is null-checked and released.
    unsafe {
        let size = if ip.v6 {
            let t = &mut tuple.__bindgen_anon_1.ipv6;
            t.saddr = ip.src;
            t.daddr = ip.dst;
            t.sport = key.remote_port.to_be();
            t.dport = key.local_port.to_be();
            36
        } else {
            let t = &mut tuple.__bindgen_anon_1.ipv4;
            t.saddr = ip.src[3];
            t.daddr = ip.dst[3];
            t.sport = key.remote_port.to_be();
            t.dport = key.local_port.to_be();
            12
        };
        let netns = BPF_F_CURRENT_NETNS as i64 as u64;
        let sk = if key.proto == TCP {
            let sk = bpf_sk_lookup_tcp(ctx.as_ptr(), tuple, size, netns, 0);
            if sk.is_null() && opening {
                // A socket in TIME_WAIT hides the listener. No connection has the remote port 0.
                if ip.v6 {
                    tuple.__bindgen_anon_1.ipv6.sport = 0;
                } else {
                    tuple.__bindgen_anon_1.ipv4.sport = 0;
                }
                bpf_sk_lookup_tcp(ctx.as_ptr(), tuple, size, netns, 0)
            } else {
                sk
            }
        } else {
            bpf_sk_lookup_udp(ctx.as_ptr(), tuple, size, netns, 0)
        };
        if sk.is_null() {
            return UNMANAGED;
        }
        let pu = stored(sk.cast()).unwrap_or(UNMANAGED);
        bpf_sk_release(sk.cast());
        if pu != UNMANAGED && is_forwarded(ctx.as_ptr(), ifindex(ctx), ip) { UNMANAGED } else { pu }
    }
}

/// Whether the listener an IPv4 connection would reach is one on both families.
#[inline(never)]
pub fn is_heard_by_ipv6(ctx: *mut c_void, key: &FlowKey) -> bool {
    cleared!(storage: Tuple);
    let tuple = &mut storage.0;
    // SAFETY: plain fields of a union we own; the socket is null-checked and released.
    unsafe {
        let t = &mut tuple.__bindgen_anon_1.ipv4;
        t.saddr = key.remote[3];
        t.daddr = key.local[3];
        t.sport = key.remote_port.to_be();
        t.dport = key.local_port.to_be();
        let sk = bpf_sk_lookup_tcp(ctx, tuple, 12, BPF_F_CURRENT_NETNS as i64 as u64, 0);
        if sk.is_null() {
            return false;
        }
        let family = (*sk).family;
        bpf_sk_release(sk.cast());
        family == AF_INET6 as u32
    }
}

/// Aligned so that it is cleared by words.
#[repr(align(8))]
struct Route(bpf_fib_lookup);

// SAFETY: integers and unions of integers only, aligned to eight bytes, of a size that is a multiple of eight.
unsafe impl Clear for Route {}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_PACKET: u32 = 17;

/// Whether this host only hands the packet on: a listener on any address is found for those too. In doubt it is ours.
#[inline(never)]
pub fn is_forwarded(ctx: *mut c_void, ifindex: u32, ip: &Ip) -> bool {
    cleared!(route: Route);
    let params = &mut route.0;
    params.ifindex = ifindex;
    params.l4_protocol = ip.proto;
    if ip.v6 {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = ip.src;
        params.__bindgen_anon_4.ipv6_dst = ip.dst;
    } else {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = ip.src[3];
        params.__bindgen_anon_4.ipv4_dst = ip.dst[3];
    }
    // SAFETY: the caller gives its own context; the value is ours.
    let result = unsafe { helper_fib_lookup(ctx, params, size_of::<bpf_fib_lookup>() as i32, 0) } as u32;
    matches!(result, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED)
}
