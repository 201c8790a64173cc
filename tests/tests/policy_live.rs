//! Policy while connections live: what a change cuts, what it leaves alone, and what is told of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use policy::Moment;
use serde::Deserialize;
use tests::{Host, Outcome, Pair, Proc, Record, Workload};

/// A line of `lab-tool hold`: a connection that ended.
#[derive(Deserialize)]
struct Ended {
    how: String,
    errno: i32,
}

/// Connections that stay open: two that are silent and two that talk.
struct Held {
    idle: Proc,
    busy: Proc,
}

impl Held {
    fn open(client: &Workload, to: &str) -> Result<Self> {
        let hold = |ping: &str| -> Result<Proc> {
            let mut process = client.spawn_tool(&["hold", to, "--count", "2", "--ping", ping])?;
            let ready = process.wait_for_line("READY", Duration::from_secs(5))?;
            ensure!(ready == r#"READY {"open":2,"failed":0}"#, "{to}: {ready}");
            Ok(process)
        };
        Ok(Self { idle: hold("0")?, busy: hold("10")? })
    }

    /// All four were reset, before `deadline`.
    fn assert_reset(&mut self, deadline: Instant, what: &str) -> Result<()> {
        for (name, process) in [("idle", &mut self.idle), ("busy", &mut self.busy)] {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(process.wait(left)?.is_some(), "{name} {what}: not cut in time\n{}", process.stdout());
            let said = process.stdout();
            let ended: Vec<Ended> = said
                .lines()
                .filter(|line| line.contains("ended"))
                .map(serde_json::from_str)
                .collect::<Result<_, _>>()?;
            let reset = |ended: &Ended| ended.how == "reset" && ended.errno == 104;
            ensure!(ended.len() == 2 && ended.iter().all(reset), "{name} {what}: {said}");
        }
        Ok(())
    }

    /// All four live, and the busy ones still get answers.
    fn assert_untouched(&mut self, what: &str) -> Result<()> {
        for (name, process) in [("idle", &mut self.idle), ("busy", &mut self.busy)] {
            ensure!(process.wait(Duration::ZERO)?.is_none(), "{name} {what}: {}", process.stdout());
            ensure!(!process.stdout().contains("ended"), "{name} {what}: {}", process.stdout());
        }
        Ok(())
    }
}

/// Waits until a host's records satisfy a condition; they come a moment after the fact.
fn records(host: &Host, enough: impl Fn(&[Record]) -> bool) -> Result<Vec<Record>> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let records = host.records()?;
        if enough(&records) || Instant::now() > deadline {
            return Ok(records);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for_generation(host: &Host, beyond: i64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(1);
    while host.counters()?.get("enforcer_policy_generation") <= beyond {
        ensure!(Instant::now() < deadline, "the policy of {} is not in force after a second", host.name());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn a_change_cuts_what_is_no_longer_allowed_at_both_ends() -> Result<()> {
    let pair = Pair::new("revoke")?;
    let kept_server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let cut_server = pair.server.serve(&["--listen", "[::]:8021"])?;
    let mut kept = Vec::new();
    let mut cut = Vec::new();
    for to in pair.addresses(8020) {
        kept.push(Held::open(&pair.client, &to)?);
    }
    for to in pair.addresses(8021) {
        cut.push(Held::open(&pair.client, &to)?);
    }
    let before = [&pair.a, &pair.b].map(|host| host.counters());
    let talked = kept_server.received()?;
    pair.decree("  - call: allow app=client -> app=server tcp/8020\n")?;
    let deadline = Instant::now() + Duration::from_secs(1);
    for held in &mut cut {
        held.assert_reset(deadline, "on the port that was closed").with_context(|| {
            let flows = pair.a.enforcer(&["flows", "--json"]).map(|output| output.stdout).unwrap_or_default();
            format!("{flows}\n{}", pair.a.enforcer_log())
        })?;
    }
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    let closed = cut_server.events()?.into_iter().filter(|event| event.event == "close");
    let how: Vec<String> = closed.map(|event| event.how).collect();
    assert_eq!(how, vec!["reset"; 8], "the server's end");
    for held in &mut kept {
        held.assert_untouched("on the port that stayed open")?;
    }
    assert!(kept_server.received()? > talked, "the busy ones go on");
    assert_eq!(kept_server.accepted()?, 8);
    // Whichever end notices first resets both: each flow was revoked at one of them at least, and is told of at both.
    let mut revoked = BTreeSet::new();
    for (host, before) in [&pair.a, &pair.b].into_iter().zip(before) {
        let counted = &host.counters()? - &before?;
        let over = |record: &&Record| {
            ["cut", "end"].contains(&record.event.as_str())
                && [&record.local, &record.remote].iter().any(|end| end.ends_with(":8021"))
        };
        let records = records(host, |records| records.iter().filter(over).count() >= 8)?;
        let over: Vec<_> = records.iter().filter(over).collect();
        assert_eq!(over.len(), 8, "{}: {over:#?}", host.name());
        let cut: Vec<_> = over.into_iter().filter(|record| record.event == "cut").collect();
        assert!(cut.iter().all(|record| record.reason == "revoked" && record.verdict == "deny"), "{cut:?}");
        assert_eq!(cut.len(), 8, "{}: the end that is reset is told why", host.name());
        let total = counted.verdicts_out("revoked") + counted.verdicts_in("revoked");
        assert_eq!(total, cut.len() as i64, "{}: counted once for each", host.name());
        let client =
            |record: &Record| if record.role == "client" { record.local.clone() } else { record.remote.clone() };
        revoked.extend(cut.into_iter().map(client));
    }
    assert_eq!(revoked.len(), 8, "{revoked:?}");
    // A new attempt meets the new policy, and the old port is as it was.
    for to in pair.addresses(8021) {
        assert_eq!(pair.client.connect(&to, &[])?.outcome, Outcome::Refused, "{to}");
    }
    for to in pair.addresses(8020) {
        assert_eq!(pair.client.connect(&to, &["--payload", "ping"])?.outcome, Outcome::Ok, "{to}");
    }
    Ok(())
}

#[test]
fn the_other_end_hears_why_a_connection_was_cut() -> Result<()> {
    let pair = Pair::new("cutwhy")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mut held = Vec::new();
    for to in pair.addresses(8020) {
        held.push(Held::open(&pair.client, &to)?);
    }
    let before = pair.a.counters()?;
    // Nothing changes at the client's end: only the server is no longer what it was.
    pair.b.enforcer(&["pu", "rm", "server"])?.ok()?;
    let deadline = Instant::now() + Duration::from_secs(1);
    for held in &mut held {
        held.assert_reset(deadline, "of a PU that is gone")?;
    }
    let cut = |record: &&Record| record.event == "cut" && record.remote.ends_with(":8020");
    let records = records(&pair.a, |records| records.iter().filter(cut).count() >= 8)?;
    let cut: Vec<_> = records.iter().filter(cut).collect();
    assert_eq!(cut.len(), 8, "{cut:#?}");
    assert!(cut.iter().all(|record| record.reason == "revoked" && record.role == "client"), "{cut:?}");
    let counted = &pair.a.counters()? - &before;
    assert_eq!((counted.packets_in("deny"), counted.verdicts_in("revoked")), (8, 8), "{:?}", counted.refusals());
    Ok(())
}

#[test]
fn a_rule_ends_when_its_time_is_over() -> Result<()> {
    let pair = Pair::new("until")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020", "--listen", "[::]:8021"])?;
    let generations =
        [&pair.a, &pair.b].map(|host| host.counters().map(|found| found.get("enforcer_policy_generation")));
    let until = Moment::from_unix(UNIX_EPOCH.elapsed()?.as_secs() + 4);
    pair.decree(&format!(
        "  - brief: allow app=client -> app=server tcp/8020 until {until}
  - lasting: allow app=client -> app=server tcp/8021
  - over: deny app=client -> app=server tcp/8021 until 2020-01-01T00:00:00Z
"
    ))?;
    for (host, generation) in [&pair.a, &pair.b].into_iter().zip(generations) {
        wait_for_generation(host, generation?)?;
        assert!(host.enforcer_log().contains("the rule has expired and changes nothing"), "{}", host.enforcer_log());
    }
    let (mut brief, mut lasting) = (Vec::new(), Vec::new());
    for to in pair.addresses(8020) {
        brief.push(Held::open(&pair.client, &to)?);
    }
    for to in pair.addresses(8021) {
        lasting.push(Held::open(&pair.client, &to)?);
    }
    ensure!(UNIX_EPOCH.elapsed()?.as_secs() < until.unix(), "the machine was too slow to connect before {until}");
    for held in &mut brief {
        held.assert_untouched("before its time is over")?;
    }
    let end = UNIX_EPOCH + Duration::from_secs(until.unix());
    std::thread::sleep(end.duration_since(SystemTime::now()).unwrap_or_default());
    let deadline = Instant::now() + Duration::from_secs(1);
    for held in &mut brief {
        held.assert_reset(deadline, "whose rule has ended")?;
    }
    for to in pair.addresses(8020) {
        assert_eq!(pair.client.connect(&to, &[])?.outcome, Outcome::Refused, "{to}");
    }
    for held in &mut lasting {
        held.assert_untouched("of another rule")?;
    }
    // The one end cuts for both; the other may come to it a moment later.
    let question = ["policy", "explain", "--from", "app=client", "--to", "app=server", "--port", "8020"];
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let explained = pair.b.enforcer(&question)?;
        let told = explained.ok()?;
        if told.contains(&format!("expired at {until}")) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{told}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_broken_policy_leaves_the_old_one_in_force() -> Result<()> {
    let pair = Pair::new("broken")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mut held = Held::open(&pair.client, &pair.addresses(8020)[0])?;
    let error = || -> Result<Option<String>> {
        let status: serde_json::Value = pair.b.enforcer_json(&["status"])?;
        Ok(status["policy"]["error"].as_str().map(str::to_owned))
    };
    assert_eq!(error()?, None);
    let generation = pair.b.counters()?.get("enforcer_policy_generation");
    pair.decree("  - call: allow app=client => app=server\n")?;
    let deadline = Instant::now() + Duration::from_secs(1);
    while error()?.is_none() {
        ensure!(Instant::now() < deadline, "a broken policy goes unnoticed");
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = error()?.unwrap_or_default();
    assert!(said.contains("pair.yaml:3:"), "it names file and line: {said}");
    for to in pair.addresses(8020) {
        assert_eq!(pair.client.connect(&to, &["--payload", "ping"])?.outcome, Outcome::Ok, "{to}");
    }
    assert_eq!(pair.b.counters()?.get("enforcer_policy_generation"), generation);
    held.assert_untouched("under a broken policy")?;
    pair.decree("  - call: allow app=client -> app=server tcp/8020\n")?;
    wait_for_generation(&pair.b, generation)?;
    assert_eq!(error()?, None);
    held.assert_untouched("under the mended policy")
}

#[test]
fn a_full_table_denies_new_flows_and_keeps_the_old() -> Result<()> {
    let small = "datapath.max_flows = 16";
    for (at_client, at_server) in [("", small), (small, "")] {
        let pair = Pair::with_each("full", at_client, at_server)?;
        let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
        let [v4, v6] = pair.addresses(8020);
        pair.introduce(8020)?;
        let mut held = Vec::new();
        for _ in 0..2 {
            for to in [&v4, &v6] {
                held.push(Held::open(&pair.client, to)?);
            }
        }
        let before = (pair.a.counters()?, pair.b.counters()?);
        for to in [&v4, &v6] {
            let attempt = pair.client.connect(to, &["--timeout", "2000"])?;
            assert_eq!(attempt.outcome, Outcome::Refused, "{attempt:?}");
            assert!(attempt.micros < 100_000, "{attempt:?}");
        }
        let counted = (&pair.a.counters()? - &before.0, &pair.b.counters()? - &before.1);
        if at_server == small {
            assert_eq!(counted.1.verdicts_in("table_full"), 2);
        } else {
            assert_eq!(counted.0.verdicts_out("table_full"), 2);
        }
        let told = |records: &[Record]| records.iter().filter(|record| record.reason == "table_full").count();
        let records = records(&pair.a, |records| told(records) >= 2)?;
        assert_eq!(told(&records), 2, "the client's end knows why: {records:?}");
        for held in &mut held {
            held.assert_untouched("while the table is full")?;
        }
        drop(held);
        pair.settled()?;
        for to in [&v4, &v6] {
            assert_eq!(pair.client.connect(to, &["--payload", "ping"])?.outcome, Outcome::Ok, "room again");
        }
    }
    Ok(())
}

#[test]
fn observed_and_logged_rules_are_told_and_change_nothing() -> Result<()> {
    let pair = Pair::new("observe")?;
    pair.decree(
        "  - call: allow app=client -> app=server tcp/8020 log
  - watch: deny app=client -> app=server tcp/8020 observe
  - perhaps: allow app=client -> app=server tcp/8022 observe
",
    )?;
    for host in [&pair.a, &pair.b] {
        let deadline = Instant::now() + Duration::from_secs(1);
        while host.counters()?.get("enforcer_policy_rules") != 3 {
            ensure!(Instant::now() < deadline, "the policy is not in force after a second");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let _server = pair.server.serve(&["--listen", "[::]:8020", "--listen", "[::]:8022"])?;
    for (path, to) in ["hello", "resume"].into_iter().zip(pair.addresses(8020)) {
        let attempt = pair.client.connect(&to, &["--payload", "ping"])?;
        assert_eq!(attempt.outcome, Outcome::Ok, "{to}");
        for host in [&pair.a, &pair.b] {
            let of = |record: &&Record| record.local == attempt.local || record.remote == attempt.local;
            let records = records(host, |records| records.iter().filter(of).count() >= 2)?;
            let told: Vec<_> = records.iter().filter(of).collect();
            let events: Vec<_> = told.iter().map(|record| record.event.as_str()).collect();
            assert_eq!(events, ["start", "end"], "{} {path}: {told:?}", host.name());
            for record in told {
                let rules = (record.rule.as_str(), record.observed_rule.as_str());
                assert_eq!(rules, ("pair/call", "pair/watch"), "{record:?}");
                assert_eq!((record.verdict.as_str(), record.reason.as_str()), ("allow", "allowed"), "{record:?}");
            }
        }
    }
    for to in pair.addresses(8022) {
        let attempt = pair.client.connect(&to, &[])?;
        assert_eq!(attempt.outcome, Outcome::Refused, "{to}: an observed rule allows nothing");
        let of = |record: &&Record| record.remote == attempt.local && record.reason == "no_rule";
        let records = records(&pair.b, |records| records.iter().any(|record| of(&record)))?;
        let record = records.iter().find(of).with_context(|| format!("no record of {attempt:?}: {records:?}"))?;
        assert_eq!((record.rule.as_str(), record.observed_rule.as_str()), ("", "pair/perhaps"), "{record:?}");
    }
    Ok(())
}

#[test]
fn a_pu_that_goes_takes_its_flows_along() -> Result<()> {
    let pair = Pair::new("goes")?;
    let passing = pair.b.workload_by_cgroup("passing", &["app=server"])?;
    let server = passing.serve(&["--listen", "[::]:8030"])?;
    let mut held = Vec::new();
    for to in pair.addresses(8030) {
        held.push(Held::open(&pair.client, &to)?);
    }
    pair.b.enforcer(&["pu", "rm", "passing"])?.ok()?;
    let deadline = Instant::now() + Duration::from_secs(1);
    for held in &mut held {
        held.assert_reset(deadline, "of a PU that is gone")?;
    }
    let resets = || -> Result<usize> { Ok(server.events()?.iter().filter(|event| event.how == "reset").count()) };
    while resets()? < 8 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(resets()?, 8, "the server's end");
    // What is left there is nobody a PU may talk to.
    for to in pair.addresses(8030) {
        assert_eq!(pair.client.connect(&to, &["--timeout", "2000"])?.outcome, Outcome::Refused, "{to}");
    }
    Ok(())
}
