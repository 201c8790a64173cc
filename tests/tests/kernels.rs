//! The core of the product on this kernel and, in a virtual machine, on Debian's 6.1, which has no tcx links.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{GuestKernel, Host, Outcome, Pair, Record};

/// The test that runs on either kernel.
const CORE: &str = "first_contact_resumption_refusal_and_a_killed_agent";
/// An emulated machine may take this long for all of it.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn first_contact_resumption_refusal_and_a_killed_agent() -> Result<()> {
    println!("kernel {}", release()?);
    let began = Instant::now();
    let step = |what: &str| println!("{:6.1} s: {what}", began.elapsed().as_secs_f64());
    let pair = Pair::with("kernel", "datapath.agent_timeout = \"5s\"")?;
    let server = pair.server.serve(&["--listen", "[::]:8020", "--listen", "[::]:9999"])?;
    let mut accepted = 0;
    step("two hosts");
    let call = |to: &str| pair.client.connect(to, &["--payload", "ping", "--timeout", "10000"]);

    let before = [pair.a.counters()?, pair.b.counters()?];
    for to in pair.addresses(8020) {
        for _ in 0..2 {
            let attempt = call(&to)?;
            ensure!((attempt.outcome, attempt.reply.as_str()) == (Outcome::Ok, "ping"), "{attempt:?}\n{}", logs(&pair));
            accepted += 1;
        }
    }
    for to in pair.addresses(9999) {
        let attempt = call(&to)?;
        ensure!(attempt.outcome == Outcome::Refused, "no rule allows it: {attempt:?}");
        let stranger = pair.a.connect(&to.replace(":9999", ":8020"), &["--timeout", "300"])?;
        ensure!(stranger.outcome == Outcome::Timeout, "whoever has no identity hears nothing: {stranger:?}");
    }
    let counted = [&pair.a.counters()? - &before[0], &pair.b.counters()? - &before[1]];
    assert_eq!((counted[0].verdicts_out("allowed"), counted[1].verdicts_in("allowed")), (4, 4));
    assert_eq!((counted[0].verdicts_in("no_rule"), counted[1].verdicts_in("no_rule")), (2, 2));
    assert!(counted[1].verdicts_in("no_identity") >= 2, "{:?}", counted[1].refusals());
    let other = |labels: &&str| !labels.contains("no_rule") && !labels.contains("no_identity");
    for counted in &counted {
        assert_eq!(counted.refusals().into_keys().find(other), None, "{:?}", counted.refusals());
    }
    for host in [&pair.a, &pair.b] {
        let records = host.records()?;
        let paths: Vec<_> = records.iter().filter(|record| record.verdict == "allow").map(path).collect();
        // An address is met for the first time by each family.
        assert_eq!(paths, ["hello", "resume", "hello", "resume"], "{records:#?}");
    }

    step("first contacts, resumptions, refusals");
    // Two connections that live across the death of both agents, and others that begin while nobody is there.
    let mut held = Vec::new();
    for to in pair.addresses(8020) {
        let mut process = pair.client.spawn_tool(&["hold", &to, "--count", "1", "--ping", "50"])?;
        process.wait_for_line("READY {\"open\":1,\"failed\":0}", Duration::from_secs(20))?;
        held.push(process);
        accepted += 1;
    }
    pair.a.kill9_enforcer()?;
    pair.b.kill9_enforcer()?;
    // One of them is enough to start again: to load the programs is what takes its time on an emulated processor.
    for alive in [false, true] {
        if alive {
            step("resumptions and refusals without agents");
            pair.b.restart_enforcer()?;
        }
        for to in pair.addresses(8020) {
            let attempt = call(&to)?;
            ensure!(attempt.outcome == Outcome::Ok, "agents alive: {alive}: {attempt:?}");
            accepted += 1;
        }
        for to in pair.addresses(9999) {
            let attempt = call(&to)?;
            ensure!(attempt.outcome == Outcome::Refused, "agents alive: {alive}: {attempt:?}");
        }
    }
    step("the server's agent started again");
    for process in &mut held {
        ensure!(process.wait(Duration::ZERO)?.is_none(), "a living connection ended: {}", process.stdout());
    }
    assert_eq!(server.accepted()?, accepted, "{:?}", server.events()?);

    // What is no longer allowed is cut, and nothing is left of an enforcer that was unloaded.
    pair.decree("  - other: allow app=client -> app=server tcp/7000\n")?;
    for process in &mut held {
        process.wait(Duration::from_secs(20))?.with_context(|| format!("it was not cut:\n{}", logs(&pair)))?;
    }
    step("cut after a change of policy");
    let Pair { client, server: workload, a, b, lab: _lab } = pair;
    drop((client, workload, server));
    for host in [&a, &b] {
        host.stop_enforcer();
        unload(host)?;
    }
    step("unloaded");
    Ok(())
}

#[test]
fn the_same_in_a_virtual_machine_on_6_1() -> Result<()> {
    let kernel = GuestKernel::find("6.1.")?;
    let own = std::env::current_exe()?;
    let output = kernel.run(&[&own.to_string_lossy(), "--exact", CORE, "--nocapture", "--test-threads=1"], LIMIT)?;
    println!("{} in {:.1} s:\n{}", kernel.release(), output.took.as_secs_f64(), output.text);
    ensure!(output.code == 0, "it ended with {}", output.code);
    ensure!(output.text.contains(&format!("kernel {}", kernel.release())), "it ran elsewhere");
    ensure!(output.text.contains("test result: ok. 1 passed; 0 failed; 0 ignored"), "it did not run");
    Ok(())
}

/// This kernel's release.
fn release() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

fn path(record: &Record) -> &str {
    &record.path
}

fn logs(pair: &Pair) -> String {
    format!("{}\n{}", pair.a.enforcer_log(), pair.b.enforcer_log())
}

/// Takes the enforcer away; neither pins nor programs stay.
fn unload(host: &Host) -> Result<()> {
    let (binary, config) = (tests::enforcer_binary()?, host.enforcer_config());
    let line = [&binary.to_string_lossy(), "unload", "--config", &config.to_string_lossy()].map(str::to_owned);
    host.exec(&line)?.ok()?;
    ensure!(!host.bpffs().join("v1").exists(), "pins are left");
    let qdiscs = host.exec(&["tc", "qdisc", "show"])?;
    ensure!(!qdiscs.ok()?.contains("clsact"), "{}", qdiscs.stdout);
    let shown: Value = host.exec(&["bpftool", "--json", "net", "show"])?.json()?;
    ensure!(shown[0]["tc"].as_array().is_none_or(Vec::is_empty), "{shown}");
    Ok(())
}
