//! The demonstration: three hosts, real workloads, the security officer's policy.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// How to show the result.
#[derive(Args)]
pub struct Options {
    /// Print one JSON document instead of the table
    #[arg(long)]
    pub json: bool,
    /// Leave the hosts up and print how to look around
    #[arg(long)]
    pub keep: bool,
}

/// Runs the demonstration: success only if every row is as expected.
///
/// # Errors
/// Always, as long as the demonstration does not exist.
pub fn run(options: &Options) -> Result<ExitCode> {
    bail!("the demonstration does not exist yet (asked for json={}, keep={})", options.json, options.keep)
}
