//! Workloads that come and go all the time, while keys rotate and there is load.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Host, Load, Outcome, Pair, Place};

use crate::places::{ip, names};
use crate::stage::{Stage, assert_outcome, assert_refused, counted, eventually};

/// Indexes of the sessions a host has.
fn sessions(host: &Host) -> Result<BTreeSet<u64>> {
    let peers: Value = host.enforcer_json(&["peers"])?;
    let peers = peers.get("peers").unwrap_or(&peers).as_array().context("a list")?.clone();
    let sessions = peers.iter().flat_map(|peer| peer["sessions"].as_array().into_iter().flatten());
    Ok(sessions.filter_map(|session| session["index"].as_u64()).collect())
}

/// Starts of what lives a moment, and how far they are apart: two hundred a minute.
const STARTS: usize = 36;
const APART: Duration = Duration::from_millis(300);

#[test]
fn two_hundred_starts_a_minute_while_keys_rotate_under_load() -> Result<()> {
    let often = "identity.profile_lifetime = \"10s\"\nidentity.prekey_rotation = \"10s\"\n";
    let auto = format!("{often}datapath.interfaces = [\"auto\"]");
    let stage = Stage::on(Pair::with_each("starts", &auto, often)?)?;
    let (a, b) = (&stage.pair.a, &stage.pair.b);
    let tool = tests::lab_tool()?.to_string_lossy().into_owned();
    let descriptors = || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", a.agent_pid()?))?.count()) };
    let (links, open) = (names(a, "links")?, descriptors()?);
    let addresses = stage.pair.addresses(8020);
    let first = sessions(a)?;
    let counts = counted(b, || {
        let load = |to: &str| stage.pair.client.spawn_tool(&["crr", to, "--seconds", "10"]);
        let loads = [load(&addresses[0])?, load(&addresses[1])?];
        let begin = Instant::now();
        for number in 0..STARTS {
            let to = &addresses[number % 2];
            // One in six has a network namespace, the others a cgroup.
            if number % 6 == 5 {
                let name = format!("g{number}");
                let guest = a.guest(&name, &[b])?;
                a.enforcer(&["pu", "add", "--interface", guest.interface(), "--name", &name, "--tag", "app=client"])?
                    .ok()?;
                assert_outcome(&guest, to, Outcome::Ok, &name)?;
                ip(a, &format!("netns del {}-{name}", a.netns()))?;
                for route in ["route del 10.78.0.0/24", "-6 route del fd78::/64"] {
                    ip(b, route)?;
                }
            } else {
                let name = format!("c{number}");
                let command = [tool.as_str(), "connect", to, "--payload", "ping", "--timeout", "5000"];
                let answer = Place::exec(a, &a.as_pu(&name, &["app=client"], &command)?)?;
                ensure!(answer.ok()?.contains("\"outcome\":\"ok\""), "{name}: {}", answer.stdout);
            }
            let due = begin + APART * (number as u32 + 1);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        for mut load in loads {
            ensure!(load.wait(Duration::from_secs(20))?.is_some(), "still under load");
            let told: Load = serde_json::from_str(&load.stdout())?;
            ensure!(told.failed == 0 && told.count > 100, "{told:?}");
        }
        Ok(())
    })?;
    // A PU that ends before the last segment of its connection has come takes that along. Who has another handle or session by now, or another's
    // MAC by chance, is asked once more, and a segment may come late. Nothing else is refused.
    let beside = ["revoked", "unknown_handle", "unknown_session", "resume_replayed", "no_flow", "unconfirmed"];
    let beside = beside.map(|reason| (reason, counts.verdicts_in(reason)));
    assert!(beside.iter().all(|(_, count)| *count <= STARTS as i64), "{:?}", counts.refusals());
    assert_refused(&counts, &beside);
    let last = sessions(a)?;
    assert!(last.difference(&first).next().is_some(), "no key was rotated: {first:?} {last:?}");
    let left = |host: &Host| -> Result<Vec<String>> {
        Ok(host.pus()?.iter().filter_map(|pu| pu["name"].as_str().map(str::to_owned)).collect())
    };
    eventually("all PUs are gone", Duration::from_secs(10), || Ok(left(a)? == ["client"]))?;
    eventually("all interfaces are gone", Duration::from_secs(10), || Ok(names(a, "links")? == links))?;
    eventually("all flows are gone", Duration::from_secs(20), || {
        // What was seen at an interface only is kept for a minute after its end.
        let kept = (STARTS / 6) as i64;
        Ok(a.counters()?.flows() <= crate::stage::LIVE as i64 + kept
            && b.counters()?.flows() == crate::stage::LIVE as i64)
    })?;
    eventually("no descriptor is left", Duration::from_secs(5), || Ok(descriptors()? <= open + 2))?;
    let directories = fs::read_dir(a.cgroup().join("enforcer.pus"))?.flatten().filter(|entry| entry.path().is_dir());
    assert_eq!(directories.count(), 1, "only the client's cgroup is left");
    stage.assert_known("afterwards")?;
    stage.assert_all_live()
}
