//! From the kernel's numbers to names and text.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::{
    Addr,
    drop_reason::Reason,
    event::{self, Event},
    flow::{self, Flow, FlowKey},
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    admin::view::{FlowView, RecordView},
    identity::Tags,
};

/// Who knows what the kernel's numbers stand for. What has gone meanwhile should still be named as long as possible.
pub trait Names: Send + Sync {
    /// Name of a PU of this host.
    fn pu(&self, pu: u32) -> String;
    /// `enforcer/pu` of a peer's identity met in a session, or the external network; empty if unknown (identity 0).
    fn peer(&self, session: u32, identity: u32) -> String;
    /// Name of a rule; never asked for 0.
    fn rule(&self, rule: u32) -> RuleName;
    /// Differs whenever a number may stand for another rule than before.
    fn rules_version(&self) -> u64 {
        0
    }
    /// What an identity is made of, for records; `None` if unknown.
    fn identity(&self, _identity: u32) -> Option<Arc<Tagged>> {
        None
    }
    /// Names by which a PU of this host looked an address up.
    fn fqdn(&self, _pu: u32, _address: IpAddr) -> BTreeSet<String> {
        BTreeSet::new()
    }
}

/// How a rule is called, and where it lives. Thousands of rules share policy and namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleName {
    /// Namespace of its policy; empty if nobody knows.
    pub namespace: Arc<str>,
    /// Its policy; empty if nobody knows.
    pub policy: Arc<str>,
    /// Its name within the policy.
    pub rule: Box<str>,
}

impl RuleName {
    /// `policy/rule`; empty for no rule.
    pub fn full(&self) -> String {
        if self.policy.is_empty() { self.rule.to_string() } else { format!("{}/{}", self.policy, self.rule) }
    }
}

/// What an identity is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tagged {
    /// Namespace.
    pub namespace: String,
    /// Tags.
    pub tags: Tags,
}

/// The relation of `CLOCK_MONOTONIC`, in which the kernel stamps, to the time of day.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: SystemTime,
    monotonic_ns: u64,
}

impl Clock {
    /// As it is now; a corrected time of day applies to old records too.
    pub fn now() -> Self {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        Self { wall: SystemTime::now(), monotonic_ns: u64::try_from(monotonic.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// `CLOCK_MONOTONIC` nanoseconds at which this was taken.
    pub fn monotonic_ns(&self) -> u64 {
        self.monotonic_ns
    }

    /// The time of day of a kernel time stamp.
    pub fn wall(&self, ns: u64) -> SystemTime {
        let time = match ns.checked_sub(self.monotonic_ns) {
            Some(ahead) => self.wall.checked_add(Duration::from_nanos(ahead)),
            None => self.wall.checked_sub(Duration::from_nanos(self.monotonic_ns - ns)),
        };
        time.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// An event as it is shown.
pub fn record_view(event: &Event, names: &dyn Names, clock: &Clock) -> RecordView {
    let refused = matches!(event.kind, event::EVENT_DENY | event::EVENT_CUT);
    // What started or ended was allowed; its reason is what observe mode lifted.
    let lifted = matches!(event.kind, event::EVENT_START | event::EVENT_END) && event.reason != 0;
    let (rule, observed_rule) = (rule_name(names, event.rule), rule_name(names, event.observed_rule));
    RecordView {
        time: time_text(clock.wall(event.time_ns)),
        event: event_name(event.kind).into(),
        role: role_name(event.role).into(),
        local: endpoint(&event.key.local, event.key.local_port),
        remote: endpoint(&event.key.remote, event.key.remote_port),
        proto: protocol_name(event.key.proto),
        pu: names.pu(event.pu),
        peer: names.peer(event.session, event.peer_identity),
        verdict: if refused { "deny" } else { "allow" }.into(),
        rule: rule.full(),
        rule_namespace: rule.namespace.to_string(),
        observed_rule: observed_rule.full(),
        observed_rule_namespace: observed_rule.namespace.to_string(),
        reason: reason_name(if lifted { Reason::Allowed as u16 } else { event.reason }),
        observed_verdict: match (refused, lifted, event.observed_rule) {
            (_, false, 0) => "",
            (true, ..) => "allow",
            (false, ..) => "deny",
        }
        .into(),
        observed_reason: if lifted { reason_name(event.reason) } else { String::new() },
        path: path_name(event.path).into(),
        peer_reason: event.peer_reason != 0,
        bytes_in: event.bytes_in,
        bytes_out: event.bytes_out,
        packets_in: event.packets_in,
        packets_out: event.packets_out,
        rtt_us: event.rtt_us,
        micros: if event.created_ns == 0 { 0 } else { event.time_ns.saturating_sub(event.created_ns) / 1000 },
    }
}

/// A live flow as it is shown.
pub fn flow_view(key: &FlowKey, flow: &Flow, names: &dyn Names, clock: &Clock) -> FlowView {
    let since = |ns: u64| clock.monotonic_ns.saturating_sub(ns) / 1000;
    let (rule, observed_rule) = (rule_name(names, flow.rule), rule_name(names, flow.observed_rule));
    FlowView {
        role: role_name(flow.role).into(),
        local: endpoint(&key.local, key.local_port),
        remote: endpoint(&key.remote, key.remote_port),
        proto: protocol_name(key.proto),
        pu: names.pu(flow.pu),
        peer: names.peer(flow.session, flow.peer_identity),
        tags: Vec::new(),
        peer_tags: Vec::new(),
        state: state_name(flow.state).into(),
        rule: rule.full(),
        rule_namespace: rule.namespace.to_string(),
        observed_rule: observed_rule.full(),
        observed_rule_namespace: observed_rule.namespace.to_string(),
        path: path_name(flow.path).into(),
        reason: reason_name(if flow.state == flow::CUT { flow.reason } else { Reason::Allowed as u16 }),
        observed_reason: if flow.state == flow::CUT || flow.reason == 0 {
            String::new()
        } else {
            reason_name(flow.reason)
        },
        generation: flow.generation,
        bytes_in: flow.bytes_in,
        bytes_out: flow.bytes_out,
        packets_in: flow.packets_in,
        packets_out: flow.packets_out,
        rtt_us: flow.rtt_us,
        age_us: since(flow.created_ns),
        idle_us: since(flow.seen_ns),
    }
}

/// The address behind four words in network byte order; mapped ones as IPv4.
pub fn ip_addr(addr: &Addr) -> IpAddr {
    let mut bytes = [0; 16];
    for (part, word) in bytes.chunks_exact_mut(4).zip(addr) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes).to_canonical()
}

/// `tcp`, `udp`, …, or the number.
pub fn protocol_name(proto: u8) -> String {
    match i32::from(proto) {
        libc::IPPROTO_TCP => "tcp".into(),
        libc::IPPROTO_UDP => "udp".into(),
        libc::IPPROTO_ICMP => "icmp".into(),
        libc::IPPROTO_ICMPV6 => "icmp6".into(),
        other => other.to_string(),
    }
}

fn endpoint(addr: &Addr, port: u16) -> String {
    SocketAddr::new(ip_addr(addr), port).to_string()
}

pub(crate) fn time_text(time: SystemTime) -> String {
    // The formatter panics before 1970 and after 9999; a broken clock shall not.
    let year_9999 = Duration::from_secs(253_402_300_799);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) if since <= year_9999 => humantime::format_rfc3339_micros(time).to_string(),
        _ => String::new(),
    }
}

/// An empty name for no rule.
pub(crate) fn rule_name(names: &dyn Names, rule: u32) -> RuleName {
    if rule == 0 { RuleName::default() } else { names.rule(rule) }
}

/// A number from a newer kernel side is shown as such.
pub(crate) fn reason_name(number: u16) -> String {
    Reason::from_number(number).map_or_else(|| format!("reason_{number}"), |reason| reason.name().into())
}

fn event_name(kind: u8) -> &'static str {
    match kind {
        event::EVENT_DENY => "deny",
        event::EVENT_START => "start",
        event::EVENT_END => "end",
        event::EVENT_CUT => "cut",
        _ => "unknown",
    }
}

fn role_name(role: u8) -> &'static str {
    if role == flow::SERVER { "server" } else { "client" }
}

pub(crate) fn path_name(path: u8) -> &'static str {
    match path {
        flow::PATH_HELLO => "hello",
        flow::PATH_RESUME => "resume",
        flow::PATH_EXTERNAL => "external",
        flow::PATH_OUT_OF_BAND => "out_of_band",
        _ => "none",
    }
}

fn state_name(state: u8) -> &'static str {
    match state {
        flow::SYN_SENT => "syn_sent",
        flow::SYN_RECEIVED => "syn_received",
        flow::CONFIRMING => "confirming",
        flow::ESTABLISHED => "established",
        flow::CUT => "cut",
        _ => "unknown",
    }
}
