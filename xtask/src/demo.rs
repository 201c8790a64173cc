//! The demonstration: three hosts, real workloads, the security officer's policy, every attempt in a table.

mod attempt;
mod cast;
mod report;
mod script;

use std::env;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use tests::Lab;

use crate::{build, setup, step, workspace};
use attempt::Row;
use cast::Cast;

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

/// Prepares the machine, builds both sides, and runs the demonstration: success only if every row is as expected.
///
/// With `ENFORCER_BIN` set, that binary is shown and nothing but the traffic tool is built.
///
/// # Errors
/// The machine cannot be prepared, the build fails, or a host, an enforcer or a workload does not start.
pub fn run(options: &Options) -> Result<ExitCode> {
    if env::var_os("ENFORCER_BIN").is_none() {
        setup::run(&setup::Options::default())?;
        build::ebpf()?;
        tests::use_enforcer(build::enforcer(build::Profile::Release)?);
    }
    let mut cargo = workspace::cargo();
    step::run("build lab-tool", cargo.args(["build", "--locked", "--package", "tests", "--bin", "lab-tool"]))?;

    let lab = Lab::new("demo")?;
    let cast = Cast::enter(&lab, cast::Enforcers::Running)?;
    let rows = perform(&cast)?;
    let ok = rows.iter().all(Row::is_as_expected);
    if options.json {
        println!("{}", report::json(&rows)?);
    } else {
        print!("{}", report::table(&rows));
    }
    if options.keep {
        eprint!("{}", report::look_around(&lab, &cast)?);
        lab.keep();
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Plays every scene in order, and what happens between them.
fn perform(cast: &Cast) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for scene in script::scenes() {
        step::say(scene.title);
        scene.change.make(cast)?;
        rows.extend(attempt::play(cast, &scene)?);
    }
    let differing = rows.iter().filter(|row| !row.is_as_expected()).count();
    step::say(format!("{} attempts, {differing} not as expected", rows.len()));
    Ok(rows)
}

#[cfg(test)]
mod tests_on_bare_hosts {
    use super::*;

    /// The stage itself works: without an enforcer, every server answers everyone who calls it.
    #[test]
    fn without_enforcers_every_attempt_succeeds() -> Result<()> {
        let lab = Lab::new("baredemo")?;
        let cast = Cast::enter(&lab, cast::Enforcers::None)?;
        let rows = perform(&cast)?;
        assert!(rows.len() > 80, "{}", rows.len());
        for row in &rows {
            assert_eq!(row.outcome, "allowed", "{row:?}");
        }
        Ok(())
    }
}
