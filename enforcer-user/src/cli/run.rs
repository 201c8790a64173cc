//! `enforcer run`

use std::{path::Path, process::ExitCode, rc::Rc, time::Duration};

use serde_json::json;
use tracing_subscriber::EnvFilter;

use super::{
    Failure, Output,
    failure::NOT_CONFIRMED,
    show::unexpected,
    upgrade::{FAILED, PREPARED, Teller},
};
use crate::{
    admin::{Client, Request, Response},
    agent::{NotConfirmed, Start},
    config::{Config, Log, LogFormat},
};

/// `enforcer confirm`
pub(super) fn confirm(socket: &Path, out: &mut Output) -> Result<ExitCode, Failure> {
    match Client::connect(socket)?.ask(&Request::Confirm)? {
        Response::Done if out.is_json() => out.json(&json!({ "confirmed": true }))?,
        Response::Done => out.line("confirmed: it stays in force")?,
        other => return Err(unexpected(&other)),
    }
    Ok(ExitCode::SUCCESS)
}

/// `enforcer run`; with `succeed` as [`super::upgrade`] starts it.
pub(super) fn run(file: &Path, confirm: Option<Duration>, succeed: bool) -> Result<ExitCode, Failure> {
    let teller = if succeed { Some(Rc::new(Teller::open()?)) } else { None };
    let prepared = teller.clone().map(|teller| Box::new(move || teller.tell(PREPARED)) as Box<dyn Fn()>);
    let config = Config::load(file)?;
    log_to_stderr(&config.log)?;
    match crate::agent::run(config, Start { confirm, prepared }) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.is::<NotConfirmed>() => Err(Failure::new(NOT_CONFIRMED, format!("{error:#}"))),
        Err(error) => {
            let message = format!("{error:#}");
            if let Some(teller) = teller {
                teller.tell(&format!("{FAILED}{message}"));
            }
            Err(Failure::failed(message))
        }
    }
}

/// Standard error is where systemd, docker and people look for a daemon's log.
pub(super) fn log_to_stderr(log: &Log) -> Result<(), Failure> {
    let filter =
        EnvFilter::builder().parse(&log.level).map_err(|error| Failure::failed(format!("log.level: {error}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let started = match log.format {
        LogFormat::Text => builder.with_ansi(is_terminal && std::env::var_os("NO_COLOR").is_none()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| Failure::failed(format!("cannot start the log: {error}")))
}
