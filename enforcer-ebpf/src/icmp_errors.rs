//! Errors of ICMP belong to the flow of the packet that they quote: with it they pass, without one they reach no PU.

use aya_ebpf::programs::TcContext;
use common::{
    Addr,
    abi::Config,
    drop_reason::Reason,
    flow::{CLIENT, CUT, SERVER},
};

use crate::{
    attribute::{Source, UNMANAGED, pu_info},
    cleared::cleared,
    emit::{At, Parties, refused},
    flow_table::{Lookup, find},
    maps::PACKET_SCRATCH,
    other_protocols::{approve, ports, unparsable},
    outbound::{DROP, PASS},
    packet::{Bytes, ICMP, ICMPV6, Ip, Parsed, TCP, UDP, bounded, header_at, pull},
    turn_around::Way,
};

/// What stands before the quoted packet: type, code, checksum, and a word of the type's own (RFC 792, RFC 4443).
const HEADER: u32 = 8;

/// Whether this is an error: unreachable, too big, time exceeded, parameter problem. `ports` as of [`ports()`].
#[inline(always)]
pub fn is_one(ip: &Ip, ports: (u16, u16)) -> bool {
    match ip.proto {
        ICMP => ports.0 == ports.1 && matches!(ports.0 >> 8, 3 | 11 | 12),
        ICMPV6 => ports.0 == ports.1 && matches!(ports.0 >> 8, 1..=4),
        _ => false,
    }
}

/// Where the quoted packet is taken apart. No program that runs within another's looks at errors.
#[inline(always)]
pub fn place() -> Option<&'static mut Parsed> {
    // SAFETY: this CPU's own slot, which nothing else uses between here and the verdict.
    PACKET_SCRATCH.get_ptr_mut(2).map(|parsed| unsafe { &mut *parsed })
}

/// Reads the packet that an error quotes, and the key of its flow: `sent` by this end, or received. Ports are read where the
/// stack reads them, of later fragments too.
#[inline(always)]
pub fn read_quote(bytes: &impl Bytes, outer: &Ip, quote: &mut Parsed, sent: bool) -> bool {
    let Some(l4) = bounded(outer.l4, 512) else { return false };
    if header_at(bytes, l4 + HEADER, &mut quote.ip).is_err() {
        return false;
    }
    let Some((sport, dport)) = ports(bytes, &quote.ip) else { return false };
    if sent {
        core::mem::swap(&mut quote.ip.src, &mut quote.ip.dst);
        quote.ip.key_of_receiver(dport, sport, &mut quote.key);
    } else {
        quote.ip.key_of_receiver(sport, dport, &mut quote.key);
    }
    true
}

#[inline(never)]
fn read_quote_of(ctx: &TcContext, outer: &Ip, quote: &mut Parsed, sent: bool) -> bool {
    read_quote(ctx, outer, quote, sent)
}

/// By words: as a whole they would be compared by a call.
#[inline(always)]
fn same(one: &Addr, other: &Addr) -> bool {
    one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3]
}

/// An error that comes.
#[inline(always)]
pub fn received(ctx: &TcContext, config: &Config, source: Source, outer: &Ip) -> i32 {
    let Some(quote) = place() else { return DROP };
    pull(ctx);
    // The stack walks further than is walked here: what cannot be read may still find a socket.
    if !read_quote_of(ctx, outer, quote, true) {
        return unparsable(ctx, source, Way::In);
    }
    let pu = match find(&quote.key, source.interface(ctx)) {
        Lookup::Elsewhere => return PASS,
        Lookup::Ours(flow) if flow.state != CUT && same(&outer.dst, &quote.key.local) => {
            approve(ctx, config, source, flow.pu);
            return PASS;
        }
        Lookup::Ours(flow) => flow.pu,
        Lookup::None if source == Source::Interface || quote.ip.proto == TCP || quote.ip.proto == UDP => {
            source.receiver(ctx, &quote.ip, &quote.key, false)
        }
        Lookup::None => UNMANAGED,
    };
    if pu == UNMANAGED {
        return PASS;
    }
    refuse(quote, pu, Reason::NoFlow, At { role: SERVER, inbound: true, by_peer: false })
}

/// An error that a PU sends, where no rule allows it by address.
#[inline(always)]
pub fn sent(ctx: &TcContext, source: Source, outer: &Ip) -> i32 {
    let Some(quote) = place() else { return DROP };
    let pu = source.sender(ctx);
    pull(ctx);
    if !read_quote_of(ctx, outer, quote, false) {
        return unparsable(ctx, source, Way::Out);
    }
    match find(&quote.key, source.interface(ctx)) {
        Lookup::Ours(flow) if flow.pu == pu && flow.state != CUT && same(&outer.dst, &quote.key.remote) => PASS,
        _ => refuse(quote, pu, Reason::ProtocolDenied, At { role: CLIENT, inbound: false, by_peer: false }),
    }
}

#[inline(never)]
fn refuse(quote: &Parsed, pu: u32, reason: Reason, at: At) -> i32 {
    cleared!(parties: Parties);
    parties.pu = pu;
    parties.local_identity = pu_info(pu).map_or(0, |info| info.identity);
    refused(&quote.key, parties, reason, at);
    DROP
}
