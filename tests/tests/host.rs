//! The host as a PU: what it may do, what reaches it whatever the policy says, and switching it on without being locked out.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Host, Lab, Outcome, Place, Record};

const MANAGED: &str = "host.managed = true\nhost.labels.role = \"node\"";
const POLICY: &str = "name: shop\nrules:\n  - call: allow app=client -> app=server tcp/8020\n  - nodes: allow role=node -> app=server tcp/8020\n";
/// Services of the host: one that is managed by, and one that is not.
const SSH: u16 = 22;
const WEB: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(5);

/// Both families.
fn at(host: &Host, port: u16) -> [String; 2] {
    [host.socket_v4(port), host.socket_v6(port)]
}

fn outcome(from: &Place, to: &str) -> Result<Outcome> {
    Ok(from.connect(to, &["--payload", "ping", "--timeout", "500"])?.outcome)
}

fn assert_reaches(from: &Place, to: &str, what: &str) -> Result<()> {
    let attempt = from.connect(to, &["--payload", "ping", "--timeout", "5000"])?;
    ensure!(attempt.outcome == Outcome::Ok, "{what}: {to}: {attempt:?}");
    Ok(())
}

/// Waits until an attempt comes out like this.
fn wait_for(from: &Place, to: &str, wanted: Outcome, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let found = outcome(from, to)?;
        if found == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{to} is {found:?}, not {wanted:?}, after {limit:?}");
    }
}

/// Waits for a record of the host PU, for this reason, on this port of its own (server) or of the peer (client).
fn record(host: &Host, role: &str, port: u16, reason: &str) -> Result<Record> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let end = format!(":{port}");
    loop {
        let records = host.records()?;
        let found = records.iter().rev().find(|record| {
            let service = if role == "server" { &record.local } else { &record.remote };
            record.pu == "host" && record.role == role && record.reason == reason && service.ends_with(&end)
        });
        if let Some(record) = found {
            return Ok(record.clone());
        }
        ensure!(Instant::now() < deadline, "no record of {role} {port} for {reason}: {records:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether the other end of a connection still answers within this time.
fn answers(stream: &mut TcpStream, limit: Duration) -> Result<bool> {
    stream.write_all(b"ping").context("a write into a live socket")?;
    stream.set_read_timeout(Some(limit))?;
    match stream.read(&mut [0; 64]) {
        Ok(read) => Ok(read > 0),
        Err(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionReset) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

#[test]
fn the_host_is_a_pu_of_its_own_and_stays_reachable() -> Result<()> {
    let lab = Lab::new("hostpu")?;
    lab.write_policy("shop.yaml", POLICY)?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    // Older than the agent: services, and connections to them.
    let _services = a.serve(&["--listen", "[::]:22", "--listen", "[::]:8080"])?;
    let _outside = c.serve(&["--listen", "[::]:8081"])?;
    let mut sessions = [c.call(&a.socket_v4(SSH))?, c.call(&a.socket_v6(SSH))?];
    let mut others = [c.call(&a.socket_v4(WEB))?, c.call(&a.socket_v6(WEB))?];
    for stream in sessions.iter_mut().chain(&mut others) {
        ensure!(answers(stream, PATIENCE)?, "before the enforcer");
    }
    b.start_enforcer("")?;
    let server = b.workload("server", &["app=server"])?;
    let _server = server.serve(&["--listen", "[::]:8020", "--listen", "[::]:8021"])?;
    a.start_enforcer("")?;
    let client = a.workload("client", &["app=client"])?;
    for to in at(&a, WEB) {
        assert_reaches(&c, &to, "the host is not managed yet")?;
    }

    a.start_enforcer(MANAGED)?;
    a.wait_for_pus(&["client", "host"])?;
    let status: Value = a.enforcer_json(&["status"])?;
    assert_eq!((&status["host_pu"], &status["management"]), (&"host".into(), &serde_json::json!(["tcp/22"])));
    assert_eq!(status["trial_s"], Value::Null);

    for stream in &mut sessions {
        assert!(answers(stream, PATIENCE)?, "the session in which it was switched on ended");
    }
    for stream in &mut others {
        assert!(!answers(stream, Duration::from_millis(300))?, "what policy does not allow goes on");
    }
    record(&a, "server", WEB, "no_flow")?;
    let before = a.counters()?;
    for to in at(&a, SSH) {
        assert_reaches(&c, &to, "management")?;
    }
    let managed = record(&a, "server", SSH, "allowed")?;
    assert_eq!((managed.verdict.as_str(), managed.rule.as_str()), ("allow", "builtin/management"), "{managed:?}");
    // A service that is newer than the host PU is no better off.
    let _newer = a.serve(&["--listen", "[::]:8082"])?;
    for to in at(&a, WEB).iter().chain(&at(&a, 8082)) {
        assert_eq!(outcome(&c, to)?, Outcome::Timeout, "{to}");
    }
    record(&a, "server", WEB, "no_identity")?;
    record(&a, "server", 8082, "no_identity")?;
    let counted = &a.counters()? - &before;
    assert!(counted.verdicts_in("no_identity") >= 4, "{:?}", counted.refusals());
    for to in at(&c, 8081) {
        assert_ne!(outcome(&a, &to)?, Outcome::Ok, "{to}");
    }
    record(&a, "client", 8081, "peer_no_identity")?;

    // Its own policy, by identity.
    for to in at(&b, 8020) {
        assert_reaches(&a, &to, "its own policy")?;
    }
    assert_eq!(record(&a, "client", 8020, "allowed")?.rule, "shop/nodes");
    assert_eq!(outcome(&a, &b.socket_v4(8021))?, Outcome::Refused);
    record(&a, "client", 8021, "no_rule")?;

    // Itself.
    for to in ["127.0.0.1:8080".into(), "[::1]:8080".into(), a.socket_v4(WEB), a.socket_v6(8082)] {
        assert_reaches(&a, &to, "within the host")?;
    }
    let mut resolver = a.spawn_tool(&["resolver", "--listen", "127.0.0.1:53", "--record", "x.test A 60 127.0.0.1"])?;
    resolver.wait_for_line("READY", Duration::from_secs(5))?;
    let asked: Value = a.tool(&["ask", "x.test", "--server", "127.0.0.1:53", "--then", "8080"])?;
    assert_eq!(asked["found"], serde_json::json!(["127.0.0.1"]), "UDP over loopback: {asked}");

    // Other PUs of this host.
    for to in at(&b, 8020) {
        assert_reaches(&client, &to, "another PU of the host")?;
    }
    assert_eq!(outcome(&client, &b.socket_v4(8021))?, Outcome::Refused);
    assert_ne!(outcome(&client, "127.0.0.1:8080")?, Outcome::Ok, "a PU reaches the host without a rule");

    let explained: Value = a.enforcer_json(&[
        "policy",
        "explain",
        "--from",
        "app=anything",
        "--to",
        "@host:pu=host-a",
        "--to-namespace",
        "/demo",
        "--port",
        "22",
    ])?;
    assert_eq!(explained["rule"]["name"], "builtin/management", "{explained}");

    // A denying policy does not shut it out.
    lab.write_policy("deny.yaml", "name: shut\nrules:\n  - deny net 0.0.0.0/0,::/0 -> any\n  - deny any -> any\n")?;
    wait_for(&a, &b.socket_v4(8020), Outcome::Refused, Duration::from_secs(10))?;
    for to in at(&a, SSH) {
        assert_reaches(&c, &to, "management, whatever the policy denies")?;
    }

    // And back: what was the host's is unmanaged again.
    a.start_enforcer("")?;
    for to in at(&a, WEB).iter().chain(&at(&a, 8082)) {
        assert_reaches(&c, to, "no longer managed")?;
    }
    Ok(())
}

#[test]
fn what_nobody_confirms_goes_back_whether_or_not_the_agent_lives() -> Result<()> {
    const TIME: &str = "12s";
    let lab = Lab::new("confirm")?;
    let plain = lab.host("c")?;
    let (dies, waits, stays) = (lab.host("dies")?, lab.host("waits")?, lab.host("stays")?);
    let mut servers = Vec::new();
    for host in [&dies, &waits, &stays] {
        servers.push(host.serve(&["--listen", "[::]:8080"])?);
        host.write_enforcer_config("host.managed = true")?;
        host.run_enforcer(&["--confirm", TIME])?;
        if host.name() == "dies" {
            host.kill9_enforcer()?;
        }
        if host.name() == "stays" {
            assert!(host.enforcer(&["confirm"])?.ok()?.contains("confirmed"));
        }
        assert_eq!(outcome(&plain, &host.socket_v4(WEB))?, Outcome::Timeout, "{}", host.name());
    }
    let again = stays.enforcer(&["confirm"])?;
    ensure!(again.code() == 1 && again.stderr.contains("nothing is on trial"), "{}", again.stderr);

    let ended = waits.wait_for_enforcer(Duration::from_secs(30))?;
    assert_eq!(ended.code(), Some(5), "{}", waits.enforcer_log());
    let log = waits.enforcer_log();
    ensure!(log.contains("not confirmed: everything is unloaded"), "{log}");
    ensure!(!waits.bpffs().join("v1").exists(), "something is left of it: {log}");
    for host in [&waits, &dies] {
        for to in at(host, WEB) {
            wait_for(&plain, &to, Outcome::Ok, Duration::from_secs(30))?;
        }
        assert_reaches(host, &plain_service(&plain)?, "out of a host whose trial is over")?;
    }
    for to in at(&stays, WEB) {
        assert_eq!(outcome(&plain, &to)?, Outcome::Timeout, "confirmed, and gone back: {to}");
    }
    // An agent that is told to enforce does so, whatever became of the trial before.
    dies.restart_enforcer()?;
    assert_eq!(outcome(&plain, &dies.socket_v4(WEB))?, Outcome::Timeout);
    Ok(())
}

/// A service of the plain host that nobody guards; it lasts as long as the lab.
fn plain_service(host: &Host) -> Result<String> {
    let to = host.socket_v4(8090);
    if outcome(host, &to)? != Outcome::Ok {
        std::mem::forget(host.serve(&["--listen", "[::]:8090"])?);
    }
    Ok(to)
}

#[test]
fn a_trial_that_ends_puts_back_what_was_in_force_before() -> Result<()> {
    let lab = Lab::new("putback")?;
    lab.write_policy("shop.yaml", POLICY)?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    b.start_enforcer("")?;
    let server = b.workload("server", &["app=server"])?;
    let _server = server.serve(&["--listen", "[::]:8020"])?;
    let _service = a.serve(&["--listen", "[::]:8080"])?;
    a.start_enforcer("")?;
    let client = a.workload("client", &["app=client"])?;
    assert_reaches(&client, &b.socket_v4(8020), "before")?;
    a.stop_enforcer();

    lab.write_policy("shut.yaml", "name: shut\nrules:\n  - deny app=client -> any\n")?;
    wait_for(&client, &b.socket_v4(8020), Outcome::Refused, Duration::from_secs(10))?;
    a.write_enforcer_config(MANAGED)?;
    a.run_enforcer(&["--confirm", "10m"])?;
    a.wait_for_pus(&["client", "host"])?;
    let status: Value = a.enforcer_json(&["status"])?;
    ensure!(status["trial_s"].as_u64().is_some_and(|left| (1..=600).contains(&left)), "{status}");
    assert_eq!(outcome(&c, &a.socket_v4(WEB))?, Outcome::Timeout);
    assert_eq!(outcome(&client, &b.socket_v4(8020))?, Outcome::Refused);

    // Whoever ends it does not confirm it. b has the new policy still: what a refuses by itself is told by its own rule.
    a.signal_enforcer(Signal::SIGTERM)?;
    let ended = a.wait_for_enforcer(Duration::from_secs(20))?;
    assert_eq!(ended.code(), Some(5), "{}", a.enforcer_log());
    for to in at(&a, WEB) {
        assert_reaches(&c, &to, "the host is none of its PUs any more")?;
    }
    std::fs::remove_file(lab.write_policy("shut.yaml", "")?)?;
    wait_for(&client, &b.socket_v4(8020), Outcome::Ok, Duration::from_secs(10))?;
    assert_ne!(outcome(&client, &c.socket_v4(22))?, Outcome::Ok, "the PU that was there before is one still");
    a.write_enforcer_config("")?;
    a.restart_enforcer()?;
    a.wait_for_pus(&["client"])?;
    Ok(())
}
