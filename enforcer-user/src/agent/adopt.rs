//! Taking over what a former agent left in the maps. What cannot be understood is removed: the peer introduces itself
//! again, which costs a round trip and no trust.

use super::{
    clock,
    names::{IdentityDoc, PuDoc, TargetDoc},
    state::{LocalPu, State, unflat},
};
use crate::handshake::SessionDoc;

pub(super) fn adopt(state: &mut State) -> anyhow::Result<()> {
    identities(state)?;
    sessions(state)?;
    peers(state)?;
    pus(state)
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

fn sessions(state: &mut State) -> anyhow::Result<()> {
    let own = state.config.current().self_session;
    for (index, entry) in state.maps.sessions.entries()? {
        if index == own {
            continue;
        }
        let doc = state.maps.session_docs.get(index)?;
        match doc.and_then(|bytes| serde_json::from_slice::<SessionDoc>(&bytes).ok()) {
            Some(doc) => state.sessions.adopt(index, doc, (&entry).into(), entry.peer_index),
            None => drop(state.maps.sessions.remove(&index)?),
        }
    }
    Ok(())
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
        let Ok(doc) = serde_json::from_slice::<PuDoc>(&bytes) else {
            state.maps.pu_docs.remove(index)?;
            state.pu_slots.remove(index)?;
            continue;
        };
        let populated = matches!(doc.target, TargetDoc::Command { .. });
        let pu = LocalPu {
            index,
            id: doc.id,
            name: doc.name,
            namespace: doc.namespace,
            tags: unflat(&doc.tags),
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
        match state.sign(&pu) {
            Ok(signed) => state.install(pu, signed)?,
            Err(error) => tracing::error!(pu = %name, %error, "a PU was not taken over"),
        }
        state.next_pu = state.next_pu.max(index + 1);
    }
    Ok(())
}
