//! A datagram that carries identity, or should, on its way to a PU.

use aya_ebpf::{EbpfContext, programs::TcContext};
use common::{
    abi::MERGED_A_TICK,
    datagram::{BARE, Fields, Trailer},
    drop_reason::Reason,
    event::{EVENT_CUT, HELD_DATAGRAM_ANSWER, HELD_DATAGRAM_HELLO, HELD_DATAGRAM_JUDGE, HELD_DATAGRAM_MERGED},
    flow::{
        CLIENT, CUT, ESTABLISHED, FLAG_CREDENTIAL_SENT, FLAG_LOG, Flow, PATH_EXTERNAL, PATH_HELLO, PATH_RESUME, SERVER,
        SYN_RECEIVED, SYN_SENT,
    },
    identity::{Pu, Session},
    verdict::position,
    wire::{CHALLENGE, CONFIRM, DENY, HELLO, HELLO_REPLY, RESUME, RESUME_REPLY, RETRY, VERSION},
};

use crate::{
    attribute::{Source, UNMANAGED, ifindex, is_complete, is_forwarded, observes, pu_info},
    cleared::cleared,
    datagram::{HEADER, holds_trailer, is_fresh, sealed, sealed_at, trailer},
    datagram_out::{Datagram, hold as hold_whole},
    datagram_rewrite::{retype, strip_bare, trim, turn, unreachable},
    emit::{At, Hold, Parties, config, count_handshake, count_reason, flow_event, hold, now, refused, within},
    flow_table::{Lookup, begins, coarse_now, enter, find, started},
    gate::{self, may_answer},
    icmp_errors,
    inbound_open::peer_pu,
    judge::{judge, rejudge},
    maps::{DATAGRAM_PEERS, MERGED_SCRATCH, SESSIONS},
    other_protocols::approve,
    out_of_band,
    outbound::{DROP, PASS, scratch},
    packet::{Ip, UDP},
    turn_around::{Way, send_back},
};

/// Goes on with a datagram on its way to a PU.
#[inline(always)]
pub fn received(ctx: &TcContext, source: Source) -> i32 {
    let (Some(config), Some(parsed)) = (config(), scratch(source)) else { return DROP };
    if icmp_errors::is_one(&parsed.ip, (parsed.key.remote_port, parsed.key.local_port)) {
        return icmp_errors::received(ctx, config, source, &parsed.ip);
    }
    let mut found = Trailer::default();
    let identified = trailer(ctx, &parsed.ip, &mut found);
    if identified && out_of_band::is_one(&parsed.ip, &found) {
        return out_of_band::received(ctx, config, source, parsed, &found);
    }
    let packet = Datagram { ctx, config, source, ip: &parsed.ip, key: &parsed.key };
    let pu = match find(packet.key, source.interface(ctx)) {
        Lookup::Elsewhere => return PASS,
        Lookup::Ours(flow) if flow.path != PATH_EXTERNAL => {
            if flow.state != CUT && is_merged(&packet, identified, &found) {
                return apart(&packet, flow.pu);
            }
            if !identified {
                return without_identity(&packet, flow);
            }
            match of_flow(&packet, flow, &found) {
                Some(verdict) => return verdict,
                None => flow.pu,
            }
        }
        _ if source == Source::Interface || packet.ip.proto == UDP => {
            source.receiver(ctx, packet.ip, packet.key, false)
        }
        _ => UNMANAGED,
    };
    match (pu, identified) {
        (UNMANAGED, true) => nobody(&packet, &found),
        (UNMANAGED, false) => PASS,
        (_, true) if is_merged(&packet, true, &found) => {
            if is_proven(&packet, &found) {
                apart(&packet, pu)
            } else {
                drop_for(&packet, pu, Reason::DatagramMerged)
            }
        }
        (_, true) => opened(&packet, pu, &found),
        (_, false) => drop_for(&packet, pu, Reason::ProtocolDenied),
    }
}

/// Bytes of payload before the trailer.
#[inline(always)]
pub fn payload(ip: &Ip) -> u32 {
    ip.end - ip.l4 - HEADER - size_of::<Trailer>() as u32
}

/// For no PU of this host: what enforcers say to each other is not for a process to hear; anything else is, whatever it ends with.
#[inline(never)]
pub fn nobody(packet: &Datagram, found: &Trailer) -> i32 {
    let fields = found.fields();
    let forwarded =
        packet.source == Source::Socket && is_forwarded(packet.ctx.as_ptr(), ifindex(packet.ctx), packet.ip);
    if forwarded || fields.len as u32 != payload(packet.ip) {
        return PASS;
    }
    if matches!(fields.packet_type, HELLO | HELLO_REPLY) {
        return DROP;
    }
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    match unsafe { SESSIONS.get(fields.index) } {
        Some(session) if sealed(packet.ctx, packet.ip, &session.key_in, &fields) == found.mac() => DROP,
        _ => PASS,
    }
}

#[inline(never)]
fn without_identity(packet: &Datagram, flow: &mut Flow) -> i32 {
    if flow.state != CUT && flow.generation != packet.config.generation {
        rejudge(packet.key, flow, packet.config.generation);
    }
    match flow.state {
        SYN_RECEIVED if flow.flags & FLAG_CREDENTIAL_SENT != 0 => {
            // The peer has heard our answer, or would still say who it is.
            flow.state = ESTABLISHED;
            admit(packet, flow)
        }
        SYN_RECEIVED | ESTABLISHED => admit(packet, flow),
        CUT => drop_of(packet, flow, Reason::from_number(flow.reason).unwrap_or(Reason::Revoked)),
        _ => drop_of(packet, flow, Reason::IdentityMissing),
    }
}

#[inline(always)]
fn admit(packet: &Datagram, flow: &mut Flow) -> i32 {
    flow.bytes_in += (packet.ctx.len() - 14) as u64;
    flow.packets_in += 1;
    flow.seen_ns = coarse_now();
    approve(packet.ctx, packet.config, packet.source, flow.pu);
    PASS
}

#[inline(never)]
fn drop_of(packet: &Datagram, flow: &Flow, reason: Reason) -> i32 {
    refused(packet.key, &Parties::of(flow), reason, At { role: flow.role, inbound: true, by_peer: false });
    DROP
}

#[inline(never)]
pub fn drop_for(packet: &Datagram, pu: u32, reason: Reason) -> i32 {
    cleared!(parties: Parties);
    parties.pu = pu;
    parties.local_identity = pu_info(pu).map_or(0, |info| info.identity);
    refused(packet.key, parties, reason, At { role: SERVER, inbound: true, by_peer: false });
    DROP
}

/// `None`: as if there were no flow.
#[inline(always)]
fn of_flow(packet: &Datagram, flow: &mut Flow, found: &Trailer) -> Option<i32> {
    if flow.state != CUT && flow.generation != packet.config.generation {
        rejudge(packet.key, flow, packet.config.generation);
    }
    Some(match found.packet_type() {
        RESUME | CONFIRM if is_again(flow, found) => again(packet, flow, found),
        // Our own, sent back by whoever heard it.
        HELLO if flow.role == CLIENT && u16::from_be_bytes(found.handle) == flow.local_handle => {
            drop_of(packet, flow, Reason::HelloMalformed)
        }
        HELLO | RESUME | CONFIRM => return None,
        RESUME_REPLY => replied(packet, flow, found),
        DENY if u32::from_be_bytes(found.index) != 0 => denied(packet, flow, found),
        HELLO_REPLY | CHALLENGE | DENY if flow.state == SYN_SENT && flow.session == 0 => answered(packet, flow),
        RETRY if flow.state == SYN_SENT => answered(packet, flow),
        _ => drop_of(packet, flow, Reason::HelloMalformed),
    })
}

/// An answer the agent waits for.
#[inline(never)]
fn answered(packet: &Datagram, flow: &Flow) -> i32 {
    let what = Hold {
        kind: HELD_DATAGRAM_ANSWER,
        pu: flow.pu,
        subject: flow.local_identity,
        object: 0,
        at_pu_interface: packet.source == Source::Interface,
    };
    match hold(packet.ctx, packet.key, &what) {
        Ok(()) => DROP,
        Err(reason) => drop_of(packet, flow, reason),
    }
}

/// Whether the client of this very flow says once more who it is.
#[inline(always)]
fn is_again(flow: &Flow, found: &Trailer) -> bool {
    flow.role == SERVER
        && flow.state != CUT
        && u32::from_be_bytes(found.index) == flow.session
        && u16::from_be_bytes(found.handle) == flow.peer_handle
        && u16::from_be_bytes(found.peer_handle) == flow.local_handle
}

/// Whether a trailer is this session's, of this very packet.
#[inline(never)]
pub fn is_genuine(packet: &Datagram, session: &Session, found: &Trailer, fields: &Fields) -> bool {
    fields.len as u32 == payload(packet.ip)
        && found.version_type >> 4 == VERSION
        && sealed(packet.ctx, packet.ip, &session.key_in, fields) == found.mac()
}

/// Whether the receiving interface has merged several datagrams, of which one bears identity at least.
#[inline(never)]
fn is_merged(packet: &Datagram, identified: bool, found: &Trailer) -> bool {
    // SAFETY: the context is valid for the whole program.
    let segments = unsafe { (*packet.ctx.skb.skb).gso_size } != 0;
    if identified {
        segments && u16::from_be_bytes(found.len) as u32 != payload(packet.ip)
    } else {
        segments && holds_trailer(packet.ctx, packet.ip)
    }
}

/// Whether the last of merged datagrams is a peer's.
#[inline(never)]
fn is_proven(packet: &Datagram, found: &Trailer) -> bool {
    let fields = found.fields();
    let all = payload(packet.ip);
    if fields.len as u32 > all || found.version_type >> 4 != VERSION {
        return false;
    }
    let start = packet.ip.l4 + HEADER + all - fields.len as u32;
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    unsafe { SESSIONS.get(fields.index) }
        .is_some_and(|session| sealed_at(packet.ctx, packet.ip, &session.key_in, &fields, start) == found.mac())
}

/// Merged datagrams are the agent's to hand back one by one, each to be judged for itself.
#[inline(never)]
fn apart(packet: &Datagram, pu: u32) -> i32 {
    if within(MERGED_SCRATCH.get_ptr_mut(0), MERGED_A_TICK) && hold_whole(packet, HELD_DATAGRAM_MERGED, pu).is_ok() {
        return DROP;
    }
    drop_for(packet, pu, Reason::DatagramMerged)
}

/// The peer has not heard of us yet, and says once more who it is.
#[inline(never)]
fn again(packet: &Datagram, flow: &mut Flow, found: &Trailer) -> i32 {
    let fields = found.fields();
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let Some(session) = (unsafe { SESSIONS.get(flow.session) }) else {
        return drop_of(packet, flow, Reason::SessionExpired);
    };
    if !is_genuine(packet, session, found, &fields) {
        return drop_of(packet, flow, Reason::ResumeMac);
    }
    if !is_fresh(flow.session, &fields) {
        return drop_of(packet, flow, Reason::DatagramReplayed);
    }
    flow.state = SYN_RECEIVED;
    flow.flags &= !FLAG_CREDENTIAL_SENT;
    deliver(packet, flow, found)
}

/// Lets a datagram go on to its PU without its trailer.
#[inline(never)]
fn deliver(packet: &Datagram, flow: &mut Flow, found: &Trailer) -> i32 {
    count_handshake(found.packet_type(), true);
    if found.flags & BARE != 0 {
        flow.seen_ns = coarse_now();
        return DROP;
    }
    if trim(packet.ctx, packet.ip, found).is_err() {
        return DROP;
    }
    admit(packet, flow)
}

/// The server's word: it is live, and the very one that was asked.
#[inline(never)]
fn replied(packet: &Datagram, flow: &mut Flow, found: &Trailer) -> i32 {
    let fields = found.fields();
    if flow.state == CUT || flow.session == 0 || fields.index != flow.session {
        return drop_of(packet, flow, Reason::ReplyMac);
    }
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let Some(session) = (unsafe { SESSIONS.get(flow.session) }) else {
        return drop_of(packet, flow, Reason::SessionExpired);
    };
    if fields.peer_handle != flow.local_handle || !is_genuine(packet, session, found, &fields) {
        return drop_of(packet, flow, Reason::ReplyMac);
    }
    if !is_fresh(flow.session, &fields) {
        return drop_of(packet, flow, Reason::DatagramReplayed);
    }
    if fields.handle != flow.peer_handle {
        return another(packet, flow);
    }
    flow.state = ESTABLISHED;
    if begins(flow) {
        started(packet.key, flow);
        count_reason(Reason::Allowed, flow.role == SERVER);
    }
    deliver(packet, flow, found)
}

/// The peer's PU is another one by now: it is to be met again.
#[inline(never)]
fn another(packet: &Datagram, flow: &mut Flow) -> i32 {
    let at = common::datagram::DatagramPeer {
        addr: packet.key.remote,
        port: packet.key.remote_port,
        proto: packet.key.proto as u16,
    };
    let _ = DATAGRAM_PEERS.remove(at);
    if flow.role == CLIENT {
        flow.session = 0;
        flow.state = SYN_SENT;
        flow.path = PATH_HELLO;
    }
    drop_of(packet, flow, Reason::UnknownHandle)
}

/// The peer's enforcer refuses, or has cut.
#[inline(never)]
fn denied(packet: &Datagram, flow: &mut Flow, found: &Trailer) -> i32 {
    let fields = found.fields();
    if flow.state == CUT || flow.session == 0 || fields.index != flow.session {
        return DROP;
    }
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let Some(session) = (unsafe { SESSIONS.get(flow.session) }) else { return DROP };
    if fields.peer_handle != flow.local_handle || !is_genuine(packet, session, found, &fields) {
        return drop_of(packet, flow, Reason::ReplyMac);
    }
    if !is_fresh(flow.session, &fields) {
        return drop_of(packet, flow, Reason::DatagramReplayed);
    }
    count_handshake(DENY, true);
    let reason = Reason::from_number(fields.flags as u16).unwrap_or(Reason::PeerDenied);
    let live = flow.counted != 0;
    flow.state = CUT;
    flow.reason = reason as u16;
    flow.confirm_mac = coarse_now();
    if live {
        count_reason(reason, true);
        flow_event(EVENT_CUT, packet.key, flow, reason as u16, 0);
    } else {
        refused(packet.key, &Parties::of(flow), reason, At { role: flow.role, inbound: true, by_peer: true });
    }
    if flow.role == SERVER || unreachable(packet.ctx, packet.ip, packet.key, Way::In).is_err() {
        return DROP;
    }
    PASS
}

/// Somebody opens a flow to a PU, or asks who it is.
#[inline(always)]
fn opened(packet: &Datagram, pu: u32, found: &Trailer) -> i32 {
    let Some(info) = pu_info(pu) else { return drop_for(packet, pu, Reason::NoCredential) };
    if !is_complete(info) {
        return drop_for(packet, pu, Reason::PuIncomplete);
    }
    match found.packet_type() {
        HELLO => match gate::datagram(packet.ip, packet.key.local_port, packet.key.remote_port, found) {
            Reason::Allowed => {
                count_handshake(HELLO, true);
                to_agent(packet, HELD_DATAGRAM_HELLO, (pu, 0, info.identity))
            }
            Reason::Challenged => challenge(packet, packet.key.local_port, found),
            reason => drop_for(packet, pu, reason),
        },
        RESUME | CONFIRM => {
            cleared!(parties: Parties);
            parties.pu = pu;
            match resumed(packet, info, found, parties) {
                Ok(verdict) => verdict,
                Err(reason) => deny(packet, parties, found, reason),
            }
        }
        DENY => refused_outright(packet, pu, info, found),
        // What nobody here asked for, or no longer.
        HELLO_REPLY | RESUME_REPLY | RETRY => drop_for(packet, pu, Reason::NoFlow),
        _ => drop_for(packet, pu, Reason::HelloMalformed),
    }
}

/// Asks the client to send its HELLO to `port` once more, with this cookie in it: fewer bytes than it sent.
#[inline(never)]
pub fn challenge(packet: &Datagram, port: u16, found: &Trailer) -> i32 {
    count_reason(Reason::Challenged, true);
    count_handshake(CHALLENGE, false);
    let cookie = gate::datagram_cookie(packet.ip, port, packet.key.remote_port, found);
    let answer = Fields { packet_type: CHALLENGE, time: u64::from_be_bytes(found.time), ..Fields::default() };
    let done =
        turn(packet.ctx, packet.ip).and_then(|()| strip_bare(packet.ctx, packet.ip, &Trailer::new(&answer, cookie)));
    match done {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(_) => DROP,
    }
}

/// The peer's enforcer has met us and says why nothing of its PU will come.
#[inline(never)]
fn refused_outright(packet: &Datagram, pu: u32, info: &Pu, found: &Trailer) -> i32 {
    let fields = found.fields();
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let Some(session) = (unsafe { SESSIONS.get(fields.index) }) else { return drop_for(packet, pu, Reason::NoFlow) };
    if fields.peer_handle != info.handle || !is_genuine(packet, session, found, &fields) {
        return drop_for(packet, pu, Reason::ReplyMac);
    }
    if !is_fresh(fields.index, &fields) {
        return drop_for(packet, pu, Reason::DatagramReplayed);
    }
    cleared!(parties: Parties);
    parties.pu = pu;
    parties.local_identity = info.identity;
    parties.session = fields.index;
    count_handshake(DENY, true);
    let reason = Reason::from_number(fields.flags as u16).unwrap_or(Reason::PeerDenied);
    refused(packet.key, parties, reason, At { role: SERVER, inbound: true, by_peer: true });
    DROP
}

/// Hands the datagram to the agent; `about` are PU, subject and object.
#[inline(never)]
pub fn to_agent(packet: &Datagram, kind: u32, about: (u32, u32, u32)) -> i32 {
    let (pu, subject, object) = about;
    let what = Hold { kind, pu, subject, object, at_pu_interface: packet.source == Source::Interface };
    match hold(packet.ctx, packet.key, &what) {
        Ok(()) => DROP,
        Err(reason) => drop_for(packet, pu, reason),
    }
}

/// A known session: authenticated and judged here and now. An error is one that the sender is told.
#[inline(never)]
fn resumed(packet: &Datagram, info: &Pu, found: &Trailer, parties: &mut Parties) -> Result<i32, Reason> {
    let pu = parties.pu;
    let fields = found.fields();
    let now = coarse_now();
    let Some(session) = SESSIONS.get_ptr_mut(fields.index) else {
        return Ok(retry(packet, found, Reason::UnknownSession));
    };
    // SAFETY: the entry stays readable; `peer_index` is the only field the kernel writes.
    let session = unsafe { &mut *session };
    if session.until_ns <= now {
        return Ok(retry(packet, found, Reason::UnknownSession));
    }
    if !is_genuine(packet, session, found, &fields) {
        return Ok(drop_for(packet, pu, Reason::ResumeMac));
    }
    let Some(peer) = peer_pu(fields.index, fields.handle, now).filter(|_| fields.peer_handle == info.handle) else {
        return Ok(retry(packet, found, Reason::UnknownHandle));
    };
    parties.local_identity = info.identity;
    parties.peer_identity = peer.identity;
    parties.session = fields.index;
    let Some(verdict) = judge(peer.identity, info.identity, position(packet.key.proto, packet.key.local_port)) else {
        return Ok(to_agent(packet, HELD_DATAGRAM_JUDGE, (pu, peer.identity, info.identity)));
    };
    let verdict = verdict.lift(observes(info), verdict.reason());
    parties.rule = verdict.rule;
    parties.observed_rule = verdict.observed_rule;
    if !is_fresh(fields.index, &fields) {
        return Ok(drop_for(packet, pu, Reason::DatagramReplayed));
    }
    if session.peer_index != fields.sender_index {
        session.peer_index = fields.sender_index;
    }
    if !verdict.allow {
        return Err(verdict.reason());
    }
    enter(packet.key, |flow| {
        flow.state = SYN_RECEIVED;
        flow.role = SERVER;
        flow.path = if fields.packet_type == CONFIRM { PATH_HELLO } else { PATH_RESUME };
        flow.pu = pu;
        flow.local_identity = info.identity;
        flow.local_handle = info.handle;
        flow.peer_identity = peer.identity;
        flow.peer_handle = fields.handle;
        flow.session = fields.index;
        flow.generation = packet.config.generation;
        flow.rule = verdict.rule;
        flow.observed_rule = verdict.observed_rule;
        flow.reason = verdict.lifted;
        flow.flags = if verdict.log { FLAG_LOG } else { 0 };
        flow.ifindex = ifindex(packet.ctx);
        flow.pu_ifindex = packet.source.interface(packet.ctx);
        flow.created_ns = crate::emit::now();
        flow.seen_ns = now;
    })?;
    match find(packet.key, packet.source.interface(packet.ctx)) {
        Lookup::Ours(flow) => {
            if begins(flow) {
                started(packet.key, flow);
                count_reason(Reason::Allowed, true);
            }
            Ok(deliver(packet, flow, found))
        }
        _ => Ok(DROP),
    }
}

/// Asks the sender to introduce itself. It gets back what it sent, so that nothing is lost.
#[inline(never)]
fn retry(packet: &Datagram, found: &Trailer, reason: Reason) -> i32 {
    count_reason(reason, true);
    if !may_answer(&packet.ip.src) {
        return DROP;
    }
    count_handshake(RETRY, false);
    let from = u16::from_ne_bytes([found.version_type, found.flags]);
    let to = u16::from_ne_bytes([VERSION << 4 | RETRY, reason as u8]);
    match retype(packet.ctx, packet.ip, from, to).and_then(|()| turn(packet.ctx, packet.ip)) {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(_) => DROP,
    }
}

/// Tells the sender why not.
#[inline(never)]
fn deny(packet: &Datagram, parties: &Parties, found: &Trailer, reason: Reason) -> i32 {
    let fields = found.fields();
    refused(packet.key, parties, reason, At { role: SERVER, inbound: true, by_peer: false });
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let Some(session) = (unsafe { SESSIONS.get(fields.index) }) else { return DROP };
    let answer = Fields {
        packet_type: DENY,
        flags: reason as u8,
        handle: fields.peer_handle,
        peer_handle: fields.handle,
        len: 0,
        index: fields.sender_index,
        sender_index: fields.index,
        time: now(),
    };
    let mac = sealed(packet.ctx, packet.ip, &session.key_out, &answer);
    count_handshake(DENY, false);
    let done =
        turn(packet.ctx, packet.ip).and_then(|()| strip_bare(packet.ctx, packet.ip, &Trailer::new(&answer, mac)));
    match done {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(_) => DROP,
    }
}
