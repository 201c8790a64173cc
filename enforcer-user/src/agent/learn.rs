//! Peers by DNS name: learns from the answers PUs get, before they get them, and forgets what is over.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

use common::{
    abi::{CONFIG_LEARN_NAMES, INJECT_INGRESS, INJECT_TRUSTED},
    event::{HELD_QUESTION, Held},
    flow::PATH_EXTERNAL,
    verdict::Pair,
};
use policy::{Identity, IdentityId};

use super::{Shared, clock, state::State};
use crate::{
    dns::{Cache, Conn, Datagram, Found, Learned, Learner, Part, Parts},
    flow_log::ip_addr,
    metrics::{Metrics, NameEvent},
};

/// What is known of names.
#[derive(Debug, Default)]
pub(super) struct Names {
    learner: Learner,
    parts: Parts,
    cache: Cache,
    /// The file does not say what the cache does.
    unsaved: bool,
}

/// TCP payload of one frame handed on: fits every link that carries IPv6.
const PAYLOAD_MAX: usize = 1200;
/// Expired addresses of live flows are kept; how soon they are looked at again, seconds.
const IN_USE: u64 = 5;

/// A question or answer that the kernel shows.
pub(super) fn shown(shared: &Shared, metrics: &Metrics, held: &Held) {
    let conn = Conn { pu: held.pu, key: held.key };
    let bytes = held.frame.get(..held.len as usize).unwrap_or_default();
    let (offset, total) = (held.offset as usize, held.subject as usize);
    let mut guard = shared.state();
    let state = &mut *guard;
    let Some(frame) = state.learned.parts.add(Part { conn, kind: held.kind, offset, total, bytes }) else { return };
    let datagram = Datagram::parse(&frame);
    let now = clock::now();
    if held.kind == HELD_QUESTION {
        let asked = datagram.map_or(0, |datagram| question(&mut state.learned.learner, conn, &datagram, now));
        return (0..asked).for_each(|_| metrics.name(NameEvent::Asked));
    }
    for learned in datagram.map(|datagram| answer(&mut state.learned.learner, conn, &datagram, now)).unwrap_or_default()
    {
        let event = match learned {
            Learned::Name(name, found) => take(shared, state, &held.key.remote, &name, &found, now),
            Learned::Unasked => NameEvent::Unasked,
            Learned::Unreadable => NameEvent::Unreadable,
        };
        metrics.name(event);
    }
    drop(guard);
    // Learned from or not, it is the PU's.
    let frames = datagram.map_or_else(|| vec![frame.clone()], |datagram| datagram.onward(PAYLOAD_MAX));
    let onward = if held.at_pu_interface == 0 { INJECT_INGRESS } else { 0 };
    for frame in frames {
        if let Err(error) = shared.tap.inject(&frame, held.ifindex, onward | INJECT_TRUSTED, 0) {
            tracing::warn!(%error, "a DNS answer could not be handed on");
        }
    }
}

fn question(learner: &mut Learner, conn: Conn, datagram: &Datagram<'_>, now: u64) -> usize {
    match datagram.seq() {
        Some(seq) => learner.question_segment(conn, seq, datagram.payload(), now),
        None => usize::from(learner.question(conn, datagram.payload(), now)),
    }
}

fn answer(learner: &mut Learner, conn: Conn, datagram: &Datagram<'_>, now: u64) -> Vec<Learned> {
    match datagram.seq() {
        Some(seq) => learner.answer_segment(conn, seq, datagram.payload(), now),
        None => vec![learner.answer(conn, datagram.payload(), now)],
    }
}

/// Puts an answer in force, if the policy is about its name.
fn take(
    shared: &Shared,
    state: &mut State,
    resolver: &common::Addr,
    name: &str,
    found: &[Found],
    now: u64,
) -> NameEvent {
    for Found { address, .. } in found.iter().filter(|found| may_be_external(state, found.address)) {
        state.names.hear(*address, name);
    }
    if !state.compiled.means(name) {
        return NameEvent::Unmeant;
    }
    let config = &shared.config.names;
    let resolver = ip_addr(resolver);
    if !config.resolvers.is_empty() && !config.resolvers.iter().any(|network| network.contains(&resolver)) {
        tracing::debug!(%resolver, name, "an answer is not believed: the resolver is not among names.resolvers");
        return NameEvent::Distrusted;
    }
    let (mut new, mut event) = (false, NameEvent::Learned);
    for Found { address, ttl } in found {
        if !may_be_external(state, *address) {
            tracing::warn!(name, %address, "a DNS answer leads into an identity network, and is not believed: there identity decides, not a name");
            event = NameEvent::Inside;
            continue;
        }
        let until = now + u64::from(*ttl) + config.stale.as_secs();
        match state.learned.cache.learn(*address, name, until, config.max_addresses as usize) {
            Some(fresh) => new |= fresh,
            None => {
                tracing::warn!(name, %address, "no room for another address: see names.max_addresses");
                event = NameEvent::Full;
            }
        }
    }
    state.learned.unsaved = true;
    if new {
        tracing::debug!(name, ?found, "learned");
        if let Err(error) = state.enforce_names() {
            tracing::error!(error = format!("{error:#}"), name, "a name is not in force");
            state.unsettled = true;
        }
    }
    event
}

/// Whether a name may stand for an address. Inside an identity network it may not: who answers for the name would decide
/// which peers need no identity.
fn may_be_external(state: &State, address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !special && !state.identity_networks.iter().any(|network| network.contains(&address))
}

/// Forgets what is over, and saves what is known; called every second.
pub(super) fn upkeep(shared: &Shared) {
    let now = clock::now();
    let mut state = shared.state();
    if state.learned.cache.has_expired(now) {
        let mut in_use = HashSet::new();
        let listed = shared.maps.flows.for_each(|key, flow| {
            if flow.path == PATH_EXTERNAL {
                in_use.insert(ip_addr(&key.remote));
            }
        });
        let done = listed.map_err(anyhow::Error::from).and_then(|()| state.expire_names(now, &in_use));
        if let Err(error) = done {
            tracing::error!(error = format!("{error:#}"), "expired names stay in force");
            state.unsettled = true;
        }
    }
    if std::mem::take(&mut state.learned.unsaved) {
        let bytes = serde_json::to_vec(&state.learned.cache);
        drop(state);
        let written =
            bytes.map_err(std::io::Error::from).and_then(|bytes| save(&file(&shared.config.paths.socket), &bytes));
        if let Err(error) = written {
            tracing::warn!(%error, "what was learned of names is not saved");
        }
    }
}

impl State {
    /// Takes over what a former agent learned, as far as the policy is about it. Before [`State::settle`].
    pub fn recall_names(&mut self, socket: &Path) {
        let Ok(bytes) = std::fs::read(file(socket)) else { return };
        match serde_json::from_slice::<Cache>(&bytes) {
            Ok(mut cache) => {
                cache.retain(|address, name, _| self.compiled.means(name) && may_be_external(self, address));
                self.compiled.set_names(cache.known());
                self.learned.cache = cache;
            }
            Err(error) => tracing::warn!(%error, "what the former agent learned of names is unreadable"),
        }
    }

    /// Adds to an address without enforcer the names it is known by.
    pub fn name_external(&self, identity: &mut Identity) {
        if let Identity::External { networks, names } = identity {
            let known = networks.iter().filter_map(|net| self.compiled.names(net.addr()));
            names.extend(known.flatten().cloned());
        }
    }

    /// The flag by which the kernel shows DNS messages.
    pub fn names_flag(&self) -> u32 {
        // What is recorded under observe mode is told by name too.
        let wanted = self.compiled.has_names() || self.observed.namespaces().next().is_some();
        if wanted { CONFIG_LEARN_NAMES } else { 0 }
    }

    /// Gives addresses the meaning their names have: pairs first, then networks.
    fn enforce_names(&mut self) -> anyhow::Result<()> {
        let changed = self.compiled.set_names(self.learned.cache.known());
        let locals: BTreeSet<u32> = self.pus.values().map(|pu| pu.identity).collect();
        for IdentityId(external) in changed {
            for local in &locals {
                self.judge_pair(Pair { subject: *local, object: external })?;
                self.judge_pair(Pair { subject: external, object: *local })?;
            }
        }
        Ok(self.write_networks()?)
    }

    fn expire_names(&mut self, now: u64, in_use: &HashSet<IpAddr>) -> anyhow::Result<()> {
        let learned = &mut self.learned;
        // Looked at again soon, and forgotten when the flow has ended.
        if !learned.cache.expire(now, in_use) {
            learned.cache.postpone(now, now + IN_USE);
            return Ok(());
        }
        learned.cache.postpone(now, now + IN_USE);
        learned.unsaved = true;
        self.enforce_names()?;
        let gone: Vec<Pair> = self
            .pairs
            .iter()
            .filter(|pair| {
                let unknown =
                    |number| IdentityId(number).is_external() && self.compiled.identity(IdentityId(number)).is_none();
                unknown(pair.subject) || unknown(pair.object)
            })
            .copied()
            .collect();
        for pair in gone {
            self.pairs.remove(pair)?;
        }
        Ok(())
    }

    /// Flows with external networks bear the numbers a former agent gave these; gives them those of this one.
    pub fn renumber_flows(&mut self) -> anyhow::Result<()> {
        let mut renumbered = Vec::new();
        self.maps.flows.for_each(|key, flow| {
            let number = self.compiled.external_identity(ip_addr(&key.remote)).map_or(0, |id| id.0);
            if flow.path == PATH_EXTERNAL && flow.peer_identity != number {
                renumbered.push((*key, number));
            }
        })?;
        for (key, number) in renumbered {
            // Read again: the kernel goes on counting.
            if let Some(mut flow) = self.maps.flows.get(&key)?.filter(|flow| flow.path == PATH_EXTERNAL) {
                flow.peer_identity = number;
                self.maps.flows.replace(&key, &flow)?;
            }
        }
        Ok(())
    }
}

fn file(socket: &Path) -> PathBuf {
    let mut file = socket.as_os_str().to_owned();
    file.push(".names");
    file.into()
}

fn save(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = file.with_extension("names.new");
    std::fs::write(&fresh, bytes)?;
    std::fs::rename(&fresh, file)
}
