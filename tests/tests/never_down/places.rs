//! Where workloads live comes and goes: interfaces, network namespaces, cgroups.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Host, Outcome, Pair};

use crate::stage::{Stage, assert_outcome, assert_refused, counted, eventually};

fn interface_state(host: &Host, name: &str) -> Result<String> {
    let status: Value = host.enforcer_json(&["status"])?;
    let all = status["interfaces"].as_array().context("interfaces")?;
    let found = all.iter().find(|interface| interface["name"] == name);
    Ok(found.map(|interface| interface["state"].to_string()).unwrap_or_default())
}

pub fn names(host: &Host, directory: &str) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(host.bpffs().join("v1").join(directory))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

pub fn ip(host: &Host, command: &str) -> Result<()> {
    host.exec(&["ip"].into_iter().chain(command.split(' ')).collect::<Vec<_>>())?.ok().map(drop)
}

#[test]
fn an_interface_that_goes_down_and_up_is_enforced_as_before() -> Result<()> {
    let stage = Stage::new("downup")?;
    let [newcomer] = stage.newcomers(["newcomer"])?;
    let b = &stage.pair.b;
    let links = crate::upgrade::pinned(b, "link", "links")?;
    b.sysctl("net/ipv6/conf/eth0/keep_addr_on_down", "1")?;
    let counts = counted(b, || {
        ip(b, "link set eth0 down")?;
        let [to, _] = stage.pair.addresses(8020);
        let attempt = stage.pair.client.connect(&to, &["--timeout", "300"])?;
        ensure!(attempt.outcome != Outcome::Ok, "{attempt:?}");
        ip(b, "link set eth0 up")?;
        eventually("the network is back", Duration::from_secs(10), || {
            Ok(stage.pair.addresses(8020).iter().all(|to| {
                let attempt = stage.pair.client.connect(to, &["--payload", "ping", "--timeout", "500"]);
                attempt.is_ok_and(|attempt| attempt.outcome == Outcome::Ok)
            }))
        })?;
        stage.assert_known("up again")?;
        stage.assert_first_contact(&newcomer, Outcome::Ok, "up again")
    })?;
    assert_refused(&counts, &[("no_rule", 2)]);
    ensure!(crate::upgrade::pinned(b, "link", "links")? == links, "other links");
    ensure!(interface_state(b, "eth0")?.contains("enforced"));
    stage.assert_all_live()
}

#[test]
fn a_new_interface_is_enforced_and_a_namespace_that_goes_takes_its_pu_along() -> Result<()> {
    let stage = Stage::on(Pair::with_each("comeandgo", "", "datapath.interfaces = [\"auto\"]")?)?;
    let (a, b) = (&stage.pair.a, &stage.pair.b);
    let [newcomer] = stage.newcomers(["newcomer"])?;
    let before = names(b, "links")?;
    for round in ["first", "second"] {
        let guest = b.guest(round, &[a])?;
        let interface = guest.interface().to_owned();
        eventually("the interface is enforced", Duration::from_secs(5), || {
            Ok(interface_state(b, &interface)?.contains("enforced"))
        })?;
        b.enforcer(&["pu", "add", "--interface", &interface, "--name", round, "--tag", "app=server"])?.ok()?;
        let server = guest.serve(&["--listen", "[::]:8020", "--listen", "[::]:9100"])?;
        for to in guest.addresses(8020) {
            assert_outcome(&newcomer, &to, Outcome::Ok, round)?;
        }
        let counts = counted(b, || {
            for to in guest.addresses(9100) {
                assert_outcome(&newcomer, &to, Outcome::Refused, round)?;
            }
            Ok(())
        })?;
        // Its kernel speaks of multicast groups meanwhile, which nobody need hear.
        assert_eq!(counts.verdicts_in("no_rule"), 2, "{:?}", counts.refusals());
        let mut held = newcomer.spawn_tool(&["hold", &guest.addresses(8020)[0], "--count", "2", "--ping", "20"])?;
        held.wait_for_line(r#"READY {"open":2,"failed":0}"#, Duration::from_secs(5))?;

        // Everything that lives in the namespace, and the namespace.
        ip(b, &format!("netns del {}-{round}", b.netns()))?;
        fs::write(guest.cgroup().join("cgroup.kill"), "1")?;
        drop(server);
        // A handle would keep it.
        drop(guest);
        eventually(
            "its interface is gone",
            Duration::from_secs(10),
            || Ok(interface_state(b, &interface)?.is_empty()),
        )?;
        eventually("its PU is gone", Duration::from_secs(5), || Ok(b.pus()?.iter().all(|pu| pu["name"] != round)))?;
        ensure!(names(b, "links")? == before, "{:?} {before:?}", names(b, "links")?);
        drop(held);
        for route in ["route del 10.78.0.0/24", "-6 route del fd78::/64"] {
            ip(a, route)?;
        }
        eventually("its connections are gone", Duration::from_secs(10), || {
            let flows: Value = b.enforcer_json(&["flows"])?;
            let flows = flows["flows"].as_array().context("flows")?;
            let live = flows.iter().filter(|flow| flow["pu"] == round && flow["state"] != "cut");
            Ok(live.count() == 0 && a.counters()?.flows() == crate::stage::LIVE as i64)
        })?;
        stage.assert_known(round)?;
    }
    stage.assert_all_live()
}

#[test]
fn a_cgroup_that_is_deleted_under_traffic_takes_its_pu_and_its_flows_along() -> Result<()> {
    let stage = Stage::new("nocgroup")?;
    let (a, b) = (&stage.pair.a, &stage.pair.b);
    let live = crate::stage::LIVE as i64;
    for round in 0..2 {
        let doomed = a.workload_by_cgroup("doomed", &["app=client", "doomed=1"])?;
        let [v4, v6] = stage.pair.addresses(8020);
        let mut traffic = doomed.spawn_tool(&["transfer", &v4, &v6, "--count", "20"])?;
        traffic.wait_for_line(r#"READY {"open":40,"failed":0}"#, Duration::from_secs(10))?;
        ensure!(a.counters()?.flows() == live + 40 && b.counters()?.flows() == live + 40);
        fs::write(doomed.cgroup().join("cgroup.kill"), "1")?;
        traffic.wait(Duration::from_secs(5))?.context("it lives")?;
        eventually("the cgroup can go", Duration::from_secs(5), || Ok(fs::remove_dir(doomed.cgroup()).is_ok()))?;
        eventually("its PU is gone", Duration::from_secs(5), || Ok(a.pus()?.iter().all(|pu| pu["name"] != "doomed")))?;
        eventually("its flows are gone", Duration::from_secs(10), || {
            Ok(a.counters()?.flows() == live && b.counters()?.flows() == live)
        })?;
        // Another cgroup of that name is not it.
        let same = a.plain_workload("doomed")?;
        let [to, _] = stage.pair.addresses(8020);
        let attempt = same.connect(&to, &["--timeout", "300"])?;
        ensure!(attempt.outcome == Outcome::Timeout, "round {round}: a stranger passes for it: {attempt:?}");
        fs::remove_dir(same.cgroup())?;
        stage.assert_known("afterwards")?;
    }
    stage.assert_all_live()
}
