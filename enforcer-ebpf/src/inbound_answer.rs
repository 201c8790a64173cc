//! Answers to a connection a PU opened: SYN-ACK, RETRY, DENY.

use common::{
    drop_reason::Reason,
    event::{EVENT_CUT, HELD_HELLO_REPLY, HELD_JUDGE},
    flow::{
        CLIENT, CONFIRMING, CUT, ESTABLISHED, FLAG_CHALLENGED, FLAG_LOG, FLAG_RETRIED, Flow, PATH_EXTERNAL, PATH_HELLO,
        SYN_RECEIVED, SYN_SENT,
    },
    identity::{Credential, SessionPu},
    verdict::position,
    wire::{
        CHALLENGE, CONFIRM, DENY, HELLO, HELLO_COOKIE, HELLO_REPLY, OptionBytes, RESUME, RESUME_AGAIN, RESUME_REPLY,
        RETRY, Transcript, mac, sealed,
    },
};

use crate::{
    attribute::{Source, is_observed, pu_info},
    emit::{At, Hold, Parties, count_handshake, count_reason, flow_event, hold, refused},
    flow_table::{account_in, coarse_now, remove, started},
    inbound::drop_with,
    judge::judge,
    maps::{KNOWN_TO_PEER, PEER_PUS, SESSIONS},
    outbound::{DROP, PASS, Packet, scratch},
    outbound_open::introduction,
    packet::{ACK, RST, SYN},
    rewrite::{append, overwrite_option},
    turn_around::{Way, clone_back, from_retry, into_reset, send_back, set_flags, set_numbers, swap_ends},
};

/// What to do with an answer.
#[derive(Clone, Copy)]
enum Step {
    Admit,
    /// Silence.
    Drop,
    /// The agent decides.
    Hold,
    /// Ask the server for its credential.
    Ask,
    /// End the attempt on both sides.
    Refuse,
}

/// A step and its reason: small enough to be returned in a register, so that judging has given its stack back before
/// the step is taken.
#[derive(Clone, Copy)]
struct Next {
    step: Step,
    reason: Reason,
}

const fn next(step: Step, reason: Reason) -> Next {
    Next { step, reason }
}

/// A SYN-ACK for a connection a PU opened.
#[inline(never)]
pub fn answered(packet: &Packet, flow: &mut Flow) -> i32 {
    let next = examine(packet, flow);
    match next.step {
        Step::Admit => PASS,
        Step::Drop => drop_with(packet, flow, next.reason),
        Step::Ask => ask_server(packet),
        Step::Refuse => refuse_both(packet, flow, next.reason),
        Step::Hold => match hold_answer(packet, flow) {
            Ok(()) => DROP,
            Err(Reason::AgentDown) => refuse_both(packet, flow, Reason::AgentDown),
            Err(reason) => drop_with(packet, flow, reason),
        },
    }
}

#[inline(never)]
fn examine(packet: &Packet, flow: &mut Flow) -> Next {
    if packet.tcp.flags & ACK == 0 || packet.tcp.ack != flow.local_isn.wrapping_add(1) {
        return next(Step::Drop, Reason::ReplyMac);
    }
    // Of several servers that were shown one SYN only the first is answered: a CONFIRM for each would make many connections of one.
    if flow.state == CONFIRMING && packet.tcp.seq != flow.peer_isn {
        return next(Step::Drop, Reason::ReplyMac);
    }
    let Some(option) = &packet.tcp.option else {
        let hello = flow.path == PATH_HELLO;
        let reason = if hello { Reason::PeerNoIdentity } else { Reason::IdentityMissing };
        if is_observed(flow.pu) {
            return without_identity(packet, flow, reason);
        }
        return next(Step::Refuse, reason);
    };
    match option.packet_type() {
        HELLO_REPLY => next(Step::Hold, Reason::Allowed),
        RESUME_REPLY => resumed(packet, flow, option),
        _ => next(Step::Drop, Reason::HelloMalformed),
    }
}

/// In observe mode a peer that proves nothing is an address.
#[inline(always)]
fn without_identity(packet: &Packet, flow: &mut Flow, reason: Reason) -> Next {
    flow.state = ESTABLISHED;
    flow.path = PATH_EXTERNAL;
    flow.peer_identity = 0;
    flow.session = 0;
    flow.reason = reason as u16;
    started(packet.key, flow);
    count_reason(Reason::Allowed, false);
    account_in(flow, packet.tcp, packet.ctx.len());
    next(Step::Admit, Reason::Allowed)
}

/// Hands the answer to the agent: a credential to verify, or a pair to judge.
#[inline(never)]
fn hold_answer(packet: &Packet, flow: &Flow) -> Result<(), Reason> {
    let first_contact = packet.tcp.option.is_some_and(|option| option.packet_type() == HELLO_REPLY);
    if first_contact {
        count_handshake(HELLO_REPLY, true);
    }
    let what = Hold {
        kind: if first_contact { HELD_HELLO_REPLY } else { HELD_JUDGE },
        pu: flow.pu,
        subject: flow.local_identity,
        object: flow.peer_identity,
        at_pu_interface: packet.source == Source::Interface,
    };
    hold(packet.ctx, packet.key, &what)
}

#[inline(always)]
fn resumed(packet: &Packet, flow: &mut Flow, option: &OptionBytes) -> Next {
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let Some(session) = (unsafe { SESSIONS.get(flow.session) }) else {
        return next(Step::Drop, Reason::SessionExpired);
    };
    let transcript =
        Transcript { sender_isn: packet.tcp.seq, peer_isn: flow.local_isn, peer_handle: flow.local_handle };
    let expected = mac(&session.key_in, RESUME_REPLY, option.flags, option.handle(), option.index(), &transcript);
    if option.mac() != expected || option.index() != flow.session {
        return next(Step::Drop, Reason::ReplyMac);
    }
    if packet.tcp.payload != 0 {
        return next(Step::Drop, Reason::HelloMalformed);
    }
    let known = SessionPu { session: flow.session, handle: option.handle(), pad: 0 };
    // SAFETY: the agent writes entries once and removes them.
    let peer = unsafe { PEER_PUS.get(known) }.filter(|peer| peer.until_ns > coarse_now());
    let Some(peer) = peer else { return next(Step::Ask, Reason::UnknownHandle) };
    flow.peer_identity = peer.identity;
    let Some(verdict) = judge(flow.local_identity, peer.identity, position(packet.ip.proto, packet.key.remote_port))
    else {
        return next(Step::Hold, Reason::Undecided);
    };
    let verdict = verdict.lift(is_observed(flow.pu), verdict.reason());
    flow.rule = verdict.rule;
    flow.observed_rule = verdict.observed_rule;
    flow.reason = verdict.lifted;
    if !verdict.allow {
        return next(Step::Refuse, verdict.reason());
    }
    flow.peer_handle = option.handle();
    flow.peer_isn = packet.tcp.seq;
    let transcript = Transcript { sender_isn: flow.local_isn, peer_isn: flow.peer_isn, peer_handle: flow.peer_handle };
    flow.confirm_mac = mac(&session.key_out, CONFIRM, 0, flow.local_handle, flow.session, &transcript);
    flow.state = CONFIRMING;
    if verdict.log {
        flow.flags |= FLAG_LOG;
    }
    count_handshake(RESUME_REPLY, true);
    account_in(flow, packet.tcp, packet.ctx.len());
    next(Step::Admit, Reason::Allowed)
}

/// The answering PU was never met: its enforcer is asked for its credential. It restores its SYN-ACK from the RETRY.
#[inline(never)]
fn ask_server(packet: &Packet) -> i32 {
    let Some(old) = &packet.tcp.option else { return DROP };
    count_reason(Reason::UnknownHandle, true);
    count_handshake(RETRY, false);
    let option = OptionBytes::new(RETRY, Reason::UnknownHandle as u8, 0, 0, 0);
    let turned = swap_ends(packet.ctx, packet.ip, packet.tcp)
        .and_then(|()| overwrite_option(packet.ctx, packet.ip, packet.tcp, old, &option))
        .and_then(|()| set_flags(packet.ctx, packet.ip, RST | ACK | (packet.tcp.flags & 0xc0)));
    match turned {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(_) => DROP,
    }
}

/// Ends the attempt on both sides: the client's socket gets a reset it accepts, the server learns the reason.
#[inline(never)]
pub fn refuse_both(packet: &Packet, flow: &Flow, reason: Reason) -> i32 {
    refused(packet.key, &Parties::of(flow), reason, At { role: CLIENT, inbound: true, by_peer: false });
    let isn = packet.tcp.seq;
    let session_index = flow.session;
    remove(packet.key);
    // SAFETY: the agent replaces sessions whole.
    let option = match unsafe { SESSIONS.get(session_index) } {
        Some(session) => {
            let transcript = Transcript { peer_isn: isn, ..Transcript::default() };
            sealed(&session.key_out, DENY, reason as u8, 0, session.peer_index, &transcript)
        }
        None => OptionBytes::new(DENY, reason as u8, 0, 0, 0),
    };
    let turned = into_reset(packet.ctx, packet.ip, packet.tcp, packet.tcp.option.is_some().then_some(&option));
    if turned.is_err() {
        return DROP;
    }
    clone_back(packet.ctx, packet.source, Way::In, packet.config.mark);
    match restore_as_reset(packet) {
        Ok(()) => PASS,
        Err(_) => DROP,
    }
}

/// After [`into_reset`]: the same packet, facing the client again, as a reset in answer to its SYN.
#[inline(never)]
fn restore_as_reset(packet: &Packet) -> Result<(), Reason> {
    let Some(turned) = scratch(packet.source) else { return Err(Reason::Internal) };
    let ack = turned.tcp.ack;
    core::mem::swap(&mut turned.ip.src, &mut turned.ip.dst);
    core::mem::swap(&mut turned.tcp.sport, &mut turned.tcp.dport);
    turned.tcp.ack = turned.tcp.seq.wrapping_add(1);
    turned.tcp.seq = ack;
    swap_ends(packet.ctx, &turned.ip, &turned.tcp)?;
    set_numbers(packet.ctx, &turned.ip, &turned.tcp, 0, ack, RST | ACK)
}

/// The peer asks to start over: once for each SYN, and only in answer to it.
#[inline(never)]
pub fn retry_asked(packet: &Packet, flow: &mut Flow) -> i32 {
    if flow.state == SYN_RECEIVED {
        return credential_asked(packet, flow);
    }
    if flow.state != SYN_SENT || packet.tcp.ack != flow.local_isn.wrapping_add(1) {
        return drop_with(packet, flow, Reason::NoFlow);
    }
    if flow.flags & FLAG_RETRIED != 0 {
        return drop_with(packet, flow, Reason::RetryLoop);
    }
    let replayed = packet.tcp.option.is_some_and(|option| option.flags == Reason::ResumeReplayed as u8);
    let result =
        if replayed && flow.path != PATH_HELLO { resume_again(packet, flow) } else { start_over(packet, flow) };
    match result {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(reason) => drop_with(packet, flow, reason),
    }
}

/// The same MAC was there before, of another attempt: no matter for the agents, which may be away. With a flag it is another.
#[inline(never)]
fn resume_again(packet: &Packet, flow: &mut Flow) -> Result<(), Reason> {
    let Some(old) = &packet.tcp.option else { return Err(Reason::HelloMalformed) };
    if packet.tcp.payload != 0 {
        return Err(Reason::HelloMalformed);
    }
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let session = unsafe { SESSIONS.get(flow.session) }.ok_or(Reason::SessionExpired)?;
    count_handshake(RETRY, true);
    flow.flags |= FLAG_RETRIED;
    let transcript = Transcript { sender_isn: flow.local_isn, ..Transcript::default() };
    let option = sealed(&session.key_out, RESUME, RESUME_AGAIN, flow.local_handle, session.peer_index, &transcript);
    from_retry(packet.ctx, packet.ip, packet.tcp)?;
    overwrite_option(packet.ctx, packet.ip, packet.tcp, old, &option)?;
    count_handshake(RESUME, false);
    Ok(())
}

#[inline(always)]
fn start_over(packet: &Packet, flow: &mut Flow) -> Result<(), Reason> {
    let info = pu_info(flow.pu).ok_or(Reason::NoCredential)?;
    let (option, credential) = introduction(info)?;
    count_handshake(RETRY, true);
    let _ = KNOWN_TO_PEER.remove(SessionPu { session: flow.session, handle: flow.local_handle, pad: 0 });
    flow.flags |= FLAG_RETRIED;
    flow.path = PATH_HELLO;
    flow.session = 0;
    flow.local_handle = info.handle;
    reissue(packet, &option, credential)?;
    count_handshake(HELLO, false);
    Ok(())
}

/// The peer has more first contacts than it can check, and wants to know that this one comes from where it says: the HELLO goes
/// once more, with the cookie. Heeded once for each time the stack sends its SYN, and only in answer to it.
#[inline(never)]
pub fn challenged(packet: &Packet, flow: &mut Flow) -> i32 {
    if flow.state != SYN_SENT || flow.path != PATH_HELLO || packet.tcp.ack != flow.local_isn.wrapping_add(1) {
        return drop_with(packet, flow, Reason::NoFlow);
    }
    if flow.flags & FLAG_CHALLENGED != 0 {
        return drop_with(packet, flow, Reason::RetryLoop);
    }
    match show_cookie(packet, flow) {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(reason) => drop_with(packet, flow, reason),
    }
}

#[inline(always)]
fn show_cookie(packet: &Packet, flow: &mut Flow) -> Result<(), Reason> {
    let info = pu_info(flow.pu).ok_or(Reason::NoCredential)?;
    let (mut option, credential) = introduction(info)?;
    if let Some(challenge) = &packet.tcp.option {
        option.flags = HELLO_COOKIE;
        option.mac = challenge.mac;
    }
    count_handshake(CHALLENGE, true);
    flow.flags |= FLAG_CHALLENGED;
    flow.local_handle = info.handle;
    reissue(packet, &option, credential)?;
    count_handshake(HELLO, false);
    Ok(())
}

/// Turns the RETRY or CHALLENGE into the SYN it answers, this time with a credential.
#[inline(always)]
fn reissue(packet: &Packet, option: &OptionBytes, credential: &Credential) -> Result<(), Reason> {
    from_retry(packet.ctx, packet.ip, packet.tcp)?;
    reattach(packet, option, credential)
}

/// Replaces the RETRY's option by `option` and appends the credential.
#[inline(always)]
fn reattach(packet: &Packet, option: &OptionBytes, credential: &Credential) -> Result<(), Reason> {
    let Some(old) = &packet.tcp.option else { return Err(Reason::HelloMalformed) };
    if packet.tcp.payload != 0 {
        return Err(Reason::HelloMalformed);
    }
    overwrite_option(packet.ctx, packet.ip, packet.tcp, old, option)?;
    append(packet.ctx, packet.ip, credential)
}

/// The client does not know our PU: its RETRY becomes our SYN-ACK again, with the credential.
#[inline(never)]
fn credential_asked(packet: &Packet, flow: &mut Flow) -> i32 {
    if packet.tcp.seq != flow.local_isn || flow.flags & FLAG_RETRIED != 0 {
        return drop_with(packet, flow, Reason::RetryLoop);
    }
    match answer_again(packet, flow) {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(reason) => drop_with(packet, flow, reason),
    }
}

#[inline(always)]
fn answer_again(packet: &Packet, flow: &mut Flow) -> Result<(), Reason> {
    let info = pu_info(flow.pu).ok_or(Reason::NoCredential)?;
    let (_, credential) = introduction(info)?;
    // SAFETY: the agent replaces sessions whole.
    let session = unsafe { SESSIONS.get(flow.session) }.ok_or(Reason::SessionExpired)?;
    count_handshake(RETRY, true);
    // It says itself that it does not.
    let _ = KNOWN_TO_PEER.remove(SessionPu { session: flow.session, handle: flow.local_handle, pad: 0 });
    flow.flags |= FLAG_RETRIED | common::flow::FLAG_CREDENTIAL_SENT;
    flow.path = PATH_HELLO;
    flow.local_handle = info.handle;
    let transcript = Transcript { sender_isn: flow.local_isn, peer_isn: flow.peer_isn, peer_handle: flow.peer_handle };
    let option = sealed(&session.key_out, HELLO_REPLY, 0, flow.local_handle, flow.session, &transcript);
    swap_ends(packet.ctx, packet.ip, packet.tcp)?;
    set_flags(packet.ctx, packet.ip, SYN | ACK | (packet.tcp.flags & 0xc0))?;
    reattach(packet, &option, credential)?;
    count_handshake(HELLO_REPLY, false);
    Ok(())
}

/// The peer's enforcer refused. With a session its word must be authentic; without one it is as good as any reset.
#[inline(never)]
pub fn refused_by_peer(packet: &Packet, flow: &mut Flow) -> i32 {
    let Some(option) = packet.tcp.option else { return DROP };
    // Whatever it answers was our SYN or our SYN-ACK: nobody who did not see it can end the attempt.
    if packet.tcp.ack != flow.local_isn.wrapping_add(1) {
        return drop_with(packet, flow, Reason::NoFlow);
    }
    if option.index() != 0 {
        // Where the flow has a session already, no other peer's word counts.
        if flow.session != 0 && option.index() != flow.session {
            return drop_with(packet, flow, Reason::ReplyMac);
        }
        // SAFETY: the agent replaces sessions whole.
        let Some(session) = (unsafe { SESSIONS.get(option.index()) }) else {
            return drop_with(packet, flow, Reason::ReplyMac);
        };
        let transcript = Transcript { peer_isn: flow.local_isn, ..Transcript::default() };
        if mac(&session.key_in, DENY, option.flags, option.handle(), option.index(), &transcript) != option.mac() {
            return drop_with(packet, flow, Reason::ReplyMac);
        }
    }
    let reason = Reason::from_number(option.flags as u16).unwrap_or(Reason::PeerDenied);
    count_handshake(DENY, true);
    refused(packet.key, &Parties::of(flow), reason, At { role: flow.role, inbound: true, by_peer: true });
    remove(packet.key);
    PASS
}

/// The peer's enforcer has cut a connection that both had confirmed, and says why: both ends shall tell the same.
/// Whether it is so; anything else is for [`refused_by_peer`].
#[inline(never)]
pub fn cut_by_peer(packet: &Packet, flow: &mut Flow) -> bool {
    let Some(option) = packet.tcp.option else { return false };
    if option.packet_type() != DENY || flow.session == 0 || option.index() != flow.session {
        return false;
    }
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let Some(session) = (unsafe { SESSIONS.get(flow.session) }) else { return false };
    let transcript = Transcript { sender_isn: flow.peer_isn, peer_isn: flow.local_isn, peer_handle: flow.local_handle };
    if mac(&session.key_in, DENY, option.flags, option.handle(), option.index(), &transcript) != option.mac() {
        return false;
    }
    let reason = Reason::from_number(option.flags as u16).unwrap_or(Reason::PeerDenied);
    count_handshake(DENY, true);
    count_reason(reason, true);
    account_in(flow, packet.tcp, packet.ctx.len());
    // A stack that has moved on meanwhile does not take the reset: whatever it sends next is answered with one that it does.
    flow.state = CUT;
    flow.reason = reason as u16;
    flow_event(EVENT_CUT, packet.key, flow, reason as u16, flow.rtt_us);
    true
}

/// The reason of a cut flow, for its peer: bound to this very connection.
#[inline(always)]
pub fn cut_option(flow: &Flow) -> Option<OptionBytes> {
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let session = unsafe { SESSIONS.get(flow.session) }?;
    let transcript = Transcript { sender_isn: flow.local_isn, peer_isn: flow.peer_isn, peer_handle: flow.peer_handle };
    Some(sealed(&session.key_out, DENY, flow.reason as u8, 0, session.peer_index, &transcript))
}
