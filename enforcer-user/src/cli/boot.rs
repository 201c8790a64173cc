//! `enforcer boot`

use std::{path::Path, process::ExitCode};

use serde_json::json;

use super::{Failure, Output, text};
use crate::{
    agent::{Booted, boot},
    config::Config,
};

/// Denies what is configured until an agent runs.
pub(super) fn run(file: &Path, out: &mut Output) -> Result<ExitCode, Failure> {
    let config = Config::load(file)?;
    super::run::log_to_stderr(&config.log)?;
    let booted = boot(&config).map_err(|error| Failure::failed(format!("{error:#}")))?;
    let none = Vec::new();
    let (state, said, absent) = match &booted {
        Booted::AgentRuns => ("agent_runs", "an agent runs: there is nothing to do".to_owned(), &none),
        Booted::InForce { absent } => ("in_force", "what an agent has left is in force".to_owned(), absent),
        Booted::Denying { absent, workloads } => {
            let said = format!("{} denied until an agent runs", text::count(*workloads, "workload"));
            ("denying", said, absent)
        }
    };
    if out.is_json() {
        out.json(&json!({ "state": state, "absent_interfaces": absent }))?;
    } else {
        out.line(said)?;
        for name in absent {
            out.line(format!("not there yet: interface {name}; `enforcer boot` again, or an agent, attaches to it"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
