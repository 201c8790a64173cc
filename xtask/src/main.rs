//! Set-up, build, test, demo and bench: everything a newcomer, a developer or a CI machine runs.
//!
//! `cargo xtask setup` prepares a machine, `cargo xtask demo` shows the product, `cargo xtask test` judges it.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod demo;
mod lint;
mod setup;
mod soak;
mod step;
mod test;
mod toolchain;
mod verifier;
mod workspace;

use std::env;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the machine lacks: eBPF toolchain, linker, runtime tools
    Setup(setup::Options),
    /// Build the eBPF object and the `enforcer` binary
    Build(build::Options),
    /// Check formatting, lints, dependencies, documentation and the verifier's budget
    Lint(lint::Options),
    /// Set up, build, lint, then run every test and the demo
    Test(test::Options),
    /// Three hosts, real workloads, the security officer's policy, and every attempt in a table
    Demo(demo::Options),
    /// Measure against a bare veth, nftables and NFQUEUE
    Bench(bench::Options),
    /// Endure changes, crashes and losses, and compare how every connection ended with the evaluator
    Soak(soak::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(options) => setup::run(&options),
        Command::Build(options) => build::run(&options),
        Command::Lint(options) => lint::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Demo(options) => prepared(|| demo::run(&options)),
        Command::Bench(options) => bench::run(&options),
        Command::Soak(options) => prepared(|| soak::run(&options)),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs `task` on a machine that is set up, with an `enforcer` that is built and named in `ENFORCER_BIN`.
///
/// The laboratory reads that variable from the environment, which only a new process can be given: so we start ourselves once more.
fn prepared(task: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    if env::var_os("ENFORCER_BIN").is_some() {
        return task();
    }
    setup::run(&setup::Options::default())?;
    let enforcer = build::for_running()?;
    let mut again = std::process::Command::new(workspace::own_program()?);
    let status = again
        .args(env::args_os().skip(1))
        .env("ENFORCER_BIN", enforcer)
        .status()
        .context("cannot start this program again")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
