//! Interleaving: one slice of each arm in turn, and rounds that the hypervisor disturbed taken again.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tests::Load;

use super::arms::Arm;
use crate::step;

/// How much to measure.
pub struct Plan {
    /// Length of one slice.
    pub slice: Duration,
    /// Rounds of slices wanted.
    pub rounds: usize,
    /// Connections of one round where they are made one by one.
    pub contacts: usize,
}

impl Plan {
    /// Half an hour's worth of trust.
    pub const FULL: Self = Self { slice: Duration::from_millis(1500), rounds: 15, contacts: 10 };
    /// Five minutes for everything.
    pub const QUICK: Self = Self { slice: Duration::from_millis(450), rounds: 10, contacts: 4 };
    /// Only to see that it works.
    pub const SMOKE: Self = Self { slice: Duration::from_millis(50), rounds: 1, contacts: 1 };
}

/// More of the machine's time than this taken away by the hypervisor spoils a round.
const MOST_STOLEN: f64 = 0.03;

/// One failed connection in so many is told and does no harm; more are an error.
const MOST_FAILED: u64 = 1000;

/// Runs `measure` on every arm in turn, as many undisturbed rounds as planned; every second round in reverse order.
///
/// The answer has one entry a round, in it one value an arm. On a machine that is never quiet the rounds get fewer, which the
/// rows then say; the least disturbed one has to do where all were.
///
/// # Errors
/// Those of `measure`.
pub fn interleave<T>(rounds: usize, arms: &[&Arm], mut measure: impl FnMut(&Arm) -> Result<T>) -> Result<Vec<Vec<T>>> {
    let mut accepted: Vec<Vec<T>> = Vec::new();
    let mut least: Option<(f64, Vec<T>)> = None;
    for attempt in 0..rounds * 3 {
        let before = Times::read()?;
        let mut values: Vec<Option<T>> = arms.iter().map(|_| None).collect();
        for turn in 0..arms.len() {
            let index = if attempt % 2 == 0 { turn } else { arms.len() - 1 - turn };
            values[index] = Some(measure(arms[index]).with_context(|| format!("arm {}", arms[index].name()))?);
        }
        let stolen = Times::read()?.stolen_since(&before);
        if stolen > MOST_STOLEN {
            step::say(format!("a round is taken again: {:.0} % of the time was stolen", stolen * 100.0));
            if least.as_ref().is_none_or(|(least, _)| stolen < *least) {
                least = Some((stolen, values.into_iter().flatten().collect()));
            }
            continue;
        }
        accepted.push(values.into_iter().flatten().collect());
        if accepted.len() == rounds {
            break;
        }
    }
    if accepted.is_empty()
        && let Some((stolen, values)) = least
    {
        let stolen = stolen * 100.0;
        step::say(format!(
            "every round was disturbed: one with {stolen:.0} % stolen must do; measure when the machine is quieter"
        ));
        accepted.push(values);
    }
    Ok(accepted)
}

/// One slice of load of this kind (`crr`, `rr`, `stream`) in every arm, in turn.
///
/// # Errors
/// A load generator failed, or one of its connections did.
pub fn load(plan: &Plan, arms: &[&Arm], kind: &str, args: &[&str]) -> Result<Vec<Vec<Load>>> {
    interleave(plan.rounds, arms, |arm| {
        let load = arm.load(kind, plan.slice, args)?;
        if load.failed > 0 || load.count == 0 {
            let told = format!("{kind}: {} of {} connections failed", load.failed, load.failed + load.count);
            if load.failed > load.count / MOST_FAILED {
                bail!(told);
            }
            step::say(format!("arm {}: {told}", arm.name()));
        }
        Ok(load)
    })
}

/// Rates of the arm `index` as a share of the first arm's, round by round.
pub fn shares(rounds: &[Vec<Load>], index: usize) -> Vec<f64> {
    rounds.iter().map(|loads| loads[index].rate / loads[0].rate).collect()
}

/// The machine's time in ticks, all processors together.
struct Times {
    all: u64,
    stolen: u64,
}

impl Times {
    fn read() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&stat).context("/proc/stat has no line `cpu` with ten numbers")
    }

    /// The line `cpu` of proc(5): user, nice, system, idle, iowait, irq, softirq, steal, and guests' time, which is counted
    /// in user already.
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        Some(Self { all: fields.get(..8)?.iter().sum(), stolen: fields[7] })
    }

    fn stolen_since(&self, before: &Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / all as f64
    }
}

#[cfg(test)]
mod tests_of_time {
    use super::Times;

    #[test]
    fn steal_is_a_share_of_all_time() {
        let before = Times::parse("cpu  100 0 100 700 0 0 0 100 5 0\ncpu0 1").expect("parses");
        let after = Times::parse("cpu  150 0 100 740 0 0 0 110 50 0\ncpu0 1").expect("parses");
        assert!((after.stolen_since(&before) - 0.1).abs() < 1e-9);
        assert!(Times::parse("intr 1 2 3").is_none());
    }
}
