//! What suggesting from many records costs: `suggest_scale [RECORDS [PUS]]`, or with `--write FILE [RECORDS [PUS]]` the
//! records themselves.
//!
//! A tenth of the PUs are workloads of their own, each with ten replicas that differ in accidental tags; one record in
//! ten is of an address outside.

use std::io::{BufWriter, Write};
use std::time::Instant;

use policy::Observations;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).peekable();
    let file = args.next_if_eq("--write").and_then(|_| args.next());
    let mut number = |default: u64| args.next().map_or(Ok(default), |arg| arg.parse());
    let (records, pus) = (number(1_000_000)?, number(2_000)?.max(10));
    if let Some(file) = file {
        let mut out = BufWriter::new(std::fs::File::create(file)?);
        let mut line = String::new();
        for n in 0..records {
            write_line(&mut line, n, pus);
            out.write_all(line.as_bytes())?;
        }
        return Ok(out.flush()?);
    }
    let mut observations = Observations::new(None);
    let mut line = String::new();
    let (mut bytes, mut reading) = (0, std::time::Duration::ZERO);
    for n in 0..records {
        write_line(&mut line, n, pus);
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

/// The `n`th record. Numbers are spread by a multiplication, so that every run writes the same.
fn write_line(line: &mut String, n: u64, pus: u64) {
    use std::fmt::Write;
    line.clear();
    let spread = |factor: u64, bound: u64| (n.wrapping_mul(factor) >> 17) % bound;
    let workloads = pus / 10;
    let client = spread(0x9e37_79b9_7f4a_7c15, workloads);
    // Each workload uses a handful of others.
    let server = (client * 7 + spread(0xc2b2_ae3d_27d4_eb4f, 6) * 13) % workloads;
    let end = |workload: u64, replica: u64| {
        format!(
            r#"{{"pu":"host-{replica}/w{workload}-{replica}","namespace":"/prod","tags":{{"@container:id":["{:016x}"],"@container:image":["registry.example/w{workload}:1.{}"],"app":["w{workload}"],"env":["prod"],"tier":["t{}"]}}}}"#,
            workload * 1000 + replica + 0x1234_5678_9abc,
            replica % 2,
            workload % 5,
        )
    };
    let from = end(client, spread(0xff51_afd7_ed55_8ccd, 10));
    let to = if n.is_multiple_of(10) {
        format!(r#"{{"address":"198.51.{}.{}"}}"#, client % 100, spread(0x2545_f491_4f6c_dd1d, 64))
    } else {
        end(server, spread(0xd6e8_feb8_6659_fd93, 10))
    };
    let _ = writeln!(
        line,
        r#"{{"v":1,"time":"2026-03-01T12:01:00.000000Z","since":"2026-03-01T12:00:03.120000Z","enforcer":"host","role":"client","from":{from},"to":{to},"proto":"tcp","port":{},"verdict":"allow","reason":"allowed","path":"resume","flows":{},"bytes_sent":48211,"bytes_received":912834,"packets_sent":310,"packets_received":702,"rtt_us":181,"rtt_max_us":944}}"#,
        8000 + server % 3,
        1 + n % 9,
    );
}

/// From `/proc/self/status` (proc(5)).
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
