//! What `cargo xtask bench` measures from inside: programs by PROG_TEST_RUN, compiling, suggesting, hashing, and tables to
//! fill.
//!
//! Each command prints one JSON object: a name, and the values measured.

mod compile;
mod flows;
mod hash;
mod programs;
mod suggest;

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
    /// Enter identities of peers into an enforcer's tables, each with a connection to PU 1; the next agent knows them
    Peers {
        /// The enforcer's bpffs directory
        bpffs: PathBuf,
        /// How many
        count: u32,
    },
    /// Suggest rules from made-up flow records: seconds, and the peak of memory
    Suggest {
        /// Records
        #[arg(long, default_value_t = 1_000_000)]
        records: u64,
    },
    /// Hash a file as executables are, MiB a second
    Hash {
        /// Its size
        #[arg(long, default_value_t = 64)]
        mib: usize,
        /// How often each figure is taken
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
}

fn main() -> anyhow::Result<()> {
    let values = match Cli::parse().command {
        Command::Programs { bpffs, rounds } => programs::measure(&bpffs, rounds)?,
        Command::Compile { rules, identities, rounds } => compile::measure(rules, identities, rounds)?,
        Command::Flows { bpffs, count } => flows::fill(&bpffs, count)?,
        Command::Peers { bpffs, count } => flows::peers(&bpffs, count)?,
        Command::Suggest { records } => suggest::measure(records)?,
        Command::Hash { mib, rounds } => hash::measure(mib, rounds)?,
    };
    println!("{}", serde_json::to_string(&values)?);
    Ok(())
}

/// Values by the name of what was measured.
type Values = std::collections::BTreeMap<&'static str, Vec<f64>>;
