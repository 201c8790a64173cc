//! How the enforcer hears of pods: CRI's events, their loss, and a runtime that tells none.
//!
//! The other tests here run on containerd's own events, which Debian's containerd has in place of CRI's.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use tests::Outcome;

use crate::cri::Pod;
use crate::front::{ContainerEventResponse, Front, STARTED};
use crate::stage::Stage;

const POLICY: &str = "name: pods
rules:
  - call: allow app=client -> app=server tcp/8020
";

/// The call by which one sees that pods are listed.
const LIST: &str = "/ListPodSandbox";

/// Waits until pods are not listed any more but for once in half a minute.
fn wait_for_quiet(front: &Front) -> Result<usize> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = front.calls(LIST);
        // Longer than the second in which lists are repeated after a change.
        std::thread::sleep(Duration::from_millis(1300));
        if front.calls(LIST) == before {
            return Ok(before);
        }
        ensure!(Instant::now() < deadline, "pods are listed all the time");
    }
}

#[test]
fn events_of_cri_are_followed_and_not_relied_upon() -> Result<()> {
    let stage = Stage::without_enforcer("podevents", "")?;
    stage.lab.write_policy("pods.yaml", POLICY)?;
    let front = Front::start(stage.a.directory(), &stage.containerd.socket())?;
    stage.follow(front.socket(), "")?;
    front.wait_for_subscriber()?;

    // No event tells of these pods: interfaces and cgroups do that something happened.
    let (_server, to) = stage.server()?;
    let (_, client) = stage.idle(&Pod::new("client", "shop", &[("app", "client")]))?;
    stage.a.wait_for_pus(&["shop/server", "shop/client"])?;
    stage.assert_outcome(&client, &to, Outcome::Ok)?;

    // An event alone is enough.
    let event = ContainerEventResponse { container_id: client.clone(), container_event_type: STARTED, created_at: 1 };
    let quiet = wait_for_quiet(&front)?;
    ensure!(front.tell(&event) == 1, "one follows");
    front.wait_for_call(LIST, quiet)?;

    // What happens while the runtime is away is found when it is back, and events are followed again.
    front.stop()?;
    let (gone, _) = stage.idle(&Pod::new("gone", "shop", &[("app", "client")]))?;
    let (_, late) = stage.idle(&Pod::new("late", "shop", &[("app", "client")]))?;
    stage.cri.remove_pod(&gone)?;
    front.listen()?;
    front.wait_for_subscriber()?;
    stage.a.wait_for_pus(&["shop/server", "shop/client", "shop/late"])?;
    stage.assert_outcome(&late, &to, Outcome::Ok)?;
    stage.assert_outcome(&client, &to, Outcome::Ok)?;

    // What is no event ends the connection, not the PUs; it is made again.
    let asked = front.calls("/GetContainerEvents");
    front.send(Bytes::from_static(b"\0\0\0\0\x02\xff\xff"));
    front.wait_for_call("/GetContainerEvents", asked)?;
    let quiet = wait_for_quiet(&front)?;
    ensure!(front.tell(&event) == 1, "one follows again");
    front.wait_for_call(LIST, quiet)?;
    stage.a.wait_for_pus(&["shop/server", "shop/client", "shop/late"])?;
    stage.assert_outcome(&client, &to, Outcome::Ok)?;
    let log = stage.a.enforcer_log();
    ensure!(log.contains("events are those of CRI") && log.contains("no events from the runtime"), "{log}");
    Ok(())
}

#[test]
fn a_runtime_without_events_is_asked() -> Result<()> {
    // Debian's containerd has none of CRI's events; now it has none of its own either.
    let mut stage = Stage::without_enforcer("podpolled", "disabled_plugins = [\"io.containerd.grpc.v1.events\"]")?;
    stage.lab.write_policy("pods.yaml", POLICY)?;
    stage.follow(&stage.containerd.socket(), "")?;
    let (_server, to) = stage.server()?;
    let (pod, client) = stage.idle(&Pod::new("client", "shop", &[("app", "client")]))?;
    stage.a.wait_for_pus(&["shop/server", "shop/client"])?;
    stage.assert_outcome(&client, &to, Outcome::Ok)?;
    stage.cri.remove_pod(&pod)?;
    stage.a.wait_for_pus(&["shop/server"])?;
    stage.containerd.restart()?;
    stage.cri.reconnect(&stage.containerd)?;
    let (_, other) = stage.idle(&Pod::new("other", "shop", &[("app", "other")]))?;
    stage.a.wait_for_pus(&["shop/server", "shop/other"])?;
    stage.assert_outcome(&other, &to, Outcome::Refused)?;
    let log = stage.a.enforcer_log();
    ensure!(log.contains("this runtime tells no events"), "{log}");
    Ok(())
}
