//! What is added up in one record.

use common::{
    Addr,
    drop_reason::Reason,
    event::{EVENT_CUT, EVENT_DENY, Event},
    flow::SERVER,
};
use policy::{
    Action, FlowRecord, IdentityId, Namespace, ObservedBy, ObservedVerdict, RECORD_VERSION, RecordEnd, RecordProto,
    Role,
};

use crate::flow_log::{Clock, Names, ip_addr, path_name, reason_name, rule_name, time_text};

/// Events with equal keys become one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    role: u8,
    path: u8,
    proto: u8,
    refused: bool,
    peer_reason: bool,
    reason: u16,
    port: u16,
    local_identity: u32,
    peer_identity: u32,
    rule: u32,
    observed_rule: u32,
    /// Of a peer without identity.
    address: Addr,
}

impl Key {
    /// The key of an event.
    pub fn of(event: &Event) -> Self {
        Self {
            role: event.role,
            path: event.path,
            proto: event.key.proto,
            refused: is_refusal(event),
            peer_reason: event.peer_reason != 0,
            reason: event.reason,
            port: service_port(event),
            local_identity: event.local_identity,
            peer_identity: event.peer_identity,
            rule: event.rule,
            observed_rule: event.observed_rule,
            address: if is_pu(event.peer_identity) { [0; 4] } else { event.key.remote },
        }
    }

    /// Whether the verdict is to allow.
    pub fn is_allowed(&self) -> bool {
        !self.refused
    }
}

/// A record in the making.
#[derive(Debug)]
pub struct Group {
    record: FlowRecord,
    first_ns: u64,
    last_ns: u64,
    rtt_sum: u64,
    rtt_count: u64,
}

impl Group {
    /// A record without anything in it, for events like this one. `single`: it will be the only one.
    pub fn new(event: &Event, names: &dyn Names, host: &str, single: bool) -> Self {
        let local = RecordEnd {
            pu: format!("{host}/{}", names.pu(event.pu)),
            address: single.then(|| ip_addr(&event.key.local)),
            ..described(names, event.local_identity)
        };
        let remote = if is_pu(event.peer_identity) {
            RecordEnd {
                pu: names.peer(event.session, event.peer_identity),
                address: single.then(|| ip_addr(&event.key.remote)),
                ..described(names, event.peer_identity)
            }
        } else {
            let address = ip_addr(&event.key.remote);
            let network = if event.peer_identity == 0 { String::new() } else { names.peer(0, event.peer_identity) };
            RecordEnd { address: Some(address), fqdn: names.fqdn(event.pu, address), network, ..RecordEnd::default() }
        };
        let server = event.role == SERVER;
        let (from, to) = if server { (remote, local) } else { (local, remote) };
        let refused = is_refusal(event);
        let rule = rule_name(names, event.rule);
        let from_port = if server { event.key.remote_port } else { event.key.local_port };
        Self {
            record: FlowRecord {
                v: RECORD_VERSION,
                time: String::new(),
                since: String::new(),
                enforcer: host.to_owned(),
                role: if server { Role::Server } else { Role::Client },
                from,
                to,
                from_port: single.then_some(from_port),
                proto: RecordProto(event.key.proto),
                port: service_port(event),
                verdict: if refused { Action::Deny } else { Action::Allow },
                rule: rule.full(),
                rule_namespace: rule.namespace.to_string(),
                reason: reason_name(if refused { event.reason } else { Reason::Allowed as u16 }),
                peer_reason: event.peer_reason != 0,
                observed: observed(event, names, refused),
                path: path_name(event.path).into(),
                flows: 0,
                bytes_sent: 0,
                bytes_received: 0,
                packets_sent: 0,
                packets_received: 0,
                rtt_us: None,
                rtt_max_us: None,
            },
            first_ns: u64::MAX,
            last_ns: 0,
            rtt_sum: 0,
            rtt_count: 0,
        }
    }

    /// Adds an event. `fresh`: of a connection that was not counted before.
    pub fn add(&mut self, event: &Event, fresh: bool) {
        let record = &mut self.record;
        let (sent, received) = if event.role == SERVER {
            ((event.bytes_in, event.packets_in), (event.bytes_out, event.packets_out))
        } else {
            ((event.bytes_out, event.packets_out), (event.bytes_in, event.packets_in))
        };
        record.flows += u64::from(fresh);
        record.bytes_sent = record.bytes_sent.saturating_add(sent.0);
        record.packets_sent = record.packets_sent.saturating_add(sent.1);
        record.bytes_received = record.bytes_received.saturating_add(received.0);
        record.packets_received = record.packets_received.saturating_add(received.1);
        let begun = if fresh && event.created_ns != 0 { event.created_ns } else { event.time_ns };
        self.first_ns = self.first_ns.min(begun);
        self.last_ns = self.last_ns.max(event.time_ns);
        if event.rtt_us != 0 {
            self.rtt_sum += u64::from(event.rtt_us);
            self.rtt_count += 1;
            record.rtt_max_us = Some(record.rtt_max_us.unwrap_or(0).max(event.rtt_us));
        }
    }

    /// The record as it is written.
    pub fn into_record(self, clock: &Clock) -> FlowRecord {
        let mut record = self.record;
        record.time = time_text(clock.wall(self.last_ns));
        record.since = time_text(clock.wall(self.first_ns));
        record.rtt_us = self.rtt_sum.checked_div(self.rtt_count).and_then(|mean| u32::try_from(mean).ok());
        record
    }
}

fn is_refusal(event: &Event) -> bool {
    matches!(event.kind, EVENT_DENY | EVENT_CUT)
}

/// Whether an identity is one that was proven.
fn is_pu(identity: u32) -> bool {
    identity != 0 && !IdentityId(identity).is_external()
}

fn service_port(event: &Event) -> u16 {
    if event.role == SERVER { event.key.local_port } else { event.key.remote_port }
}

fn described(names: &dyn Names, identity: u32) -> RecordEnd {
    match names.identity(identity) {
        Some(known) => RecordEnd {
            // What an identity was made of was parsed once; a namespace it lacks is none we could record.
            namespace: Some(known.namespace.parse().unwrap_or_else(|_| Namespace::root())),
            tags: known.tags.clone(),
            ..RecordEnd::default()
        },
        None => RecordEnd::default(),
    }
}

fn observed(event: &Event, names: &dyn Names, refused: bool) -> Option<ObservedVerdict> {
    let (by, verdict, reason) = match (refused, event.reason, event.observed_rule) {
        (true, _, 0) | (false, 0, 0) => return None,
        (true, ..) => (ObservedBy::Rule, Action::Allow, Reason::Allowed as u16),
        (false, 0, _) => (ObservedBy::Rule, Action::Deny, Reason::DenyRule as u16),
        (false, lifted, _) => (ObservedBy::Mode, Action::Deny, lifted),
    };
    let rule = rule_name(names, event.observed_rule);
    let (rule, rule_namespace) = (rule.full(), rule.namespace.to_string());
    Some(ObservedVerdict { by, verdict, rule, rule_namespace, reason: reason_name(reason) })
}
