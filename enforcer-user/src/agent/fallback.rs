//! First contact out of band: where nothing answers a SYN that carries a credential, the enforcers exchange theirs over UDP, and the
//! SYN goes on as one that needs none.
//!
//! Nothing is judged here for the client: the answer to that SYN names the server's PU under a MAC, and the kernel judges it
//! before any of the client's bytes leave, as with every connection that is resumed.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use common::{
    Addr,
    abi::{self, INJECT_INGRESS, INJECT_TRUSTED},
    datagram::Trailer,
    drop_reason::Reason,
    event::{self, EVENT_DENY, Event, Held},
    flow::{CLIENT, FLAG_CHALLENGED, FLAG_RETRIED, Flow, FlowKey, PATH_HELLO, PATH_OUT_OF_BAND, SYN_SENT},
    identity::SessionPu,
    wire::{self, CHALLENGE, DENY, HELLO_REPLY, RESUME, Transcript},
};
use prometheus::{IntCounterVec, Opts, core::Collector};

use super::{
    Shared, clock,
    contact::{self, Refusal},
    datagrams::PATIENCE,
};
use crate::{
    flow_log::ip_addr,
    handshake::{
        Frame, HandshakeError, LocalPu, build,
        datagram::{self, Datagram, OutOfBand},
    },
    map_write::MapWriteError,
    sys,
};

const UDP: u8 = libc::IPPROTO_UDP as u8;

/// Peers that are asked at once, and SYNs that wait for one of them; what is more goes without.
const PEERS: usize = 1024;
const SYNS: usize = 64;

/// How long first contacts with an address go out of band at once, after one has had to: long enough to outlast many sessions. One
/// that is answered in band ends it.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// What is counted of out-of-band HELLOs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// One was sent; up to three for one first contact, and one more for a CHALLENGE.
    Sent,
    /// A peer answered with its credential.
    Answered,
    /// A peer answered with a refusal.
    Refused,
    /// Nobody answered any of them.
    Unanswered,
    /// One of a peer was authentic.
    Received,
}

impl Count {
    const ALL: [Self; 5] = [Self::Sent, Self::Answered, Self::Refused, Self::Unanswered, Self::Received];

    fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::Received => "received",
        }
    }
}

/// Who is asked out of band, and what waits for the answer.
pub(super) struct Fallback {
    port: Option<u16>,
    asked: Mutex<HashMap<Route, Asked>>,
    counts: IntCounterVec,
}

/// A PU of this host and where it wants to go.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Route {
    pu: u32,
    addr: Addr,
    port: u16,
}

struct Asked {
    /// The datagrams' own addresses and ports.
    key: FlowKey,
    /// By which the answer is known.
    number: u64,
    /// What a CHALLENGE asked for.
    cookie: Option<u64>,
    /// As whom the PU was introduced.
    handle: u16,
    /// Who answered.
    met: Option<SessionPu>,
    syns: Vec<Syn>,
    next: Instant,
    attempts: usize,
}

struct Syn {
    key: FlowKey,
    frame: Vec<u8>,
    isn: u32,
    ifindex: u32,
    at_pu_interface: bool,
}

impl Fallback {
    /// Nobody is asked, nor may be without a `port`.
    ///
    /// # Errors
    /// Never in practice: the metric's name is constant.
    pub fn new(port: Option<u16>) -> prometheus::Result<Self> {
        let options = Opts::new(
            "enforcer_out_of_band_hellos_total",
            "First contacts over UDP, because the path refuses them in band: HELLOs sent and received, and what came of those sent.",
        );
        let counts = IntCounterVec::new(options, &["what"])?;
        for count in Count::ALL {
            counts.with_label_values(&[count.name()]).inc_by(0);
        }
        Ok(Self { port, asked: Mutex::default(), counts })
    }

    /// The counters, for the metrics' registry.
    pub fn collector(&self) -> Box<dyn Collector> {
        Box::new(self.counts.clone())
    }

    pub fn count(&self, count: Count) {
        self.counts.with_label_values(&[count.name()]).inc();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Route, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Syn {
    fn new(held: &Held, frame: &Frame<'_>) -> Self {
        Self {
            key: held.key,
            frame: frame.bytes().to_vec(),
            isn: frame.seq(),
            ifindex: held.ifindex,
            at_pu_interface: held.at_pu_interface != 0,
        }
    }

    /// Where what the PU sends goes on.
    fn outward(&self) -> u32 {
        if self.at_pu_interface { INJECT_INGRESS } else { 0 }
    }

    /// Its flow, as long as nothing has come of it.
    fn pending(&self, shared: &Shared) -> Result<Option<Flow>, MapWriteError> {
        let present = shared.maps.flows.get(&self.key)?;
        Ok(present.filter(|flow| (flow.role, flow.state, flow.local_isn) == (CLIENT, SYN_SENT, self.isn)))
    }

    fn inject(&self, shared: &Shared, frame: &[u8]) {
        if let Err(error) = shared.tap.inject(frame, self.ifindex, self.outward() | INJECT_TRUSTED, 0) {
            tracing::warn!(%error, "what goes out of band could not be sent");
        }
    }
}

/// The client's end: nothing has come back for this SYN.
pub(super) fn unanswered(shared: &Shared, held: &Held, frame: &Frame<'_>) {
    let Some(port) = shared.fallback.port else { return };
    let route = Route { pu: held.pu, addr: held.key.remote, port: held.key.remote_port };
    let syn = Syn::new(held, frame);
    let mut asked = shared.fallback.lock();
    if let Some(present) = asked.get_mut(&route) {
        if present.syns.len() >= SYNS || present.syns.iter().any(|other| (other.key, other.isn) == (syn.key, syn.isn)) {
            return;
        }
        present.syns.push(syn);
        if present.met.is_some() {
            // As if it had been there when the answer came.
            present.next = Instant::now();
            present.attempts = 0;
        }
        return;
    }
    if asked.len() >= PEERS {
        return tracing::debug!("a first contact finds no room to go out of band");
    }
    let key = match enter(shared, held, port) {
        Ok(Some(key)) => key,
        Ok(None) => return tracing::debug!("a first contact finds no port to go out of band from"),
        Err(error) => return tracing::warn!(%error, "a first contact could not go out of band"),
    };
    let fresh = Asked {
        key,
        number: rand::random(),
        cookie: None,
        handle: 0,
        met: None,
        syns: vec![syn],
        next: Instant::now(),
        attempts: 0,
    };
    asked.insert(route, fresh);
    drop(asked);
    ask(shared, &route);
}

/// The agent itself sends this SYN with a credential: as with the kernel, another way at once where that is known to be refused.
pub(super) fn opened(shared: &Shared, held: &Held, frame: &Frame<'_>) {
    let refused =
        || matches!(shared.maps.fallback_paths.get(&held.key.remote), Ok(Some(until)) if until > sys::monotonic_ns());
    if shared.fallback.port.is_some() && refused() {
        unanswered(shared, held, frame);
    }
}

/// Enters the flow in which the kernel hands the answer to the agent; `None` if no port is free. The connection's own is taken if
/// it is, so that both ends tell of the same.
fn enter(shared: &Shared, held: &Held, port: u16) -> Result<Option<FlowKey>, MapWriteError> {
    let (identity, handle, generation) = {
        let state = shared.state();
        let pu = state.pus.get(&held.pu);
        let (identity, handle) = pu.map_or((0, 0), |pu| (pu.identity, pu.handle));
        (identity, handle, state.config.current().generation)
    };
    let now = sys::monotonic_ns();
    let flow = Flow {
        state: SYN_SENT,
        role: CLIENT,
        path: PATH_HELLO,
        local_handle: handle,
        pu: held.pu,
        local_identity: identity,
        generation,
        ifindex: held.ifindex,
        pu_ifindex: if held.at_pu_interface == 0 { 0 } else { held.ifindex },
        created_ns: now,
        seen_ns: now,
        ..Flow::default()
    };
    for from in std::iter::once(held.key.local_port).chain((0..4).map(|_| rand::random::<u16>() | 0x8000)) {
        let key = FlowKey { local_port: from, remote_port: port, proto: UDP, ..held.key };
        if shared.maps.flows.insert_new(&key, &flow)? {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// Sends HELLO for what waits on `route`.
fn ask(shared: &Shared, route: &Route) {
    let introduction = {
        let state = shared.state();
        state.pus.get(&route.pu).and_then(|pu| Some((pu.credential.clone()?, pu.handle)))
    };
    let mut guard = shared.fallback.lock();
    let Some(asked) = guard.get_mut(route) else { return };
    asked.next = Instant::now() + PATIENCE[asked.attempts.min(PATIENCE.len() - 1)];
    asked.attempts += 1;
    let Some((credential, handle)) = introduction else { return };
    asked.handle = handle;
    let Some(first) = asked.syns.first() else { return };
    let Ok(syn) = Frame::parse(&first.frame) else { return };
    let beside = OutOfBand { syn: &syn, from: asked.key.local_port, to: asked.key.remote_port };
    first.inject(shared, &beside.hello(&credential, handle, asked.number, asked.cookie));
    shared.fallback.count(Count::Sent);
}

/// What a peer answers; `None` if it was not asked out of band.
pub(super) fn answered(
    shared: &Shared,
    held: &Held,
    frame: &Datagram<'_>,
    trailer: &Trailer,
) -> Option<Result<(), Refusal>> {
    let (route, number, handle, key) = {
        let asked = shared.fallback.lock();
        let (route, asked) = asked.iter().find(|(_, asked)| asked.key == held.key)?;
        // Answered already; HELLO may have been sent twice.
        if asked.met.is_some() {
            return Some(Ok(()));
        }
        let key = asked.syns.first()?.key;
        (*route, asked.number, asked.handle, key)
    };
    let fields = trailer.fields();
    if fields.time != number {
        return Some(Err(Reason::ReplyMac.into()));
    }
    Some(match fields.packet_type {
        HELLO_REPLY => met(shared, held.pu, frame, &route, &key, LocalPu { handle, ..LocalPu::default() }, number),
        CHALLENGE => challenged(shared, &route, trailer.mac()),
        DENY => {
            let reason = Reason::from_number(fields.flags.into()).unwrap_or(Reason::PeerDenied);
            shared.fallback.count(Count::Refused);
            if let Some(asked) = take(shared, &route) {
                remember(shared, &route, &asked);
                asked.syns.iter().for_each(|syn| refuse(shared, &route, syn, reason));
            }
            Ok(())
        }
        _ => Err(Reason::HelloMalformed.into()),
    })
}

/// The peer wants to know that HELLO comes from where it says. Heeded once.
fn challenged(shared: &Shared, route: &Route, cookie: u64) -> Result<(), Refusal> {
    {
        let mut guard = shared.fallback.lock();
        let Some(asked) = guard.get_mut(route) else { return Ok(()) };
        if asked.cookie.replace(cookie).is_some() {
            return Err(Reason::RetryLoop.into());
        }
        asked.attempts = asked.attempts.saturating_sub(1);
    }
    ask(shared, route);
    Ok(())
}

/// The peer has shown its credential: what waits goes on in the session.
fn met(
    shared: &Shared,
    pu: u32,
    frame: &Datagram<'_>,
    route: &Route,
    key: &FlowKey,
    local: LocalPu,
    number: u64,
) -> Result<(), Refusal> {
    let now = clock::now();
    let refused = |error: HandshakeError| {
        tracing::debug!(%error, "a HELLO_REPLY was refused");
        Refusal::from(error.reason())
    };
    let shown = datagram::verify(&mut shared.verifier(), frame, now).map_err(refused)?;
    let (local, met, identity, peer) = {
        let mut guard = shared.state();
        let state = &mut *guard;
        let local = LocalPu { handle: local.handle, ..contact::local_pu(state, pu)? };
        let (peer, session) = shown.authenticate(&mut state.handshake(), local, number, now).map_err(refused)?;
        let identity = contact::meet(state, &peer, &session)?;
        contact::remember_route(shared, state, pu, key, &session)?;
        let met = SessionPu { session: session.index, handle: peer.profile().handle, pad: 0 };
        (local, met, identity, peer)
    };
    // So that the answer to the SYN is judged in the kernel at once.
    contact::settle_pair(shared, local.identity, identity, identity, met.session)?;
    shared.fallback.count(Count::Answered);
    let mut guard = shared.fallback.lock();
    let Some(asked) = guard.get_mut(route) else { return Ok(()) };
    if remember(shared, route, asked) {
        tracing::info!(
            peer = %peer.enforcer().name(),
            address = %ip_addr(&route.addr),
            port = route.port,
            "a first contact was not answered in band, but over UDP: from now on they go there both ways at once"
        );
    }
    asked.met = Some(met);
    asked.attempts = 0;
    forget_flow(shared, &asked.key);
    go_on(shared, asked);
    Ok(())
}

/// Sends what waits, as connections of the session, and before it the CONFIRM that lets the server answer without its
/// credential. Either may be lost, so this is done again for a while.
fn go_on(shared: &Shared, asked: &mut Asked) {
    asked.next = Instant::now() + PATIENCE[asked.attempts.min(PATIENCE.len() - 1)];
    asked.attempts += 1;
    let Some(met) = asked.met else { return };
    let session = shared.state().sessions.get(met.session).cloned();
    let Some(session) = session else { return asked.syns.clear() };
    let mut confirmed = false;
    let (handle, from, to) = (asked.handle, asked.key.local_port, asked.key.remote_port);
    asked.syns.retain(|syn| {
        let (Ok(Some(present)), Ok(frame)) = (syn.pending(shared), Frame::parse(&syn.frame)) else { return false };
        let flow = Flow {
            path: PATH_OUT_OF_BAND,
            session: met.session,
            local_handle: handle,
            flags: present.flags & !(FLAG_RETRIED | FLAG_CHALLENGED),
            ..present
        };
        if !matches!(shared.maps.flows.replace(&syn.key, &flow), Ok(true)) {
            return false;
        }
        if !std::mem::replace(&mut confirmed, true) {
            let beside = OutOfBand { syn: &frame, from, to };
            syn.inject(shared, &beside.confirm(&session, handle, met.handle, sys::monotonic_ns()));
        }
        let transcript = Transcript { sender_isn: syn.isn, ..Transcript::default() };
        let option = wire::sealed(&session.keys.outbound, RESUME, 0, handle, session.peer_index, &transcript);
        // Without room for the option the kernel makes some when TCP sends the SYN again.
        if let Some(resume) = build::introduce(&frame, &option, &[]) {
            syn.inject(shared, &resume);
        }
        true
    });
}

/// Asks again, and gives up where nobody answers; called every tenth of a second.
pub(super) fn tick(shared: &Shared) {
    let now = Instant::now();
    let due: Vec<Route> = {
        let mut guard = shared.fallback.lock();
        let mut due = Vec::new();
        guard.retain(|route, asked| {
            if asked.next > now {
                return true;
            }
            // In band, something may have come after all.
            asked.syns.retain(|syn| matches!(syn.pending(shared), Ok(Some(_))));
            let over = asked.syns.is_empty() || asked.attempts >= PATIENCE.len();
            if over {
                if asked.met.is_none() {
                    forget_flow(shared, &asked.key);
                }
                if asked.met.is_none() && !asked.syns.is_empty() {
                    shared.fallback.count(Count::Unanswered);
                    tracing::debug!(address = %ip_addr(&route.addr), "nobody answers out of band either");
                }
                return false;
            }
            match asked.met {
                Some(_) => go_on(shared, asked),
                None => due.push(*route),
            }
            true
        });
        due
    };
    due.iter().for_each(|route| ask(shared, route));
}

/// Nobody waits for an answer any more.
fn take(shared: &Shared, route: &Route) -> Option<Asked> {
    let asked = shared.fallback.lock().remove(route)?;
    forget_flow(shared, &asked.key);
    Some(asked)
}

fn forget_flow(shared: &Shared, key: &FlowKey) {
    if let Err(error) = shared.maps.flows.remove(key) {
        tracing::warn!(%error, "the flow of an out-of-band HELLO stays");
    }
}

/// The next first contact with this address need not wait, unless an answer came in band meanwhile; whether that is news.
fn remember(shared: &Shared, route: &Route, asked: &Asked) -> bool {
    if !asked.syns.iter().any(|syn| matches!(syn.pending(shared), Ok(Some(_)))) {
        return false;
    }
    let until = sys::monotonic_ns() + REMEMBERED.as_nanos() as u64;
    let paths = &shared.maps.fallback_paths;
    let news = !matches!(paths.get(&route.addr), Ok(Some(_)));
    if let Err(error) = paths.insert(&route.addr, &until) {
        tracing::warn!(%error, "the next first contact will wait for an answer again");
    }
    news
}

/// A first contact was answered in band: the path does not refuse them, or no longer.
pub(super) fn passes_in_band(shared: &Shared, key: &FlowKey) {
    if shared.fallback.port.is_some()
        && let Err(error) = shared.maps.fallback_paths.remove(&key.remote)
    {
        tracing::warn!(%error, "first contacts still go out of band, too");
    }
}

/// The peer refuses: the client hears of it at once.
fn refuse(shared: &Shared, route: &Route, syn: &Syn, reason: Reason) {
    if !matches!(syn.pending(shared), Ok(Some(_))) {
        return;
    }
    let Ok(frame) = Frame::parse(&syn.frame) else { return };
    forget_flow(shared, &syn.key);
    let local_identity = shared.state().pus.get(&route.pu).map_or(0, |pu| pu.identity);
    shared.log.push(&Event {
        time_ns: sys::monotonic_ns(),
        kind: EVENT_DENY,
        role: CLIENT,
        path: PATH_OUT_OF_BAND,
        direction: event::INBOUND,
        reason: reason as u16,
        // Hearsay: there is no session to prove it in.
        peer_reason: 1,
        key: syn.key,
        pu: route.pu,
        local_identity,
        ..Event::default()
    });
    let back = if syn.at_pu_interface { 0 } else { INJECT_INGRESS };
    let count = abi::reason_stat(reason as u16, true);
    if let Err(error) = shared.tap.inject(&build::refuse_sender(&frame), syn.ifindex, back | INJECT_TRUSTED, count) {
        tracing::warn!(%error, "a refusal could not be sent");
    }
}
