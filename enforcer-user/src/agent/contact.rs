//! First contact: decides the frames the kernel holds, and hands them back or answers them.

use std::time::Duration;

use common::{
    abi::{self, INJECT_ANSWER, INJECT_INGRESS, INJECT_TRUSTED},
    drop_reason::Reason,
    event::{
        self, EVENT_DENY, Event, HELD_ANSWER, HELD_DATAGRAM_HELLO, HELD_HELLO, HELD_HELLO_REPLY, HELD_INCOMING,
        HELD_JUDGE, HELD_OUTGOING, HELD_QUESTION, HELD_UNANSWERED, HELD_UPDATE, Held,
    },
    flow::{CLIENT, CUT, ESTABLISHED, FLAG_LOG, Flow, FlowKey, PATH_HELLO, SERVER, SYN_RECEIVED, SYN_SENT},
    identity::{PeerAddr, SessionPu},
};

use super::{Shared, clock, datagrams, fallback, learn, state::State, updates, waiting};
use crate::{
    handshake::{Frame, HandshakeError, LocalPu, Session, build, initiator, responder},
    identity::VerifiedCredential,
    map_write::{MapWriteError, patiently},
    metrics::{HandshakeKind, Metrics},
    sys,
};

/// A decision against a connection.
pub(super) struct Refusal {
    pub reason: Reason,
    /// Session and identity of the peer, as far as they were established.
    pub session: u32,
    pub identity: u32,
    pub rule: u32,
    pub observed_rule: u32,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, session: 0, identity: 0, rule: 0, observed_rule: 0 }
    }
}

/// What went wrong inside is a refusal too: nothing passes unjudged.
pub(super) fn internal(error: impl Into<anyhow::Error>) -> Refusal {
    let error = error.into();
    if let Some(MapWriteError::Full { .. }) = error.downcast_ref() {
        tracing::warn!(%error, "a first contact found no room");
        return Reason::TableFull.into();
    }
    tracing::error!(%error, "a first contact failed");
    Reason::Internal.into()
}

/// Decides one held frame.
pub(super) fn decide(shared: &Shared, metrics: &Metrics, held: &Held) {
    if matches!(held.kind, HELD_QUESTION | HELD_ANSWER) {
        return learn::shown(shared, metrics, held);
    }
    if datagrams::is_one(held.kind) {
        return datagrams::decide(shared, metrics, held);
    }
    let bytes = held.frame.get(..held.len as usize).unwrap_or_default();
    let frame = match Frame::parse(bytes) {
        Ok(frame) => frame,
        Err(error) => {
            tracing::debug!(%error, "a held frame is malformed");
            metrics.handshake(HandshakeKind::Hello, error.reason());
            record(shared, held, &error.reason().into());
            return;
        }
    };
    if held.kind == HELD_UNANSWERED {
        return fallback::unanswered(shared, held, &frame);
    }
    let (kind, result) = match held.kind {
        HELD_HELLO => (HandshakeKind::Hello, hello(shared, held, &frame)),
        HELD_HELLO_REPLY => (HandshakeKind::HelloReply, hello_reply(shared, held, &frame)),
        HELD_JUDGE => (HandshakeKind::Judge, judge(shared, held, &frame)),
        HELD_UPDATE => (HandshakeKind::Update, updates::held(shared, held, &frame)),
        HELD_OUTGOING | HELD_INCOMING => (HandshakeKind::Incomplete, waiting::held(shared, held, &frame)),
        other => {
            return tracing::error!(kind = other, "a held frame of unknown kind; is the eBPF object of this version?");
        }
    };
    match result {
        Ok(()) => {
            metrics.handshake(kind, Reason::Allowed);
            if matches!(kind, HandshakeKind::Hello | HandshakeKind::HelloReply) {
                metrics.first_contact(Duration::from_nanos(sys::monotonic_ns().saturating_sub(held.time_ns)));
            }
        }
        Err(refusal) => {
            metrics.handshake(kind, refusal.reason);
            refuse(shared, held, &frame, &refusal);
        }
    }
}

/// The server's end: a SYN with a credential.
fn hello(shared: &Shared, held: &Held, frame: &Frame<'_>) -> Result<(), Refusal> {
    let now = clock::now();
    // Signatures are checked without the lock: whoever sends many of them takes nobody's time but this thread's.
    let hello = responder::authenticate(&mut shared.verifier(), frame, now).map_err(|error| {
        tracing::debug!(%error, "a HELLO was refused");
        Refusal::from(error.reason())
    })?;
    let (local, accept, identity, credential) = {
        let mut guard = shared.state();
        let state = &mut *guard;
        let local = local_pu(state, held.pu)?;
        let accept = hello.accept(&mut state.handshake(), local, now).map_err(|error| Refusal::from(error.reason()))?;
        // Which index the peer goes by now is for its CONFIRM to say, in the kernel.
        let identity = meet(state, &accept.peer, &Session { peer_index: 0, ..accept.session.clone() })?;
        // The answer shows what the client is answered for, whatever becomes of the PU's tags meanwhile.
        let credential = state.pu_slots.get(held.pu).ok().flatten().map_or(0, |slot| slot.credential);
        (local, accept, identity, credential)
    };
    settle_pair(shared, identity, local.identity, identity, accept.session.index)?;
    let mut guard = shared.state();
    let state = &mut *guard;
    let port = frame.destination_port();
    let verdict = judged(state, held, identity, local.identity, identity, port, accept.session.index)?;
    let flow = Flow {
        peer_identity: identity,
        generation: state.config.current().generation,
        rule: verdict.rule,
        observed_rule: verdict.observed_rule,
        reason: verdict.lifted,
        flags: if verdict.log { FLAG_LOG } else { 0 },
        ifindex: held.ifindex,
        credential,
        pu_ifindex: pu_interface(held),
        created_ns: held.time_ns,
        seen_ns: held.time_ns,
        bytes_in: u64::from(held.len).saturating_sub(14),
        packets_in: 1,
        ..accept.flow()
    };
    let present = shared.maps.flows.get(&held.key).map_err(internal)?;
    let repeated = present.filter(|present| present.role == SERVER && present.peer_isn == flow.peer_isn);
    match repeated.map(|present| present.state) {
        // Sent again before the answer came: the answer's sequence number must not be forgotten.
        Some(SYN_RECEIVED) => {
            drop(guard);
            return deliver(shared, held, &build::strip(frame), INJECT_TRUSTED, 0);
        }
        // Sent again, and overtaken by the confirmation.
        Some(ESTABLISHED | CUT) => return Ok(()),
        _ => {}
    }
    // The kernel has let in another connection on this tuple meanwhile, and would not have held this one.
    if present.is_some_and(|present| present.state == ESTABLISHED && !present.is_over()) {
        return Ok(());
    }
    shared.maps.flows.insert(&held.key, &flow).map_err(|error| {
        tracing::warn!(%error, "a first contact found no room");
        Refusal { session: accept.session.index, identity, ..Reason::TableFull.into() }
    })?;
    drop(guard);
    deliver(shared, held, &build::strip(frame), INJECT_TRUSTED, 0)
}

/// The client's end: a SYN-ACK with a credential.
fn hello_reply(shared: &Shared, held: &Held, frame: &Frame<'_>) -> Result<(), Refusal> {
    let now = clock::now();
    let present = shared.maps.flows.get(&held.key).map_err(internal)?;
    let present = present.filter(|flow| flow.role == CLIENT).ok_or(Refusal::from(Reason::NoFlow))?;
    let refused = |error: HandshakeError| {
        tracing::debug!(%error, "a HELLO_REPLY was refused");
        Refusal::from(error.reason())
    };
    let shown = initiator::verify(&mut shared.verifier(), frame, now).map_err(refused)?;
    let (local, reply, identity) = {
        let mut guard = shared.state();
        let state = &mut *guard;
        // The handle is the one the SYN bore: the PU may have got another since, with other tags.
        let local = LocalPu { handle: present.local_handle, ..local_pu(state, held.pu)? };
        let reply = match state.sessions.get(present.session).cloned() {
            Some(session) => shown.authenticate_in(session, local, present.local_isn, frame),
            None => shown.authenticate(&mut state.handshake(), local, present.local_isn, frame, now),
        };
        let reply = reply.map_err(refused)?;
        let identity = meet(state, &reply.peer, &reply.session)?;
        remember_route(shared, state, held.pu, &held.key, &reply.session)?;
        (local, reply, identity)
    };
    settle_pair(shared, local.identity, identity, identity, reply.session.index)?;
    let mut guard = shared.state();
    let state = &mut *guard;
    let port = held.key.remote_port;
    let verdict = judged(state, held, local.identity, identity, identity, port, reply.session.index)?;
    // Looked at again: the kernel may have believed another answer meanwhile, or the PU have given up and begun anew.
    let now_present = shared.maps.flows.get(&held.key).map_err(internal)?;
    let waiting = now_present.filter(|now| {
        (now.role, now.state, now.local_isn) == (CLIENT, SYN_SENT, present.local_isn) && now.pu == present.pu
    });
    if let Some(present) = waiting {
        let proven = reply.flow();
        let flow = Flow {
            state: proven.state,
            path: PATH_HELLO,
            peer_handle: proven.peer_handle,
            session: proven.session,
            peer_isn: proven.peer_isn,
            confirm_mac: proven.confirm_mac,
            peer_identity: identity,
            generation: state.config.current().generation,
            rule: verdict.rule,
            observed_rule: verdict.observed_rule,
            reason: verdict.lifted,
            flags: present.flags | if verdict.log { FLAG_LOG } else { 0 },
            bytes_in: present.bytes_in + u64::from(held.len).saturating_sub(14),
            packets_in: present.packets_in + 1,
            ..present
        };
        shared.maps.flows.replace(&held.key, &flow).map_err(internal)?;
        if present.path == PATH_HELLO {
            fallback::passes_in_band(shared, &held.key);
        }
    }
    drop(guard);
    deliver(shared, held, &build::strip(frame), INJECT_TRUSTED, 0)
}

/// An authenticated packet of a pair that was never judged: judged now, then the kernel looks at the packet again.
fn judge(shared: &Shared, held: &Held, frame: &Frame<'_>) -> Result<(), Refusal> {
    settle_pair(shared, held.subject, held.object, 0, 0)?;
    deliver(shared, held, &build::complete(frame), 0, 0)
}

pub(super) fn local_pu(state: &State, index: u32) -> Result<LocalPu, Refusal> {
    let pu = state.pus.get(&index).ok_or(Refusal::from(Reason::NoCredential))?;
    let epoch = pu.credential.as_ref().map_or(0, |signed| signed.epoch());
    Ok(LocalPu { pu: index, identity: pu.identity, handle: pu.handle, epoch })
}

/// Makes a verified peer known to the kernel; its identity's number.
pub(super) fn meet(state: &mut State, peer: &VerifiedCredential, session: &Session) -> Result<u32, Refusal> {
    let profile = peer.profile();
    let label = format!("{}/{}", peer.enforcer().name(), profile.pu);
    let identity = state.intern(&profile.namespace, &profile.tags, &label).map_err(internal)?;
    state.names.set_peer(session.index, identity, label);
    state.write_session(session, peer.authority()).map_err(internal)?;
    let key = SessionPu { session: session.index, handle: profile.handle, pad: 0 };
    state.know_peer(key, identity, peer.valid_until(), profile.issued_at_ms()).map_err(internal)
}

/// The next connection to this address resumes the session.
pub(super) fn remember_route(
    shared: &Shared,
    state: &State,
    pu: u32,
    key: &FlowKey,
    session: &Session,
) -> Result<(), Refusal> {
    let Some(pu) = state.pus.get(&pu) else { return Err(Reason::NoCredential.into()) };
    let until = pu.credential.as_ref().map_or(0, |signed| clock::monotonic(signed.expires()));
    let known = SessionPu { session: session.index, handle: pu.handle, pad: 0 };
    if let Err(error) = shared.maps.known_to_peer.insert(&known, &until) {
        tracing::warn!(%error, "the next connection will be a first contact again");
    }
    for port in [key.remote_port, 0] {
        let at = PeerAddr { addr: key.remote, port, pad: 0 };
        shared.maps.peer_addrs.insert(&at, &session.index).map_err(internal)?;
    }
    Ok(())
}

/// Judges a pair and writes its verdicts, unless they are there. Room for them may have to be waited for, which is done
/// without the lock.
pub(super) fn settle_pair(shared: &Shared, subject: u32, object: u32, peer: u32, session: u32) -> Result<(), Refusal> {
    patiently(|| shared.state().ensure_pair(subject, object)).map_err(|error| {
        tracing::warn!(%error, "a pair found no room");
        Refusal { session, identity: peer, ..Reason::PairUnavailable.into() }
    })
}

pub(super) fn judged(
    state: &State,
    held: &Held,
    subject: u32,
    object: u32,
    peer: u32,
    port: u16,
    session: u32,
) -> Result<super::state::Verdict, Refusal> {
    let verdict = state.verdict(subject, object, held.key.proto, port).lift(state.is_observed(held.pu));
    if verdict.allow {
        return Ok(verdict);
    }
    let reason = verdict.reason();
    Err(Refusal { reason, session, identity: peer, rule: verdict.rule, observed_rule: verdict.observed_rule })
}

/// Tells both ends why: the sender of the frame by a DENY, the client's own socket by a reset.
pub(super) fn refuse(shared: &Shared, held: &Held, frame: &Frame<'_>, refusal: &Refusal) {
    record(shared, held, refusal);
    let outgoing = held.kind == HELD_OUTGOING;
    let count = abi::reason_stat(refusal.reason as u16, !outgoing);
    if held.kind == HELD_UPDATE {
        // The connection goes on as it was; whoever sent this learns nothing.
        shared.tap.count(count);
        return;
    }
    if held.kind == HELD_HELLO && !answers(shared, refusal.reason) {
        shared.tap.count(count);
        return;
    }
    if outgoing {
        let back = if held.at_pu_interface == 0 { INJECT_INGRESS } else { 0 };
        if let Err(error) = shared.tap.inject(&build::refuse_sender(frame), held.ifindex, back | INJECT_TRUSTED, count)
        {
            tracing::warn!(%error, "a refusal could not be sent");
        }
        return;
    }
    let session = shared.maps.sessions.get(&refusal.session).ok().flatten();
    let proof =
        session.as_ref().map(|session| build::DenyProof { key: &session.key_out, peer_index: session.peer_index });
    let answer = build::deny(frame, refusal.reason, proof);
    if held.kind == HELD_HELLO_REPLY || frame.is_syn_ack() {
        if let Err(error) = shared.maps.flows.remove(&held.key) {
            tracing::warn!(%error, "a refused flow stays");
        }
        let _ = deliver(shared, held, &build::reset_receiver(frame), INJECT_TRUSTED, 0);
    }
    let back = if held.at_pu_interface == 0 { 0 } else { INJECT_INGRESS };
    if let Err(error) = shared.tap.inject(&answer, held.ifindex, back | INJECT_ANSWER, count) {
        tracing::warn!(%error, "a refusal could not be sent");
    }
}

/// Whether a HELLO refused for this reason could be anybody's: an answer would tell a stranger that there is a PU here.
fn proves_nothing(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::HelloMalformed | Reason::HelloTampered | Reason::CredentialSignature | Reason::ChainUntrusted
    )
}

/// Whether a HELLO is answered that is refused for this reason.
pub(super) fn answers(shared: &Shared, reason: Reason) -> bool {
    !proves_nothing(reason) || answers_strangers(shared)
}

fn answers_strangers(shared: &Shared) -> bool {
    shared.state().config.current().flags & abi::CONFIG_STRANGERS_REJECT != 0
}

/// Hands a frame on in the direction it was going.
fn deliver(shared: &Shared, held: &Held, frame: &[u8], flags: u32, count: u32) -> Result<(), Refusal> {
    let onward = if held.at_pu_interface == 0 { INJECT_INGRESS } else { 0 };
    shared.tap.inject(frame, held.ifindex, onward | flags, count).map_err(internal)
}

fn pu_interface(held: &Held) -> u32 {
    if held.at_pu_interface == 0 { 0 } else { held.ifindex }
}

pub(super) fn record(shared: &Shared, held: &Held, refusal: &Refusal) {
    let role = match held.kind {
        HELD_HELLO | HELD_INCOMING | HELD_DATAGRAM_HELLO => SERVER,
        _ => CLIENT,
    };
    let local_identity = shared.state().pus.get(&held.pu).map_or(0, |pu| pu.identity);
    shared.log.push(&Event {
        time_ns: sys::monotonic_ns(),
        kind: EVENT_DENY,
        role,
        path: PATH_HELLO,
        direction: if held.kind == HELD_OUTGOING { event::OUTBOUND } else { event::INBOUND },
        reason: refusal.reason as u16,
        key: held.key,
        pu: held.pu,
        local_identity,
        peer_identity: refusal.identity,
        session: refusal.session,
        rule: refusal.rule,
        observed_rule: refusal.observed_rule,
        created_ns: held.time_ns,
        ..Event::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_is_named_as_the_reason() {
        let full = || MapWriteError::Full { name: "PEER_PUS", capacity: 262_144 };
        assert_eq!(internal(full()).reason, Reason::TableFull);
        assert_eq!(internal(anyhow::Error::from(full()).context("a session")).reason, Reason::TableFull);
        assert_eq!(internal(anyhow::anyhow!("anything else")).reason, Reason::Internal);
    }
}
