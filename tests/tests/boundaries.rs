//! Where no program of the enforcer looks: other network namespaces, interfaces without link-layer header.

use std::time::Duration;

use anyhow::{Result, ensure};
use common::wire::CONFIRM;
use tests::{Lab, Outcome, Pair, Segment};

#[test]
fn a_pu_gets_no_socket_in_another_network_namespace() -> Result<()> {
    let pair = Pair::new("elsewhere")?;
    let tool = tests::lab_tool()?.to_string_lossy().into_owned();
    let before = pair.a.counters()?;
    let output = pair.client.exec(&["unshare", "--net", &tool, "connect", "127.0.0.1:8020", "--timeout", "1000"])?;
    assert!(!output.stdout.contains(r#""outcome":"ok""#), "{}", output.stdout);
    let counted = &pair.a.counters()? - &before;
    assert!(counted.verdicts_out("other_namespace") > 0, "{:?}", counted.refusals());
    Ok(())
}

#[test]
fn a_cgroup_that_lives_in_another_namespace_is_no_pu_and_nothing_of_the_attempt_stays() -> Result<()> {
    let lab = Lab::new("foreign")?;
    lab.write_policy("pair.yaml", Pair::POLICY)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    a.start_enforcer("")?;
    let mixed = a.plain_workload("mixed")?;
    let mut foreign = mixed.spawn(&["unshare", "--net", "sh", "-c", "echo up; sleep 60"])?;
    foreign.wait_for_line("up", Duration::from_secs(5))?;
    let cgroup = mixed.cgroup().to_string_lossy().into_owned();
    let output = a.enforcer(&["pu", "add", "--cgroup", &cgroup, "--name", "mixed", "--tag", "app=client"])?;
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("network namespace of its own"), "{}", output.stderr);
    let pus: serde_json::Value = a.enforcer_json(&["pus"])?;
    assert!(!pus.to_string().contains("mixed"), "{pus}");
    // What else is in that cgroup is unmanaged as before.
    let _plain = b.serve(&["--listen", "[::]:22"])?;
    for to in [b.socket_v4(22), b.socket_v6(22)] {
        let attempt = mixed.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
        assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
    }
    ensure!(foreign.wait(Duration::ZERO)?.is_none(), "{}", foreign.stdout());
    Ok(())
}

#[test]
fn nothing_of_a_pu_leaves_where_identity_cannot_be_carried() -> Result<()> {
    let pair = Pair::with("tunnel", "datapath.interfaces = [\"auto\"]")?;
    for command in [
        "ip tuntap add dev tun9 mode tun",
        "ip link set tun9 up",
        "ip addr add 10.99.0.1/24 dev tun9",
        "ip -6 addr add fd99::1/64 dev tun9 nodad",
    ] {
        pair.a.exec(&command.split(' ').collect::<Vec<_>>())?.ok()?;
    }
    std::thread::sleep(Duration::from_millis(300));
    let before = pair.a.counters()?;
    for to in ["10.99.0.2:8020", "[fd99::2]:8020"] {
        assert_ne!(pair.client.connect(to, &["--timeout", "500"])?.outcome, Outcome::Ok);
    }
    let counted = &pair.a.counters()? - &before;
    assert!(counted.verdicts_out("no_link_header") >= 2, "{:?}", counted.refusals());
    Ok(())
}

#[test]
fn of_pus_within_pus_the_nearest_counts() -> Result<()> {
    let pair = Pair::new("nested")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let inner = pair.client.cgroup().join("inner");
    let (deep, beside) = (inner.join("deep"), pair.client.cgroup().join("beside"));
    for cgroup in [&deep, &beside] {
        std::fs::create_dir_all(cgroup)?;
    }
    let path = inner.to_string_lossy().into_owned();
    pair.a.enforcer(&["pu", "add", "--cgroup", &path, "--name", "inner", "--tag", "app=other"])?.ok()?;
    for to in [pair.b.socket_v4(8020), pair.b.socket_v6(8020)] {
        let outcome = |cgroup| Ok::<_, anyhow::Error>(pair.a.in_cgroup(cgroup).connect(&to, &[])?.outcome);
        assert_eq!(outcome(&beside)?, Outcome::Ok);
        assert_eq!(outcome(&inner)?, Outcome::Refused);
        assert_eq!(outcome(&deep)?, Outcome::Refused);
    }
    Ok(())
}

#[test]
fn enforcers_of_nested_cgroups_leave_each_other_alone() -> Result<()> {
    let lab = Lab::new("around")?;
    lab.write_policy("pair.yaml", Pair::POLICY)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let around = a.cgroup().parent().map(|parent| parent.to_owned()).unwrap_or_default();
    a.start_enforcer("")?;
    b.start_enforcer(&format!("paths.cgroup = {around:?}"))?;
    let client = a.workload("client", &["app=client"])?;
    let server = b.workload("server", &["app=server"])?;
    let _server = server.serve(&["--listen", "[::]:8020"])?;
    let capture = b.capture("eth0", "tcp port 8020")?;
    for to in [b.socket_v4(8020), b.socket_v6(8020)] {
        let attempt = client.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
        assert_eq!((attempt.outcome, attempt.reply.as_str()), (Outcome::Ok, "ping"), "{attempt:?}");
    }
    let (frames, _) = capture.finish()?;
    let called = frames.iter().filter_map(|frame| Segment::parse(frame));
    let mut proven = std::collections::BTreeMap::new();
    for segment in called.filter(|segment| segment.destination().port() == 8020 && segment.flags() & PUSH != 0) {
        let confirms = segment.identity().is_some_and(|option| option.packet_type() == CONFIRM);
        proven.entry(segment.source()).or_insert(confirms);
    }
    // The server has not been heard yet when the first data leaves.
    assert_eq!(proven.values().collect::<Vec<_>>(), [&true, &true], "{proven:?}");
    Ok(())
}

/// The flag of TCP that data bears.
const PUSH: u8 = 8;
