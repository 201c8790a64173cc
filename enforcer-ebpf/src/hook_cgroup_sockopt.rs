//! cgroup/setsockopt: a PU gets no socket that goes around the programs at an interface's egress.
//!
//! Packet sockets are attributed there by their cgroup. `PACKET_QDISC_BYPASS` and AF_XDP hand frames to the driver
//! before any program sees them.

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use common::{abi::CONFIG_HAS_PU, drop_reason::Reason};

use crate::{
    attribute::UNMANAGED,
    emit::{config, count_reason},
    hook_cgroup_sock::current_pu,
    host::is_withdrawn,
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

// linux/socket.h, linux/if_packet.h. Without a setting of level SOL_XDP an AF_XDP socket cannot send.
const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;
const SOL_XDP: i32 = 283;

#[cgroup_sockopt(setsockopt)]
pub fn sock_option(ctx: SockoptContext) -> i32 {
    // SAFETY: the context is valid for the whole program.
    let (level, name) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    let evasive = level == SOL_XDP || level == SOL_PACKET && name == PACKET_QDISC_BYPASS;
    if evasive && config().is_some_and(|config| config.flags & CONFIG_HAS_PU != 0) && is_of_pu() {
        count_reason(Reason::ForgedByPu, false);
        return REFUSE;
    }
    // Zero: the value is as the caller gave it, however long.
    // SAFETY: as above; the field may be written.
    unsafe { (*ctx.sockopt).optlen = 0 };
    ALLOW
}

#[inline(always)]
fn is_of_pu() -> bool {
    let pu = current_pu();
    pu != UNMANAGED && !is_withdrawn(pu)
}
