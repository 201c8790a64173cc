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

/// Two hosts with a living connection over each family between their PUs, and an attacker beside them.
struct Stage {
    pair: Pair,
    attacker: Host,
    server: Server,
    held: Vec<Proc>,
    table: Vec<[String; 4]>,
    failed: usize,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        let pair = Pair::new(name)?;
        let attacker = pair.lab.host("m")?;
        let server = pair.server.serve(&["--listen", &format!("[::]:{PORT}")])?;
        pair.introduce(PORT)?;
        Ok(Self { pair, attacker, server, held: Vec::new(), table: Vec::new(), failed: 0 })
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

/// Attack, and the only reasons for which its packets may be refused: each of them is for one of these, or the stack itself throws it away.
const PACKETS: &[(&str, &[&str])] = &[
    ("plain_syn", &["no_identity"]),
    ("spoofed_source", &["no_identity"]),
    ("random_identity", &["?"]),
    ("hello_garbage", &["?"]),
    ("data_injection", &["?"]),
    ("reset_injection", &["?"]),
    ("syn_injection", &["?"]),
    ("icmp_injection", &["?"]),
    ("tiny_fragments", &["?"]),
    ("overlapping_fragments", &["?"]),
    ("options_overrun", &["?"]),
    ("long_header", &["?"]),
    ("extension_headers", &["?"]),
    ("source_routing", &["?"]),
    ("land", &["?"]),
    ("odd_flags", &["?"]),
    ("datagrams", &["?"]),
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
        let good = answers.is_empty() && refused.keys().all(|reason| reasons.contains(&reason.as_str()));
        let seen = Seen { good, text: format!("{sent} sent, answers {answers:?}, refused {refused:?}") };
        stage.row(attack, "scapy", &format!("silence; {}", reasons.join(", ")), &seen);
    }
    drop(scapy);
    assert_eq!(stage.server.accepted()?, accepted, "the listener saw one of them");
    for to in stage.pair.addresses(PORT) {
        let attempt = stage.pair.client.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
        assert_eq!(attempt.outcome, Outcome::Ok, "who may call still may: {attempt:?}");
    }
    stage.finish()
}
