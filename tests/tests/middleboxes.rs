//! Middleboxes that mean no harm and get in the way all the same: what they do to a connection is told by its reason, at the end that can know.

#[path = "middleboxes/out_of_band.rs"]
mod out_of_band;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::segment::ACK;
use tests::{Attempt, Counters, Fate, Host, Mitm, Outcome, Pair, Segment, Way};

const PORT: u16 = 8020;
/// A first contact is told to be unanswered with the third SYN, two or three seconds after the first.
const PATIENCE: &str = "4500";

/// Two hosts that never met, and a middlebox on the client's cable.
struct Stage {
    pair: Pair,
    middlebox: Mitm,
    _server: tests::Server,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        Self::with_each(name, "", "")
    }

    /// With overrides for the client's and for the server's enforcer.
    fn with_each(name: &str, at_client: &str, at_server: &str) -> Result<Self> {
        let pair = Pair::with_each(name, at_client, at_server)?;
        let server = pair.server.serve(&["--listen", &format!("[::]:{PORT}")])?;
        let middlebox = pair.a.man_in_the_middle()?;
        Ok(Self { pair, middlebox, _server: server })
    }

    /// One attempt over each family, at once, and what either end counted meanwhile beside what was allowed.
    fn attempts(&self, patience: &str) -> Result<([Attempt; 2], [Counters; 2])> {
        let before = self.counters()?;
        let [v4, v6] = self.pair.addresses(PORT);
        let call = |to: &str| self.pair.client.connect(to, &["--payload", "ping", "--timeout", patience]);
        let made = std::thread::scope(|scope| {
            let other = scope.spawn(|| call(&v6));
            Ok::<_, anyhow::Error>([call(&v4)?, other.join().map_err(|_| anyhow::anyhow!("a panic"))??])
        })?;
        Ok((made, self.since(&before)?))
    }

    /// What the client's and the server's host have counted.
    fn counters(&self) -> Result<[Counters; 2]> {
        Ok([self.pair.a.counters()?, self.pair.b.counters()?])
    }

    fn since(&self, before: &[Counters; 2]) -> Result<[Counters; 2]> {
        let now = self.counters()?;
        Ok([&now[0] - &before[0], &now[1] - &before[1]])
    }

    /// Without the middlebox, the same connections are made.
    fn well_again(&self) -> Result<()> {
        self.middlebox.play(|_, _| Fate::Forward);
        let (made, _) = self.attempts("5000")?;
        for attempt in made {
            ensure!((attempt.outcome, attempt.reply.as_str()) == (Outcome::Ok, "ping"), "{attempt:?}");
        }
        Ok(())
    }
}

/// Every reason counted, on whichever way, without how often: a stack chooses how often it tries.
fn reasons(counted: &Counters) -> Vec<String> {
    let name = |labels: &str| labels.split('"').nth(1).unwrap_or_default().to_owned();
    let mut found: Vec<String> = counted.refusals().into_keys().map(name).collect();
    found.sort();
    found.dedup();
    found
}

/// The host's record of an attempt says so, once.
fn told(host: &Host, attempt: &Attempt, reason: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let records = host.records()?;
        let of_attempt =
            records.iter().filter(|record| record.local == attempt.local || record.remote == attempt.local);
        let count = of_attempt.filter(|record| record.reason == reason && record.verdict == "deny").count();
        if count == 1 {
            return Ok(());
        }
        ensure!(count == 0 && Instant::now() < deadline, "{reason} was told {count} times: {records:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn outcomes(made: &[Attempt; 2]) -> [Outcome; 2] {
    [made[0].outcome, made[1].outcome]
}

#[test]
fn one_that_drops_syns_with_data_is_told_at_the_client() -> Result<()> {
    let stage = Stage::new("mbdata")?;
    stage.middlebox.play(|way, segment| {
        if way == Way::FromHost && segment.is_syn() && !segment.payload.is_empty() { Fate::Drop } else { Fate::Forward }
    });
    let (made, counted) = stage.attempts(PATIENCE)?;
    assert_eq!(outcomes(&made), [Outcome::Timeout; 2], "{made:?}");
    assert_eq!(reasons(&counted[0]), ["hello_unanswered"]);
    assert_eq!(counted[0].verdicts_out("hello_unanswered"), 2, "once for each attempt");
    assert_eq!(reasons(&counted[1]), Vec::<String>::new(), "the server heard nothing");
    for attempt in &made {
        told(&stage.pair.a, attempt, "hello_unanswered")?;
    }
    stage.well_again()?;
    // Who has met needs no data on a SYN: nothing is in the way.
    stage.middlebox.play(|_, segment| {
        if segment.flags() & tests::segment::SYN != 0 && !segment.payload.is_empty() {
            Fate::Drop
        } else {
            Fate::Forward
        }
    });
    let (made, counted) = stage.attempts("3000")?;
    assert_eq!(outcomes(&made), [Outcome::Ok; 2], "{made:?}");
    assert_eq!((reasons(&counted[0]), reasons(&counted[1])), (vec![], vec![]));
    Ok(())
}

#[test]
fn one_that_strips_options_it_does_not_know_is_told_at_the_end_that_misses_them() -> Result<()> {
    let strip = |segment: &mut Segment| {
        segment.take_identity();
    };
    let stage = Stage::new("mbstrip")?;
    // Out of what the client sends: the server sees a stranger, and the client that nothing comes back.
    stage.middlebox.play(move |way, segment| {
        if way == Way::FromHost {
            strip(segment);
        }
        Fate::Forward
    });
    let (made, counted) = stage.attempts(PATIENCE)?;
    assert_eq!(outcomes(&made), [Outcome::Timeout; 2], "{made:?}");
    assert_eq!(
        (reasons(&counted[0]), reasons(&counted[1])),
        (vec!["hello_unanswered".into()], vec!["no_identity".into()])
    );
    let syns = stage.middlebox.seen().iter().filter(|seen| seen.original.is_syn()).count() as i64;
    assert_eq!(counted[1].verdicts_in("no_identity"), syns, "each SYN");
    // Out of what it receives: the client's end names it, at once.
    for (met, reason) in [(false, "peer_no_identity"), (true, "identity_missing")] {
        stage.middlebox.play(move |way, segment| {
            if way == Way::ToHost && segment.is_syn_ack() {
                strip(segment);
            }
            Fate::Forward
        });
        let (made, counted) = stage.attempts("3000")?;
        assert_eq!(outcomes(&made), [Outcome::Refused; 2], "{reason}: {made:?}");
        assert_eq!(reasons(&counted[0]), [reason], "{:?}", counted[0].refusals());
        assert_eq!(counted[0].verdicts_in(reason), 2);
        for attempt in &made {
            told(&stage.pair.a, attempt, reason)?;
        }
        if !met {
            stage.well_again()?;
        }
    }
    stage.well_again()
}

/// Nobody but the two ends knows what the numbers were: rewritten ones cannot be told from those of another connection.
#[test]
fn one_that_rewrites_sequence_numbers_is_told_as_a_wrong_mac() -> Result<()> {
    const CLIENT: u32 = 0x1234_5678;
    const SERVER: u32 = 0x8765_4321;
    let rewrite = |way, segment: &mut Segment| {
        let (own, other) = if way == Way::FromHost { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        segment.set_seq(segment.seq().wrapping_add(own));
        if segment.flags() & ACK != 0 {
            segment.set_ack(segment.ack().wrapping_sub(other));
        }
        Fate::Forward
    };
    let stage = Stage::new("mbseq")?;
    stage.middlebox.play(rewrite);
    let (made, counted) = stage.attempts("3000")?;
    assert!(made.iter().all(|attempt| attempt.outcome != Outcome::Ok), "{made:?}");
    assert!(reasons(&counted[0]).contains(&"reply_mac".to_owned()), "{:?}", counted[0].refusals());
    for attempt in &made {
        let records = stage.pair.a.records()?;
        let found = records.iter().find(|record| record.local == attempt.local && record.reason == "reply_mac");
        found.with_context(|| format!("{records:#?}"))?;
    }
    stage.well_again()?;
    stage.middlebox.play(rewrite);
    let (made, counted) = stage.attempts("1500")?;
    assert_eq!(outcomes(&made), [Outcome::Timeout; 2], "{made:?}");
    assert_eq!((reasons(&counted[0]), reasons(&counted[1])), (vec![], vec!["resume_mac".into()]));
    stage.well_again()
}
