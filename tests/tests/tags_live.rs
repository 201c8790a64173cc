//! Tags that change while connections live, and PUs whose tags are not all known yet.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Fate, Host, Lab, Mitm, Outcome, Pair, Place, Proc, Segment, Way, Workload};

/// What a change may take until both ends have acted on it.
const SOON: Duration = Duration::from_secs(2);

const POLICY: &str = "  - call: allow app=client role=ok -> app=server tcp/8000-8999\n";

fn pair(name: &str) -> Result<Pair> {
    let pair = Pair::new(name)?;
    pair.a.enforcer(&["pu", "tag", "client", "--set", "role=ok"])?.ok()?;
    pair.decree(POLICY)?;
    for host in [&pair.a, &pair.b] {
        until("the policy is read", || {
            let rules = host.enforcer(&["policy", "show"])?.stdout;
            Ok(rules.contains("role"))
        })?;
    }
    Ok(pair)
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !done()? {
        ensure!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn hold(client: &Place, to: &str, ping: &str) -> Result<Proc> {
    let mut process = client.spawn_tool(&["hold", to, "--count", "2", "--ping", ping])?;
    let ready = process.wait_for_line("READY", Duration::from_secs(5))?;
    ensure!(ready == r#"READY {"open":2,"failed":0}"#, "{to}: {ready}");
    Ok(process)
}

/// Silent and talking connections over both families.
fn hold_all(client: &Place, addresses: &[String]) -> Result<Vec<Proc>> {
    let mut held = Vec::new();
    for to in addresses {
        held.push(hold(client, to, "0")?);
        held.push(hold(client, to, "10")?);
    }
    Ok(held)
}

fn assert_cut(held: &mut [Proc], since: Instant) -> Result<()> {
    for process in held {
        let left = SOON.saturating_sub(since.elapsed());
        ensure!(process.wait(left)?.is_some(), "not cut in time: {}", process.stdout());
        let said = process.stdout();
        ensure!(said.matches(r#""how":"reset""#).count() == 2, "{said}");
    }
    Ok(())
}

fn assert_alive(held: &mut [Proc]) -> Result<()> {
    for process in held {
        ensure!(process.wait(Duration::ZERO)?.is_none(), "{}", process.stdout());
    }
    Ok(())
}

/// Tags of the peer's end in every live flow.
fn peer_tags(host: &Host) -> Result<Vec<String>> {
    let flows: Value = host.enforcer_json(&["flows"])?;
    let all = flows["flows"]
        .as_array()
        .context("flows")?
        .iter()
        .filter(|flow| flow["state"] == "established" || flow["state"] == "confirming");
    Ok(all.map(|flow| flow["peer_tags"].to_string()).collect())
}

#[test]
fn a_tag_that_is_taken_away_cuts_at_both_ends() -> Result<()> {
    let pair = pair("untag")?;
    let server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mut held = hold_all(&pair.client, &pair.addresses(8020))?;
    let begin = Instant::now();
    pair.a.enforcer(&["pu", "tag", "client", "--unset", "role"])?.ok()?;
    assert_cut(&mut held, begin)?;
    until("the server's ends are closed", || {
        Ok(server.events()?.iter().filter(|event| event.event == "close" && event.how == "reset").count() == 8)
    })?;
    // Each end knows why: its own tags changed here, the peer's were heard of there.
    let (here, there) = (pair.a.enforcer_log(), pair.b.enforcer_log());
    assert!(here.contains("tags changed") && here.contains("role=ok (user)"), "{here}");
    assert!(there.contains("the tags of a peer's PU changed"), "{there}");
    let mut revoked = 0;
    for host in [&pair.a, &pair.b] {
        revoked += host.records()?.iter().filter(|record| record.event == "cut" && record.reason == "revoked").count();
    }
    assert!(revoked >= 8, "each of eight connections was revoked at one end at least: {revoked}");
    for to in pair.addresses(8020) {
        let attempt = pair.client.connect(&to, &["--timeout", "3000"])?;
        assert_eq!(attempt.outcome, Outcome::Refused, "{attempt:?}");
    }
    assert!(pair.b.counters()?.packets_in("update") > 0);
    assert_eq!(pair.b.counters()?.verdicts_in("update_void"), 0);
    // And given back.
    pair.a.enforcer(&["pu", "tag", "client", "--set", "role=ok"])?.ok()?;
    for to in pair.addresses(8020) {
        let attempt = pair.client.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
        assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
    }
    Ok(())
}

#[test]
fn a_tag_of_the_server_cuts_as_well() -> Result<()> {
    let pair = pair("untagserver")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mut held = hold_all(&pair.client, &pair.addresses(8020))?;
    let begin = Instant::now();
    pair.b.enforcer(&["pu", "tag", "server", "--set", "app=other"])?.ok()?;
    assert_cut(&mut held, begin)?;
    assert!(pair.a.enforcer_log().contains("the tags of a peer's PU changed"), "{}", pair.a.enforcer_log());
    for to in pair.addresses(8020) {
        let attempt = pair.client.connect(&to, &["--timeout", "3000"])?;
        assert_eq!(attempt.outcome, Outcome::Refused, "{attempt:?}");
    }
    Ok(())
}

#[test]
fn a_change_that_changes_no_verdict_is_seen_at_both_ends_and_cuts_nothing() -> Result<()> {
    let pair = pair("retag")?;
    let server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mut held = hold_all(&pair.client, &pair.addresses(8020))?;
    // As often as one likes, in quick succession.
    for version in 1..=5 {
        pair.a.enforcer(&["pu", "tag", "client", "--set", &format!("version={version}")])?.ok()?;
    }
    pair.b.enforcer(&["pu", "tag", "server", "--set", "tier=gold"])?.ok()?;
    let seen = until("both ends see the new tags", || {
        let at_server = peer_tags(&pair.b)?;
        let at_client = peer_tags(&pair.a)?;
        Ok(at_server.len() == 8
            && at_server.iter().all(|tags| tags.contains("version=5"))
            && at_client.len() == 8
            && at_client.iter().all(|tags| tags.contains("tier=gold")))
    });
    seen.with_context(|| {
        let logs = [&pair.a, &pair.b].map(|host| format!("{:?}\n{}", peer_tags(host), host.enforcer_log()));
        logs.join("\n")
    })?;
    let talked = server.received()?;
    until("talk goes on", || Ok(server.received()? > talked))?;
    assert_alive(&mut held)?;
    // Told and heard: the next connection needs no introduction.
    until("the next connection resumes", || {
        let attempt = pair.client.connect(&pair.b.socket_v4(8020), &["--payload", "ping"])?;
        ensure!(attempt.outcome == Outcome::Ok, "{attempt:?}");
        let records = pair.a.records()?;
        Ok(records.iter().rev().find(|record| record.event == "end").is_some_and(|record| record.path == "resume"))
    })?;
    // A restart forgets nothing of it.
    for host in [&pair.a, &pair.b] {
        host.kill9_enforcer()?;
        host.restart_enforcer()?;
    }
    assert!(peer_tags(&pair.b)?.iter().all(|tags| tags.contains("version=5")), "{:?}", peer_tags(&pair.b)?);
    assert_alive(&mut held)?;
    let begin = Instant::now();
    pair.a.enforcer(&["pu", "tag", "client", "--unset", "role"])?.ok()?;
    assert_cut(&mut held, begin)?;
    for host in [&pair.a, &pair.b] {
        assert_eq!(host.counters()?.verdicts_in("update_void"), 0, "{}", host.name());
    }
    Ok(())
}

#[test]
fn a_silent_connection_hears_of_it_too() -> Result<()> {
    let pair = pair("silenttags")?;
    let server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mut held = Vec::new();
    for to in pair.addresses(8020) {
        held.push(hold(&pair.client, &to, "0")?);
    }
    pair.a.enforcer(&["pu", "tag", "client", "--set", "version=2"])?.ok()?;
    until("the server's end sees it", || {
        let tags = peer_tags(&pair.b)?;
        Ok(tags.len() == 4 && tags.iter().all(|tags| tags.contains("version=2")))
    })?;
    assert_alive(&mut held)?;
    // The network loses every other packet: the news come through.
    pair.b.set_loss(50.0)?;
    let begin = Instant::now();
    pair.a.enforcer(&["pu", "tag", "client", "--set", "version=3"])?.ok()?;
    until("the server's end sees it in spite of losses", || {
        Ok(peer_tags(&pair.b)?.iter().all(|tags| tags.contains("version=3")))
    })?;
    assert!(begin.elapsed() < SOON);
    pair.b.set_loss(0.0)?;
    pair.b.enforcer(&["pu", "tag", "server", "--set", "app=other"])?.ok()?;
    assert_cut(&mut held, Instant::now())?;
    assert_eq!(server.received()?, 0, "nothing of all this reached the listener's connections");
    Ok(())
}

#[test]
fn a_pu_behind_an_interface_tells_and_hears() -> Result<()> {
    let lab = Lab::new("iftags")?;
    lab.write_policy("pair.yaml", &format!("name: pair\nrules:\n{POLICY}"))?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let guest = a.guest("box", &[&b])?;
    a.start_enforcer("datapath.interfaces = [\"auto\"]")?;
    b.start_enforcer("")?;
    a.enforcer(&[
        "pu",
        "add",
        "--interface",
        guest.interface(),
        "--name",
        "box",
        "--tag",
        "app=client",
        "--incomplete",
    ])?
    .ok()?;
    let remote = b.workload("remote", &["app=server"])?;
    let local = a.workload("local", &["app=server"])?;
    let _servers = [remote.serve(&["--listen", "[::]:8020"])?, local.serve(&["--listen", "[::]:8020"])?];
    let addresses = [b.socket_v4(8020), b.socket_v6(8020), a.socket_v4(8020), a.socket_v6(8020)];
    let mut waiting = guest.spawn_tool(&["connect", &addresses[0], "--payload", "ping", "--timeout", "5000"])?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(waiting.wait(Duration::ZERO)?.is_none(), "did not wait: {}", waiting.stdout());
    a.enforcer(&["pu", "tag", "box", "--set", "role=ok", "--complete"])?.ok()?;
    ensure!(waiting.wait(Duration::from_millis(600))?.is_some(), "by TCP's timer: {}", a.enforcer_log());
    assert!(waiting.stdout().contains(r#""outcome":"ok""#), "{}", waiting.stdout());
    let mut held = hold_all(&guest, &addresses)?;
    a.enforcer(&["pu", "tag", "box", "--set", "version=2"])?.ok()?;
    b.enforcer(&["pu", "tag", "remote", "--set", "tier=gold"])?.ok()?;
    until("all ends see it", || {
        let (here, there) = (peer_tags(&a)?.join(" "), peer_tags(&b)?.join(" "));
        // Eight ends in the guest and eight of its neighbour here, eight remote ends there.
        let count = (here.matches("tier=gold").count(), here.matches("version=2").count());
        Ok(count.0 >= 8 && count.1 >= 8 && there.matches("version=2").count() >= 8)
    })
    .with_context(|| format!("{:?}\n{:?}", peer_tags(&a), peer_tags(&b)))?;
    assert_alive(&mut held)?;
    let begin = Instant::now();
    a.enforcer(&["pu", "tag", "box", "--unset", "role"])?.ok()?;
    assert_cut(&mut held, begin)?;
    assert!(b.enforcer_log().matches("the tags of a peer's PU changed").count() >= 2, "{}", b.enforcer_log());
    Ok(())
}

/// The news that went by, as they were sent.
fn news(mitm: &Mitm) -> Vec<Segment> {
    let sent = mitm.seen().into_iter().filter(|seen| seen.way == Way::FromHost).map(|seen| seen.original);
    let is_news =
        |segment: &Segment| segment.identity().is_some_and(|option| option.packet_type() == common::wire::UPDATE);
    sent.filter(|segment| is_news(segment) && !segment.payload.is_empty()).collect()
}

#[test]
fn news_can_be_neither_repeated_nor_forged_nor_kept_back_for_long() -> Result<()> {
    let pair = pair("newsattack")?;
    let server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mitm = pair.a.man_in_the_middle()?;
    let mut version = 1;
    for to in pair.addresses(8020) {
        let mut held = vec![hold(&pair.client, &to, "0")?];
        let mut retag = |deaf: Duration| -> Result<Segment> {
            version += 1;
            let wanted = format!("version={version}");
            let since = Instant::now();
            mitm.play(move |_, segment: &mut Segment| {
                let update = segment.identity().is_some_and(|option| option.packet_type() == common::wire::UPDATE);
                if update && since.elapsed() < deaf { Fate::Drop } else { Fate::Forward }
            });
            pair.a.enforcer(&["pu", "tag", "client", "--set", &wanted])?.ok()?;
            until(&wanted, || {
                let tags = peer_tags(&pair.b)?;
                Ok(!tags.is_empty() && tags.iter().all(|tags| tags.contains(&wanted)))
            })?;
            news(&mitm).pop().context("no news went by")
        };
        let old = retag(Duration::ZERO)?;
        let new = retag(Duration::from_millis(700))?;
        let before = pair.b.counters()?;
        let mut attacks = vec![("an older one", old)];
        for (what, bit) in [("handle", 6), ("index", 9), ("MAC", 19)] {
            let mut segment = new.clone();
            segment.identity_mut().context("an option")?[bit] ^= 1;
            attacks.push((what, segment));
        }
        let mut segment = new.clone();
        *segment.payload.last_mut().context("a credential")? ^= 1;
        attacks.push(("credential", segment));
        for (count, (what, segment)) in (1..).zip(&attacks) {
            mitm.inject(Way::FromHost, segment)?;
            until(what, || Ok((&pair.b.counters()? - &before).verdicts_in("update_void") == count))?;
        }
        // The newest once more is only answered once more.
        mitm.inject(Way::FromHost, &new)?;
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!((&pair.b.counters()? - &before).verdicts_in("update_void"), attacks.len() as i64);
        let wanted = format!("version={version}");
        assert!(peer_tags(&pair.b)?.iter().all(|tags| tags.contains(&wanted)), "{:?}", peer_tags(&pair.b)?);
        assert_alive(&mut held)?;
        drop(held);
        until("the connections are closed", || Ok(peer_tags(&pair.b)?.is_empty()))?;
    }
    assert_eq!(server.received()?, 0, "none of it reached the listener's connections");
    Ok(())
}

#[test]
fn neighbours_on_one_host_need_no_message() -> Result<()> {
    let pair = pair("sametags")?;
    let neighbour = pair.a.workload("neighbour", &["app=server"])?;
    let _server = neighbour.serve(&["--listen", "[::]:8020"])?;
    let here = ["127.0.0.1:8020".to_owned(), "[::1]:8020".to_owned(), pair.a.socket_v4(8020), pair.a.socket_v6(8020)];
    let mut held = hold_all(&pair.client, &here)?;
    pair.a.enforcer(&["pu", "tag", "client", "--set", "version=2"])?.ok()?;
    until("both ends see it", || {
        Ok(peer_tags(&pair.a)?.iter().filter(|tags| tags.contains("version=2")).count() == 16)
    })?;
    assert_alive(&mut held)?;
    let begin = Instant::now();
    pair.a.enforcer(&["pu", "tag", "neighbour", "--set", "app=other"])?.ok()?;
    assert_cut(&mut held, begin)
}

#[test]
fn tags_that_cannot_be_are_refused_and_change_nothing() -> Result<()> {
    let pair = pair("badtags")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mut held = hold_all(&pair.client, &pair.addresses(8020))?;
    let big = format!("big={}", "x".repeat(1000));
    for (args, word) in [
        (vec!["--set", "@sys:uid=0"], "set by the enforcer itself"),
        (vec!["--set", big.as_str()], "too large"),
        (vec!["--unset", "nothing"], "no tag `nothing`"),
        (vec!["--set", "=x"], "KEY=VALUE"),
        (vec![], "--unset"),
    ] {
        let output = pair.a.enforcer(&[&["pu", "tag", "client"], args.as_slice()].concat())?;
        assert_ne!(output.code(), 0, "{args:?}");
        assert!(output.stderr.contains(word), "{args:?}: {}", output.stderr);
    }
    let output = pair.a.enforcer(&["pu", "tag", "nobody", "--set", "a=b"])?;
    assert!(output.stderr.contains("no PU `nobody`"), "{}", output.stderr);
    assert_alive(&mut held)?;
    for to in pair.addresses(8020) {
        assert_eq!(pair.client.connect(&to, &["--payload", "ping"])?.outcome, Outcome::Ok);
    }
    Ok(())
}

fn add_incomplete(host: &Host, name: &str, tag: &str) -> Result<Workload> {
    let workload = host.plain_workload(name)?;
    let cgroup = workload.cgroup().to_string_lossy().into_owned();
    host.enforcer(&["pu", "add", "--cgroup", &cgroup, "--name", name, "--tag", tag, "--incomplete"])?.ok()?;
    Ok(workload)
}

#[test]
fn the_first_connections_of_an_incomplete_pu_wait_for_its_tags() -> Result<()> {
    let pair = pair("incomplete")?;
    let client = add_incomplete(&pair.a, "late", "app=client")?;
    let server = add_incomplete(&pair.b, "lateserver", "app=none")?;
    let _server = server.serve(&["--listen", "[::]:8030"])?;
    let mut waiting = Vec::new();
    for to in pair.addresses(8030) {
        waiting.push(client.spawn_tool(&["connect", &to, "--payload", "ping", "--timeout", "5000"])?);
    }
    std::thread::sleep(Duration::from_millis(300));
    for process in &mut waiting {
        ensure!(process.wait(Duration::ZERO)?.is_none(), "did not wait: {}", process.stdout());
    }
    let begin = Instant::now();
    pair.a.enforcer(&["pu", "tag", "late", "--set", "role=ok", "--complete"])?.ok()?;
    pair.b.enforcer(&["pu", "tag", "lateserver", "--set", "app=server", "--complete"])?.ok()?;
    for process in &mut waiting {
        ensure!(process.wait(Duration::from_secs(3))?.is_some(), "{}", process.stdout());
        let said = process.stdout();
        assert!(said.contains(r#""outcome":"ok""#), "{said}\n{}\n{}", pair.a.enforcer_log(), pair.b.enforcer_log());
    }
    assert!(begin.elapsed() < Duration::from_millis(600), "by TCP's timer: {:?}", begin.elapsed());
    Ok(())
}

#[test]
fn an_incomplete_pu_is_refused_in_the_end() -> Result<()> {
    let pair = pair("neverdone")?;
    let client = add_incomplete(&pair.a, "never", "app=client")?;
    let server = add_incomplete(&pair.b, "neverserver", "app=server")?;
    let _server = server.serve(&["--listen", "[::]:8030"])?;
    for (who, what) in [(&client, "out"), (&pair.client, "in")] {
        for to in pair.addresses(8030) {
            let attempt = who.connect(&to, &["--timeout", "5000"])?;
            assert_eq!(attempt.outcome, Outcome::Refused, "{what}: {attempt:?}");
            assert!((1_500_000..3_500_000).contains(&attempt.micros), "{what}: {attempt:?}");
        }
    }
    assert_eq!(pair.a.counters()?.verdicts_out("pu_incomplete"), 2, "{:?}", pair.a.counters()?.refusals());
    assert_eq!(pair.b.counters()?.verdicts_in("pu_incomplete"), 2, "{:?}", pair.b.counters()?.refusals());
    let told = pair.a.records()?.into_iter().any(|record| record.reason == "pu_incomplete" && record.peer_reason);
    assert!(told, "the client's enforcer was told why the server refused");
    Ok(())
}
