//! What suggesting from many records costs: `suggest_scale [RECORDS [PUS]]`, or with `--write FILE [RECORDS [PUS]]` the
//! records themselves.
//!
//! A tenth of the PUs are workloads of their own, each with ten replicas that differ in accidental tags; one record in
//! ten is of an address outside.

use std::io::{BufWriter, Write};
use std::time::Instant;

use policy::{Observations, synthetic::record_line};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).peekable();
    let file = args.next_if_eq("--write").and_then(|_| args.next());
    let mut number = |default: u64| args.next().map_or(Ok(default), |arg| arg.parse());
    let (records, pus) = (number(1_000_000)?, number(2_000)?.max(10));
    if let Some(file) = file {
        let mut out = BufWriter::new(std::fs::File::create(file)?);
        let mut line = String::new();
        for n in 0..records {
            record_line(&mut line, n, pus);
            out.write_all(line.as_bytes())?;
        }
        return Ok(out.flush()?);
    }
    let mut observations = Observations::new(None);
    let mut line = String::new();
    let (mut bytes, mut reading) = (0, std::time::Duration::ZERO);
    for n in 0..records {
        record_line(&mut line, n, pus);
        bytes += line.len();
        let start = Instant::now();
        observations.add_line(line.trim_end())?;
        reading += start.elapsed();
    }
    let start = Instant::now();
    let suggestion = observations.suggest();
    let text = suggestion.to_string();
    let suggesting = start.elapsed();
    println!(
        "{records} records, {} MB, {pus} PUs: {} rules, {} bytes",
        bytes / 1_000_000,
        suggestion.rules.len(),
        text.len()
    );
    println!("reading        {:8.2} s", reading.as_secs_f64());
    println!("suggesting     {:8.2} s", suggesting.as_secs_f64());
    println!("peak memory    {:8.1} MiB", peak_kib() as f64 / 1024.0);
    Ok(())
}

/// From `/proc/self/status` (proc(5)).
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
