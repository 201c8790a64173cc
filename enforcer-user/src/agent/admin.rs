//! Answers of the agent to the admin socket and to the metrics' endpoint.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    sync::Arc,
    sync::atomic::Ordering,
};

use common::flow::FlowKey;
use tokio::sync::mpsc;

use super::{Shared, policy_apply, profiles, pus, views};
use crate::{
    admin::{AdminError, Answer, Caller, ErrorKind, FollowItem, Handler, Request, Response},
    identity::Tags,
    metrics::{INTERFACE_STATES, KernelSnapshot, KernelStats, MapFill},
    workload::{
        TagSet, TagSource,
        tags::{check_plain, left_out},
    },
};

/// The agent behind its admin socket.
pub(super) struct Admin(pub Arc<Shared>);

impl Handler for Admin {
    fn handle(&self, caller: Caller, request: Request) -> Answer<'_> {
        let shared = self.0.clone();
        Box::pin(async move {
            // Maps, signatures and cgroups: nothing for the thread that serves sockets.
            let answer = tokio::task::spawn_blocking(move || answer(&shared, caller, request)).await;
            answer.map_err(AdminError::internal)?
        })
    }

    fn follow(&self) -> mpsc::Receiver<FollowItem> {
        self.0.log.follow()
    }
}

fn answer(shared: &Shared, caller: Caller, request: Request) -> Result<Response, AdminError> {
    match request {
        Request::Status => views::status(shared).map(Response::Status).map_err(AdminError::internal),
        Request::Pus => Ok(Response::Pus(views::pus(shared))),
        Request::Peers => views::peers(shared).map(Response::Peers).map_err(AdminError::internal),
        Request::Flows { limit } => views::flows(shared, limit).map(Response::Flows).map_err(AdminError::internal),
        Request::Policy => Ok(Response::Policy(views::policy(shared))),
        Request::Identities => Ok(Response::Identities(views::identities(shared))),
        Request::PolicyApply { files, prune, dry_run } => {
            if !dry_run {
                tracing::info!(uid = caller.uid, pid = ?caller.pid, files = files.len(), "asked to apply policy files");
            }
            policy_apply::apply(shared, files, prune, dry_run).map(Response::Applied)
        }
        Request::Explain { mut subject, mut object, protocol, port } => {
            // Looking at a hundred thousand rules takes longer than a first contact should wait.
            let (numbers, rules, now) = {
                let state = shared.state();
                for end in [&mut subject, &mut object] {
                    state.name_external(end);
                }
                let numbers: Vec<_> = state.compiled.rules().map(|(id, _)| id).collect();
                let rules: Vec<_> = state.rules_in_force().cloned().collect();
                (numbers, rules, state.compiled.now())
            };
            let rules = numbers.into_iter().zip(rules.iter().map(|rule| &**rule));
            let explained = policy::explain(rules, &subject, &object, protocol, port, now);
            Ok(Response::Explained((&explained).into()))
        }
        Request::Forget { peer, keep_checked } => {
            forget(shared, peer.as_deref(), keep_checked).map(Response::Forgotten)
        }
        Request::PuAdd { target, name, namespace, tags, token, incomplete } => {
            tracing::info!(uid = caller.uid, pid = ?caller.pid, "asked for a PU");
            let mut plain = Tags::new();
            for (key, value) in tags {
                check_plain(&key, &value).map_err(|error| AdminError::new(ErrorKind::Invalid, error.to_string()))?;
                plain.entry(key).or_default().insert(value);
            }
            let mut all = TagSet::from_iter([(TagSource::User, plain)]);
            if let Some(token) = token {
                let session = shared.facts.session(token.expose(), super::clock::now());
                let session = session.map_err(|error| AdminError::new(ErrorKind::Denied, error.to_string()))?;
                all.add(TagSource::Token, session.tags);
            }
            // What it is belongs to its identity if it travels; then it waits until that is known.
            let waits = !matches!(target, crate::admin::PuTarget::Interface(_))
                && crate::workload::object::CHANGING.iter().any(|key| shared.state().carry.carries(key));
            let complete = !incomplete && !waits;
            let wanted = pus::Wanted { key: None, target, name, any_name: false, namespace, tags: all, complete };
            let (id, name, cgroup) = pus::add(shared, wanted)?;
            if let Some(pipeline) = shared.pipeline() {
                let key = format!("user:{id}");
                if waits && !incomplete { pipeline.finish(&key) } else { pipeline.examine(&key) }
            }
            Ok(Response::PuAdded { id, name, cgroup })
        }
        Request::PuTag { pu, set, unset, complete } => {
            tracing::info!(uid = caller.uid, pid = ?caller.pid, pu, "asked for other tags");
            tag(shared, &pu, set, unset, complete).map(|()| Response::Done)
        }
        Request::PuRemove { pu } => pus::remove(shared, &pu).map(|()| Response::Done),
        Request::Confirm => {
            tracing::info!(uid = caller.uid, pid = ?caller.pid, "asked to confirm");
            super::trial::confirm(shared).map(|()| Response::Done)
        }
        Request::HandOver => super::hand_over::begin(shared, caller).map(|()| Response::Done),
        Request::Observe { namespace, on } => {
            super::observe::switch(shared, caller, namespace, on).map(Response::Observed)
        }
        Request::PuRelease { pu } => pus::release(shared, &pu).map(|()| Response::Done),
        Request::Follow => Err(AdminError::new(ErrorKind::Invalid, "following is a stream, not a request")),
    }
}

/// Changes the tags that people gave a PU: `unset` takes keys away, `set` gives a key these values instead of those it had.
fn tag(
    shared: &Shared,
    which: &str,
    set: BTreeSet<(String, String)>,
    unset: BTreeSet<String>,
    complete: bool,
) -> Result<(), AdminError> {
    for (key, value) in &set {
        check_plain(key, value).map_err(|error| AdminError::new(ErrorKind::Invalid, error.to_string()))?;
    }
    let (index, mut tags) = {
        let state = shared.state();
        let index = pus::find(&state, which)?;
        let tags = state.pus.get(&index).and_then(|pu| pu.set.get(TagSource::User).cloned());
        (index, tags.unwrap_or_default())
    };
    for key in &unset {
        if tags.remove(key).is_none() {
            let message = format!("`{which}` has no tag `{key}` that anybody gave it; see `enforcer pus`");
            return Err(AdminError::new(ErrorKind::NotFound, message));
        }
    }
    for (key, _) in &set {
        tags.remove(key);
    }
    for (key, value) in set {
        tags.entry(key).or_default().insert(value);
    }
    profiles::set_tags(shared, index, TagSource::User, &tags)?;
    if complete { profiles::complete(shared, index) } else { Ok(()) }
}

/// Forgets sessions, so that the next contact is a first contact; live flows go on.
fn forget(shared: &Shared, peer: Option<&str>, keep_checked: bool) -> Result<u64, AdminError> {
    let mut state = shared.state();
    let gone: HashSet<u32> = state
        .sessions
        .iter()
        .filter(|session| peer.is_none_or(|name| session.key.peer.name() == name || session.key.peer.as_str() == name))
        .map(|session| session.index)
        .collect();
    if let (Some(name), true) = (peer, gone.is_empty()) {
        return Err(AdminError::new(ErrorKind::NotFound, format!("no session with `{name}`; see `enforcer peers`")));
    }
    state.forget_sessions(&gone).map_err(AdminError::internal)?;
    drop(state);
    if !keep_checked {
        shared.verifier().forget();
    }
    Ok(gone.len() as u64)
}

/// The kernel's counters, for the metrics.
pub(super) struct Stats(pub Arc<Shared>);

impl KernelStats for Stats {
    fn snapshot(&self) -> io::Result<KernelSnapshot> {
        let shared = &self.0;
        let failed = |error| io::Error::other(format!("{error}"));
        let stats = &shared.maps.stats;
        let fill = views::fill(shared).map_err(failed)?;
        let entries = |name: &str| fill.iter().find(|map| map.name == name).map_or(0, |map| map.entries);
        let flows = entries("FLOWS");
        let views = views::interfaces(shared);
        let interfaces =
            INTERFACE_STATES.map(|state| views.iter().filter(|interface| interface.state == state).count() as u64);
        let state = shared.state();
        Ok(KernelSnapshot {
            reasons: stats.reasons().map_err(failed)?,
            handshakes: stats.handshakes().map_err(failed)?,
            losses: stats.losses().map_err(failed)?,
            maps: fill.into_iter().map(|map| MapFill { name: map.name, entries: map.entries, max: map.max }).collect(),
            sessions: state.sessions.len() as u64,
            flows,
            pus: state.pus.len() as u64,
            policy_generation: u64::from(state.config.current().generation),
            policy_rules: state.rules.len() as u64,
            observed: state.observed.namespaces().map(ToString::to_string).collect(),
            tags_left_out: left_out().to_vec(),
            records: shared.log.recorder().map(|recorder| recorder.counters().into()),
            interfaces,
        })
    }

    fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    fn stuck(&self) -> Vec<String> {
        self.0.pulse.stuck().iter().map(ToString::to_string).collect()
    }
}

/// Whether a flow is worth showing first: newest first.
pub(super) fn newest_first(flows: &mut [(FlowKey, common::flow::Flow)]) {
    flows.sort_unstable_by_key(|(_, flow)| std::cmp::Reverse(flow.created_ns));
}
