//! Another authority while there is traffic.

use std::fs;

use anyhow::{Result, ensure};
use tests::{Host, Outcome, enforcer_binary};

use crate::stage::{Stage, assert_refused, counted};

#[test]
fn an_authority_is_replaced_by_another() -> Result<()> {
    let stage = Stage::new("authority")?;
    let [newcomer, stranger] = stage.newcomers(["newcomer", "stranger"])?;
    let (a, b) = (&stage.pair.a.clone(), &stage.pair.b.clone());
    let lab = stage.pair.lab.directory().to_owned();
    let (old, new, both) = (lab.join("ca/ca.crt"), lab.join("ca-new/ca.crt"), lab.join("both.crt"));
    let directory = lab.join("ca-new").to_string_lossy().into_owned();
    let binary = enforcer_binary()?.to_string_lossy().into_owned();
    a.exec(&[&binary, "ca", "init", "--dir", &directory])?.ok()?;
    for host in ["host-a", "host-b"] {
        a.exec(&[&binary, "ca", "issue", "--dir", &directory, "--name", host, "--out", &directory])?.ok()?;
    }
    fs::write(&both, fs::read_to_string(&old)? + &fs::read_to_string(&new)?)?;
    let trusts = |ca: &std::path::Path| format!("identity.ca = {ca:?}\n");
    let renewed = |host: &Host| {
        let name = format!("{directory}/host-{}", host.name());
        format!("identity.certificate = \"{name}.crt\"\nidentity.key = \"{name}.key\"\n")
    };

    // Both are trusted, then each host shows a certificate of the new one. Nobody notices.
    let counts = {
        let before = b.counters()?;
        for renew in [false, true] {
            for host in [a, b] {
                let shown = if renew { renewed(host) } else { String::new() };
                host.start_enforcer(&(trusts(&both) + &shown))?;
                stage.assert_known("both are trusted")?;
            }
        }
        stage.assert_first_contact(&newcomer, Outcome::Ok, "both are trusted")?;
        &b.counters()? - &before
    };
    assert_refused(&counts, &[("no_rule", 8)]);
    // Sessions that the old authority vouched for are forgotten, and met anew under the new one.
    for host in [a, b] {
        host.enforcer(&["peers", "--forget"])?.ok()?;
    }
    stage.assert_known("introduced again")?;

    // The old one is trusted no more, and nobody notices that either.
    let counts = counted(b, || {
        for host in [a, b] {
            host.start_enforcer(&(trusts(&new) + &renewed(host)))?;
            stage.assert_known("the old one is gone")?;
        }
        Ok(())
    })?;
    assert_refused(&counts, &[("no_rule", 4)]);
    // A certificate of the old one is nobody's.
    a.start_enforcer(&trusts(&both))?;
    let counts = counted(b, || {
        for to in stage.pair.addresses(8020) {
            let attempt = stranger.connect(&to, &["--timeout", "500"])?;
            ensure!(attempt.outcome == Outcome::Timeout, "{attempt:?}");
        }
        Ok(())
    })?;
    assert_refused(&counts, &[("chain_untrusted", 2)]);
    stage.assert_all_live()
}
