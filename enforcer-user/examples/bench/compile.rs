//! The compiler of policies on a made-up policy: all of it, then one rule changed.

use std::time::Instant;

use policy::synthetic::{rule, synthetic};
use policy::{Capabilities, Compiled, IdentityId};

use crate::Values;

pub fn measure(rules: usize, identities: usize, rounds: usize) -> anyhow::Result<Values> {
    let (mut policy, pus) = synthetic(rules, identities);
    let (mut full, mut delta) = (Vec::new(), Vec::new());
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
    }
    if let Some(compiled) = &mut last {
        for n in 0..rounds {
            policy[(rules / 2 + n) % rules] = rule((rules + n) as u64, (rules as u64 / 100).clamp(10, 2_000));
            let begin = Instant::now();
            compiled.update_rules(&policy)?;
            delta.push(milliseconds(begin));
        }
    }
    Ok(Values::from([("compile_full_ms", full), ("compile_delta_ms", delta)]))
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}
