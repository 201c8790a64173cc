//! Placeholder while the rest lands.
use anyhow::{Result, bail};
use clap::Args;
use std::process::ExitCode;
/// Options.
#[derive(Args)]
pub struct Options {}
/// Not there yet.
pub fn run(_: &Options) -> Result<ExitCode> {
    bail!("not written yet")
}
