//! First contacts that a path refuses in band, and that the enforcers make over UDP.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::segment::SYN;
use tests::{Attempt, Counters, Fate, Guest, Host, Outcome, Pair, Segment, Way};

use crate::{PORT, Stage, outcomes, reasons, told};

/// The port of the enforcers in the lab: not the default, so that it is seen to be heeded.
const UDP: u16 = 9753;
const ON: &str = "[datapath]\nfallback = \"udp\"\nfallback_port = 9753\ninterfaces = [\"auto\"]\n";
const OFF: &str = "[datapath]\ninterfaces = [\"auto\"]\n";
const PATIENCE: &str = "4500";
/// TCP sends a SYN again after one second; what has come by then and a half did not wait for the third.
const REPEATED: [u64; 2] = [900_000, 2_500_000];

/// Refuses SYNs that carry data, on the way to the server or on both.
fn refuses(both: bool) -> impl FnMut(Way, &mut Segment) -> Fate + Send + 'static {
    move |way, segment| {
        let refused = segment.flags() & SYN != 0 && !segment.payload.is_empty();
        if refused && (both || way == Way::FromHost) { Fate::Drop } else { Fate::Forward }
    }
}

fn hellos(counted: &Counters, what: &str) -> i64 {
    counted.get(&format!("enforcer_out_of_band_hellos_total{{what=\"{what}\"}}"))
}

/// What became of the out-of-band HELLOs of the client's host, in the order of their life, and how many the server's took.
fn fate(counted: &[Counters; 2]) -> [i64; 5] {
    let client = ["sent", "answered", "refused", "unanswered"].map(|what| hellos(&counted[0], what));
    [client[0], client[1], client[2], client[3], hellos(&counted[1], "received")]
}

fn assert_made(made: &[Attempt], within: [u64; 2]) {
    for attempt in made {
        assert_eq!((attempt.outcome, attempt.reply.as_str()), (Outcome::Ok, "ping"), "{attempt:?}");
        assert!((within[0]..within[1]).contains(&attempt.micros), "{} µs", attempt.micros);
    }
}

#[track_caller]
fn assert_nothing_refused(counted: &[Counters; 2]) {
    assert_eq!(counted.each_ref().map(reasons), [Vec::<String>::new(), Vec::new()]);
}

#[test]
fn a_first_contact_that_is_refused_in_band_is_made_over_udp() -> Result<()> {
    for (name, both) in [("mbudp", false), ("mbudpboth", true)] {
        let stage = Stage::with_each(name, ON, ON)?;
        stage.middlebox.play(refuses(both));
        let (made, counted) = stage.attempts(PATIENCE)?;
        assert_made(&made, REPEATED);
        assert_nothing_refused(&counted);
        assert_eq!(fate(&counted), [2, 2, 0, 0, 2], "{}", stage.pair.a.enforcer_log());
        // HELLO, its answer and CONFIRM, over each family.
        assert_eq!(stage.middlebox.datagrams(UDP).len(), 6);
        assert_eq!(counted[1].packets_in("resume"), 2);
        let credentials = |seen: &&tests::Sighting| seen.forwarded.is_some() && seen.original.flags() & SYN != 0;
        for seen in stage.middlebox.seen().iter().filter(credentials) {
            assert!(seen.original.payload.is_empty(), "a credential passed in band: {seen:?}");
        }
        // Who has met needs neither data on a SYN nor UDP.
        stage.middlebox.play(refuses(both));
        let (made, counted) = stage.attempts(PATIENCE)?;
        assert_made(&made, [0, 900_000]);
        assert_nothing_refused(&counted);
        assert_eq!((fate(&counted), stage.middlebox.datagrams(UDP).len()), ([0; 5], 0));
        // Nor does another PU lose a second: its first contact goes both ways at once.
        let other = stage.pair.a.workload("other", &["app=client"])?;
        let before = stage.counters()?;
        let made = other.connect(&stage.pair.addresses(PORT)[0], &["--payload", "ping", "--timeout", PATIENCE])?;
        assert_made(&[made], [0, 900_000]);
        let counted = stage.since(&before)?;
        assert_nothing_refused(&counted);
        assert_eq!(fate(&counted), [1, 1, 0, 0, 1]);
        // The connections that were made so say it in their records.
        stage.pair.settled()?;
        std::thread::sleep(Duration::from_millis(2500));
        let records = std::fs::read_to_string(stage.pair.a.flow_records())?;
        let told = records.lines().filter(|line| line.contains(r#""path":"out_of_band""#)).count();
        assert!(told > 0, "{records}");
    }
    Ok(())
}

#[test]
fn where_it_passes_in_band_again_nothing_goes_over_udp() -> Result<()> {
    let stage = Stage::with_each("mbheals", ON, ON)?;
    stage.middlebox.play(refuses(true));
    let (made, _) = stage.attempts(PATIENCE)?;
    assert_made(&made, REPEATED);
    stage.middlebox.play(|_, _| Fate::Forward);
    // The first one still goes both ways; with the answer that comes in band that ends, unless the other one was faster.
    let mut sent = Vec::new();
    for name in ["second", "third", "fourth", "fifth"] {
        let other = stage.pair.a.workload(name, &["app=client"])?;
        let before = stage.counters()?;
        let made = other.connect(&stage.pair.addresses(PORT)[0], &["--payload", "ping", "--timeout", PATIENCE])?;
        assert_made(&[made], [0, 900_000]);
        let counted = stage.since(&before)?;
        assert_nothing_refused(&counted);
        sent.push(hellos(&counted[0], "sent"));
    }
    assert!(sent[0] == 1 && sent.is_sorted_by(|before, after| before >= after) && sent[3] == 0, "{sent:?}");
    Ok(())
}

#[test]
fn another_pu_of_a_host_that_was_met_is_met_over_udp_too() -> Result<()> {
    let stage = Stage::with_each("mbsecond", ON, ON)?;
    stage.middlebox.play(refuses(true));
    let (made, _) = stage.attempts(PATIENCE)?;
    assert_made(&made, REPEATED);
    // The session is there, so this is no first contact: the answer alone would carry a credential.
    let second = stage.pair.b.workload("second", &["app=server", "number=2"])?;
    let _server = second.serve(&["--listen", "[::]:8021"])?;
    let before = stage.counters()?;
    let to = stage.pair.addresses(8021);
    let made = stage.pair.client.connect(&to[0], &["--payload", "ping", "--timeout", PATIENCE])?;
    assert_made(&[made], [900_000, 3_500_000]);
    assert_eq!(fate(&stage.since(&before)?), [1, 1, 0, 0, 1]);
    Ok(())
}

#[test]
fn without_the_fallback_at_both_ends_it_is_as_before() -> Result<()> {
    let refused = |counted: &[Counters; 2]| counted.each_ref().map(reasons);
    // Nobody takes them: counted there, and answered by nothing.
    let stage = Stage::with_each("mbserveroff", ON, OFF)?;
    stage.middlebox.play(refuses(false));
    let (made, counted) = stage.attempts(PATIENCE)?;
    assert_eq!(outcomes(&made), [Outcome::Timeout; 2], "{made:?}");
    assert_eq!(refused(&counted), [vec!["hello_unanswered".to_owned()], vec!["fallback_off".to_owned()]]);
    assert_eq!(counted[0].verdicts_out("hello_unanswered"), 2);
    let [sent, answered, denied, _, received] = fate(&counted);
    assert_eq!((sent, answered, denied, received), (6, 0, 0, 0));
    assert_eq!(counted[1].verdicts_in("fallback_off"), sent);
    assert!(stage.middlebox.datagrams(UDP).iter().all(|(way, _)| *way == Way::FromHost), "an answer");
    // At another port it is the same.
    stage.pair.b.start_enforcer(&ON.replace("9753", "9754"))?;
    let (made, counted) = stage.attempts(PATIENCE)?;
    assert_eq!(outcomes(&made), [Outcome::Timeout; 2], "{made:?}");
    assert_eq!(refused(&counted)[1], ["fallback_off"]);
    drop(stage);
    // Nobody sends them.
    let stage = Stage::with_each("mbclientoff", OFF, ON)?;
    stage.middlebox.play(refuses(false));
    let (made, counted) = stage.attempts(PATIENCE)?;
    assert_eq!(outcomes(&made), [Outcome::Timeout; 2], "{made:?}");
    assert_eq!(refused(&counted), [vec!["hello_unanswered".to_owned()], vec![]]);
    assert_eq!((fate(&counted), stage.middlebox.datagrams(UDP).len()), ([0; 5], 0));
    Ok(())
}

#[test]
fn where_udp_does_not_pass_either_the_first_contact_is_unanswered() -> Result<()> {
    let stage = Stage::with_each("mbnoudp", ON, ON)?;
    stage.middlebox.play(refuses(false));
    stage.middlebox.block_udp(UDP);
    let (made, counted) = stage.attempts(PATIENCE)?;
    assert_eq!(outcomes(&made), [Outcome::Timeout; 2], "{made:?}");
    assert_eq!(counted.each_ref().map(reasons), [vec!["hello_unanswered".to_owned()], vec![]]);
    assert_eq!(counted[0].verdicts_out("hello_unanswered"), 2);
    assert_eq!(fate(&counted), [6, 0, 0, 2, 0]);
    for attempt in &made {
        told(&stage.pair.a, attempt, "hello_unanswered")?;
    }
    Ok(())
}

#[test]
fn what_policy_denies_is_denied_out_of_band_and_the_client_hears_it() -> Result<()> {
    let stage = Stage::with_each("mbdeny", ON, ON)?;
    let _server = stage.pair.server.serve(&["--listen", "[::]:9020"])?;
    stage.middlebox.play(refuses(true));
    let before = stage.counters()?;
    let to = &stage.pair.addresses(9020)[0];
    let made = stage.pair.client.connect(to, &["--payload", "ping", "--timeout", PATIENCE])?;
    assert_eq!(made.outcome, Outcome::Refused, "{made:?}");
    let counted = stage.since(&before)?;
    assert_eq!(counted.each_ref().map(reasons), [["no_rule"], ["no_rule"]]);
    assert_eq!((counted[0].verdicts_in("no_rule"), counted[1].verdicts_in("no_rule")), (1, 1));
    assert_eq!(fate(&counted), [1, 0, 1, 0, 1]);
    for host in [&stage.pair.a, &stage.pair.b] {
        told(host, &made, "no_rule")?;
    }
    let records = stage.pair.a.records()?;
    let record = records.iter().find(|record| record.local == made.local && record.reason == "no_rule");
    assert!(record.is_some_and(|record| record.peer_reason && record.path == "out_of_band"), "{records:#?}");
    Ok(())
}

/// The answer to the SYN names the server's PU, and the client's enforcer judges it before anything of the client's leaves.
#[test]
fn what_only_the_clients_policy_denies_ends_before_its_first_byte() -> Result<()> {
    let stage = Stage::with_each("mbclientdeny", ON, ON)?;
    let own = stage.pair.lab.directory().join("policy-of-the-client");
    std::fs::create_dir(&own)?;
    std::fs::write(own.join("own.yaml"), "name: own\nrules:\n  - call: allow app=client -> app=other tcp/8000-8999\n")?;
    stage.pair.a.start_enforcer(&format!("{ON}[policy]\npaths = [{own:?}]\n"))?;
    stage.middlebox.play(refuses(true));
    let before = stage.counters()?;
    let to = &stage.pair.addresses(PORT)[0];
    let made = stage.pair.client.connect(to, &["--payload", "ping", "--timeout", PATIENCE])?;
    assert_eq!(made.outcome, Outcome::Refused, "{made:?}");
    let counted = stage.since(&before)?;
    assert_eq!(counted.each_ref().map(reasons), [["no_rule"], ["no_rule"]]);
    assert_eq!(fate(&counted), [1, 1, 0, 0, 1]);
    told(&stage.pair.a, &made, "no_rule")?;
    let carried = |seen: &&tests::Sighting| seen.way == Way::FromHost && !seen.original.is_syn();
    assert!(stage.middlebox.seen().iter().filter(carried).all(|seen| seen.original.payload.is_empty()));
    Ok(())
}

/// What follows the credentials may be lost as well: it does not wait for TCP's third SYN.
#[test]
fn what_is_lost_after_the_credentials_goes_again() -> Result<()> {
    let stage = Stage::with_each("mblost", ON, ON)?;
    let (mut refuse, mut lost) = (refuses(true), 0);
    stage.middlebox.play(move |way, segment| {
        let resumed = way == Way::FromHost && segment.is_syn() && segment.payload.is_empty();
        if resumed && lost < 2 {
            lost += 1;
            return Fate::Drop;
        }
        refuse(way, segment)
    });
    let (made, counted) = stage.attempts(PATIENCE)?;
    assert_made(&made, REPEATED);
    assert_nothing_refused(&counted);
    assert_eq!(fate(&counted), [2, 2, 0, 0, 2]);
    Ok(())
}

/// Many connections to one service ask once.
#[test]
fn what_wants_to_go_to_the_same_place_asks_once() -> Result<()> {
    let stage = Stage::with_each("mbmany", ON, ON)?;
    stage.middlebox.play(refuses(true));
    for within in [REPEATED, [0, 900_000]] {
        let caller = stage.pair.a.workload(&format!("caller{}", within[0]), &["app=client"])?;
        let before = stage.counters()?;
        let to = &stage.pair.addresses(PORT)[0];
        let made = std::thread::scope(|scope| {
            let call = || caller.connect(to, &["--payload", "ping", "--timeout", PATIENCE]);
            let calls: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
            let joined = calls.into_iter().map(|call| call.join().map_err(|_| anyhow::anyhow!("a panic"))?);
            joined.collect::<Result<Vec<_>>>()
        })?;
        assert_made(&made, [0, within[1]]);
        let counted = stage.since(&before)?;
        assert_nothing_refused(&counted);
        let [sent, answered, ..] = fate(&counted);
        // One that comes just after the answer asks for itself.
        ensure!(sent == answered && (1..=2).contains(&sent), "{sent} sent, {answered} answered");
    }
    Ok(())
}

/// Behind an interface of its own, as client and as server.
#[test]
fn a_pu_behind_an_interface_is_met_over_udp_too() -> Result<()> {
    let pair = Pair::with("mbguest", ON)?;
    let add = |host: &Host, guest: &Guest, app: &str| {
        let tag = format!("app={app}");
        host.enforcer(&["pu", "add", "--interface", guest.interface(), "--name", "box", "--tag", &tag])?.ok().map(drop)
    };
    let guest = pair.b.guest("box", &[&pair.a])?;
    add(&pair.b, &guest, "server")?;
    let server = guest.serve(&["--listen", "[::]:8020"])?;
    let middlebox = pair.a.man_in_the_middle()?;
    middlebox.play(refuses(true));
    for to in guest.addresses(PORT) {
        let made = pair.client.connect(&to, &["--payload", "ping", "--timeout", PATIENCE])?;
        assert_made(&[made], REPEATED);
    }
    assert_eq!(server.accepted()?, 2);
    for host in [&pair.a, &pair.b] {
        // The guest's own stack says which groups it listens to.
        let mut refused = reasons(&host.counters()?);
        refused.retain(|reason| reason != "extension_header");
        assert_eq!(refused, Vec::<String>::new());
    }
    drop((middlebox, server));
    // The other way round: the guest calls.
    pair.decree("  - call: allow app=server -> app=client tcp/8000-8999\n")?;
    let listening = pair.client.serve(&["--listen", "[::]:8025"])?;
    let middlebox = pair.b.man_in_the_middle()?;
    middlebox.play(refuses(true));
    std::thread::sleep(Duration::from_millis(500));
    // A PU that nobody has met: the one above is known by now.
    pair.b.enforcer(&["pu", "rm", "box"])?.ok()?;
    add(&pair.b, &guest, "server")?;
    for to in [pair.a.socket_v4(8025), pair.a.socket_v6(8025)] {
        let made = guest.connect(&to, &["--payload", "ping", "--timeout", PATIENCE])?;
        assert_eq!((made.outcome, made.reply.as_str()), (Outcome::Ok, "ping"), "{made:?}");
    }
    assert_eq!(listening.accepted()?, 2);
    Ok(())
}

/// Beyond `datapath.hello_load` the sender must show that it hears what is sent to its address, as in band.
#[test]
fn under_load_an_out_of_band_hello_needs_a_cookie() -> Result<()> {
    let stage = Stage::with_each("mbcookie", ON, &format!("{ON}hello_load = 1\n"))?;
    stage.middlebox.play(refuses(true));
    let (made, counted) = stage.attempts(PATIENCE)?;
    assert_made(&made, REPEATED);
    assert_eq!(counted.each_ref().map(reasons), [vec![], vec!["challenged".to_owned()]]);
    assert_eq!(counted[1].verdicts_in("challenged"), 1);
    assert_eq!(fate(&counted), [3, 2, 0, 0, 2]);
    // A challenge is smaller than what it answers.
    let datagrams = stage.middlebox.datagrams(UDP);
    let shortest = datagrams.iter().filter(|(way, _)| *way == Way::ToHost).map(|(_, frame)| frame.len()).min();
    assert!(shortest.is_some_and(|len| len < 120), "{shortest:?}");
    Ok(())
}

/// What is forged, damaged, or sent again proves nothing and gets no answer.
#[test]
fn forged_out_of_band_hellos_are_counted_and_answered_by_nothing() -> Result<()> {
    let stage = Stage::with_each("mbforged", ON, &format!("{ON}hello_budget = 5\nhello_burst = 5\n"))?;
    stage.middlebox.play(refuses(true));
    let to = &stage.pair.addresses(PORT)[0];
    let made = stage.pair.client.connect(to, &["--payload", "ping", "--timeout", PATIENCE])?;
    assert_made(&[made], REPEATED);
    let datagrams = stage.middlebox.datagrams(UDP);
    let of_client: Vec<_> = datagrams.iter().filter(|(way, _)| *way == Way::FromHost).map(|(_, frame)| frame).collect();
    let [hello, confirm] = of_client[..] else { anyhow::bail!("{} datagrams", of_client.len()) };
    let changed = |frame: &[u8], at: usize, bit: u8| {
        let mut frame = frame.to_vec();
        frame[at] ^= bit;
        frame
    };
    let (ports, tail) = (34, hello.len() - 36);
    // Nothing of the budget is used up meanwhile.
    std::thread::sleep(Duration::from_millis(1200));
    let cases = [
        ("a byte of the credential", changed(hello, ports + 200, 1), "hello_tampered"),
        ("its hash", changed(hello, tail + 4, 1), "hello_tampered"),
        ("its length", changed(hello, tail + 14, 1), "hello_malformed"),
        ("a flag nobody knows", changed(hello, tail + 1, 128), "hello_malformed"),
        ("another port of ours", changed(hello, ports + 3, 1), "fallback_off"),
        ("a cookie nobody gave", changed(hello, tail + 1, 4), "hello_malformed"),
        ("a CONFIRM, sent again", confirm.clone(), "datagram_replayed"),
        ("its port", changed(confirm, ports + 9, 1), ""),
        ("its time", changed(confirm, tail_of(confirm) + 20, 1), "confirm_mac"),
        ("its session", changed(confirm, tail_of(confirm) + 6, 1), "session_expired"),
    ];
    for (what, frame, reason) in &cases {
        let before = stage.counters()?;
        stage.middlebox.play(refuses(true));
        stage.middlebox.send(Way::FromHost, frame)?;
        std::thread::sleep(Duration::from_millis(700));
        let counted = stage.since(&before)?;
        let expected = if reason.is_empty() { vec![] } else { vec![(*reason).to_owned()] };
        assert_eq!(reasons(&counted[1]), expected, "{what}: {:?}", counted[1].refusals());
        assert_eq!(stage.middlebox.datagrams(UDP).len(), 0, "{what} was answered");
    }
    // One that was recorded is as good as any: it is answered, to nobody who could use it; but not without bound.
    let before = stage.counters()?;
    stage.middlebox.play(refuses(true));
    for _ in 0..40 {
        stage.middlebox.send(Way::FromHost, hello)?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let counted = stage.since(&before)?;
    assert_eq!(reasons(&counted[1]), ["hello_budget"]);
    let answers = stage.middlebox.datagrams(UDP).len();
    ensure!((5..=10).contains(&answers), "{answers} answers to 40 HELLOs");
    // And it does not disturb who was met.
    let made = stage.pair.client.connect(to, &["--payload", "ping", "--timeout", PATIENCE])?;
    assert_made(&[made], [0, 900_000]);
    Ok(())
}

fn tail_of(frame: &[u8]) -> usize {
    frame.len() - 36
}
