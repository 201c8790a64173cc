//! Errors of ICMP belong to the flow they quote.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use super::*;

/// What the sockets of `errors.py hear` were told.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Told {
    flow: Vec<i32>,
    lone: Vec<i32>,
    raw: usize,
}

struct Listener {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    flow: String,
    lone: String,
}

impl Listener {
    fn new(at: &Place, to: &str) -> Result<Self> {
        let line = ["/usr/bin/python3", "-u", &script("errors"), "hear", to, &PORT.to_string()];
        let mut child = at.command(&line)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no input")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?).lines();
        let first = output.next().context("the listener ended")??;
        let ports: Vec<String> = first.split(' ').skip(1).map(str::to_owned).collect();
        let [flow, lone] = <[String; 2]>::try_from(ports).ok().with_context(|| first)?;
        Ok(Self { child, input, output, flow, lone })
    }

    fn told(&mut self) -> Result<Told> {
        self.input.write_all(b"\n")?;
        Ok(serde_json::from_str(&self.output.next().context("the listener ended")??)?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Type, code, the word behind the checksum, and what a socket is told: port unreachable, too big, time exceeded.
const ERRORS: [[(u8, u8, u32, i32); 3]; 2] =
    [[(3, 3, 0, 111), (3, 4, 1300, 90), (11, 0, 0, 113)], [(1, 4, 0, 111), (2, 0, 1300, 90), (3, 0, 0, 113)]];

#[test]
fn an_error_reaches_a_pu_with_the_flow_it_quotes_and_else_not() -> Result<()> {
    let stage = Stage::new("dgerror")?;
    let router = stage.lab.host("r")?;
    for (family, to) in addresses(&stage.b).into_iter().enumerate() {
        let _server = serve(&stage.server, &to, PORT)?;
        let [own, far] = [&stage.a, &router].map(|host| addresses(host)[family].clone());
        let mut listener = Listener::new(&stage.client, &to)?;
        let forge = |(kind, code, word): (u8, u8, u32), source: &str, sport: &str, target: &str, proto: &str| {
            let numbers = [kind.to_string(), code.to_string(), word.to_string(), PORT.to_string()];
            let [kind, code, word, port] = numbers.each_ref().map(String::as_str);
            let line = [
                "/usr/bin/python3",
                &script("errors"),
                "forge",
                &own,
                kind,
                code,
                word,
                source,
                sport,
                target,
                port,
                proto,
            ];
            router.exec(&line)?.ok().map(drop)
        };
        for (kind, code, word, errno) in ERRORS[family] {
            let error = (kind, code, word);
            let before = stage.a.counters()?;
            let (flow, lone) = (listener.flow.clone(), listener.lone.clone());
            forge(error, &own, &flow, &to, "17")?;
            assert_eq!(listener.told()?, Told { flow: vec![errno], lone: vec![], raw: 1 }, "{error:?}");
            refusals(&stage.a, &before, &[])?;
            // Of a port of the PU's that sent nothing, and of what was sent to somebody else: the first would find a socket, the second
            // is nobody's, but a raw socket would hear it.
            forge(error, &own, &lone, &to, "17")?;
            forge(error, &own, &flow, &far, "17")?;
            assert_eq!(listener.told()?, Told { flow: vec![], lone: vec![], raw: 0 }, "{error:?}");
            refusals(&stage.a, &before, &[("no_flow", "in", 2)])?;
        }
    }
    Ok(())
}

#[test]
fn a_guest_says_that_a_port_is_closed_and_writes_no_other_error() -> Result<()> {
    let (stage, guest) = Stage::with_guest("dgclosed")?;
    let Stage { client, a, b, .. } = &stage;
    for (family, to) in ["10.78.0.2", "fd78::2"].into_iter().enumerate() {
        let before = (a.counters()?, b.counters()?);
        for _ in 0..2 {
            assert_eq!(exchange(client, to, PORT, "connected", 8, 1)?, REFUSED, "{}", b.enforcer_log());
        }
        refusals(a, &before.0, &[])?;
        refusals(b, &before.1, &[])?;
        let own = addresses(a)[family].clone();
        let (kind, code, ..) = ERRORS[family][0];
        let numbers = [kind.to_string(), code.to_string()];
        let forge =
            ["/usr/bin/python3", &script("errors"), "forge", &own, &numbers[0], &numbers[1], "0", &own, "9", to, "9"];
        guest.exec(&forge)?.ok()?;
        refusals(a, &before.0, &[])?;
        refusals(b, &before.1, &[("protocol_denied", "out", 1)])?;
    }
    Ok(())
}
