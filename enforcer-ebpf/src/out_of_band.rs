//! First contact over UDP, for a TCP connection whose path refuses it on its own segments.

use aya_ebpf::programs::TcContext;
use common::{
    abi::Config,
    datagram::{OUT_OF_BAND, Trailer, WANTED_LEN},
    drop_reason::Reason,
    event::HELD_DATAGRAM_HELLO,
    identity::{Pu, SessionPu},
    wire::{CONFIRM, HELLO},
};

use crate::{
    attribute::{Source, UNMANAGED, is_complete, pu_info},
    datagram::{HEADER, is_fresh},
    datagram_in::{challenge, drop_for, is_genuine, nobody, payload, to_agent},
    datagram_out::Datagram,
    emit::count_handshake,
    flow_table::coarse_now,
    gate,
    maps::{KNOWN_TO_PEER, SESSIONS},
    outbound::DROP,
    packet::{Ip, Parsed, TCP, UDP},
    rewrite::load,
};

/// Whether a datagram is about a TCP connection.
#[inline(always)]
pub fn is_one(ip: &Ip, found: &Trailer) -> bool {
    ip.proto == UDP && found.flags & OUT_OF_BAND != 0 && matches!(found.packet_type(), HELLO | CONFIRM)
}

/// A peer says over UDP who opens, or has opened, a TCP connection: judged as what that port hears.
#[inline(always)]
pub fn received(ctx: &TcContext, config: &Config, source: Source, parsed: &mut Parsed, found: &Trailer) -> i32 {
    let mut wanted = 0u16;
    let whole = payload(&parsed.ip) >= WANTED_LEN as u32
        && parsed.ip.l4 <= 1024
        && load(ctx, parsed.ip.l4 + HEADER, &mut wanted).is_ok();
    let port = core::mem::replace(&mut parsed.key.local_port, u16::from_be(wanted));
    parsed.key.proto = TCP;
    let packet = Datagram { ctx, config, source, ip: &parsed.ip, key: &parsed.key };
    let pu = source.receiver(ctx, packet.ip, packet.key, true);
    if pu == UNMANAGED {
        return nobody(&packet, found);
    }
    let Some(info) = pu_info(pu) else { return drop_for(&packet, pu, Reason::NoCredential) };
    if !is_complete(info) {
        return drop_for(&packet, pu, Reason::PuIncomplete);
    }
    if config.fallback_port() == 0 || config.fallback_port() != port {
        return drop_for(&packet, pu, Reason::FallbackOff);
    }
    if !whole || u16::from_be_bytes(found.len) as u32 != payload(packet.ip) {
        return drop_for(&packet, pu, Reason::HelloMalformed);
    }
    if found.packet_type() == CONFIRM {
        return confirmed(&packet, pu, info, found);
    }
    match gate::datagram(packet.ip, port, packet.key.remote_port, found) {
        Reason::Allowed => {
            count_handshake(HELLO, true);
            to_agent(&packet, HELD_DATAGRAM_HELLO, (pu, 0, info.identity))
        }
        Reason::Challenged => challenge(&packet, port, found),
        reason => drop_for(&packet, pu, reason),
    }
}

/// The client has our credential, and says by which index it goes: its connections need none on their answers.
#[inline(never)]
fn confirmed(packet: &Datagram, pu: u32, info: &Pu, found: &Trailer) -> i32 {
    let fields = found.fields();
    let Some(session) = SESSIONS.get_ptr_mut(fields.index) else {
        return drop_for(packet, pu, Reason::SessionExpired);
    };
    // SAFETY: the entry stays readable; `peer_index` is the only field the kernel writes.
    let session = unsafe { &mut *session };
    if session.until_ns <= coarse_now() {
        return drop_for(packet, pu, Reason::SessionExpired);
    }
    if fields.peer_handle != info.handle || !is_genuine(packet, session, found, &fields) {
        return drop_for(packet, pu, Reason::ConfirmMac);
    }
    if !is_fresh(fields.index, &fields) {
        return drop_for(packet, pu, Reason::DatagramReplayed);
    }
    if session.peer_index != fields.sender_index {
        session.peer_index = fields.sender_index;
    }
    let known = SessionPu { session: fields.index, handle: info.handle, pad: 0 };
    let _ = KNOWN_TO_PEER.insert(known, info.credential_until_ns, 0);
    count_handshake(CONFIRM, true);
    DROP
}
