//! The compiler of policies on a made-up policy: all of it, then one rule changed, then one connection explained.

use std::time::Instant;

use policy::synthetic::{rule, synthetic};
use policy::{Capabilities, Compiled, IdentityId};

use crate::Values;

pub fn measure(rules: usize, identities: usize, rounds: usize) -> anyhow::Result<Values> {
    let (mut policy, pus) = synthetic(rules, identities);
    let (mut full, mut delta, mut explain) = (Vec::new(), Vec::new(), Vec::new());
    let before = resident_mib();
    let mut memory = Vec::new();
    let mut last = None;
    for _ in 0..rounds {
        // Before the clock starts: taking the last one apart is not the cost of making the next.
        drop(last.take());
        let begin = Instant::now();
        let mut compiled = Compiled::new(&policy, Capabilities::default())?;
        for (id, pu) in pus.iter().enumerate() {
            compiled.add_identity(IdentityId(id as u32), pu)?;
        }
        full.push(milliseconds(begin));
        last = Some(compiled);
        // Later rounds find what the first one left to the allocator.
        if memory.is_empty() {
            memory.push(resident_mib() - before);
        }
    }
    if let Some(compiled) = &mut last {
        for n in 0..rounds {
            policy[(rules / 2 + n) % rules] = rule((rules + n) as u64, (rules as u64 / 100).clamp(10, 2_000));
            let begin = Instant::now();
            compiled.update_rules(&policy)?;
            delta.push(milliseconds(begin));
            let (subject, object) = (&pus[n % pus.len()], &pus[n * 7919 % pus.len()]);
            let begin = Instant::now();
            let explained = policy::explain(compiled.rules(), subject, object, 6, 1024, compiled.now());
            explain.push(milliseconds(begin));
            anyhow::ensure!(explained.others.len() > 1, "nothing to explain");
        }
    }
    Ok(Values::from([
        ("compile_full_ms", full),
        ("compile_delta_ms", delta),
        ("explain_ms", explain),
        ("compile_mib", memory),
    ]))
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0) / 1024.0
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}
