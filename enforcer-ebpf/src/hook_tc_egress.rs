//! TC egress of every interface, and of a PU's own interface (where egress is the way to the PU).

use aya_ebpf::{macros::classifier, programs::TcContext};
use common::abi::{Config, MARK_ANSWER};

use crate::{
    attribute::{Source, is_pu_interface},
    datagram::{follow, is_to_be_bare, make_bare},
    emit::config,
    hook_tc_stack::is_of_vlan,
    inbound::inbound,
    outbound::{PASS, outbound},
    turn_around::Way,
};

#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    let Some(config) = config() else { return PASS };
    if is_to_be_bare(&ctx, config) {
        return make_bare(&ctx);
    }
    if own(&ctx, config, true) || is_of_vlan(&ctx) {
        return PASS;
    }
    follow(&ctx, outbound(&ctx, config, Source::Socket), Source::Socket, Way::Out)
}

#[classifier]
pub fn tc_pu_egress(ctx: TcContext) -> i32 {
    let Some(config) = config() else { return PASS };
    if own(&ctx, config, false) {
        return PASS;
    }
    follow(&ctx, inbound(&ctx, config, Source::Interface), Source::Interface, Way::In)
}

/// Whether the enforcer itself made or already judged this packet. The mark is random for each load and taken off by the
/// last program that looks: where a PU is behind the interface, the first of two leaves it, but on an answer to what came
/// from there, at which the second is to look.
#[inline(always)]
pub fn own(ctx: &TcContext, config: &Config, first: bool) -> bool {
    // SAFETY: the context is valid for the whole program.
    let difference = unsafe { (*ctx.skb.skb).mark } ^ config.mark;
    let marked = difference & !MARK_ANSWER == 0 && config.mark != 0;
    if marked && (difference == MARK_ANSWER || !(first && is_pu_interface(ctx))) {
        ctx.skb.set_mark(0);
    }
    marked
}
