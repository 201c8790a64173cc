//! TC ingress of every interface, and of a PU's own interface (where ingress is the PU's way out).

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{
    attribute::Source,
    emit::config,
    hook_tc_egress::own,
    hook_tc_stack::is_taken_elsewhere,
    inbound::inbound,
    outbound::{PASS, outbound},
};

#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    let Some(config) = config() else { return PASS };
    if own(&ctx, config, false) || is_taken_elsewhere(&ctx) { PASS } else { inbound(&ctx, config, Source::Socket) }
}

#[classifier]
pub fn tc_pu_ingress(ctx: TcContext) -> i32 {
    let Some(config) = config() else { return PASS };
    if own(&ctx, config, true) { PASS } else { outbound(&ctx, config, Source::Interface) }
}
