//! The laboratory itself, with no enforcer anywhere: hosts talk, faults are injected, and nothing stays behind.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::{Lab, Options, Outcome, cgroup2_mount};

#[test]
fn bare_hosts_talk_in_both_families() -> Result<()> {
    let lab = Lab::new("talk")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let server = b.serve(&["--listen", "[::]:8020"])?;
    for to in [b.socket_v4(8020), b.socket_v6(8020)] {
        let attempt = a.connect(&to, &["--payload", "ping"])?;
        assert_eq!((attempt.outcome, attempt.reply.as_str()), (Outcome::Ok, "ping"), "{to}");
        assert_eq!(attempt.remote, to);
    }
    assert_eq!(server.accepted()?, 2);
    assert_eq!(server.received()?, 8);
    for to in [b.socket_v4(8021), b.socket_v6(8021)] {
        let attempt = a.connect(&to, &[])?;
        assert_eq!((attempt.outcome, attempt.errno), (Outcome::Refused, 111), "{to}");
        assert!(!attempt.local.ends_with(":0"), "the local port is known even so: {}", attempt.local);
    }
    let nobody = a.connect("10.77.0.99:80", &["--timeout", "200"])?;
    assert_eq!(nobody.outcome, Outcome::Timeout);
    assert_eq!(server.accepted()?, 2);
    Ok(())
}

#[test]
fn a_host_is_made_within_300_milliseconds() -> Result<()> {
    let lab = Lab::new("fast")?;
    let times = ["a", "b", "c"].map(|name| {
        let begin = Instant::now();
        lab.host(name).map(|_| begin.elapsed())
    });
    let fastest = times.into_iter().collect::<Result<Vec<_>>>()?.into_iter().min().context("no host")?;
    assert!(fastest < Duration::from_millis(300), "{fastest:?}");
    Ok(())
}

#[test]
fn addresses_swap_and_move_at_once() -> Result<()> {
    let lab = Lab::new("swap")?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let (at_b, at_c) = (b.serve(&["--listen", "[::]:80"])?, c.serve(&["--listen", "[::]:80"])?);
    let before = [b.socket_v4(80), b.socket_v6(80)];
    for to in &before {
        assert_eq!(a.connect(to, &[])?.outcome, Outcome::Ok);
    }
    b.swap_ips(&c)?;
    assert_eq!([c.socket_v4(80), c.socket_v6(80)], before);
    for to in &before {
        assert_eq!(a.connect(to, &["--timeout", "500"])?.outcome, Outcome::Ok, "{to}");
    }
    assert_eq!((at_b.accepted()?, at_c.accepted()?), (2, 2));
    let (v4, v6) = (Ipv4Addr::new(10, 77, 0, 200), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 200));
    b.move_ip(v4, v6)?;
    for ip in b.ips() {
        assert_eq!(a.connect(&(ip, 80).into_socket(), &[])?.outcome, Outcome::Ok, "{ip}");
    }
    assert_eq!(at_b.accepted()?, 4);
    Ok(())
}

#[test]
fn loss_loses_and_ends() -> Result<()> {
    let lab = Lab::new("loss")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let _server = b.serve(&["--listen", "[::]:80"])?;
    for to in [b.socket_v4(80), b.socket_v6(80)] {
        a.set_loss(100.0)?;
        assert_eq!(a.connect(&to, &["--timeout", "100"])?.outcome, Outcome::Timeout, "{to}");
        a.set_loss(30.0)?;
        let attempts = a.connect_many(&to, &["--count", "40", "--timeout", "15"])?;
        let made = attempts.iter().filter(|attempt| attempt.outcome == Outcome::Ok).count();
        // 0.7 each way; fewer than 4 or all 40 by chance are both below one in a million.
        assert!((4..40).contains(&made), "{made} of 40 to {to}");
        a.set_loss(0.0)?;
        let attempts = a.connect_many(&to, &["--count", "40", "--timeout", "500"])?;
        assert!(attempts.iter().all(|attempt| attempt.outcome == Outcome::Ok), "{to}");
    }
    Ok(())
}

#[test]
fn a_capture_holds_the_handshake() -> Result<()> {
    let lab = Lab::new("capture")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let _server = b.serve(&["--listen", "[::]:80"])?;
    let capture = a.capture("eth0", "tcp port 80 and tcp[tcpflags] & tcp-syn != 0")?;
    a.connect(&b.socket_v4(80), &[])?;
    let (frames, _) = capture.finish()?;
    assert_eq!(frames.len(), 2, "SYN and SYN-ACK");
    assert_eq!(frames[0][12..14], [0x08, 0x00]);
    Ok(())
}

#[test]
fn raw_segments_are_answered() -> Result<()> {
    let lab = Lab::new("raw")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let _server = b.serve(&["--listen", "[::]:80"])?;
    for to in [b.socket_v4(80), b.socket_v6(80)] {
        let options = ["--options", "020405b4", "--payload", "beef", "--seq", "41"];
        let report: serde_json::Value = a.tool(&[&["raw", "--to", &to][..], &options].concat())?;
        assert_eq!(report["sent"], 1, "{report}");
        assert_eq!(report["answers"][0]["flags"], "SA", "{report}");
        assert_eq!(report["answers"][0]["ack"], 42, "payload on a SYN is not acknowledged: {report}");
    }
    Ok(())
}

#[test]
fn loads_are_measured() -> Result<()> {
    let lab = Lab::new("load")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let _echo = b.serve(&["--listen", "[::]:80", "--quiet"])?;
    let _sink = b.serve(&["--listen", "[::]:81", "--quiet", "--reply", "sink"])?;
    for (kind, port, extra) in [("crr", 80, "1"), ("rr", 80, "2"), ("stream", 81, "4")] {
        let load = a.load(kind, &b.socket_v4(port), &["--seconds", "0.3", "--parallel", extra])?;
        assert_eq!((load.kind.as_str(), load.failed), (kind, 0));
        assert!(load.rate > 100.0, "{load:?}");
    }
    Ok(())
}

#[test]
fn held_connections_report_their_end() -> Result<()> {
    let lab = Lab::new("hold")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let mut server = b.serve(&["--listen", "[::]:80"])?;
    let mut hold = a.spawn_tool(&["hold", &b.socket_v6(80), "--count", "5", "--ping", "20"])?;
    let ready = hold.wait_for_line("READY", Duration::from_secs(2))?;
    assert_eq!(ready, r#"READY {"open":5,"failed":0}"#);
    server.process().kill9()?;
    assert!(hold.wait(Duration::from_secs(3))?.is_some(), "hold leaves once nothing is open");
    assert_eq!(hold.stdout().lines().filter(|line| line.contains("ended")).count(), 5);
    Ok(())
}

#[test]
fn a_lab_leaves_nothing_behind() -> Result<()> {
    let run;
    let escapee;
    {
        let lab = Lab::with("gone", Options { mtu: 1280 })?;
        let a = lab.host("a")?;
        run = lab.run().to_owned();
        assert!(!traces(&run)?.is_empty());
        let workload = a.plain_workload("w")?;
        let mtu = a.exec(&["ip", "link", "show", "eth0"])?;
        assert!(mtu.ok()?.contains("mtu 1280"), "{}", mtu.stdout);
        // A process that nobody holds, in a cgroup below the host's.
        let shell = workload.exec(&["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"])?;
        escapee = shell.ok()?.trim().to_owned();
        assert!(fs::metadata(format!("/proc/{escapee}")).is_ok());
    }
    assert_eq!(traces(&run)?, BTreeSet::new());
    let state = fs::read_to_string(format!("/proc/{escapee}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    Ok(())
}

#[test]
fn the_next_lab_sweeps_what_a_crash_left() -> Result<()> {
    // No process has this id: it is beyond the kernel's largest.
    let dead = "crashed-4194305-0";
    let directory = std::env::temp_dir().join(format!("enf-{dead}"));
    let cgroup = cgroup2_mount()?.join(format!("enf-{dead}"));
    fs::create_dir_all(cgroup.join("a"))?;
    let netns = std::process::Command::new("ip").args(["netns", "add", &format!("enf-{dead}-a")]).status()?;
    assert!(netns.success());
    fs::create_dir_all(&directory)?;
    assert_eq!(traces(dead)?.len(), 3);
    fs::write(directory.join("owner"), "4194305 1")?;
    let _lab = Lab::new("sweep")?;
    // A lab of another test may have begun to sweep first, and still be at it.
    let deadline = Instant::now() + Duration::from_secs(2);
    while !traces(dead)?.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(traces(dead)?, BTreeSet::new());
    Ok(())
}

/// Every name on the machine that carries the run's.
fn traces(run: &str) -> Result<BTreeSet<String>> {
    let places = ["/run/netns".into(), "/sys/fs/bpf".into(), std::env::temp_dir(), cgroup2_mount()?];
    let entries = places.into_iter().flat_map(fs::read_dir).flatten().flatten();
    Ok(entries.map(|entry| entry.path().to_string_lossy().into_owned()).filter(|path| path.contains(run)).collect())
}

trait IntoSocket {
    fn into_socket(self) -> String;
}

impl IntoSocket for (std::net::IpAddr, u16) {
    fn into_socket(self) -> String {
        std::net::SocketAddr::from(self).to_string()
    }
}
