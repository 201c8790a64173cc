//! What the kernel counts, as Prometheus metrics.

use std::io;

use common::{abi, drop_reason, wire};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// Who can read the kernel's counters and the agent's state.
pub trait KernelStats: Send + Sync + 'static {
    /// Everything, now; may block for as long as reading the maps takes.
    ///
    /// # Errors
    /// If a map cannot be read.
    fn snapshot(&self) -> io::Result<KernelSnapshot>;

    /// Programs are attached, policy is loaded, credentials are signed.
    fn is_ready(&self) -> bool;

    /// What of the agent hangs, in words; empty if it lives.
    fn stuck(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Counters summed over all CPUs, and sizes. A counter missing at the end of a vector counts as 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelSnapshot {
    /// `REASON_STATS`, by [`abi::reason_stat`].
    pub reasons: Vec<u64>,
    /// `HANDSHAKE_STATS`, by [`abi::handshake_stat`].
    pub handshakes: Vec<u64>,
    /// `LOSS_STATS`, by `abi::LOSS_*` and [`abi::HELD`].
    pub losses: Vec<u64>,
    /// Fill of every map worth watching.
    pub maps: Vec<MapFill>,
    /// Sessions.
    pub sessions: u64,
    /// Live flows.
    pub flows: u64,
    /// PUs.
    pub pus: u64,
    /// Policy generation.
    pub policy_generation: u64,
    /// Rules in force.
    pub policy_rules: u64,
    /// Namespaces in observe mode.
    pub observed: Vec<String>,
    /// Labels and plugins' tags that were left out, by source.
    pub tags_left_out: Vec<(&'static str, u64)>,
    /// Flow records, if any are written.
    pub records: Option<RecordCounts>,
    /// Interfaces in each of [`INTERFACE_STATES`].
    pub interfaces: [u64; INTERFACE_STATES.len()],
}

/// What became of flow records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Lines written.
    pub written: u64,
    /// Records lost, by cause.
    pub dropped: Vec<(&'static str, u64)>,
}

/// What an interface can be, as `enforcer status` names it.
pub const INTERFACE_STATES: [&str; 4] = ["enforced", "port", "left", "failed"];

/// How full a map is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapFill {
    /// Name of the map.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries there can be.
    pub max: u64,
}

/// Names of what can be lost, with its index in `LOSS_STATS`.
pub fn loss_names() -> [(&'static str, u32); 6] {
    [
        ("handshake_ring", abi::LOSS_HANDSHAKE_RING),
        ("telemetry_ring", abi::LOSS_TELEMETRY_RING),
        ("record_limit", abi::LOSS_RECORD_LIMIT),
        ("flow_table", abi::LOSS_FLOW_TABLE),
        ("workloads", abi::LOSS_WORKLOADS),
        ("names", abi::LOSS_NAMES),
    ]
}

pub(super) fn families(stats: &dyn KernelStats) -> Vec<MetricFamily> {
    let mut all = own_families(stats.is_ready());
    match stats.snapshot() {
        Ok(snapshot) => {
            all.push(readable(1));
            all.extend(kernel_families(&snapshot));
        }
        // The rest is still worth having.
        Err(error) => {
            tracing::warn!(%error, "cannot read the kernel's counters");
            all.push(readable(0));
        }
    }
    all
}

fn own_families(ready: bool) -> Vec<MetricFamily> {
    let mut all = vec![
        family(
            MetricType::GAUGE,
            "enforcer_build_info",
            "Version of the agent.",
            [(vec![("version", env!("CARGO_PKG_VERSION"))], 1)],
        ),
        single(MetricType::GAUGE, "enforcer_ready", "Whether the agent enforces (1) or is starting (0).", ready.into()),
    ];
    if let Some(bytes) = resident_memory() {
        all.push(single(
            MetricType::GAUGE,
            "process_resident_memory_bytes",
            "Resident memory of the agent in bytes.",
            bytes,
        ));
    }
    all
}

fn readable(value: u64) -> MetricFamily {
    single(MetricType::GAUGE, "enforcer_kernel_readable", "Whether the kernel's counters could be read.", value)
}

fn kernel_families(snapshot: &KernelSnapshot) -> Vec<MetricFamily> {
    let KernelSnapshot { reasons, handshakes, losses, maps, .. } = snapshot;
    let at = |counters: &[u64], index: u32| counters.get(index as usize).copied().unwrap_or(0);
    let directions = [("out", false), ("in", true)];
    let verdicts = drop_reason::ALL.iter().flat_map(|reason| {
        directions.map(|(direction, inbound)| {
            let labels = vec![("reason", reason.name()), ("direction", direction)];
            (labels, at(reasons, abi::reason_stat(*reason as u16, inbound)))
        })
    });
    let packets = PACKET_TYPES.iter().flat_map(|(name, number)| {
        directions.map(|(direction, inbound)| {
            (vec![("type", *name), ("direction", direction)], at(handshakes, abi::handshake_stat(*number, inbound)))
        })
    });
    let lost = loss_names().map(|(name, index)| (vec![("what", name)], at(losses, index)));
    let entries = maps.iter().map(|map| (vec![("map", map.name.as_str())], map.entries));
    let max = maps.iter().map(|map| (vec![("map", map.name.as_str())], map.max));
    let observed = snapshot.observed.iter().map(|namespace| (vec![("namespace", namespace.as_str())], 1));
    let records = snapshot.records.clone().unwrap_or_default();
    let left_out = snapshot.tags_left_out.iter().map(|(source, count)| (vec![("source", *source)], *count));
    let dropped = records.dropped.iter().map(|(cause, count)| (vec![("cause", *cause)], *count));
    let gauge = |name, help, value| single(MetricType::GAUGE, name, help, value);
    let mut all = vec![
        family(
            MetricType::COUNTER,
            "enforcer_verdicts_total",
            "Verdicts of the kernel programs, by reason and direction (out of or toward a PU).",
            verdicts,
        ),
        family(
            MetricType::COUNTER,
            "enforcer_handshake_packets_total",
            "Identity options written (out) or accepted (in) by the kernel programs, by type.",
            packets,
        ),
        family(MetricType::COUNTER, "enforcer_losses_total", "What found no room, by where it was missing.", lost),
        single(
            MetricType::COUNTER,
            "enforcer_held_frames_total",
            "Frames the kernel programs handed to the agent.",
            at(losses, abi::HELD),
        ),
        family(MetricType::GAUGE, "enforcer_map_entries", "Entries in use, by map.", entries),
        family(MetricType::GAUGE, "enforcer_map_max_entries", "Entries there can be, by map.", max),
        gauge("enforcer_sessions", "Sessions with other enforcers.", snapshot.sessions),
        gauge("enforcer_flows", "Live flows.", snapshot.flows),
        gauge("enforcer_pus", "Processing units.", snapshot.pus),
        gauge("enforcer_policy_generation", "Generation of the policy in force.", snapshot.policy_generation),
        gauge("enforcer_policy_rules", "Rules in force.", snapshot.policy_rules),
        family(MetricType::GAUGE, "enforcer_observe_mode", "Namespaces in which nothing is enforced.", observed),
        single(MetricType::COUNTER, "enforcer_records_written_total", "Flow records written.", records.written),
        family(MetricType::COUNTER, "enforcer_records_dropped_total", "Flow records lost, by cause.", dropped),
        family(
            MetricType::COUNTER,
            "enforcer_tags_left_out_total",
            "Labels and tags of plugins that are no tags or begin with `@`, by source (container, pod, plugin).",
            left_out,
        ),
        family(
            MetricType::GAUGE,
            "enforcer_interfaces",
            "Interfaces by state: enforced, port (of an enforced one), left, failed (to be enforced, but not attached).",
            INTERFACE_STATES.into_iter().zip(snapshot.interfaces).map(|(state, count)| (vec![("state", state)], count)),
        ),
    ];
    // A family without a metric is an error to the encoder.
    all.retain(|family| !family.get_metric().is_empty());
    all
}

const PACKET_TYPES: &[(&str, u8)] = &[
    ("hello", wire::HELLO),
    ("hello_reply", wire::HELLO_REPLY),
    ("resume", wire::RESUME),
    ("resume_reply", wire::RESUME_REPLY),
    ("confirm", wire::CONFIRM),
    ("retry", wire::RETRY),
    ("challenge", wire::CHALLENGE),
    ("update", wire::UPDATE),
    ("deny", wire::DENY),
];

/// From the second field of `/proc/self/statm`, in pages (proc(5)).
fn resident_memory() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

fn single(kind: MetricType, name: &str, help: &str, value: u64) -> MetricFamily {
    family(kind, name, help, [(Vec::new(), value)])
}

fn family<'a>(
    kind: MetricType,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, u64)>,
) -> MetricFamily {
    let metric = |(labels, value): (Vec<(&str, &str)>, u64)| {
        let pairs = labels.into_iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.into());
            pair.set_value(value.into());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        // Exact up to 2^53, which is what the format offers.
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value as f64);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value as f64);
            metric.set_gauge(gauge);
        }
        metric
    };
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(values.into_iter().map(metric).collect());
    family
}
