//! The command line: arguments in, tables or JSON out.
//!
//! Exit codes: 0 success; 1 the command failed, or `doctor` misses something needed; 2 wrong usage; 3 the agent cannot
//! be reached; 4 the configuration is invalid; 5 `run --confirm` was not confirmed. `exec` exits with its command's code, 128+n if signal n killed it, 125 if
//! the PU could not be made, 126 if the command cannot be run, 127 if it does not exist.

mod args;
mod boot;
mod ca;
mod check_config;
mod doctor;
mod exec;
mod failure;
mod observe;
mod output;
mod policy;
mod pu;
mod reasons;
mod run;
mod show;
mod suggest;
mod text;
mod unload;
mod upgrade;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use failure::Failure;
use output::Output;

pub use reasons::as_markdown as reasons_as_markdown;

/// Runs the command line and reports failures on standard error.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match dispatch(args) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn dispatch(args: Args) -> Result<ExitCode, Failure> {
    let mut out = Output::new(args.json);
    let socket = args.socket;
    match args.command {
        Command::Run { config, confirm, succeed } => run::run(&config.file, confirm, succeed),
        Command::Confirm => run::confirm(&socket, &mut out),
        Command::Boot { config } => boot::run(&config.file, &mut out),
        Command::CheckConfig { config } => check_config::run(&config.file, &mut out),
        Command::Ca { command } => ca::run(command, &mut out),
        Command::Exec(exec) => exec::run(&socket, exec),
        Command::Login => exec::login(&socket),
        Command::Pu { command } => pu::run(&socket, command, &mut out),
        Command::Status => show::status(&socket, &mut out),
        Command::Pus { output } => show::pus(&socket, output, &mut out),
        Command::Peers { forget, keep_checked } => show::peers(&socket, forget, keep_checked, &mut out),
        Command::Flows(flows) => show::flows(&socket, flows, &mut out),
        Command::Observe { command } => observe::run(&socket, command, &mut out),
        Command::Policy { command } => policy::run(&socket, command, &mut out),
        Command::Doctor { config, bundle: None } => doctor::run(&config.file, &mut out),
        Command::Doctor { config, bundle: Some(bundle) } => doctor::bundle(&config.file, &bundle, &mut out),
        Command::Reasons => reasons::run(&mut out),
        Command::Upgrade(arguments) => upgrade::run(&arguments, &mut out),
        Command::Unload { config } => unload::run(&config.file, &mut out),
    }
}
