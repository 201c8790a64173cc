//! `enforcer check-config`

use std::{path::Path, process::ExitCode};

use super::{Failure, Output};
use crate::config::Config;

pub(super) fn run(file: &Path, out: &mut Output) -> Result<ExitCode, Failure> {
    let config = Config::load(file)?;
    if out.is_json() {
        out.json(&config)?;
    } else {
        out.line(format!("{}: fine", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
