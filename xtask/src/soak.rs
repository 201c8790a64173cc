//! The endurance run: three hosts, workloads that come and go, policies and tags that change, agents that are killed, keys that are
//! rotated, packets that are lost; and a checker that compares how every connection ended with what the evaluator says.
//!
//! The checker shares nothing with the enforcer but the crate `policy`'s brute-force evaluator, which judges the rules one by one.

mod leaks;
mod stage;
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use tests::{Dice, Outcome};

use crate::step;
use leaks::Leaks;
use stage::{Call, Stage};
use world::World;

/// How long to endure.
#[derive(Args)]
pub struct Options {
    /// Minutes to run
    #[arg(long, default_value_t = 10.0, value_name = "MINUTES")]
    minutes: f64,
    /// What the dice start from: the same number plays the same changes again
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON document instead of the summary
    #[arg(long)]
    json: bool,
}

/// What happens during a stretch of the run.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
enum Trouble {
    /// Nothing.
    Calm,
    /// Another policy comes into force.
    Policy,
    /// The tags of a PU change.
    Tags,
    /// A workload ends and another takes its place.
    Churn,
    /// An agent is killed and started again.
    Kill,
    /// Two packets in a hundred are lost.
    Loss,
}

const TROUBLES: [Trouble; 6] =
    [Trouble::Calm, Trouble::Policy, Trouble::Tags, Trouble::Churn, Trouble::Kill, Trouble::Loss];

/// What became of all connections.
#[derive(Debug, Default, Serialize)]
struct Totals {
    connections: u64,
    /// By kind of stretch and outcome.
    outcomes: BTreeMap<String, u64>,
    /// Not what the evaluator says, and nothing excuses it.
    wrong: u64,
    /// Allowed, but a killed agent could not be asked: refused, as it must be.
    unavailable: u64,
    /// Allowed, and lost too often for the caller's patience.
    lost: u64,
    stretches: u64,
}

/// What is printed in the end.
#[derive(Serialize)]
struct Report {
    ok: bool,
    seconds: u64,
    seed: u64,
    totals: Totals,
    leaks: Leaks,
}

/// Runs for the time asked for; success only if no verdict was wrong and nothing leaked.
///
/// # Errors
/// The machine is not prepared, or a host, an enforcer or a workload does not start.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.minutes > 0.0, "--minutes must be above zero");
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(options.minutes * 60.0);
    let mut dice = Dice(options.seed);
    let mut stage = Stage::set(&mut dice)?;
    let mut totals = Totals::default();
    let mut mistakes = Vec::new();
    while totals.stretches < TROUBLES.len() as u64 || Instant::now() < end {
        // Each once, then any.
        let trouble = match TROUBLES.get(totals.stretches as usize) {
            Some(trouble) => *trouble,
            None => *dice.choose(&TROUBLES),
        };
        let (worlds, calls) = stage.play(trouble, &mut dice)?;
        let before = totals.connections;
        for call in &calls {
            judge(trouble, &worlds, call, &mut totals, &mut mistakes);
        }
        totals.stretches += 1;
        step::say(format!(
            "{trouble:?}: {} connections, {} in all, {} wrong",
            totals.connections - before,
            totals.connections,
            totals.wrong
        ));
        for mistake in mistakes.drain(..) {
            step::say(format!("WRONG: {mistake}"));
        }
    }
    let leaks = stage.leaks()?;
    let ok = totals.wrong == 0 && leaks.none();
    let report = Report { ok, seconds: begin.elapsed().as_secs(), seed: options.seed, totals, leaks };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares one caller's connections to one address with the evaluator, in every world that was in force meanwhile.
fn judge(trouble: Trouble, worlds: &[World], call: &Call, totals: &mut Totals, mistakes: &mut Vec<String>) {
    totals.connections += call.count;
    let name = format!("{trouble:?}/{:?}", call.outcome).to_lowercase();
    *totals.outcomes.entry(name).or_default() += call.count;
    let verdicts: Vec<bool> = worlds.iter().map(|world| world.allows(&call.from, &call.to)).collect();
    let (may, must) = (verdicts.contains(&true), !verdicts.contains(&false));
    let fine = match call.outcome {
        Outcome::Ok => may,
        // A verdict that changed meanwhile cuts what it finds.
        Outcome::Reset | Outcome::Closed => !must && may,
        Outcome::Refused | Outcome::Eperm => !must,
        Outcome::Timeout | Outcome::Error => false,
    };
    if fine {
        return;
    }
    match (trouble, call.outcome) {
        (Trouble::Kill, Outcome::Refused | Outcome::Eperm) if must => totals.unavailable += call.count,
        // A refusal can be lost as well.
        (Trouble::Loss, Outcome::Timeout) => totals.lost += call.count,
        _ => {
            totals.wrong += call.count;
            let Call { from, to, outcome, count, slowest_micros } = call;
            mistakes.push(format!(
                "{trouble:?}: {count} from {from} to {to} ended as {outcome:?}, the slowest after {slowest_micros} µs; verdicts {verdicts:?}"
            ));
        }
    }
}

fn print(report: &Report) {
    let totals = &report.totals;
    println!(
        "{} connections in {} s, {} stretches, seed {}",
        totals.connections, report.seconds, totals.stretches, report.seed
    );
    for (name, count) in &totals.outcomes {
        println!("  {name:<20} {count}");
    }
    println!("wrong verdicts: {}", totals.wrong);
    println!("refused because an agent was dead: {}", totals.unavailable);
    println!("lost on the way: {}", totals.lost);
    print!("{}", report.leaks);
}
