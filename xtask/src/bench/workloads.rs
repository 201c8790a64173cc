//! What a workload waits for before it may talk, and how soon a change of its tags counts.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use tests::{Attempt, Container, Docker, Host, IMAGE, Lab, Outcome, Output, Pair, Server};

use super::arms::{Arm, ECHO, Guard};
use super::pairs::Plan;
use super::rows::Rows;
use crate::step;

/// Milliseconds from the start of a command to its first connection, as a PU of its own and as nothing.
///
/// # Errors
/// A command cannot be started, or its connection fails.
pub fn starts(plan: &Plan, rows: &mut Rows) -> Result<()> {
    step::say("commands that connect as soon as they run");
    let bare = Arm::new("bare", Guard::None)?;
    let enforced = Arm::new("enforced", Guard::Enforcer(10))?;
    let count = plan.rounds * plan.contacts.max(2) * 2;
    let (mut plain, mut managed) = (Vec::new(), Vec::new());
    for number in 0..count {
        plain.push(start(&bare, None)?);
        managed.push(start(&enforced, Some(&format!("start{number}")))?);
    }
    rows.add_with_tail("start_bare_ms", "ms", &plain);
    rows.add_with_tail("pu_start_exec_ms", "ms", &managed);
    Ok(())
}

/// Milliseconds from `docker run` to the container's first connection, as a PU and on a host without enforcer, in turn.
///
/// # Errors
/// There is no Docker, a container does not start, or its connection fails.
pub fn containers(plan: &Plan, rows: &mut Rows) -> Result<()> {
    step::say("containers that connect as soon as they run");
    let lab = Lab::new("bench")?;
    lab.write_policy("bench.yaml", "name: bench\nrules:\n  - ours: allow app=client -> app=server tcp/8020\n")?;
    let bare = Engine::new(&lab.host("a")?, false)?;
    let enforced = Engine::new(&lab.host("b")?, true)?;
    // What happens only once happens before the clock starts.
    for engine in [&bare, &enforced] {
        engine.start("warm").with_context(|| engine.why())?;
    }
    let (mut plain, mut managed) = (Vec::new(), Vec::new());
    for number in 0..(plan.rounds * plan.contacts).div_ceil(4) {
        let name = format!("start{number}");
        plain.push(bare.start(&name)?);
        managed.push(enforced.start(&name).with_context(|| enforced.why())?);
    }
    rows.add_with_tail("start_docker_bare_ms", "ms", &plain);
    rows.add_with_tail("pu_start_docker_ms", "ms", &managed);
    Ok(())
}

/// Milliseconds from `enforcer pu tag` until both ends of a live connection that is no longer allowed are cut.
///
/// # Errors
/// A tag cannot be changed, or a connection outlives it.
pub fn tag_changes(plan: &Plan, rows: &mut Rows) -> Result<()> {
    step::say("tags that change under a live connection");
    let pair = Pair::new("bench")?;
    pair.a.enforcer(&["pu", "tag", "client", "--set", "role=ok"])?.ok()?;
    pair.decree("  - call: allow app=client role=ok -> app=server tcp/8000-8999\n")?;
    for host in [&pair.a, &pair.b] {
        until("the policy is in force", || Ok(host.enforcer(&["policy", "show"])?.ok()?.contains("role")))?;
    }
    let server = pair.server.serve(&["--listen", &format!("[::]:{ECHO}")])?;
    let mut values = Vec::new();
    for _ in 0..plan.rounds * plan.contacts {
        values.push(tag_change(&pair, &server)?);
    }
    rows.add_with_tail("tag_change_ms", "ms", &values);
    Ok(())
}

/// Milliseconds until a command, run by `enforcer exec` if it gets a name, has its first connection.
fn start(arm: &Arm, pu: Option<&str>) -> Result<f64> {
    let tool = tests::lab_tool()?.to_string_lossy().into_owned();
    let to = arm.b.socket_v4(ECHO);
    let command = [tool.as_str(), "connect", &to, "--timeout", "5000"];
    let line = match pu {
        Some(name) => arm.a.as_pu(name, &["app=bench", "side=client"], &command)?,
        None => command.map(str::to_owned).to_vec(),
    };
    until_connected(|| arm.a.exec(&line))
}

/// Milliseconds from calling `run`, which connects once and says how that went, until it was connected.
fn until_connected(run: impl FnOnce() -> Result<Output>) -> Result<f64> {
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let attempt: Attempt = run()?.json::<Attempts>()?.only()?;
    ensure!(attempt.outcome == Outcome::Ok, "{attempt:?}");
    Ok(attempt.answered_at as f64 / 1e3 - begin.as_micros() as f64 / 1e3)
}

/// A host with a dockerd and a server in a container.
struct Engine {
    host: Host,
    docker: Docker,
    to: String,
    _server: Container,
}

impl Engine {
    fn new(host: &Host, enforced: bool) -> Result<Self> {
        let docker = Docker::start(host)?;
        docker.network("one", "10.99.0.0/24", &[])?;
        if enforced {
            host.start_enforcer(&format!("datapath.interfaces = [\"auto\"]\n{}", docker.enforcer_config()))?;
        }
        let options = ["--network", "one", "--label", "app=server"];
        let server = docker.serve("server", &options, &["--quiet", "--listen", &format!("[::]:{ECHO}")])?;
        let to = format!("{}:{ECHO}", server.address(&docker, "one")?);
        Ok(Self { host: host.clone(), docker, to, _server: server })
    }

    /// Milliseconds until a container of this name, gone afterwards, has its first connection.
    fn start(&self, name: &str) -> Result<f64> {
        let line = ["run", "--rm", "--name", name, "--network", "one", "--label", "app=client", IMAGE];
        let line = [&line[..], &["lab-tool", "connect", &self.to, "--timeout", "10000"]].concat();
        until_connected(|| self.docker.docker(&line))
    }

    fn why(&self) -> String {
        self.host.enforcer_log()
    }
}

/// Milliseconds until both ends of one silent connection have ended for the lack of a tag.
fn tag_change(pair: &Pair, server: &Server) -> Result<f64> {
    pair.a.enforcer(&["pu", "tag", "client", "--set", "role=ok"])?.ok()?;
    let reset = || Ok::<_, anyhow::Error>(server.events()?.iter().filter(|event| event.how == "reset").count());
    let before = reset()?;
    let mut held = pair.client.spawn_tool(&["hold", &pair.b.socket_v4(ECHO), "--timeout", "5000"])?;
    let ready = held.wait_for_line("READY", Duration::from_secs(10))?;
    ensure!(ready.contains(r#""open":1"#), "no connection: {ready}\n{}", pair.a.enforcer_log());
    until("the server has it", || Ok(server.accepted()? > before))?;
    thread::scope(|scope| {
        let begin = Instant::now();
        let change = scope.spawn(|| pair.a.enforcer(&["pu", "tag", "client", "--unset", "role"]));
        until("the client's end is cut", || Ok(held.wait(Duration::ZERO)?.is_some()))?;
        until("the server's end is cut", || Ok(reset()? > before))?;
        let took = begin.elapsed().as_secs_f64() * 1e3;
        change.join().map_err(|_| anyhow!("the change of tags panicked"))??.ok()?;
        Ok(took)
    })
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done()? {
        ensure!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[derive(serde::Deserialize)]
struct Attempts {
    attempts: Vec<Attempt>,
}

impl Attempts {
    fn only(mut self) -> Result<Attempt> {
        self.attempts.pop().context("no attempt was made")
    }
}
