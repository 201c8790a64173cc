//! `enforcer run`

use std::{path::Path, process::ExitCode};

use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::config::{Config, Log, LogFormat};

pub(super) fn run(file: &Path) -> Result<ExitCode, Failure> {
    let config = Config::load(file)?;
    log_to_stderr(&config.log)?;
    match crate::agent::run(config) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::failed(format!("{error:#}"))),
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
