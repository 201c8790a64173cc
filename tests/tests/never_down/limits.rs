//! Rings and maps that are too small: counted under their own reason, and over when there is room again.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tests::{Outcome, Pair};

use crate::stage::{Stage, assert_outcome, assert_refused, counted, eventually};

/// More than the smallest ring holds, at 2,136 bytes each.
const NEWCOMERS: usize = 36;

#[test]
fn a_full_handshake_ring_drops_first_contacts_and_tells_how_many() -> Result<()> {
    // It is stopped for a moment only: nobody takes it for dead.
    // Nobody is asked for a cookie either, which would be so from half a ring on.
    let small = "datapath.handshake_ring_bytes = 65536\ndatapath.agent_timeout = \"20s\"\ndatapath.hello_load = 0";
    let stage = Stage::on(Pair::with_each("ringfull", "", small)?)?;
    let b = &stage.pair.b;
    let newcomers: Vec<_> = (0..NEWCOMERS)
        .map(|number| stage.pair.a.workload_by_cgroup(&format!("n{number}"), &["app=client", &format!("n={number}")]))
        .collect::<Result<_>>()?;
    let [to, _] = stage.pair.addresses(8020);
    let (held, lost) = ("enforcer_held_frames_total", "enforcer_losses_total{what=\"handshake_ring\"}");
    let counts = counted(b, || {
        b.signal_enforcer(Signal::SIGSTOP)?;
        // One SYN each: TCP would send the next after a second.
        let attempts: Result<Vec<_>> =
            newcomers.iter().map(|newcomer| newcomer.connect(&to, &["--timeout", "100"])).collect();
        let known = stage.assert_known("a full ring");
        b.signal_enforcer(Signal::SIGCONT)?;
        for attempt in attempts? {
            ensure!(attempt.outcome == Outcome::Timeout, "{attempt:?}");
        }
        known
    })?;
    // What found room was decided when the agent went on; the rest was dropped, every one counted once as that.
    let full = counts.verdicts_in("ring_full");
    assert!(full > 0 && full < NEWCOMERS as i64, "{:?}", counts.refusals());
    assert_eq!((counts.get(lost), counts.get(held)), (full, NEWCOMERS as i64 - full), "{:?}", counts.refusals());
    assert_refused(&counts, &[("ring_full", full), ("no_rule", 2)]);
    for newcomer in &newcomers {
        assert_outcome(newcomer, &to, Outcome::Ok, "room again")?;
    }
    eventually("all are decided", Duration::from_secs(5), || Ok(b.counters()?.get(lost) == full))?;
    stage.assert_all_live()
}

#[test]
fn a_full_verdict_table_refuses_pairs_that_have_not_met() -> Result<()> {
    let stage = Stage::on(Pair::with_each("pairsfull", "", "datapath.max_pairs = 16")?)?;
    let b = &stage.pair.b;
    // As many identities as it takes.
    let newcomers: Vec<_> = (0..20)
        .map(|number| stage.pair.a.workload_by_cgroup(&format!("n{number}"), &["app=client", &format!("n={number}")]))
        .collect::<Result<_>>()?;
    let [to, _] = stage.pair.addresses(8020);
    let mut refused = 0;
    let counts = counted(b, || {
        for newcomer in &newcomers {
            match newcomer.connect(&to, &["--payload", "ping", "--timeout", "3000"])?.outcome {
                Outcome::Ok => {}
                Outcome::Refused => refused += 1,
                other => anyhow::bail!("{other:?}"),
            }
        }
        stage.assert_known("a full table")
    })?;
    assert!(refused > 0, "never full");
    assert_refused(&counts, &[("pair_unavailable", refused), ("no_rule", 2)]);
    stage.assert_all_live()
}
