//! Known pairs' connections while a flood is on, against the same flood on a host without enforcer.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Flood, Recorded};

use super::arms::{Arm, ECHO, Guard, PROCESSOR};
use super::pairs::{Plan, interleave};
use super::rows::Rows;
use crate::step;

/// Frames a second: a quarter of the processor's time or more, in a bare kernel.
const RATE: u64 = 50_000;
/// Rounds of each flood, and the length of a slice, at most: there are many floods.
const ROUNDS: usize = 5;
const SLICE: Duration = Duration::from_millis(450);

/// For every kind of flood, the share of its connection rate that an enforced pair keeps, as a share of what a bare pair keeps
/// under the same frames.
///
/// # Errors
/// An arm cannot be made, or a measurement fails.
pub fn floods(plan: &Plan, rows: &mut Rows) -> Result<()> {
    step::say("floods against a bare pair of hosts, an enforced one, and one behind SYNPROXY");
    let bare = Arm::new("bare", Guard::None)?;
    let enforced = Arm::new("enforced", Guard::Enforcer(10))?;
    let (of_bare, of_enforced) = (kinds(&bare, &enforced)?, kinds(&enforced, &enforced)?);
    let plan = Plan { rounds: plan.rounds.min(ROUNDS), slice: plan.slice.min(SLICE), ..*plan };
    for (at_bare, at_enforced) in of_bare.iter().zip(&of_enforced) {
        let shares = shares(&plan, (&bare, at_bare), (&enforced, at_enforced))?;
        rows.add(&format!("flood_{}", at_bare.name), "of bare", &shares);
    }
    // It knows SYNs only, and not every kernel has it.
    let proxied = Arm::new("synproxy", Guard::Synproxy).and_then(|arm| {
        let at_proxied = kinds(&arm, &enforced)?;
        shares(&plan, (&bare, &of_bare[0]), (&arm, &at_proxied[0]))
    });
    match proxied {
        Ok(shares) => rows.add(&format!("flood_{}_synproxy", of_bare[0].name), "of bare", &shares),
        Err(error) => step::say(format!("no SYNPROXY to compare with: {error:#}")),
    }
    Ok(())
}

/// What `guarded` keeps under its flood, as a share of what `bare` keeps under its own, round by round.
fn shares(plan: &Plan, bare: (&Arm, &Flood), guarded: (&Arm, &Flood)) -> Result<Vec<f64>> {
    let rounds = interleave(plan.rounds, &[bare.0, guarded.0], |arm| {
        let flood = if arm.name() == bare.0.name() { bare.1 } else { guarded.1 };
        kept(arm, flood, plan.slice)
    })?;
    Ok(rounds.iter().map(|kept| kept[1] / kept[0]).collect())
}

/// Every kind of flood against the server of `arm`: what was recorded of the enforced pair, sent to this one.
fn kinds(arm: &Arm, enforced: &Arm) -> Result<Vec<Flood>> {
    let mut recorded = Recorded::at(&enforced.b, ECHO, || {
        enforced.a.enforcer(&["peers", "--forget"])?.ok()?;
        // Of the second, the SYN is a RESUME.
        for _ in 0..2 {
            enforced.connect()?;
        }
        Ok(())
    })?;
    let link = arm.link_address_of_server()?;
    for segment in [&mut recorded.hello, &mut recorded.resume] {
        segment.set_link_destination(link);
        segment.set_destination_v4(arm.b.v4());
    }
    let forged = recorded.with_wrong_signature(sha256)?;
    Ok(Flood::all(&recorded, &forged, arm.a.v4()))
}

/// The rate of connections under a flood as a share of the rate just before it. Flood, client and server share one processor.
fn kept(arm: &Arm, flood: &Flood, slice: Duration) -> Result<f64> {
    let quiet = arm.load("crr", slice, &[])?;
    // It ends with the measurement, or by itself.
    let limit = slice * 2 + Duration::from_secs(5);
    let mut flooding = flood.begin(&arm.a, u64::MAX >> 1, RATE, limit, &["taskset", "-c", PROCESSOR])?;
    let flooded = arm.load("crr", slice, &[])?;
    ensure!(!flooding.is_over(Duration::ZERO)?, "the flood was over before the measurement");
    ensure!(quiet.rate > 0.0, "no connection at all");
    Ok(flooded.rate / quiet.rate)
}

/// The first bytes of a SHA-256, by coreutils: nothing else here needs one.
fn sha256(bytes: &[u8]) -> Result<[u8; 12]> {
    let mut process = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    process.stdin.take().context("no standard input")?.write_all(bytes)?;
    let output = process.wait_with_output()?;
    let text = String::from_utf8(output.stdout).context("sha256sum printed no text")?;
    let byte = |at: usize| text.get(at * 2..at * 2 + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let mut hash = [0; 12];
    for (at, place) in hash.iter_mut().enumerate() {
        *place = byte(at).context("sha256sum printed no hash")?;
    }
    Ok(hash)
}

#[cfg(test)]
mod tests_of_hash {
    #[test]
    fn a_hash_is_the_one_of_fips_180() {
        let hash = super::sha256(b"abc").expect("sha256sum");
        assert_eq!(hash, [0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde]);
    }
}
