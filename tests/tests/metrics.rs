//! The metrics endpoint of a running enforcer: well-formed, and right to the last connection.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Host, Lab, Outcome};

const PORT: u16 = 8020;

/// What the lab's enforcers listen on for metrics.
const ENDPOINT: &str = "http://127.0.0.1:9464";

/// Status and body of a request made on the host itself.
fn get(host: &Host, path: &str) -> Result<(String, String)> {
    let url = format!("{ENDPOINT}{path}");
    let output = host.exec(&["curl", "-s", "-m", "5", "-w", "\n%{http_code}", &url])?;
    let (body, status) = output.ok()?.rsplit_once('\n').context("curl printed no status")?;
    Ok((status.to_owned(), body.to_owned()))
}

/// Every sample, by name and labels as printed.
type Samples = BTreeMap<String, f64>;

fn samples(host: &Host) -> Result<Samples> {
    let (status, text) = get(host, "/metrics")?;
    ensure!(status == "200", "{status}: {text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// What of these families grew, and by how much.
fn grown(before: &Samples, after: &Samples, families: &[&str]) -> BTreeMap<String, f64> {
    after
        .iter()
        .filter(|(name, _)| families.iter().any(|family| name.starts_with(family)))
        .map(|(name, value)| (name.clone(), value - before.get(name).copied().unwrap_or(0.0)))
        .filter(|(_, by)| *by != 0.0)
        .collect()
}

const COUNTERS: [&str; 4] = [
    "enforcer_verdicts_total",
    "enforcer_handshake_packets_total",
    "enforcer_handshakes_total",
    "enforcer_losses_total",
];

fn expected(samples: &[(&str, f64)]) -> BTreeMap<String, f64> {
    samples.iter().map(|(name, by)| ((*name).to_owned(), *by)).collect()
}

/// Waits until the samples of `host` are as `done` wants them: an agent counts a moment after the application has heard.
fn settled(host: &Host, done: impl Fn(&Samples) -> bool) -> Result<Samples> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let found = samples(host)?;
        if done(&found) || Instant::now() > deadline {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_connection_counts_once_at_each_end() -> Result<()> {
    let lab = Lab::new("metrics")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.write_policy(
        "p.yaml",
        &format!("name: p\nnamespace: /demo\nrules:\n  - web: allow app=client -> app=server tcp/{PORT}\n"),
    )?;
    for host in [&a, &b] {
        host.start_enforcer("")?;
        assert_eq!(get(host, "/healthz")?.0, "200");
        assert_eq!(get(host, "/readyz")?, ("200".into(), "ready\n".into()));
        assert_eq!(get(host, "/other")?.0, "404");
    }
    let client = a.workload("client", &["app=client"])?;
    let server = b.workload("server", &["app=server"])?;
    let (open, shut) = (format!("[::]:{PORT}"), format!("[::]:{}", PORT + 1));
    let listeners = [server.serve(&["--listen", &open])?, server.serve(&["--listen", &shut])?];

    // First contact, allowed.
    let before = [samples(&a)?, samples(&b)?];
    assert_eq!(client.connect(&b.socket_v4(PORT), &["--payload", "ping"])?.outcome, Outcome::Ok);
    let counted = |samples: &Samples| samples.get("enforcer_first_contact_seconds_count") == Some(&1.0);
    let first = [settled(&a, counted)?, settled(&b, counted)?];
    let [mut at_a, mut at_b] = [0, 1].map(|host| grown(&before[host], &first[host], &COUNTERS));
    // The confirmation is repeated until the peer is heard.
    let confirmed = r#"enforcer_handshake_packets_total{type="confirm",direction="out"}"#;
    assert!(at_a.remove(confirmed).is_some_and(|count| count >= 1.0), "{at_a:?}");
    assert_eq!(
        at_a,
        expected(&[
            (r#"enforcer_verdicts_total{reason="allowed",direction="out"}"#, 1.0),
            (r#"enforcer_handshake_packets_total{type="hello",direction="out"}"#, 1.0),
            (r#"enforcer_handshake_packets_total{type="hello_reply",direction="in"}"#, 1.0),
            (r#"enforcer_handshakes_total{kind="hello_reply",result="allowed"}"#, 1.0),
        ])
    );
    let received = r#"enforcer_handshake_packets_total{type="confirm",direction="in"}"#;
    assert_eq!(at_b.remove(received), Some(1.0), "{at_b:?}");
    assert_eq!(
        at_b,
        expected(&[
            (r#"enforcer_verdicts_total{reason="allowed",direction="in"}"#, 1.0),
            (r#"enforcer_handshake_packets_total{type="hello",direction="in"}"#, 1.0),
            (r#"enforcer_handshake_packets_total{type="hello_reply",direction="out"}"#, 1.0),
            (r#"enforcer_handshakes_total{kind="hello",result="allowed"}"#, 1.0),
        ])
    );
    for (before, after) in before.iter().zip(&first) {
        let grown = |name: &str| after[name] - before[name];
        assert_eq!(grown("enforcer_first_contact_seconds_count"), 1.0);
        assert_eq!(grown(r#"enforcer_first_contact_seconds_bucket{le="+Inf"}"#), 1.0);
        let took = grown("enforcer_first_contact_seconds_sum");
        assert!(took > 0.0 && took < 1.0, "{took} seconds");
        assert_eq!(grown("enforcer_held_frames_total"), 1.0);
        // The enforcer's session with itself counts among them.
        assert_eq!(after["enforcer_sessions"], before["enforcer_sessions"] + 1.0);
        assert_eq!((after["enforcer_pus"], after["enforcer_policy_rules"]), (1.0, 1.0));
        assert_eq!((after["enforcer_ready"], after["enforcer_kernel_readable"]), (1.0, 1.0));
        assert!(after["process_resident_memory_bytes"] > 1e6);
        assert_eq!(grown(r#"enforcer_map_entries{map="PEER_PUS"}"#), 1.0);
    }

    // It has ended, and counts for its rule at both ends.
    let by_rule = r#"enforcer_rule_verdicts_total{namespace="/demo",policy="p",rule="web",verdict="allow"}"#;
    for host in [&a, &b] {
        let counted = settled(host, |samples| samples.contains_key(by_rule))?;
        assert_eq!(grown(&Samples::new(), &counted, &["enforcer_rule_verdicts"]), expected(&[(by_rule, 1.0)]));
        let records = host.records()?;
        let ended = records.iter().find(|record| record.event == "end").context("no record of its end")?;
        assert_eq!((ended.rule.as_str(), ended.rule_namespace.as_str()), ("p/web", "/demo"));
        assert!(host.enforcer(&["flows"])?.ok()?.contains("NAMESPACE"));
    }

    // The same pair again, at a port no rule names: judged in the kernel, refused at once, the reason told.
    assert_eq!(client.connect(&b.socket_v4(PORT + 1), &[])?.outcome, Outcome::Refused);
    let denied = [samples(&a)?, samples(&b)?];
    let [at_a, at_b] = [0, 1].map(|host| grown(&first[host], &denied[host], &COUNTERS));
    assert_eq!(
        at_a,
        expected(&[
            (r#"enforcer_verdicts_total{reason="no_rule",direction="in"}"#, 1.0),
            (r#"enforcer_handshake_packets_total{type="resume",direction="out"}"#, 1.0),
            (r#"enforcer_handshake_packets_total{type="deny",direction="in"}"#, 1.0),
        ])
    );
    assert_eq!(
        at_b,
        expected(&[
            (r#"enforcer_verdicts_total{reason="no_rule",direction="in"}"#, 1.0),
            (r#"enforcer_handshake_packets_total{type="deny",direction="out"}"#, 1.0),
        ])
    );
    assert_eq!(denied[1]["enforcer_first_contact_seconds_count"], 1.0, "the agent was not asked");
    assert_eq!((listeners[0].accepted()?, listeners[1].accepted()?), (1, 0));

    // What the kernel counted outlives the agent.
    b.kill9_enforcer()?;
    b.restart_enforcer()?;
    let restarted = samples(&b)?;
    assert_eq!(grown(&denied[1], &restarted, &["enforcer_verdicts_total"]), expected(&[]));
    Ok(())
}

#[test]
fn promtool_finds_nothing_to_say() -> Result<()> {
    let lab = Lab::new("promtool")?;
    let host = lab.host("a")?;
    lab.write_policy("p.yaml", &format!("name: p\nrules:\n  - nobody: deny any -> app=server tcp/{PORT}\n"))?;
    host.start_enforcer("")?;
    let server = host.workload("server", &["app=server"])?;
    let _listener = server.serve(&["--listen", &format!("[::]:{PORT}")])?;
    let attempt = server.connect(&host.socket_v4(PORT), &[])?;
    assert_eq!(attempt.outcome, Outcome::Refused, "{attempt:?}");
    let refused = |samples: &Samples| samples.keys().any(|name| name.starts_with("enforcer_rule_verdicts_total"));
    ensure!(refused(&settled(&host, refused)?), "the refusal was not counted for its rule");
    let (_, text) = get(&host, "/metrics")?;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool cannot be run; `cargo xtask setup` installs it")?;
    promtool.stdin.take().context("no way into promtool")?.write_all(text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said));
    Ok(())
}
