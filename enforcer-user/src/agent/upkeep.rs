//! What is done from time to time: the heartbeat, telemetry, renewal, expiry, and looking whether the policy changed.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use common::{
    event::EVENT_CUT,
    flow::{CUT, ESTABLISHED, FLAG_CLOSED, FLAG_SOCKET, Flow, FlowKey, SYN_RECEIVED, SYN_SENT},
    identity::SessionPu,
};

use super::{Shared, clock, datagrams, fallback, learn, names::Live, policy, pus, unsorted, updates, waiting};
use crate::{
    link_net::Change,
    load::Considered,
    records,
    ring::{Handshakes, Telemetry},
    sys,
};

/// The threads; they end when this is dropped.
pub(super) struct Upkeep {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    handshakes: Arc<Handshakes>,
}

impl Upkeep {
    /// The name of a thread that has ended by itself: by a panic, or because its system calls fail.
    pub fn ended(&self) -> Option<String> {
        if !self.handshakes.is_running() {
            return Some("handshakes".into());
        }
        let ended = self.threads.iter().find(|thread| thread.is_finished());
        ended.map(|thread| thread.thread().name().unwrap_or_default().to_owned())
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

const TICK: Duration = Duration::from_millis(100);

/// Starts the threads. `policy_seen` is what [`policy_stamp`] said before the policy in force was read.
pub(super) fn start(
    shared: Arc<Shared>,
    mut telemetry: Telemetry,
    handshakes: Handshakes,
    policy_seen: PolicyStamp,
) -> std::io::Result<Upkeep> {
    let stop = Arc::new(AtomicBool::new(false));
    let handshakes = Arc::new(handshakes);
    let mut upkeep = Upkeep { stop: stop.clone(), threads: Vec::new(), handshakes: handshakes.clone() };
    let mut thread = |name: &str, patience: Duration, pause: Duration, mut work: Box<dyn FnMut() + Send>| {
        let stopped = stop.clone();
        let turning = shared.pulse.expect(name, patience);
        let each_tick = move || {
            while !stopped.load(Ordering::Acquire) {
                turning.turn();
                work();
                std::thread::sleep(pause);
            }
        };
        std::thread::Builder::new().name(name.into()).spawn(each_tick).map(|thread| upkeep.threads.push(thread))
    };
    // Of its own, because reading a large policy takes longer than the kernel waits for a sign of life.
    let beating = shared.clone();
    let heartbeat = move || {
        if handshakes.is_running() {
            beat(&beating);
        }
    };
    let patience = super::patience(&shared);
    thread("heartbeat", patience, TICK, Box::new(heartbeat))?;
    // Of its own for the same reason: peers hear of changed tags within two seconds, whatever else is to do.
    let changing = shared.clone();
    let changes = move || {
        updates::tick(&changing);
        waiting::expire(&changing);
        datagrams::tick(&changing);
        fallback::tick(&changing);
    };
    thread("changes", patience, TICK, Box::new(changes))?;
    let (sorting, mut noted) = (shared.clone(), 0);
    let sorted_out = move || noted = unsorted::turn(&sorting, noted);
    thread("unsorted", patience, Duration::ZERO, Box::new(sorted_out))?;
    let mut found = policy_seen.clone();
    let mut seen = policy_seen;
    let tended = shared.clone();
    // Renewal is due half-way to the end: looked for often enough that the other half is left.
    let identity = &shared.config.identity;
    let renewal = Duration::from_secs(5).min(identity.profile_lifetime.min(identity.prekey_rotation) / 10);
    let mut tasks = [
        Task::new(Duration::from_millis(500), pus::reap),
        Task::new(renewal, renew),
        Task::new(Duration::from_secs(1), learn::upkeep),
        Task::new(Duration::from_secs(5), sweep_flows),
        Task::new(Duration::from_secs(60), sweep_identities),
        Task::new(Duration::from_secs(2), retry_interfaces),
        Task::new(COOKIE_SECRET, rotate_cookie_secret),
    ];
    let work = move || {
        let mut cut = Vec::new();
        telemetry.drain(|events| {
            events.iter().for_each(|event| tended.log.push(event));
            cut.extend(events.iter().filter(|event| event.kind == EVENT_CUT).map(|event| event.key));
        });
        policy::tell_ends(&tended, &cut);
        let now = policy_stamp(&tended.config.policy.paths);
        // Once they have come to rest: a file that is being written is empty for a moment, or half a policy.
        if now != seen && now == found {
            seen.clone_from(&now);
            policy::reload(&tended);
        }
        found = now;
        policy::upkeep(&tended);
        write_records(&tended, false);
        tasks.iter_mut().for_each(|task| task.run_if_due(&tended));
    };
    // A policy of a hundred thousand rules takes its time.
    thread("upkeep", patience.saturating_mul(6), TICK, Box::new(work))?;
    Ok(upkeep)
}

/// Tells the kernel that held frames will be decided.
fn beat(shared: &Shared) {
    if let Err(error) = shared.state().config.beat() {
        tracing::error!(%error, "no heartbeat");
    }
}

struct Task {
    every: Duration,
    next: Instant,
    work: fn(&Shared),
}

impl Task {
    fn new(every: Duration, work: fn(&Shared)) -> Self {
        Self { every, next: Instant::now() + every, work }
    }

    fn run_if_due(&mut self, shared: &Shared) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + self.every;
            (self.work)(shared);
        }
    }
}

/// What [`policy_stamp`] says.
pub(super) type PolicyStamp = Vec<(PathBuf, Option<SystemTime>, u64)>;

/// Names, times and sizes of all that lies where the policy is: whatever changes there is a reason to read it again.
pub(super) fn policy_stamp(paths: &[PathBuf]) -> PolicyStamp {
    let mut stamp = Vec::new();
    for path in paths {
        let below = std::fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        for file in below.chain([path.clone()]) {
            let meta = std::fs::metadata(&file).ok();
            let time = meta.as_ref().and_then(|meta| meta.modified().ok());
            stamp.push((file, time, meta.map_or(0, |meta| meta.len())));
        }
    }
    stamp.sort();
    stamp
}

fn renew(shared: &Shared) {
    let mut guard = shared.state();
    let state = &mut *guard;
    let now = clock::now();
    match state.prekeys.rotate_if_due(now) {
        Ok(rotated) => state.renew(rotated),
        Err(error) => tracing::error!(%error, "prekeys could not be rotated"),
    }
    let mono = sys::monotonic_ns();
    if let Err(error) = state.maps.known_to_peer.retain(|_, until| *until > mono) {
        tracing::error!(%error, "expired entries stay");
    }
}

/// How long cookies are given under one secret, and count after that: no SYN is sent again later (tcp_syn_retries 6).
const COOKIE_SECRET: Duration = Duration::from_secs(128);

fn rotate_cookie_secret(shared: &Shared) {
    if let Err(error) = shared.state().shield.rotate() {
        tracing::error!(%error, "cookies are still given under the former secret");
    }
}

/// How long an entry without traffic is kept, by what it is.
fn patience(key: &FlowKey, flow: &Flow) -> Option<Duration> {
    match flow.state {
        // TCP gives up a SYN after 127 s and a SYN-ACK after 63 s (tcp_syn_retries 6, tcp_synack_retries 5).
        SYN_SENT => Some(Duration::from_secs(135)),
        SYN_RECEIVED => Some(Duration::from_secs(70)),
        CUT => Some(Duration::from_secs(60)),
        ESTABLISHED if key.proto != libc::IPPROTO_TCP as u8 => Some(Duration::from_secs(180)),
        // Its reset follows at once or never.
        _ if flow.flags & FLAG_CLOSED != 0 => Some(Duration::from_secs(5)),
        _ if flow.pu_ifindex == 0 && flow.flags & FLAG_SOCKET != 0 => None,
        // Behind a PU's own interface the end can be missed.
        _ if flow.pu_ifindex != 0 && flow.is_over() => Some(Duration::from_secs(60)),
        _ if flow.pu_ifindex != 0 => Some(Duration::from_secs(5 * 24 * 3600)),
        // The listener took no more: no socket came of it, and TCP has given it up.
        _ => Some(Duration::from_secs(135)),
    }
}

fn sweep_flows(shared: &Shared) {
    let now = sys::monotonic_ns();
    let swept = shared.maps.flows.retain(|key, flow| {
        let idle = Duration::from_nanos(now.saturating_sub(flow.seen_ns.max(flow.created_ns)));
        let keep = patience(key, flow).is_none_or(|patience| idle < patience);
        if !keep && flow.state == ESTABLISHED {
            // Nobody else tells of its end.
            shared.log.push(&records::ended(key, flow));
        }
        keep
    });
    if let Err(error) = swept {
        tracing::error!(%error, "ended flows stay");
    }
}

/// Writes flow records if it is time, or in any case.
pub(super) fn write_records(shared: &Shared, now: bool) {
    let Some(recorder) = shared.log.recorder() else { return };
    if !recorder.is_due() && !now {
        return;
    }
    recorder.flush(|each| {
        let walked = shared.maps.flows.for_each(each);
        if let Err(error) = &walked {
            tracing::error!(%error, "not all live flows could be recorded; what has ended is");
        }
        walked.is_ok()
    });
}

/// Forgets identities that nothing refers to, and what was judged about them.
fn sweep_identities(shared: &Shared) {
    if let Err(error) = try_sweep_identities(shared) {
        tracing::error!(%error, "unused identities stay");
    }
}

fn try_sweep_identities(shared: &Shared) -> anyhow::Result<()> {
    let mut guard = shared.state();
    let state = &mut *guard;
    let mut used: HashSet<u32> = state.pus.values().map(|pu| pu.identity).collect();
    // What live connections need to be told of changed tags: their sessions, and the handles their ends go by.
    let (mut sessions, mut peers, mut handles) = (HashSet::new(), HashSet::new(), HashSet::new());
    state.maps.flows.for_each(|_, flow| {
        used.insert(flow.local_identity);
        used.insert(flow.peer_identity);
        if flow.session != 0 {
            sessions.insert(flow.session);
            peers.insert(SessionPu { session: flow.session, handle: flow.peer_handle, pad: 0 });
            handles.insert(flow.local_handle);
        }
    })?;
    state.retired.retain(|handle| handles.contains(handle));
    let ended = state.sessions.expire(clock::now(), |session| !sessions.contains(&session));
    state.forget_sessions(&ended.iter().map(|session| session.index).collect())?;
    let mono = sys::monotonic_ns();
    let own = state.config.current().self_session;
    let present: HashSet<u16> = state.pus.values().map(|pu| pu.handle).collect();
    state.maps.peer_pus.retain(|key, peer| {
        let keep = peers.contains(key)
            || if key.session == own { present.contains(&key.handle) } else { peer.until_ns > mono };
        if keep {
            used.insert(peer.identity);
        }
        keep
    })?;
    let rules = state.compiled.rules().map(|(id, _)| id.0).collect();
    let pus = state.pus.keys().copied().collect();
    state.names.prune(&Live { pus, identities: used.clone(), rules });
    let unused: Vec<u32> = state.identities.numbers().into_iter().filter(|number| !used.contains(number)).collect();
    if unused.is_empty() {
        return Ok(());
    }
    state.names.forget_tagged(unused.clone());
    let gone: HashSet<u32> = unused.iter().copied().collect();
    let pairs: Vec<_> = state
        .pairs
        .iter()
        .filter(|pair| gone.contains(&pair.subject) || gone.contains(&pair.object))
        .copied()
        .collect();
    for pair in pairs {
        state.pairs.remove(pair)?;
    }
    for number in unused {
        state.compiled.remove_identity(::policy::IdentityId(number));
        state.identities.remove(number);
        state.maps.identity_docs.remove(number)?;
    }
    Ok(())
}

/// Attaches where that failed before.
fn retry_interfaces(shared: &Shared) {
    for name in shared.kernel().retry() {
        tracing::info!(interface = %name, "attached at last");
    }
}

/// An interface came, changed or went.
pub(super) fn interface_changed(shared: &Shared, change: Change) {
    match change {
        Change::Present(interface) => {
            if interface.index == shared.tap.index() {
                return;
            }
            let name = interface.name.clone();
            match shared.kernel().consider(interface) {
                Ok(Considered::Attached) => tracing::info!(interface = %name, "attached"),
                Ok(Considered::Detached) => tracing::info!(interface = %name, "detached; `enforcer status` says why"),
                Ok(Considered::Unchanged) => {}
                Err(error) => tracing::error!(interface = %name, %error, "not enforced; trying again"),
            }
        }
        Change::Gone(index, name) => {
            pus::interface_gone(shared, index);
            match shared.kernel().detach_interface(index) {
                Ok(true) => tracing::info!(interface = %name, "gone"),
                Ok(false) => {}
                Err(error) => tracing::warn!(interface = %name, %error, "cannot clean up"),
            }
        }
    }
}
