//! Interfaces on top of others: whatever the host's address is on, a packet is judged once.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::{Host, Lab, Outcome, Place, Segment, Workload};

const POLICY: &str = "name: pair
rules:
  - call: allow app=client -> app=server tcp/8000-8999
  - back: allow app=server -> app=client tcp/7000-7999
";
const AUTO: &str = "datapath.interfaces = [\"auto\"]";

/// A host whose addresses move about, with a PU by cgroup, and an ordinary one.
struct Stage {
    client: Workload,
    server: Workload,
    a: Host,
    b: Host,
    _lab: Lab,
}

impl Stage {
    fn new(name: &str, at_a: &str, prepare: impl FnOnce(&Host) -> Result<()>) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("pair.yaml", POLICY)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        prepare(&a)?;
        a.start_enforcer(at_a)?;
        b.start_enforcer(AUTO)?;
        let client = a.workload("client", &["app=client"])?;
        let server = b.workload("server", &["app=server"])?;
        Ok(Self { client, server, a, b, _lab: lab })
    }

    /// Both PUs call each other over both families: each connection is judged once at each end, and nothing is refused
    /// but what no rule allows.
    fn both_ways(&self, what: &str) -> Result<()> {
        let _there = self.server.serve(&["--listen", "[::]:8020", "--listen", "[::]:9999"])?;
        let _back = self.client.serve(&["--listen", "[::]:7020"])?;
        let before = (self.a.counters()?, self.b.counters()?);
        for round in 0..2 {
            let what = format!("{what}, round {round}");
            for to in [self.b.socket_v4(8020), self.b.socket_v6(8020)] {
                answered(&self.client, &to, &what)?;
            }
            for to in [self.a.socket_v4(7020), self.a.socket_v6(7020)] {
                answered(&self.server, &to, &what)?;
            }
        }
        for to in [self.b.socket_v4(9999), self.b.socket_v6(9999)] {
            refused(&self.client, &to, what)?;
        }
        for (host, before) in [(&self.a, &before.0), (&self.b, &before.1)] {
            let counted = &host.counters()? - before;
            let allowed = (counted.verdicts_out("allowed"), counted.verdicts_in("allowed"));
            assert_eq!(allowed, (4, 4), "{what}: judged by {}: {:?}", host.name(), counted.refusals());
            let other = counted.refusals().into_keys().find(|labels| !labels.contains("no_rule"));
            assert_eq!(other, None, "{what}: refused by {}: {:?}", host.name(), counted.refusals());
        }
        Ok(())
    }
}

fn answered(from: &Place, to: &str, what: &str) -> Result<()> {
    let attempt = from.connect(to, &["--payload", "ping", "--timeout", "3000"])?;
    ensure!((attempt.outcome, attempt.reply.as_str()) == (Outcome::Ok, "ping"), "{what} to {to}: {attempt:?}");
    ensure!(attempt.total_micros < 900_000, "{what}: by the timer: {attempt:?}");
    Ok(())
}

fn refused(from: &Place, to: &str, what: &str) -> Result<()> {
    let attempt = from.connect(to, &["--timeout", "3000"])?;
    ensure!(attempt.outcome == Outcome::Refused, "{what} to {to}: {attempt:?}");
    Ok(())
}

/// State and reason of an interface, as `enforcer status` tells it.
fn state_of(host: &Host, interface: &str) -> Result<(String, String)> {
    let status: Value = host.enforcer_json(&["status"])?;
    let found = status["interfaces"].as_array().into_iter().flatten().find(|view| view["name"] == interface);
    let text = |key: &str| found.and_then(|view| view[key].as_str()).unwrap_or_default().to_owned();
    Ok((text("state"), text("reason")))
}

fn becomes(host: &Host, interface: &str, state: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let now = state_of(host, interface)?;
        if now.0 == state {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{interface} is {now:?}, not {state}:\n{}", host.enforcer_log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_host_whose_address_moves_to_a_bridge_and_back() -> Result<()> {
    let stage = Stage::new("bridge", AUTO, |_| Ok(()))?;
    stage.both_ways("at eth0")?;
    stage.a.move_to_bridge()?;
    becomes(&stage.a, "eth0", "port")?;
    becomes(&stage.a, "br0", "enforced")?;
    assert_eq!(state_of(&stage.a, "eth0")?.1, "port of bridge br0, where its packets are judged");
    stage.both_ways("at the bridge")?;
    stage.a.restart_enforcer()?;
    becomes(&stage.a, "eth0", "port")?;
    stage.both_ways("after a restart")?;
    stage.a.move_off_bridge()?;
    becomes(&stage.a, "eth0", "enforced")?;
    stage.both_ways("at eth0 again")
}

#[test]
fn a_bridge_by_name() -> Result<()> {
    let stage = Stage::new("brname", "datapath.interfaces = [\"br0\", \"lo\"]", Host::move_to_bridge)?;
    stage.both_ways("at the bridge")?;
    assert_eq!(state_of(&stage.a, "eth0")?, ("left".into(), "not among `datapath.interfaces`".into()));
    stage.a.stop_enforcer();
    for names in ["[\"br0\", \"eth0\", \"lo\"]", "[\"eth0\"]"] {
        let error = stage.a.start_enforcer(&format!("datapath.interfaces = {names}")).unwrap_err().to_string();
        let plain = "names eth0, a port of bridge br0: its packets are judged at br0; name br0 instead";
        assert!(error.contains(plain), "{names}: {error}");
    }
    Ok(())
}

#[test]
fn guests_at_the_ports_of_the_hosts_bridge() -> Result<()> {
    let stage = Stage::new("brguest", AUTO, Host::move_to_bridge)?;
    let first = stage.a.bridged_guest("one", 101)?;
    let second = stage.a.bridged_guest("two", 102)?;
    let local = stage.a.workload("local", &["app=server"])?;
    for (guest, tag) in [(&first, "app=client"), (&second, "app=server")] {
        stage
            .a
            .enforcer(&["pu", "add", "--interface", guest.interface(), "--name", guest.interface(), "--tag", tag])?
            .ok()?;
        becomes(&stage.a, guest.interface(), "port")?;
    }
    let listen = ["--listen", "[::]:8020", "--listen", "[::]:9999"];
    let _servers = [second.serve(&listen)?, local.serve(&listen)?, stage.server.serve(&listen)?];
    let _back = first.serve(&["--listen", "[::]:7020"])?;
    for round in 0..2 {
        let to = |port| second.addresses(port).into_iter().chain([stage.a.socket_v4(port), stage.a.socket_v6(port)]);
        for to in to(8020).chain([stage.b.socket_v4(8020), stage.b.socket_v6(8020)]) {
            let told = |error: anyhow::Error| {
                let of = |host: &Host| host.counters().map(|counters| format!("{:?}", counters.refusals()));
                error.context(format!("refused by a: {:?}, by b: {:?}", of(&stage.a), of(&stage.b)))
            };
            answered(&first, &to, &format!("guest, round {round}")).map_err(told)?;
        }
        for to in to(9999).chain([stage.b.socket_v4(9999), stage.b.socket_v6(9999)]) {
            refused(&first, &to, "guest to a port without rule")?;
        }
        for to in second.addresses(8020) {
            answered(&stage.client, &to, &format!("the bridge's host to a guest, round {round}"))?;
        }
        for to in first.addresses(7020) {
            answered(&second, &to, &format!("guest to guest, round {round}"))?;
            answered(&stage.server, &to, &format!("another host to a guest, round {round}"))?;
            answered(&local, &to, &format!("the bridge's host to a guest, round {round}"))?;
        }
    }
    // What has no identity gets no answer, from wherever on the bridge.
    let third = stage.a.bridged_guest("three", 103)?;
    for to in second.addresses(8020).into_iter().chain([stage.a.socket_v4(8020), stage.a.socket_v6(8020)]) {
        assert_eq!(third.connect(&to, &["--timeout", "300"])?.outcome, Outcome::Timeout, "{to}");
    }
    // A guest taken off the bridge is still its PU's.
    stage.a.exec(&["ip", "link", "set", first.interface(), "nomaster"])?.ok()?;
    becomes(&stage.a, first.interface(), "enforced")?;
    let before = stage.a.counters()?;
    assert_ne!(first.connect(&stage.b.socket_v4(8020), &["--timeout", "300"])?.outcome, Outcome::Ok);
    stage.a.exec(&["ip", "link", "set", first.interface(), "master", "br0"])?.ok()?;
    becomes(&stage.a, first.interface(), "port")?;
    for to in [stage.b.socket_v4(8020), stage.b.socket_v6(8020)] {
        answered(&first, &to, "a guest back at the bridge")?;
    }
    let counted = &stage.a.counters()? - &before;
    assert_eq!(counted.verdicts_out("allowed"), 2, "{:?}", counted.refusals());
    Ok(())
}

#[test]
fn a_packet_socket_at_a_port_goes_around_nothing() -> Result<()> {
    let stage = Stage::new("brraw", AUTO, Host::move_to_bridge)?;
    let capture = stage.b.capture("eth0", "tcp")?;
    for ip in stage.a.ips() {
        let to = if ip.is_ipv4() { stage.b.socket_v4(8020) } else { stage.b.socket_v6(8020) };
        let frame = syn(&stage.a, &stage.b, ip.is_ipv4())?;
        for interface in ["eth0", "br0"] {
            let before = stage.a.counters()?;
            let line = ["raw", "--frame", &hex(&frame), "--interface", interface];
            stage.client.exec(&[&[tool()?.as_str()], &line[..]].concat())?.ok()?;
            let counted = &stage.a.counters()? - &before;
            assert_eq!(counted.verdicts_out("forged_by_pu"), 1, "{interface} to {to}: {:?}", counted.refusals());
        }
    }
    let (frames, _) = capture.finish()?;
    let passed =
        frames.iter().filter_map(|frame| Segment::parse(frame)).find(|segment| segment.source().port() == PORT);
    assert!(passed.is_none(), "on the wire: {passed:?}");
    Ok(())
}

#[test]
fn a_host_whose_address_is_on_a_macvlan() -> Result<()> {
    let stage = Stage::new("macvlan", AUTO, Host::move_to_macvlan)?;
    assert_eq!(state_of(&stage.a, "mac0")?.0, "enforced");
    assert_eq!(state_of(&stage.a, "eth0")?.0, "enforced");
    stage.both_ways("at a macvlan")?;
    stage.a.restart_enforcer()?;
    stage.both_ways("after a restart")
}

#[test]
fn frames_of_a_vlan_are_not_judged_below_it() -> Result<()> {
    let stage = Stage::new("vlan", AUTO, |_| Ok(()))?;
    let _server = stage.server.serve(&["--listen", "[::]:8020"])?;
    for v4 in [true, false] {
        let frame = syn(&stage.a, &stage.b, v4)?;
        // Without tag, with a tag that names no VLAN (IEEE 802.1p), and of VLAN 7, which host b does not have.
        for (tag, judged) in [(None, 1), (Some(0_u16), 1), (Some(7), 0)] {
            let before = stage.b.counters()?;
            stage
                .a
                .exec(&[tool()?.as_str(), "raw", "--frame", &hex(&tagged(&frame, tag)), "--interface", "eth0"])?
                .ok()?;
            std::thread::sleep(Duration::from_millis(50));
            let counted = &stage.b.counters()? - &before;
            assert_eq!(counted.verdicts_in("no_identity"), judged, "tag {tag:?}: {:?}", counted.refusals());
        }
        // A PU that writes a tag itself reaches no VLAN.
        let before = stage.a.counters()?;
        stage
            .client
            .exec(&[tool()?.as_str(), "raw", "--frame", &hex(&tagged(&frame, Some(7))), "--interface", "eth0"])?
            .ok()?;
        let counted = &stage.a.counters()? - &before;
        assert_eq!(counted.verdicts_out("malformed"), 1, "{:?}", counted.refusals());
    }
    Ok(())
}

#[test]
fn an_interface_that_cannot_be_attached_to_is_a_problem_and_tried_again() -> Result<()> {
    let stage = Stage::new("failed", AUTO, |_| Ok(()))?;
    let obstacle = stage.a.bpffs().join("v1/links/tc_egress_if77");
    fs::create_dir(&obstacle)?;
    stage.a.exec(&["ip", "link", "add", "late", "index", "77", "type", "ifb"])?.ok()?;
    becomes(&stage.a, "late", "failed")?;
    let reason = state_of(&stage.a, "late")?.1;
    assert!(reason.contains("tc_egress_if77"), "{reason}");
    let shown = stage.a.enforcer(&["status"])?.stdout;
    assert!(shown.contains("PROBLEM: 1 interface not enforced"), "{shown}");
    assert_eq!(stage.a.counters()?.get("enforcer_interfaces{state=\"failed\"}"), 1);
    fs::remove_dir(&obstacle)?;
    becomes(&stage.a, "late", "enforced")?;
    assert_eq!(stage.a.counters()?.get("enforcer_interfaces{state=\"failed\"}"), 0);
    assert!(!stage.a.enforcer(&["status"])?.stdout.contains("PROBLEM"));
    Ok(())
}

/// Where frames made by hand claim to come from.
const PORT: u16 = 33_333;

fn tool() -> Result<String> {
    Ok(tests::lab_tool()?.to_string_lossy().into_owned())
}

/// A SYN from one host to port 8020 of the other, as its stack would send it: taken from the wire.
fn syn(from: &Host, to: &Host, v4: bool) -> Result<Vec<u8>> {
    let at = if v4 { to.socket_v4(8020) } else { to.socket_v6(8020) };
    let capture = to.capture("eth0", "tcp")?;
    from.connect(&at, &["--timeout", "200"])?;
    let (frames, _) = capture.finish()?;
    let syn = frames.into_iter().filter_map(|frame| Segment::parse(&frame)).find(Segment::is_syn);
    let mut syn = syn.ok_or_else(|| anyhow::anyhow!("no SYN on the wire to {at}"))?;
    syn.set_source_port(PORT);
    Ok(syn.to_frame())
}

fn tagged(frame: &[u8], vlan: Option<u16>) -> Vec<u8> {
    let tag = vlan.map(|vlan| [&[0x81, 0x00], &vlan.to_be_bytes()[..]].concat()).unwrap_or_default();
    [&frame[..12], &tag, &frame[12..]].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
