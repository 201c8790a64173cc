//! The traffic tool's answers, typed: one connection attempt, one server, one load.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::enforcer::{built_binary, text};
use crate::process::{Place, Proc};

/// How a connection attempt ended, as the application saw it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Connected, and if something was to be answered, answered.
    Ok,
    /// ECONNREFUSED: a reset answered the SYN.
    Refused,
    /// EPERM: refused before anything was sent.
    Eperm,
    /// Nothing answered in time.
    Timeout,
    /// Connected, then reset.
    Reset,
    /// Connected, then closed by the other end without an answer.
    Closed,
    /// Anything else; see the errno.
    Error,
}

/// One connection attempt.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Attempt {
    /// How it ended.
    pub outcome: Outcome,
    /// The error's number, 0 for none.
    pub errno: i32,
    /// Microseconds until connect(2) had its answer.
    pub micros: u64,
    /// Microseconds until the reply (or its absence) was known; the same as `micros` if nothing was sent.
    pub total_micros: u64,
    /// How often TCP sent anything again: its SYN, before there was an answer.
    #[serde(default)]
    pub retransmissions: u32,
    /// When connect(2) had its answer, Unix microseconds.
    pub answered_at: u64,
    /// The socket's own address and port.
    pub local: String,
    /// Whom it called.
    pub remote: String,
    /// What came back, as text.
    pub reply: String,
}

/// One end's account of a connection played by `lab-tool dialog`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Talk {
    /// Every step went as said.
    pub ok: bool,
    /// The step that did not, and why.
    pub failed: String,
    /// Microseconds until the connection was made.
    pub micros: u64,
}

/// What a load generator measured.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Load {
    /// `crr`, `rr` or `stream`.
    pub kind: String,
    /// Seconds measured.
    pub seconds: f64,
    /// Connections, transactions, or bytes.
    pub count: u64,
    /// The same for each second.
    pub rate: f64,
    /// Attempts that failed.
    pub failed: u64,
    /// Median microseconds of one connect (crr) or one transaction (rr).
    pub median_micros: f64,
    /// The 99th percentile of the same.
    pub p99_micros: f64,
}

/// What became of the connections of `lab-tool transfer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Transferred {
    /// Connections that were made.
    pub open: u64,
    /// Those that ended before they were told to.
    pub lost: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that came back.
    pub echoed: u64,
    /// Those of them that were not what was sent.
    pub wrong: u64,
    /// Bytes that came back on the connection that got fewest.
    pub least: u64,
}

/// How the connections of one caller to one address ended (`lab-tool calls`).
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Calls {
    /// Whom it called.
    pub to: String,
    /// How they ended.
    pub outcome: Outcome,
    /// So many of them.
    pub count: u64,
    /// Microseconds of the slowest.
    pub slowest_micros: u64,
}

/// A running `lab-tool serve`.
#[derive(Debug)]
pub struct Server(Proc);

/// One line of a server's log.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ServerEvent {
    /// `accept`, `bytes`, `close`.
    pub event: String,
    /// The client's address and port.
    pub peer: String,
    /// Bytes just received (`bytes`), or in all (`close`).
    pub count: u64,
    /// `eof` or `reset`, for `close`.
    #[serde(default)]
    pub how: String,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct Attempts {
    pub(crate) attempts: Vec<Attempt>,
}

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Names the `lab-tool` to use from now on, before `LAB_TOOL_BIN` and any that was built. The first call holds.
pub fn use_lab_tool(path: PathBuf) {
    CHOSEN.get_or_init(|| path);
}

/// The traffic tool: the one chosen, or `LAB_TOOL_BIN`, or the one built beside the running program.
pub fn lab_tool() -> Result<PathBuf> {
    match CHOSEN.get() {
        Some(path) => Ok(path.clone()),
        None => built_binary("lab-tool", "LAB_TOOL_BIN", "cargo build --package tests --bin lab-tool"),
    }
}

impl Place {
    /// Runs the traffic tool here and returns what it printed, as JSON.
    pub fn tool<T: serde::de::DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let tool = text(lab_tool()?);
        self.exec_within(&[&[tool.as_str()], args].concat(), Duration::from_secs(120))?.json()
    }

    /// One attempt to connect to `to` ("address:port"); `args` as in `lab-tool connect --help`.
    pub fn connect(&self, to: &str, args: &[&str]) -> Result<Attempt> {
        self.connect_many(to, args)?.into_iter().next().context("lab-tool connect made no attempt")
    }

    /// As many attempts as `args` asks for, in order.
    pub fn connect_many(&self, to: &str, args: &[&str]) -> Result<Vec<Attempt>> {
        let answer: Attempts = self.tool(&[&["connect", to], args].concat())?;
        Ok(answer.attempts)
    }

    /// Starts the traffic tool and leaves it running.
    pub fn spawn_tool(&self, args: &[&str]) -> Result<Proc> {
        self.spawn(&[&[text(lab_tool()?).as_str()], args].concat())
    }

    /// Starts a server here and waits until it listens; `args` as in `lab-tool serve --help`.
    pub fn serve(&self, args: &[&str]) -> Result<Server> {
        let mut server = self.spawn_tool(&[&["serve"], args].concat())?;
        server.wait_for_line("READY", Duration::from_secs(5))?;
        Ok(Server(server))
    }

    /// Starts an end that listens and then plays `steps` (`lab-tool dialog --help`) on each connection.
    pub fn listen_and_play(&self, listen: &str, options: &[&str], steps: &[&str]) -> Result<Listener> {
        let mut process = self.spawn_tool(&[&["dialog", "--listen", listen], options, steps].concat())?;
        process.wait_for_line("READY", Duration::from_secs(5))?;
        Ok(Listener(process))
    }

    /// Calls `to` and plays `steps`; a [`Talk`] for each of `--times` connections.
    pub fn call_and_play(&self, to: &str, options: &[&str], steps: &[&str]) -> Result<Vec<Talk>> {
        let tool = text(lab_tool()?);
        let line = [&[tool.as_str(), "dialog", "--to", to], options, steps].concat();
        talks(self.exec_within(&line, Duration::from_secs(120))?.ok()?)
    }

    /// Runs a load generator (`crr`, `rr` or `stream`) against a server.
    pub fn load(&self, kind: &str, to: &str, args: &[&str]) -> Result<Load> {
        self.tool(&[&[kind, to], args].concat())
    }
}

/// A running `lab-tool dialog --listen`.
#[derive(Debug)]
pub struct Listener(Proc);

impl Listener {
    /// Waits until it has played all its connections, and returns what it says of each.
    pub fn finish(mut self, limit: Duration) -> Result<Vec<Talk>> {
        let ended = self.0.wait(limit)?;
        let said = self.0.stdout();
        anyhow::ensure!(ended.is_some(), "still listening after {limit:?}: {said}{}", self.0.stderr());
        talks(&said)
    }
}

fn talks(text: &str) -> Result<Vec<Talk>> {
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("not a dialog's line: {line}"))).collect()
}

impl Server {
    /// Everything the server logged so far.
    pub fn events(&self) -> Result<Vec<ServerEvent>> {
        let log = self.0.stdout();
        let complete = log.rfind('\n').map_or("", |end| &log[..end]);
        let events = complete.lines().filter(|line| line.starts_with('{'));
        events.map(|line| serde_json::from_str(line).with_context(|| format!("not a server event: {line}"))).collect()
    }

    /// How many connections the listener has seen.
    pub fn accepted(&self) -> Result<usize> {
        Ok(self.events()?.iter().filter(|event| event.event == "accept").count())
    }

    /// How many bytes it has received in all.
    pub fn received(&self) -> Result<u64> {
        Ok(self.events()?.iter().filter(|event| event.event == "bytes").map(|event| event.count).sum())
    }

    /// The process.
    pub fn process(&mut self) -> &mut Proc {
        &mut self.0
    }
}
