//! What `cargo xtask bench` measures from inside: programs by PROG_TEST_RUN, compiling, and a flow table to fill.
//!
//! Each command prints one JSON object: a name, and the values measured.

mod compile;
mod flows;
mod programs;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measurements that need the enforcer's own code")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time a running enforcer's programs with BPF_PROG_TEST_RUN, nanoseconds a run
    Programs {
        /// The enforcer's bpffs directory, in whose tables one connection is established
        bpffs: PathBuf,
        /// How often each figure is taken
        #[arg(long, default_value_t = 31)]
        rounds: usize,
    },
    /// Time the compiler of policies, milliseconds
    Compile {
        /// Rules
        #[arg(long, default_value_t = 100_000)]
        rules: usize,
        /// Identities
        #[arg(long, default_value_t = 10_000)]
        identities: usize,
        /// How often each figure is taken
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
    /// Enter established connections of PU 1 into a running enforcer's table
    Flows {
        /// The enforcer's bpffs directory
        bpffs: PathBuf,
        /// How many
        count: u32,
    },
}

fn main() -> anyhow::Result<()> {
    let values = match Cli::parse().command {
        Command::Programs { bpffs, rounds } => programs::measure(&bpffs, rounds)?,
        Command::Compile { rules, identities, rounds } => compile::measure(rules, identities, rounds)?,
        Command::Flows { bpffs, count } => flows::fill(&bpffs, count)?,
    };
    println!("{}", serde_json::to_string(&values)?);
    Ok(())
}

/// Values by the name of what was measured.
type Values = std::collections::BTreeMap<&'static str, Vec<f64>>;
