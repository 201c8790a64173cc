//! What new connections notice of an upgrade, and of agents that are killed.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tests::{Host, enforcer_binary};

use super::arms::{Arm, Guard};
use super::pairs::Plan;
use super::rows::Rows;
use crate::step;

/// Milliseconds that 99 in 100 new connections do not exceed while both ends are upgraded, and while the agents at both ends are
/// killed and started again, and many live connections transfer.
///
/// # Errors
/// An arm cannot be made, an upgrade or a start fails, or a connection does.
pub fn upgrade(plan: &Plan, live: usize, rows: &mut Rows) -> Result<()> {
    step::say(format!("an enforced pair of hosts with {live} live connections is upgraded"));
    replaced(plan, live, rows, "upgrade", |host| host.upgrade_enforcer(&enforcer_binary()?, &[])?.ok().map(drop))?;
    step::say(format!("the agents of an enforced pair of hosts with {live} live connections are killed"));
    replaced(plan, live, rows, "kill", |host| {
        host.kill9_enforcer()?;
        host.restart_enforcer()
    })
}

fn replaced(plan: &Plan, live: usize, rows: &mut Rows, name: &str, replace: fn(&Host) -> Result<()>) -> Result<()> {
    let arm = Arm::new("enforced", Guard::Enforcer(10))?;
    let _transfer = arm.transfer(live)?;
    let (mut tails, mut took) = (Vec::new(), Vec::new());
    // The first one tells how long the next will take: connections are measured for as long, and no longer.
    let mut length = both(&arm, replace)?;
    for _ in 0..plan.rounds {
        let (replaced, load) = thread::scope(|scope| {
            let load = scope.spawn(|| arm.load("crr", length, &[]));
            let replaced = both(&arm, replace);
            (replaced, load.join())
        });
        let load = load.map_err(|_| anyhow!("the load panicked"))??;
        ensure!(load.failed == 0 && load.count > 0, "{} of {} connections failed", load.failed, load.count);
        tails.push(load.p99_micros / 1e3);
        length = replaced?;
        took.push(length.as_secs_f64() * 1e3 / 2.0);
    }
    rows.add(&format!("{name}_ms"), "ms", &took);
    rows.add(&format!("{name}_p99_ms"), "ms", &tails);
    Ok(())
}

/// Replaces the agents of both hosts, one after the other.
fn both(arm: &Arm, replace: fn(&Host) -> Result<()>) -> Result<Duration> {
    let begin = Instant::now();
    for host in [&arm.a, &arm.b] {
        replace(host)?;
    }
    Ok(begin.elapsed())
}
