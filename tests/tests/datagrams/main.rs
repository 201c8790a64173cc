//! Datagrams between PUs: identity goes with the first of a flow, both ends judge, and nothing else reaches a PU.

mod again;
mod errors;
mod others;
mod sizes;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::datagram::{MAGIC, TRAILER_LEN, Trailer};
use common::wire::{CONFIRM, RESUME};
use serde::Deserialize;
use tests::{Counters, Guest, Host, Lab, Place, Proc, Workload};

const POLICY: &str = "name: datagrams
rules:
  - talk: allow app=client -> app=server udp/5000-5009
  - ping: allow app=client -> app=server icmp/8 icmp6/128
";
const PORT: u16 = 5000;
/// No rule allows this one.
const CLOSED: u16 = 6000;

/// What `client.py` saw.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Exchange {
    back: usize,
    errno: i32,
}

const WELL: Exchange = Exchange { back: 1, errno: 0 };
const REFUSED: Exchange = Exchange { back: 0, errno: 111 };

struct Stage {
    client: Workload,
    server: Workload,
    a: Host,
    b: Host,
    lab: Lab,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        Self::of(Lab::new(name)?)
    }

    fn of(lab: Lab) -> Result<Self> {
        lab.write_policy("datagrams.yaml", POLICY)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        a.start_enforcer("")?;
        b.start_enforcer("")?;
        let client = a.workload("client", &["app=client"])?;
        let server = b.workload("server", &["app=server"])?;
        Ok(Self { client, server, a, b, lab })
    }

    /// The same, with a namespace behind an interface of the server's host as a PU that is a server too.
    fn with_guest(name: &str) -> Result<(Self, Guest)> {
        let lab = Lab::new(name)?;
        lab.write_policy("datagrams.yaml", POLICY)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let guest = b.guest("box", &[&a])?;
        a.start_enforcer("")?;
        b.start_enforcer("datapath.interfaces = [\"auto\"]")?;
        let client = a.workload("client", &["app=client"])?;
        let server = b.workload("server", &["app=server"])?;
        b.enforcer(&["pu", "add", "--interface", guest.interface(), "--name", "box", "--tag", "app=server"])?.ok()?;
        Ok((Self { client, server, a, b, lab }, guest))
    }

    fn counters(&self) -> Result<[Counters; 2]> {
        Ok([self.a.counters()?, self.b.counters()?])
    }

    fn since(&self, before: &[Counters; 2]) -> Result<[Counters; 2]> {
        Ok([&self.a.counters()? - &before[0], &self.b.counters()? - &before[1]])
    }
}

fn script(name: &str) -> String {
    format!("{}/tests/datagrams/{name}.py", env!("CARGO_MANIFEST_DIR"))
}

fn serve(at: &Place, address: &str, port: u16) -> Result<Proc> {
    serve_as(at, address, port, &[])
}

fn serve_as(at: &Place, address: &str, port: u16, how: &[&str]) -> Result<Proc> {
    let (server, port) = (script("server"), port.to_string());
    let mut process = at.spawn(&[&["/usr/bin/python3", "-u", &server, address, &port], how].concat())?;
    process.wait_for_line("READY", Duration::from_secs(10))?;
    Ok(process)
}

/// How long the datagrams were that a server heard.
fn heard(server: &Proc) -> Vec<usize> {
    let length = |line: &str| line.strip_prefix("HEARD ")?.split(' ').next()?.parse().ok();
    server.stdout().lines().filter_map(length).collect()
}

fn exchange(at: &Place, to: &str, port: u16, how: &str, size: usize, count: usize) -> Result<Exchange> {
    let numbers = [port.to_string(), size.to_string(), count.to_string()];
    let client = script("client");
    let line = ["/usr/bin/python3", &client, to, &numbers[0], how, "datagram", &numbers[1], &numbers[2]];
    let output = at.exec(&line)?;
    serde_json::from_str(output.ok()?.lines().last().unwrap_or_default()).with_context(|| output.stdout.clone())
}

fn addresses(host: &Host) -> [String; 2] {
    host.ips().map(|ip| ip.to_string())
}

/// Waits until the refusals between `before` and now are these.
fn refusals(host: &Host, before: &Counters, expected: &[(&str, &str, i64)]) -> Result<()> {
    let name =
        |(reason, direction, _): &(&str, &str, i64)| format!("{{reason=\"{reason}\",direction=\"{direction}\"}}");
    let expected: BTreeMap<String, i64> = expected.iter().map(|one| (name(one), one.2)).collect();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let counted = &host.counters()? - before;
        let found: BTreeMap<String, i64> =
            counted.refusals().into_iter().map(|(labels, count)| (labels.to_owned(), count)).collect();
        if found == expected {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{}: refused {found:?}, not {expected:?}\n{}",
            host.name(),
            host.enforcer_log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_two_pus_say_to_each_other_arrives_once_and_whole() -> Result<()> {
    let stage = Stage::new("dgtalk")?;
    for (family, to) in addresses(&stage.b).into_iter().enumerate() {
        let server = serve(&stage.server, &to, PORT)?;
        let before = stage.counters()?;
        assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL, "first contact");
        assert_eq!(heard(&server), [8]);
        let counted = stage.since(&before)?;
        // The first datagram waited for HELLO and HELLO_REPLY, and bore CONFIRM.
        assert_eq!(counted[0].packets_out("confirm"), 1);
        assert_eq!((counted[1].packets_in("hello") > 0, counted[1].packets_in("confirm")), (true, 1));
        assert_eq!((counted[1].packets_out("resume_reply"), counted[0].packets_in("resume_reply")), (1, 1));
        // Met once, nobody is asked any more.
        let before = stage.counters()?;
        let mtu = if family == 0 { 1472 } else { 1452 };
        let mut expected = vec![8];
        let mut cases = vec![
            ("connected", 60, 1),
            ("unconnected", 60, 1),
            ("unconnected", 512, 1),
            ("connected", 1, 1),
            ("connected", 1400, 1),
            ("connected", mtu - TRAILER_LEN, 1),
            ("connected", mtu - TRAILER_LEN + 1, 1),
            ("connected", mtu, 1),
            ("gso", 1200, 5),
            ("connected", 33, 20),
        ];
        if family == 0 {
            cases.push(("connected", 3000, 1));
        }
        let flows = cases.len() as i64;
        for (how, size, count) in cases {
            let seen = exchange(&stage.client, &to, PORT, how, size, count)?;
            assert_eq!(seen, Exchange { back: count, errno: 0 }, "{how} {size}\n{}", stage.a.enforcer_log());
            expected.extend(vec![size; count]);
        }
        assert_eq!(heard(&server), expected);
        for (host, before) in [(&stage.a, &before[0]), (&stage.b, &before[1])] {
            refusals(host, before, &[])?;
        }
        let counted = stage.since(&before)?;
        assert_eq!((counted[0].verdicts_out("allowed"), counted[1].verdicts_in("allowed")), (flows, flows));
        assert_eq!((counted[1].packets_in("hello"), counted[1].packets_in("confirm")), (0, 0), "nobody is asked");
    }
    Ok(())
}

#[test]
fn what_is_not_allowed_fails_at_once_and_both_ends_say_why() -> Result<()> {
    let stage = Stage::new("dgdeny")?;
    let stranger = stage.a.workload("stranger", &["app=other"])?;
    for to in addresses(&stage.b) {
        let open = serve(&stage.server, &to, PORT)?;
        let closed = serve(&stage.server, &to, CLOSED)?;
        assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL);
        for (who, port) in [(&stage.client, CLOSED), (&stranger, PORT)] {
            let before = stage.counters()?;
            assert_eq!(exchange(who, &to, port, "connected", 8, 1)?, REFUSED);
            refusals(&stage.a, &before[0], &[("no_rule", "in", 1)])?;
            refusals(&stage.b, &before[1], &[("no_rule", "in", 1)])?;
        }
        assert_eq!((heard(&open), heard(&closed)), (vec![8], Vec::<usize>::new()));
        let record = |host: &Host| -> Result<_> {
            let mut records = host.records()?.into_iter();
            Ok(records.rfind(|record| record.event == "deny" && record.proto == "udp").map(|record| record.reason))
        };
        assert_eq!((record(&stage.a)?.as_deref(), record(&stage.b)?.as_deref()), (Some("no_rule"), Some("no_rule")));
    }
    Ok(())
}

#[test]
fn who_has_no_enforcer_gets_nothing_of_a_pu_and_reaches_none() -> Result<()> {
    let stage = Stage::new("dgplain")?;
    let plain = stage.b.plain_workload("plain")?;
    let c = stage.lab.host("c")?;
    for (to, elsewhere) in addresses(&stage.b).into_iter().zip(addresses(&c)) {
        let server = serve(&stage.server, &to, PORT)?;
        let deaf = serve_as(&c, &elsewhere, PORT, &["silent"])?;
        let near = serve(&plain, &to, PORT + 1)?;
        let before = stage.counters()?;
        assert_eq!(exchange(&stage.client, &elsewhere, PORT, "connected", 8, 1)?, REFUSED);
        assert!(
            heard(&deaf).iter().all(|length| *length > 8),
            "the datagram itself does not leave: {:?}",
            heard(&deaf)
        );
        assert_eq!(exchange(&stage.client, &to, PORT + 1, "connected", 8, 1)?, REFUSED);
        assert!(heard(&near).is_empty(), "what enforcers say is for no process");
        refusals(&stage.a, &before[0], &[("peer_no_identity", "out", 2)])?;
        let before = stage.counters()?;
        assert_eq!(exchange(&c, &to, PORT, "connected", 8, 1)?, Exchange { back: 0, errno: 110 }, "silence");
        refusals(&stage.b, &before[1], &[("protocol_denied", "in", 1)])?;
        assert!(heard(&server).is_empty());
    }
    Ok(())
}

#[test]
fn a_change_of_policy_cuts_a_flow_at_both_ends() -> Result<()> {
    let stage = Stage::new("dgcut")?;
    for to in addresses(&stage.b) {
        stage.lab.write_policy("datagrams.yaml", POLICY)?;
        let early = serve(&stage.server, &to, PORT)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while exchange(&stage.client, &to, PORT, "connected", 8, 1)? != WELL {
            ensure!(Instant::now() < deadline, "the policy is not in force");
        }
        drop(early);
        let server = serve(&stage.server, &to, PORT)?;
        let client = script("client");
        let line = ["/usr/bin/python3", "-u", &client, &to, &PORT.to_string(), "hold", "datagram", "8", "1"];
        let mut command = stage.client.command(&line)?;
        let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
        let mut output = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().context("no output")?));
        let mut said = || output.next().context("the client ended")?.context("unreadable");
        assert_eq!(serde_json::from_str::<Exchange>(&said()?)?, WELL);
        assert_eq!(said()?, "READY");
        let before = stage.counters()?;
        stage.lab.write_policy("datagrams.yaml", "name: datagrams\nrules: []\n")?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while stage.since(&before)?.iter().any(|host| host.refusals().is_empty()) {
            ensure!(Instant::now() < deadline, "not cut: {}\n{}", stage.a.enforcer_log(), stage.b.enforcer_log());
            std::thread::sleep(Duration::from_millis(20));
        }
        std::io::Write::write_all(child.stdin.as_mut().context("no input")?, b"\n")?;
        assert_eq!(serde_json::from_str::<Exchange>(&said()?)?, REFUSED, "at its next word at the latest");
        drop(child.stdin.take());
        child.wait()?;
        assert_eq!(heard(&server), [8]);
        for host in [&stage.a, &stage.b] {
            let cut =
                |record: &tests::Record| record.event == "cut" && record.reason == "revoked" && record.proto == "udp";
            let deadline = Instant::now() + Duration::from_secs(5);
            while !host.records()?.iter().any(cut) {
                ensure!(Instant::now() < deadline, "{}: {:?}", host.name(), host.records()?);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    Ok(())
}

#[test]
fn who_has_met_goes_on_without_agents() -> Result<()> {
    let stage = Stage::new("dgkill")?;
    let mut servers = Vec::new();
    for to in addresses(&stage.b) {
        servers.push((serve(&stage.server, &to, PORT)?, serve(&stage.server, &to, PORT + 1)?));
        assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL);
    }
    stage.a.kill9_enforcer()?;
    stage.b.kill9_enforcer()?;
    std::thread::sleep(tests::AGENT_TIMEOUT + Duration::from_millis(300));
    for (to, (known, unknown)) in addresses(&stage.b).into_iter().zip(&servers) {
        for (how, size, count) in [("connected", 8, 1), ("unconnected", 1400, 1), ("gso", 1000, 3)] {
            let seen = exchange(&stage.client, &to, PORT, how, size, count)?;
            assert_eq!(seen, Exchange { back: count, errno: 0 }, "{how}");
        }
        assert_eq!(exchange(&stage.client, &to, PORT + 1, "connected", 8, 1)?, REFUSED);
        assert_eq!((heard(known), heard(unknown)), (vec![8, 8, 1400, 1000, 1000, 1000], vec![]));
    }
    stage.a.restart_enforcer()?;
    stage.b.restart_enforcer()?;
    for to in addresses(&stage.b) {
        assert_eq!(
            exchange(&stage.client, &to, PORT + 1, "connected", 8, 1)?,
            WELL,
            "asked as soon as there is an agent"
        );
    }
    Ok(())
}

/// The frames of a capture that end with a trailer of this type.
fn with_trailer(frames: &[Vec<u8>], packet_type: u8) -> Vec<Vec<u8>> {
    let ends = |frame: &Vec<u8>| {
        let at = frame.len().checked_sub(TRAILER_LEN)?;
        Trailer::parse(&frame[at..]).filter(|trailer| trailer.packet_type() == packet_type)
    };
    frames.iter().filter(|frame| ends(frame).is_some()).cloned().collect()
}

/// The same frame, its UDP checksum right again after it was changed.
fn mended(mut frame: Vec<u8>) -> Vec<u8> {
    // IPv4: without a checksum nothing is to be mended.
    frame[40..42].fill(0);
    frame
}

#[test]
fn what_is_forged_or_repeated_reaches_nobody() -> Result<()> {
    let stage = Stage::new("dgforge")?;
    let to = stage.b.v4().to_string();
    let attacker = stage.lab.host("m")?;
    let server = serve(&stage.server, &to, PORT)?;
    assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL);
    let capture = stage.b.capture("eth0", &format!("udp and dst port {PORT}"))?;
    assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL);
    let (frames, _) = capture.finish()?;
    let resumes = with_trailer(&frames, RESUME);
    assert_eq!((resumes.len(), with_trailer(&frames, CONFIRM).len()), (1, 0));
    let hex = |frame: &[u8]| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let send = |frame: Vec<u8>| -> Result<()> {
        attacker.exec(&["/usr/bin/python3", &script("frames"), "eth0", &hex(&mended(frame))])?.ok().map(drop)
    };
    // From other ports, so that no flow knows it: the very same, and with each part changed.
    let elsewhere = |port: u8| {
        let mut frame = resumes[0].clone();
        frame[34..36].copy_from_slice(&[0x9c, port]);
        // Of a link-layer address that is nobody's, so that the bridge still knows where the client is.
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        frame
    };
    let before = stage.counters()?;
    send(elsewhere(1))?;
    refusals(&stage.b, &before[1], &[("datagram_replayed", "in", 1)])?;
    let trailer = resumes[0].len() - TRAILER_LEN;
    // Payload, flags, handle, sender's index, peer's handle, time, MAC.
    for (count, at) in
        (1..).zip([trailer - 1, trailer + 1, trailer + 2, trailer + 8, trailer + 12, trailer + 20, trailer + 30])
    {
        let mut frame = elsewhere(count as u8 + 1);
        frame[at] ^= 1;
        send(frame)?;
        refusals(&stage.b, &before[1], &[("datagram_replayed", "in", 1), ("resume_mac", "in", count)])?;
    }
    // A PU that writes what looks like identity.
    let before = stage.counters()?;
    let forge = format!(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(bytes(40) + bytes.fromhex('{MAGIC:08x}'), ('{to}', {PORT}))"
    );
    stage.client.exec(&["/usr/bin/python3", "-c", &forge])?.ok()?;
    refusals(&stage.a, &before[0], &[("forged_by_pu", "out", 1)])?;
    refusals(&stage.b, &before[1], &[])?;
    assert_eq!(heard(&server), [8, 8]);
    Ok(())
}

#[test]
fn pus_on_one_host_are_no_exception() -> Result<()> {
    let stage = Stage::new("dghere")?;
    let neighbour = stage.b.workload("neighbour", &["app=client"])?;
    let stranger = stage.b.workload("stranger", &["app=other"])?;
    let [v4, v6] = addresses(&stage.b);
    for to in [v4.as_str(), v6.as_str(), "127.0.0.1", "::1"] {
        let server = serve(&stage.server, to, PORT)?;
        for round in 0..2 {
            let seen = exchange(&neighbour, to, PORT, "connected", 8, 1)?;
            assert_eq!(seen, WELL, "round {round} to {to}: {:?}", stage.b.counters()?.refusals());
        }
        assert_eq!(exchange(&stranger, to, PORT, "connected", 8, 1)?, REFUSED, "{to}");
        assert_eq!(heard(&server), [8, 8]);
    }
    Ok(())
}

#[test]
fn echoes_bear_identity_too() -> Result<()> {
    let (stage, _guest) = Stage::with_guest("dgecho")?;
    let stranger = stage.a.workload("stranger", &["app=other"])?;
    for to in ["10.78.0.2", "fd78::2"] {
        for size in ["56", "1400", "1452"] {
            let before = stage.counters()?;
            let line = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "3", "-s", size, to];
            let output = stage.client.exec(&line)?;
            assert!(
                output.stdout.contains("2 received"),
                "{size} to {to}: {}\n{}",
                output.stdout,
                stage.b.enforcer_log()
            );
            for (host, before) in [(&stage.a, &before[0]), (&stage.b, &before[1])] {
                refusals(host, before, &[])?;
            }
        }
        let before = stage.counters()?;
        let output = stranger.exec(&["ping", "-n", "-c", "1", "-W", "1", to])?;
        assert!(output.stdout.contains("0 received"), "{}", output.stdout);
        refusals(&stage.a, &before[0], &[("no_rule", "in", 1)])?;
        refusals(&stage.b, &before[1], &[("no_rule", "in", 1)])?;
    }
    Ok(())
}
