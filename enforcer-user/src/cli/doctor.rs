//! `enforcer doctor`

use std::{path::Path, process::ExitCode};

use super::{Failure, Output, output::Table};
use crate::probe::{self, State};

/// Exits with 1 if something needed is missing.
pub(super) fn run(file: &Path, out: &mut Output) -> Result<ExitCode, Failure> {
    let report = probe::examine(file);
    if out.is_json() {
        out.json(&report)?;
    } else {
        let mut table = Table::new(["CHECK", "STATE", "FOUND", "COSTS", "REMEDY"]);
        for check in &report.checks {
            let state = match check.state {
                State::Ok => "ok",
                State::Limited => "limited",
                State::Missing => "MISSING",
                State::Unknown => "unknown",
            };
            let check = check.clone();
            table.row([check.name, state.into(), check.found, check.cost, check.remedy]);
        }
        out.table(&table)?;
    }
    Ok(ExitCode::from(u8::from(!report.ok)))
}
