//! `enforcer upgrade`
//!
//! The new version first says, in a process of its own, whether it could take over; up to there nothing is changed. Then it is
//! started beside the running agent, prepares what it can (programs verified and loaded, keys and policy read), and says so;
//! only now the running agent is asked to make way. What the kernel holds in between, the new one decides. If it ends, or is
//! not ready in time, its programs and maps are replaced by the former ones again, and the former binary is started.

mod running;
mod successor;

use std::{
    ffi::OsString,
    fs::{self, File},
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use serde_json::json;

use super::{Failure, Output, args::UpgradeArgs, show::unexpected};
use crate::{
    admin::{Client, Request, Response, view::StatusView},
    config::{Config, error_text},
    load::{self, Pins},
};

use running::{Running, unit_of};
use successor::Successor;
pub(super) use successor::{FAILED, PREPARED, Teller};

pub(super) fn run(arguments: &UpgradeArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let file = fs::canonicalize(&arguments.config.file).unwrap_or_else(|_| arguments.config.file.clone());
    let config = Config::load(&file)?;
    if arguments.check {
        return check(&config, out);
    }
    let new = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => {
            std::env::current_exe().map_err(|error| Failure::failed(format!("cannot tell what this is: {error}")))?
        }
    };
    let _alone = alone(&config)?;
    let before = ready(&config).map_err(|problem| Failure::failed(format!("{problem}; nothing is changed")))?;
    let unseen = |error| Failure::failed(format!("cannot look at the agent: {error}; run as root"));
    // A service may well live in namespaces of its own.
    if let Some(unit) = unit_of(before.pid).map_err(unseen)? {
        return Err(Failure::failed(format!(
            "the agent is a service: after `enforcer upgrade --check`, `systemctl restart {unit}` replaces it; nothing is changed"
        )));
    }
    let running = Running::find(before.pid).map_err(unseen)?;
    let said = accepts(&new, &["upgrade", "--check"], &file)?;
    out.line(format!("{}: {said}", new.display()))?;
    // Without this there would be no way back.
    accepts(running.executable(), &["check-config"], &file).map_err(|failure| {
        failure.within("the running version does not understand this configuration any more: put it back until the upgrade is done")
    })?;
    let begin = Instant::now();
    let taken_over = take_over(&config, &file, &new, &running, arguments.timeout);
    let after = match taken_over {
        Ok(after) => after,
        Err(NotTaken { why, handed_over: false }) => {
            return Err(Failure::failed(format!("{why}; the running agent goes on, nothing is changed")));
        }
        Err(NotTaken { why, handed_over: true }) => return Err(go_back(&config, &file, &running, &why)),
    };
    let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (from, to) = (&before.status.version, &after.status.version);
    if out.is_json() {
        out.json(&json!({ "from": from, "to": to, "pid": after.pid, "millis": millis }))?;
    } else {
        out.line(format!("upgraded from {from} to {to} in {millis} ms; the agent is process {}", after.pid))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `enforcer upgrade --check`
fn check(config: &Config, out: &mut Output) -> Result<ExitCode, Failure> {
    let fit = crate::agent::check(config).map_err(|error| Failure::failed(format!("{error:#}")))?;
    if out.is_json() {
        out.json(&json!({ "programs": fit.programs, "kept": fit.kept, "carried": fit.carried, "made": fit.made }))?;
    } else {
        let list = |what: &str, maps: &[String]| match maps {
            [] => String::new(),
            maps => format!(", {what}: {}", maps.join(" ")),
        };
        let (programs, kept) = (fit.programs, fit.kept);
        let (carried, made) = (list("carried into another layout", &fit.carried), list("new", &fit.made));
        out.line(format!("could take over: {programs} programs load, {kept} maps are kept{carried}{made}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Two at once would take what the other prepares.
fn alone(config: &Config) -> Result<Flock<File>, Failure> {
    let place = Pins::new(&config.paths.bpffs).links;
    let directory = File::open(&place).map_err(|error| {
        Failure::failed(format!("{}: {}; nothing is in force", place.display(), error_text(&error)))
    })?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock)
        .map_err(|_| Failure::failed("another upgrade is under way; nothing is changed"))
}

/// An agent that answers.
struct Agent {
    pid: u32,
    status: StatusView,
}

/// The agent, if it is ready.
fn ready(config: &Config) -> Result<Agent, String> {
    let mut client = Client::connect(&config.paths.socket).map_err(|error| error.to_string())?;
    match client.ask(&Request::Status) {
        Ok(Response::Status(status)) if status.ready => {
            let pid = client.agent_pid().ok_or("the agent lives in another PID namespace")?;
            Ok(Agent { pid, status })
        }
        Ok(Response::Status(_)) => Err("the agent is not ready".into()),
        Ok(other) => Err(format!("{:?}", unexpected(&other))),
        Err(error) => Err(error.to_string()),
    }
}

/// Has a binary look at the configuration: what it says, or its failure with its exit code.
fn accepts(binary: &Path, command: &[&str], file: &Path) -> Result<String, Failure> {
    let name = binary.display();
    let output = Command::new(binary).args(command).arg("--config").arg(file).output();
    let output = output.map_err(|error| Failure::failed(format!("cannot run {name}: {error}; nothing is changed")))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(said(&output.stdout));
    }
    let code = output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(super::failure::FAILED);
    Err(Failure::new(code, format!("{name} refuses: {}; nothing is changed", said(&output.stderr))))
}

/// Why the new agent does not run, and whether the former one has ended for it.
struct NotTaken {
    why: String,
    handed_over: bool,
}

fn take_over(
    config: &Config,
    file: &Path,
    new: &Path,
    running: &Running,
    timeout: Duration,
) -> Result<Agent, NotTaken> {
    let deadline = Instant::now() + timeout;
    let not = |handed_over| move |why: String| NotTaken { why, handed_over };
    let arguments: [OsString; 4] = ["run".into(), "--succeed".into(), "--config".into(), file.into()];
    let mut successor = Successor::start(new, &arguments, running)
        .map_err(|error| not(false)(format!("{}: {error}", new.display())))?;
    if let Err(why) = successor.wait_until_prepared(deadline) {
        successor.end();
        return Err(not(false)(why));
    }
    let asked = Client::connect(&config.paths.socket).and_then(|mut client| client.ask(&Request::HandOver));
    if let Err(error) = asked {
        successor.end();
        return Err(not(!running.lives())(format!("the running agent does not make way: {error}")));
    }
    let taken = successor.wait_until(deadline, || ready(config).ok().filter(|agent| agent.pid != running.pid()));
    taken.map_err(|why| {
        successor.end();
        not(true)(why)
    })
}

/// How long the former agent may take to come back; however little patience there was with the new one.
const BACK: Duration = Duration::from_secs(60);

/// Puts the former agent back, with its programs and maps.
fn go_back(config: &Config, file: &Path, running: &Running, why: &str) -> Failure {
    // It was asked to end, and may be about to.
    if !running.wait_for_end(Instant::now() + Duration::from_secs(10)) {
        running.signal(Signal::SIGKILL);
        running.wait_for_end(Instant::now() + Duration::from_secs(5));
    }
    let back = load::roll_back(&config.paths.bpffs).map(drop).map_err(|error| error.to_string()).and_then(|()| {
        let arguments: [OsString; 3] = ["run".into(), "--config".into(), file.into()];
        let mut former =
            Successor::start(running.executable(), &arguments, running).map_err(|error| error.to_string())?;
        former.wait_until(Instant::now() + BACK, || ready(config).ok())
    });
    match back {
        Ok(agent) => Failure::failed(format!(
            "{why}; the former version runs again, as process {}, with its programs",
            agent.pid
        )),
        Err(error) => Failure::failed(format!(
            "{why}; and the former version does not run either: {error}; enforcement goes on in the kernel, start an agent"
        )),
    }
}
