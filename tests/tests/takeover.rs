//! A new agent takes over from one that ended: what it may believe, what it must not, and what it does without a policy.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Host, Lab, Outcome, Pair, Proc, enforcer_binary};

fn hold(pair: &Pair, to: &str) -> Result<Proc> {
    let mut process = pair.client.spawn_tool(&["hold", to, "--count", "1", "--ping", "0"])?;
    let ready = process.wait_for_line("READY", Duration::from_secs(5))?;
    ensure!(ready == r#"READY {"open":1,"failed":0}"#, "{to}: {ready}");
    Ok(process)
}

fn pu(host: &Host, name: &str) -> Result<Value> {
    let pus: Value = host.enforcer_json(&["pus"])?;
    let all = pus.get("pus").unwrap_or(&pus).as_array().context("no list")?;
    all.iter().find(|pu| pu["name"] == name).cloned().with_context(|| format!("no {name} in {pus}"))
}

fn policy_error(host: &Host) -> Result<String> {
    let status: Value = host.enforcer_json(&["status"])?;
    Ok(status["policy"]["error"].as_str().unwrap_or_default().to_owned())
}

fn move_to(cgroup: &Path, pid: u32) -> Result<()> {
    Ok(fs::write(cgroup.join("cgroup.procs"), pid.to_string())?)
}

#[test]
fn the_number_of_a_pu_that_ended_is_never_anothers() -> Result<()> {
    let pair = Pair::new("number")?;
    let first = pair.b.workload_by_cgroup("first", &["app=none"])?;
    let mut server = first.serve(&["--listen", "[::]:8040"])?;
    let elsewhere = pair.b.plain_workload("elsewhere")?;
    // Its listener still bears the PU, and the agent will not find it among the PU's processes.
    move_to(elsewhere.cgroup(), server.process().pid())?;
    let index = pu(&pair.b, "first")?["index"].as_u64();
    pair.b.enforcer(&["pu", "rm", "first"])?.ok()?;
    pair.b.kill9_enforcer()?;
    pair.b.restart_enforcer()?;
    let _second = pair.b.workload_by_cgroup("second", &["app=server"])?;
    assert!(pu(&pair.b, "second")?["index"].as_u64() > index, "{index:?}");
    for to in pair.addresses(8040) {
        let attempt = pair.client.connect(&to, &["--timeout", "1000"])?;
        assert_ne!(attempt.outcome, Outcome::Ok, "a leftover of `first` passes for `second`: {attempt:?}");
    }
    assert_eq!(server.accepted()?, 0);
    Ok(())
}

/// A certificate from an authority of its own; its `[identity]` as TOML.
fn other_identity(host: &Host, directory: &Path, name: &str) -> Result<String> {
    let (binary, ca) = (enforcer_binary()?, directory.join(format!("{name}-ca")));
    let (binary, ca) = (binary.to_string_lossy().into_owned(), ca.to_string_lossy().into_owned());
    if !Path::new(&ca).exists() {
        host.exec(&[&binary, "ca", "init", "--dir", &ca])?.ok()?;
    }
    host.exec(&[&binary, "ca", "issue", "--dir", &ca, "--name", name, "--out", &ca])?.ok()?;
    Ok(format!(
        "identity.ca = \"{ca}/ca.crt\"\nidentity.certificate = \"{ca}/{name}.crt\"\nidentity.key = \"{ca}/{name}.key\""
    ))
}

#[test]
fn peers_of_an_authority_that_is_no_longer_trusted_are_strangers_at_once() -> Result<()> {
    let pair = Pair::new("distrust")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    pair.introduce(8020)?;
    let mut held = Vec::new();
    for to in pair.addresses(8020) {
        held.push(hold(&pair, &to)?);
    }
    // An authority more: nobody minds.
    let other = other_identity(&pair.a, pair.a.directory(), "host-a")?;
    let own_ca = fs::read_to_string(pair.lab.directory().join("ca/ca.crt"))?;
    let new_ca = fs::read_to_string(pair.a.directory().join("host-a-ca/ca.crt"))?;
    let both = pair.a.directory().join("both.crt");
    fs::write(&both, own_ca + &new_ca)?;
    pair.a.start_enforcer(&format!("identity.ca = {both:?}"))?;
    for to in pair.addresses(8020) {
        let attempt = pair.client.connect(&to, &["--payload", "ping"])?;
        assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
    }
    let paths: Vec<_> =
        pair.a.records()?.into_iter().filter(|record| record.event == "end").map(|record| record.path).collect();
    assert!(paths.iter().rev().take(2).all(|path| path == "resume"), "{paths:?}");
    for process in &mut held {
        ensure!(process.wait(Duration::ZERO)?.is_none(), "{}", process.stdout());
    }
    // The authority replaced: what was agreed with peers of the old one is void, live connections included.
    let begin = Instant::now();
    pair.a.start_enforcer(&other)?;
    for process in &mut held {
        ensure!(process.wait(Duration::from_secs(2))?.is_some(), "not cut: {}", process.stdout());
        ensure!(process.stdout().contains("reset"), "{}", process.stdout());
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let cut =
        pair.a.records()?.into_iter().filter(|record| record.event == "cut" && record.reason == "revoked").count();
    assert_eq!(cut, 2);
    for to in pair.addresses(8020) {
        let attempt = pair.client.connect(&to, &["--timeout", "500"])?;
        assert_eq!(attempt.outcome, Outcome::Timeout, "strangers are not answered: {attempt:?}");
    }
    assert!(pair.b.counters()?.verdicts_in("chain_untrusted") >= 2, "{:?}", pair.b.counters()?.refusals());
    // And back.
    pair.a.start_enforcer("")?;
    for to in pair.addresses(8020) {
        assert_eq!(pair.client.connect(&to, &["--payload", "ping", "--timeout", "3000"])?.outcome, Outcome::Ok);
    }
    Ok(())
}

#[test]
fn a_pu_whose_profile_cannot_be_signed_after_a_restart_stays_one() -> Result<()> {
    let lab = Lab::new("unsigned")?;
    lab.write_policy("pair.yaml", Pair::POLICY)?;
    let host = lab.host("a")?;
    host.start_enforcer("")?;
    let plain = host.plain_workload("large")?;
    let cgroup = plain.cgroup().to_string_lossy().into_owned();
    // As large as fits: with a longer certificate it does not.
    let mut size = 600;
    loop {
        let tag = format!("big={}", "x".repeat(size));
        if host.enforcer(&["pu", "add", "--cgroup", &cgroup, "--name", "large", "--tag", &tag])?.code() == 0 {
            break;
        }
        size -= 10;
        ensure!(size > 100, "nothing fits");
    }
    let index = pu(&host, "large")?["index"].clone();
    let other = other_identity(&host, host.directory(), "host-with-a-name-that-takes-room")?;
    host.start_enforcer(&other)?;
    let large = pu(&host, "large")?;
    assert_eq!(large["index"], index);
    assert!(large["error"].as_str().is_some_and(|error| error.contains("too large")), "{large}");
    // Enforced: nothing passes that no rule allows, to a host where anybody may listen.
    let b = lab.host("b")?;
    let _plain = b.serve(&["--listen", "[::]:22"])?;
    assert_ne!(plain.connect(&b.socket_v4(22), &["--timeout", "1000"])?.outcome, Outcome::Ok);
    let small = host.workload_by_cgroup("small", &["app=client"])?;
    assert!(pu(&host, &small.name)?["index"].as_u64() > index.as_u64());
    host.enforcer(&["pu", "rm", "large"])?.ok()?;
    assert_eq!(plain.connect(&b.socket_v4(22), &["--payload", "ping", "--timeout", "3000"])?.outcome, Outcome::Ok);
    // With the certificate it had it is signed again.
    Ok(())
}

#[test]
fn a_broken_policy_keeps_no_agent_from_taking_over() -> Result<()> {
    let pair = Pair::new("broken")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020", "--listen", "[::]:8030"])?;
    pair.introduce(8020)?;
    let mut held = Vec::new();
    for to in pair.addresses(8020) {
        held.push(hold(&pair, &to)?);
    }
    let good = "  - call: allow app=client -> app=server tcp/8000-8999\n";
    let works = |what: &str, port: u16, who: &tests::Workload, expected: Outcome| -> Result<()> {
        for to in pair.addresses(port) {
            let attempt = who.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
            ensure!(attempt.outcome == expected, "{what}: {attempt:?}\n{}", pair.b.enforcer_log());
        }
        Ok(())
    };
    let restart = || {
        pair.b.kill9_enforcer()?;
        pair.b.restart_enforcer()
    };

    // The last good policy is in force, for known pairs and new ones.
    pair.decree("  - call: allwo app=client\n")?;
    restart()?;
    let error = policy_error(&pair.b)?;
    assert!(error.contains("pair.yaml:3") && error.contains("last good policy"), "{error}");
    assert!(pair.b.enforcer_log().contains("the policy is broken"), "{}", pair.b.enforcer_log());
    works("a known pair", 8020, &pair.client, Outcome::Ok)?;
    // The client's enforcer never read the broken one: it goes on with what it has.
    let newcomer = pair.a.workload("newcomer", &["app=client", "new=1"])?;
    works("a new pair", 8030, &newcomer, Outcome::Ok)?;

    // Without a good copy: what was judged stays, the rest is denied.
    let copy = pair.b.directory().join("enforcer.sock.policy");
    let bytes = fs::read(&copy)?;
    for damage in ["checksum", "missing"] {
        if damage == "missing" {
            fs::remove_file(&copy)?;
        } else {
            let other = if bytes[0] == b'0' { b"1" } else { b"0" };
            fs::write(&copy, [other, &bytes[1..]].concat())?;
        }
        restart()?;
        let error = policy_error(&pair.b)?;
        assert!(error.contains("everything new is denied"), "{damage}: {error}");
        works(damage, 8020, &pair.client, Outcome::Ok)?;
        let stranger =
            pair.a.workload(&format!("stranger{}", damage.len()), &["app=client", &format!("new={damage}")])?;
        works(damage, 8020, &stranger, Outcome::Refused)?;
    }
    for process in &mut held {
        ensure!(process.wait(Duration::ZERO)?.is_none(), "a live connection fell: {}", process.stdout());
    }

    // Mended, everything is as it was; what no rule allows any longer is cut though the former rules are forgotten.
    pair.decree(good)?;
    let deadline = Instant::now() + Duration::from_secs(3);
    while !policy_error(&pair.b)?.is_empty() {
        ensure!(Instant::now() < deadline, "{}", policy_error(&pair.b)?);
        std::thread::sleep(Duration::from_millis(20));
    }
    works("mended", 8020, &newcomer, Outcome::Ok)?;
    for process in &mut held {
        ensure!(process.wait(Duration::ZERO)?.is_none(), "a live connection fell: {}", process.stdout());
    }
    fs::remove_file(&copy)?;
    pair.decree("  - call: allwo app=client\n")?;
    restart()?;
    pair.decree("  - call: allow app=client -> app=server tcp/8999\n")?;
    for process in &mut held {
        ensure!(process.wait(Duration::from_secs(2))?.is_some(), "not cut: {}", process.stdout());
    }
    works("another policy", 8020, &pair.client, Outcome::Refused)
}

#[test]
fn a_first_start_with_a_broken_policy_is_an_error() -> Result<()> {
    let lab = Lab::new("firstbroken")?;
    lab.write_policy("pair.yaml", "name: pair\nrules:\n  - call: allwo app=client\n")?;
    let host = lab.host("a")?;
    host.write_enforcer_config("")?;
    let binary = enforcer_binary()?.to_string_lossy().into_owned();
    let config = host.enforcer_config().to_string_lossy().into_owned();
    let output = host.exec_within(&[&binary, "run", "--config", &config], Duration::from_secs(10))?;
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("pair.yaml:3"), "{}", output.stderr);
    assert!(!host.bpffs().join("v1").exists(), "pins are left");
    Ok(())
}
