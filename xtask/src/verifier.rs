//! What each eBPF program costs the verifier, held against `docs/verifier-budget.toml`.
//!
//! The limits are the kernel's own (one million instructions walked, 512 bytes of stack), but a program that comes near them fails on
//! an older kernel first. The budget makes growth a decision: raise the number in the same change, or make the program smaller.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{step, workspace};

const TABLE: &str = "docs/verifier-budget.toml";

/// Loads in a mount namespace of its own: the pins vanish with it, and the machine's bpffs is never touched.
const LOAD: &str = r#"mount -t bpf bpf /sys/fs/bpf && exec bpftool -d prog loadall "$OBJECT" /sys/fs/bpf/budget"#;

/// What one program costs, or may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    /// Instructions that the verifier walked, all paths together.
    instructions: u64,
    /// Bytes of stack, all frames together.
    stack: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    programs: BTreeMap<String, Cost>,
}

/// Loads every program and compares.
///
/// # Errors
/// A program does not load, costs more than its budget, or is on one side only.
pub fn check() -> Result<()> {
    if !workspace::ebpf_crate().join("Cargo.toml").is_file() {
        step::say("verifier: this checkout has no eBPF programs");
        return Ok(());
    }
    if !workspace::is_root() {
        step::say("verifier NOT CHECKED: not root, so no program can be loaded");
        return Ok(());
    }
    let measured = measure()?;
    let path = workspace::root().join(TABLE);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let budget = match toml::from_str::<Table>(&text) {
        Ok(table) => table.programs,
        Err(_) if text.trim().is_empty() => BTreeMap::new(),
        Err(error) => bail!("{TABLE}: {error}"),
    };
    let complaints = compare(&measured, &budget);
    for (program, cost) in &measured {
        step::say(format!("verifier: {program}: {} instructions, {} bytes of stack", cost.instructions, cost.stack));
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{}\nmeasured now, in the form of {TABLE}:\n{}", complaints.join("\n"), as_table(&measured))
}

fn measure() -> Result<BTreeMap<String, Cost>> {
    let object = workspace::ebpf_object();
    if !object.is_file() {
        bail!("{} is missing; run `cargo xtask build`", object.display());
    }
    let mut command = Command::new("unshare");
    workspace::clean(&mut command);
    command.args(["--mount", "sh", "-c", LOAD]).env("OBJECT", &object);
    let (status, log) = step::run_logged("verifier", &mut command)?;
    let text = String::from_utf8_lossy(&fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?)
        .into_owned();
    if !status.success() {
        bail!("a program does not load:\n{}\n(all of it: {})", step::tail(&log), log.display());
    }
    let measured = parse(&text);
    if measured.is_empty() {
        bail!("bpftool loaded {} but told of no program (its output: {})", object.display(), log.display());
    }
    Ok(measured)
}

/// Reads libbpf's debug output: for each program a log that ends with its stack depth and the instructions processed.
fn parse(text: &str) -> BTreeMap<String, Cost> {
    let mut costs = BTreeMap::new();
    let mut current = None;
    let mut stack = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("libbpf: prog '") {
            if line.contains("BEGIN PROG LOAD LOG") {
                current = rest.split('\'').next().map(str::to_owned);
                stack = 0;
            }
        } else if let Some(depths) = line.strip_prefix("stack depth ") {
            stack = depths.split('+').filter_map(|part| part.trim().parse::<u64>().ok()).sum();
        } else if let Some(rest) = line.strip_prefix("processed ") {
            let instructions = rest.split_whitespace().next().and_then(|digits| digits.parse().ok());
            if let (Some(program), Some(instructions)) = (current.take(), instructions) {
                costs.insert(program, Cost { instructions, stack });
            }
        }
    }
    costs
}

fn compare(measured: &BTreeMap<String, Cost>, budget: &BTreeMap<String, Cost>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (program, cost) in measured {
        match budget.get(program) {
            None => complaints.push(format!("{program} has no budget in {TABLE}")),
            Some(limit) => {
                for (what, now, most) in [
                    ("instructions", cost.instructions, limit.instructions),
                    ("bytes of stack", cost.stack, limit.stack),
                ] {
                    if now > most {
                        complaints.push(format!("{program}: {now} {what}, budget {most}"));
                    }
                }
            }
        }
    }
    for program in budget.keys().filter(|program| !measured.contains_key(*program)) {
        complaints.push(format!("{program} has a budget in {TABLE} but is no program of the object"));
    }
    complaints
}

/// The measured costs with some air, so that a change of compiler is no failure.
fn as_table(measured: &BTreeMap<String, Cost>) -> String {
    let mut text = String::from("[programs]\n");
    for (program, cost) in measured {
        let instructions = (cost.instructions * 5 / 4).next_multiple_of(100);
        let stack = (cost.stack + 16).next_multiple_of(16).min(512);
        text.push_str(&format!("{program} = {{ instructions = {instructions}, stack = {stack} }}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "libbpf: prog 'pass': -- BEGIN PROG LOAD LOG --\n0: R1=ctx() R10=fp0\nstack depth 8+24\nprocessed 12 insns (limit 1000000)\n-- END PROG LOAD LOG --\nlibbpf: prog 'pass': pinned\n";

    fn cost(instructions: u64, stack: u64) -> BTreeMap<String, Cost> {
        BTreeMap::from([("pass".to_owned(), Cost { instructions, stack })])
    }

    #[test]
    fn reads_costs_out_of_the_log() {
        assert_eq!(parse(LOG), cost(12, 32));
    }

    #[test]
    fn complains_of_growth_and_of_strangers() {
        assert!(compare(&cost(12, 32), &cost(12, 32)).is_empty());
        assert_eq!(compare(&cost(13, 33), &cost(12, 32)).len(), 2);
        assert_eq!(compare(&cost(12, 32), &BTreeMap::new()).len(), 1);
        assert_eq!(compare(&BTreeMap::new(), &cost(12, 32)).len(), 1);
    }

    #[test]
    fn the_table_it_proposes_is_one_it_accepts() {
        let table: Table = toml::from_str(&as_table(&cost(12, 500))).unwrap();
        assert!(compare(&cost(12, 500), &table.programs).is_empty());
    }
}
