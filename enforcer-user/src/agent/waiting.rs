//! The first SYNs of PUs whose tags are not all known yet: kept for a moment, then sent on their way or refused. Those of
//! sockets that are not even sorted out ([`unsorted`]) are kept with them.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{
    abi::{INJECT_INGRESS, PU_UNSORTED},
    drop_reason::Reason,
    event::{HELD_OUTGOING, Held},
    flow::{CLIENT, CUT, ESTABLISHED, FLAG_LOG, Flow, PATH_EXTERNAL, PATH_HELLO, SYN_SENT},
    identity::NETWORK_IDENTITY,
    wire::{HELLO, OptionBytes},
};

use super::{
    Shared,
    contact::{Refusal, internal, refuse},
    fallback, unsorted,
};
use crate::{
    handshake::{Frame, build},
    sys,
};

/// SYNs that wait for one PU, and for all of them; what is more is refused.
const PER_PU: usize = 64;
const IN_ALL: usize = 1024;

/// Held frames by PU.
#[derive(Default)]
pub(super) struct Waiting(Mutex<HashMap<u32, Vec<Held>>>);

impl Waiting {
    pub fn lock(&self) -> MutexGuard<'_, HashMap<u32, Vec<Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The PU has ended: nobody waits for its connections.
    pub fn forget(&self, pu: u32) {
        self.lock().remove(&pu);
    }
}

/// A SYN to or from a PU that is not complete, or a socket that is not sorted out.
pub(super) fn held(shared: &Shared, held: &Held, frame: &Frame<'_>) -> Result<(), Refusal> {
    if held.pu == PU_UNSORTED {
        return unsorted::held(shared, held);
    }
    {
        let mut waiting = shared.waiting.lock();
        // Looked at under this lock, so that no SYN comes to wait after all were released.
        if !shared.state().pus.get(&held.pu).is_some_and(|pu| pu.complete) {
            return keep(&mut waiting, held, PER_PU);
        }
    }
    go_on(shared, held, frame)
}

/// Lets a SYN wait with others of the same PU, up to so many.
pub(super) fn keep(waiting: &mut HashMap<u32, Vec<Held>>, held: &Held, limit: usize) -> Result<(), Refusal> {
    let in_all: usize = waiting.values().map(Vec::len).sum();
    let of_pu = waiting.entry(held.pu).or_default();
    if let Some(same) = of_pu.iter_mut().find(|same| same.key == held.key && same.kind == held.kind) {
        // TCP sent it again; the time counts from the first.
        *same = Held { time_ns: same.time_ns, ..*held };
        return Ok(());
    }
    if of_pu.len() >= limit || in_all >= IN_ALL {
        return Err(Reason::PuIncomplete.into());
    }
    of_pu.push(*held);
    Ok(())
}

/// The PU is complete: what waited goes on.
pub(super) fn release(shared: &Shared, pu: u32) {
    let waited = shared.waiting.lock().remove(&pu).unwrap_or_default();
    for held in waited {
        finish(shared, &held, go_on);
    }
}

/// Refuses what has waited for too long.
pub(super) fn expire(shared: &Shared) {
    let now = sys::monotonic_ns();
    let mut expired = Vec::new();
    shared.waiting.lock().retain(|_, waiting| {
        expired.extend(waiting.extract_if(.., |held| is_late(shared, held, now)));
        !waiting.is_empty()
    });
    for held in expired {
        finish(shared, &held, |_, _, _| Err(Reason::PuIncomplete.into()));
    }
}

/// Whether a SYN has waited for as long as one may.
pub(super) fn is_late(shared: &Shared, held: &Held, now: u64) -> bool {
    Duration::from_nanos(now.saturating_sub(held.time_ns)) >= shared.config.tags.wait
}

/// Takes a step with a SYN that has waited, and tells its sender if that leads nowhere.
pub(super) fn finish(shared: &Shared, held: &Held, step: impl Fn(&Shared, &Held, &Frame<'_>) -> Result<(), Refusal>) {
    let bytes = held.frame.get(..held.len as usize).unwrap_or_default();
    // It was parsed when it came.
    let Ok(frame) = Frame::parse(bytes) else { return };
    if let Err(refusal) = step(shared, held, &frame) {
        refuse(shared, held, &frame, &refusal);
    }
}

pub(super) fn go_on(shared: &Shared, held: &Held, frame: &Frame<'_>) -> Result<(), Refusal> {
    if held.kind != HELD_OUTGOING {
        let onward = if held.at_pu_interface == 0 { INJECT_INGRESS } else { 0 };
        return shared.tap.inject(&build::complete(frame), held.ifindex, onward, 0).map_err(internal);
    }
    if held.at_pu_interface != 0 {
        return shared.tap.inject(&build::complete(frame), held.ifindex, INJECT_INGRESS, 0).map_err(internal);
    }
    open(shared, held, frame)
}

/// A SYN that a socket sent. Handed back it would be nobody's, so what the kernel does with the SYNs of PUs is done here.
fn open(shared: &Shared, held: &Held, frame: &Frame<'_>) -> Result<(), Refusal> {
    let (flow, bytes) = {
        let state = shared.state();
        let pu = state.pus.get(&held.pu).ok_or(Refusal::from(Reason::NoCredential))?;
        let flow = Flow {
            role: CLIENT,
            pu: held.pu,
            local_handle: pu.handle,
            local_identity: pu.identity,
            generation: state.config.current().generation,
            ifindex: held.ifindex,
            local_isn: frame.seq(),
            next_out: frame.seq().wrapping_add(1),
            created_ns: held.time_ns,
            seen_ns: sys::monotonic_ns(),
            bytes_out: u64::from(held.len).saturating_sub(14),
            packets_out: 1,
            ..Flow::default()
        };
        let network = state.networks.find(&held.key.remote).map_err(internal)?;
        let verdict = (network.external != 0)
            .then(|| state.verdict(pu.identity, network.external, held.key.proto, held.key.remote_port))
            .map(|verdict| verdict.lift(state.is_observed(held.pu)));
        match verdict {
            Some(verdict) if verdict.allow => {
                let flow = Flow {
                    state: ESTABLISHED,
                    path: PATH_EXTERNAL,
                    peer_identity: network.external,
                    rule: verdict.rule,
                    observed_rule: verdict.observed_rule,
                    flags: if verdict.log { FLAG_LOG } else { 0 },
                    ..flow
                };
                (flow, build::complete(frame))
            }
            Some(verdict) if verdict.rule != 0 => {
                let denied = Refusal::from(Reason::DenyRule);
                return Err(Refusal { identity: network.external, rule: verdict.rule, ..denied });
            }
            _ if network.flags & NETWORK_IDENTITY == 0 => return Err(Reason::OutsideIdentityNetworks.into()),
            _ => {
                let credential = pu.credential.as_ref().ok_or(Refusal::from(Reason::NoCredential))?;
                let option = OptionBytes::new(HELLO, 0, pu.handle, credential.hash_index(), credential.hash_mac());
                // Without room for the option the kernel makes some when TCP sends the SYN again.
                let Some(bytes) = build::introduce(frame, &option, credential.bytes()) else { return Ok(()) };
                (Flow { state: SYN_SENT, path: PATH_HELLO, ..flow }, bytes)
            }
        }
    };
    let present = shared.maps.flows.get(&held.key).map_err(internal)?;
    if present.is_some_and(|present| {
        (present.role, present.local_isn) == (CLIENT, flow.local_isn) && present.pu == flow.pu && present.state != CUT
    }) {
        // TCP has sent it again since the kernel knows what to do with it.
        return Ok(());
    }
    shared.maps.flows.insert(&held.key, &flow).map_err(internal)?;
    if flow.path == PATH_HELLO {
        fallback::opened(shared, held, frame);
    }
    shared.tap.inject(&bytes, held.ifindex, 0, 0).map_err(internal)
}
