//! Datagrams with identity: what the way out and the way in share.

use aya_ebpf::{bindings::BPF_NOEXIST, cty::c_void, helpers::generated::bpf_skb_load_bytes, programs::TcContext};
use common::{
    abi::{Config, MARK_BARE},
    datagram::{Accepted, COVERED, Fields, MAGIC, PROGRAM_BARE, REORDER_NS, TRAILER_LEN, Trailer, mac},
    drop_reason::Reason,
    identity::SessionPu,
    wire::MacKey,
};

use crate::{
    attribute::Source,
    emit::count_reason,
    maps::{ACCEPTED_SCRATCH, DATAGRAM_PROGRAMS, DATAGRAM_TIMES},
    outbound::DROP,
    packet::{Ip, UDP, bounded, raw, read},
    rewrite::load,
    turn_around::Way,
};

/// What the parts of a TC program answer for a packet that the programs of datagrams shall decide.
pub const HAND_ON: i32 = 0x4447;

/// Length of the header of UDP, and of an echo.
pub const HEADER: u32 = 8;
const TRAILER: u32 = TRAILER_LEN as u32;

/// A TC program's verdict. Where that is to hand the packet on, it goes on in another program; if there is none, the packet is
/// dropped.
#[inline(always)]
pub fn follow(ctx: &TcContext, verdict: i32, source: Source, way: Way) -> i32 {
    if verdict != HAND_ON {
        return verdict;
    }
    hand_on(ctx, (way == Way::In) as u32 * 2 + source as u32, way)
}

#[inline(always)]
fn hand_on(ctx: &TcContext, program: u32, way: Way) -> i32 {
    // SAFETY: nothing is to be dropped here.
    unsafe { DATAGRAM_PROGRAMS.tail_call(ctx, program) };
    count_reason(Reason::Internal, way == Way::In);
    DROP
}

/// Whether this is a copy of a datagram that is to go ahead of it, with nothing but its identity.
#[inline(always)]
pub fn is_to_be_bare(ctx: &TcContext, config: &Config) -> bool {
    // SAFETY: the context is valid for the whole program.
    config.mark != 0 && unsafe { (*ctx.skb.skb).mark } ^ config.mark == MARK_BARE
}

#[inline(always)]
pub fn make_bare(ctx: &TcContext) -> i32 {
    hand_on(ctx, PROGRAM_BARE, Way::Out)
}

/// Whether a packet in one piece ends like one with a trailer.
#[inline(always)]
pub fn ends_with_trailer(ctx: &TcContext, ip: &Ip) -> bool {
    if ip.first_fragment || ip.l4 > 1024 || ip.end < ip.l4 + HEADER + TRAILER {
        return false;
    }
    let mut magic = 0u32;
    load(ctx, ip.end - 4, &mut magic).is_ok() && magic == MAGIC.to_be()
}

/// Whether a datagram among those that this packet is made of, or is to be cut into, ends like one with a trailer: the last or the first.
/// Those between are no other.
#[inline(always)]
pub fn holds_trailer(ctx: &TcContext, ip: &Ip) -> bool {
    ends_with_trailer(ctx, ip) || segment_ends_with_trailer(ctx, ip)
}

#[inline(always)]
fn segment_ends_with_trailer(ctx: &TcContext, ip: &Ip) -> bool {
    // SAFETY: the context is valid for the whole program.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment < TRAILER || ip.l4 > 1024 {
        return false;
    }
    let mut magic = 0u32;
    load(ctx, ip.l4 + HEADER + segment - 4, &mut magic).is_ok() && magic == MAGIC.to_be()
}

/// The trailer, if the packet has one and its lengths agree.
#[inline(always)]
pub fn trailer(ctx: &TcContext, ip: &Ip, found: &mut Trailer) -> bool {
    ends_with_trailer(ctx, ip)
        && (ip.proto != UDP || udp_length(ctx, ip) == ip.end - ip.l4)
        && load(ctx, ip.end - TRAILER, found).is_ok()
}

/// The length the UDP header gives.
#[inline(always)]
pub fn udp_length(ctx: &TcContext, ip: &Ip) -> u32 {
    if ip.l4 > 1024 {
        return 0;
    }
    read::<u16>(ctx, ip.l4 + 4).map_or(0, |len| u16::from_be(len) as u32)
}

/// The MAC of a trailer with these fields behind `fields.len` bytes of this packet's payload.
#[inline(always)]
pub fn sealed(ctx: &TcContext, ip: &Ip, key: &MacKey, fields: &Fields) -> u64 {
    sealed_at(ctx, ip, key, fields, ip.l4 + HEADER)
}

/// As [`sealed`], where the payload begins at `start`.
#[inline(never)]
pub fn sealed_at(ctx: &TcContext, ip: &Ip, key: &MacKey, fields: &Fields, start: u32) -> u64 {
    let mut covered = [0u64; COVERED / 8];
    let len = if fields.len as usize > COVERED { COVERED as u32 } else { fields.len as u32 };
    if let Some(len) = bounded(len, COVERED as u32) {
        // SAFETY: at most the whole of a value we own; the kernel checks the packet's bounds.
        unsafe { bpf_skb_load_bytes(raw(ctx), start, covered.as_mut_ptr().cast::<c_void>(), len) };
    }
    mac(key, fields, ip.proto, &covered)
}

/// Whether this trailer is accepted for the first time. Its MAC was right; from now on it was accepted.
#[inline(never)]
pub fn is_fresh(session: u32, fields: &Fields) -> bool {
    let sender = SessionPu { session, handle: fields.handle, pad: 0 };
    let latest = DATAGRAM_TIMES.get_ptr_mut(sender);
    if let Some(latest) = latest {
        // SAFETY: a word of a map value. Whoever changes it at the same time was as late.
        if fields.time.wrapping_add(REORDER_NS) < unsafe { latest.read_volatile() } {
            return false;
        }
    }
    let accepted = Accepted { time: fields.time, session, handle: fields.handle, pad: 0 };
    if ACCEPTED_SCRATCH.insert(accepted, 1, BPF_NOEXIST as u64).is_err() {
        return false;
    }
    match latest {
        Some(latest) => {
            // SAFETY: as above.
            unsafe {
                if fields.time > latest.read_volatile() {
                    latest.write_volatile(fields.time);
                }
            }
            true
        }
        None => DATAGRAM_TIMES.insert(sender, fields.time, 0).is_ok(),
    }
}
