//! One line when a step starts, one when it ends, and the whole output in a file: short to read, nothing lost.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
const HEARTBEAT: Duration = Duration::from_secs(30);
const TAIL_LINES: usize = 60;

/// Prints one line with the time since the command began. Standard error, so that `--json` has standard output to itself.
pub fn say(text: impl AsRef<str>) {
    eprintln!("[{:6.1}s] {}", START.elapsed().as_secs_f64(), text.as_ref());
}

/// Runs `command` to its end with its output in a log file.
///
/// # Errors
/// The command cannot be started, or ends with a failure; the error then carries the end of its output.
pub fn run(label: &str, command: &mut Command) -> Result<()> {
    let (status, log) = run_logged(label, command)?;
    if status.success() {
        return Ok(());
    }
    bail!("{label}: {status}\n{}\n(all of it: {})", tail(&log), log.display())
}

/// Like [`run`], but a failing command is not an error: its status and its log are the answer.
///
/// # Errors
/// The command cannot be started, or its log cannot be written.
pub fn run_logged(label: &str, command: &mut Command) -> Result<(ExitStatus, PathBuf)> {
    let log = log_file(label)?;
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let began = Instant::now();
    say(format!("{label} …"));
    let mut child = command
        // The log is no terminal; rustfmt colours it all the same.
        .env("TERM", "dumb")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("{label}: cannot start {:?}", command.get_program()))?;
    let mut next_beat = HEARTBEAT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() >= next_beat {
            say(format!("{label}: still at it after {:.0} s ({})", began.elapsed().as_secs_f64(), log.display()));
            next_beat += HEARTBEAT;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let word = if status.success() { "done".to_owned() } else { status.to_string() };
    say(format!("{label}: {word} in {:.1} s", began.elapsed().as_secs_f64()));
    Ok((status, log))
}

/// What `command` prints on standard output, trimmed; `None` if it cannot be run or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let out = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// The last lines of a log.
pub fn tail(log: &PathBuf) -> String {
    let text = fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn log_file(label: &str) -> Result<PathBuf> {
    let dir = workspace::target().join("xtask-logs");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let name: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Ok(dir.join(format!("{name}.log")))
}
