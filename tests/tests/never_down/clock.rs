//! The clock jumps: what is known does not ask for the time, what is new is refused by name until the clocks agree.
//!
//! This machine has one clock for all: libfaketime, preloaded, gives the agent another. It reads it from a file at every look,
//! which the thread that decides first contacts may not under landlock.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Outcome, Pair, Proc, enforcer_binary};

use crate::stage::{Stage, assert_refused, counted, eventually};

/// Where Debian has it.
fn library() -> Result<PathBuf> {
    let architectures =
        fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    architectures
        .into_iter()
        .find(|path| path.exists())
        .context("no libfaketime; `cargo xtask setup --tests` installs it")
}

/// The server's agent with a clock that this file says how far is off.
fn start(pair: &Pair, clock: &Path) -> Result<Proc> {
    pair.b.stop_enforcer();
    let (binary, config) = (enforcer_binary()?, pair.b.enforcer_config());
    let variables = [
        format!("LD_PRELOAD={}", library()?.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        // What is measured is not the time of day.
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    let mut line = vec!["env".to_owned()];
    line.extend(variables);
    line.extend([binary.to_string_lossy().into_owned(), "run".into(), "--config".into()]);
    line.push(config.to_string_lossy().into_owned());
    let agent = pair.b.spawn(&line)?;
    eventually("the agent is ready", Duration::from_secs(30), || {
        let status = pair.b.enforcer(&["status", "--json"])?;
        Ok(serde_json::from_str(&status.stdout).is_ok_and(|status: serde_json::Value| status["ready"] == true))
    })
    .with_context(|| agent.stderr())?;
    Ok(agent)
}

#[test]
fn a_clock_that_jumps_an_hour_stops_first_contacts_only_and_until_it_is_right() -> Result<()> {
    let pair = Pair::with("clock", "identity.profile_lifetime = \"30m\"\nhardening.landlock = false")?;
    let clock = pair.b.directory().join("clock");
    fs::write(&clock, "+0\n")?;
    let _agent = start(&pair, &clock)?;
    let stage = Stage::on(pair)?;
    let b = &stage.pair.b;
    // The lab's certificates are minutes old.
    for (jump, reason) in [("+3600", "credential_expired"), ("-3600", "certificate_not_yet_valid")] {
        let names = [format!("new{}", reason.len()), format!("again{}", reason.len())];
        let [newcomer, again] = stage.newcomers([names[0].as_str(), names[1].as_str()])?;
        let counts = counted(b, || {
            // Whole at once: the agent reads it all the time.
            fs::write(clock.with_extension("new"), format!("{jump}\n"))?;
            fs::rename(clock.with_extension("new"), &clock)?;
            stage.assert_known(jump)?;
            for to in stage.pair.addresses(8020) {
                let attempt = newcomer.connect(&to, &["--timeout", "3000"])?;
                ensure!(attempt.outcome == Outcome::Refused, "{jump}: {attempt:?}");
            }
            stage.assert_known(jump)
        })?;
        assert_refused(&counts, &[(reason, 2), ("no_rule", 4)]);
        fs::write(clock.with_extension("new"), "+0\n")?;
        fs::rename(clock.with_extension("new"), &clock)?;
        stage.assert_first_contact(&newcomer, Outcome::Ok, "the clock is right again")?;
        // And its own profiles, whatever it signed meanwhile.
        stage.assert_first_contact(&again, Outcome::Ok, "the clock is right again")?;
    }
    stage.assert_all_live()
}
