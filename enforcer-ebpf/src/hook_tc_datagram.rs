//! Where the TC programs hand on datagrams that carry identity, or should: the same packet, at the same place, with a stack of
//! its own.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{
    attribute::Source,
    datagram_in::received,
    datagram_out::{bare, sent},
};

#[classifier]
pub fn dg_out(ctx: TcContext) -> i32 {
    sent(&ctx, Source::Socket)
}

#[classifier]
pub fn dg_pu_out(ctx: TcContext) -> i32 {
    sent(&ctx, Source::Interface)
}

#[classifier]
pub fn dg_in(ctx: TcContext) -> i32 {
    received(&ctx, Source::Socket)
}

#[classifier]
pub fn dg_pu_in(ctx: TcContext) -> i32 {
    received(&ctx, Source::Interface)
}

#[classifier]
pub fn dg_bare(ctx: TcContext) -> i32 {
    bare(&ctx)
}
