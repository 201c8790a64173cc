//! The rows: measured values, their median and range, and the target where there is one.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::step;

/// What each row is held against.
const TARGETS: &[(&str, Target)] = &[
    ("crr_resume", Target::AtLeast(0.92)),
    ("rr", Target::AtLeast(0.97)),
    ("rr_udp", Target::AtLeast(0.95)),
    ("stream_1", Target::AtLeast(0.97)),
    ("stream_4", Target::AtLeast(0.97)),
    ("crr_rules_1000_of_10", Target::AtLeast(0.97)),
    ("crr_rules_100000_of_10", Target::AtLeast(0.97)),
    ("first_contact_added_us", Target::AtMost(600.0)),
    ("resume_added_us", Target::AtMost(5.0)),
    ("xdp_segment_ns", Target::AtMost(40.0)),
    ("xdp_forged_resume_ns", Target::AtMost(150.0)),
    ("tc_established_ns", Target::AtMost(200.0)),
    ("compile_full_ms", Target::AtMost(3000.0)),
    ("compile_delta_ms", Target::AtMost(20.0)),
    ("explain_ms", Target::AtMost(500.0)),
    ("agent_rss_mib", Target::AtMost(80.0)),
    ("tag_change_ms", Target::AtMost(2000.0)),
    ("tag_change_ms_p99", Target::AtMost(2000.0)),
    ("upgrade_p99_ms", Target::AtMost(5.0)),
    ("suggest_1m_s", Target::AtMost(10.0)),
    ("suggest_1m_mib", Target::AtMost(500.0)),
    ("flood_syn", Target::AtLeast(0.8)),
    ("flood_syn_option", Target::AtLeast(0.8)),
    ("flood_replayed_resume", Target::AtLeast(0.8)),
    ("flood_forged_resume", Target::AtLeast(0.8)),
    ("flood_unknown_resume", Target::AtLeast(0.8)),
    ("flood_hello", Target::AtLeast(0.8)),
    ("flood_hello_spoofed", Target::AtLeast(0.8)),
    ("flood_hello_signature", Target::AtLeast(0.8)),
    ("flood_confirm", Target::AtLeast(0.8)),
    ("flood_datagram_hello", Target::AtLeast(0.8)),
    ("flood_datagram_hello_spoofed", Target::AtLeast(0.8)),
    ("flood_fragments", Target::AtLeast(0.8)),
];

/// Rows that every whole run must have.
const PROMISED: &[&str] = &[
    "crr_resume",
    "rr",
    "rr_udp",
    "stream_1",
    "stream_4",
    "first_contact_added_us",
    "resume_added_us",
    "contacts_per_core",
    "contacts_per_core_checked",
    "xdp_segment_ns",
    "xdp_forged_resume_ns",
    "tc_established_ns",
    "crr_rules_10",
    "crr_rules_1000",
    "crr_rules_100000",
    "compile_full_ms",
    "compile_delta_ms",
    "explain_ms",
    "compile_mib",
    "agent_rss_mib",
    "crr_nftables_1",
    "crr_nftables_1000",
    "crr_nftables_10000",
    "crr_nfqueue",
    "start_bare_ms",
    "pu_start_exec_ms",
    "pu_start_exec_ms_p99",
    "start_docker_bare_ms",
    "pu_start_docker_ms",
    "pu_start_docker_ms_p99",
    "tag_change_ms",
    "tag_change_ms_p99",
    "hash_mib_s",
    "suggest_1m_s",
    "suggest_1m_mib",
    "apply_100k_ms",
    "apply_100k_one_rule_ms",
    "explain_100k_ms",
    "agent_rss_100k_mib",
];

/// Rows of what a quick run leaves out.
const PROMISED_IN_TIME: &[&str] = &[
    "crr_nebula",
    "crr_wireguard_go",
    "upgrade_ms",
    "upgrade_p99_ms",
    "kill_ms",
    "kill_p99_ms",
    "flood_syn",
    "flood_syn_option",
    "flood_replayed_resume",
    "flood_forged_resume",
    "flood_unknown_resume",
    "flood_hello",
    "flood_hello_spoofed",
    "flood_hello_signature",
    "flood_confirm",
    "flood_datagram_hello",
    "flood_datagram_hello_spoofed",
    "flood_fragments",
];

#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// All rows, in the order they were measured.
#[derive(Default, Serialize)]
pub struct Rows {
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    pairs: usize,
}

impl Rows {
    /// Adds a row made of one value for each pair; none at all is no row.
    pub fn add(&mut self, name: &str, unit: &'static str, values: &[f64]) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { return };
        let median = median(&sorted);
        step::say(format!("{name}: {} {unit}", figure(median)));
        self.rows.push(Row { name: name.to_owned(), unit, median, min, max, pairs: values.len() });
    }

    /// Adds a row of these values, and one of the value that 99 in 100 of them do not exceed.
    pub fn add_with_tail(&mut self, name: &str, unit: &'static str, values: &[f64]) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        self.add(name, unit, values);
        // Nearest rank: with fewer than a hundred values, the largest.
        let rank = (sorted.len() * 99).div_ceil(100);
        if let Some(tail) = rank.checked_sub(1).and_then(|index| sorted.get(index)) {
            self.add(&format!("{name}_p99"), unit, &[*tail]);
        }
    }

    /// Checks that no promised row is missing, of a `quick` run none that it has time for.
    ///
    /// # Errors
    /// One is.
    pub fn ensure_complete(&self, quick: bool) -> Result<()> {
        for name in PROMISED.iter().chain(if quick { &[][..] } else { PROMISED_IN_TIME }) {
            ensure!(self.rows.iter().any(|row| row.name == *name), "the row {name} was not measured");
        }
        Ok(())
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<28} {:>9} {:>9} {:>9} {:<12} {:>5}  {}\n",
            "row", "median", "min", "max", "unit", "pairs", "target"
        );
        for Row { name, unit, median, min, max, pairs } in &self.rows {
            let target =
                TARGETS.iter().find(|(of, _)| of == name).map_or(String::new(), |(_, target)| target.says(*median));
            let (median, min, max) = (figure(*median), figure(*min), figure(*max));
            let _ = writeln!(text, "{name:<28} {median:>9} {min:>9} {max:>9} {unit:<12} {pairs:>5}  {target}");
        }
        text
    }

    /// For programs.
    ///
    /// # Errors
    /// A value that JSON cannot hold.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl Target {
    fn says(self, median: f64) -> String {
        let (met, text) = match self {
            Self::AtLeast(limit) => (median >= limit, format!("≥ {limit}")),
            Self::AtMost(limit) => (median <= limit, format!("≤ {limit}")),
        };
        text + if met { "  met" } else { "  MISSED" }
    }
}

/// The middle of sorted values, or the mean of the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

fn figure(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.3}"),
        10.0..1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests_of_rows {
    use super::*;

    #[test]
    fn a_row_has_the_median_and_the_range() {
        let mut rows = Rows::default();
        rows.add("rr", "of bare", &[0.99, 0.90, 1.01, 0.95]);
        rows.add("nothing", "of bare", &[]);
        assert_eq!(rows.rows.len(), 1);
        let row = &rows.rows[0];
        assert_eq!((row.median, row.min, row.max, row.pairs), (0.97, 0.90, 1.01, 4));
        assert!(rows.table().ends_with("≥ 0.97  met\n"), "{}", rows.table());
    }

    #[test]
    fn a_missed_target_is_named() {
        assert!(Target::AtMost(5.0).says(5.1).ends_with("MISSED"));
        assert!(Target::AtLeast(0.92).says(0.91).ends_with("MISSED"));
    }

    #[test]
    fn the_document_has_the_fields_that_were_promised() {
        let mut rows = Rows::default();
        rows.add("rr", "of bare", &[1.0]);
        let document: serde_json::Value = serde_json::from_str(&rows.json().expect("json")).expect("parses");
        let expected =
            serde_json::json!({"name": "rr", "unit": "of bare", "median": 1.0, "min": 1.0, "max": 1.0, "pairs": 1});
        assert_eq!(document["rows"][0], expected);
    }
}
