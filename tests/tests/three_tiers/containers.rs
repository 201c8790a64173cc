//! Of containers: three images made from scratch, on one bridge, tags from their labels.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Docker, Lab, Outcome};

use super::*;

const ON_ONE: [&str; 2] = ["--network", "one"];

#[test]
fn watched_suggested_applied_enforced() -> Result<()> {
    let lab = Lab::new("dktiers")?;
    lab.write_policy("guard.yaml", GUARD)?;
    let (host, outside) = (lab.host("a")?, lab.host("b")?);
    let hosts = [&host];
    let docker = Docker::start(&host)?;
    docker.network("one", "10.99.0.0/24", &[&outside])?;
    host.start_enforcer(&format!("datapath.interfaces = [\"auto\"]\n{}", docker.enforcer_config()))?;
    observe(&hosts, true)?;
    let shop = docker.three_tiers("one")?;
    let [web, api, db] = &shop.addresses;
    let intruder = docker.idle("intruder", &[&ON_ONE[..], &["--label", "app=intruder"]].concat())?;

    let why = || host.enforcer_log();
    visit_within(&outside, web, Duration::from_secs(20)).with_context(why)?;
    assert_works(&outside, web)?;
    wait_for_records(&hosts, &[80, 8080, 6379], |_| true)?;
    suggest_and_apply(&lab, &hosts, &outside)?;

    assert_works(&outside, web)?;
    let covered = |record: &FlowRecord| record.rule.starts_with("suggested-demo/") && record.observed.is_none();
    wait_for_records(&hosts, &[80, 8080, 6379], covered)?;
    observe(&hosts, false)?;
    assert_works(&outside, web).with_context(why)?;

    let (db, api) = (format!("{db}:6379"), format!("{api}:8080"));
    for (to, rule, reason) in [(&db, "guard/no-intruder", "deny_rule"), (&api, "", "no_rule")] {
        let attempt = intruder.connect(to, &["--payload", "PING\r\n", "--timeout", "3000"])?;
        ensure!(attempt.outcome == Outcome::Refused, "{to}: {attempt:?}\n{}", why());
        let told = refusal(&host, |record| record.role == "server" && record.remote == attempt.local)?;
        ensure!((told.rule.as_str(), told.reason.as_str()) == (rule, reason), "{told:?}");
        ensure!(told.peer.ends_with("/intruder"), "{told:?}");
    }
    let stranger = outside.connect(&db, &["--timeout", "1000"])?;
    ensure!(stranger.outcome == Outcome::Timeout, "{stranger:?}");
    let told = refusal(&host, |record| record.remote == stranger.local)?;
    ensure!((told.pu.as_str(), told.reason.as_str()) == ("db", "no_identity"), "{told:?}");
    assert_works(&outside, web)
}
