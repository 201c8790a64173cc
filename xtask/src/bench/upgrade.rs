//! What new connections notice of an upgrade.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tests::enforcer_binary;

use super::arms::{Arm, Guard};
use super::pairs::Plan;
use super::rows::Rows;
use crate::step;

/// Milliseconds that 99 in 100 new connections do not exceed while both ends are upgraded and many live ones transfer.
///
/// # Errors
/// An arm cannot be made, an upgrade fails, or a connection does.
pub fn upgrade(plan: &Plan, live: usize, rows: &mut Rows) -> Result<()> {
    step::say(format!("an enforced pair of hosts with {live} live connections is upgraded"));
    let arm = Arm::new("enforced", Guard::Enforcer(10))?;
    let _transfer = arm.transfer(live)?;
    let (mut tails, mut took) = (Vec::new(), Vec::new());
    // The first one tells how long the next will take: connections are measured for as long, and no longer.
    let mut length = both(&arm)?;
    for _ in 0..plan.rounds {
        let (upgraded, load) = thread::scope(|scope| {
            let load = scope.spawn(|| arm.load("crr", length, &[]));
            let upgraded = both(&arm);
            (upgraded, load.join())
        });
        let load = load.map_err(|_| anyhow!("the load panicked"))??;
        ensure!(load.failed == 0 && load.count > 0, "{} of {} connections failed", load.failed, load.count);
        tails.push(load.p99_micros / 1e3);
        length = upgraded?;
        took.push(length.as_secs_f64() * 1e3 / 2.0);
    }
    rows.add("upgrade_ms", "ms", &took);
    rows.add("upgrade_p99_ms", "ms", &tails);
    Ok(())
}

/// Upgrades both hosts, one after the other.
fn both(arm: &Arm) -> Result<Duration> {
    let begin = Instant::now();
    for host in [&arm.a, &arm.b] {
        host.upgrade_enforcer(&enforcer_binary()?, &[])?.ok()?;
    }
    Ok(begin.elapsed())
}
