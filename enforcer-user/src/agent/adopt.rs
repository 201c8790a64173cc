//! Taking over what a former agent left in the maps. What cannot be understood is removed: the peer introduces itself
//! again, which costs a round trip and no trust.

use std::collections::HashSet;

use super::{
    clock,
    names::{AGENT_DOC, AgentDoc, IdentityDoc, PuDoc, TargetDoc},
    state::{LocalPu, State, unflat},
};
use crate::{
    handshake::SessionDoc,
    identity::{AuthorityId, Tags, Verifier},
};

/// Takes over everything; returns the sessions with peers that are no longer trusted, which are forgotten, but whose flows
/// still live.
pub(super) fn adopt(state: &mut State, verifier: &Verifier) -> anyhow::Result<HashSet<u32>> {
    let doc = state.maps.pu_docs.get(AGENT_DOC)?;
    let former = doc.and_then(|bytes| serde_json::from_slice::<AgentDoc>(&bytes).ok());
    identities(state)?;
    let distrusted = sessions(state, verifier, former.as_ref())?;
    peers(state)?;
    pus(state)?;
    // Whatever bears an index, known or not, it is not given away.
    let mut last = former.map_or(0, |former| former.next_pu.saturating_sub(1));
    last = state.pus.keys().copied().fold(last, u32::max);
    let handles: HashSet<u16> = state.pus.values().map(|pu| pu.handle).collect();
    let (mut retired, mut untold) = (HashSet::new(), HashSet::new());
    state.maps.flows.for_each(|_, flow| {
        last = last.max(flow.pu);
        if flow.session != 0 && !handles.contains(&flow.local_handle) {
            retired.insert(flow.local_handle);
            untold.insert(flow.pu);
        }
    })?;
    state.retired = retired;
    // Whether those peers have heard of the tags that changed before is not known.
    untold.into_iter().for_each(|pu| state.announce(pu));
    state.next_pu = last.saturating_add(1);
    state.save_agent_doc()?;
    Ok(distrusted)
}

fn identities(state: &mut State) -> anyhow::Result<()> {
    for (number, bytes) in state.maps.identity_docs.entries()? {
        let Ok(doc) = serde_json::from_slice::<IdentityDoc>(&bytes) else {
            state.maps.identity_docs.remove(number)?;
            continue;
        };
        if let Err(error) = state.know_identity(number, &doc.namespace, &unflat(&doc.tags), &doc.name) {
            tracing::warn!(number, %error, "an identity was not taken over");
            state.maps.identity_docs.remove(number)?;
        }
    }
    Ok(())
}

fn sessions(state: &mut State, verifier: &Verifier, former: Option<&AgentDoc>) -> anyhow::Result<HashSet<u32>> {
    let own = state.config.current().self_session;
    // Peers know another enforcer by these sessions.
    let renamed = former.is_some_and(|former| former.enforcer != *state.own.id());
    let mut distrusted = HashSet::new();
    for (index, entry) in state.maps.sessions.entries()? {
        if index == own {
            continue;
        }
        let doc = state.maps.session_docs.get(index)?;
        match doc.and_then(|bytes| serde_json::from_slice::<SessionDoc>(&bytes).ok()) {
            // Noted by a version that did not note who vouched for the peer.
            Some(doc) if doc.authority == AuthorityId::default() => drop(state.maps.sessions.remove(&index)?),
            Some(doc) if renamed || !verifier.trusts(&doc.authority) => {
                tracing::warn!(peer = %doc.peer, renamed, "the peer is no longer trusted");
                distrusted.insert(index);
            }
            Some(doc) => state.sessions.adopt(index, doc, (&entry).into(), entry.peer_index),
            None => drop(state.maps.sessions.remove(&index)?),
        }
    }
    state.forget_sessions(&distrusted)?;
    Ok(distrusted)
}

fn peers(state: &mut State) -> anyhow::Result<()> {
    let own = state.config.current().self_session;
    let mut stale = Vec::new();
    for (key, peer) in state.maps.peer_pus.entries()? {
        let session_known = key.session == own || state.sessions.get(key.session).is_some();
        if !session_known || state.identities.get(peer.identity).is_none() {
            stale.push(key);
        }
    }
    for key in stale {
        state.maps.peer_pus.remove(&key)?;
    }
    Ok(())
}

fn pus(state: &mut State) -> anyhow::Result<()> {
    for (index, bytes) in state.maps.pu_docs.entries()? {
        if index == AGENT_DOC {
            continue;
        }
        let Ok(doc) = serde_json::from_slice::<PuDoc>(&bytes) else {
            state.maps.pu_docs.remove(index)?;
            state.pu_slots.remove(index)?;
            continue;
        };
        let populated = matches!(doc.target, TargetDoc::Command { .. });
        let mut pu = LocalPu {
            index,
            key: doc.key,
            id: doc.id,
            name: doc.name,
            namespace: doc.namespace,
            set: doc.tags,
            tags: Tags::new(),
            left_out: Vec::new(),
            complete: doc.complete,
            issued_ms: 0,
            target: doc.target,
            handle: doc.handle,
            identity: 0,
            credential: None,
            error: None,
            // `enforcer exec` may have ended while no agent was there to be told.
            released: false,
            populated,
            created: clock::now(),
        };
        let name = pu.name.clone();
        let signed = match state.choose(&pu.key, &pu.name, &pu.namespace, &pu.set) {
            Ok(carried) => {
                pu.tags = carried.tags;
                state.sign(&mut pu)
            }
            Err(error) => {
                pu.tags = pu.set.merged();
                Err(error)
            }
        };
        match signed {
            Ok(signed) => state.install(pu, signed)?,
            Err(error) => {
                // It shows what the former agent signed, until that ends; upkeep tries again. Dropped, it would be enforced
                // and nobody could tell, renew or end it.
                tracing::error!(pu = %name, %error, "the Trust Profile of a PU cannot be renewed");
                pu.error = Some(error.to_string());
                state.enter(&mut pu)?;
                state.pus.insert(index, pu);
            }
        }
    }
    Ok(())
}
