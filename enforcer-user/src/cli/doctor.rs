//! `enforcer doctor`

use std::{path::Path, process::ExitCode};

use serde_json::json;

use super::{
    Failure, Output,
    output::{Table, printable},
};
use crate::{
    config::error_text,
    probe::{self, State},
};

/// Exits with 1 if something needed is missing.
pub(super) fn run(file: &Path, out: &mut Output) -> Result<ExitCode, Failure> {
    let report = probe::examine(file);
    if out.is_json() {
        out.json(&report)?;
    } else {
        let mut table = Table::new(["CHECK", "STATE", "FOUND"]);
        for check in &report.checks {
            let state = match check.state {
                State::Ok => "ok",
                State::Limited => "limited",
                State::Missing => "MISSING",
                State::Unknown => "unknown",
            };
            table.row([check.name.clone(), state.into(), check.found.clone()]);
        }
        out.table(&table)?;
        for check in report.checks.iter().filter(|check| check.state != State::Ok) {
            out.line("")?;
            out.line(format!("{}: {}", check.name, printable(&check.found)))?;
            if !check.cost.is_empty() {
                out.line(format!("  costs: {}", printable(&check.cost)))?;
            }
            out.line(format!("  to do: {}", printable(&check.remedy)))?;
        }
    }
    Ok(ExitCode::from(u8::from(!report.ok)))
}

/// `enforcer doctor --bundle`
pub(super) fn bundle(file: &Path, bundle: &Path, out: &mut Output) -> Result<ExitCode, Failure> {
    crate::bundle::write(file, bundle)
        .map_err(|error| Failure::failed(format!("{}: {}", bundle.display(), error_text(&error))))?;
    if out.is_json() {
        out.json(&json!({ "bundle": bundle }))?;
    } else {
        out.line(format!("written: {}; look at it before you send it", bundle.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
