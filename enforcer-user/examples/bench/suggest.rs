//! `enforcer policy suggest` on many records: as many as asked for come through a pipe, as they would from a file.

use std::{
    io::{BufWriter, PipeWriter, Write},
    os::fd::AsRawFd,
    path::PathBuf,
    thread,
    time::Instant,
};

use anyhow::{Context, anyhow, ensure};
use enforcer_user::records;
use policy::{Observations, synthetic::record_line};

use crate::Values;

/// PUs in the records.
const PUS: u64 = 2_000;

pub fn measure(count: u64) -> anyhow::Result<Values> {
    let (reader, writer) = std::io::pipe().context("a pipe")?;
    let writing = thread::spawn(move || write(writer, count));
    let begin = Instant::now();
    let mut observations = Observations::new(None);
    let file = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    records::lines(&[file], |line| observations.add_line(line))?;
    let suggestion = observations.suggest();
    let text = suggestion.to_string();
    let took = begin.elapsed().as_secs_f64();
    writing.join().map_err(|_| anyhow!("the writer of records panicked"))??;
    ensure!(suggestion.seen.records == count, "{} of {count} records were read", suggestion.seen.records);
    ensure!(!suggestion.rules.is_empty() && text.contains("allow"), "nothing was suggested");
    Ok(Values::from([("suggest_1m_s", vec![took]), ("suggest_1m_mib", vec![peak_mib()?])]))
}

fn write(pipe: PipeWriter, count: u64) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, pipe);
    let mut line = String::new();
    for n in 0..count {
        record_line(&mut line, n, PUS);
        out.write_all(line.as_bytes())?;
    }
    out.flush()
}

/// `VmHWM` of this process (proc(5)).
fn peak_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("no VmHWM")?;
    Ok(kib / 1024.0)
}
