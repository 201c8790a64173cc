//! The way to a PU: nothing reaches it before it is authenticated and allowed.

use aya_ebpf::{EbpfContext, programs::TcContext};
use common::{
    abi::Config,
    drop_reason::Reason,
    event::{HELD_ANSWER, HELD_UPDATE},
    flow::{CLIENT, CONFIRMING, CUT, ESTABLISHED, FLAG_CREDENTIAL_SENT, Flow, SERVER, SYN_RECEIVED, SYN_SENT},
    identity::SessionPu,
    wire::{CHALLENGE, CONFIRM, DENY, RETRY, Transcript, UPDATE, mac},
};

use crate::{
    attribute::{Source, UNMANAGED, ifindex, is_forwarded, is_observed, pu_info},
    cleared::cleared,
    emit::{At, Hold, Parties, count_handshake, count_reason, hold, refused},
    flow_table::{Lookup, account_in, begins, find, started},
    host,
    inbound_answer::{answered, challenged, cut_by_peer, cut_option, refused_by_peer, retry_asked},
    inbound_open::opened,
    judge::rejudge,
    maps::{KNOWN_TO_PEER, SESSIONS},
    names,
    observe::take_over,
    other_protocols,
    outbound::{DROP, PASS, Packet, scratch},
    packet::{ACK, FIN, Kind, RST, SYN, parse},
    turn_around::{Way, into_reset, send_back},
};

/// Judges one packet on its way to a PU.
#[inline(always)]
pub fn inbound(ctx: &TcContext, config: &Config, source: Source) -> i32 {
    let Some(parsed) = scratch(source) else { return DROP };
    match parse(ctx, parsed, true) {
        Kind::Tcp => {}
        Kind::Other => return other_protocols::inbound(ctx, config, source, parsed),
        Kind::Bare => return other_protocols::bare(ctx, source, parsed, Way::In),
        Kind::NotIp if source == Source::Socket => return PASS,
        Kind::NotIp => return other_protocols::of_no_internet(ctx, source, Way::In),
        Kind::Malformed => return other_protocols::unparsable(ctx, source, Way::In),
    }
    let packet = Packet { ctx, config, source, ip: &parsed.ip, tcp: &parsed.tcp, key: &parsed.key };
    let opening = packet.tcp.flags & (SYN | ACK | RST) == SYN;
    match find(packet.key, source.interface(ctx)) {
        Lookup::Elsewhere => PASS,
        Lookup::Ours(flow) if !opening => of_flow(&packet, flow),
        Lookup::Ours(flow) => opened(&packet, flow.pu, Some(flow)),
        Lookup::None => {
            let pu = source.receiver(ctx, packet.ip, packet.key, opening);
            if pu == UNMANAGED {
                return unmanaged(&packet, opening);
            }
            if opening { opened(&packet, pu, None) } else { stray(&packet, pu) }
        }
    }
}

#[inline(always)]
fn unmanaged(packet: &Packet, opening: bool) -> i32 {
    if opening
        && host::denies_unmanaged(packet.config)
        && packet.source == Source::Socket
        && !is_forwarded(packet.ctx.as_ptr(), ifindex(packet.ctx), packet.ip)
    {
        let at = At { role: SERVER, inbound: true, by_peer: false };
        cleared!(parties: Parties);
        refused(packet.key, parties, Reason::UnmanagedDenied, at);
        return DROP;
    }
    PASS
}

/// A segment for a PU outside any connection.
#[inline(never)]
fn stray(packet: &Packet, pu: u32) -> i32 {
    if is_observed(pu) {
        return take_over(packet, pu, true);
    }
    if host::is_older(packet, pu, true) {
        return PASS;
    }
    let role = if packet.tcp.flags & SYN != 0 { CLIENT } else { SERVER };
    cleared!(parties: Parties);
    parties.pu = pu;
    refused(packet.key, parties, Reason::NoFlow, At { role, inbound: true, by_peer: false });
    DROP
}

#[inline(always)]
fn of_flow(packet: &Packet, flow: &mut Flow) -> i32 {
    if flow.state == ESTABLISHED {
        if flow.generation != packet.config.generation && !rejudge(packet.key, flow, packet.config.generation) {
            return reset_sender(packet, flow);
        }
        if packet.tcp.flags & RST != 0 && packet.tcp.option.is_some() {
            return cut_or_forged(packet, flow);
        }
        if is_update(packet) {
            return updated(packet, flow);
        }
        if packet.tcp.payload > 0 && names::resolving(packet.config, packet.key, flow) {
            return answered_by_name(packet, flow);
        }
        return admit(packet, flow);
    }
    handshake(packet, flow)
}

/// A reset with an option of ours on a live connection: the peer's enforcer cut it, or nobody did.
#[inline(never)]
fn cut_or_forged(packet: &Packet, flow: &mut Flow) -> i32 {
    if cut_by_peer(packet, flow) { PASS } else { drop_with(packet, flow, Reason::ReplyMac) }
}

/// A segment of a resolver.
#[inline(never)]
fn answered_by_name(packet: &Packet, flow: &mut Flow) -> i32 {
    admit(packet, flow);
    if names::show(packet.ctx, packet.key, flow.pu, HELD_ANSWER, packet.source) { DROP } else { PASS }
}

#[inline(always)]
fn is_update(packet: &Packet) -> bool {
    packet.tcp.option.is_some_and(|option| option.packet_type() == UPDATE)
}

/// The tags of the peer's PU changed, or the peer has heard of those of ours: the agent's to verify, never the stack's to see.
/// One that cannot be held comes again.
#[inline(never)]
fn updated(packet: &Packet, flow: &Flow) -> i32 {
    if flow.session == 0 {
        return drop_with(packet, flow, Reason::UpdateVoid);
    }
    count_handshake(UPDATE, true);
    let what = Hold {
        kind: HELD_UPDATE,
        pu: flow.pu,
        subject: flow.session,
        object: 0,
        at_pu_interface: packet.source == Source::Interface,
    };
    match hold(packet.ctx, packet.key, &what) {
        Ok(()) => DROP,
        Err(reason) => drop_with(packet, flow, reason),
    }
}

#[inline(always)]
fn admit(packet: &Packet, flow: &mut Flow) -> i32 {
    account_in(flow, packet.tcp, packet.ctx.len());
    PASS
}

#[inline(never)]
fn handshake(packet: &Packet, flow: &mut Flow) -> i32 {
    if flow.state == CUT {
        return reset_sender(packet, flow);
    }
    let flags = packet.tcp.flags;
    if flags & RST != 0 {
        return reset_by_peer(packet, flow);
    }
    match flow.state {
        SYN_SENT if flags & SYN != 0 => answered(packet, flow),
        // A server that still holds an older connection on these ports: the client's stack answers with the reset that
        // ends it (RFC 9293 section 3.10.7.3), and takes nothing else from it.
        SYN_SENT if flags & FIN == 0 && packet.tcp.payload == 0 => PASS,
        CONFIRMING if flags & SYN != 0 => answered(packet, flow),
        CONFIRMING if is_update(packet) => updated(packet, flow),
        CONFIRMING => {
            flow.state = ESTABLISHED;
            if begins(flow) {
                started(packet.key, flow);
                count_reason(Reason::Allowed, false);
            }
            admit(packet, flow)
        }
        SYN_RECEIVED => confirmed(packet, flow),
        _ => drop_with(packet, flow, Reason::Unconfirmed),
    }
}

#[inline(always)]
fn reset_by_peer(packet: &Packet, flow: &mut Flow) -> i32 {
    match packet.tcp.option.map(|option| option.packet_type()) {
        Some(RETRY) => retry_asked(packet, flow),
        Some(CHALLENGE) => challenged(packet, flow),
        Some(DENY) if cut_by_peer(packet, flow) => PASS,
        Some(DENY) => refused_by_peer(packet, flow),
        _ => admit(packet, flow),
    }
}

/// The initiator's proof: only with it the connection lives.
#[inline(never)]
fn confirmed(packet: &Packet, flow: &mut Flow) -> i32 {
    let Some(option) = packet.tcp.option else { return drop_with(packet, flow, Reason::Unconfirmed) };
    let Some(session) = SESSIONS.get_ptr_mut(flow.session) else {
        return drop_with(packet, flow, Reason::SessionExpired);
    };
    // SAFETY: the entry stays readable; `peer_index` is the only field the kernel writes.
    let session = unsafe { &mut *session };
    let transcript = Transcript { sender_isn: flow.peer_isn, peer_isn: flow.local_isn, peer_handle: flow.local_handle };
    let expected = mac(&session.key_in, CONFIRM, 0, flow.peer_handle, option.index(), &transcript);
    let genuine = option.packet_type() == CONFIRM
        && option.flags == 0
        && option.handle() == flow.peer_handle
        && option.mac() == expected;
    if !genuine {
        return drop_with(packet, flow, Reason::ConfirmMac);
    }
    // A peer that forgot the session, and opened it again, chose another.
    if session.peer_index != option.index() {
        session.peer_index = option.index();
    }
    flow.state = ESTABLISHED;
    if flow.flags & FLAG_CREDENTIAL_SENT != 0 {
        remember(flow);
    }
    if begins(flow) {
        started(packet.key, flow);
        count_handshake(CONFIRM, true);
        count_reason(Reason::Allowed, true);
    }
    admit(packet, flow)
}

/// The peer has seen our credential and answered for it: from now on the handle is enough.
#[inline(always)]
fn remember(flow: &Flow) {
    if let Some(info) = pu_info(flow.pu) {
        if info.handle == flow.local_handle {
            let known = SessionPu { session: flow.session, handle: flow.local_handle, pad: 0 };
            let _ = KNOWN_TO_PEER.insert(known, info.credential_until_ns, 0);
        }
    }
}

#[inline(always)]
pub fn drop_with(packet: &Packet, flow: &Flow, reason: Reason) -> i32 {
    let at = At { role: flow.role, inbound: true, by_peer: false };
    refused(packet.key, &Parties::of(flow), reason, at);
    DROP
}

/// Answers a segment of a cut flow with the reset its sender accepts, and with the reason for its enforcer.
#[inline(never)]
fn reset_sender(packet: &Packet, flow: &Flow) -> i32 {
    if packet.tcp.flags & RST != 0 {
        return PASS;
    }
    let option = cut_option(flow);
    match into_reset(packet.ctx, packet.ip, packet.tcp, option.as_ref()) {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(_) => DROP,
    }
}
