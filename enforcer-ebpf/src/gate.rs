//! Before the agent: how many first contacts it is shown, from one source and in all.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE},
    cty::c_void,
    helpers::generated::bpf_ringbuf_query,
};
use common::{
    Addr,
    datagram::{COOKIE, Trailer},
    drop_reason::Reason,
    shield::{Shield, Source, cookie, taken},
    wire::{HELLO_COOKIE, MacKey, OptionBytes},
};

use crate::{
    flow_table::coarse_now,
    maps::{ALL_HELLOS_SCRATCH, HANDSHAKES, HELLO_SOURCES, SHIELD},
    outbound::Packet,
    packet::Ip,
};

/// What becomes of a HELLO: `Allowed` to the agent, `Challenged` to be answered with a cookie, or refused without an answer.
#[inline(never)]
pub fn first_contact(packet: &Packet, option: &OptionBytes) -> Reason {
    let Some(shield) = SHIELD.get(0) else { return Reason::Allowed };
    if !may_answer(&packet.ip.src) {
        return Reason::HelloBudget;
    }
    if option.flags & HELLO_COOKIE != 0 {
        // Who was given one has the right one; it stands in the place of a part of the credential's hash.
        return if is_cookie(packet, option.mac(), shield) { Reason::Allowed } else { Reason::HelloMalformed };
    }
    if shield.all_interval_ns == 0 || !is_loaded(shield) {
        return Reason::Allowed;
    }
    // An answer as long as what it answers is one too many.
    if packet.tcp.payload == 0 { Reason::HelloMalformed } else { Reason::Challenged }
}

/// As [`first_contact`], of a HELLO in a datagram from and to these ports.
#[inline(never)]
pub fn datagram(ip: &Ip, port: u16, from: u16, found: &Trailer) -> Reason {
    let Some(shield) = SHIELD.get(0) else { return Reason::Allowed };
    if !may_answer(&ip.src) {
        return Reason::HelloBudget;
    }
    if found.flags & COOKIE != 0 {
        let number = u64::from_be_bytes(found.time) as u32;
        let shown = found.mac();
        let ours = |secret: &MacKey| shown == cookie(secret, &ip.src, from, port, number);
        return if ours(&shield.secret) || ours(&shield.former_secret) {
            Reason::Allowed
        } else {
            Reason::HelloMalformed
        };
    }
    if shield.all_interval_ns == 0 || !is_loaded(shield) { Reason::Allowed } else { Reason::Challenged }
}

/// The cookie for the sender of such a HELLO.
#[inline(always)]
pub fn datagram_cookie(ip: &Ip, port: u16, from: u16, found: &Trailer) -> u64 {
    let number = u64::from_be_bytes(found.time) as u32;
    SHIELD.get(0).map_or(0, |shield| cookie(&shield.secret, &ip.src, from, port, number))
}

/// Takes one from what a source may ask of this host: to be introduced, or to be told to start over. Whether anything was
/// left.
#[inline(never)]
pub fn may_answer(address: &Addr) -> bool {
    let Some(shield) = SHIELD.get(0) else { return true };
    let (interval, burst) = (shield.source_interval_ns, shield.source_burst_ns);
    if interval == 0 {
        return true;
    }
    let now = coarse_now();
    let source = Source::of(address);
    match HELLO_SOURCES.get_ptr_mut(source) {
        Some(even_at) => take(even_at, now, interval, burst),
        None => {
            let even_at = now + interval;
            let _ = HELLO_SOURCES.insert(source, even_at, 0);
            true
        }
    }
}

/// Whether a source has nothing left. Takes nothing: that is for traffic control to do.
#[inline(always)]
pub fn is_spent(address: &Addr) -> bool {
    let Some(shield) = SHIELD.get(0) else { return false };
    let (interval, burst) = (shield.source_interval_ns, shield.source_burst_ns);
    if interval == 0 {
        return false;
    }
    // SAFETY: read-only value of a scalar.
    unsafe { HELLO_SOURCES.get(Source::of(address)) }
        .is_some_and(|even_at| taken(*even_at, coarse_now(), interval, burst).is_none())
}

#[inline(always)]
fn take(even_at: *mut u64, now: u64, interval: u64, burst: u64) -> bool {
    // SAFETY: a map value, readable for the run of the program; of two that come at the same moment one may be free.
    unsafe {
        match taken(*even_at, now, interval, burst) {
            Some(later) => {
                *even_at = later;
                true
            }
            None => false,
        }
    }
}

/// Whether there are more first contacts than the agent shall have without a proof of their sender's address. Those are
/// counted that it gets.
#[inline(always)]
fn is_loaded(shield: &Shield) -> bool {
    let ring = core::ptr::from_ref(&HANDSHAKES).cast_mut().cast::<c_void>();
    // SAFETY: helper calls on a ring of ours.
    let (waiting, size) = unsafe {
        (bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA as u64), bpf_ringbuf_query(ring, BPF_RB_RING_SIZE as u64))
    };
    if waiting > size / 2 {
        return true;
    }
    let Some(even_at) = ALL_HELLOS_SCRATCH.get_ptr_mut(0) else { return false };
    !take(even_at, coarse_now(), shield.all_interval_ns, shield.all_burst_ns)
}

#[inline(always)]
fn is_cookie(packet: &Packet, shown: u64, shield: &Shield) -> bool {
    shown == cookie_of(packet, &shield.secret) || shown == cookie_of(packet, &shield.former_secret)
}

#[inline(never)]
fn cookie_of(packet: &Packet, secret: &MacKey) -> u64 {
    cookie(secret, &packet.ip.src, packet.tcp.sport, packet.tcp.dport, packet.tcp.seq)
}

/// The cookie for the sender of a SYN.
#[inline(always)]
pub fn cookie_for(packet: &Packet) -> u64 {
    SHIELD.get(0).map_or(0, |shield| cookie_of(packet, &shield.secret))
}
