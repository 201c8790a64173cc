//! What cannot be seen from outside: the programs' time, the compiler's, the agent's memory.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::Lab;

use super::Tools;
use super::arms::{Arm, ECHO, Sizes, policy};
use super::pairs::Plan;
use super::rows::Rows;
use crate::step;

/// Nanoseconds of one run of each program, with the maps of the enforcer of `arm`'s server.
///
/// # Errors
/// A program cannot be run, or answers otherwise than expected.
pub fn programs(plan: &Plan, tools: &Tools, arm: &Arm, rows: &mut Rows) -> Result<()> {
    let held = arm.hold(ECHO)?;
    let (bpffs, rounds) = (arm.b.bpffs(), (plan.rounds * 2).to_string());
    let values = tools.run(&["programs", &bpffs.to_string_lossy(), "--rounds", &rounds]);
    drop(held);
    for (name, values) in values? {
        rows.add(&name, "ns", &values);
    }
    Ok(())
}

/// Milliseconds to compile a large policy, to compile it again with one rule changed, and to explain a connection; and
/// the memory it takes.
///
/// # Errors
/// The compiler refuses its own example.
pub fn compile(plan: &Plan, sizes: &Sizes, tools: &Tools, rows: &mut Rows) -> Result<()> {
    let (rules, identities) = sizes.compile;
    step::say(format!("compile {rules} rules against {identities} identities"));
    let [rules, identities, rounds] = [rules, identities, plan.rounds].map(|number| number.to_string());
    let values = tools.run(&["compile", "--rules", &rules, "--identities", &identities, "--rounds", &rounds])?;
    for (name, values) in values {
        let unit = if name.ends_with("_mib") { "MiB" } else { "ms" };
        rows.add(&name, unit, &values);
    }
    Ok(())
}

/// Memory of an agent with many PUs and flows, while it looks after them.
///
/// # Errors
/// The enforcer does not start, or refuses a PU.
pub fn memory(plan: &Plan, sizes: &Sizes, tools: &Tools, rows: &mut Rows) -> Result<()> {
    let (pus, flows) = sizes.memory;
    step::say(format!("an agent with {pus} PUs and {flows} flows"));
    let lab = Lab::new("bench")?;
    let host = lab.host("a")?;
    lab.write_policy("bench.yaml", &policy(1_000))?;
    // As it is by default: the laboratory has flow records written, for which live flows are remembered.
    host.start_enforcer("records.file = \"\"")?;
    let pid = host.enforcer_pid().context("the enforcer has no process")?;
    rows.add("agent_rss_idle_mib", "MiB", &[resident(pid)?]);
    for number in 0..pus {
        let (app, instance) = (format!("app=app{}", number % 997), format!("instance={number}"));
        host.workload_by_cgroup(&format!("pu{number}"), &[&app, "user=prod", &instance])?;
    }
    let filled = tools.run(&["flows", &host.bpffs().to_string_lossy(), &flows.to_string()])?;
    let entered = filled.get("flows").and_then(|count| count.first()).copied().unwrap_or_default();
    ensure!(entered >= flows as f64, "only {entered} of {flows} flows are in the table");
    // Flows are looked over every five seconds.
    let pause = plan.slice.min(Duration::from_secs(1)) * 2;
    let mut values = Vec::new();
    for _ in 0..plan.rounds {
        std::thread::sleep(pause);
        values.push(resident(pid)?);
    }
    rows.add("agent_rss_mib", "MiB", &values);
    Ok(())
}

/// MiB a second when executables are hashed, and microseconds of a look for a hash that is known.
///
/// # Errors
/// There is not the memory for such a file.
pub fn hash(plan: &Plan, sizes: &Sizes, tools: &Tools, rows: &mut Rows) -> Result<()> {
    step::say(format!("hash {} MiB", sizes.hash));
    let values = tools.run(&["hash", "--mib", &sizes.hash.to_string(), "--rounds", &plan.rounds.to_string()])?;
    for (name, values) in values {
        rows.add(&name, if name.ends_with("_us") { "µs" } else { "MiB/s" }, &values);
    }
    Ok(())
}

/// Seconds and memory to suggest rules from many records, once.
///
/// # Errors
/// A record cannot be read, or nothing is suggested.
pub fn suggest(sizes: &Sizes, tools: &Tools, rows: &mut Rows) -> Result<()> {
    step::say(format!("suggest from {} records", sizes.records));
    for (name, values) in tools.run(&["suggest", "--records", &sizes.records.to_string()])? {
        rows.add(&name, if name.ends_with("_mib") { "MiB" } else { "s" }, &values);
    }
    Ok(())
}

/// `VmRSS` of a process, in MiB.
pub fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the enforcer is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("no VmRSS")?;
    Ok(kib / 1024.0)
}

impl Tools {
    /// Runs the program that measures from inside.
    pub fn run(&self, args: &[&str]) -> Result<BTreeMap<String, Vec<f64>>> {
        let output = Command::new(&self.inside).args(args).output();
        let output = output.with_context(|| format!("cannot run {}", self.inside.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "bench {}: {}", args.join(" "), said.trim());
        serde_json::from_slice(&output.stdout).with_context(|| format!("bench {} printed no JSON", args.join(" ")))
    }
}
