//! PUs behind an interface of their own: a network namespace at the end of a veth, as containers have.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Guest, Host, Lab, Outcome, Workload};

const POLICY: &str = "name: pair
rules:
  - call: allow app=client -> app=server tcp/8000-8999
  - back: allow app=server -> app=client tcp/7000-7999
";

struct Stage {
    /// The PU behind `veth-box` of host `a`.
    guest: Guest,
    /// A cgroup PU of the same host.
    local: Workload,
    /// A PU of the other host.
    remote: Workload,
    a: Host,
    b: Host,
    _lab: Lab,
}

impl Stage {
    fn new(name: &str, guest_tag: &str, others_tag: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("pair.yaml", POLICY)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let guest = a.guest("box", &[&b])?;
        a.start_enforcer("datapath.interfaces = [\"auto\"]")?;
        b.start_enforcer("")?;
        a.enforcer(&["pu", "add", "--interface", guest.interface(), "--name", "box", "--tag", guest_tag])?.ok()?;
        let local = a.workload("local", &[others_tag])?;
        let remote = b.workload("remote", &[others_tag])?;
        Ok(Self { guest, local, remote, a, b, _lab: lab })
    }
}

#[test]
fn a_pu_behind_an_interface_calls() -> Result<()> {
    let stage = Stage::new("ifcall", "app=client", "app=server")?;
    let local = stage.local.serve(&["--listen", "[::]:8020", "--listen", "[::]:9999"])?;
    let remote = stage.remote.serve(&["--listen", "[::]:8020", "--listen", "[::]:9999"])?;
    for round in 0..2 {
        for (host, what) in [(&stage.b, "another host"), (&stage.a, "its own host")] {
            for to in [host.socket_v4(8020), host.socket_v6(8020)] {
                let attempt = stage.guest.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
                let why = || format!("{what}, round {round}: {attempt:?}\n{}", refusals(&stage));
                assert_eq!((attempt.outcome, attempt.reply.as_str()), (Outcome::Ok, "ping"), "{}", why());
                assert!(attempt.total_micros < 500_000, "by the timer: {}", why());
            }
            for to in [host.socket_v4(9999), host.socket_v6(9999)] {
                let before = stage.a.counters()?;
                let attempt = stage.guest.connect(&to, &["--timeout", "3000"])?;
                assert_eq!(
                    (&stage.a.counters()? - &before).packets_in("deny"),
                    1,
                    "{what}, round {round}: {attempt:?}"
                );
                assert_eq!(attempt.outcome, Outcome::Refused, "{what}: {attempt:?}");
                assert!(attempt.micros < 500_000, "{what}: {attempt:?}");
            }
        }
    }
    assert_eq!((local.accepted()?, remote.accepted()?), (4, 4));
    Ok(())
}

#[test]
fn a_pu_behind_an_interface_is_called() -> Result<()> {
    let stage = Stage::new("ifserve", "app=server", "app=client")?;
    let server = stage.guest.serve(&["--listen", "[::]:8020", "--listen", "[::]:9999"])?;
    for round in 0..2 {
        for (client, what) in [(&stage.remote, "another host"), (&stage.local, "its own host")] {
            for to in stage.guest.addresses(8020) {
                let attempt = client.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
                let why = || format!("{what}, round {round}: {attempt:?}\n{}", refusals(&stage));
                assert_eq!((attempt.outcome, attempt.reply.as_str()), (Outcome::Ok, "ping"), "{}", why());
                assert!(attempt.total_micros < 500_000, "by the timer: {}", why());
            }
            for to in stage.guest.addresses(9999) {
                let host = &client.host;
                let before = host.counters()?;
                let attempt = client.connect(&to, &["--timeout", "3000"])?;
                assert_eq!((&host.counters()? - &before).packets_in("deny"), 1, "{what}, round {round}: {attempt:?}");
                assert_eq!(attempt.outcome, Outcome::Refused, "{what}: {attempt:?}");
            }
        }
    }
    // A stranger gets no answer.
    for to in stage.guest.addresses(8020) {
        assert_eq!(stage.b.connect(&to, &["--timeout", "300"])?.outcome, Outcome::Timeout, "{to}");
    }
    assert_eq!(server.accepted()?, 8);
    Ok(())
}

#[test]
fn data_that_comes_with_the_first_acknowledgement_is_not_lost() -> Result<()> {
    let stage = Stage::new("ifdata", "app=client", "app=server")?;
    for to in [stage.b.socket_v4(8020), stage.b.socket_v6(8020)] {
        // The client's stack keeps its ACK back until data goes along (TCP_QUICKACK off).
        let listener = stage.remote.listen_and_play("[::]:8020", &[], &["expect=early", "send=answer", "eof"])?;
        let steps = ["send=early", "expect=answer", "fin", "eof"];
        let talks = stage.guest.call_and_play(&to, &["--lazy-ack"], &steps)?;
        ensure!(talks[0].ok, "{to}: {talks:?}\n{}", refusals(&stage));
        let answers = listener.finish(Duration::from_secs(10))?;
        ensure!(answers[0].ok, "{to}: {answers:?}");
    }
    Ok(())
}

fn refusals(stage: &Stage) -> String {
    let of = |host: &Host| -> BTreeMap<String, i64> {
        let counters = host.counters().unwrap_or_default();
        counters.refusals().into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    };
    format!("refused by a: {:?}, by b: {:?}", of(&stage.a), of(&stage.b))
}
