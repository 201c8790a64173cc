//! TC ingress of every interface, and of a PU's own interface (where ingress is the PU's way out).

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{
    attribute::Source,
    datagram::{follow, is_to_be_bare, make_bare},
    emit::config,
    hook_tc_egress::own,
    hook_tc_stack::is_taken_elsewhere,
    inbound::inbound,
    outbound::{PASS, outbound},
    turn_around::Way,
};

#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    let Some(config) = config() else { return PASS };
    if own(&ctx, config, false) || is_taken_elsewhere(&ctx) {
        return PASS;
    }
    follow(&ctx, inbound(&ctx, config, Source::Socket), Source::Socket, Way::In)
}

#[classifier]
pub fn tc_pu_ingress(ctx: TcContext) -> i32 {
    let Some(config) = config() else { return PASS };
    if is_to_be_bare(&ctx, config) {
        return make_bare(&ctx);
    }
    if own(&ctx, config, true) {
        return PASS;
    }
    follow(&ctx, outbound(&ctx, config, Source::Interface), Source::Interface, Way::Out)
}
