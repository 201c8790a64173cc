//! What each eBPF program costs the verifier, held against `docs/verifier-budget.toml`.
//!
//! The limits are the kernel's own (one million instructions walked, 512 bytes of stack), but a program that comes near them fails on
//! an older kernel first. The budget makes growth a decision: raise the number in the same change, or make the program smaller.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use aya::EbpfLoader;
use aya::programs::Program;
use serde::Deserialize;

use crate::{build, step, workspace};

const TABLE: &str = "docs/verifier-budget.toml";

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
    // Yesterday's object would be judged otherwise.
    let object = build::ebpf()?;
    let mut kernel_side =
        EbpfLoader::new().load_file(&object).with_context(|| format!("{} does not load", object.display()))?;
    let mut costs = BTreeMap::new();
    for (name, program) in kernel_side.programs_mut() {
        load(program).with_context(|| format!("program {name} does not load"))?;
        let info = program.info().with_context(|| format!("program {name} tells nothing of itself"))?;
        let instructions =
            info.verified_instruction_count().context("the kernel does not tell what it verified (5.16)")?;
        let dump = Command::new("bpftool").args(["prog", "dump", "xlated", "id", &info.id().to_string()]).output();
        let dump = dump.context("bpftool cannot be run; `cargo xtask setup` installs it")?;
        let stack = frames(&String::from_utf8_lossy(&dump.stdout));
        costs.insert(name.to_owned(), Cost { instructions: instructions.into(), stack });
    }
    Ok(costs)
}

/// Loads a program of a kind that the object may have.
fn load(program: &mut Program) -> Result<()> {
    match program {
        Program::Xdp(program) => program.load()?,
        Program::SchedClassifier(program) => program.load()?,
        Program::SockOps(program) => program.load()?,
        Program::RawTracePoint(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        Program::CgroupSockopt(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSkb(program) => program.load()?,
        Program::SkLookup(program) => program.load()?,
        other => bail!("a {:?} program is new here: say in this function how it is loaded", other.prog_type()),
    }
    Ok(())
}

/// Bytes of stack along the deepest chain of calls, read out of bpftool's disassembly: how far below r10 a function reaches, directly or
/// through a pointer made from r10.
fn frames(dump: &str) -> u64 {
    let mut functions: BTreeMap<&str, (u64, Vec<&str>)> = BTreeMap::new();
    let mut name = "";
    let mut copies: Vec<&str> = Vec::new();
    for line in dump.lines() {
        let Some((_, code)) =
            line.split_once(") ").filter(|_| line.trim_start().starts_with(|c: char| c.is_ascii_digit()))
        else {
            // `int name(type * ctx):` opens a function.
            if let Some((head, _)) = line.split_once('(').filter(|_| line.ends_with(':')) {
                name = head.rsplit([' ', '*']).next().unwrap_or(head);
                copies.clear();
            }
            continue;
        };
        let function = functions.entry(name).or_default();
        if let Some(reach) = code.split_once("(r10 -").and_then(|(_, rest)| number(rest)) {
            function.0 = function.0.max(reach);
        }
        if let Some((_, callee)) = code.split_once("call pc").and_then(|(_, rest)| rest.split_once('#')) {
            function
                .1
                .push(callee.strip_prefix("bpf_prog_").and_then(|c| c.split_once('_')).map_or(callee, |(_, c)| c));
        }
        let Some((register, rest)) = code.split_once(' ') else { continue };
        if rest == "= r10" {
            copies.push(register);
        } else if let Some(reach) = rest.strip_prefix("+= -").and_then(number).filter(|_| copies.contains(&register)) {
            function.0 = function.0.max(reach);
        } else if rest.starts_with("= ") {
            copies.retain(|copy| *copy != register);
        }
    }
    functions.keys().map(|function| depth(function, &functions, 0)).max().unwrap_or(0)
}

fn depth(function: &str, functions: &BTreeMap<&str, (u64, Vec<&str>)>, level: usize) -> u64 {
    // The kernel allows eight frames; more here means that a name was misread, not that a program recurses.
    let Some((own, callees)) = functions.get(function).filter(|_| level < 8) else { return 0 };
    // Older kernels (6.1) give every frame a multiple of 32 bytes, and none nothing.
    own.max(&1).next_multiple_of(32)
        + callees.iter().map(|callee| depth(callee, functions, level + 1)).max().unwrap_or(0)
}

fn number(text: &str) -> Option<u64> {
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
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

    const DUMP: &str = "int pass(struct xdp_md * ctx):
; if let Some(p) = COUNT.get_ptr_mut(0) { @ main.rs:11
   0: (63) *(u32 *)(r10 -4) = r1
   1: (bf) r2 = r10
   2: (07) r2 += -40
   3: (85) call pc+3#bpf_prog_0f8b9d3c_helper
   4: (07) r3 += -400
   5: (95) exit
void helper(u64 x):
   6: (7b) *(u64 *)(r10 -64) = r1
   7: (95) exit
";

    fn cost(instructions: u64, stack: u64) -> BTreeMap<String, Cost> {
        BTreeMap::from([("pass".to_owned(), Cost { instructions, stack })])
    }

    #[test]
    fn adds_up_the_frames_of_a_chain_of_calls() {
        assert_eq!(frames(DUMP), 64 + 64, "each frame a multiple of 32 bytes");
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
