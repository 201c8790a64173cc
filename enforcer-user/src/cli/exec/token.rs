//! Where a user's token comes from.

use std::{io::Read, path::Path};

use super::{Failure, NOT_STARTED};
use crate::{admin::Secret, config::error_text, facts::jwt::TOKEN_MAX};

/// Variable that may hold it. It is not passed on.
pub(super) const VARIABLE: &str = "ENFORCER_USER_TOKEN";

/// The token from the command line, else from the file, else from the environment.
pub(super) fn of(given: Option<Secret>, file: Option<&Path>) -> Result<Option<Secret>, Failure> {
    match (given, file) {
        (Some(token), _) => Ok(Some(token)),
        (None, Some(file)) => read(file).map(Some),
        (None, None) => from_environment(),
    }
}

/// The token from the environment, if there is one.
pub(super) fn from_environment() -> Result<Option<Secret>, Failure> {
    match std::env::var(VARIABLE) {
        Ok(token) if token.trim().is_empty() => Ok(None),
        Ok(token) => Ok(Some(Secret::from(token))),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Failure::new(NOT_STARTED, format!("{VARIABLE} holds no token: it is not UTF-8")))
        }
    }
}

fn read(file: &Path) -> Result<Secret, Failure> {
    let failed = |problem: String| Failure::new(NOT_STARTED, format!("--as-user-file {}: {problem}", file.display()));
    let mut token = String::new();
    let opened = std::fs::File::open(file);
    let read = opened.and_then(|file| file.take(TOKEN_MAX as u64 + 2).read_to_string(&mut token));
    read.map_err(|error| failed(error_text(&error)))?;
    if token.trim().is_empty() {
        return Err(failed("holds no token".into()));
    }
    Ok(Secret::from(token))
}
