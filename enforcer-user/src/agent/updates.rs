//! Tags that changed while connections live: judging those again, and telling the enforcers at their other ends.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use common::{
    event::Held,
    flow::{CONFIRMING, ESTABLISHED, FLAG_CLOSED, Flow, FlowKey},
    identity::SessionPu,
};

use super::{
    Shared, clock,
    contact::{Refusal, internal},
    policy,
    state::State,
};
use crate::{
    handshake::{
        Frame,
        update::{self, Update},
    },
    identity::PreparedCredential,
    link_net,
};

/// What the peers of a PU are being told.
pub(super) struct Announcing {
    credential: PreparedCredential,
    since: Instant,
    next: Instant,
    attempts: u32,
    /// Session and former handle: whom the news concern, and who has said that they were heard.
    concerned: HashSet<(u32, u16)>,
    heard: HashSet<(u32, u16)>,
}

impl Announcing {
    /// Whether peers shall have a moment to hear of it before connections are cut here, so that both ends know why.
    fn has_head_start(&self, now: Instant) -> bool {
        now.duration_since(self.since) < HEAD_START && !self.concerned.is_subset(&self.heard)
    }
}

const HEAD_START: Duration = Duration::from_millis(300);

/// Between two attempts while the news are fresh, and later.
const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(5);
/// How long they are fresh. As long, connections are looked for that were not established yet when the tags changed.
const FRESH: Duration = Duration::from_secs(3);
/// After this time a peer that does not answer is given up.
const PATIENCE: Duration = Duration::from_secs(60);

impl State {
    /// Tells the peers of a PU's live connections of its credential.
    pub fn announce(&mut self, pu: u32) {
        let Some(credential) = self.pus.get(&pu).and_then(|pu| pu.credential.clone()) else { return };
        let now = Instant::now();
        let announcing = Announcing {
            credential,
            since: now,
            next: now,
            attempts: 0,
            concerned: HashSet::new(),
            heard: HashSet::new(),
        };
        self.announcing.insert(pu, announcing);
    }
}

/// Does what changed tags ask for: flows are judged again, and peers are told.
pub(super) fn tick(shared: &Shared) {
    tell(shared);
    let now = Instant::now();
    let moved = {
        let mut state = shared.state();
        let early = state.announcing.values().any(|announcing| announcing.has_head_start(now));
        !early && std::mem::take(&mut state.moved)
    };
    if moved {
        policy::rejudge(shared);
        if let Err(error) = shared.state().next_generation() {
            tracing::error!(%error, "live flows keep their former identities in the kernel");
        }
    }
}

/// Sends the news where they have not been heard of yet.
fn tell(shared: &Shared) {
    let now = Instant::now();
    let due: HashMap<u32, (u16, u32)> = {
        let state = shared.state();
        let due = state.announcing.iter().filter(|(_, announcing)| announcing.next <= now);
        due.filter_map(|(pu, announcing)| Some((*pu, (state.pus.get(pu)?.handle, announcing.attempts)))).collect()
    };
    if due.is_empty() {
        return;
    }
    // One connection stands for all that the peer knows under the same handle.
    let mut untold: HashMap<(u32, u32, u16), (FlowKey, Flow)> = HashMap::new();
    let walked = shared.maps.flows.for_each(|key, flow| {
        let Some(&(handle, attempt)) = due.get(&flow.pu) else { return };
        // A client whose server has not said anything yet is CONFIRMING, for hours if need be.
        let over = flow.flags & FLAG_CLOSED != 0 || flow.is_over();
        let lives = matches!(flow.state, ESTABLISHED | CONFIRMING) && !over;
        // Datagrams say who they are again by themselves.
        if key.proto != libc::IPPROTO_TCP as u8 {
            return;
        }
        if lives && flow.session != 0 && flow.local_handle != handle {
            let chosen = untold.entry((flow.pu, flow.session, flow.local_handle)).or_insert((*key, *flow));
            if fitness(key, flow, attempt) > fitness(&chosen.0, &chosen.1, attempt) {
                *chosen = (*key, *flow);
            }
        }
    });
    if let Err(error) = walked {
        tracing::error!(%error, "not every peer is told of changed tags; tried again");
    }
    let links = links();
    let mut frames = Vec::new();
    {
        let mut guard = shared.state();
        let state = &mut *guard;
        untold.retain(|(_, session, _), _| !state.is_own_session(*session));
        for pu in due.keys() {
            let Some(announcing) = state.announcing.get_mut(pu) else { continue };
            let of_pu = untold.iter().filter(|((of, ..), _)| of == pu);
            announcing.concerned.extend(of_pu.clone().map(|((_, session, handle), _)| (*session, *handle)));
            let unheard: Vec<_> =
                of_pu.filter(|((_, session, handle), _)| !announcing.heard.contains(&(*session, *handle))).collect();
            let age = now.duration_since(announcing.since);
            if age > FRESH && (unheard.is_empty() || age > PATIENCE) {
                if !unheard.is_empty() {
                    tracing::warn!(pu, peers = unheard.len(), "peers did not say that they heard of changed tags");
                }
                state.announcing.remove(pu);
                continue;
            }
            announcing.attempts += 1;
            announcing.next = now + if age > FRESH { LATER } else { SOON };
            for (_, (key, flow)) in unheard {
                let Ok(Some(session)) = shared.maps.sessions.get(&flow.session) else { continue };
                let (bytes, hash) = (announcing.credential.bytes(), announcing.credential.hash_mac());
                let to = links.get(&flow.ifindex).copied().unwrap_or_default();
                frames.push((update::news(key, flow, &session, bytes, hash, to), *flow));
            }
        }
    }
    for (frame, flow) in frames {
        send(shared, &frame, &flow);
    }
}

/// Which connection is the best to tell a peer on: one that lives at the other end too. The latest heard of is the likeliest,
/// but nothing is certain, so every other attempt is on any of them.
fn fitness(key: &FlowKey, flow: &Flow, attempt: u32) -> (bool, u64) {
    let any = || (u64::from(key.local_port) ^ u64::from(attempt)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (flow.state == ESTABLISHED, if attempt.is_multiple_of(2) { flow.seen_ns } else { any() })
}

/// Toward the peer of a flow, past this enforcer's own programs.
fn send(shared: &Shared, frame: &[u8], flow: &Flow) {
    let flags = policy::outward(flow) | common::abi::INJECT_TRUSTED;
    if let Err(error) = shared.tap.inject(frame, flow.ifindex, flags, 0) {
        tracing::debug!(%error, "an UPDATE could not be sent");
    }
}

fn links() -> HashMap<u32, [u8; 6]> {
    let links = link_net::list().unwrap_or_default();
    links.into_iter().map(|link| (link.index, link.address)).collect()
}

/// An UPDATE that the kernel holds: news of a peer's PU, or word that a peer has heard of ours.
pub(super) fn held(shared: &Shared, held: &Held, frame: &Frame<'_>) -> Result<(), Refusal> {
    let refused = |error: crate::handshake::HandshakeError| {
        tracing::debug!(%error, "an UPDATE was refused");
        Refusal::from(error.reason())
    };
    let void = || Refusal::from(common::drop_reason::Reason::UpdateVoid);
    let flow = shared.maps.flows.get(&held.key).map_err(internal)?;
    let flow = flow.filter(|flow| flow.session != 0 && matches!(flow.state, ESTABLISHED | CONFIRMING));
    // The connection ended while this was on its way.
    let Some(flow) = flow else { return Ok(()) };
    let session = shared.maps.sessions.get(&flow.session).map_err(internal)?;
    let session = session.ok_or(Refusal::from(common::drop_reason::Reason::SessionExpired))?;
    let told = shared.state().announcing.get(&flow.pu).map(|announcing| announcing.credential.hash_mac());
    match update::verify(frame, &flow, &session, told).map_err(refused)? {
        Update::Heard => {
            heard(shared, &flow);
            return Ok(());
        }
        Update::News => {}
    }
    let now = clock::now();
    let peer = shared.verifier().verify(frame.payload(), now).map_err(|error| refused(error.into()))?;
    let profile = peer.profile();
    {
        let mut guard = shared.state();
        let state = &mut *guard;
        let known_as = state.sessions.get(flow.session).map(|session| session.key.peer.clone());
        if known_as.as_ref() != Some(peer.enforcer()) {
            return Err(void());
        }
        let former = SessionPu { session: flow.session, handle: flow.peer_handle, pad: 0 };
        let known = shared.maps.peer_pus.get(&former).map_err(internal)?;
        // What is older was overtaken; what is known already is only to be answered once more.
        let issued = profile.issued_at_ms();
        if known.is_some_and(|known| known.issued_ms > issued) {
            tracing::debug!(pu = %profile.pu, "an UPDATE is older than what is known");
            return Err(void());
        }
        if known.is_none_or(|known| known.issued_ms < issued) {
            let label = format!("{}/{}", peer.enforcer().name(), profile.pu);
            let identity = state.intern(&profile.namespace, &profile.tags, &label).map_err(internal)?;
            let before = known.and_then(|known| state.identities.get(known.identity));
            tracing::info!(
                peer = %label,
                tags = super::state::flat(&profile.tags).join(" "),
                before = before.map(|(_, tags)| super::state::flat(tags).join(" ")).unwrap_or_default(),
                "the tags of a peer's PU changed"
            );
            state.names.set_peer(flow.session, identity, label);
            let next = SessionPu { session: flow.session, handle: profile.handle, pad: 0 };
            for handle in [next, former] {
                state.know_peer(handle, identity, peer.valid_until(), issued).map_err(internal)?;
            }
            state.moved = true;
        }
    }
    let hash = crate::identity::credential::hash_mac_of(frame.payload());
    let to = links().get(&flow.ifindex).copied().unwrap_or_default();
    send(shared, &update::heard(&held.key, &flow, &session, hash, to), &flow);
    Ok(())
}

/// A peer has the PU's present credential: it needs no introduction any more.
fn heard(shared: &Shared, flow: &Flow) {
    let mut guard = shared.state();
    let state = &mut *guard;
    let Some(announcing) = state.announcing.get_mut(&flow.pu) else { return };
    announcing.heard.insert((flow.session, flow.local_handle));
    let until = clock::monotonic(announcing.credential.expires());
    let Some(pu) = state.pus.get(&flow.pu) else { return };
    let known = SessionPu { session: flow.session, handle: pu.handle, pad: 0 };
    if let Err(error) = shared.maps.known_to_peer.insert(&known, &until) {
        tracing::debug!(%error, "the next connection will be a first contact");
    }
}
