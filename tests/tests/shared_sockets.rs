//! Datagrams that several sockets may hear, and sockets that share a port: each is judged for itself.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::{Counters, Host, Lab, Outcome, Place, Proc, Workload};

const POLICY: &str = "name: groups
rules:
  - hear: allow net 10.77.0.1/32,fd77::1/128 -> app=ears udp/5000 tcp/5000
  - tell: allow app=ears -> net 239.1.2.3/32,ff02::1:203/128 udp/5000
  - answer: allow app=ears -> net 10.77.0.1/32 udp/5000
";
const GROUPS: [&str; 2] = ["239.1.2.3", "ff02::1:203"];

/// Host `a` has no enforcer; host `b` has a PU that may be told things from there, one that may not, and a plain process.
struct Stage {
    ears: Workload,
    deaf: Workload,
    plain: Workload,
    a: Host,
    b: Host,
    _lab: Lab,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("groups.yaml", POLICY)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        b.start_enforcer("datapath.interfaces = [\"auto\"]")?;
        let ears = b.workload("ears", &["app=ears"])?;
        let deaf = b.workload("deaf", &["app=deaf"])?;
        let plain = b.plain_workload("plain")?;
        Ok(Self { ears, deaf, plain, a, b, _lab: lab })
    }

    /// What was refused on the way to PUs since `before`, once it is `expected` or has not been for a while.
    fn refused(&self, before: &Counters, expected: &[(&str, i64)]) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let counted = &self.b.counters()? - before;
            let wanted: std::collections::BTreeMap<_, _> =
                expected.iter().map(|(labels, count)| (*labels, *count)).collect();
            if counted.refusals() == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "refused: {:?}, not {wanted:?}", counted.refusals());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

const DENIED: &str = "{reason=\"protocol_denied\",direction=\"in\"}";
const DENIED_OUT: &str = "{reason=\"protocol_denied\",direction=\"out\"}";

const NOBODY_OUT: &str = "{reason=\"peer_no_identity\",direction=\"out\"}";

fn hear(at: &Place, args: &[&str]) -> Result<Proc> {
    let mut process = at.spawn_tool(&[&["hear"], args].concat())?;
    process.wait_for_line("READY", Duration::from_secs(5))?;
    Ok(process)
}

fn tell(at: &Place, from: &str, to: &str, text: &str, count: usize) -> Result<()> {
    let told: serde_json::Value =
        at.tool(&["tell", to, "--from", from, "--text", text, "--count", &count.to_string()])?;
    ensure!(told["sent"] == count, "to {to}: {told}");
    Ok(())
}

/// How often `text` was heard.
fn heard(process: &Proc, text: &str) -> usize {
    process.stdout().lines().filter(|line| line.contains(&format!("\"text\":\"{text}\""))).count()
}

fn hears(process: &Proc, text: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while heard(process, text) == 0 {
        ensure!(Instant::now() < deadline, "{text} is not heard: {}", process.stdout());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn of_all_who_hear_a_group_or_broadcast_each_pu_is_judged() -> Result<()> {
    let stage = Stage::new("groups")?;
    let join = ["--join", GROUPS[0], "--join", GROUPS[1]];
    let at = |port: &'static str, v4: bool| if v4 { format!("0.0.0.0:{port}") } else { format!("[::]:{port}") };
    let from = |host: &Host, v4: bool| host.ips()[usize::from(!v4)].to_string();
    for v4 in [true, false] {
        let to = |port: u16| if v4 { format!("{}:{port}", GROUPS[0]) } else { format!("[{}]:{port}", GROUPS[1]) };
        let mut join: Vec<&str> = join.chunks(2).nth(usize::from(!v4)).into_iter().flatten().copied().collect();
        let (first, second) = (at("5000", v4), at("5001", v4));
        let listen = |place: &Place, at: &str| hear(place, &[&[at], &join[..]].concat());
        let (ears, deaf, plain) =
            (listen(&stage.ears, &first)?, listen(&stage.deaf, &first)?, listen(&stage.plain, &first)?);
        let (other_ears, other_plain) = (listen(&stage.ears, &second)?, listen(&stage.plain, &second)?);
        let mut targets = vec![(to(5000), to(5001), "group")];
        if v4 {
            targets.push(("10.77.0.255:5000".into(), "10.77.0.255:5001".into(), "broadcast"));
        }
        for (allowed, denied, text) in &targets {
            for round in 0..2 {
                let text = format!("{text}{round}");
                let before = stage.b.counters()?;
                tell(&stage.a, &from(&stage.a, v4), allowed, &text, 1)?;
                hears(&ears, &text)?;
                hears(&plain, &text)?;
                tell(&stage.a, &from(&stage.a, v4), denied, &text, 1)?;
                hears(&other_plain, &text)?;
                stage.refused(&before, &[(DENIED, 2)])?;
                assert_eq!((&stage.b.counters()? - &before).verdicts_in("allowed"), 1, "{text} over {allowed}");
                assert_eq!((heard(&deaf, &text), heard(&other_ears, &text)), (0, 0), "{text}");
            }
        }
        // What another process of the same host says comes around to both, and is no more trusted.
        let before = stage.b.counters()?;
        tell(&stage.plain, &from(&stage.b, v4), &to(5000), "here", 1)?;
        hears(&plain, "here")?;
        stage.refused(&before, &[(DENIED, 2)])?;
        assert_eq!((heard(&ears, "here"), heard(&deaf, "here")), (0, 0));
        // And on the way out.
        join[1] = if v4 { GROUPS[0] } else { GROUPS[1] };
        let remote = [
            hear(&stage.a, &[&[first.as_str()], &join[..]].concat())?,
            hear(&stage.a, &[&[second.as_str()], &join[..]].concat())?,
        ];
        let before = stage.b.counters()?;
        tell(&stage.ears, &from(&stage.b, v4), &to(5000), "out", 1)?;
        hears(&remote[0], "out")?;
        hears(&plain, "out")?;
        // The PUs themselves hear it come around.
        stage.refused(&before, &[(DENIED, 2)])?;
        let before = stage.b.counters()?;
        let refused: serde_json::Value =
            stage.ears.tool(&["tell", &to(5001), "--from", &from(&stage.b, v4), "--text", "out"])?;
        // Once on its way to the network, and once on its way around to this host.
        stage.refused(&before, &[(DENIED_OUT, 2)])?;
        assert_eq!(heard(&remote[1], "out") + heard(&other_plain, "out"), 0, "{refused}");
    }
    Ok(())
}

#[test]
fn of_sockets_that_share_a_port_each_pu_is_judged() -> Result<()> {
    const COUNT: usize = 40;
    let stage = Stage::new("shared")?;
    for (at, v4) in [("0.0.0.0:5000", true), ("[::]:5000", false)] {
        let from = stage.a.ips()[usize::from(!v4)].to_string();
        let to = if v4 { stage.b.socket_v4(5000) } else { stage.b.socket_v6(5000) };
        let ears = hear(&stage.ears, &[at, "--group"])?;
        let deaf = hear(&stage.deaf, &[at, "--group"])?;
        let plain = hear(&stage.plain, &[at, "--group"])?;
        let before = stage.b.counters()?;
        tell(&stage.a, &from, &to, "shared", COUNT)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        let denied = loop {
            let denied = (&stage.b.counters()? - &before).verdicts_in("protocol_denied") as usize;
            if heard(&ears, "shared") + heard(&plain, "shared") + denied == COUNT {
                break denied;
            }
            ensure!(Instant::now() < deadline, "{} + {} + {denied}", heard(&ears, "shared"), heard(&plain, "shared"));
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(denied > 0 && heard(&ears, "shared") > 0 && heard(&plain, "shared") > 0, "each has its share");
        assert_eq!(heard(&deaf, "shared"), 0);
        drop(plain);
        drop(deaf);
        // A program of the group chooses the one who may not hear, whoever was looked up.
        let chosen = hear(&stage.deaf, &[at, "--choose", "1"])?;
        let before = stage.b.counters()?;
        tell(&stage.a, &from, &to, "chosen", COUNT)?;
        stage.refused(&before, &[(DENIED, COUNT as i64)])?;
        assert_eq!(heard(&ears, "chosen") + heard(&chosen, "chosen"), 0);
    }
    Ok(())
}

#[test]
fn fragments_follow_their_first() -> Result<()> {
    let stage = Stage::new("fragments")?;
    let (from, long) = (stage.b.v4().to_string(), "x".repeat(1900));
    stage.b.exec(&["ip", "link", "set", "eth0", "mtu", "600"])?.ok()?;
    let far = [hear(&stage.a, &["0.0.0.0:5000"])?, hear(&stage.a, &["0.0.0.0:5001"])?];
    let before = stage.b.counters()?;
    tell(&stage.ears, &from, &stage.a.socket_v4(5000), &long, 1)?;
    hears(&far[0], &long)?;
    stage.refused(&before, &[])?;
    // Where the first may not leave, none does: they wait for a peer that says who it is, and there is none.
    let capture = stage.a.capture("eth0", "ip[6:2] & 0x3fff != 0")?;
    stage.ears.tool::<serde_json::Value>(&["tell", &stage.a.socket_v4(5001), "--from", &from, "--text", &long])?;
    stage.refused(&before, &[(NOBODY_OUT, 1)])?;
    assert_eq!(capture.finish()?.0.len(), 0);
    Ok(())
}

#[test]
fn a_listener_that_was_not_judged_does_not_answer() -> Result<()> {
    let stage = Stage::new("chosen")?;
    for (at, v4) in [("0.0.0.0:5000", true), ("[::]:5000", false)] {
        let to = if v4 { stage.b.socket_v4(5000) } else { stage.b.socket_v6(5000) };
        let ears = hear(&stage.ears, &[at, "--tcp", "--group"])?;
        assert_eq!(stage.a.connect(&to, &[])?.outcome, Outcome::Ok);
        hears(&ears, "")?;
        for (place, name) in [(&*stage.deaf, "deaf"), (&*stage.plain, "plain")] {
            let chosen = hear(place, &[at, "--tcp", "--choose", "1"])?;
            let before = stage.b.counters()?;
            // By its hash each is for one of the two; by the program for the second.
            let attempts = stage.a.connect_many(&to, &["--count", "12", "--parallel", "--timeout", "400"])?;
            let ok = attempts.iter().filter(|attempt| attempt.outcome == Outcome::Ok).count();
            let counted = &stage.b.counters()? - &before;
            assert!(counted.verdicts_out("other_listener") > 0, "{name}: {:?}", counted.refusals());
            if name == "deaf" {
                assert_eq!(ok, 0, "{attempts:?}");
                assert_eq!(heard(&chosen, ""), 0, "{}", chosen.stdout());
            } else {
                // Unmanaged processes hear what was judged to be theirs, and nothing else.
                assert_eq!(heard(&chosen, ""), ok);
                assert!(ok < attempts.len());
            }
        }
        assert_eq!(heard(&ears, ""), 1);
    }
    Ok(())
}
