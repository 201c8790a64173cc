//! `enforcer observe [on|off]`

use std::{path::Path, process::ExitCode};

use serde_json::json;

use super::{Failure, Output, args::ObserveCommand, output::printable};
use crate::admin::{Client, Request, Response};

pub(super) fn run(socket: &Path, command: Option<ObserveCommand>, out: &mut Output) -> Result<ExitCode, Failure> {
    let request = match command {
        None => Request::Status,
        Some(ObserveCommand::On { namespace }) => Request::Observe { namespace, on: true },
        Some(ObserveCommand::Off { namespace }) => Request::Observe { namespace, on: false },
    };
    let observed = match Client::connect(socket)?.ask(&request)? {
        Response::Status(status) => status.observed,
        Response::Observed(observed) => observed,
        other => return Err(super::show::unexpected(&other)),
    };
    if out.is_json() {
        out.json(&json!({ "observed": observed }))?;
    } else if observed.is_empty() {
        out.line("everything is enforced")?;
    } else {
        out.line(format!("NOT enforced: {}", printable(&observed.join(" "))))?;
    }
    Ok(ExitCode::SUCCESS)
}
