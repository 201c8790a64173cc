//! The rows as a table, as one JSON document, and what to look at when the hosts are kept.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;
use tests::Lab;

use super::attempt::Row;
use super::cast::Cast;

/// The document of `--json`.
#[derive(Serialize)]
struct Document<'a> {
    ok: bool,
    attempts: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    from: &'a str,
    to: &'a str,
    port: u16,
    family: &'a str,
    expected: &'a str,
    outcome: &'a str,
    rule: &'a str,
    reason: String,
    path: &'a str,
    micros: u64,
}

/// The rows as one JSON document.
pub fn json(rows: &[Row]) -> Result<String> {
    let ok = rows.iter().all(Row::is_as_expected);
    Ok(serde_json::to_string_pretty(&Document { ok, attempts: rows.iter().map(entry).collect() })?)
}

fn entry(row: &Row) -> Entry<'_> {
    let Row { from, to, port, family, expected, outcome, rule, path, micros, .. } = row;
    let reason = reason(row);
    Entry { from, to, port: *port, family, expected, outcome, rule, reason, path, micros: *micros }
}

/// The rows for people, scene by scene.
pub fn table(rows: &[Row]) -> String {
    let cells: Vec<[String; 11]> = rows.iter().map(cells).collect();
    let widths: Vec<usize> = (0..HEADINGS.len())
        .map(|column| {
            let longest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
            longest.max(HEADINGS[column].len())
        })
        .collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let joined = padded.collect::<Vec<_>>().join("  ");
        format!("  {}\n", joined.trim_end())
    };
    let mut text = line(&HEADINGS.map(str::to_owned));
    let mut scene = "";
    for (row, cells) in rows.iter().zip(&cells) {
        if row.scene != scene {
            scene = row.scene;
            let _ = write!(text, "\n{scene}\n");
        }
        let marked = line(cells);
        text += &if row.is_as_expected() { marked } else { marked.replacen(' ', "!", 1) };
    }
    let good = rows.iter().filter(|row| row.is_as_expected()).count();
    let _ = write!(text, "\n{good} of {} attempts as expected\n", rows.len());
    text
}

/// Commands to look around with, for hosts that are kept.
pub fn look_around(lab: &Lab, cast: &Cast) -> Result<String> {
    let enforcer = tests::enforcer_binary()?;
    let mut text = String::from("\nThe hosts stay up. Look around (as root):\n");
    for host in cast.enforced() {
        let enter = format!("nsenter --net=/run/netns/{}", host.netns());
        let _ = write!(
            text,
            "\n  # host {}: {} and {}\n  {} flows --socket {}\n  bpftool map dump pinned $(find {} -name FLOWS | head -1)\n  {enter} curl -s http://127.0.0.1:9464/metrics\n  {enter} sh\n",
            host.name(),
            host.v4(),
            host.v6(),
            enforcer.display(),
            host.enforcer_socket().display(),
            host.bpffs().display(),
        );
    }
    let _ = write!(
        text,
        "\n  Policy, configurations, keys and logs: {}\n  The next demo or test on this machine clears all of it away.\n",
        lab.directory().display()
    );
    Ok(text)
}

const HEADINGS: [&str; 11] =
    ["from", "to", "port", "family", "expected", "outcome", "rule", "reason: client", "reason: server", "path", "µs"];

fn cells(row: &Row) -> [String; 11] {
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        row.from.clone(),
        row.to.clone(),
        row.port.to_string(),
        row.family.to_owned(),
        row.expected.to_owned(),
        row.outcome.clone(),
        dash(&row.rule),
        dash(&row.client_reason),
        dash(&row.server_reason),
        dash(&row.path),
        row.micros.to_string(),
    ]
}

/// Both ends' reason: once if they agree or only one end has an enforcer.
fn reason(row: &Row) -> String {
    match (row.client_reason.as_str(), row.server_reason.as_str()) {
        (client, server) if client == server || server.is_empty() => client.to_owned(),
        ("", server) => server.to_owned(),
        (client, server) => format!("client: {client}, server: {server}"),
    }
}

#[cfg(test)]
mod tests_of_form {
    use super::*;

    fn row(expected: &'static str, outcome: &str) -> Row {
        Row {
            scene: "scene",
            from: "a".into(),
            to: "b".into(),
            port: 80,
            family: "ipv4",
            expected,
            outcome: outcome.into(),
            rule: "decree/x".into(),
            client_reason: "no_rule".into(),
            server_reason: "no_rule".into(),
            path: "hello".into(),
            micros: 7,
        }
    }

    #[test]
    fn the_document_has_exactly_the_promised_keys() {
        let text = json(&[row("refused", "refused")]).expect("json");
        let expected = serde_json::json!({"ok": true, "attempts": [{
            "from": "a", "to": "b", "port": 80, "family": "ipv4", "expected": "refused", "outcome": "refused",
            "rule": "decree/x", "reason": "no_rule", "path": "hello", "micros": 7
        }]});
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("parsed"), expected);
        assert!(json(&[row("refused", "allowed")]).expect("json").contains("\"ok\": false"));
    }

    #[test]
    fn a_row_that_differs_is_marked_and_counted() {
        let text = table(&[row("refused", "refused"), row("refused", "allowed")]);
        assert_eq!(text.lines().filter(|line| line.starts_with('!')).count(), 1);
        assert!(text.ends_with("1 of 2 attempts as expected\n"), "{text}");
    }
}
