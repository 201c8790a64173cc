//! The verdict on a pair of identities: one hash look-up and a binary search.

use common::{
    abi::INTERVAL_SEARCH_STEPS,
    drop_reason::Reason,
    event::EVENT_CUT,
    flow::{CLIENT, CUT, Flow, FlowKey},
    identity::SessionPu,
    verdict::{Pair, VERDICT_ALLOW, VERDICT_LOG, position},
};

use crate::{
    attribute::{is_observed, pu_info},
    emit::{count_reason, flow_event},
    maps::{INTERVALS, PAIRS, PEER_PUS},
};

/// What the policy says.
#[derive(Clone, Copy)]
pub struct Verdict {
    pub allow: bool,
    pub log: bool,
    /// Rule that decided, 0 if none did.
    pub rule: u32,
    pub observed_rule: u32,
    /// Number of the reason for which it would be refused outside observe mode, or 0.
    pub lifted: u16,
}

impl Verdict {
    /// The default.
    pub const NONE: Self = Self { allow: false, log: false, rule: 0, observed_rule: 0, lifted: 0 };

    /// In observe mode a refusal becomes a note.
    #[inline(always)]
    pub fn lift(self, observed: bool, reason: Reason) -> Self {
        if self.allow || !observed {
            return self;
        }
        Self { allow: true, log: self.log, rule: 0, observed_rule: self.rule, lifted: reason as u16 }
    }

    /// The reason of a refusal.
    #[inline(always)]
    pub fn reason(&self) -> Reason {
        if self.rule == 0 { Reason::NoRule } else { Reason::DenyRule }
    }
}

/// The verdict on `subject` opening to `object` at `position` (protocol and port); `None` if the pair was never judged.
#[inline(always)]
pub fn judge(subject: u32, object: u32, position: u32) -> Option<Verdict> {
    let run = PAIRS.get_ptr(Pair { subject, object })?;
    // SAFETY: the value is eight bytes on an eight-byte boundary. Read at once, because an entry that is replaced may be
    // used for another pair at once: half of one run and half of another would be a verdict nobody made.
    let run = unsafe { run.cast::<u64>().read_volatile() };
    let mut low = run as u32;
    let mut high = low.wrapping_add((run >> 32) as u32);
    for _ in 0..INTERVAL_SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = low + ((high - low) >> 1);
        let Some(interval) = INTERVALS.get(middle) else { break };
        if position < interval.low {
            high = middle;
        } else if position > interval.high {
            low = middle + 1;
        } else {
            return Some(Verdict {
                allow: interval.flags & VERDICT_ALLOW != 0,
                log: interval.flags & VERDICT_LOG != 0,
                rule: interval.rule,
                observed_rule: interval.observed_rule,
                lifted: 0,
            });
        }
    }
    Some(Verdict::NONE)
}

/// What the ends of a flow are by now: tags change while connections live. A PU that is gone stays what it was; so does a
/// peer's that was forgotten.
#[inline(always)]
fn refresh(flow: &mut Flow) {
    if let Some(info) = pu_info(flow.pu) {
        flow.local_identity = info.identity;
    }
    if flow.session != 0 {
        let peer = SessionPu { session: flow.session, handle: flow.peer_handle, pad: 0 };
        // SAFETY: the agent replaces entries whole; the identity is one word.
        if let Some(peer) = unsafe { PEER_PUS.get(peer) } {
            flow.peer_identity = peer.identity;
        }
    }
}

/// Judges a live flow under the present policy `generation`; cuts it if it is no longer allowed. A pair nobody has
/// judged under this policy keeps its verdict until the agent, which judges all pairs in use, has come by.
#[inline(never)]
pub fn rejudge(key: &FlowKey, flow: &mut Flow, generation: u32) -> bool {
    refresh(flow);
    let (subject, object, port) = if flow.role == CLIENT {
        (flow.local_identity, flow.peer_identity, key.remote_port)
    } else {
        (flow.peer_identity, flow.local_identity, key.local_port)
    };
    let observed = is_observed(flow.pu);
    let verdict = match judge(subject, object, position(key.proto, port)) {
        Some(verdict) => verdict.lift(observed, verdict.reason()),
        None if flow.reason == 0 => return true,
        // Observe mode alone let it in, and there is no pair to judge by.
        None => Verdict { allow: observed, lifted: flow.reason, observed_rule: flow.observed_rule, ..Verdict::NONE },
    };
    flow.generation = generation;
    flow.observed_rule = verdict.observed_rule;
    if verdict.allow {
        flow.rule = verdict.rule;
        flow.reason = verdict.lifted;
        return true;
    }
    flow.rule = verdict.rule;
    flow.state = CUT;
    flow.reason = Reason::Revoked as u16;
    count_reason(Reason::Revoked, false);
    flow_event(EVENT_CUT, key, flow, Reason::Revoked as u16, flow.rtt_us);
    false
}
