//! What an attacker on the same network can try with the field's own tools, and what he sees of it: nothing.
//!
//! Every attempt is a row of one table, which is printed: attack, tool, what must happen, what was seen.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Host, Outcome, Pair, Proc, Server};

const PORT: u16 = 8020;

const ECHO: &str = "
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(('::', 8020))
print('READY')
while True:
    s.sendto(*s.recvfrom(65535))
";

/// Two hosts with a living connection over each family between their PUs, and an attacker beside them.
struct Stage {
    pair: Pair,
    attacker: Host,
    server: Server,
    _datagrams: Proc,
    held: Vec<Proc>,
    table: Vec<[String; 4]>,
    failed: usize,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        let pair = Pair::new(name)?;
        let attacker = pair.lab.host("m")?;
        let server = pair.server.serve(&["--listen", &format!("[::]:{PORT}")])?;
        let mut datagrams = pair.server.spawn(&["/usr/bin/python3", "-u", "-c", ECHO])?;
        datagrams.wait_for_line("READY", Duration::from_secs(5))?;
        pair.introduce(PORT)?;
        Ok(Self { pair, attacker, server, _datagrams: datagrams, held: Vec::new(), table: Vec::new(), failed: 0 })
    }

    /// Opens connections that last; the client's ports, by family.
    fn hold(&mut self) -> Result<[u16; 2]> {
        let mut ports = [0; 2];
        for (port, to) in ports.iter_mut().zip(self.pair.addresses(PORT)) {
            let mut process = self.pair.client.spawn_tool(&["hold", &to, "--count", "1", "--ping", "20"])?;
            process.wait_for_line("READY", Duration::from_secs(5))?;
            self.held.push(process);
            let flows: Value = self.pair.a.enforcer_json(&["flows"])?;
            let flow = flows["flows"].as_array().into_iter().flatten().find(|flow| flow["remote"] == to.as_str());
            let local = flow.and_then(|flow| flow["local"].as_str()).context("the connection is no flow")?;
            *port = local.rsplit(':').next().unwrap_or_default().parse()?;
        }
        Ok(ports)
    }

    fn row(&mut self, attack: &str, tool: &str, expected: &str, seen: &Seen) {
        self.failed += usize::from(!seen.good);
        let mark = if seen.good { "" } else { "WRONG: " };
        self.table.push([attack.to_owned(), tool.to_owned(), expected.to_owned(), format!("{mark}{}", seen.text)]);
    }

    fn finish(mut self) -> Result<()> {
        for process in &mut self.held {
            ensure!(process.wait(Duration::ZERO)?.is_none(), "a living connection ended: {}", process.stdout());
        }
        let header = ["attack", "tool", "expected", "seen"].map(str::to_owned);
        for [attack, tool, expected, seen] in std::iter::once(&header).chain(&self.table) {
            println!("{attack:<24} {tool:<10} {expected:<44} {seen}");
        }
        ensure!(self.failed == 0, "{} rows are wrong", self.failed);
        Ok(())
    }
}

struct Seen {
    good: bool,
    text: String,
}

/// Refusals of `b` on the way to its PUs since `before`, by reason.
fn refused(host: &Host, before: &tests::Counters) -> Result<BTreeMap<String, i64>> {
    let counted = &host.counters()? - before;
    let name = |labels: &str| labels.split('"').nth(1).unwrap_or_default().to_owned();
    Ok(counted.refusals().into_iter().map(|(labels, count)| (name(labels), count)).collect())
}

/// scapy, waiting for the name of an attack.
struct Scapy {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Scapy {
    fn start(stage: &Stage, friend_ports: [u16; 2]) -> Result<Self> {
        let (m, a, b) = (&stage.attacker, &stage.pair.a, &stage.pair.b);
        let link = b.exec(&["ip", "-o", "link", "show", "eth0"])?.ok()?.to_owned();
        let link =
            link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).context("no link address")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attacks/packets.py");
        let addresses = [m, b, a].map(|host| [host.v4().to_string(), host.v6().to_string()]).concat();
        let ports = [PORT, friend_ports[0], friend_ports[1]].map(|port| port.to_string());
        let fixed = ["/usr/bin/python3", script, "eth0", link].map(str::to_owned);
        let line = [&fixed[..], &addresses, &ports].concat();
        let mut child = m.command(&line)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut scapy = Self { child, input, output };
        ensure!(scapy.line()? == "READY", "scapy does not start");
        Ok(scapy)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// How many packets were sent, and what gave the PU away.
    fn attack(&mut self, name: &str) -> Result<(i64, Vec<String>)> {
        writeln!(self.input, "{name} 0.3")?;
        let line = self.line()?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("{name}: {line:?}"))?;
        let answers = answer["answers"].as_array().into_iter().flatten().map(Value::to_string).collect();
        Ok((answer["sent"].as_i64().unwrap_or_default(), answers))
    }
}

impl Drop for Scapy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An attack; how many packets of it may be answered, and how; the only reasons for which the kernel may refuse its packets. What is not
/// refused the stack throws away itself.
const PACKETS: &[(&str, &[&str])] = &[
    ("plain_syn", &["no_identity"]),
    ("spoofed_source", &["no_identity"]),
    ("random_identity", &["hello_malformed", "hello_tampered", "unknown_session"]),
    ("hello_garbage", &["hello_tampered"]),
    ("data_injection", &[]),
    ("reset_injection", &[]),
    ("syn_injection", &[]),
    ("icmp_injection", &[]),
    ("tiny_fragments", &["fragment"]),
    ("overlapping_fragments", &["fragment"]),
    ("options_overrun", &["no_identity"]),
    ("long_header", &["malformed"]),
    ("extension_headers", &["extension_header", "malformed"]),
    ("source_routing", &["extension_header"]),
    ("land", &["no_identity"]),
    ("odd_flags", &["no_flow", "no_identity"]),
    ("datagrams", &["protocol_denied", "no_identity"]),
];

#[test]
fn packets_no_honest_stack_sends() -> Result<()> {
    let mut stage = Stage::new("packets")?;
    let ports = stage.hold()?;
    let mut scapy = Scapy::start(&stage, ports)?;
    let accepted = stage.server.accepted()?;
    for (attack, reasons) in PACKETS {
        let before = stage.pair.b.counters()?;
        let (sent, answers) = scapy.attack(attack)?;
        let refused = refused(&stage.pair.b, &before)?;
        // A session nobody knows is asked to start over, once a SYN: whoever restarted must hear it at once.
        let retries = refused.get("unknown_session").copied().unwrap_or_default();
        let silent = answers.len() as i64 == retries && answers.iter().all(|answer| answer.contains(" RA"));
        let known = refused.keys().all(|reason| reasons.contains(&reason.as_str()));
        let expected = if reasons.is_empty() { "silence, by the stack".into() } else { reasons.join(", ") };
        let text = format!("{sent} sent, {} answered, refused {refused:?}", answers.len());
        stage.row(
            attack,
            "scapy",
            &expected,
            &Seen { good: silent && known && refused.is_empty() == reasons.is_empty(), text },
        );
    }
    drop(scapy);
    assert_eq!(stage.server.accepted()?, accepted, "the listener saw one of them");
    for to in stage.pair.addresses(PORT) {
        let attempt = stage.pair.client.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
        assert_eq!(attempt.outcome, Outcome::Ok, "who may call still may: {attempt:?}");
    }
    stage.finish()
}

const SCANS: &[&str] = &["-sS", "-sT", "-sA", "-sF", "-sN", "-sX", "-sW", "-sM", "-sU"];

/// Test cases of thc-ipv6's firewall6.
const BYPASSES: usize = 36;

#[test]
fn scans_see_nothing() -> Result<()> {
    let mut stage = Stage::new("scans")?;
    let capture = stage.attacker.capture("eth0", &format!("src port {PORT} and not src host 127.0.0.1"))?;
    let port = PORT.to_string();
    let mut running = Vec::new();
    for scan in SCANS {
        for to in [stage.pair.b.v4().to_string(), stage.pair.b.v6().to_string()] {
            let mut line = vec!["nmap", scan, "-Pn", "-n", "-p", &port, "--max-retries", "1", "-oG", "-"];
            if to.contains(':') {
                line.push("-6");
            }
            line.push(&to);
            running.push((
                format!("{scan} {}", if to.contains(':') { "IPv6" } else { "IPv4" }),
                stage.attacker.spawn(&line)?,
            ));
        }
    }
    for (scan, mut nmap) in running {
        nmap.wait(Duration::from_secs(30))?.with_context(|| format!("nmap {scan} does not end"))?;
        let said = nmap.stdout();
        let state =
            said.split("Ports: ").nth(1).and_then(|rest| rest.split('/').nth(1)).unwrap_or("nothing").to_owned();
        let good = matches!(state.as_str(), "filtered" | "open|filtered");
        stage.row(&scan, "nmap", "filtered, or open|filtered", &Seen { good, text: state });
    }
    for (name, flags) in [("SYN", "-S"), ("ACK", "-A"), ("FIN", "-F"), ("SYN FIN", "-SF"), ("XMAS", "-FSRPAUXY")] {
        let to = stage.pair.b.v4().to_string();
        let output = stage.attacker.exec(&["hping3", flags, "-c", "3", "-i", "u20000", "-p", &port, &to])?;
        let good = output.stderr.contains("3 packets transmitted, 0 packets received");
        stage.row(
            name,
            "hping3",
            "no answer",
            &Seen { good, text: output.stderr.lines().nth(2).unwrap_or_default().into() },
        );
    }
    let before = stage.pair.b.counters()?;
    let to = stage.pair.b.v6().to_string();
    let attempts = (1..=BYPASSES).map(|number| {
        let number = number.to_string();
        Ok((stage.attacker.spawn(&["atk6-firewall6", "eth0", &to, &port, &number])?, number))
    });
    let mut said = String::new();
    for (mut attempt, number) in attempts.collect::<Result<Vec<_>>>()? {
        attempt.wait(Duration::from_secs(60))?.with_context(|| format!("firewall6 {number} does not end"))?;
        said.extend(attempt.stdout().lines().filter(|line| line.starts_with("Test")).map(|line| format!("{line}\n")));
    }
    let refused = refused(&stage.pair.b, &before)?;
    let (failed, passed) = (said.matches("FAILED").count(), said.matches("PASSED").count());
    let good = passed == 0 && failed >= BYPASSES / 3 && !refused.is_empty();
    let text = format!("{failed} failed, {passed} passed, refused {refused:?}");
    stage.row("filter bypasses", "firewall6", "none passes", &Seen { good, text });
    ensure!(good, "{said}");
    let (answers, _) = capture.finish()?;
    stage.row(
        "all of them",
        "tcpdump",
        "nothing from the PU's port",
        &Seen { good: answers.is_empty(), text: format!("{} packets", answers.len()) },
    );
    stage.finish()
}

#[test]
fn an_address_taken_over_while_the_agents_are_dead_opens_nothing() -> Result<()> {
    let stage = Stage::new("takenip")?;
    let (a, b) = (&stage.pair.a, &stage.pair.b);
    let accepted = stage.server.accepted()?;
    a.kill9_enforcer()?;
    b.kill9_enforcer()?;
    stage.attacker.swap_ips(a)?;
    for to in stage.pair.addresses(PORT) {
        let attempt = stage.attacker.connect(&to, &["--payload", "ping", "--timeout", "700"])?;
        assert_eq!(attempt.outcome, Outcome::Timeout, "{attempt:?}");
        let attempt = stage.pair.client.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
        assert_eq!(attempt.outcome, Outcome::Ok, "the client is known, wherever it is: {attempt:?}");
    }
    assert_eq!(stage.server.accepted()?, accepted + 2);
    Ok(())
}
