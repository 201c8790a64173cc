//! What a workload waits for before it may talk.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tests::{Attempt, Outcome};

use super::arms::{Arm, ECHO, Guard};
use super::pairs::Plan;
use super::rows::Rows;
use crate::step;

/// Milliseconds from the start of a command to its first connection, as a PU of its own and as nothing.
///
/// # Errors
/// A command cannot be started, or its connection fails.
pub fn starts(plan: &Plan, rows: &mut Rows) -> Result<()> {
    step::say("commands that connect as soon as they run");
    let bare = Arm::new("bare", Guard::None)?;
    let enforced = Arm::new("enforced", Guard::Enforcer(10))?;
    let count = plan.rounds * plan.contacts.max(2) * 2;
    let (mut plain, mut managed) = (Vec::new(), Vec::new());
    for number in 0..count {
        plain.push(start(&bare, None)?);
        managed.push(start(&enforced, Some(&format!("start{number}")))?);
    }
    rows.add_with_tail("start_bare_ms", "ms", &plain);
    rows.add_with_tail("pu_start_exec_ms", "ms", &managed);
    Ok(())
}

/// Milliseconds until a command, run by `enforcer exec` if it gets a name, has its first connection.
fn start(arm: &Arm, pu: Option<&str>) -> Result<f64> {
    let tool = tests::lab_tool()?.to_string_lossy().into_owned();
    let to = arm.b.socket_v4(ECHO);
    let command = [tool.as_str(), "connect", &to, "--timeout", "5000"];
    let line = match pu {
        Some(name) => arm.a.as_pu(name, &["app=bench", "side=client"], &command)?,
        None => command.map(str::to_owned).to_vec(),
    };
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let attempt: Attempt = arm.a.exec(&line)?.json::<Attempts>()?.only()?;
    ensure!(attempt.outcome == Outcome::Ok, "{attempt:?}");
    Ok(attempt.answered_at as f64 / 1e3 - begin.as_micros() as f64 / 1e3)
}

#[derive(serde::Deserialize)]
struct Attempts {
    attempts: Vec<Attempt>,
}

impl Attempts {
    fn only(mut self) -> Result<Attempt> {
        self.attempts.pop().context("no attempt was made")
    }
}
