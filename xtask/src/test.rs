//! Runs every test there is and counts them: what was skipped counts as failed.
//!
//! Test programs are built once and then started one after the other, so that those which share the machine (network namespaces, pins,
//! cgroups: package `tests`) never meet; but for a few that need a processor alone. A test that cannot run where it is must fail, or print a line that begins with `SKIPPED`:
//! both fail the run.
//!
//! Those of the package `tests` depend on the machine's timing too: one that fails is tried once more, alone, and the summary names it as one that
//! needed it. A run in which more than a few do has failed.

mod outcome;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use self::outcome::{Outcome, Totals};
use crate::{build, lint, setup, step, workspace};

/// Package whose tests share the machine and therefore run one at a time.
const SERIAL_PACKAGE: &str = "tests";

/// Those of it that share nothing, and need a processor while others wait for networks: they run beside the others, with what time is left.
const ASIDE: [&str; 3] = ["fuzz_handshake", "fuzz_smoke", "model"];

/// Those of it that wait for timers of TCP most of the time, with seconds to spare: two of their tests run at a time.
const WAITING: [&str; 3] = ["authentication", "datagrams", "middleboxes"];

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Only tests whose name contains this; the demo belongs to the name `demo`, the endurance run to `soak`
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Leave the lints out
    #[arg(long)]
    no_lint: bool,
    /// Minutes after which a test program is taken for stuck and killed
    #[arg(long, default_value_t = 20, value_name = "MINUTES")]
    limit: u64,
    /// How many failed end-to-end tests may be tried once more; if more fail, none is
    #[arg(long, default_value_t = 3, value_name = "TESTS")]
    second_attempts: usize,
}

/// A compiled test program.
#[derive(Debug)]
struct Program {
    package: String,
    target: String,
    directory: PathBuf,
    executable: PathBuf,
}

/// Prepares, builds, lints and tests; success only if nothing failed and nothing was skipped.
///
/// The counts are also left in `target/test-summary`, as `N passed, N failed`.
///
/// # Errors
/// The machine cannot be prepared, or something does not build.
pub fn run(options: &Options) -> Result<ExitCode> {
    let summary = workspace::target().join("test-summary");
    let _ = fs::remove_file(&summary);
    if !workspace::is_root() {
        bail!(
            "not root: the end-to-end tests make network namespaces and load eBPF. Run as root, or `cargo test -p policy` and the like for what needs none"
        );
    }
    setup::run(&setup::Options { tests: true, ..setup::Options::default() })?;
    let enforcer = build::for_running()?;
    let mut totals = Totals::default();
    if !options.no_lint {
        for check in lint::failures(&lint::Options::default()) {
            totals.add(format!("lint {check}"), Outcome::failure("see above"));
        }
    }
    let programs = build_tests()?;
    let limit = Duration::from_secs(options.limit * 60);
    let filter = options.filter.as_deref();
    for program in programs.iter().filter(|p| p.package != SERIAL_PACKAGE) {
        totals.add(program.name(), program.run(&enforcer, filter, limit)?);
    }
    totals.add("documentation examples".into(), doc_tests(filter, limit)?);
    let (aside, others): (Vec<&Program>, Vec<&Program>) =
        programs.iter().filter(|p| p.package == SERIAL_PACKAGE).partition(|p| p.is_aside());
    let run_all = |programs: &[&Program]| -> Result<Vec<Outcome>> {
        programs.iter().map(|program| program.run(&enforcer, filter, limit)).collect()
    };
    let (of_others, of_aside) = thread::scope(|scope| {
        let of_aside = scope.spawn(|| run_all(&aside));
        (run_all(&others), of_aside.join())
    });
    let of_aside = of_aside.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let outcomes = of_others?.into_iter().chain(of_aside);
    let mut serial: Vec<(&Program, Outcome)> = others.into_iter().chain(aside).zip(outcomes).collect();
    if serial.iter().map(|(_, outcome)| outcome.failed).sum::<usize>() <= options.second_attempts {
        for (program, outcome) in &mut serial {
            program.try_again(outcome, &enforcer, limit)?;
        }
    }
    for (program, outcome) in serial {
        totals.add(program.name(), outcome);
    }
    if filter.is_none_or(|text| "demo".contains(text)) {
        totals.add("demo".into(), demo(&enforcer)?);
    }
    if filter.is_none_or(|text| "soak".contains(text)) {
        totals.add("soak".into(), soak(&enforcer)?);
    }
    if filter.is_none_or(|text| "bench".contains(text)) {
        totals.add("bench --smoke".into(), bench(&enforcer)?);
    }
    if totals.count() == 0 {
        bail!("no test has {:?} in its name", filter.unwrap_or_default());
    }
    totals.print();
    fs::write(&summary, format!("{}\n", totals.line()))
        .with_context(|| format!("cannot write {}", summary.display()))?;
    Ok(if totals.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds all test programs of the workspace and finds out where they are.
fn build_tests() -> Result<Vec<Program>> {
    let list = workspace::target().join("xtask-logs/test-programs.json");
    // Standard output is cargo's list of what it built; the shell keeps it apart from the diagnostics, which belong into the log.
    let mut cargo = Command::new("sh");
    workspace::clean(&mut cargo);
    cargo.current_dir(workspace::root()).env("LIST", &list);
    cargo.args([
        "-c",
        "exec cargo test --locked --workspace --no-run --message-format=json-render-diagnostics >\"$LIST\"",
    ]);
    step::run("build tests", &mut cargo)?;
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let mut programs: Vec<Program> =
        text.lines().filter_map(|line| program(&serde_json::from_str(line).ok()?)).collect();
    programs.sort_by_key(Program::name);
    Ok(programs)
}

/// The test program that one of cargo's messages tells of, if it does.
fn program(message: &Value) -> Option<Program> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let directory = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    let package = directory.file_name()?.to_str()?.to_owned();
    let target = message["target"]["name"].as_str()?.to_owned();
    Some(Program { package, target, directory, executable: message["executable"].as_str()?.into() })
}

impl Program {
    fn name(&self) -> String {
        format!("{}::{}", self.package, self.target)
    }

    fn is_aside(&self) -> bool {
        self.package == SERIAL_PACKAGE && ASIDE.contains(&self.target.as_str())
    }

    fn run(&self, enforcer: &PathBuf, filter: Option<&str>, limit: Duration) -> Result<Outcome> {
        self.start(&self.name(), enforcer, &filter.into_iter().collect::<Vec<_>>(), limit)
    }

    /// Runs once more, alone, each test that failed.
    fn try_again(&self, outcome: &mut Outcome, enforcer: &PathBuf, limit: Duration) -> Result<()> {
        for test in outcome.failures() {
            let name = format!("{}, once more {test}", self.name());
            let again = self.start(&name, enforcer, &["--exact", &test], limit)?;
            if again.good() && again.passed == 1 {
                outcome.forgive(&test);
            }
        }
        Ok(())
    }

    fn start(&self, name: &str, enforcer: &PathBuf, arguments: &[&str], limit: Duration) -> Result<Outcome> {
        let mut command = Command::new("nice");
        command.args(["-n", if self.is_aside() { "19" } else { "0" }]).arg(&self.executable);
        workspace::clean(&mut command);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory).env("ENFORCER_BIN", enforcer);
        command.arg("--show-output").args(arguments);
        let serial = self.package == SERIAL_PACKAGE;
        if serial {
            command.arg(if WAITING.contains(&self.target.as_str()) { "--test-threads=2" } else { "--test-threads=1" });
        }
        watch(name, &mut command, limit, serial)
    }
}

fn doc_tests(filter: Option<&str>, limit: Duration) -> Result<Outcome> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--locked", "--workspace", "--doc"]);
    if let Some(filter) = filter {
        cargo.args(["--", filter]);
    }
    watch("documentation examples", &mut cargo, limit, false)
}

/// Runs one test program to its end, or kills it when its time is up; `live` shows each line as it comes.
fn watch(name: &str, command: &mut Command, limit: Duration, live: bool) -> Result<Outcome> {
    let began = Instant::now();
    if live {
        step::say(format!("{name} …"));
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name}: cannot start {:?}", command.get_program()))?;
    let lines = lines_of(&mut child);
    let mut text = String::new();
    let mut stuck = false;
    loop {
        match lines.recv_timeout(limit.saturating_sub(began.elapsed())) {
            Ok(line) => {
                if live && outcome::is_progress(&line) {
                    step::say(format!("  {line}"));
                }
                text.push_str(&line);
                text.push('\n');
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                stuck = true;
                child.kill().with_context(|| format!("{name}: cannot be killed"))?;
                break;
            }
        }
    }
    let status = child.wait()?;
    let mut outcome = Outcome::parse(&text, status.success());
    if stuck {
        outcome.failed += 1;
        outcome.notes.push(format!("killed after {} min", limit.as_secs() / 60));
    }
    if outcome.total() > 0 {
        step::say(format!("{name}: {outcome} in {:.1} s", began.elapsed().as_secs_f64()));
    }
    if !outcome.good() {
        let _ = std::io::stderr().write_all(outcome::relevant(&text).as_bytes());
    }
    Ok(outcome)
}

/// Both streams of `child`, line by line, until both are closed.
fn lines_of(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let streams: [Option<Box<dyn std::io::Read + Send>>; 2] =
        [child.stdout.take().map(|s| Box::new(s) as _), child.stderr.take().map(|s| Box::new(s) as _)];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

/// Runs every measurement once, shortly: it succeeds if each of the promised rows has a value.
fn bench(enforcer: &Path) -> Result<Outcome> {
    step::say("bench --smoke …");
    let output = own(enforcer, &["bench", "--smoke"])?;
    if output.status.success() {
        return Ok(Outcome { passed: 1, ..Outcome::default() });
    }
    let _ = std::io::stderr().write_all(&output.stderr);
    Ok(Outcome::failure("a measurement failed"))
}

/// Endures each kind of trouble once: it succeeds if no verdict was wrong and nothing leaked.
fn soak(enforcer: &Path) -> Result<Outcome> {
    let began = Instant::now();
    step::say("soak, each trouble once …");
    let output = own(enforcer, &["soak", "--minutes", "0.1"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    step::say(format!("{} ({:.1} s)", text.lines().next().unwrap_or("soak: nothing"), began.elapsed().as_secs_f64()));
    if output.status.success() {
        return Ok(Outcome { passed: 1, ..Outcome::default() });
    }
    let _ = std::io::stderr().write_all(&[output.stderr, output.stdout].concat());
    Ok(Outcome::failure("a verdict was wrong, or something leaked"))
}

/// Runs another of these commands to its end, with this `enforcer`.
fn own(enforcer: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(workspace::own_program()?);
    workspace::clean(&mut command);
    command.args(args).env("ENFORCER_BIN", enforcer).stdin(Stdio::null());
    command.output().with_context(|| format!("{}: cannot be started", args.join(" ")))
}

/// Runs the demo as a newcomer does and judges its document, not only its exit code.
fn demo(enforcer: &Path) -> Result<Outcome> {
    let began = Instant::now();
    step::say("demo …");
    let output = own(enforcer, &["demo", "--json"])?;
    let outcome = outcome::of_demo(&output.stdout, output.status.success());
    step::say(format!("demo: {outcome} in {:.1} s", began.elapsed().as_secs_f64()));
    if !outcome.good() {
        let _ = std::io::stderr().write_all(&output.stderr);
    }
    Ok(outcome)
}
