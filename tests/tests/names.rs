//! Peers by DNS name: what a PU's own answers open, for whom, and for how long.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Deserialize;
use tests::{Host, Lab, Proc, Server, Workload};

/// What `lab-tool ask` says.
#[derive(Debug, Deserialize)]
struct Asked {
    found: Vec<String>,
    outcome: String,
}

const RECORDS: &[&str] = &[
    "www.example.org A 2 192.0.2.10",
    "www.example.org AAAA 2 2001:db8:77::10",
    "alias.example.org CNAME 300 edge.cdn.test",
    "edge.cdn.test A 300 192.0.2.11",
    "svc.example.org HTTPS 300 192.0.2.12",
    "many.example.org A 300 198.51.100.0/24",
    "evil.test A 300 192.0.2.13",
    "inside.example.org A 300 10.77.0.2",
];

const POLICY: &str = "\
name: names
rules:
  - dns: allow app -> net 10.77.0.2/32,fd77::2/128 udp/53 tcp/53
  - web: allow app=client -> net *.example.org tcp/8443 log
";

/// A host with an enforcer, and one without it that resolves and serves.
struct Place {
    _lab: Lab,
    a: Host,
    client: Workload,
    other: Workload,
    _resolver: Proc,
    _server: Server,
}

impl Place {
    fn new(name: &str, forge: Option<&str>) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        lab.write_policy("names.yaml", POLICY)?;
        for address in ["192.0.2.10/32", "192.0.2.11/32", "192.0.2.12/32", "192.0.2.13/32", "198.51.100.250/32"] {
            b.exec(&["ip", "address", "add", address, "dev", "lo"])?.ok()?;
        }
        b.exec(&["ip", "address", "add", "2001:db8:77::10/128", "dev", "lo"])?.ok()?;
        for net in ["192.0.2.0/24", "198.51.100.0/24"] {
            a.exec(&["ip", "route", "add", net, "via", "10.77.0.2"])?.ok()?;
        }
        a.exec(&["ip", "route", "add", "2001:db8:77::/48", "via", "fd77::2"])?.ok()?;
        let place = b.plain_workload("servers")?;
        let mut args = vec!["resolver", "--listen", "10.77.0.2:53", "--listen", "[fd77::2]:53"];
        RECORDS.iter().for_each(|record| args.extend(["--record", record]));
        forge.iter().for_each(|address| args.extend(["--forge", address]));
        let mut resolver = place.spawn_tool(&args)?;
        resolver.wait_for_line("READY", Duration::from_secs(5))?;
        let server = place.serve(&["--listen", "[::]:8443"])?;
        a.start_enforcer("names.stale = \"2s\"\n")?;
        let client = a.workload_by_cgroup("client", &["app=client"])?;
        let other = a.workload_by_cgroup("other", &["app=other"])?;
        Ok(Self { _lab: lab, a, client, other, _resolver: resolver, _server: server })
    }

    fn count(&self, what: &str) -> Result<i64> {
        Ok(self.a.counters()?.get(&format!("enforcer_names_total{{what=\"{what}\"}}")))
    }
}

fn ask(pu: &Workload, name: &str, options: &[&str]) -> Result<Asked> {
    let server = if options.contains(&"v6") { "[fd77::2]:53" } else { "10.77.0.2:53" };
    let options: Vec<&str> = options.iter().copied().filter(|option| *option != "v6").collect();
    pu.tool(&[&["ask", name, "--server", server, "--then", "8443"], options.as_slice()].concat())
}

#[test]
fn a_name_opens_what_the_answer_says_before_the_pu_knows_it() -> Result<()> {
    let place = Place::new("names", None)?;
    let client = &place.client;
    let direct = |to: &str| -> Result<String> { Ok(format!("{:?}", client.connect(to, &[])?.outcome)) };
    assert_eq!(direct("192.0.2.10:8443")?, "Refused", "nobody asked yet");
    for (name, options) in [
        ("www.example.org", &[][..]),
        ("WWW.example.ORG", &["--tcp"]),
        ("www.example.org", &["--kind", "AAAA"]),
        ("www.example.org", &["v6", "--kind", "AAAA", "--tcp"]),
        ("www.example.org", &["v6"]),
        ("alias.example.org", &[]),
        ("svc.example.org", &["--kind", "HTTPS"]),
    ] {
        let asked = ask(client, name, options)?;
        assert_eq!(asked.outcome, "ok", "{name} {options:?}: {asked:?}\n{}", place.a.enforcer_log());
    }
    // More than one frame of the kernel's, and the last address of it.
    let many = ask(client, "many.example.org", &["--tcp"])?;
    assert_eq!((many.found.len(), many.outcome.as_str()), (250, "ok"), "{}", place.a.enforcer_log());
    assert_eq!(place.count("learned")?, 8);
    // No rule means it.
    let evil = ask(client, "evil.test", &[])?;
    assert_eq!((evil.found, evil.outcome.as_str()), (vec!["192.0.2.13".to_owned()], "ConnectionRefused"));
    assert_eq!(place.count("unmeant")?, 1);
    assert_eq!(direct("192.0.2.11:8443")?, "Ok", "an address that was learned, without asking again");
    assert_eq!(direct("192.0.2.11:8444")?, "Refused", "another port");
    let explain =
        |to: &str| place.a.enforcer(&["policy", "explain", "--from", "app=client", "--to", to, "--port", "8443"]);
    for to in ["192.0.2.11", "net some.example.org"] {
        let told = explain(to)?;
        assert!(told.ok()?.starts_with("tcp/8443: allowed by rule 2 `names/web`"), "{to}: {}", told.stdout);
    }
    // Another PU has the addresses' meaning, but no rule.
    assert_eq!(ask(&place.other, "www.example.org", &[])?.outcome, "ConnectionRefused");
    // A name is no way around identity.
    assert_eq!(ask(client, "inside.example.org", &[])?.outcome, "ConnectionRefused");
    assert_eq!(place.count("inside")?, 1);
    let rules: Vec<String> = place.a.records()?.into_iter().map(|record| record.rule).collect();
    assert!(rules.iter().any(|rule| rule == "names/web"), "{rules:?}");
    assert_eq!(place.a.counters()?.get("enforcer_losses_total{what=\"names\"}"), 0);
    Ok(())
}

#[test]
fn a_forged_answer_opens_nothing() -> Result<()> {
    let place = Place::new("forged", Some("192.0.2.13"))?;
    let asked = ask(&place.client, "www.example.org", &[])?;
    assert_eq!(asked.outcome, "ok", "{asked:?}");
    assert_eq!(place.count("unasked")?, 1);
    assert_eq!(format!("{:?}", place.client.connect("192.0.2.13:8443", &[])?.outcome), "Refused");
    Ok(())
}

#[test]
fn a_name_ends_with_its_time_but_not_under_a_live_connection_or_a_restart() -> Result<()> {
    let place = Place::new("stale", None)?;
    let client = &place.client;
    let outcome = || -> Result<String> { Ok(format!("{:?}", client.connect("192.0.2.10:8443", &[])?.outcome)) };
    assert_eq!(ask(client, "www.example.org", &[])?.outcome, "ok");
    let mut held = client.spawn_tool(&["hold", "192.0.2.10:8443", "--count", "1", "--ping", "50"])?;
    held.wait_for_line("READY", Duration::from_secs(2))?;
    // Two seconds to live and two of grace are over, the connection is not.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(outcome()?, "Ok", "in use");
    place.a.restart_enforcer()?;
    assert_eq!(outcome()?, "Ok", "after a restart");
    std::thread::sleep(Duration::from_secs(1));
    ensure!(held.wait(Duration::ZERO)?.is_none() && !held.stdout().contains("ended"), "cut: {}", held.stdout());
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(30);
    while outcome()? == "Ok" {
        ensure!(Instant::now() < deadline, "the address outlives its name");
        // Each attempt is a live connection for a while.
        std::thread::sleep(Duration::from_secs(7));
    }
    assert_eq!(outcome()?, "Refused");
    assert_eq!(ask(client, "www.example.org", &[])?.outcome, "ok", "asked again");
    Ok(())
}
