//! Whatever TCP and networks do to a connection, both ends are authenticated and nothing is lost or left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::segment::FIN;
use tests::{Counters, Fate, Host, Outcome, Pair, Way};

const PATIENCE: Duration = Duration::from_secs(20);

/// What both hosts counted while something was done.
struct Counted {
    a: Counters,
    b: Counters,
}

fn counted(pair: &Pair, work: impl FnOnce() -> Result<()>) -> Result<Counted> {
    let (a, b) = (pair.a.counters()?, pair.b.counters()?);
    let done = work();
    let counted = Counted { a: &pair.a.counters()? - &a, b: &pair.b.counters()? - &b };
    let refusals = || format!("refused by a: {:?}, by b: {:?}", counted.a.refusals(), counted.b.refusals());
    done.with_context(refusals)?;
    Ok(counted)
}

impl Counted {
    /// So many connections were authenticated and allowed, at each end.
    fn assert_authenticated(&self, connections: i64, what: &str) {
        assert_eq!(self.a.verdicts_out("allowed"), connections, "{what}: allowed by the client's end");
        assert_eq!(self.b.verdicts_in("allowed"), connections, "{what}: allowed by the server's end");
        assert_eq!(self.b.packets_in("confirm"), connections, "{what}: confirmed");
    }

    fn assert_nothing_refused(&self, what: &str) {
        assert_eq!((self.a.refusals(), self.b.refusals()), (BTreeMap::new(), BTreeMap::new()), "{what}");
    }
}

/// Plays both ends of one connection; an error says which step of which end went wrong.
fn play(pair: &Pair, to: &str, port: u16, options: &[&str], client: &[&str], server: &[&str]) -> Result<u64> {
    let listener = pair.server.listen_and_play(&format!("[::]:{port}"), &[], server)?;
    let talks = pair.client.call_and_play(to, options, client)?;
    let answers = listener.finish(PATIENCE)?;
    ensure!(talks.iter().chain(&answers).all(|talk| talk.ok), "{to}: client {talks:?}, server {answers:?}");
    Ok(talks.first().map_or(0, |talk| talk.micros))
}

/// Every one of `count` connections at once is made and answered.
fn all_answered(pair: &Pair, to: &str, count: usize) -> Result<()> {
    slowest_answered(pair, to, count).map(drop)
}

/// The same; how long the slowest took to be made.
fn slowest_answered(pair: &Pair, to: &str, count: usize) -> Result<Duration> {
    let number = count.to_string();
    let options = ["--count", &number, "--parallel", "--payload", "ping", "--timeout", "60000"];
    let attempts = pair.client.connect_many(to, &options)?;
    assert_eq!(attempts.len(), count);
    for attempt in &attempts {
        assert_eq!((attempt.outcome, attempt.reply.as_str()), (Outcome::Ok, "ping"), "{attempt:?}");
    }
    Ok(Duration::from_micros(attempts.iter().map(|attempt| attempt.micros).max().unwrap_or_default()))
}

/// Segments of connections that are over, or not confirmed yet: what lost and late packets lead to.
const LATE: &[&str] = &["no_flow", "unconfirmed", "retry_loop"];

fn assert_refused_only(counters: &Counters, reasons: &[&str], what: &str) {
    let refusals = counters.refusals();
    let expected = |labels: &str| reasons.iter().any(|reason| labels.contains(&format!("reason=\"{reason}\"")));
    assert!(refusals.keys().all(|labels| expected(labels)), "{what}: {refusals:?}");
}

#[test]
fn lost_packets_and_a_minute_of_silence() -> Result<()> {
    std::thread::scope(|scope| {
        let silence = scope.spawn(a_minute_of_silence);
        let loss = lost_packets();
        let silence = silence.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        loss.and(silence)
    })
}

fn lost_packets() -> Result<()> {
    let pair = Pair::new("loss")?;
    let server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let [v4, v6] = pair.addresses(8020);
    let mut made = 0;
    for (percent, count) in [(2.0, 100), (10.0, 40)] {
        for to in [&v4, &v6] {
            // Cold the first time: credentials are lost too.
            let what = format!("{percent} % to {to}");
            pair.a.set_loss(percent)?;
            let counted = counted(&pair, || {
                all_answered(&pair, to, count)?;
                pair.a.set_loss(0.0)
            })?;
            counted.assert_authenticated(count as i64, &what);
            assert_refused_only(&counted.a, LATE, &what);
            assert_refused_only(&counted.b, LATE, &what);
            made += count;
        }
    }
    assert_eq!(server.accepted()?, made);
    Ok(())
}

fn a_minute_of_silence() -> Result<()> {
    let pair = Pair::new("silence")?;
    let addresses = pair.addresses(8020);
    let talk = |to: &str, port: u16| {
        let to = to.replace("8020", &port.to_string());
        let steps = ["send=before", "expect=one", "wait=60000", "send=after", "expect=two", "fin", "eof"];
        let answers = ["expect=before", "send=one", "expect=after", "send=two", "eof"];
        let listener = pair.server.listen_and_play(&format!("[::]:{port}"), &["--timeout", "65000"], &answers)?;
        let talks = pair.client.call_and_play(&to, &[], &steps)?;
        ensure!(talks[0].ok, "{talks:?}");
        let answers = listener.finish(PATIENCE)?;
        ensure!(answers[0].ok, "{answers:?}");
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| talk(&addresses[1], 8021));
        talk(&addresses[0], 8020)?;
        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    pair.settled()
}

#[test]
fn doubled_and_reordered_packets() -> Result<()> {
    let pair = Pair::new("shuffle")?;
    let server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mut made = 0;
    for (double, delay) in [(100, 0), (50, 50)] {
        let shuffle = pair.b.shuffle(double, delay)?;
        for round in 0..2 {
            for to in pair.addresses(8020) {
                // Round 0 at first is cold: credentials are doubled too.
                let what = format!("{double} % doubled, {delay} % late, round {round}, {to}");
                let mut slowest = Duration::ZERO;
                let counted = counted(&pair, || {
                    slowest = slowest_answered(&pair, &to, 50)?;
                    Ok(())
                })?;
                counted.assert_authenticated(50, &what);
                // A copy of a SYN or CONFIRM may come when its connection is over, and proves nothing any more.
                for counters in [&counted.a, &counted.b] {
                    assert_refused_only(counters, &[LATE, &["confirm_mac", "resume_replayed"]].concat(), &what);
                }
                // Nothing is lost, so nothing may cost TCP's timer of a second.
                assert!(slowest < Duration::from_millis(990), "{what}: {slowest:?}");
                made += 50;
            }
        }
        drop(shuffle);
        pair.b.unshuffle()?;
    }
    assert_eq!(server.accepted()?, made);
    Ok(())
}

/// Both ends have met; then the one that `forgets` loses its sessions, for each family, and the client calls again.
fn after_forgetting(name: &str, forgets: impl Fn(&Pair) -> &Host, check: impl Fn(&Counted, &str)) -> Result<()> {
    let pair = Pair::new(name)?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    pair.introduce(8020)?;
    for to in pair.addresses(8020) {
        forgets(&pair).enforcer(&["peers", "--forget"])?.ok()?;
        let counted = counted(&pair, || {
            let attempt = pair.client.connect(&to, &["--payload", "ping", "--timeout", "5000"])?;
            assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
            assert!(attempt.micros < 100_000, "{attempt:?}");
            pair.settled()
        })?;
        counted.assert_authenticated(1, &to);
        check(&counted, &to);
        // The pair has met again, and knows by which index: the next one resumes.
        let counted = self::counted(&pair, || all_answered(&pair, &to, 1))?;
        assert_eq!((counted.a.packets_out("resume"), counted.b.packets_out("resume_reply")), (1, 1), "{to}");
        counted.assert_nothing_refused(&to);
    }
    Ok(())
}

#[test]
fn a_retry_costs_one_round_trip() -> Result<()> {
    after_forgetting(
        "retry",
        |pair| &pair.b,
        |counted, to| {
            assert_eq!((counted.b.packets_out("retry"), counted.a.packets_in("retry")), (1, 1), "{to}");
            assert_eq!((counted.a.packets_out("resume"), counted.a.packets_out("hello")), (1, 1), "{to}");
            assert_eq!(counted.b.verdicts_in("unknown_session"), 1, "{to}");
        },
    )
}

#[test]
fn a_forgetful_client_is_asked_nothing_twice() -> Result<()> {
    after_forgetting(
        "forget",
        |pair| &pair.a,
        |counted, to| {
            assert_eq!((counted.a.packets_out("hello"), counted.b.packets_out("retry")), (1, 0), "{to}");
        },
    )
}

#[test]
fn syn_cookies() -> Result<()> {
    let pair = Pair::new("cookies")?;
    pair.b.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let server = pair.server.serve(&["--listen", "[::]:8020"])?;
    for round in 0..2 {
        for to in pair.addresses(8020) {
            let counted = counted(&pair, || all_answered(&pair, &to, 20).and_then(|()| pair.settled()))?;
            let what = format!("round {round} to {to}");
            counted.assert_authenticated(20, &what);
            counted.assert_nothing_refused(&what);
        }
    }
    assert_eq!(server.accepted()?, 80);
    let sent = pair.b.exec(&["grep", "-h", "TcpExt", "/proc/net/netstat"])?;
    let table: Vec<Vec<&str>> = sent.ok()?.lines().map(|line| line.split_whitespace().collect()).collect();
    let at = table[0].iter().position(|name| *name == "SyncookiesRecv").unwrap_or_default();
    // The metrics' own connections went by cookies too.
    assert!(table[1][at].parse::<u32>()? >= 80, "every connection went by a cookie: {}", table[1][at]);
    Ok(())
}

#[test]
fn fast_open_data_arrives_once() -> Result<()> {
    let pair = Pair::new("tfo")?;
    let steps = ["expect=answer", "send=more", "fin", "eof"];
    let answers = ["expect=early", "send=answer", "expect=more", "eof"];
    // Client and server enabled; then also without a cookie, which puts data on every SYN (net.ipv4.tcp_fastopen).
    for mode in ["3", "1543"] {
        for host in [&pair.a, &pair.b] {
            host.sysctl("net/ipv4/tcp_fastopen", mode)?;
        }
        for to in pair.addresses(8020) {
            for round in 0..3 {
                let what = format!("mode {mode}, round {round}, {to}");
                let counted = counted(&pair, || {
                    let listener = pair.server.listen_and_play("[::]:8020", &["--fast-open-queue", "16"], &answers)?;
                    let talks = pair.client.call_and_play(&to, &["--fast-open", "early"], &steps)?;
                    ensure!(talks[0].ok, "{what}: {talks:?}");
                    let answers = listener.finish(PATIENCE)?;
                    ensure!(answers[0].ok, "{what}: {answers:?}");
                    pair.settled()
                })?;
                counted.assert_authenticated(1, &what);
                counted.assert_nothing_refused(&what);
            }
        }
    }
    Ok(())
}

/// MPTCP listens through a socket that nobody can attribute: a PU gets none, and its program takes plain TCP instead.
#[test]
fn multipath_tcp_falls_back() -> Result<()> {
    let pair = Pair::new("mptcp")?;
    for round in 0..2 {
        for to in pair.addresses(8020) {
            let what = format!("round {round} to {to}");
            let counted = counted(&pair, || {
                let steps = ["send=hello", "expect=welcome", "fin", "eof"];
                play(&pair, &to, 8020, &["--mptcp"], &steps, &["expect=hello", "send=welcome", "eof"])?;
                pair.settled()
            })?;
            counted.assert_authenticated(1, &what);
            assert_eq!(counted.a.verdicts_out("protocol_denied"), 1, "{what}: the socket");
            assert_eq!((counted.a.refusals().len(), counted.b.refusals().len()), (1, 0), "{what}: nothing else");
        }
    }
    Ok(())
}

#[test]
fn nobody_else_writes_on_a_connection() -> Result<()> {
    let pair = Pair::new("foreign")?;
    let other = pair.a.workload("other", &["app=client"])?;
    let tool = tests::lab_tool()?.to_string_lossy().into_owned();
    for ip in pair.a.ips() {
        let to = if ip.is_ipv4() { pair.b.socket_v4(8020) } else { pair.b.socket_v6(8020) };
        let from = std::net::SocketAddr::new(ip, 40_000).to_string();
        let counted = counted(&pair, || {
            std::thread::scope(|scope| {
                let talk = scope.spawn(|| {
                    let steps = ["send=a", "expect=b", "wait=1500", "send=c", "fin", "eof"];
                    play(&pair, &to, 8020, &["--from", &from], &steps, &["expect=a", "send=b", "expect=c", "eof"])
                });
                std::thread::sleep(Duration::from_millis(600));
                // Another PU of the host, and a process that is none.
                for place in [&*other, &*pair.a] {
                    let raw =
                        [&tool, "raw", "--to", &to, "--from", &from, "--flags", "PA", "--ack", "1", "--payload", "ff"];
                    place.exec(&[&raw[..], &["--wait", "0"]].concat())?.ok()?;
                }
                talk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(drop)
            })
        })?;
        assert_eq!(counted.a.verdicts_out("forged_by_pu"), 2, "{to}: {:?}", counted.a.refusals());
        assert_eq!(counted.a.refusals().len(), 1, "{to}: {:?}", counted.a.refusals());
        assert_eq!(counted.b.refusals(), BTreeMap::new(), "{to}: nothing of it left");
    }
    Ok(())
}

#[test]
fn every_way_to_end() -> Result<()> {
    let pair = Pair::new("ends")?;
    let ways: [(&str, &[&str], &[&str]); 6] = [
        ("the client is done first", &["send=a", "fin", "expect=bb", "eof"], &["expect=a", "eof", "send=bb"]),
        ("the server is done first", &["expect=a", "eof", "send=bb"], &["send=a", "fin", "expect=bb", "eof"]),
        ("both at once", &["send=a", "expect=b", "fin", "eof"], &["expect=a", "send=b", "fin", "eof"]),
        ("the client resets", &["send=a", "expect=b", "reset"], &["expect=a", "send=b", "cut"]),
        ("the server resets", &["send=a", "expect=b", "cut"], &["expect=a", "send=b", "wait=20", "reset"]),
        ("nothing is said", &["fin", "eof"], &["eof"]),
    ];
    for round in 0..2 {
        for to in pair.addresses(8020) {
            for (way, client, server) in ways {
                let what = format!("{way}, round {round}, {to}");
                let counted = counted(&pair, || {
                    play(&pair, &to, 8020, &[], client, server)?;
                    pair.settled()
                })
                .context(what.clone())?;
                counted.assert_authenticated(1, &what);
                counted.assert_nothing_refused(&what);
            }
        }
    }
    Ok(())
}

#[test]
fn a_port_is_used_again_at_once() -> Result<()> {
    let pair = Pair::new("reuse")?;
    for ip in pair.a.ips() {
        let to = if ip.is_ipv4() { pair.b.socket_v4(8020) } else { pair.b.socket_v6(8020) };
        let from = std::net::SocketAddr::new(ip, 40_000).to_string();
        // The server ends each connection, so that TIME_WAIT is its own.
        let answers = ["expect=a", "send=b", "fin", "eof"];
        let counted = counted(&pair, || {
            let listener = pair.server.listen_and_play("[::]:8020", &["--times", "5"], &answers)?;
            let steps = ["send=a", "expect=b", "eof"];
            let talks = pair.client.call_and_play(&to, &["--from", &from, "--times", "5"], &steps)?;
            ensure!(talks.len() == 5 && talks.iter().all(|talk| talk.ok), "{talks:?}");
            ensure!(talks.iter().all(|talk| talk.micros < 500_000), "by the timer: {talks:?}");
            let answers = listener.finish(PATIENCE)?;
            ensure!(answers.iter().all(|talk| talk.ok), "{answers:?}");
            pair.settled()
        })?;
        counted.assert_authenticated(5, &to);
        counted.assert_nothing_refused(&to);
    }
    Ok(())
}

#[test]
fn a_client_that_vanished_may_return_on_its_port() -> Result<()> {
    let pair = Pair::new("vanish")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    for ip in pair.a.ips() {
        let to = if ip.is_ipv4() { pair.b.socket_v4(8020) } else { pair.b.socket_v6(8020) };
        let from = std::net::SocketAddr::new(ip, 40_000).to_string();
        // Its farewell is lost: the server believes that the connection lives.
        let call = ["--from", &from, "--timeout", "10000"];
        let steps = ["send=a", "expect=a", "wait=100", "reset"];
        std::thread::scope(|scope| {
            let gone = scope.spawn(|| pair.client.call_and_play(&to, &call, &steps));
            std::thread::sleep(Duration::from_millis(70));
            pair.a.set_loss(100.0)?;
            let talks = gone.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            ensure!(talks[0].ok, "{talks:?}");
            pair.a.set_loss(0.0)
        })?;
        let attempt = pair.client.connect(&to, &["--from", &from, "--payload", "ping", "--timeout", "5000"])?;
        assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}\n{:?}", pair.a.counters()?.refusals());
        assert!(attempt.micros < 3_000_000, "{attempt:?}");
    }
    pair.settled()
}

#[test]
fn a_port_is_used_again_though_the_last_acknowledgement_was_lost() -> Result<()> {
    let pair = Pair::new("lastack")?;
    pair.a.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let mitm = pair.a.man_in_the_middle()?;
    for ip in pair.a.ips() {
        let to = if ip.is_ipv4() { pair.b.socket_v4(8020) } else { pair.b.socket_v6(8020) };
        let from = std::net::SocketAddr::new(ip, 40_000).to_string();
        let call = ["--from", &from, "--payload", "ping", "--timeout", "5000"];
        pair.client.connect(&to, &["--payload", "ping"])?;
        // The server's end stays in LAST_ACK: what its FIN is answered with is lost until the client calls again.
        let mut silent = false;
        mitm.play(move |way, segment| {
            let fate = if way == Way::FromHost && silent && !segment.is_syn() { Fate::Drop } else { Fate::Forward };
            silent =
                if segment.is_syn() { false } else { silent || way == Way::FromHost && segment.flags() & FIN != 0 };
            fate
        });
        let first = pair.client.connect(&to, &call)?;
        ensure!((first.outcome, first.reply.as_str()) == (Outcome::Ok, "ping"), "{first:?}");
        // A port in TIME_WAIT may be used again after a second (RFC 6191).
        std::thread::sleep(Duration::from_millis(1_500));
        let again = pair.client.connect(&to, &call)?;
        ensure!((again.outcome, again.reply.as_str()) == (Outcome::Ok, "ping"), "{again:?}");
        // Its SYN ends the older connection, and the one that TCP sends after a second opens the new one.
        ensure!(again.micros < 2_500_000, "{again:?}");
        mitm.play(|_, _| Fate::Forward);
    }
    pair.settled()
}

#[test]
fn a_storm_of_20_000_in_flight() -> Result<()> {
    let pair = Pair::new("storm")?;
    pair.b.sysctl("net/core/somaxconn", "65535")?;
    pair.b.sysctl("net/ipv4/tcp_max_syn_backlog", "65535")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020", "--quiet"])?;
    let counted = counted(&pair, || {
        let mut holds = Vec::new();
        for to in pair.addresses(8020) {
            holds.push(pair.client.spawn_tool(&["hold", &to, "--count", "10000", "--burst", "--timeout", "60000"])?);
        }
        for hold in &mut holds {
            let ready = hold.wait_for_line("READY", Duration::from_secs(70))?;
            assert_eq!(ready, r#"READY {"open":10000,"failed":0}"#);
        }
        assert_eq!((pair.a.counters()?.flows(), pair.b.counters()?.flows()), (20_000, 20_000));
        drop(holds);
        pair.settled_within(Duration::from_secs(20))
    })?;
    // Two segments at the same time on two CPUs may both be taken for a flow's first.
    let about = 20_000..20_020;
    assert!(about.contains(&counted.a.verdicts_out("allowed")), "{}", counted.a.verdicts_out("allowed"));
    assert!(about.contains(&counted.b.verdicts_in("allowed")), "{}", counted.b.verdicts_in("allowed"));
    assert!(about.contains(&counted.b.packets_in("confirm")), "{}", counted.b.packets_in("confirm"));
    // Cold, more first contacts come than the ring holds: those wait for TCP's timer, counted.
    let pressure = [LATE, &["ring_full", "undecided"]].concat();
    assert_refused_only(&counted.a, &pressure, "client");
    assert_refused_only(&counted.b, &pressure, "server");
    Ok(())
}
