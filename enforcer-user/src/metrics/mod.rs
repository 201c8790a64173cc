//! Prometheus metrics.
//!
//! The agent counts what it does itself as it does it; what the kernel counts is read when somebody asks.

mod http;
mod kernel;
mod rules;

use std::{sync::Arc, time::Duration};

use common::drop_reason::Reason;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry, TextEncoder};

pub use http::{MetricsError, MetricsServer};
pub use kernel::{INTERFACE_STATES, KernelSnapshot, KernelStats, MapFill, RecordCounts, loss_names};
pub use rules::RuleVerdicts;

/// Every metric of the agent.
pub struct Metrics {
    registry: Registry,
    handshakes: IntCounterVec,
    first_contact: Histogram,
    names: IntCounterVec,
    stats: Arc<dyn KernelStats>,
}

/// What a held frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeKind {
    /// A SYN with a credential.
    Hello,
    /// A SYN-ACK with a credential.
    HelloReply,
    /// A pair of identities met for the first time.
    Judge,
    /// Tags of a PU changed while its connections live.
    Update,
    /// A SYN of a PU whose tags were not all known.
    Incomplete,
}

/// What came of a DNS message of a PU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameEvent {
    /// A question was noted.
    Asked,
    /// The addresses of a name were learned.
    Learned,
    /// An answer about a name no rule means.
    Unmeant,
    /// An answer the PU did not ask for.
    Unasked,
    /// An answer that cannot be read.
    Unreadable,
    /// An answer by a resolver that is not believed.
    Distrusted,
    /// An address inside an identity network.
    Inside,
    /// An address there was no room for.
    Full,
}

impl NameEvent {
    const ALL: [Self; 8] = [
        Self::Asked,
        Self::Learned,
        Self::Unmeant,
        Self::Unasked,
        Self::Unreadable,
        Self::Distrusted,
        Self::Inside,
        Self::Full,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Learned => "learned",
            Self::Unmeant => "unmeant",
            Self::Unasked => "unasked",
            Self::Unreadable => "unreadable",
            Self::Distrusted => "distrusted",
            Self::Inside => "inside",
            Self::Full => "full",
        }
    }
}

impl HandshakeKind {
    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::HelloReply => "hello_reply",
            Self::Judge => "judge",
            Self::Update => "update",
            Self::Incomplete => "incomplete",
        }
    }
}

impl Metrics {
    /// # Errors
    /// Never in practice: the metrics' names are constant and differ.
    pub fn new(stats: Arc<dyn KernelStats>) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let handshakes = IntCounterVec::new(
            Opts::new(
                "enforcer_handshakes_total",
                "Frames the agent decided, by kind and result: allowed, or the reason for refusal.",
            ),
            &["kind", "result"],
        )?;
        let first_contact = Histogram::with_opts(
            HistogramOpts::new(
                "enforcer_first_contact_seconds",
                "Time from the kernel handing a first-contact packet to the agent until its re-injection or refusal.",
            )
            .buckets(FIRST_CONTACT_BUCKETS.to_vec()),
        )?;
        let names = IntCounterVec::new(
            Opts::new("enforcer_names_total", "DNS messages of PUs, by what came of them."),
            &["what"],
        )?;
        registry.register(Box::new(names.clone()))?;
        registry.register(Box::new(handshakes.clone()))?;
        registry.register(Box::new(first_contact.clone()))?;
        let metrics = Self { registry, handshakes, first_contact, names, stats };
        // So that a rate can be computed from the first event on.
        for kind in [HandshakeKind::Hello, HandshakeKind::HelloReply, HandshakeKind::Judge] {
            metrics.handshakes.with_label_values(&[kind.name(), Reason::Allowed.name()]).inc_by(0);
        }
        for event in NameEvent::ALL {
            metrics.names.with_label_values(&[event.name()]).inc_by(0);
        }
        Ok(metrics)
    }

    /// Shows what another part of the agent counts.
    ///
    /// # Errors
    /// If a metric of this name is there already.
    pub fn register(&self, collector: Box<dyn prometheus::core::Collector>) -> prometheus::Result<()> {
        self.registry.register(collector)
    }

    /// Something came of a DNS message.
    pub fn name(&self, event: NameEvent) {
        self.names.with_label_values(&[event.name()]).inc();
    }

    /// The agent decided a held frame.
    pub fn handshake(&self, kind: HandshakeKind, result: Reason) {
        self.handshakes.with_label_values(&[kind.name(), result.name()]).inc();
    }

    /// A first contact took that long.
    pub fn first_contact(&self, took: Duration) {
        self.first_contact.observe(took.as_secs_f64());
    }

    /// Whether the agent is ready to enforce.
    pub fn is_ready(&self) -> bool {
        self.stats.is_ready()
    }

    /// What of the agent hangs, in words; empty if it lives.
    pub fn stuck(&self) -> Vec<String> {
        self.stats.stuck()
    }

    /// Everything in Prometheus's text format, version 0.0.4.
    ///
    /// # Errors
    /// If a metric cannot be encoded.
    pub fn render(&self) -> prometheus::Result<String> {
        let mut families = self.registry.gather();
        families.extend(kernel::families(&*self.stats));
        TextEncoder::new().encode_to_string(&families)
    }
}

/// Seconds; two ends' cryptography takes some hundred microseconds.
const FIRST_CONTACT_BUCKETS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_15, 0.000_2, 0.000_3, 0.000_4, 0.000_6, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0];

#[cfg(test)]
mod tests;
