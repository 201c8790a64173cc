//! Connections that outlive an interval: what of them was recorded already.

use std::collections::HashMap;

use common::{
    event::{EVENT_DENY, EVENT_END, Event},
    flow::{Flow, FlowKey},
};

/// What looks at one flow.
pub type Each<'a> = &'a mut dyn FnMut(&FlowKey, &Flow);

/// What was recorded of flows that were alive at the end of an interval.
#[derive(Debug, Default)]
pub struct Live {
    told: HashMap<FlowKey, Told>,
    walk: u32,
}

/// Totals as recorded.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// The last walk that found the flow alive.
    walk: u32,
    created_ns: u64,
    bytes_out: u64,
    packets_out: u64,
    bytes_in: u64,
    packets_in: u64,
}

impl Live {
    /// An event without what was recorded of its flow before; and whether the flow is new to the records.
    pub fn rest_of(&mut self, event: &Event) -> (Event, bool) {
        if event.kind == EVENT_DENY || self.told.is_empty() {
            return (*event, true);
        }
        match self.told.remove(&event.key).filter(|told| told.created_ns == event.created_ns) {
            Some(told) => (told.subtract(event), false),
            None => (*event, true),
        }
    }

    /// Tells for every live flow, as an event, what it moved since the last walk, and whether it is new to the records.
    /// Silent ones are told of once. In place: a second copy of so many flows would be most of the agent's memory.
    ///
    /// `flows` shows each flow, and answers whether these were all.
    pub fn walk(&mut self, flows: impl FnOnce(Each<'_>) -> bool, now_ns: u64, mut tell: impl FnMut(&Event, bool)) {
        let walk = self.walk.wrapping_add(1);
        self.walk = walk;
        let all = flows(&mut |key, flow| {
            let event = snapshot(key, flow, now_ns);
            let told = self.told.insert(*key, Told::of(&event, walk));
            let told = told.filter(|told| told.created_ns == flow.created_ns);
            let delta = told.map_or(event, |told| told.subtract(&event));
            if told.is_none() || delta.packets_in + delta.packets_out > 0 {
                tell(&delta, told.is_none());
            }
        });
        // What is neither alive nor was told of as ended, ended unseen.
        if all {
            self.told.retain(|_, told| told.walk == walk);
        }
    }
}

impl Told {
    fn of(event: &Event, walk: u32) -> Self {
        let Event { created_ns, bytes_out, packets_out, bytes_in, packets_in, .. } = *event;
        Self { walk, created_ns, bytes_out, packets_out, bytes_in, packets_in }
    }

    fn subtract(&self, event: &Event) -> Event {
        Event {
            bytes_out: event.bytes_out.saturating_sub(self.bytes_out),
            packets_out: event.packets_out.saturating_sub(self.packets_out),
            bytes_in: event.bytes_in.saturating_sub(self.bytes_in),
            packets_in: event.packets_in.saturating_sub(self.packets_in),
            ..*event
        }
    }
}

/// A live flow, as if it ended now.
pub fn snapshot(key: &FlowKey, flow: &Flow, now_ns: u64) -> Event {
    Event {
        time_ns: now_ns,
        kind: EVENT_END,
        role: flow.role,
        path: flow.path,
        reason: flow.reason,
        key: *key,
        pu: flow.pu,
        local_identity: flow.local_identity,
        peer_identity: flow.peer_identity,
        session: flow.session,
        rule: flow.rule,
        observed_rule: flow.observed_rule,
        rtt_us: flow.rtt_us,
        generation: flow.generation,
        created_ns: flow.created_ns,
        bytes_out: flow.bytes_out,
        packets_out: flow.packets_out,
        bytes_in: flow.bytes_in,
        packets_in: flow.packets_in,
        ..Event::default()
    }
}
