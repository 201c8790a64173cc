//! Measurements against a bare veth, nftables and NFQUEUE.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// What to measure and where to write it.
#[derive(Args)]
pub struct Options {
    /// Finish within five minutes, with fewer pairs
    #[arg(long)]
    quick: bool,
    /// Write the rows as one JSON document
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the measurements.
///
/// # Errors
/// Always, as long as no measurement exists.
pub fn run(options: &Options) -> Result<ExitCode> {
    bail!("no measurement exists yet (asked for quick={}, json={:?})", options.quick, options.json)
}
