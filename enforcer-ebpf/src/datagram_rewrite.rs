//! Changing datagrams: a trailer on and off, a copy made bare, and errors of ICMP in their place.
//!
//! As in [`crate::rewrite`], what a checksum covers is stored plainly and corrected in the checksum itself, which does nothing
//! where the device finishes it.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_change_tail},
    programs::TcContext,
};
use common::{
    datagram::{TRAILER_LEN, Trailer},
    drop_reason::Reason,
    flow::FlowKey,
};

use crate::{
    datagram::HEADER,
    packet::{ETH_LEN, ICMP, ICMPV6, Ip, UDP},
    rewrite::{load, store},
    turn_around::{Way, swap_hosts},
};

const TRAILER: u32 = TRAILER_LEN as u32;

/// Where the checksum stands.
#[inline(always)]
fn check_at(ip: &Ip) -> u32 {
    ip.l4 + if ip.proto == UDP { 6 } else { 2 }
}

/// A checksum of UDP that is zero says that there is none, and stays so.
#[inline(always)]
fn kept_zero(ip: &Ip) -> u64 {
    if ip.proto == UDP { BPF_F_MARK_MANGLED_0 as u64 } else { 0 }
}

#[inline(always)]
fn add(ctx: &TcContext, ip: &Ip, difference: u32, flags: u64) -> Result<(), Reason> {
    // SAFETY: a helper call; size 0 means "by difference".
    match unsafe { bpf_l4_csum_replace(ctx.skb.skb, check_at(ip), 0, difference as u64, flags) } {
        0 => Ok(()),
        _ => Err(Reason::Internal),
    }
}

#[inline(always)]
fn replace(ctx: &TcContext, ip: &Ip, from: u16, to: u16, flags: u64) -> Result<(), Reason> {
    // SAFETY: a helper call; bounds are checked by the kernel.
    match unsafe { bpf_l4_csum_replace(ctx.skb.skb, check_at(ip), from as u64, to as u64, flags | kept_zero(ip) | 2) } {
        0 => Ok(()),
        _ => Err(Reason::Internal),
    }
}

#[inline(always)]
fn change_tail(ctx: &TcContext, end: u32) -> Result<(), Reason> {
    // SAFETY: a helper call on our own context.
    match unsafe { bpf_skb_change_tail(ctx.skb.skb, end, 0) } {
        0 => Ok(()),
        _ => Err(Reason::Internal),
    }
}

/// The sum of a trailer that begins at `at`: bytes at odd places count the other way round.
#[inline(always)]
fn sum_of(ip: &Ip, at: u32, trailer: &Trailer, taken: bool) -> u32 {
    let mut bytes = *trailer;
    let pointer = core::ptr::from_mut(&mut bytes).cast::<u32>();
    // SAFETY: a whole trailer is readable.
    let sum = unsafe {
        if taken {
            bpf_csum_diff(pointer, TRAILER, core::ptr::null_mut(), 0, 0)
        } else {
            bpf_csum_diff(core::ptr::null_mut(), 0, pointer, TRAILER, 0)
        }
    } as u32;
    if (at - ip.l4) & 1 != 0 { sum.rotate_right(8) } else { sum }
}

/// Sets the lengths that network and transport header give, from the present `ip.end` on.
#[inline(always)]
fn set_lengths(ctx: &TcContext, ip: &Ip, end: u32) -> Result<(), Reason> {
    let (from, to) = (((ip.end - ip.l4) as u16).to_be(), ((end - ip.l4) as u16).to_be());
    if ip.proto == UDP {
        store(ctx, ip.l4 + 4, &to)?;
        replace(ctx, ip, from, to, 0)?;
    }
    if ip.proto != ICMP {
        replace(ctx, ip, from, to, BPF_F_PSEUDO_HDR as u64)?;
    }
    set_network_length(ctx, ip, end)
}

#[inline(always)]
fn set_network_length(ctx: &TcContext, ip: &Ip, end: u32) -> Result<(), Reason> {
    if ip.v6 {
        return store(ctx, ETH_LEN + 4, &((end - ETH_LEN - 40) as u16).to_be());
    }
    replace_l3(ctx, 2, ((end - ETH_LEN) as u16).to_be())
}

/// Replaces two bytes of an IPv4 header.
#[inline(always)]
fn replace_l3(ctx: &TcContext, at: u32, to: u16) -> Result<(), Reason> {
    let mut from = 0u16;
    load(ctx, ETH_LEN + at, &mut from)?;
    store(ctx, ETH_LEN + at, &to)?;
    // SAFETY: a helper call; bounds are checked by the kernel.
    match unsafe { bpf_l3_csum_replace(ctx.skb.skb, ETH_LEN + 10, from as u64, to as u64, 2) } {
        0 => Ok(()),
        _ => Err(Reason::Internal),
    }
}

/// Appends a trailer.
#[inline(never)]
pub fn attach(ctx: &TcContext, ip: &Ip, trailer: &Trailer) -> Result<(), Reason> {
    let end = ip.end + TRAILER;
    change_tail(ctx, end)?;
    store(ctx, ip.end, trailer)?;
    add(ctx, ip, sum_of(ip, ip.end, trailer, false), kept_zero(ip))?;
    set_lengths(ctx, ip, end)
}

/// Takes the trailer off.
#[inline(never)]
pub fn trim(ctx: &TcContext, ip: &Ip, trailer: &Trailer) -> Result<(), Reason> {
    let end = ip.end - TRAILER;
    add(ctx, ip, sum_of(ip, end, trailer, true), kept_zero(ip))?;
    change_tail(ctx, end)?;
    set_lengths(ctx, ip, end)
}

/// Overwrites the first two bytes of the trailer, which are `from`.
#[inline(never)]
pub fn retype(ctx: &TcContext, ip: &Ip, from: u16, to: u16) -> Result<(), Reason> {
    let at = ip.end - TRAILER;
    store(ctx, at, &to)?;
    if (at - ip.l4) & 1 != 0 {
        return replace(ctx, ip, from.swap_bytes(), to.swap_bytes(), 0);
    }
    replace(ctx, ip, from, to, 0)
}

/// Moves the transport header of IPv6's first fragment to where the fragment header stands, its only extension; what follows is
/// to be cut off.
#[inline(never)]
pub fn drop_fragment_header(ctx: &TcContext, ip: &mut Ip) -> Result<(), Reason> {
    let mut header = 0u64;
    load(ctx, ip.l4, &mut header)?;
    ip.l4 = ETH_LEN + 40;
    store(ctx, ip.l4, &header)?;
    store(ctx, ETH_LEN + 6, &ip.proto)
}

/// Makes the packet one of nothing but a trailer, in one piece.
#[inline(never)]
pub fn strip_bare(ctx: &TcContext, ip: &Ip, trailer: &Trailer) -> Result<(), Reason> {
    let end = ip.l4 + HEADER + TRAILER;
    change_tail(ctx, end)?;
    set_network_length(ctx, ip, end)?;
    if !ip.v6 {
        // Only the first of several fragments is made bare; whether the packet may be fragmented stays.
        const DONT_FRAGMENT: u16 = 0x4000;
        let mut fragment = 0u16;
        load(ctx, ETH_LEN + 6, &mut fragment)?;
        replace_l3(ctx, 6, fragment & DONT_FRAGMENT.to_be())?;
    }
    if ip.proto == UDP {
        store(ctx, ip.l4 + 4, &((HEADER + TRAILER) as u16).to_be())?;
    }
    store(ctx, ip.l4 + HEADER, trailer)?;
    sum_bare(ctx, ip, trailer)
}

/// Makes the checksum of a packet of nothing but a trailer anew.
#[inline(always)]
fn sum_bare(ctx: &TcContext, ip: &Ip, trailer: &Trailer) -> Result<(), Reason> {
    store(ctx, check_at(ip), &0u16)?;
    if ip.proto != ICMP {
        // The marker of a mapped IPv4 address is 0xffff, which is zero in one's complement.
        let mut pseudo = (ip.proto as u32).to_be() as u64 + (HEADER + TRAILER).to_be() as u64;
        for word in 0..4 {
            pseudo += ip.src[word] as u64 + ip.dst[word] as u64;
        }
        add(ctx, ip, folded(pseudo), BPF_F_PSEUDO_HDR as u64)?;
    }
    let (mut first, mut second) = (0u32, 0u32);
    load(ctx, ip.l4, &mut first)?;
    load(ctx, ip.l4 + 4, &mut second)?;
    let mut check = 0u16;
    load(ctx, check_at(ip), &mut check)?;
    // The sum so far stands among what is summed.
    let sum = first as u64 + second as u64 + (!check) as u64 + sum_of(ip, ip.l4 + HEADER, trailer, false) as u64;
    add(ctx, ip, folded(sum), 0)?;
    load(ctx, check_at(ip), &mut check)?;
    if ip.proto == UDP && check == 0 {
        store(ctx, check_at(ip), &0xffffu16)?;
    }
    Ok(())
}

#[inline(always)]
fn folded(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
const ECHO6: u8 = 128;
const ECHO6_REPLY: u8 = 129;

/// Turns a packet back to where it came from: an echo becomes its reply.
#[inline(never)]
pub fn turn(ctx: &TcContext, ip: &Ip) -> Result<(), Reason> {
    swap_hosts(ctx, ip)?;
    if ip.proto == UDP {
        let (mut source, mut target) = (0u16, 0u16);
        load(ctx, ip.l4, &mut source)?;
        load(ctx, ip.l4 + 2, &mut target)?;
        store(ctx, ip.l4, &target)?;
        return store(ctx, ip.l4 + 2, &source);
    }
    let mut old = 0u16;
    load(ctx, ip.l4, &mut old)?;
    let [kind, code] = old.to_ne_bytes();
    let kind = match (ip.proto, kind) {
        (ICMP, ECHO) => ECHO_REPLY,
        (ICMP, _) => ECHO,
        (_, ECHO6) => ECHO6_REPLY,
        _ => ECHO6,
    };
    let new = u16::from_ne_bytes([kind, code]);
    store(ctx, ip.l4, &new)?;
    replace(ctx, ip, old, new, 0)
}

#[repr(C)]
struct Quote4 {
    // Type, code, checksum; unused.
    icmp: [u16; 4],
    version: [u8; 4],
    id: u32,
    ttl_proto: [u8; 2],
    check: u16,
    src: u32,
    dst: u32,
    ports: [u16; 2],
    len: u16,
    udp_check: u16,
}

#[repr(C)]
struct Quote6 {
    icmp: [u16; 4],
    version: u32,
    len: u16,
    next: u8,
    hops: u8,
    src: [u32; 4],
    dst: [u32; 4],
    ports: [u16; 2],
    udp_len: u16,
    udp_check: u16,
}

/// Puts in the packet's place the error of ICMP that its PU's socket gets for what it sent: nobody is there.
#[inline(never)]
pub fn unreachable(ctx: &TcContext, ip: &Ip, key: &FlowKey, way: Way) -> Result<(), Reason> {
    if ip.proto != UDP || ip.extended {
        return Err(Reason::Internal);
    }
    if way == Way::Out {
        swap_hosts(ctx, ip)?;
    }
    if ip.v6 { unreachable6(ctx, ip, key) } else { unreachable4(ctx, ip, key) }
}

#[inline(always)]
fn unreachable4(ctx: &TcContext, ip: &Ip, key: &FlowKey) -> Result<(), Reason> {
    const LEN: u32 = size_of::<Quote4>() as u32;
    const L4: u32 = ETH_LEN + 20;
    let end = L4 + LEN;
    change_tail(ctx, end)?;
    set_network_length(ctx, ip, end)?;
    replace_l3(ctx, 6, 0)?;
    let mut time = 0u16;
    load(ctx, ETH_LEN + 8, &mut time)?;
    replace_l3(ctx, 8, u16::from_ne_bytes([time.to_ne_bytes()[0], ICMP]))?;
    let mut quote = Quote4 {
        // Destination unreachable, port (RFC 792).
        icmp: [0x0303u16.to_be(), 0, 0, 0],
        version: [0x45, 0, 0, 28],
        id: 0,
        ttl_proto: [64, UDP],
        check: 0,
        src: key.local[3],
        dst: key.remote[3],
        ports: [key.local_port.to_be(), key.remote_port.to_be()],
        len: 8u16.to_be(),
        udp_check: 0,
    };
    // SAFETY: twenty bytes, then the whole, of a value we own.
    unsafe {
        let header = core::ptr::from_mut(&mut quote.version).cast::<u32>();
        quote.check = check(bpf_csum_diff(core::ptr::null_mut(), 0, header, 20, 0) as u32);
        let whole = core::ptr::from_mut(&mut quote).cast::<u32>();
        quote.icmp[1] = check(bpf_csum_diff(core::ptr::null_mut(), 0, whole, LEN, 0) as u32);
    }
    store(ctx, L4, &quote)
}

#[inline(always)]
fn unreachable6(ctx: &TcContext, ip: &Ip, key: &FlowKey) -> Result<(), Reason> {
    const LEN: u32 = size_of::<Quote6>() as u32;
    // A fragment header is overwritten.
    const L4: u32 = ETH_LEN + 40;
    let end = L4 + LEN;
    change_tail(ctx, end)?;
    set_network_length(ctx, ip, end)?;
    store(ctx, ETH_LEN + 6, &ICMPV6)?;
    let mut quote = Quote6 {
        // Destination unreachable, port (RFC 4443 section 3.1).
        icmp: [0x0104u16.to_be(), 0, 0, 0],
        version: 0x6000_0000u32.to_be(),
        len: 8u16.to_be(),
        next: UDP,
        hops: 64,
        src: key.local,
        dst: key.remote,
        ports: [key.local_port.to_be(), key.remote_port.to_be()],
        udp_len: 8u16.to_be(),
        udp_check: 0,
    };
    let mut pseudo = (ICMPV6 as u32).to_be() as u64 + LEN.to_be() as u64;
    for word in 0..4 {
        pseudo += key.local[word] as u64 + key.remote[word] as u64;
    }
    // SAFETY: the whole of a value we own.
    let sum = unsafe {
        let whole = core::ptr::from_mut(&mut quote).cast::<u32>();
        bpf_csum_diff(core::ptr::null_mut(), 0, whole, LEN, 0) as u32
    };
    quote.icmp[1] = check(folded(pseudo + sum as u64));
    store(ctx, L4, &quote)
}

/// The checksum of a sum.
#[inline(always)]
fn check(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
