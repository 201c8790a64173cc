//! Measurements against a bare veth, nftables, NFQUEUE, Nebula and wireguard-go.
//!
//! Whatever is compared runs at the same time on the same machine, slice by slice in turn, so that both sides of a pair see
//! the same weather. `docs/benchmarks.md` says what each row means.

mod arms;
mod contact;
mod floods;
mod inside;
mod large;
mod pairs;
mod profile;
mod rows;
mod tunnels;
mod upgrade;
mod workloads;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{build, setup, step, workspace};
use arms::Sizes;
use pairs::Plan;
use rows::Rows;

/// What to measure and where to write it.
#[derive(Args)]
pub struct Options {
    /// Finish within five minutes, with shorter slices and without tunnels, upgrades and floods (unless named by --only)
    #[arg(long, conflicts_with = "smoke")]
    quick: bool,
    /// Only see that everything measures something, in seconds: one short pair of each, small tables
    #[arg(long)]
    smoke: bool,
    /// Write the rows as one JSON document
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only these groups; by default all of them
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Measure the `enforcer` and the `lab-tool` in this directory, as they are
    #[arg(long, value_name = "DIR")]
    prebuilt: Option<PathBuf>,
    /// Another build of the `enforcer`: the group `enforced` then says how this one compares with it, in one run
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

/// Rows that are measured together.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Group {
    /// The enforcer against a bare veth, first contact, and the programs' own time
    Enforced,
    /// 10, 1,000 and 100,000 rules
    Rules,
    /// nftables and NFQUEUE against a bare veth
    Others,
    /// Nebula and wireguard-go against a bare veth
    Tunnels,
    /// The compiler of policies
    Compile,
    /// The agent's memory
    Memory,
    /// How long workloads wait before they may talk, how soon changed tags count, hashing, suggesting
    Workloads,
    /// A large policy on a running agent
    Large,
    /// New connections while the enforcer is upgraded, and while agents are killed
    Upgrade,
    /// Connections while a flood is on
    Floods,
}

/// Runs the measurements and prints them.
///
/// # Errors
/// The machine cannot be prepared, something does not build, or a measurement fails. A missed target is no error.
pub fn run(options: &Options) -> Result<ExitCode> {
    if !workspace::is_root() {
        bail!("not root: the measurements make network namespaces and load eBPF");
    }
    let tools = prepare(options)?;
    let plan = match options {
        Options { smoke: true, .. } => Plan::SMOKE,
        Options { quick: true, .. } => Plan::QUICK,
        _ => Plan::FULL,
    };
    let sizes = if options.smoke { Sizes::SMALL } else { Sizes::FULL };
    let mut rows = Rows::default();
    let chosen = |group| options.only.contains(&group) || options.only.is_empty() && !(options.quick && is_long(group));
    if chosen(Group::Enforced) {
        contact::enforced(&plan, &tools, &mut rows)?;
        if let Some(other) = &options.against {
            contact::against(&plan, other, &mut rows)?;
        }
    }
    if chosen(Group::Rules) {
        contact::rules(&plan, &sizes, &mut rows)?;
    }
    if chosen(Group::Others) {
        contact::others(&plan, &sizes, &mut rows)?;
    }
    if chosen(Group::Tunnels) {
        contact::tunnels(&plan, &mut rows)?;
    }
    if chosen(Group::Compile) {
        inside::compile(&plan, &sizes, &tools, &mut rows)?;
    }
    if chosen(Group::Memory) {
        inside::memory(&plan, &sizes, &tools, &mut rows)?;
    }
    if chosen(Group::Workloads) {
        workloads::starts(&plan, &mut rows)?;
        workloads::containers(&plan, &mut rows)?;
        workloads::tag_changes(&plan, &mut rows)?;
        inside::hash(&plan, &sizes, &tools, &mut rows)?;
        inside::suggest(&sizes, &tools, &mut rows)?;
    }
    if chosen(Group::Large) {
        large::apply(&plan, &sizes, &tools, &mut rows)?;
    }
    if chosen(Group::Upgrade) {
        upgrade::upgrade(&plan, sizes.live, &mut rows)?;
    }
    if chosen(Group::Floods) {
        floods::floods(&plan, &mut rows)?;
    }
    print!("{}", rows.table());
    if options.only.is_empty() {
        rows.ensure_complete(options.quick)?;
    }
    if let Some(file) = &options.json {
        fs::write(file, rows.json()?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What has no place in five minutes.
fn is_long(group: Group) -> bool {
    matches!(group, Group::Tunnels | Group::Upgrade | Group::Floods)
}

/// Programs that measure from inside.
struct Tools {
    /// `enforcer-user`'s example `bench`.
    inside: PathBuf,
}

/// Builds what is measured, unless it is there already, and tells the laboratory to use it.
fn prepare(options: &Options) -> Result<Tools> {
    let directory = match &options.prebuilt {
        Some(directory) => directory.clone(),
        None => build_all(options.smoke)?,
    };
    let enforcer = match env::var_os("ENFORCER_BIN") {
        Some(path) if options.smoke => PathBuf::from(path),
        _ => directory.join("enforcer"),
    };
    tests::use_enforcer(enforcer);
    tests::use_lab_tool(directory.join("lab-tool"));
    Ok(Tools { inside: directory.join("examples/bench") })
}

/// Builds both sides, and the programs that measure; not optimised where nobody looks at the figures. The directory they
/// are in.
fn build_all(smoke: bool) -> Result<PathBuf> {
    if env::var_os("ENFORCER_BIN").is_none() || !smoke {
        setup::run(&setup::Options { tests: true, ..setup::Options::default() })?;
        build::ebpf()?;
    }
    let mut cargo = workspace::cargo();
    cargo.args([
        "build",
        "--locked",
        "--package",
        "enforcer-user",
        "--package",
        "tests",
        "--bins",
        "--example",
        "bench",
    ]);
    if !smoke {
        cargo.arg("--release");
    }
    step::run("build what is measured", &mut cargo)?;
    Ok(workspace::target().join(if smoke { "debug" } else { "release" }))
}
