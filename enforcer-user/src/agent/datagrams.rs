//! First contact over datagrams: keeps what PUs send to peers that were never met there, asks who they are, and sends it on.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use common::{
    abi::{self, INJECT_ANSWER, INJECT_INGRESS, INJECT_TRUSTED},
    datagram::{BARE, DatagramPeer},
    drop_reason::Reason,
    event::{
        self, EVENT_DENY, Event, HELD_DATAGRAM, HELD_DATAGRAM_ANSWER, HELD_DATAGRAM_HELLO, HELD_DATAGRAM_JUDGE,
        HELD_DATAGRAM_MERGED, Held,
    },
    flow::{CLIENT, FLAG_LOG, FLAG_RETRIED, Flow, FlowKey, PATH_HELLO, SYN_SENT},
    identity::SessionPu,
    wire::{CHALLENGE, DENY, HELLO_REPLY, RETRY},
};

use super::{
    Shared, clock,
    contact::{self, Refusal, internal},
    fallback::{self, Count},
};
use crate::{
    dns::{Conn, Part, Parts},
    handshake::{
        FrameError, HandshakeError, LocalPu,
        datagram::{self, Datagram},
    },
    metrics::{HandshakeKind, Metrics},
    sys,
};

/// Datagrams that wait for one peer, bytes of them, and peers that are waited for; what is more is dropped.
const FRAMES: usize = 64;
const BYTES: usize = 256 * 1024;
const PEERS: usize = 1024;

/// After which times HELLO is sent again; after the last, nobody is there.
pub(super) const PATIENCE: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_millis(700), Duration::from_millis(1500)];

const TCP: u8 = libc::IPPROTO_TCP as u8;

/// Interface index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// What waits, by flow.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    parts: Parts,
    peers: HashMap<FlowKey, Peer>,
}

/// Who is asked, and what for.
struct Peer {
    pu: u32,
    ifindex: u32,
    /// The PU is behind this interface.
    at_pu_interface: bool,
    /// By which the answer is known.
    number: u64,
    /// What a CHALLENGE asked for.
    cookie: Option<u64>,
    /// A datagram of the flow, which HELLO is made like.
    like: Vec<u8>,
    /// The flow before the peer gave back something of it.
    former: Option<Flow>,
    frames: Vec<(Vec<u8>, usize)>,
    bytes: usize,
    next: Instant,
    attempts: usize,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Adds a part; the frame, if it was the last one.
    fn add(&mut self, held: &Held, bytes: &[u8]) -> Option<Vec<u8>> {
        let (offset, total) = (held.offset as usize, held.subject as usize);
        let conn = Conn { pu: held.pu, key: held.key };
        self.parts.add(Part { conn, kind: held.kind, offset, total, bytes })
    }
}

impl Peer {
    fn new(held: &Held, at_pu_interface: bool) -> Self {
        Self {
            pu: held.pu,
            ifindex: held.ifindex,
            at_pu_interface,
            number: rand::random(),
            cookie: None,
            like: Vec::new(),
            former: None,
            frames: Vec::new(),
            bytes: 0,
            next: Instant::now(),
            attempts: 0,
        }
    }

    /// Keeps a frame; whether there was room.
    fn keep(&mut self, frame: Vec<u8>, segment: usize) -> bool {
        if self.frames.len() >= FRAMES || self.bytes + frame.len() > BYTES {
            return false;
        }
        self.bytes += frame.len();
        if self.like.is_empty() {
            self.like.clone_from(&frame);
        }
        self.frames.push((frame, segment));
        true
    }

    fn first(&self) -> Option<Datagram<'_>> {
        Datagram::parse(&self.like).ok()
    }

    /// Where what the PU sends goes on.
    fn outward(&self) -> u32 {
        if self.at_pu_interface { INJECT_INGRESS } else { 0 }
    }
}

/// Whether this record is about datagrams.
pub(super) fn is_one(kind: u32) -> bool {
    matches!(
        kind,
        HELD_DATAGRAM | HELD_DATAGRAM_HELLO | HELD_DATAGRAM_ANSWER | HELD_DATAGRAM_JUDGE | HELD_DATAGRAM_MERGED
    )
}

/// Decides one held datagram.
pub(super) fn decide(shared: &Shared, metrics: &Metrics, held: &Held) {
    let bytes = held.frame.get(..held.len as usize).unwrap_or_default();
    if held.kind == HELD_DATAGRAM {
        return sent(shared, held, bytes);
    }
    if held.kind == HELD_DATAGRAM_MERGED {
        return merged(shared, held, bytes);
    }
    let frame = match Datagram::parse(bytes) {
        Ok(frame) => frame,
        Err(error) => {
            tracing::debug!(%error, "a held datagram is malformed");
            metrics.handshake(HandshakeKind::Hello, error.reason());
            return record(shared, held, &error.reason().into());
        }
    };
    let (kind, result) = match held.kind {
        HELD_DATAGRAM_HELLO => (HandshakeKind::Hello, hello(shared, held, &frame)),
        HELD_DATAGRAM_JUDGE => (HandshakeKind::Judge, judge(shared, held, &frame)),
        _ => (HandshakeKind::HelloReply, answer(shared, held, &frame)),
    };
    match result {
        Ok(()) => {
            metrics.handshake(kind, Reason::Allowed);
            if kind != HandshakeKind::Judge {
                metrics.first_contact(Duration::from_nanos(sys::monotonic_ns().saturating_sub(held.time_ns)));
            }
        }
        Err(refusal) => {
            metrics.handshake(kind, refusal.reason);
            record(shared, held, &refusal);
            let count = abi::reason_stat(refusal.reason as u16, true);
            // On loopback the client heard already.
            let answers = held.kind == HELD_DATAGRAM_HELLO && held.ifindex != LOOPBACK;
            if answers && contact::answers(shared, refusal.reason) {
                let number = frame.trailer().map_or(0, |(trailer, _)| trailer.fields().time);
                let back = if held.at_pu_interface == 0 { 0 } else { INJECT_INGRESS };
                inject(shared, &frame.deny(refusal.reason, number), held.ifindex, back | INJECT_ANSWER, count);
            } else {
                shared.tap.count(count);
            }
        }
    }
}

fn inject(shared: &Shared, frame: &[u8], ifindex: u32, flags: u32, count: u32) {
    if let Err(error) = shared.tap.inject(frame, ifindex, flags, count) {
        tracing::warn!(%error, "a datagram could not be sent");
    }
}

/// The client's end: a PU sends something to a peer that was never met there.
fn sent(shared: &Shared, held: &Held, bytes: &[u8]) {
    let mut guard = shared.datagrams.lock();
    let inner = &mut *guard;
    let Some(frame) = inner.add(held, bytes) else { return };
    let piece = match Datagram::parse(&frame) {
        Ok(_) => false,
        Err(FrameError::Fragment) => true,
        Err(error) => {
            tracing::debug!(%error, "a held datagram is malformed");
            return shared.tap.count(abi::reason_stat(Reason::Malformed as u16, false));
        }
    };
    let segment = held.object as usize;
    let in_all = inner.peers.len();
    let known = inner.peers.contains_key(&held.key);
    if !known && is_met(shared, held) {
        drop(guard);
        return onward(shared, &Peer::new(held, held.at_pu_interface != 0), &frame, segment);
    }
    if !known && piece {
        tracing::debug!("a fragment comes without the first one");
        return shared.tap.count(abi::reason_stat(Reason::Fragment as u16, false));
    }
    if !known && in_all >= PEERS {
        drop(guard);
        return give_up(shared, &held.key, Peer::new(held, held.at_pu_interface != 0), Reason::RingFull, false);
    }
    let peer = inner.peers.entry(held.key).or_insert_with(|| Peer::new(held, held.at_pu_interface != 0));
    if !peer.keep(frame, segment) {
        tracing::debug!("a datagram finds no room to wait");
        return shared.tap.count(abi::reason_stat(Reason::RingFull as u16, false));
    }
    if !known {
        ask(shared, guard, &held.key);
    }
}

/// Either end: what the receiving interface has merged goes on in its pieces, which the kernel looks at one by one.
fn merged(shared: &Shared, held: &Held, bytes: &[u8]) {
    let Some(frame) = shared.datagrams.lock().add(held, bytes) else { return };
    let Ok(datagram) = Datagram::parse(&frame) else {
        tracing::debug!("merged datagrams are malformed");
        return shared.tap.count(abi::reason_stat(Reason::DatagramMerged as u16, true));
    };
    let onward = if held.at_pu_interface == 0 { INJECT_INGRESS } else { 0 };
    for piece in datagram.onward(held.object as usize) {
        inject(shared, &piece, held.ifindex, onward, 0);
    }
}

/// Whether the peer was met while the kernel handed this over.
fn is_met(shared: &Shared, held: &Held) -> bool {
    let flow = shared.maps.flows.get(&held.key).ok().flatten();
    flow.is_some_and(|flow| flow.pu == held.pu && flow.role == CLIENT && flow.session != 0)
}

/// Sends on what waited.
fn onward(shared: &Shared, peer: &Peer, frame: &[u8], segment: usize) {
    match Datagram::parse(frame) {
        Ok(datagram) => {
            for piece in datagram.onward(segment) {
                inject(shared, &piece, peer.ifindex, peer.outward(), 0);
            }
        }
        // A later fragment; nothing else was kept.
        Err(_) => inject(shared, frame, peer.ifindex, peer.outward(), 0),
    }
}

/// Sends HELLO for what waits under `key`.
fn ask(shared: &Shared, mut guard: MutexGuard<'_, Inner>, key: &FlowKey) {
    let Some(peer) = guard.peers.get_mut(key) else { return };
    let asked = {
        let state = shared.state();
        let local = state.pus.get(&peer.pu);
        let credential = local.and_then(|pu| pu.credential.as_ref().map(|credential| (credential, pu.handle)));
        credential
            .zip(peer.first())
            .map(|((credential, handle), first)| first.hello(credential, handle, peer.number, peer.cookie))
    };
    peer.next = Instant::now() + PATIENCE[peer.attempts.min(PATIENCE.len() - 1)];
    peer.attempts += 1;
    match asked {
        Some(hello) => inject(shared, &hello, peer.ifindex, peer.outward() | INJECT_TRUSTED, 0),
        None => {
            let Some(peer) = guard.peers.remove(key) else { return };
            drop(guard);
            give_up(shared, key, peer, Reason::NoCredential, false);
        }
    }
}

/// Asks again, and gives up where nobody answers; called every tenth of a second.
pub(super) fn tick(shared: &Shared) {
    let now = Instant::now();
    let due: Vec<FlowKey> = {
        let inner = shared.datagrams.lock();
        inner.peers.iter().filter(|(_, peer)| peer.next <= now).map(|(key, _)| *key).collect()
    };
    for key in due {
        let mut guard = shared.datagrams.lock();
        let Some(peer) = guard.peers.get(&key).filter(|peer| peer.next <= now) else { continue };
        if peer.attempts < PATIENCE.len() {
            ask(shared, guard, &key);
        } else if let Some(peer) = guard.peers.remove(&key) {
            drop(guard);
            give_up(shared, &key, peer, Reason::PeerNoIdentity, false);
        }
    }
}

/// Refuses what waits; its sender hears of it. Where the peer said so, the refusal came in.
fn give_up(shared: &Shared, key: &FlowKey, peer: Peer, refusal: impl Into<Refusal>, by_peer: bool) {
    let refusal = refusal.into();
    if let Err(error) = shared.maps.flows.remove(key) {
        tracing::warn!(%error, "a refused flow stays");
    }
    let local_identity = shared.state().pus.get(&peer.pu).map_or(0, |pu| pu.identity);
    shared.log.push(&Event {
        time_ns: sys::monotonic_ns(),
        kind: EVENT_DENY,
        role: CLIENT,
        path: PATH_HELLO,
        direction: if by_peer { event::INBOUND } else { event::OUTBOUND },
        reason: refusal.reason as u16,
        peer_reason: u16::from(by_peer && refusal.session == 0),
        key: *key,
        pu: peer.pu,
        local_identity,
        peer_identity: refusal.identity,
        session: refusal.session,
        rule: refusal.rule,
        observed_rule: refusal.observed_rule,
        ..Event::default()
    });
    let count = abi::reason_stat(refusal.reason as u16, by_peer);
    match peer.first().and_then(|first| first.unreachable()) {
        Some(error) => {
            let inward = if peer.at_pu_interface { 0 } else { INJECT_INGRESS };
            inject(shared, &error, peer.ifindex, inward | INJECT_TRUSTED, count);
        }
        None => shared.tap.count(count),
    }
}

/// The server's end: a datagram with HELLO.
fn hello(shared: &Shared, held: &Held, frame: &Datagram<'_>) -> Result<(), Refusal> {
    let now = clock::now();
    let refused = |error: HandshakeError| {
        tracing::debug!(%error, "a HELLO was refused");
        Refusal::from(error.reason())
    };
    let hello = datagram::authenticate(&mut shared.verifier(), frame, now).map_err(refused)?;
    if held.key.proto == TCP {
        shared.fallback.count(Count::Received);
        tracing::debug!(peer = %hello.peer.enforcer().name(), "a first contact came out of band");
    }
    if held.ifindex == LOOPBACK {
        return met_here(shared, held, hello.peer.profile().handle);
    }
    let (local, accept, identity, credential) = {
        let mut guard = shared.state();
        let state = &mut *guard;
        let local = contact::local_pu(state, held.pu)?;
        let accept = hello.accept(&mut state.handshake(), local, now).map_err(refused)?;
        // Which index the peer goes by now is for its first datagram to say, in the kernel.
        let session = crate::handshake::Session { peer_index: 0, ..accept.session.clone() };
        let identity = contact::meet(state, &accept.peer, &session)?;
        let credential = state.pus.get(&held.pu).and_then(|pu| pu.credential.clone());
        (local, accept, identity, credential.ok_or(Refusal::from(Reason::NoCredential))?)
    };
    contact::settle_pair(shared, identity, local.identity, identity, accept.session.index)?;
    {
        let state = shared.state();
        let port = held.key.local_port;
        contact::judged(&state, held, identity, local.identity, identity, port, accept.session.index)?;
    }
    let hash = credential.hash();
    let back = if held.at_pu_interface == 0 { 0 } else { INJECT_INGRESS };
    let reply = frame.hello_reply(&accept, &credential, hash);
    shared.tap.inject(&reply, held.ifindex, back | INJECT_ANSWER, 0).map_err(internal)
}

/// Both PUs are on this host, and the agent knows both.
fn met_here(shared: &Shared, held: &Held, client: u16) -> Result<(), Refusal> {
    let (session, local, client_identity) = {
        let state = shared.state();
        let local = contact::local_pu(&state, held.pu)?;
        let client = state.pus.values().find(|pu| pu.handle == client).map(|pu| pu.identity);
        (state.config.current().self_session, local, client.ok_or(Refusal::from(Reason::UnknownHandle))?)
    };
    contact::settle_pair(shared, client_identity, local.identity, client_identity, session)?;
    let key = FlowKey {
        local: held.key.remote,
        remote: held.key.local,
        local_port: held.key.remote_port,
        remote_port: held.key.local_port,
        ..held.key
    };
    let verdict = {
        let state = shared.state();
        contact::judged(&state, held, client_identity, local.identity, client_identity, held.key.local_port, session)
    };
    let Some(peer) = shared.datagrams.lock().peers.remove(&key) else { return verdict.map(drop) };
    match verdict {
        Ok(_) => go_on(shared, &key, peer, SessionPu { session, handle: local.handle, pad: 0 }, local.identity),
        Err(refusal) => {
            let reason = refusal.reason;
            give_up(shared, &key, peer, Refusal { identity: local.identity, ..refusal }, true);
            Err(reason.into())
        }
    }
}

/// The client's end: what a peer answers.
fn answer(shared: &Shared, held: &Held, frame: &Datagram<'_>) -> Result<(), Refusal> {
    let (trailer, _) = frame.trailer().ok_or(Refusal::from(Reason::HelloMalformed))?;
    let fields = trailer.fields();
    if let Some(result) = fallback::answered(shared, held, frame, &trailer) {
        return result;
    }
    match fields.packet_type {
        HELLO_REPLY => hello_reply(shared, held, frame),
        RETRY => retry(shared, held, frame),
        CHALLENGE => challenged(shared, held, fields.time, trailer.mac()),
        DENY => {
            let mut inner = shared.datagrams.lock();
            if inner.peers.get(&held.key).is_none_or(|peer| peer.number != fields.time) {
                return Err(Reason::ReplyMac.into());
            }
            let peer = inner.peers.remove(&held.key);
            drop(inner);
            let reason = Reason::from_number(fields.flags.into()).unwrap_or(Reason::PeerDenied);
            peer.into_iter().for_each(|peer| give_up(shared, &held.key, peer, reason, true));
            Ok(())
        }
        _ => Err(Reason::HelloMalformed.into()),
    }
}

/// The peer wants to know that HELLO comes from where it says. Heeded once.
fn challenged(shared: &Shared, held: &Held, number: u64, cookie: u64) -> Result<(), Refusal> {
    let mut guard = shared.datagrams.lock();
    let asked = guard.peers.get_mut(&held.key).filter(|peer| peer.number == number);
    let peer = asked.ok_or(Refusal::from(Reason::ReplyMac))?;
    if peer.cookie.replace(cookie).is_some() {
        return Err(Reason::RetryLoop.into());
    }
    peer.attempts = peer.attempts.saturating_sub(1);
    ask(shared, guard, &held.key);
    Ok(())
}

fn hello_reply(shared: &Shared, held: &Held, frame: &Datagram<'_>) -> Result<(), Refusal> {
    let now = clock::now();
    let refused = |error: HandshakeError| {
        tracing::debug!(%error, "a HELLO_REPLY was refused");
        Refusal::from(error.reason())
    };
    let waited = shared.datagrams.lock().peers.get(&held.key).map(|peer| peer.number);
    // Answered already; HELLO may have been sent twice.
    let Some(number) = waited else { return Ok(()) };
    let shown = datagram::verify(&mut shared.verifier(), frame, now).map_err(refused)?;
    let flow = shared.maps.flows.get(&held.key).map_err(internal)?.ok_or(Refusal::from(Reason::NoFlow))?;
    let (local, session, identity, met) = {
        let mut guard = shared.state();
        let state = &mut *guard;
        let local = LocalPu { handle: flow.local_handle, ..contact::local_pu(state, held.pu)? };
        let (peer, session) = shown.authenticate(&mut state.handshake(), local, number, now).map_err(refused)?;
        let identity = contact::meet(state, &peer, &session)?;
        contact::remember_route(shared, state, held.pu, &held.key, &session)?;
        (local, session.index, identity, SessionPu { session: session.index, handle: peer.profile().handle, pad: 0 })
    };
    contact::settle_pair(shared, local.identity, identity, identity, session)?;
    let Some(peer) = shared.datagrams.lock().peers.remove(&held.key) else { return Ok(()) };
    let verdict = {
        let state = shared.state();
        contact::judged(&state, held, local.identity, identity, identity, held.key.remote_port, session).map(drop)
    };
    if let Err(refusal) = verdict {
        deny_peer(shared, &held.key, &flow, &peer, met, refusal.reason);
        give_up(shared, &held.key, peer, refusal, true);
        return Ok(());
    }
    go_on(shared, &held.key, peer, met, identity)
}

/// The peer allows it and we do not: it shall know why nothing comes.
fn deny_peer(shared: &Shared, key: &FlowKey, flow: &Flow, peer: &Peer, met: SessionPu, reason: Reason) {
    let Ok(Some(session)) = shared.maps.sessions.get(&met.session) else { return };
    let flow = Flow { session: met.session, peer_handle: met.handle, reason: reason as u16, ..*flow };
    let Some(first) = peer.first() else { return };
    let deny = first.denied(&datagram::cut_trailer(key.proto, &flow, &session, sys::monotonic_ns()));
    inject(shared, &deny, peer.ifindex, peer.outward() | INJECT_TRUSTED, 0);
}

/// The peer was met: what waited goes to it, with identity.
fn go_on(shared: &Shared, key: &FlowKey, peer: Peer, met: SessionPu, identity: u32) -> Result<(), Refusal> {
    let at = DatagramPeer { addr: key.remote, port: key.remote_port, proto: key.proto.into() };
    shared.maps.datagram_peers.insert(&at, &met).map_err(internal)?;
    let present = shared.maps.flows.get(key).map_err(internal)?;
    // The kernel has given it up meanwhile.
    let Some(present) = present.filter(|flow| (flow.role, flow.state) == (CLIENT, SYN_SENT)) else { return Ok(()) };
    let (verdict, generation) = {
        let state = shared.state();
        let verdict = state.verdict(present.local_identity, identity, key.proto, key.remote_port);
        (verdict.lift(state.is_observed(present.pu)), state.config.current().generation)
    };
    let flow = Flow {
        path: PATH_HELLO,
        session: met.session,
        peer_handle: met.handle,
        peer_identity: identity,
        generation,
        rule: verdict.rule,
        observed_rule: verdict.observed_rule,
        reason: verdict.lifted,
        flags: (present.flags & FLAG_RETRIED) | if verdict.log { FLAG_LOG } else { 0 },
        ..present
    };
    shared.maps.flows.replace(key, &flow).map_err(internal)?;
    peer.frames.iter().for_each(|(frame, segment)| onward(shared, &peer, frame, *segment));
    Ok(())
}

/// The peer has forgotten the session, or the PU: what it gave back waits for it to be met again.
fn retry(shared: &Shared, held: &Held, frame: &Datagram<'_>) -> Result<(), Refusal> {
    let present = shared.maps.flows.get(&held.key).map_err(internal)?.ok_or(Refusal::from(Reason::NoFlow))?;
    let former = shared.datagrams.lock().peers.get(&held.key).and_then(|peer| peer.former);
    let flow = former.unwrap_or(present);
    let session = shared.maps.sessions.get(&flow.session).map_err(internal)?;
    let given_back = session.and_then(|session| frame.given_back(&flow, &session));
    let sent = given_back.ok_or(Refusal::from(Reason::ReplyMac))?;
    if flow.role != CLIENT || flow.state != SYN_SENT {
        return Err(Reason::ReplyMac.into());
    }
    let (_, payload) = frame.trailer().ok_or(Refusal::from(Reason::HelloMalformed))?;
    let whole = frame.with(&[payload], true);
    // What was bare is nothing the PU sent.
    let bare = sent.flags & BARE != 0;
    if former.is_some() {
        // Another one of the same flow; the peer is asked already.
        let kept = bare || shared.datagrams.lock().peers.get_mut(&held.key).is_some_and(|peer| peer.keep(whole, 0));
        return if kept { Ok(()) } else { Err(Reason::RingFull.into()) };
    }
    let mut peer = Peer { former: Some(flow), ..Peer::new(held, held.at_pu_interface != 0) };
    if bare {
        peer.like = whole;
    } else {
        peer.keep(whole, 0);
    }
    if flow.flags & FLAG_RETRIED != 0 {
        give_up(shared, &held.key, peer, Reason::RetryLoop, true);
        return Ok(());
    }
    let at = DatagramPeer { addr: held.key.remote, port: held.key.remote_port, proto: held.key.proto.into() };
    shared.maps.datagram_peers.remove(&at).map_err(internal)?;
    let known = SessionPu { session: flow.session, handle: flow.local_handle, pad: 0 };
    shared.maps.known_to_peer.remove(&known).map_err(internal)?;
    let flow = Flow { session: 0, path: PATH_HELLO, flags: flow.flags | FLAG_RETRIED, ..flow };
    shared.maps.flows.replace(&held.key, &flow).map_err(internal)?;
    let mut guard = shared.datagrams.lock();
    guard.peers.entry(held.key).or_insert(peer);
    ask(shared, guard, &held.key);
    Ok(())
}

/// An authenticated datagram of a pair that was never judged: judged now, then the kernel looks at it again.
fn judge(shared: &Shared, held: &Held, frame: &Datagram<'_>) -> Result<(), Refusal> {
    contact::settle_pair(shared, held.subject, held.object, 0, 0)?;
    let onward = if held.at_pu_interface == 0 { INJECT_INGRESS } else { 0 };
    shared.tap.inject(&frame.with(&[frame.payload()], false), held.ifindex, onward, 0).map_err(internal)
}

fn record(shared: &Shared, held: &Held, refusal: &Refusal) {
    contact::record(shared, held, refusal);
}
