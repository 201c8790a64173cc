//! Small texts in tables.

use std::collections::BTreeMap;

/// `key=value` pairs in order.
pub(super) fn tags(tags: &BTreeMap<String, Vec<String>>) -> String {
    let pairs = tags.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")));
    pairs.collect::<Vec<_>>().join(" ")
}

/// Seconds as `45s`, `12m`, `3h 5m`, `2d 4h`; `-` before what has passed.
pub(super) fn seconds(seconds: i64) -> String {
    let sign = if seconds < 0 { "-" } else { "" };
    let s = seconds.unsigned_abs();
    let text = match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    };
    format!("{sign}{text}")
}

/// Bytes as `12`, `3.4k`, `5.6M`.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["", "k", "M", "G", "T", "P", "E"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { bytes.to_string() } else { format!("{value:.1}{}", units[unit]) }
}

/// `1 file`, `2 files`.
pub(super) fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// `yes` or `no`.
pub(super) fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_texts() {
        assert_eq!([seconds(5), seconds(-61), seconds(3660), seconds(90_000)], ["5s", "-1m", "1h 1m", "1d 1h"]);
        assert_eq!([bytes(999), bytes(1500), bytes(u64::MAX)], ["999", "1.5k", "18.4E"]);
        assert_eq!([count(0, "rule"), count(1, "rule")], ["0 rules", "1 rule"]);
        let map = BTreeMap::from([("a".into(), vec!["1".into(), "2".into()]), ("b".into(), vec!["x".into()])]);
        assert_eq!(tags(&map), "a=1 a=2 b=x");
    }
}
