//! Floods of every kind: those who know each other go on, strangers who are friends still meet, nothing grows, and the counters
//! say exactly what it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::abi::PIN_DIR;
use common::shield::SOURCES;
use enforcer_user::map_write::Maps;
use ring::digest::{SHA256, digest};
use tests::{Counters, Flood, Host, Outcome, Pair, Recorded};

const PORT: u16 = 8020;
/// Frames of one flood.
const FRAMES: u64 = 6_000;
/// A second: fast enough to be far beyond every budget, slow enough that none is lost on its way.
const RATE: u64 = 12_000;
/// First contacts of one source, and all sources, that the server's agent is shown a second.
const BUDGET: i64 = 50;
/// Its memory may grow by this much, MiB, through floods whose like it has seen: its log of refusals and its groups of records are
/// full by then, or as full as they get.
const GROWTH: f64 = 6.0;

/// Floods that leave most behind: what they are made of reaches the agent, and everybody is another.
const AGAIN: [&str; 2] = ["syn", "hello_spoofed"];

/// The server's enforcer has little patience with strangers.
fn little_patience(xdp: &str) -> String {
    format!(
        "[datapath]\nxdp = \"{xdp}\"\nhello_budget = {BUDGET}\nhello_burst = {BUDGET}\nhello_load = {BUDGET}\nmax_flows = 4096\n"
    )
}

/// What is to come of each flood: by its name, the reasons for which all its frames are refused, and how many of them may be
/// answered, be they ever so many.
const EXPECTED: [(&str, &[&str], i64); 12] = [
    ("syn", &["no_identity"], 0),
    ("syn_option", &["hello_malformed"], 0),
    ("replayed_resume", &["resume_replayed"], SOME),
    ("forged_resume", &["resume_mac"], 0),
    ("unknown_resume", &["unknown_session"], SOME),
    ("hello", &["hello_tampered", "hello_budget", "challenged"], SOME),
    ("hello_spoofed", &["hello_tampered", "hello_budget", "challenged", "ring_full"], i64::MAX),
    ("hello_signature", &["credential_signature", "hello_budget", "challenged"], SOME),
    ("confirm", &["no_flow"], 0),
    ("datagram_hello", &["hello_tampered", "hello_budget", "challenged"], SOME),
    ("datagram_hello_spoofed", &["hello_tampered", "hello_budget", "challenged", "ring_full"], i64::MAX),
    ("fragments", &["fragment"], 0),
];
/// The burst, and the budget of as many seconds as a flood lasts on a slow machine.
const SOME: i64 = 10 * BUDGET;
/// Late segments of friends during one flood, at most: there are hundreds of connections.
const LATE: i64 = 5;

#[test]
fn floods_are_refused_by_their_reasons_and_disturb_nobody_without_xdp() -> Result<()> {
    under_every_flood("off")
}

#[test]
fn floods_are_refused_by_their_reasons_and_disturb_nobody_with_xdp() -> Result<()> {
    under_every_flood("native")
}

fn under_every_flood(xdp: &str) -> Result<()> {
    let pair = Pair::with_each(&format!("flood{xdp}"), "", &little_patience(xdp))?;
    let _server = pair.server.serve(&["--quiet", "--listen", &format!("[::]:{PORT}")])?;
    let mut ears = pair.server.spawn_tool(&["hear", "--echo", &format!("[::]:{PORT}")])?;
    ears.wait_for_line("READY", Duration::from_secs(5))?;
    let mallory = pair.lab.host("mallory")?;
    let recorded = Recorded::at(&pair.b, PORT, || pair.introduce(PORT))?;
    let forged = recorded.with_wrong_signature(|credential| {
        Ok(*digest(&SHA256, credential).as_ref().first_chunk().context("thirty-two bytes")?)
    })?;
    pair.settled()?;
    let maps = Maps::open(&pair.b.bpffs().join(PIN_DIR).join("maps"))?;
    let pid = pair.b.enforcer_pid().context("the server's enforcer has no process")?;
    let floods = Flood::all(&recorded, &forged, mallory.v4());
    assert_eq!(floods.iter().map(|flood| flood.name).collect::<Vec<_>>(), EXPECTED.map(|(name, ..)| name));
    for flood in &floods {
        under(&pair, &mallory, flood, &maps).with_context(|| format!("{} with xdp {xdp}", flood.name))?;
    }
    let before = resident(pid)?;
    for flood in floods.iter().filter(|flood| AGAIN.contains(&flood.name)) {
        under(&pair, &mallory, flood, &maps).with_context(|| format!("{} once more", flood.name))?;
    }
    let grown = resident(pid)? - before;
    ensure!(grown < GROWTH, "the agent has grown by {grown} MiB");
    Ok(())
}

/// One flood, and what goes on meanwhile.
fn under(pair: &Pair, mallory: &Host, flood: &Flood, maps: &Maps) -> Result<()> {
    let expected = EXPECTED.iter().find(|(name, ..)| *name == flood.name);
    let (_, reasons, answered) = expected.with_context(|| format!("nothing is expected of {}", flood.name))?;
    let (client, server) = (pair.a.counters()?, pair.b.counters()?);
    let mut flooding = flood.begin(mallory, FRAMES, RATE, Duration::from_secs(20), &[])?;
    // Once in any case, and then as long as it lasts.
    loop {
        meanwhile(pair)?;
        let flows = maps.flows.entries()?.len();
        ensure!(flows < 200, "{flows} flows are in the table");
        if flooding.is_over(Duration::ZERO)? {
            break;
        }
    }
    let sent = i64::try_from(flooding.sent()?)?;
    ensure!(sent == FRAMES as i64, "only {sent} were sent");
    let since = |host: &Host, before: &Counters| Ok::<_, anyhow::Error>(&host.counters()? - before);
    // What the agent refuses is counted when it comes to it.
    let mut refused = 0;
    for _ in 0..100 {
        let (client, server) = (since(&pair.a, &client)?, since(&pair.b, &server)?);
        // Friends were asked for cookies too, and had them.
        refused = reasons.iter().map(|reason| server.verdicts_in(reason)).sum::<i64>() - client.packets_in("challenge");
        if refused >= sent {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let (client, server) = (since(&pair.a, &client)?, since(&pair.b, &server)?);
    // Where a flood is refused as late segments are, so are friends' late segments.
    let late = if reasons.contains(&"no_flow") { LATE } else { 0 };
    ensure!((sent..=sent + late).contains(&refused), "{refused} of {sent} were refused: {:?}", server.refusals());
    ensure!(is_late_at_most(&client.refusals()), "friends were refused: {:?}", client.refusals());
    let named = |name: &str| reasons.iter().any(|reason| name.contains(&format!("\"{reason}\"")));
    let others: Vec<_> = server.refusals().into_iter().filter(|(name, _)| !named(name)).collect();
    // A first contact may be asked for a cookie under any flood of first contacts, and a little after it.
    let others = others.into_iter().filter(|(name, _)| !name.contains("challenged")).collect();
    ensure!(is_late_at_most(&others), "refused for other reasons: {others:?}");
    let answers = server.packets_out("retry") + server.packets_out("challenge") - client.packets_in("challenge");
    ensure!(answers <= *answered, "{answers} answers");
    for (map, entries, capacity) in maps.fill()? {
        let bounded =
            if map == "HELLO_SOURCES" { entries <= SOURCES.into() } else { entries < u64::from(capacity) / 2 };
        ensure!(bounded, "{map} holds {entries} of {capacity}");
    }
    pair.settled_within(Duration::from_secs(10))
}

/// Segments that TCP sent twice on a busy machine, and that come after their connection has ended.
fn is_late_at_most(refusals: &BTreeMap<&str, i64>) -> bool {
    let late = |name: &str| ["no_flow", "unconfirmed"].iter().any(|reason| name.contains(&format!("\"{reason}\"")));
    refusals.iter().all(|(name, count)| late(name) && *count <= LATE)
}

/// Connections of those who know each other, and one of those who have forgotten.
fn meanwhile(pair: &Pair) -> Result<()> {
    let to = pair.b.socket_v4(PORT);
    let patient = ["--payload", "ping", "--timeout", "10000"];
    for attempt in pair.client.connect_many(&to, &[&patient[..], &["--count", "10"]].concat())? {
        ensure!(attempt.outcome == Outcome::Ok, "a known pair: {attempt:?}");
    }
    pair.a.enforcer(&["peers", "--forget"])?.ok()?;
    let attempt = pair.client.connect(&to, &patient)?;
    ensure!(attempt.outcome == Outcome::Ok, "a first contact: {attempt:?}");
    Ok(())
}

/// `VmRSS` of a process, in MiB.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no figure")?.parse()?;
    Ok(kib / 1024.0)
}
