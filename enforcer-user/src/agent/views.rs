//! What the agent shows of itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::Ordering,
};

use common::{
    Addr,
    flow::{Flow, FlowKey},
};
use policy::{Identity, Known};

use super::{
    Shared,
    admin::newest_first,
    clock,
    names::TargetDoc,
    state::{LocalPu, flat},
};
use crate::{
    admin::view::{
        FlowView, FlowsView, IdentityView, InterfaceView, MapView, PeerPuView, PeerView, PolicyStatus, PolicyView,
        PuView, RuleView, SessionView, StatusView, TagView,
    },
    flow_log::{Clock, flow_view, ip_addr},
    identity::Tags,
    load::{Role, XdpState},
    map_write::MapWriteError,
    metrics::loss_names,
};

/// Records shown with the flows.
const RECORDS_SHOWN: usize = 256;

pub(super) fn status(shared: &Shared) -> Result<StatusView, MapWriteError> {
    let losses = shared.maps.stats.losses()?;
    let maps = fill(shared)?;
    let interfaces = interfaces(shared);
    let trial_s = shared.trial.left();
    let state = shared.state();
    Ok(StatusView {
        ready: shared.ready.load(Ordering::Acquire),
        name: state.own.id().name().into(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_s: shared.started.elapsed().as_secs(),
        interfaces,
        pus: state.pus.len() as u64,
        sessions: state.sessions.len() as u64,
        flows: maps.iter().find(|map| map.name == "FLOWS").map_or(0, |map| map.entries),
        policy: PolicyStatus {
            generation: state.config.current().generation,
            rules: state.rules.len() as u64,
            files: state.policy_files.len() as u64,
            error: state.policy_error.clone(),
        },
        observed: state.observed.namespaces().map(ToString::to_string).collect(),
        host_pu: state.host_pu().and_then(|index| Some(state.pus.get(&index)?.name.clone())),
        management: if shared.config.host.managed { shared.config.host.management.clone() } else { Vec::new() },
        trial_s,
        maps,
        facts: shared.facts.board().view(),
        hardening: shared.hardening.view(),
        losses: loss_names()
            .into_iter()
            .map(|(name, index)| (name.to_owned(), losses.get(index as usize).copied().unwrap_or(0)))
            .collect(),
    })
}

/// Every interface, enforced or not, by index.
pub(super) fn interfaces(shared: &Shared) -> Vec<InterfaceView> {
    let kernel = shared.kernel();
    let failed = |index| kernel.apart().any(|apart| apart.failed && apart.interface.index == index);
    let attached = kernel.interfaces().filter(|at| !failed(at.interface.index)).map(|attached| {
        let (xdp, xdp_reason) = match &attached.xdp {
            XdpState::Native => ("native", String::new()),
            XdpState::Generic => ("generic", String::new()),
            XdpState::Off(why) => ("off", why.clone()),
        };
        let (state, tc) = match (attached.role, attached.pu) {
            (Role::Judged { .. }, false) => ("enforced", "ingress+egress"),
            (Role::Judged { .. }, true) => ("enforced", "ingress+egress, PU's own"),
            (Role::Port, false) => ("port", "packet sockets"),
            (Role::Port, true) => ("port", "PU's own, packet sockets"),
        };
        let view = InterfaceView {
            name: attached.interface.name.clone(),
            state: state.into(),
            reason: attached.note.clone(),
            tc: tc.into(),
            xdp: xdp.into(),
            xdp_reason,
        };
        (attached.interface.index, view)
    });
    let apart = kernel.apart().map(|apart| {
        let view = InterfaceView {
            name: apart.interface.name.clone(),
            state: if apart.failed { "failed" } else { "left" }.into(),
            reason: apart.why.clone(),
            tc: "off".into(),
            xdp: "off".into(),
            xdp_reason: String::new(),
        };
        (apart.interface.index, view)
    });
    let mut views: Vec<_> = attached.chain(apart).collect();
    views.sort_by_key(|(index, _)| *index);
    views.into_iter().map(|(_, view)| view).collect()
}

/// Fill of every map that can be full.
pub(super) fn fill(shared: &Shared) -> Result<Vec<MapView>, MapWriteError> {
    let mut maps: Vec<MapView> = shared
        .maps
        .fill()?
        .into_iter()
        .map(|(name, entries, max)| MapView { name: name.into(), entries, max: max.into() })
        .collect();
    let state = shared.state();
    let usage = state.pairs.usage();
    maps.push(MapView { name: "PAIRS".into(), entries: usage.pairs, max: usage.pairs_capacity.into() });
    maps.push(MapView {
        name: "INTERVALS".into(),
        entries: usage.intervals.into(),
        max: usage.intervals_capacity.into(),
    });
    maps.push(MapView { name: "PUS".into(), entries: state.pus.len() as u64, max: state.pu_slots.capacity().into() });
    Ok(maps)
}

pub(super) fn pus(shared: &Shared) -> Vec<PuView> {
    let now = clock::now() as i64;
    let state = shared.state();
    state
        .pus
        .values()
        .map(|pu| PuView {
            id: pu.id.clone(),
            name: pu.name.clone(),
            namespace: pu.namespace.clone(),
            tags: listed(&pu.tags),
            target: match &pu.target {
                TargetDoc::Cgroup { .. } if pu.is_host() => "host".into(),
                TargetDoc::Cgroup { path, .. } => format!("cgroup {}", path.display()),
                TargetDoc::Command { path, .. } => format!("command {}", path.display()),
                TargetDoc::Interface { name, .. } => format!("interface {name}"),
            },
            index: pu.index,
            handle: pu.handle,
            identity: pu.identity,
            credential_bytes: pu.credential.as_ref().map_or(0, |signed| signed.bytes().len() as u64),
            credential_expires_s: pu.credential.as_ref().map(|signed| signed.expires() as i64 - now),
            error: pu.error.clone(),
            key: pu.key.clone(),
            incomplete: !pu.complete,
            all_tags: all_tags(pu),
            observed: state.is_observed(pu.index),
        })
        .collect()
}

pub(super) fn peers(shared: &Shared) -> Result<Vec<PeerView>, MapWriteError> {
    let mut addresses: BTreeMap<u32, Vec<Addr>> = BTreeMap::new();
    shared.maps.peer_addrs.for_each(|at, session| {
        if at.port == 0 {
            addresses.entry(*session).or_default().push(at.addr);
        }
    })?;
    let mut pus: BTreeMap<u32, Vec<PeerPuView>> = BTreeMap::new();
    let entries = shared.maps.peer_pus.entries()?;
    let state = shared.state();
    for (key, peer) in entries {
        let Some((namespace, tags)) = state.identities.get(peer.identity) else { continue };
        let name = crate::flow_log::Names::peer(&*state.names, key.session, peer.identity);
        pus.entry(key.session).or_default().push(PeerPuView {
            name: name.rsplit('/').next().unwrap_or_default().into(),
            namespace: namespace.clone(),
            tags: listed(tags),
            handle: key.handle,
            expires_s: clock::seconds_until(peer.until_ns),
        });
    }
    let mut peers: BTreeMap<String, PeerView> = BTreeMap::new();
    let now = clock::now();
    for session in state.sessions.iter().filter(|session| session.until > now) {
        let entry = shared.maps.sessions.get(&session.index)?;
        let id = session.key.peer.as_str().to_owned();
        let view = peers.entry(id.clone()).or_insert_with(|| PeerView { enforcer: id, ..PeerView::default() });
        let known = addresses.remove(&session.index).unwrap_or_default();
        view.addresses.extend(known.iter().map(|addr| ip_addr(addr).to_string()));
        view.sessions.push(SessionView {
            index: session.index,
            peer_index: entry.map_or(0, |entry| entry.peer_index),
            expires_s: session.until as i64 - clock::now() as i64,
        });
        view.pus.extend(pus.remove(&session.index).unwrap_or_default());
    }
    Ok(peers.into_values().collect())
}

pub(super) fn flows(shared: &Shared, limit: usize) -> Result<FlowsView, MapWriteError> {
    let mut all = shared.maps.flows.entries()?;
    let total = all.len() as u64;
    newest_first(&mut all);
    let clock = Clock::now();
    let state = shared.state();
    let mut peers = HashMap::new();
    let tags = |identity: u32| state.identities.get(identity).map(|(_, tags)| flat(tags)).unwrap_or_default();
    let mut view = |key: &FlowKey, flow: &Flow| {
        // As the ends are by now, not as they were when the flow was judged last.
        let (local_identity, peer_identity) = state.parties(flow, &mut peers);
        let flow = Flow { local_identity, peer_identity, ..*flow };
        let view = flow_view(key, &flow, &*shared.names, &clock);
        FlowView { tags: tags(local_identity), peer_tags: tags(peer_identity), ..view }
    };
    Ok(FlowsView {
        flows: all.iter().take(limit).map(|(key, flow)| view(key, flow)).collect(),
        total,
        records: shared.log.recent(RECORDS_SHOWN),
    })
}

pub(super) fn policy(shared: &Shared) -> PolicyView {
    let state = shared.state();
    let now = state.compiled.now();
    PolicyView {
        generation: state.config.current().generation,
        files: state.policy_files.iter().map(|file| file.display().to_string()).collect(),
        error: state.policy_error.clone(),
        rules: state
            .rules_in_force()
            .map(|rule| RuleView {
                name: rule.full_name(),
                namespace: rule.namespace().to_string(),
                tier: rule.tier().to_string(),
                expired: rule.rule().is_expired(now),
                text: rule.rule().to_string(),
                source: rule.location().to_string(),
                observe: rule.rule().observe,
            })
            .collect(),
    }
}

/// Every identity policy judges here, with the names of who has it.
pub(super) fn known(shared: &Shared) -> Vec<Known> {
    let entries = shared.maps.peer_pus.entries().unwrap_or_default();
    let state = shared.state();
    let mut names: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for pu in state.pus.values() {
        names.entry(pu.identity).or_default().insert(pu.name.clone());
    }
    for (key, peer) in entries {
        let name = crate::flow_log::Names::peer(&*state.names, key.session, peer.identity);
        // This enforcer is a peer of its own where both ends are here.
        if name.split_once('/').is_none_or(|(host, _)| host != state.own.id().name()) {
            names.entry(peer.identity).or_default().insert(name);
        }
    }
    let mut numbers = state.identities.numbers();
    numbers.sort_unstable();
    let mut known = |number: u32| {
        let (namespace, tags) = state.identities.get(number)?;
        let named: Vec<String> = names.remove(&number).unwrap_or_default().into_iter().collect();
        let name = if named.is_empty() { format!("identity {number}") } else { named.join(", ") };
        let identity = Identity::Pu { namespace: namespace.parse().ok()?, tags: tags.clone() };
        Some(Known { name, identity })
    };
    numbers.into_iter().filter_map(&mut known).collect()
}

pub(super) fn identities(shared: &Shared) -> Vec<IdentityView> {
    let view = |known: Known| match known.identity {
        Identity::Pu { namespace, tags } => {
            Some(IdentityView { name: known.name, namespace: namespace.to_string(), tags: listed(&tags) })
        }
        Identity::External { .. } => None,
    };
    known(shared).into_iter().filter_map(view).collect()
}

fn all_tags(pu: &LocalPu) -> Vec<TagView> {
    let of = |key: &String, value: &String| TagView {
        key: key.clone(),
        value: value.clone(),
        sources: pu.set.sources(key, value).iter().map(ToString::to_string).collect(),
        carried: pu.tags.get(key).is_some_and(|values| values.contains(value)),
    };
    let merged = pu.set.merged();
    merged.iter().flat_map(|(key, values)| values.iter().map(|value| of(key, value)).collect::<Vec<_>>()).collect()
}

fn listed(tags: &Tags) -> BTreeMap<String, Vec<String>> {
    tags.iter().map(|(key, values)| (key.clone(), values.iter().cloned().collect())).collect()
}
