//! Prints what compiling a large policy costs: `compile_scale [RULES [IDENTITIES]]`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use policy::synthetic::{rule, synthetic};
use policy::{Capabilities, Compiled, IdentityId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut number = |default: usize| args.next().map_or(Ok(default), |arg| arg.parse());
    let (rules, identities) = (number(100_000)?, number(10_000)?);
    let (mut policy, pus) = synthetic(rules, identities);
    let before = resident_kib();

    let start = Instant::now();
    let mut compiled = Compiled::new(&policy, Capabilities::default())?;
    let indexed = start.elapsed();
    for (id, pu) in pus.iter().enumerate() {
        compiled.add_identity(IdentityId(id as u32), pu)?;
    }
    let full = start.elapsed();
    println!("{rules} rules, {identities} identities");
    println!("full compile   {:8.1} ms (rules {:.1} ms)", ms(full), ms(indexed));
    println!("memory         {:8.1} MiB", (resident_kib() - before) as f64 / 1024.0);

    let mut deltas: Vec<Duration> = Vec::new();
    for n in 0..11 {
        let at = rules / 2 + n;
        policy[at] = rule((rules + n) as u64, (rules as u64 / 100).clamp(10, 2_000));
        let start = Instant::now();
        let delta = compiled.update_rules(&policy)?;
        deltas.push(start.elapsed());
        assert_eq!((delta.added.len(), delta.removed.len()), (1, 1));
    }
    report("one rule changed", deltas);

    // As after reading the files again: equal rules, none of them the same in memory.
    let reread: Vec<_> = policy.iter().map(|rule| Arc::new((**rule).clone())).collect();
    let start = Instant::now();
    assert!(compiled.update_rules(&reread)?.is_empty());
    println!("nothing changed, read anew {:.2} ms", ms(start.elapsed()));

    let mut pairs = Vec::new();
    let mut intervals = 0;
    for n in 0..10_000u32 {
        let subject = IdentityId(n.wrapping_mul(2_654_435_761) % identities as u32);
        let object = IdentityId(n.wrapping_mul(40_503) % identities as u32);
        let start = Instant::now();
        intervals += compiled.pair(subject, object).intervals.len();
        pairs.push(start.elapsed());
    }
    report("one pair", pairs);
    let mut explained = Vec::new();
    for n in 0..11 {
        let (subject, object) = (&pus[n % pus.len()], &pus[n * 7919 % pus.len()]);
        let start = Instant::now();
        let explanation = policy::explain(compiled.rules(), subject, object, 6, 1024, compiled.now());
        explained.push(start.elapsed());
        assert!(!explanation.to_string().is_empty());
    }
    report("one explanation", explained);
    println!("intervals a pair {:.2}", intervals as f64 / 10_000.0);
    Ok(())
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    println!("{what}: median {:.4} ms, maximum {:.4} ms", ms(times[times.len() / 2]), ms(times[times.len() - 1]));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
