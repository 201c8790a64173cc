//! Where the time goes: each program's runs and nanoseconds for one connection, as the kernel counts them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::arms::Arm;
use crate::step;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

#[derive(Deserialize)]
struct Shown {
    #[serde(default)]
    run_time_ns: u64,
    #[serde(default)]
    run_cnt: u64,
}

/// Prints the table for both ends. Counting itself costs some twenty nanoseconds a run, which are in the figures.
///
/// # Errors
/// The kernel does not count, `bpftool` is missing, or no load can be made.
pub fn show(arm: &Arm) -> Result<()> {
    let was = fs::read_to_string(SWITCH).with_context(|| format!("cannot read {SWITCH}"))?;
    fs::write(SWITCH, "1").with_context(|| format!("cannot write {SWITCH}"))?;
    let table = measure(arm);
    fs::write(SWITCH, was.trim()).with_context(|| format!("cannot write {SWITCH}"))?;
    table?.iter().for_each(step::say);
    Ok(())
}

fn measure(arm: &Arm) -> Result<Vec<String>> {
    let mut programs = Vec::new();
    for (host, bpffs) in [("client", arm.a.bpffs()), ("server", arm.b.bpffs())] {
        let pins = bpffs.join("v1/progs");
        for pin in fs::read_dir(&pins).with_context(|| format!("cannot read {}", pins.display()))? {
            programs.push((host, pin?.path()));
        }
    }
    programs.sort();
    let all = || programs.iter().map(|(_, pin)| shown(pin)).collect::<Result<Vec<Shown>>>();
    let before = all()?;
    let load = arm.load("crr", Duration::from_millis(500), &[])?;
    let after = all()?;
    // Warming up makes connections too.
    let connections = load.count as f64 * 1.1;
    let mut lines = vec![format!("{:<6} {:<16} {:>16} {:>10}", "host", "program", "runs/connection", "ns/run")];
    let mut sum = 0.0;
    for ((host, pin), (before, after)) in programs.iter().zip(before.iter().zip(&after)) {
        let runs = (after.run_cnt - before.run_cnt) as f64;
        let time = (after.run_time_ns - before.run_time_ns) as f64;
        sum += time / connections;
        let (each, mean) = (runs / connections, time / runs.max(1.0));
        if each >= 0.1 {
            let program = pin.file_name().unwrap_or_default().to_string_lossy();
            lines.push(format!("{host:<6} {program:<16} {each:>16.1} {mean:>10.0}"));
        }
    }
    lines.push(format!("all programs together: {:.2} µs a connection", sum / 1000.0));
    Ok(lines)
}

fn shown(pin: &Path) -> Result<Shown> {
    let output = Command::new("bpftool").args(["-j", "prog", "show", "pinned"]).arg(pin).output();
    let output = output.context("cannot run bpftool")?;
    ensure!(output.status.success(), "bpftool prog show pinned {}: {}", pin.display(), output.status);
    serde_json::from_slice(&output.stdout).context("bpftool printed no JSON")
}
