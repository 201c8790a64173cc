//! Of processes: the front end on one host, service and database on another.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Lab, Outcome};

use super::*;

#[test]
fn watched_suggested_applied_enforced() -> Result<()> {
    let lab = Lab::new("tiers")?;
    lab.write_policy("guard.yaml", GUARD)?;
    let (a, b, outside) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let hosts = [&a, &b];
    for host in hosts {
        host.start_enforcer("")?;
    }
    observe(&hosts, true)?;

    let cgi = b.directory().join("www/cgi-bin");
    fs::create_dir_all(&cgi)?;
    fs::write(cgi.join("hits"), cgi_script(&b.v4().to_string()))?;
    fs::set_permissions(cgi.join("hits"), fs::Permissions::from_mode(0o755))?;
    let scratch = a.directory().join("nginx");
    fs::create_dir_all(&scratch)?;
    let config = scratch.join("nginx.conf");
    fs::write(&config, nginx_config(&b.v4().to_string(), &scratch.to_string_lossy()))?;
    let (config, www) = (config.to_string_lossy(), b.directory().join("www"));
    let redis = ["redis-server", "--port", "6379", "--protected-mode", "no", "--save", "", "--bind", "0.0.0.0"];
    let _db = b.workload_running("db", &["app=db"], &redis)?;
    let httpd = ["busybox", "httpd", "-f", "-p", "8080", "-h", &www.to_string_lossy()];
    let _api = b.workload_running("api", &["app=api"], &httpd)?;
    let _web = a.workload_running("web", &["app=web"], &["nginx", "-c", &config])?;
    let intruder = a.workload("intruder", &["app=intruder"])?;
    let front = a.v4().to_string();

    visit_within(&outside, &front, Duration::from_secs(15))?;
    assert_works(&outside, &front)?;
    wait_for_records(&hosts, &[80, 8080, 6379], |_| true)?;
    suggest_and_apply(&lab, &hosts, &outside)?;

    // In force, and still watched: what is covered is allowed by name.
    assert_works(&outside, &front)?;
    let covered = |record: &FlowRecord| record.rule.starts_with("suggested-demo/") && record.observed.is_none();
    wait_for_records(&hosts, &[80, 8080, 6379], covered)?;
    observe(&hosts, false)?;
    assert_works(&outside, &front)?;

    // The intruder is refused at once, by name.
    let (db, api) = (b.socket_v4(6379), b.socket_v4(8080));
    for (to, rule, reason) in [(&db, "guard/no-intruder", "deny_rule"), (&api, "", "no_rule")] {
        let attempt = intruder.connect(to, &["--payload", "PING\r\n", "--timeout", "3000"])?;
        ensure!(attempt.outcome == Outcome::Refused, "{to}: {attempt:?}");
        let told = refusal(&b, |record| record.remote == attempt.local)?;
        ensure!((told.rule.as_str(), told.reason.as_str()) == (rule, reason), "{told:?}");
        ensure!(told.peer.ends_with("/intruder"), "{told:?}");
    }
    // Neither does a stranger get past the front end.
    let stranger = outside.connect(&db, &["--timeout", "1000"])?;
    ensure!(stranger.outcome == Outcome::Timeout, "{stranger:?}");
    let told = refusal(&b, |record| record.remote == stranger.local)?;
    ensure!((told.pu.as_str(), told.reason.as_str()) == ("db", "no_identity"), "{told:?}");
    assert_works(&outside, &front)
}
