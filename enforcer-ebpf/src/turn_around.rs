//! Turning a packet into the answer to it, in place: resets, RETRY, and RETRY back into a SYN.

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::generated::{bpf_clone_redirect, bpf_l3_csum_replace, bpf_redirect, bpf_skb_change_tail},
    programs::TcContext,
};
use common::{
    abi::MARK_ANSWER,
    drop_reason::Reason,
    wire::{OPTION_LEN, OptionBytes},
};

use crate::{
    attribute::{Source, ifindex},
    packet::{ACK, ETH_LEN, FIN, Ip, RST, SYN, Tcp},
    rewrite::{complete_checksum, load, overwrite, overwrite_option, replace_l4, set_header_length, set_length, store},
};

/// Which way a hook's packets travel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the PU.
    Out,
    /// To the PU.
    In,
}

/// Sends the (already turned) packet to where the original came from.
#[inline(always)]
pub fn send_back(ctx: &TcContext, source: Source, way: Way, mark: u32) -> i32 {
    ctx.skb.set_mark(marked(way, mark));
    // SAFETY: a helper call.
    unsafe { bpf_redirect(ifindex(ctx), back(source, way)) as i32 }
}

/// A copy of the (already turned) packet goes to where the original came from; the caller goes on with this one.
#[inline(always)]
pub fn clone_back(ctx: &TcContext, source: Source, way: Way, mark: u32) {
    ctx.skb.set_mark(marked(way, mark));
    // SAFETY: a helper call on our own context.
    unsafe { bpf_clone_redirect(ctx.skb.skb, ifindex(ctx), back(source, way)) };
    ctx.skb.set_mark(0);
}

/// What a PU sent and gets back is for it alone; what answers a peer may be for another PU of this host, at this very
/// interface.
#[inline(always)]
fn marked(way: Way, mark: u32) -> u32 {
    if way == Way::In { mark ^ MARK_ANSWER } else { mark }
}

/// At a PU's own interface both ways are mirrored: its egress leads to the PU.
#[inline(always)]
fn back(source: Source, way: Way) -> u64 {
    match (source, way) {
        (Source::Socket, Way::Out) | (Source::Interface, Way::In) => BPF_F_INGRESS as u64,
        (Source::Socket, Way::In) | (Source::Interface, Way::Out) => 0,
    }
}

/// Swaps link-layer addresses, network addresses and ports.
#[inline(never)]
pub fn swap_ends(ctx: &TcContext, ip: &Ip, tcp: &Tcp) -> Result<(), Reason> {
    swap_hosts(ctx, ip)?;
    store(ctx, ip.l4, &tcp.dport.to_be())?;
    store(ctx, ip.l4 + 2, &tcp.sport.to_be())
}

/// Swaps link-layer addresses and network addresses.
#[inline(always)]
pub fn swap_hosts(ctx: &TcContext, ip: &Ip) -> Result<(), Reason> {
    // Three scalars: an array would be cleared by a call, one frame more than the verifier's eight.
    let (mut first, mut second, mut third) = (0u32, 0u32, 0u32);
    load(ctx, 0, &mut first)?;
    load(ctx, 4, &mut second)?;
    load(ctx, 8, &mut third)?;
    let (first, second, third) = (u32::from_be(first), u32::from_be(second), u32::from_be(third));
    store(ctx, 0, &(second << 16 | third >> 16).to_be())?;
    store(ctx, 4, &(third << 16 | first >> 16).to_be())?;
    store(ctx, 8, &(first << 16 | second >> 16).to_be())?;
    if ip.v6 {
        store(ctx, ETH_LEN + 8, &ip.dst)?;
        store(ctx, ETH_LEN + 24, &ip.src)?;
        store(ctx, ETH_LEN + 7, &64u8)?;
    } else {
        store(ctx, ETH_LEN + 12, &ip.dst[3])?;
        store(ctx, ETH_LEN + 16, &ip.src[3])?;
        let mut old = 0u16;
        load(ctx, ETH_LEN + 8, &mut old)?;
        let new = u16::from_ne_bytes([64, old.to_ne_bytes()[1]]);
        store(ctx, ETH_LEN + 8, &new)?;
        // SAFETY: a helper call; the kernel checks bounds.
        unsafe { bpf_l3_csum_replace(ctx.skb.skb, ETH_LEN + 10, old as u64, new as u64, 2) };
    }
    Ok(())
}

/// Sets sequence number, acknowledgement number and flags.
#[inline(always)]
pub fn set_numbers(ctx: &TcContext, ip: &Ip, tcp: &Tcp, seq: u32, ack: u32, flags: u8) -> Result<(), Reason> {
    replace_l4(ctx, ip, ip.l4 + 4, tcp.seq.to_be(), seq.to_be())?;
    replace_l4(ctx, ip, ip.l4 + 8, tcp.ack.to_be(), ack.to_be())?;
    set_flags(ctx, ip, flags)
}

/// Sets the flags byte.
#[inline(always)]
pub fn set_flags(ctx: &TcContext, ip: &Ip, flags: u8) -> Result<(), Reason> {
    let mut old = 0u16;
    load(ctx, ip.l4 + 12, &mut old)?;
    let new = u16::from_ne_bytes([old.to_ne_bytes()[0], flags]);
    replace_l4(ctx, ip, ip.l4 + 12, old, new)
}

/// The explicit congestion notification bits of a SYN, kept through RETRY.
const ECN: u8 = 0xc0;

/// Length of a TCP header without options.
const PLAIN_HEADER: u32 = 20;

/// Turns a segment into the reset its sender accepts (RFC 9293 section 3.10.7), with `option`, which is for a sender that
/// writes such options itself. Nothing of what it carried comes back: a stack does not take a reset with malformed options.
#[inline(always)]
pub fn into_reset(ctx: &TcContext, ip: &Ip, tcp: &Tcp, option: Option<&OptionBytes>) -> Result<(), Reason> {
    // One after the other, not one from within the other: older kernels (6.1) round each frame up to 32 bytes of stack.
    swap_ends(ctx, ip, tcp)?;
    reset_in_place(ctx, ip, tcp, option)
}

/// A segment whose ends are swapped becomes the reset.
#[inline(never)]
fn reset_in_place(ctx: &TcContext, ip: &Ip, tcp: &Tcp, option: Option<&OptionBytes>) -> Result<(), Reason> {
    let header = if option.is_some() { PLAIN_HEADER + OPTION_LEN as u32 } else { PLAIN_HEADER };
    let end = ip.l4 + header;
    // SAFETY: a helper call on our own context.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, end, 0) } != 0 {
        return Err(Reason::Internal);
    }
    set_length(ctx, ip, end)?;
    complete_checksum(ctx, ip, header, end, 0)?;
    if let Some(new) = option {
        let mut old = OptionBytes::default();
        load(ctx, ip.l4 + PLAIN_HEADER, &mut old)?;
        overwrite(ctx, ip, ip.l4 + PLAIN_HEADER, &old, new)?;
    }
    // Payload of a SYN is a credential, of which the sender's stack knows nothing.
    let sent = if tcp.flags & SYN != 0 { 1 } else { tcp.payload + (tcp.flags & FIN != 0) as u32 };
    set_header_length(ctx, ip, header)?;
    if tcp.flags & SYN == 0 && tcp.flags & ACK != 0 {
        set_numbers(ctx, ip, tcp, tcp.ack, 0, RST)
    } else {
        set_numbers(ctx, ip, tcp, tcp.ack, tcp.seq.wrapping_add(sent), RST | ACK)
    }
}

/// Turns a SYN into a RETRY or CHALLENGE (`new`) that repeats its other options, so that the sender's enforcer can restore it.
#[inline(never)]
pub fn into_retry(ctx: &TcContext, ip: &Ip, tcp: &Tcp, old: &OptionBytes, new: &OptionBytes) -> Result<(), Reason> {
    drop_payload(ctx, ip, tcp)?;
    swap_ends(ctx, ip, tcp)?;
    overwrite_option(ctx, ip, tcp, old, new)?;
    set_numbers(ctx, ip, tcp, 0, tcp.seq.wrapping_add(1), RST | ACK | (tcp.flags & ECN))
}

/// Turns a RETRY or CHALLENGE back into the SYN it answers; the option is still its own.
#[inline(never)]
pub fn from_retry(ctx: &TcContext, ip: &Ip, tcp: &Tcp) -> Result<(), Reason> {
    swap_ends(ctx, ip, tcp)?;
    set_numbers(ctx, ip, tcp, tcp.ack.wrapping_sub(1), 0, SYN | (tcp.flags & ECN))
}

/// Cuts the payload off. Segments come with partial checksums (local ones, and those GRO has merged) or complete ones
/// (as a network card hands them over); both are right afterwards.
#[inline(always)]
pub fn drop_payload(ctx: &TcContext, ip: &Ip, tcp: &Tcp) -> Result<(), Reason> {
    if tcp.payload == 0 {
        return Ok(());
    }
    let end = ip.l4 + tcp.header;
    // SAFETY: a helper call on our own context.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, end, 0) } != 0 {
        return Err(Reason::Internal);
    }
    set_length(ctx, ip, end)?;
    complete_checksum(ctx, ip, tcp.header, end, 0)
}
