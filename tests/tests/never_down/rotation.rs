//! Another authority while there is traffic.

use std::fs;

use anyhow::{Result, ensure};
use tests::{Host, Lab, Outcome, Pair, enforcer_binary};

use crate::stage::{Stage, assert_refused, counted};

#[test]
fn an_authority_is_replaced_by_another() -> Result<()> {
    let lab = Lab::new("authority")?;
    lab.write_policy("pair.yaml", Pair::POLICY)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let directory = lab.directory().join("ca-new").to_string_lossy().into_owned();
    let binary = enforcer_binary()?.to_string_lossy().into_owned();
    a.exec(&[&binary, "ca", "init", "--dir", &directory])?.ok()?;
    for host in [&a, &b] {
        // The lab's own authority is the old one.
        host.write_enforcer_config("")?;
        let name = format!("host-{}", host.name());
        host.exec(&[&binary, "ca", "issue", "--dir", &directory, "--name", &name, "--out", &directory])?.ok()?;
    }
    let [old, new, both] = ["ca/ca.crt", "ca-new/ca.crt", "both.crt"].map(|file| lab.directory().join(file));
    fs::write(&both, fs::read_to_string(&old)? + &fs::read_to_string(&new)?)?;
    let trusts = |ca: &std::path::Path| format!("identity.ca = {ca:?}\n");
    let renewed = |host: &Host| {
        let name = format!("{directory}/host-{}", host.name());
        format!("identity.certificate = \"{name}.crt\"\nidentity.key = \"{name}.key\"\n")
    };

    // Both are trusted, and both hosts show certificates of the old one.
    for host in [&a, &b] {
        host.start_enforcer(&trusts(&both))?;
    }
    let client = a.workload("client", &["app=client"])?;
    let server = b.workload("server", &["app=server"])?;
    let stage = Stage::on(Pair { client, server, a: a.clone(), b: b.clone(), lab })?;
    let [newcomer, stranger] = stage.newcomers(["newcomer", "stranger"])?;

    // Each shows one of the new authority. Nobody notices.
    let before = b.counters()?;
    for host in [&a, &b] {
        host.start_enforcer(&(trusts(&both) + &renewed(host)))?;
        stage.assert_known("both are trusted")?;
    }
    stage.assert_first_contact(&newcomer, Outcome::Ok, "both are trusted")?;
    assert_refused(&(&b.counters()? - &before), &[("no_rule", 4)]);
    // Sessions that the old authority vouched for are forgotten, and met anew under the new one.
    for host in [&a, &b] {
        host.enforcer(&["peers", "--forget"])?.ok()?;
    }
    stage.assert_known("introduced again")?;

    // The old one is trusted no more, and nobody notices that either.
    let counts = counted(&b, || {
        for host in [&a, &b] {
            host.start_enforcer(&(trusts(&new) + &renewed(host)))?;
            stage.assert_known("the old one is gone")?;
        }
        Ok(())
    })?;
    assert_refused(&counts, &[("no_rule", 4)]);
    // A certificate of the old one is nobody's.
    a.start_enforcer(&trusts(&both))?;
    let counts = counted(&b, || {
        for to in stage.pair.addresses(8020) {
            let attempt = stranger.connect(&to, &["--timeout", "500"])?;
            ensure!(attempt.outcome == Outcome::Timeout, "{attempt:?}");
        }
        Ok(())
    })?;
    assert_refused(&counts, &[("chain_untrusted", 2)]);
    stage.assert_all_live()
}
