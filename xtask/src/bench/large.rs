//! A large policy on a running agent that knows many identities: applied, changed, explained.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Host, Lab};

use super::Tools;
use super::arms::{Sizes, policy};
use super::inside::resident;
use super::pairs::Plan;
use super::rows::Rows;
use crate::step;

/// Rounds at most: one writes and reads some ten megabytes a dozen times.
const MOST_ROUNDS: usize = 3;

/// Milliseconds that `enforcer policy apply` takes for a whole policy and for one changed rule, and `policy explain`, on a
/// running agent; and the agent's memory with it. A policy with an error in its last line must change nothing.
///
/// # Errors
/// The enforcer does not start, a policy is refused, or a broken one is not.
pub fn apply(plan: &Plan, sizes: &Sizes, tools: &Tools, rows: &mut Rows) -> Result<()> {
    let (rules, identities) = sizes.compile;
    step::say(format!("a policy of {rules} rules for a running agent with {identities} identities"));
    let lab = Lab::new("bench")?;
    let host = lab.host("a")?;
    lab.write_policy("bench.yaml", &for_everyone(2))?;
    host.start_enforcer("records.file = \"\"")?;
    let _server = host.workload("server", &["app=bench", "side=server"])?;
    tools.run(&["peers", &host.bpffs().to_string_lossy(), &identities.to_string()])?;
    host.restart_enforcer()?;

    let [few, large, changed, broken] = files(&host, rules)?;
    let (mut whole, mut one, mut explained) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds.min(MOST_ROUNDS) {
        timed(&host, &["policy", "apply", &few])?;
        whole.push(timed(&host, &["policy", "apply", &large])?);
        one.push(timed(&host, &["policy", "apply", &changed])?);
        explained.push(timed(&host, &EXPLAIN)?);
        let before = in_force(&host)?;
        ensure!(before.1 == rules as u64 + 1, "{} rules are in force", before.1);
        ensure!(host.enforcer(&["policy", "apply", &broken])?.code() != 0, "a broken policy was applied");
        ensure!(in_force(&host)? == before, "a broken policy changed something");
    }
    rows.add("apply_100k_ms", "ms", &whole);
    rows.add("apply_100k_one_rule_ms", "ms", &one);
    rows.add("explain_100k_ms", "ms", &explained);
    let pid = host.enforcer_pid().context("the enforcer has no process")?;
    rows.add("agent_rss_100k_mib", "MiB", &[resident(pid)?]);
    let alive: Value = host.enforcer_json(&["status"])?;
    ensure!(alive["flows"].as_u64() >= Some(identities as u64), "connections were cut: {}", alive["flows"]);
    Ok(())
}

const EXPLAIN: [&str; 8] =
    ["policy", "explain", "--from", "app=app7 user=prod", "--to", "app=bench side=server", "--port", "8020"];

/// A policy of so many rules beside the one that lets everybody in.
fn for_everyone(rules: usize) -> String {
    policy(rules) + "  - everyone: allow user=prod -> app=bench side=server tcp/8020\n"
}

/// A small policy, a large one, the same with one rule changed, and the same with an error at its end; all of one name.
fn files(host: &Host, rules: usize) -> Result<[String; 4]> {
    let large = for_everyone(rules);
    let changed = large.replacen("  - r0: allow app=app0 ", "  - r0: allow app=another ", 1);
    ensure!(changed != large, "no rule was changed");
    let broken = format!("{large}  - wrong: allow any\n");
    let mut written = Vec::new();
    for (directory, text) in [("few", &for_everyone(2)), ("large", &large), ("changed", &changed), ("broken", &broken)]
    {
        let file: PathBuf = host.directory().join(directory).join("bench.yaml");
        let parent = file.parent().context("a file without directory")?;
        fs::create_dir_all(parent).and_then(|()| fs::write(&file, text))?;
        written.push(file.to_string_lossy().into_owned());
    }
    written.try_into().map_err(|_| anyhow::anyhow!("four files"))
}

/// Milliseconds that a command of the enforcer's takes.
fn timed(host: &Host, command: &[&str]) -> Result<f64> {
    let begin = Instant::now();
    let output = host.enforcer(command)?;
    let took = begin.elapsed().as_secs_f64() * 1e3;
    output.ok().with_context(|| host.enforcer_log())?;
    Ok(took)
}

/// Generation and number of rules.
fn in_force(host: &Host) -> Result<(u64, u64)> {
    let status: Value = host.enforcer_json(&["status"])?;
    let number = |name: &str| status["policy"][name].as_u64().with_context(|| format!("no {name}: {status}"));
    Ok((number("generation")?, number("rules")?))
}
