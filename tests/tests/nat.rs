//! Addresses that are changed on the way: identity holds through them.
//!
//! A router without an enforcer, on the hosts' own network, through which what they send each other is led.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::{Host, Lab, Outcome, Place, Proc, Server, Workload};

const POLICY: &str = "name: nat\nrules:\n  - call: allow app=client -> app=server tcp/8000-8999\n";

/// Well below TCP's first timer: nothing was lost and found again.
const AT_ONCE: u64 = 900_000;

/// The same connection comes to the same back end, also when its SYN is sent again.
const BY_PORT: &str = "jhash tcp sport";
/// A SYN that is sent again after a reset is a new one, for the next back end.
const IN_TURN: &str = "numgen inc";

struct Stage {
    lab: Lab,
    a: Host,
    router: Host,
    client: Workload,
    intruder: Workload,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("nat.yaml", POLICY)?;
        let (a, router) = (lab.host("a")?, lab.host("r")?);
        a.start_enforcer("")?;
        for family in ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"] {
            router.sysctl(family, "1")?;
        }
        for interface in ["all", "eth0"] {
            // A router that sends back where it came from would tell of the short way.
            router.sysctl(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
        }
        // There is no such switch for IPv6.
        a.sysctl("net/ipv6/conf/eth0/accept_redirects", "0")?;
        router.exec(&["nft", "add table inet nat"])?.ok()?;
        let client = a.workload("client", &["app=client"])?;
        let intruder = a.workload("intruder", &["app=intruder"])?;
        Ok(Self { lab, a, router, client, intruder })
    }

    /// A host with an enforcer and a server.
    fn back_end(&self, name: &str, tags: &[&str]) -> Result<BackEnd> {
        let host = self.lab.host(name)?;
        host.start_enforcer("")?;
        let server = host.workload("server", tags)?;
        let serving = server.serve(&["--listen", "[::]:8020"])?;
        Ok(BackEnd { host, server, _serving: serving })
    }

    fn nat(&self, chain: &str, rules: &[String]) -> Result<()> {
        let hook = match chain {
            "prerouting" => "type nat hook prerouting priority -100;",
            _ => "type nat hook postrouting priority 100;",
        };
        self.router.exec(&["nft", &format!("add chain inet nat {chain} {{ {hook} }}")])?.ok()?;
        for rule in rules {
            self.router.exec(&["nft", &format!("add rule inet nat {chain} {rule}")])?.ok()?;
        }
        Ok(())
    }

    fn masquerade(&self) -> Result<()> {
        self.nat("postrouting", &["masquerade".to_owned()])
    }

    /// Port 8020 of the router stands for that of these hosts; `choose` says how many there are and which it is: a number
    /// below that.
    fn publish(&self, hosts: &[&Host], choose: &str) -> Result<()> {
        let choice = |addresses: Vec<String>| match &addresses[..] {
            [one] => one.clone(),
            several => {
                let entries: Vec<_> = several.iter().enumerate().map(|(at, to)| format!("{at} : {to}")).collect();
                format!("{choose} mod {} map {{ {} }}", several.len(), entries.join(", "))
            }
        };
        let v4 = choice(hosts.iter().map(|host| host.v4().to_string()).collect());
        let v6 = choice(hosts.iter().map(|host| host.v6().to_string()).collect());
        let rules = [
            format!("ip daddr {} tcp dport 8020 dnat ip to {v4}", self.router.v4()),
            format!("ip6 daddr {} tcp dport 8020 dnat ip6 to {v6}", self.router.v6()),
        ];
        self.nat("prerouting", &rules)
    }

    /// The router's addresses, behind which the back ends are.
    fn published(&self) -> [String; 2] {
        [self.router.socket_v4(8020), self.router.socket_v6(8020)]
    }
}

struct BackEnd {
    host: Host,
    server: Workload,
    _serving: Server,
}

fn ask(place: &Place, to: &str) -> Result<Outcome> {
    let attempt = place.connect(to, &["--payload", "ping", "--timeout", "3000"])?;
    ensure!(attempt.total_micros < AT_ONCE, "by TCP's timer: {attempt:?}");
    Ok(attempt.outcome)
}

fn hold(place: &Place, to: &str) -> Result<Proc> {
    let mut process = place.spawn_tool(&["hold", to, "--count", "1"])?;
    process.wait_for_line("READY", Duration::from_secs(5))?;
    Ok(process)
}

/// The tags of the peers a host's enforcer has seen on its flows, and their paths.
fn ends(host: &Host) -> Result<Vec<String>> {
    let flows: Value = host.enforcer_json(&["flows"])?;
    let flows = flows["flows"].as_array().cloned().unwrap_or_default();
    Ok(flows.iter().map(|flow| format!("{} {}", flow["peer"], flow["peer_tags"])).collect())
}

#[test]
fn behind_a_masquerade() -> Result<()> {
    let stage = Stage::new("masquerade")?;
    let back = stage.back_end("b", &["app=server"])?;
    stage.masquerade()?;
    let (a, b, router) = (&stage.a, &back.host, &stage.router);
    for (to, via) in b.ips().into_iter().zip(router.ips()) {
        a.exec(&["ip", "route", "add", &to.to_string(), "via", &via.to_string()])?.ok()?;
    }
    let before = b.counters()?;
    for to in [b.socket_v4(8020), b.socket_v6(8020)] {
        for _ in 0..5 {
            assert_eq!(ask(&stage.client, &to)?, Outcome::Ok);
        }
        assert_eq!(ask(&stage.intruder, &to)?, Outcome::Refused);
        let _held = hold(&stage.client, &to)?;
        let seen = ends(b)?;
        ensure!(seen.iter().all(|end| end.contains("host-a/client") && end.contains("app=client")), "{seen:?}");
    }
    let counted = &b.counters()? - &before;
    assert_eq!(counted.packets_out("retry"), 0, "one enforcer behind one address");
    assert!(counted.packets_in("resume") >= 8, "most were resumed");
    assert_eq!(counted.verdicts_in("no_rule"), 2, "the intruder, once over each family: {:?}", counted.refusals());
    assert_eq!(counted.refusals().len(), 1, "{:?}", counted.refusals());
    Ok(())
}

#[test]
fn one_address_for_two_back_ends_of_which_one_may_not_be_called() -> Result<()> {
    let stage = Stage::new("clusterip")?;
    let one = stage.back_end("b", &["app=server"])?;
    let other = stage.back_end("c", &["app=other"])?;
    stage.masquerade()?;
    stage.publish(&[&one.host, &other.host], BY_PORT)?;
    let before = stage.a.counters()?;
    let mut outcomes = Vec::new();
    for to in stage.published() {
        for _ in 0..12 {
            outcomes.push(ask(&stage.client, &to)?);
        }
    }
    let allowed = outcomes.iter().filter(|outcome| **outcome == Outcome::Ok).count() as i64;
    let refused = outcomes.iter().filter(|outcome| **outcome == Outcome::Refused).count() as i64;
    assert_eq!(allowed + refused, 24, "{outcomes:?}");
    assert!(allowed > 0 && refused > 0, "the balancer chose one back end only: {outcomes:?}");
    let (at_one, at_other) = (one.host.counters()?, other.host.counters()?);
    assert_eq!((at_one.verdicts_in("allowed"), at_one.verdicts_in("no_rule")), (allowed, 0), "{:?}", at_one.refusals());
    assert_eq!((at_other.verdicts_in("allowed"), at_other.verdicts_in("no_rule")), (0, refused));
    let counted = &stage.a.counters()? - &before;
    let changes = outcomes.windows(2).filter(|two| two[0] != two[1]).count() as i64;
    let retries = counted.packets_in("retry");
    assert!(retries <= changes, "at most one for each change of back end: {retries} of {changes}");
    Ok(())
}

#[test]
fn connections_spread_over_three_enforcers() -> Result<()> {
    let stage = Stage::new("balancer")?;
    let backs = ["b", "c", "d"].map(|name| stage.back_end(name, &["app=server"]));
    let [b, c, d] = backs;
    let backs = [b?, c?, d?];
    stage.masquerade()?;
    stage.publish(&[&backs[0].host, &backs[1].host, &backs[2].host], IN_TURN)?;
    let before = stage.a.counters()?;
    for to in stage.published() {
        for _ in 0..15 {
            assert_eq!(ask(&stage.client, &to)?, Outcome::Ok);
            assert_eq!(ask(&stage.intruder, &to)?, Outcome::Refused);
        }
    }
    let counted = &stage.a.counters()? - &before;
    let mut sum = [0; 2];
    for back in &backs {
        let here = back.host.counters()?;
        let (allowed, refused) = (here.verdicts_in("allowed"), here.verdicts_in("no_rule"));
        assert!(allowed + refused + here.packets_out("retry") > 0, "{} was never chosen", back.host.name());
        sum = [sum[0] + allowed, sum[1] + refused];
    }
    assert_eq!(sum, [30, 30], "every attempt was judged by one back end and no other");
    assert!(counted.packets_in("retry") <= 60, "at most one for each: {}", counted.packets_in("retry"));
    Ok(())
}

#[test]
fn a_hairpin_leads_back_to_the_same_host() -> Result<()> {
    let stage = Stage::new("hairpin")?;
    let back = stage.back_end("b", &["app=server"])?;
    stage.masquerade()?;
    stage.publish(&[&back.host], BY_PORT)?;
    let near = back.host.workload("near", &["app=client"])?;
    let wrong = back.host.workload("wrong", &["app=intruder"])?;
    for to in stage.published() {
        for _ in 0..3 {
            assert_eq!(ask(&near, &to)?, Outcome::Ok);
            assert_eq!(ask(&stage.client, &to)?, Outcome::Ok, "and others as before");
        }
        assert_eq!(ask(&wrong, &to)?, Outcome::Refused);
        let _held = hold(&near, &to)?;
        let seen = ends(&back.host)?;
        ensure!(seen.iter().any(|end| end.contains("host-b/near")), "{seen:?}");
        ensure!(seen.iter().any(|end| end.contains("host-b/server")), "{seen:?}");
    }
    drop(back.server);
    Ok(())
}
