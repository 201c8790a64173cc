//! The first SYNs from and to what is not sorted out yet: they wait for the agent, and not for TCP's timer.
//!
//! The agent is stopped for a moment where a test must be sure that a SYN came before its verdict.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{AGENT_TIMEOUT, Attempt, Counters, Host, Lab, Outcome, Place, Proc, Server, Workload, lab_tool};

/// Longer than any test here stops an agent.
const PATIENT: &str = "datapath.agent_timeout = \"20s\"\n";
/// Longer than anything that waits here.
const LIMIT: Duration = Duration::from_secs(10);

const POLICY: &str = "name: first
rules:
  - call: allow app=client -> app=server tcp/8020
  - back: allow app=caller -> app=fresh tcp/8021
";

/// Host `a` finds workloads; on `b` the PUs `server` and `caller`; `plain` has no enforcer.
struct Stage {
    a: Host,
    b: Host,
    plain: Host,
    caller: Workload,
    at_plain: Server,
    _server: (Workload, Server),
    _lab: Lab,
}

impl Stage {
    fn new(name: &str, config: impl FnOnce(&Host) -> String) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("first.yaml", POLICY)?;
        let (a, b, plain) = (lab.host("a")?, lab.host("b")?, lab.host("plain")?);
        b.start_enforcer("")?;
        a.start_enforcer(&config(&a))?;
        let pu = b.workload("server", &["app=server"])?;
        let server = pu.serve(&["--listen", "[::]:8020"])?;
        let caller = b.workload("caller", &["app=caller"])?;
        let at_plain = plain.serve(&["--listen", "[::]:8020"])?;
        Ok(Self { a, b, plain, caller, at_plain, _server: (pu, server), _lab: lab })
    }

    fn counters(&self) -> Result<Counters> {
        // What reads them is sorted out by then.
        self.a.counters()?;
        self.a.counters()
    }

    /// What happened on `a` since.
    fn since(&self, before: &Counters) -> Result<Counters> {
        Ok(&self.a.counters()? - before)
    }

    /// Runs something while the agent of `a` is stopped.
    fn stopped<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.a.signal_enforcer(Signal::SIGSTOP)?;
        let done = work();
        self.a.signal_enforcer(Signal::SIGCONT)?;
        done
    }

    /// Starts a program that connects, and lets the agent see it only when its SYN is out.
    fn first_act(&self, from: &Place, program: &str, to: &str) -> Result<Attempt> {
        let mut process = self.stopped(|| {
            let process = from.spawn(&[program, "connect", to, "--payload", "ping", "--timeout", "8000"])?;
            from.wait_for_syn(8020, LIMIT)?;
            Ok(process)
        })?;
        answer(&mut process)
    }

    fn why(&self) -> String {
        let flows = self.a.enforcer(&["flows"]).map(|said| said.stdout).unwrap_or_default();
        format!("{:?}\n{flows}{}", self.a.counters().map(|it| format!("{:?}", it.refusals())), self.a.enforcer_log())
    }
}

fn answer(process: &mut Proc) -> Result<Attempt> {
    ensure!(process.wait(LIMIT)?.is_some(), "it does not end: {}", process.stderr());
    let said: Value = serde_json::from_str(&process.stdout()).with_context(|| process.stderr())?;
    Ok(serde_json::from_value(said["attempts"][0].clone())?)
}

/// A file nobody has executed yet, which does what `lab-tool` does.
fn program(host: &Host, name: &str) -> Result<PathBuf> {
    let path = host.directory().join(name);
    // Not by this process: what another thread forks at that moment would keep the file open, and it could not be executed.
    let copy = "cp \"$0\" \"$1\" && printf %s \"$1\" >> \"$1\"";
    host.exec(&["sh", "-c", copy, &lab_tool()?.to_string_lossy(), &path.to_string_lossy()])?.ok()?;
    Ok(path)
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

fn cgroup(host: &Host, below: &str) -> Result<Place> {
    let path = host.cgroup().join(below);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(host.in_cgroup(&path))
}

fn held(counters: &Counters) -> i64 {
    counters.get(r#"enforcer_handshakes_total{kind="incomplete",result="allowed"}"#)
}

fn by_executable(host: &Host) -> String {
    let directory = host.directory().display();
    format!(
        "{PATIENT}[[workload]]\nexe = '{directory}/client-*'\ntags = {{ app = 'client' }}\n\
         [[workload]]\nexe = '{directory}/fresh-*'\ntags = {{ app = 'fresh' }}\n"
    )
}

/// How often something is tried that a machine busy with other things may keep from happening within TCP's second.
const TRIES: usize = 3;

#[test]
fn a_program_connects_as_its_first_act_without_a_timer() -> Result<()> {
    let stage = Stage::new("firstout", by_executable)?;
    // What no rule means is nobody's: so are its SYNs, and nobody hears of it but whom it calls.
    for (kind, hellos, callee) in [("client", 1, &stage.b), ("other", 0, &stage.plain)] {
        for (family, to) in [("v4", callee.socket_v4(8020)), ("v6", callee.socket_v6(8020))] {
            let waited = (0..TRIES).map(|number| {
                let (before, at_b) = (stage.counters()?, stage.b.counters()?);
                let program = text(program(&stage.a, &format!("{kind}-{family}-{number}"))?);
                let attempt = stage.first_act(&stage.a, &program, &to)?;
                let said = (attempt.outcome, attempt.reply.as_str());
                ensure!(said == (Outcome::Ok, "ping"), "{attempt:?}\n{}", stage.why());
                let happened = stage.since(&before)?;
                assert!(happened.refusals().is_empty(), "{:?}", happened.refusals());
                if attempt.retransmissions == 0 {
                    let heard = (&stage.b.counters()? - &at_b).packets_in("hello");
                    assert_eq!((held(&happened), heard), (1, hellos), "{kind} {family}");
                }
                Ok(attempt.retransmissions)
            });
            assert_never_resent(waited)?;
        }
    }
    Ok(())
}

/// Tries until a SYN needed not be sent again.
fn assert_never_resent(mut tries: impl Iterator<Item = Result<u32>>) -> Result<()> {
    let mut all = Vec::new();
    loop {
        match tries.next() {
            Some(Ok(0)) => return Ok(()),
            Some(resent) => all.push(resent?),
            None => anyhow::bail!("SYNs were sent again each time: {all:?}"),
        }
    }
}

#[test]
fn a_listener_of_a_fresh_program_is_reached_without_a_timer() -> Result<()> {
    let stage = Stage::new("firstin", by_executable)?;
    let a = &stage.a;
    for (family, to) in [("v4", a.socket_v4(8021)), ("v6", a.socket_v6(8021))] {
        let waited = (0..TRIES).map(|number| {
            let before = stage.counters()?;
            let fresh = text(program(a, &format!("fresh-{family}-{number}"))?);
            let (mut server, mut caller) = stage.stopped(|| {
                let server = a.spawn(&[fresh.as_str(), "serve", "--listen", "[::]:8021"])?;
                a.wait_for_listener(8021, LIMIT)?;
                let line = ["connect", to.as_str(), "--payload", "ping", "--timeout", "8000"];
                let caller = stage.caller.spawn_tool(&line)?;
                stage.caller.wait_for_syn(8021, LIMIT)?;
                Ok((server, caller))
            })?;
            let attempt = answer(&mut caller)?;
            let said = (attempt.outcome, attempt.reply.as_str());
            ensure!(said == (Outcome::Ok, "ping"), "{attempt:?}\n{}", stage.why());
            let happened = stage.since(&before)?;
            assert!(happened.refusals().is_empty(), "{:?}", happened.refusals());
            if attempt.retransmissions == 0 {
                // Once for the listener, and again for the PU it has become, if that was not complete yet.
                assert!(matches!(held(&happened), 1 | 2), "{}", held(&happened));
            }
            server.kill9()?;
            Ok(attempt.retransmissions)
        });
        assert_never_resent(waited)?;
    }
    Ok(())
}

#[test]
fn what_is_never_sorted_out_is_refused_after_the_wait_and_counted_once() -> Result<()> {
    // Its profile fits no packet: no PU can be made of it.
    let large = "x".repeat(900);
    let tags = format!("{{ big = '{large}', also = '{large}' }}");
    let config = format!("[tags]\nwait = '300ms'\n[[workload]]\nunit = 'big.service'\ntags = {tags}\n");
    let stage = Stage::new("firstnever", |_| config)?;
    let unit = cgroup(&stage.a, "system.slice/big.service")?;
    for to in [stage.plain.socket_v4(8020), stage.plain.socket_v6(8020)] {
        let before = stage.counters()?;
        let attempt = unit.connect(&to, &["--timeout", "8000"])?;
        let said = (attempt.outcome, attempt.retransmissions);
        ensure!(said == (Outcome::Refused, 0), "{attempt:?}\n{}", stage.why());
        ensure!(attempt.micros >= 300_000, "it did not wait: {attempt:?}");
        let happened = stage.since(&before)?;
        assert_eq!(happened.verdicts_out("pu_incomplete"), 1);
        assert_eq!((happened.refusals().len(), held(&happened)), (1, 1), "{:?}", happened.refusals());
    }
    assert_eq!(stage.at_plain.accepted()?, 0);
    let server = unit.serve(&["--listen", "[::]:8021"])?;
    for to in [stage.a.socket_v4(8021), stage.a.socket_v6(8021)] {
        let before = stage.counters()?;
        let attempt = stage.caller.connect(&to, &["--timeout", "8000"])?;
        let said = (attempt.outcome, attempt.retransmissions);
        ensure!(said == (Outcome::Refused, 0), "{attempt:?}\n{}", stage.why());
        let happened = stage.since(&before)?;
        assert_eq!(happened.verdicts_in("pu_incomplete"), 1);
        assert_eq!((happened.refusals().len(), held(&happened)), (1, 1), "{:?}", happened.refusals());
    }
    assert_eq!(server.accepted()?, 0);
    Ok(())
}

#[test]
fn without_an_agent_it_is_refused_at_once() -> Result<()> {
    let stage = Stage::new("firstgone", |a| by_executable(a).replace(PATIENT, ""))?;
    let a = &stage.a;
    let client = text(program(a, "client-0")?);
    let line = [client.as_str(), "connect", &stage.b.socket_v4(8020), "--payload", "ping", "--timeout", "8000"];
    let connect = || answer(&mut a.spawn(&line)?);
    let attempt = connect()?;
    ensure!(attempt.outcome == Outcome::Ok, "known from here on: {attempt:?}\n{}", stage.why());
    let before = stage.counters()?;
    let attempt = stage.stopped(|| {
        std::thread::sleep(AGENT_TIMEOUT + Duration::from_millis(200));
        connect()
    })?;
    ensure!((attempt.outcome, attempt.retransmissions) == (Outcome::Refused, 0), "{attempt:?}\n{}", stage.why());
    let happened = stage.since(&before)?;
    assert_eq!(happened.verdicts_out("agent_down"), 1);
    assert_eq!((happened.refusals().len(), held(&happened)), (1, 0), "{:?}", happened.refusals());
    let attempt = connect()?;
    ensure!((attempt.outcome, attempt.retransmissions) == (Outcome::Ok, 0), "{attempt:?}\n{}", stage.why());
    Ok(())
}
