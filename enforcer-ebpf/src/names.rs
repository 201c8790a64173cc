//! DNS messages between PUs and resolvers without enforcer: shown to the agent, which learns from them what names mean.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    cty::c_void,
    helpers::generated::bpf_skb_load_bytes,
    programs::TcContext,
};
use common::{
    abi::{CONFIG_LEARN_NAMES, Config, LOSS_NAMES, NAMES_A_TICK},
    event::{FRAME_MAX, HELD_ANSWER, PARTS_MAX},
    flow::{CLIENT, Flow, FlowKey, PATH_EXTERNAL},
};

use crate::{
    attribute::Source,
    emit::{config, count, now, within},
    maps::{HANDSHAKES, NAMES_SCRATCH},
    packet::{bounded, raw},
};

/// The port of DNS over UDP and TCP.
const DNS: u16 = 53;

/// Whether a flow is one in which a PU asks a resolver, and anybody wants to know.
#[inline(always)]
pub fn resolving(config: &Config, key: &FlowKey, flow: &Flow) -> bool {
    config.flags & CONFIG_LEARN_NAMES != 0
        && key.remote_port == DNS
        && flow.role == CLIENT
        && flow.path == PATH_EXTERNAL
}

/// Whether a flow about to be entered is.
#[inline(always)]
pub fn will_resolve(config: &Config, key: &FlowKey, role: u8) -> bool {
    config.flags & CONFIG_LEARN_NAMES != 0 && key.remote_port == DNS && role == CLIENT
}

/// Shows the packet to the agent. True if it has all of it, and, of an answer, will hand it on: drop the original then.
///
/// An answer the agent cannot be shown is nobody's loss but the name's: it goes on, and what it names stays closed.
#[inline(never)]
pub fn show(ctx: &TcContext, key: &FlowKey, pu: u32, kind: u32, source: Source) -> bool {
    let Some(config) = config() else { return false };
    let now = now();
    if now.wrapping_sub(config.heartbeat_ns) > config.agent_timeout_ns && now > config.heartbeat_ns {
        return false;
    }
    let total = ctx.len();
    if total > PARTS_MAX * FRAME_MAX as u32 || !within(NAMES_SCRATCH.get_ptr_mut(0), NAMES_A_TICK) {
        count(LOSS_NAMES);
        return false;
    }
    let at_pu_interface = kind == HELD_ANSWER && source == Source::Interface;
    let mut offset = 0;
    for _ in 0..PARTS_MAX {
        if offset >= total {
            break;
        }
        let rest = total - offset;
        let part = if rest > FRAME_MAX as u32 { FRAME_MAX as u32 } else { rest };
        let Some(len) = bounded(part, FRAME_MAX as u32) else { return false };
        let Some(mut entry) = HANDSHAKES.reserve(0) else {
            count(LOSS_NAMES);
            return false;
        };
        let held = entry.as_mut_ptr();
        // SAFETY: `held` is the reservation, large enough for a whole record; every field the agent reads is written.
        let copied = unsafe {
            (*held).time_ns = now;
            (*held).kind = kind;
            (*held).len = len;
            (*held).ifindex = (*ctx.skb.skb).ifindex;
            (*held).at_pu_interface = at_pu_interface as u32;
            (*held).pu = pu;
            (*held).subject = total;
            (*held).object = 0;
            (*held).offset = offset;
            (*held).key = *key;
            bpf_skb_load_bytes(raw(ctx), offset, core::ptr::addr_of_mut!((*held).frame).cast::<c_void>(), len)
        };
        if copied != 0 {
            entry.discard(0);
            return false;
        }
        offset += len;
        entry.submit((if offset < total { BPF_RB_NO_WAKEUP } else { BPF_RB_FORCE_WAKEUP }) as u64);
    }
    offset >= total
}
