//! TC ingress of the enforcer's TAP: frames the agent hands back go where their trailer says.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::generated::{
        bpf_redirect, bpf_redirect_neigh, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes,
    },
    macros::classifier,
    programs::TcContext,
};
use common::abi::{
    INJECT_ANSWER, INJECT_INGRESS, INJECT_NEIGHBOUR, INJECT_TRUSTED, INJECTION_MAGIC, Injection, MARK_ANSWER,
};

use crate::{
    emit::{config, count_at},
    packet::raw,
};

const TRAILER: u32 = size_of::<Injection>() as u32;
const PACKET_HOST: u32 = 0;

#[classifier]
pub fn tap_inject(ctx: TcContext) -> i32 {
    inject(&ctx).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn inject(ctx: &TcContext) -> Option<i32> {
    let config = config()?;
    let end = ctx.len().checked_sub(TRAILER)?;
    let mut trailer = Injection::default();
    let skb = ctx.skb.skb;
    // SAFETY: helper calls on our own context and on values we own.
    unsafe {
        if bpf_skb_load_bytes(raw(ctx), end, core::ptr::from_mut(&mut trailer).cast(), TRAILER) != 0
            || trailer.magic != INJECTION_MAGIC
            || bpf_skb_change_tail(skb, end, 0) != 0
        {
            return None;
        }
        if trailer.count != 0 {
            count_at(trailer.count);
        }
        if trailer.flags & INJECT_TRUSTED != 0 {
            ctx.skb.set_mark(config.mark);
        } else if trailer.flags & INJECT_ANSWER != 0 {
            ctx.skb.set_mark(config.mark ^ MARK_ANSWER);
        }
        // What leaves through the loopback comes in by it, and keeps what it was taken for here.
        bpf_skb_change_type(skb, PACKET_HOST);
        if trailer.flags & INJECT_INGRESS != 0 {
            return Some(bpf_redirect(trailer.ifindex, BPF_F_INGRESS as u64) as i32);
        }
        if trailer.flags & INJECT_NEIGHBOUR != 0 {
            return Some(bpf_redirect_neigh(trailer.ifindex, core::ptr::null_mut(), 0, 0) as i32);
        }
        Some(bpf_redirect(trailer.ifindex, 0) as i32)
    }
}
