//! Policy in force: reading, applying all or nothing, judging live flows again, cutting those no longer allowed.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use common::{
    abi::{self, INJECT_INGRESS, INJECT_NEIGHBOUR, INJECT_TRUSTED},
    drop_reason::Reason,
    event::{EVENT_CUT, Event},
    flow::{CLIENT, CONFIRMING, CUT, ESTABLISHED, Flow, FlowKey, SYN_RECEIVED},
    verdict::Pair,
};
use policy::{Delta, IdentityId, Moment, ParsedFiles, RuleId};

use super::{Shared, clock, host_pu, last_good, names, policy_apply, state::State, trial, upkeep::policy_stamp};
use crate::{
    config::{Config, PolicyText},
    handshake::{
        build::{self, Toward},
        datagram,
    },
    link_net,
    map_write::{MapWriteError, patiently},
    sys,
};

/// Rules and the files they came from.
pub(super) struct Rules {
    pub parsed: ParsedFiles,
    pub texts: Vec<PolicyText>,
}

impl Rules {
    /// Reads every policy file below the configured paths, and parses what is not as in `former`.
    pub fn read(paths: &[PathBuf], former: &ParsedFiles) -> anyhow::Result<Self> {
        Self::parse(PolicyText::read_all(paths)?, former)
    }

    /// Parses of policy files what is not as in `former`.
    pub fn parse(texts: Vec<PolicyText>, former: &ParsedFiles) -> anyhow::Result<Self> {
        let parsed = former.parse(texts.iter().map(|file| (file.file.as_str(), file.text.as_str())))?;
        if let Some(rule) = parsed.rules().iter().find(|rule| rule.policy() == host_pu::BUILTIN) {
            anyhow::bail!(
                "{}: the name `{}` is that of the enforcer's own rules; choose another",
                rule.location(),
                host_pu::BUILTIN
            );
        }
        Ok(Self { parsed, texts })
    }
}

/// What an agent begins with.
pub(super) enum Beginning {
    /// The policy as it is.
    Policy(Rules),
    /// The policy is broken; the one that was last in force, and what is wrong.
    LastGood(Rules, String),
    /// The policy is broken, and nothing is left of the one before.
    Nothing(String),
}

/// Reads the policy for a start. Where an enforcer was in force before, a broken policy must not keep the agent away: nobody
/// would renew and judge, and known peers would be strangers before long. A first start with one is an error.
pub(super) fn begin(config: &Config, enforced_before: bool) -> anyhow::Result<Beginning> {
    policy_apply::finish_interrupted(&config.policy.paths);
    let none = ParsedFiles::default();
    let problem = match Rules::read(&config.policy.paths, &none) {
        Ok(rules) => return Ok(Beginning::Policy(rules)),
        Err(error) if enforced_before => format!("{error:#}"),
        Err(error) => return Err(error),
    };
    match last_good::read(&config.paths.socket).and_then(|texts| Rules::parse(texts, &none)) {
        Ok(rules) => {
            tracing::error!(error = problem, "the policy is broken: the last good one is in force until it is mended");
            let problem = format!("{problem}; the last good policy is in force");
            Ok(Beginning::LastGood(rules, problem))
        }
        Err(error) => {
            tracing::error!(
                error = problem,
                copy = format!("{error:#}"),
                "the policy is broken and there is no good copy of the last one: what was judged stays, everything new is denied"
            );
            let problem = format!("{problem}; what was judged before stays, everything new is denied");
            Ok(Beginning::Nothing(problem))
        }
    }
}

impl State {
    /// Replaces the rules in the agent's mind only; what the kernel has stays in force.
    ///
    /// # Errors
    /// If the rules cannot be compiled; nothing has changed then.
    pub fn compile(&mut self, rules: &Rules) -> anyhow::Result<Delta> {
        if self.rules.is(&rules.parsed) && !rules.texts.is_empty() {
            return Ok(Delta::default());
        }
        // Names of rules that are removed now are kept for records: only those gone before may go.
        self.names.prune_rules(self.compiled.len(), |rule| self.compiled.rule(RuleId(rule)).is_some());
        let all: Vec<_> = self.builtin.iter().chain(rules.parsed.rules()).cloned().collect();
        let delta = self.compiled.update_rules(&all)?;
        self.rules = rules.parsed.clone();
        self.policy_files = rules.texts.iter().map(|file| file.file.as_str().into()).collect();
        // One without name that moved has another.
        let named = delta.added.iter().chain(&delta.moved);
        self.names.set_rules(names::named(named.filter_map(|id| Some((*id, &**self.compiled.rule(*id)?)))));
        for rule in delta.added.iter().filter_map(|id| self.compiled.rule(*id)) {
            if let Some(until) = rule.rule().until.filter(|_| rule.rule().is_expired(self.compiled.now())) {
                let (rule, source) = (rule.full_name(), rule.location().to_string());
                tracing::warn!(rule, source, %until, "the rule has expired and changes nothing");
            }
        }
        Ok(delta)
    }

    /// Judges a pair that has a verdict of rules that may be gone. If there is no room it counts as not judged: it is asked
    /// for at its next connection, and refused if there still is none. An old verdict must not outlive its rules. False
    /// if there will be room soon.
    fn judge_again(&mut self, pair: Pair) -> anyhow::Result<bool> {
        let known = |number: u32| IdentityId(number).is_external() || self.identities.get(number).is_some();
        if !known(pair.subject) || !known(pair.object) {
            self.pairs.remove(pair)?;
            return Ok(true);
        }
        let Err(error) = self.judge_pair(pair) else { return Ok(true) };
        self.pairs.remove(pair)?;
        if let MapWriteError::Resting { .. } = error {
            return Ok(false);
        }
        tracing::error!(%error, "a pair is no longer judged");
        Ok(true)
    }

    /// Makes the kernel judge all flows again, and show DNS messages if the policy is about names.
    pub fn next_generation(&mut self) -> anyhow::Result<()> {
        let names = self.names_flag();
        Ok(self.config.update(|config| {
            config.generation = config.generation.wrapping_add(1).max(1);
            config.flags = config.flags & !abi::CONFIG_LEARN_NAMES | names;
        })?)
    }

    /// Judges every pair anew: after a restart, rules have other numbers.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        let pairs: Vec<Pair> = self.pairs.iter().copied().collect();
        for pair in pairs {
            if !self.judge_again(pair)? {
                patiently(|| self.judge_pair(pair))?;
            }
        }
        patiently(|| self.judge_externals())?;
        self.write_networks()?;
        self.renumber_flows()?;
        self.next_generation()
    }
}

/// What a change of rules touches.
struct Change {
    delta: Delta,
    /// The kernel may not have what was in force before, so all of it.
    everything: bool,
}

impl Change {
    fn affects(&self, pair: &Pair) -> bool {
        self.everything || self.delta.affects(IdentityId(pair.subject), IdentityId(pair.object))
    }

    /// Whether live flows of a pair are to be judged again: who stands for an address may be another network now.
    fn reaches(&self, pair: &Pair) -> bool {
        self.delta.externals_changed || self.affects(pair)
    }
}

/// Puts rules in force, judges live flows by them, and keeps a copy; whether anything changed.
///
/// # Errors
/// If the rules cannot be compiled, nothing has changed; after any other error upkeep tries again, see [`State::unsettled`].
pub(super) fn install(shared: &Shared, rules: Rules) -> anyhow::Result<bool> {
    let change = {
        let mut state = shared.state();
        let delta = state.compile(&rules)?;
        Change { delta, everything: std::mem::take(&mut state.frozen) || state.unsettled }
    };
    if change.delta.is_empty() && !change.everything {
        return Ok(false);
    }
    enforce(shared, &change)?;
    rejudge_if(shared, |pair| change.reaches(pair));
    trial::keep_policy(shared, rules.texts);
    Ok(true)
}

/// So many pairs are judged before somebody else may have the state: first contacts and the heartbeat wait for it.
const JUDGED_AT_ONCE: usize = 256;

/// Tells the kernel what changed: pairs first, then networks, then the generation that makes it judge flows again. Where room
/// for verdicts must be waited for, nobody else waits.
fn enforce(shared: &Shared, change: &Change) -> anyhow::Result<()> {
    let Change { delta, everything } = change;
    let stale: Vec<Pair> = {
        let mut state = shared.state();
        // Until all is done, the kernel has less than the agent's mind.
        state.unsettled = true;
        state.pairs.iter().filter(|pair| change.affects(pair)).copied().collect()
    };
    let mut late = Vec::new();
    for some in stale.chunks(JUDGED_AT_ONCE) {
        let mut state = shared.state();
        for pair in some {
            if !state.judge_again(*pair)? {
                late.push(*pair);
            }
        }
    }
    if *everything || delta.externals_changed {
        patiently(|| shared.state().judge_externals())?;
    }
    {
        let mut state = shared.state();
        state.write_networks()?;
        if *everything {
            state.renumber_flows()?;
        }
        state.next_generation()?;
        state.unsettled = false;
    }
    for pair in late {
        if let Err(error) = patiently(|| shared.state().ensure_pair(pair.subject, pair.object)) {
            tracing::error!(%error, "a pair is no longer judged");
        }
    }
    Ok(())
}

/// Lets rules end when their time is over, and makes good what the kernel refused before.
pub(super) fn upkeep(shared: &Shared) {
    // Whoever changes the policy at this moment makes good what the kernel does not have yet.
    let Some(_files) = policy_apply::try_no_half_written_files() else { return };
    let now = Moment::from_unix(clock::now());
    let (delta, everything, expired) = {
        let mut state = shared.state();
        let due = state.compiled.next_expiry();
        let expires = due.is_some_and(|due| due <= now) || now < state.compiled.now();
        if state.frozen || (!expires && !state.unsettled) {
            return;
        }
        let delta = state.compiled.advance(now);
        let names = delta.expired.iter().filter_map(|id| Some(state.compiled.rule(*id)?.full_name()));
        let expired: Vec<String> = names.collect();
        (delta, state.unsettled, expired)
    };
    let change = Change { delta, everything };
    if !change.delta.is_empty() || everything {
        if let Err(error) = enforce(shared, &change) {
            return tracing::error!(error = format!("{error:#}"), "the kernel does not have the whole policy");
        }
        rejudge_if(shared, |pair| change.reaches(pair));
    }
    if !expired.is_empty() {
        tracing::info!(rules = expired.join(" "), "rules expired");
    }
}

/// Reads the policy again and puts it in force; a broken one leaves the old in force and says so.
pub(super) fn reload(shared: &Shared) {
    {
        let _files = policy_apply::no_half_written_files();
        let paths = &shared.config.policy.paths;
        policy_apply::finish_interrupted(paths);
        let stamp = policy_stamp(paths);
        let former = shared.state().rules.clone();
        let rules = Rules::read(paths, &former);
        // Where somebody writes at this very moment, upkeep sees a change and comes again.
        if policy_stamp(paths) == stamp {
            put_in_force(shared, rules);
        }
    }
    // Here and not where files are applied, for nobody waits for an answer; after those it is called, too.
    sys::trim_heap();
}

/// The same, for who has seen to it that no files are half written. Most of them are as in `former`.
pub(super) fn reload_files(shared: &Shared, former: &ParsedFiles) {
    put_in_force(shared, Rules::read(&shared.config.policy.paths, former));
}

fn put_in_force(shared: &Shared, rules: anyhow::Result<Rules>) {
    let applied = rules.and_then(|rules| install(shared, rules));
    let error = match applied {
        Ok(false) => None,
        Ok(true) => {
            let (generation, rules) = {
                let state = shared.state();
                (state.config.current().generation, state.rules.len())
            };
            save_rule_names(shared);
            tracing::info!(generation, rules, "policy in force");
            None
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the policy stays as it was");
            Some(format!("{error:#}"))
        }
    };
    shared.state().policy_error = error;
}

/// Leaves the rules' names for the command line while no agent runs.
pub(super) fn save_rule_names(shared: &Shared) {
    let file = names::rules_file(&shared.config.paths.socket);
    let written = shared.names.rules_text().map_err(std::io::Error::from).and_then(|bytes| {
        let fresh = file.with_extension("rules.new");
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(&fresh, bytes)?;
        std::fs::rename(&fresh, &file)
    });
    if let Err(error) = written {
        tracing::warn!(%error, file = %file.display(), "cannot save the rules' names");
    }
}

/// Judges every live flow; those no longer allowed are cut at both ends, whether or not a packet comes.
pub(super) fn rejudge(shared: &Shared) {
    rejudge_if(shared, |_| true);
}

/// Judges the live flows of pairs that `touched` names, and of those the kernel has no verdict for.
fn rejudge_if(shared: &Shared, touched: impl Fn(&Pair) -> bool) {
    let mut doomed = Vec::new();
    let mut unjudged = HashSet::new();
    {
        let state = shared.state();
        let (mut known, mut peers) = (HashMap::new(), HashMap::new());
        let result = shared.maps.flows.for_each(|key, flow| {
            if !matches!(flow.state, ESTABLISHED | CONFIRMING | SYN_RECEIVED) {
                return;
            }
            let (local_identity, peer_identity) = state.parties(flow, &mut peers);
            let flow = Flow { local_identity, peer_identity, ..*flow };
            let (subject, object, port) = direction(key, &flow);
            let pair = Pair { subject, object };
            let judged = state.pairs.contains(&pair);
            if judged && !touched(&pair) {
                return;
            }
            if !judged {
                unjudged.insert((subject, object));
            }
            let verdict = known
                .entry((subject, object, key.proto, port))
                .or_insert_with(|| state.verdict(subject, object, key.proto, port));
            if !verdict.allow && !state.is_observed(flow.pu) {
                doomed.push((*key, flow, verdict.rule));
            }
        });
        if let Err(error) = result {
            tracing::error!(%error, "not every flow could be judged again; each is at its next packet");
        }
    }
    // Until the kernel has these it keeps the former verdicts of their flows.
    for (subject, object) in unjudged {
        if let Err(error) = patiently(|| shared.state().ensure_pair(subject, object)) {
            tracing::warn!(%error, "a pair found no room");
        }
    }
    cut_all(shared, Reason::Revoked, &doomed);
}

/// How a frame gets from this end of a flow to the other.
pub(super) fn outward(flow: &Flow) -> u32 {
    const LOOPBACK: u32 = 1;
    if flow.pu_ifindex != 0 || flow.ifindex == LOOPBACK { INJECT_INGRESS } else { INJECT_NEIGHBOUR }
}

fn direction(key: &FlowKey, flow: &Flow) -> (u32, u32, u16) {
    if flow.role == CLIENT {
        (flow.local_identity, flow.peer_identity, key.remote_port)
    } else {
        (flow.peer_identity, flow.local_identity, key.local_port)
    }
}

/// Cuts the flows a condition holds for.
pub(super) fn cut_where(shared: &Shared, reason: Reason, mut doomed: impl FnMut(&Flow) -> bool) {
    let mut found = Vec::new();
    let result = shared.maps.flows.for_each(|key, flow| {
        if doomed(flow) {
            found.push((*key, *flow, 0));
        }
    });
    if let Err(error) = result {
        tracing::error!(%error, "flows could not be cut");
    }
    cut_all(shared, reason, &found);
}

/// Tells both ends of flows that the kernel has cut: a packet's sender knows, and whoever only waits for one does not.
pub(super) fn tell_ends(shared: &Shared, cut: &[FlowKey]) {
    let there = cut.iter().filter_map(|key| Some((*key, shared.maps.flows.get(key).ok()??, 0)));
    let found: Vec<_> = there.filter(|(_, flow, _)| flow.state == CUT).collect();
    cut_all(shared, Reason::Revoked, &found);
}

/// Cuts flows, each with the rule that forbids it.
fn cut_all(shared: &Shared, reason: Reason, flows: &[(FlowKey, Flow, u32)]) {
    if flows.is_empty() {
        return;
    }
    // What comes in through an interface must bear its address, or it is taken for another host's.
    let links = match link_net::list() {
        Ok(links) => links.into_iter().map(|link| (link.index, link.address)).collect(),
        Err(error) => {
            tracing::warn!(%error, "no link addresses: silent ends of cut flows learn of it at their next packet");
            HashMap::new()
        }
    };
    for (key, flow, rule) in flows {
        cut(shared, key, flow, reason, *rule, &links);
    }
}

/// Cuts one flow: marked, so that any further packet is answered with a reset; and a reset to either end now.
fn cut(shared: &Shared, key: &FlowKey, flow: &Flow, reason: Reason, rule: u32, links: &HashMap<u32, [u8; 6]>) {
    // One that a packet has cut meanwhile is counted and told of, but its silent end has not heard yet.
    let fresh = match shared.maps.flows.cut(key, reason) {
        Ok(Some(fresh)) => fresh,
        Ok(None) => return,
        Err(error) => return tracing::error!(%error, "a flow could not be cut"),
    };
    if fresh {
        shared.log.push(&Event {
            time_ns: sys::monotonic_ns(),
            kind: EVENT_CUT,
            role: flow.role,
            path: flow.path,
            reason: reason as u16,
            key: *key,
            pu: flow.pu,
            local_identity: flow.local_identity,
            peer_identity: flow.peer_identity,
            session: flow.session,
            rule,
            rtt_us: flow.rtt_us,
            created_ns: flow.created_ns,
            bytes_out: flow.bytes_out,
            packets_out: flow.packets_out,
            bytes_in: flow.bytes_in,
            packets_in: flow.packets_in,
            ..Event::default()
        });
    }
    let to = links.get(&flow.ifindex).copied().unwrap_or_default();
    if key.proto != libc::IPPROTO_TCP as u8 {
        return cut_datagrams(shared, key, &Flow { reason: reason as u16, ..*flow }, to, fresh);
    }
    let inward = if flow.pu_ifindex != 0 { INJECT_NEIGHBOUR } else { INJECT_INGRESS };
    let outward = outward(flow);
    let count = if fresh { abi::reason_stat(reason as u16, false) } else { 0 };
    let session = shared.maps.sessions.get(&flow.session).ok().flatten();
    let why = session.map(|session| {
        let proof = build::DenyProof { key: &session.key_out, peer_index: session.peer_index };
        build::cut_reason(flow, reason, proof)
    });
    // The peer first: once this end's socket is gone, its stack answers the probe with a reset that says nothing.
    for (toward, seq, ack, flags, count, why) in [
        (Toward::Remote, flow.next_out, flow.ack_out, outward, 0, why),
        (Toward::Local, flow.ack_out, flow.next_out, inward, count, None),
    ] {
        let [reset, probe] = build::cut_flow(key, toward, to, seq, ack, why);
        for (frame, count) in [(reset, count), (probe, 0)] {
            if let Err(error) = shared.tap.inject(&frame, flow.ifindex, flags | INJECT_TRUSTED, count) {
                tracing::debug!(%error, "a reset could not be sent");
            }
        }
    }
}

/// Tells both ends of a flow of datagrams that it is cut; one by address has an end here only.
fn cut_datagrams(shared: &Shared, key: &FlowKey, flow: &Flow, to: [u8; 6], fresh: bool) {
    let mut frames = Vec::new();
    if let Ok(Some(session)) = shared.maps.sessions.get(&flow.session) {
        frames.push((datagram::cut(key, flow, &session, to, sys::monotonic_ns()), outward(flow)));
    }
    if flow.role == CLIENT {
        let inward = if flow.pu_ifindex != 0 { INJECT_NEIGHBOUR } else { INJECT_INGRESS };
        frames.extend(datagram::cut_unreachable(key, flow, to).map(|frame| (frame, inward)));
    }
    if fresh {
        shared.tap.count(abi::reason_stat(flow.reason, false));
    }
    for (frame, flags) in frames {
        if let Err(error) = shared.tap.inject(&frame, flow.ifindex, flags | INJECT_TRUSTED, 0) {
            tracing::debug!(%error, "the end of a flow could not be told");
        }
    }
}
