//! Observe mode: everything allowed, everything recorded; and from there to a policy.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use policy::{Action, FlowRecord, ObservedBy, Role};
use tests::{Host, Lab, Outcome, Pair, Place};

/// Everything a host has recorded so far.
fn written(host: &Host) -> Result<Vec<FlowRecord>> {
    let text = std::fs::read_to_string(host.flow_records()).unwrap_or_default();
    text.lines().map(|line| FlowRecord::parse(line).with_context(|| line.to_owned())).collect()
}

/// Waits for a record that satisfies a condition: it comes with the interval that ends.
fn recorded(host: &Host, wanted: impl Fn(&FlowRecord) -> bool) -> Result<FlowRecord> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let records = written(host)?;
        if let Some(record) = records.iter().find(|record| wanted(record)) {
            return Ok(record.clone());
        }
        ensure!(Instant::now() < deadline, "no such record on {}: {records:#?}", host.name());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn observe(host: &Host, args: &[&str]) -> Result<Vec<String>> {
    let answer: serde_json::Value = host.enforcer_json(&[&["observe"], args].concat())?;
    Ok(serde_json::from_value(answer["observed"].clone())?)
}

fn assert_talks(from: &Place, to: &str, what: &str) -> Result<()> {
    let attempt = from.connect(to, &["--payload", "ping", "--timeout", "3000"])?;
    ensure!(attempt.outcome == Outcome::Ok, "{what}: {to}: {attempt:?}");
    Ok(())
}

fn assert_refused(from: &Place, to: &str, what: &str) -> Result<()> {
    let attempt = from.connect(to, &["--payload", "ping", "--timeout", "1000"])?;
    ensure!(attempt.outcome != Outcome::Ok, "{what}: {to}: {attempt:?}");
    Ok(())
}

#[test]
fn everything_is_allowed_and_recorded_and_then_enforced_again() -> Result<()> {
    let pair = Pair::new("watch")?;
    pair.decree("  - not-this: deny app=client -> app=server tcp/8021\n")?;
    let outside = pair.lab.host("c")?;
    let stranger = outside.plain_workload("stranger")?;
    let _outside = stranger.serve(&["--listen", "[::]:8030"])?;
    let _server = pair.server.serve(&["--listen", "[::]:8020", "--listen", "[::]:8021"])?;
    let beyond = [outside.socket_v4(8030), outside.socket_v6(8030)];
    std::thread::sleep(Duration::from_millis(500));
    for to in pair.addresses(8020).iter().chain(&pair.addresses(8021)).chain(&beyond) {
        assert_refused(&pair.client, to, "enforced")?;
    }
    for to in pair.addresses(8020) {
        assert_refused(&stranger, &to, "a stranger, enforced")?;
    }

    // One end alone: the other still judges.
    assert_eq!(observe(&pair.a, &["on", "--namespace", "/demo"])?, ["/demo"]);
    for to in pair.addresses(8020) {
        assert_refused(&pair.client, &to, "the server's host enforces")?;
    }
    for to in &beyond {
        assert_talks(&pair.client, to, "a peer without enforcer")?;
    }
    assert_eq!(observe(&pair.b, &["on"])?, ["/"]);
    for _ in 0..2 {
        for to in pair.addresses(8020).iter().chain(&pair.addresses(8021)) {
            assert_talks(&pair.client, to, "observed")?;
        }
        for to in pair.addresses(8020) {
            assert_talks(&stranger, &to, "a stranger, observed")?;
        }
    }
    for (host, role) in [(&pair.a, Role::Client), (&pair.b, Role::Server)] {
        for (port, reason, rule) in [(8020, "no_rule", ""), (8021, "deny_rule", "pair/not-this")] {
            let record = recorded(host, |record| {
                record.port == port && record.verdict == Action::Allow && record.from.namespace.is_some()
            })?;
            let observed = record.observed.clone().context("nothing observed")?;
            assert_eq!((observed.by, observed.verdict), (ObservedBy::Mode, Action::Deny), "{record:?}");
            assert_eq!((observed.reason.as_str(), observed.rule.as_str()), (reason, rule), "{record:?}");
            assert_eq!((record.role, record.reason.as_str(), record.rule.as_str()), (role, "allowed", ""));
            assert!(record.from.tags["app"].contains("client") && record.to.tags["app"].contains("server"));
            assert!(record.flows > 0 && record.bytes_sent > 0 && record.bytes_received > 0, "{record:?}");
            assert!(record.rtt_us.is_some_and(|rtt| rtt > 0), "{record:?}");
        }
    }
    let met = recorded(&pair.b, |record| record.from.namespace.is_none() && record.verdict == Action::Allow)?;
    assert_eq!(met.observed.as_ref().map(|observed| observed.reason.as_str()), Some("no_identity"), "{met:?}");
    assert!(met.from.address.is_some() && met.path == "external", "{met:?}");
    let reached = recorded(&pair.a, |record| record.port == 8030 && record.verdict == Action::Allow)?;
    assert_eq!(reached.observed.as_ref().map(|observed| observed.reason.as_str()), Some("peer_no_identity"));
    let refused = recorded(&pair.a, |record| record.port == 8020 && record.verdict == Action::Deny)?;
    assert_eq!(refused.observed, None, "{refused:?}");

    // It holds without an agent, and its successor knows and says so.
    pair.b.kill9_enforcer()?;
    for to in pair.addresses(8020) {
        assert_talks(&pair.client, &to, "while the agent is dead")?;
        assert_talks(&stranger, &to, "a stranger, while the agent is dead")?;
    }
    pair.b.restart_enforcer()?;
    assert_eq!(observe(&pair.b, &[])?, ["/"]);
    assert!(pair.b.enforcer_log().contains("namespace / is NOT enforced"), "{}", pair.b.enforcer_log());
    let status: serde_json::Value = pair.b.enforcer_json(&["status"])?;
    assert_eq!(status["observed"], serde_json::json!(["/"]));
    let metrics = pair.b.counters()?;
    assert_eq!(metrics.get("enforcer_observe_mode{namespace=\"/\"}"), 1);
    for to in pair.addresses(8020) {
        assert_talks(&pair.client, &to, "under the new agent")?;
    }

    // Enforced again: what lives is cut, what comes is refused.
    let mut held = Vec::new();
    for (from, to) in
        [(&pair.client, &pair.addresses(8020)[0]), (&stranger, &pair.addresses(8021)[1]), (&pair.client, &beyond[0])]
    {
        let mut process = from.spawn_tool(&["hold", to, "--count", "1", "--ping", "0"])?;
        process.wait_for_line("READY", Duration::from_secs(5))?;
        held.push(process);
    }
    assert!(observe(&pair.b, &["off"])?.is_empty());
    assert!(observe(&pair.a, &["off", "--namespace", "/"])?.is_empty());
    for process in &mut held {
        let ended = process.wait(Duration::from_secs(3))?;
        ensure!(ended.is_some() && process.stdout().contains("reset"), "not cut: {}", process.stdout());
    }
    for to in pair.addresses(8020).iter().chain(&beyond) {
        assert_refused(&pair.client, to, "enforced again")?;
    }
    for to in pair.addresses(8020) {
        assert_refused(&stranger, &to, "a stranger, enforced again")?;
    }
    Ok(())
}

#[test]
fn names_go_from_watching_into_the_policy() -> Result<()> {
    let lab = Lab::new("heard")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    b.exec(&["ip", "address", "add", "192.0.2.10/32", "dev", "lo"])?.ok()?;
    a.exec(&["ip", "route", "add", "192.0.2.0/24", "via", &b.v4().to_string()])?.ok()?;
    let outside = b.plain_workload("servers")?;
    let resolver = format!("{}:53", b.v4());
    let record = "www.example.org A 300 192.0.2.10";
    let mut answers = outside.spawn_tool(&["resolver", "--listen", &resolver, "--record", record])?;
    answers.wait_for_line("READY", Duration::from_secs(5))?;
    let _server = outside.serve(&["--listen", "[::]:8443"])?;
    a.start_enforcer("")?;
    let client = a.workload("client", &["app=client"])?;
    let ask = || -> Result<String> {
        let answer: serde_json::Value =
            client.tool(&["ask", "www.example.org", "--server", &resolver, "--then", "8443"])?;
        Ok(answer["outcome"].as_str().unwrap_or_default().to_owned())
    };
    observe(&a, &["on"])?;
    assert_eq!(ask()?, "ok", "{}", a.enforcer_log());
    recorded(&a, |record| record.port == 8443 && record.to.fqdn.contains("www.example.org"))?;
    recorded(&a, |record| record.port == 53)?;
    let records = a.flow_records();
    let policy = a.enforcer(&["policy", "suggest", "--records", &records.to_string_lossy()])?;
    let policy = policy.ok()?;
    for line in [
        "allow app=client -> net www.example.org tcp/8443".to_owned(),
        format!("allow app=client -> net {}/32 udp/53", b.v4()),
    ] {
        ensure!(policy.contains(&line), "{line}:\n{policy}");
    }
    lab.write_policy("suggested.yaml", policy)?;
    let deadline = Instant::now() + Duration::from_secs(3);
    while a.counters()?.get("enforcer_policy_rules") != 2 {
        ensure!(Instant::now() < deadline, "the policy is not in force");
        std::thread::sleep(Duration::from_millis(20));
    }
    observe(&a, &["off"])?;
    assert_eq!(ask()?, "ok", "{}", a.enforcer_log());
    assert_refused(&client, "192.0.2.10:8444", "another port")
}
