//! The kernel's counters of a host, as its enforcer's Prometheus endpoint tells them.

use std::collections::BTreeMap;
use std::ops::Sub;

use anyhow::{Context, Result};

use crate::host::Host;

/// Counters at one moment, or, after a subtraction, what happened between two.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<String, i64>);

impl Host {
    /// The counters now.
    pub fn counters(&self) -> Result<Counters> {
        let page = self.connect("127.0.0.1:9464", &["--http", "/metrics", "--timeout", "5000"])?.reply;
        let lines = page.lines().filter(|line| line.starts_with("enforcer_"));
        let parse = |line: &str| {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("not a metric: {line}"))?;
            Ok((name.to_owned(), value.parse::<f64>().with_context(|| format!("not a number: {line}"))? as i64))
        };
        let counters: BTreeMap<_, _> = lines.map(parse).collect::<Result<_>>()?;
        anyhow::ensure!(!counters.is_empty(), "the enforcer of {} shows no metrics: {page:?}", self.name());
        Ok(Counters(counters))
    }
}

impl Counters {
    /// Verdicts with this reason on the way to PUs.
    pub fn verdicts_in(&self, reason: &str) -> i64 {
        self.get(&format!("enforcer_verdicts_total{{reason=\"{reason}\",direction=\"in\"}}"))
    }

    /// Verdicts with this reason on the way out of PUs.
    pub fn verdicts_out(&self, reason: &str) -> i64 {
        self.get(&format!("enforcer_verdicts_total{{reason=\"{reason}\",direction=\"out\"}}"))
    }

    /// Identity options of this type that were accepted.
    pub fn packets_in(&self, kind: &str) -> i64 {
        self.get(&format!("enforcer_handshake_packets_total{{type=\"{kind}\",direction=\"in\"}}"))
    }

    /// Identity options of this type that were written.
    pub fn packets_out(&self, kind: &str) -> i64 {
        self.get(&format!("enforcer_handshake_packets_total{{type=\"{kind}\",direction=\"out\"}}"))
    }

    /// Live flows.
    pub fn flows(&self) -> i64 {
        self.get("enforcer_flows")
    }

    /// Every verdict but `allowed`, with its count: what a test of nothing wrong expects to be empty.
    pub fn refusals(&self) -> BTreeMap<&str, i64> {
        let refusals = self.0.iter().filter(|(name, count)| {
            name.starts_with("enforcer_verdicts_total") && !name.contains("\"allowed\"") && **count != 0
        });
        refusals.map(|(name, count)| (name.trim_start_matches("enforcer_verdicts_total"), *count)).collect()
    }

    /// A metric by its name and labels, 0 if there is none.
    pub fn get(&self, metric: &str) -> i64 {
        self.0.get(metric).copied().unwrap_or_default()
    }
}

impl Sub<&Counters> for &Counters {
    type Output = Counters;

    fn sub(self, before: &Counters) -> Counters {
        Counters(self.0.iter().map(|(name, now)| (name.clone(), now - before.get(name))).collect())
    }
}
