//! `enforcer policy simulate`

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
};

use policy::{
    Capabilities, FlowRecord,
    simulate::{Simulated, Simulation, describe},
};

use super::{Failure, Output, Table, diff::judged, now, read_rules, text};
use crate::config::{Config, DEFAULT_FILE, error_text};

/// Longest line taken for a record, bytes.
const LINE_MAX: u64 = 1 << 20;

/// Arguments of `policy simulate`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct SimulateArgs {
    /// The policy files, or directories of them, that may become the policy.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Flow records, `-` for standard input; those the agent's configuration names if left out. May be given many times.
    #[arg(long, value_name = "FILE")]
    pub records: Vec<PathBuf>,
    /// The agent's configuration file, which says where records are.
    #[arg(long = "config", value_name = "FILE", default_value = DEFAULT_FILE)]
    pub config: PathBuf,
    /// Show what stays as it is, too.
    #[arg(long)]
    pub all: bool,
}

pub(super) fn run(args: SimulateArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let rules = read_rules(&args.files)?;
    let mut simulation = Simulation::new(&rules, Capabilities::default(), now()).map_err(Failure::failed)?;
    let files = match args.records.is_empty() {
        true => configured(&args.config)?,
        false => args.records,
    };
    for file in &files {
        match file == Path::new("-") {
            true => take("standard input", io::stdin().lock(), &mut simulation)?,
            false => {
                let opened = File::open(file).map_err(|error| unreadable(&file.display().to_string(), &error))?;
                take(&file.display().to_string(), BufReader::new(opened), &mut simulation)?;
            }
        }
    }
    let mut simulated = simulation.finish().map_err(Failure::failed)?;
    if !args.all {
        simulated.connections.retain(|connection| connection.changes);
    }
    match out.is_json() {
        true => out.json(&simulated)?,
        false => print(&simulated, args.all, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Records of the agent of this host.
fn configured(config: &Path) -> Result<Vec<PathBuf>, Failure> {
    let files: Vec<PathBuf> = Config::load(config)?.records.files().into_iter().filter(|file| file.exists()).collect();
    match files.is_empty() {
        false => Ok(files),
        true => Err(Failure::failed(format!(
            "no flow records where {} says: name them with `--records FILE`, or set `records.file`",
            config.display()
        ))),
    }
}

fn take(name: &str, mut reader: impl BufRead, simulation: &mut Simulation) -> Result<(), Failure> {
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = io::Read::take(&mut reader, LINE_MAX).read_until(b'\n', &mut line);
        if read.map_err(|error| unreadable(name, &error))? == 0 {
            break;
        }
        let at = |what: &dyn std::fmt::Display| Failure::failed(format!("{name}:{number}: {what}"));
        let ended = line.last() == Some(&b'\n');
        if !ended && line.len() as u64 == LINE_MAX {
            return Err(at(&"not a flow record: longer than any is"));
        }
        let text = std::str::from_utf8(&line).map_err(|error| at(&error))?.trim();
        if text.is_empty() {
            continue;
        }
        match FlowRecord::parse(text) {
            Ok(record) => simulation.add(record),
            // The agent may be writing it.
            Err(_) if !ended => break,
            Err(error) => return Err(at(&error)),
        }
    }
    Ok(())
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::failed(format!("{name}: cannot read it: {}", error_text(error)))
}

fn print(simulated: &Simulated, all: bool, out: &mut Output) -> Result<(), Failure> {
    let summary = &simulated.summary;
    let flows = |count: u64, what: &str| format!("{} {what}", text::count(count as usize, "connection"));
    out.line(format!(
        "{} of {}: {}, {}, {}, {}",
        text::count(summary.records as usize, "record"),
        text::count(summary.kinds as usize, "kind"),
        flows(summary.newly_denied, "newly denied"),
        flows(summary.newly_allowed, "newly allowed"),
        flows(summary.stay_allowed, "stay allowed"),
        flows(summary.stay_denied, "stay denied"),
    ))?;
    if simulated.connections.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let mut table = Table::new(["FROM", "TO", "PORT", "FLOWS", "BEFORE", "AFTER"]);
    for connection in &simulated.connections {
        let mut before = judged(&connection.before);
        if connection.before.rule.is_none() {
            before = format!("{} ({})", connection.before.action, connection.reason);
        }
        if connection.observe_mode {
            before.push_str(", observe mode");
        }
        let after = judged(&connection.after);
        table.row([
            describe(&connection.from),
            describe(&connection.to),
            connection.port.clone(),
            connection.flows.to_string(),
            before,
            if all && !connection.changes { "as before".to_owned() } else { after },
        ]);
    }
    Ok(out.table(&table)?)
}
