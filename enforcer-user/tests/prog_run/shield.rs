//! What floods are made of: RESUMEs sent again, first contacts without number, and who is asked for a cookie.

use common::shield::{RESUME_BUCKETS, RESUME_WAYS, Resumes, Shield, cookie, resume_bucket, resume_mark};
use common::wire::{CHALLENGE, HELLO_COOKIE};
use enforcer_user::map_write::Table;

use super::*;

const SECRET: MacKey = MacKey { k0: 0x2726_2524_2322_2120, k1: 0x2f2e_2d2c_2b2a_2928 };
const FORMER: MacKey = MacKey { k0: 0x3736_3534_3332_3130, k1: 0x3f3e_3d3c_3b3a_3938 };
/// No account becomes even again while a test runs.
const HOUR: u64 = 3_600_000_000_000;

/// So many of each source, and of all without a cookie; 0 for no bound.
fn budgets(bench: &Bench, source: u64, all: u64) {
    let table = Table::open(bench.maps.directory(), "SHIELD").unwrap();
    let shield = Shield {
        source_interval_ns: if source == 0 { 0 } else { HOUR },
        source_burst_ns: HOUR * source,
        all_interval_ns: if all == 0 { 0 } else { HOUR },
        all_burst_ns: HOUR * all,
        secret: SECRET,
        former_secret: FORMER,
    };
    table.insert(&0, &shield).unwrap();
}

/// The listener that the shield takes the PU's for.
fn listens(bench: &Bench, pu: IpAddr) {
    let any = if pu.is_ipv4() { common::addr_v4(0) } else { addr(pu) };
    bench.maps.pu_listeners.insert(&ListenerKey { addr: any, port: PORT, pad: 0 }, &PU).unwrap();
}

fn hello(source: IpAddr, pu: IpAddr, isn: u32) -> Segment {
    Segment::syn(source, pu, SPORT, PORT, isn)
        .with(option(HELLO, 0, PEER_HANDLE, 1, 2))
        .carrying(b"what looks like a credential")
}

#[track_caller]
fn assert_retry(bench: &Bench, syn: &Segment, reason: Reason) {
    let (action, out) = counting(bench, &[(reason, IN)], &[(RETRY, OUT)], || bench.to(&syn.frame()));
    assert_eq!(action, Redirect);
    assert_eq!(type_and_reason(Segment::parse(&out).last_option()), (RETRY, Some(reason)));
}

#[track_caller]
fn assert_silence(bench: &Bench, syn: &Segment, reason: Reason) {
    counting(bench, &[(reason, IN)], &[], || assert_eq!(bench.to(&syn.frame()).0, Drop));
    counting(bench, &[(reason, IN)], &[], || assert_eq!(bench.shield(&syn.frame()), Drop, "the shield"));
}

#[track_caller]
fn assert_held(bench: &Bench, syn: &Segment) {
    let before = bench.counts();
    assert_eq!(bench.to(&syn.frame()).0, Drop);
    let expected = Delta { losses: vec![(HELD, 1)], ..counted(&[], &[(HELLO, IN)]) };
    assert_eq!(bench.counts().since(&before), expected);
}

#[test]
fn a_resume_is_good_for_one_connection() {
    isolated(|place| {
        let bench = bench(place);
        budgets(&bench, 3, 0);
        for ([pu, peer, external], isn) in families().into_iter().zip([PEER_ISN, PEER_ISN + 1]) {
            listens(&bench, pu);
            let syn = Segment::syn(peer, pu, SPORT, PORT, isn).with(resume(isn, PEER_HANDLE));
            counting(&bench, &[], &[(RESUME, IN)], || assert_eq!(bench.to(&syn.frame()).0, Pass));
            // Sent again by the stack that sent it: its answer was lost.
            for _ in 0..3 {
                counting(&bench, &[], &[], || assert_eq!(bench.to(&syn.frame()).0, Pass));
                counting(&bench, &[], &[], || assert_eq!(bench.shield(&syn.frame()), Pass));
            }
            // Another attempt that is the same by chance says it otherwise.
            let again = sealed(KEY_IN, RESUME, RESUME_AGAIN, PEER_HANDLE, SESSION, (isn, 0, 0));
            let again = Segment::syn(peer, pu, SPORT + 100, PORT, isn).with(again);
            counting(&bench, &[], &[(RESUME, IN)], || assert_eq!(bench.to(&again.frame()).0, Pass));
            let elsewhere = [
                Segment { sport: SPORT + 1, ..syn.clone() },
                Segment { source: external, ..syn.clone() },
                Segment { dport: PORT + 1, ..syn.clone() },
            ];
            for replayed in &elsewhere {
                counting(&bench, &[], &[], || assert_eq!(bench.shield(&replayed.frame()), Pass, "to be answered"));
                assert_retry(&bench, replayed, Reason::ResumeReplayed);
                assert_eq!(flow(&bench, pu, replayed.dport, replayed.source, replayed.sport), None);
            }
            // The connection is over: as if by anybody else.
            assert!(bench.maps.flows.remove(&key(pu, PORT, peer, SPORT)).unwrap());
            assert_retry(&bench, &syn, Reason::ResumeReplayed);
            // Two of the three answers that this source may have are gone, and this is the third; then silence, but no other reason.
            assert_silence(&bench, &syn, Reason::ResumeReplayed);
            assert_silence(&bench, &elsewhere[0], Reason::ResumeReplayed);
            // Another number is another connection, which costs its source nothing; its SYN passes the shield as often as it likes.
            let other = Segment { seq: isn + 7, ..Segment::syn(peer, pu, SPORT, PORT, 0) };
            let other = other.with(resume(isn + 7, PEER_HANDLE));
            counting(&bench, &[], &[(RESUME, IN)], || assert_eq!(bench.to(&other.frame()).0, Pass));
            counting(&bench, &[], &[], || assert_eq!(bench.shield(&other.frame()), Pass));
            counting(&bench, &[], &[], || assert_eq!(bench.to(&other.frame()).0, Pass));
        }
        bench.finish();
    });
}

#[test]
fn what_was_refused_is_taken_and_what_was_held_is_not() {
    isolated(|place| {
        let mut bench = bench(place);
        let [pu, peer, _] = families()[0];
        let denied = Segment::syn(peer, pu, SPORT, PORT + 1, PEER_ISN).with(resume(PEER_ISN, PEER_HANDLE));
        counting(&bench, &[(Reason::DenyRule, IN)], &[(DENY, OUT)], || {
            assert_eq!(bench.to(&denied.frame()).0, Redirect)
        });
        assert_retry(&bench, &denied, Reason::ResumeReplayed);

        let (handle, identity) = (PEER_HANDLE + 5, PEER_IDENTITY + 5);
        bench.peer_pu(SESSION, handle, identity);
        let unjudged = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN).with(resume(PEER_ISN, handle));
        for _ in 0..2 {
            let before = bench.counts();
            assert_eq!(bench.to(&unjudged.frame()).0, Drop);
            assert_eq!(bench.counts().since(&before), Delta { losses: vec![(HELD, 1)], ..Delta::default() });
        }
        let port = Interval {
            low: position(6, PORT),
            high: position(6, PORT),
            rule: ALLOW_RULE,
            observed_rule: 0,
            flags: VERDICT_ALLOW,
        };
        bench.pairs.write(Pair { subject: identity, object: IDENTITY }, &[port]).unwrap();
        counting(&bench, &[], &[(RESUME, IN)], || assert_eq!(bench.to(&unjudged.frame()).0, Pass, "judged at last"));
        bench.finish();
    });
}

#[test]
fn the_oldest_of_a_full_entry_is_forgotten_first() {
    isolated(|place| {
        let bench = bench(place);
        let [pu, peer, _] = families()[0];
        let resumes: Table<u32, Resumes> = Table::open(bench.maps.directory(), "RESUMES").unwrap();
        assert_eq!(resumes.capacity(), RESUME_BUCKETS);
        let mac_of = |option: [u8; 20]| u64::from_be_bytes(option[12..].try_into().unwrap());
        let bucket = resume_bucket(mac_of(resume(PEER_ISN, PEER_HANDLE)));
        let in_bucket = (0..)
            .map(|isn| (isn, resume(isn, PEER_HANDLE)))
            .filter(|(_, option)| resume_bucket(mac_of(*option)) == bucket);
        let more: Vec<_> = in_bucket.take(RESUME_WAYS as usize + 1).collect();
        let syn = |sport, (isn, option)| Segment::syn(peer, pu, sport, PORT, isn).with(option);
        for (sport, each) in (1000..).zip(&more) {
            counting(&bench, &[], &[(RESUME, IN)], || assert_eq!(bench.to(&syn(sport, *each).frame()).0, Pass));
        }
        let entry = resumes.get(&bucket).unwrap().unwrap();
        assert_eq!(entry.entered, u64::from(RESUME_WAYS) + 1);
        let marks = more[1..].iter().map(|(_, option)| resume_mark(mac_of(*option)));
        assert!(marks.into_iter().all(|mark| entry.macs.contains(&mark)), "the last ones are all there");
        for each in &more[1..] {
            assert_retry(&bench, &syn(2, *each), Reason::ResumeReplayed);
        }
        // Only now the first may come again.
        counting(&bench, &[], &[(RESUME, IN)], || assert_eq!(bench.to(&syn(2, more[0]).frame()).0, Pass));
        bench.finish();
    });
}

#[test]
fn a_source_may_introduce_itself_so_often() {
    isolated(|place| {
        let bench = bench(place);
        budgets(&bench, 3, 0);
        let sources = [("10.0.0.2", "10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::ffff:1", "fd00:0:0:1::2")];
        for ([pu, ..], (one, same, another)) in families().into_iter().zip(sources) {
            let [one, same, another]: [IpAddr; 3] = [one, same, another].map(|text| text.parse().unwrap());
            listens(&bench, pu);
            for isn in 0..3 {
                counting(&bench, &[], &[], || assert_eq!(bench.shield(&hello(one, pu, isn).frame()), Pass));
                assert_held(&bench, &hello(one, pu, isn));
            }
            for source in [one, same] {
                assert_silence(&bench, &hello(source, pu, 9), Reason::HelloBudget);
                // Nor is it told any more that something is unknown here.
                let unknown = sealed(KEY_IN, RESUME, 0, PEER_HANDLE, SESSION + 1, (9, 0, 0));
                let unknown = Segment::syn(source, pu, SPORT, PORT, 9).with(unknown);
                assert_silence(&bench, &unknown, Reason::UnknownSession);
            }
            // What is not for a PU is none of the shield's business.
            let unmanaged = Segment { dport: PORT + 9, ..hello(one, pu, 9) };
            counting(&bench, &[], &[], || assert_eq!(bench.shield(&unmanaged.frame()), Pass));
            counting(&bench, &[], &[], || assert_eq!(bench.shield(&hello(another, pu, 9).frame()), Pass));
            assert_held(&bench, &hello(another, pu, 9));
            // Who is known already needs no introduction.
            let known = Segment::syn(one, pu, SPORT, PORT, PEER_ISN).with(resume(PEER_ISN, PEER_HANDLE));
            counting(&bench, &[], &[], || assert_eq!(bench.shield(&known.frame()), Pass));
            counting(&bench, &[], &[(RESUME, IN)], || assert_eq!(bench.to(&known.frame()).0, Pass));
            forget_resume(&bench, PEER_ISN, PEER_HANDLE);
        }
        assert_eq!(bench.maps.hello_sources.entries().unwrap().len(), 4);
        bench.finish();
    });
}

#[test]
fn under_load_who_shows_no_cookie_is_asked_for_one() {
    isolated(|place| {
        let bench = bench(place);
        budgets(&bench, 0, 2);
        let [pu, peer, _] = families()[0];
        for isn in 0..2 {
            assert_held(&bench, &hello(peer, pu, isn));
        }
        for [pu, peer, _] in families() {
            let cookie = |secret: &MacKey, isn| cookie(secret, &addr(peer), SPORT, PORT, isn);
            let shown = |isn, cookie| {
                Segment::syn(peer, pu, SPORT, PORT, isn)
                    .with(option(HELLO, HELLO_COOKIE, PEER_HANDLE, 1, cookie))
                    .carrying(b"what looks like a credential")
            };
            let challenged = |syn: &Segment| {
                let frame = syn.frame();
                let (action, out) =
                    counting(&bench, &[(Reason::Challenged, IN)], &[(CHALLENGE, OUT)], || bench.to(&frame));
                assert_eq!(action, Redirect);
                assert!(out.len() < frame.len(), "an answer no smaller than its cause");
                let expected = Segment {
                    source: pu,
                    target: peer,
                    sport: PORT,
                    dport: SPORT,
                    seq: 0,
                    ack: syn.seq + 1,
                    flags: RST | ACK | (syn.flags & 0xc0),
                    ..Segment::syn(peer, pu, SPORT, PORT, 0)
                };
                let expected = expected.with(option(CHALLENGE, 0, 0, 0, cookie(&SECRET, syn.seq)));
                assert_eq!(Segment::parse(&out), expected);
                assert_eq!(flow(&bench, pu, PORT, peer, SPORT), None);
            };
            challenged(&hello(peer, pu, 5));
            challenged(&Segment { flags: SYN | 0xc0, ..hello(peer, pu, 6) });
            assert_held(&bench, &shown(5, cookie(&SECRET, 5)));
            assert_held(&bench, &shown(5, cookie(&FORMER, 5)));
            // Another's, or none that anybody was given.
            for wrong in [cookie(&SECRET, 4), cookie(&SECRET, 5) ^ 1, 0] {
                let wrong = shown(5, wrong).frame();
                counting(&bench, &[(Reason::HelloMalformed, IN)], &[], || assert_eq!(bench.to(&wrong).0, Drop));
            }
            // Without the flag it is a part of the credential's hash.
            let unflagged = Segment::syn(peer, pu, SPORT, PORT, 5)
                .with(option(HELLO, 0, PEER_HANDLE, 1, cookie(&SECRET, 5)))
                .carrying(b"what looks like a credential");
            challenged(&unflagged);
            let empty = Segment { payload: Vec::new(), ..hello(peer, pu, 5) };
            counting(&bench, &[(Reason::HelloMalformed, IN)], &[], || assert_eq!(bench.to(&empty.frame()).0, Drop));
        }
        bench.finish();
    });
}

#[test]
fn a_ring_that_is_half_full_is_load() {
    isolated(|place| {
        // Room for three records.
        let sizes = MapSizes { handshake_ring_bytes: Some(8192), flows: Some(1000), ..MapSizes::default() };
        let bench = with(place, sizes);
        budgets(&bench, 0, 1_000);
        let [pu, peer, _] = families()[0];
        assert_held(&bench, &hello(peer, pu, 1));
        assert_held(&bench, &hello(peer, pu, 2));
        let (action, _) = counting(&bench, &[(Reason::Challenged, IN)], &[(CHALLENGE, OUT)], || {
            bench.to(&hello(peer, pu, 3).frame())
        });
        assert_eq!(action, Redirect);
        bench.finish();
    });
}

#[test]
fn a_challenge_is_met_once_for_each_syn() {
    isolated(|place| {
        let bench = bench(place);
        let shown = the_credential();
        for [pu, peer, _] in families() {
            let known = SessionPu { session: SESSION, handle: HANDLE, pad: 0 };
            bench.maps.known_to_peer.remove(&known).unwrap();
            let syn = Segment::syn(pu, peer, SPORT, PORT, ISN);
            counting(&bench, &[], &[(HELLO, OUT)], || assert_eq!(bench.out(&syn.frame()).0, Pass));
            let challenge = |cookie| {
                Segment {
                    seq: 0,
                    ack: ISN.wrapping_add(1),
                    flags: RST | ACK | 0xc0,
                    ..Segment::syn(peer, pu, PORT, SPORT, 0)
                }
                .with(option(CHALLENGE, 0, 0, 0, cookie))
            };
            let other = Segment { ack: ISN, ..challenge(7) };
            counting(&bench, &[(Reason::NoFlow, IN)], &[], || assert_eq!(bench.to(&other.frame()).0, Drop));
            for cookie in [0x1122_3344_5566_7788, 1] {
                let (action, out) =
                    counting(&bench, &[], &[(CHALLENGE, IN), (HELLO, OUT)], || bench.to(&challenge(cookie).frame()));
                assert_eq!(action, Redirect);
                let again = Segment::parse(&out);
                let hello = option(HELLO, HELLO_COOKIE, HANDLE, shown.hash_index, cookie);
                let expected = Segment { flags: SYN | 0xc0, ..syn.clone() };
                assert_eq!(again, expected.with(hello).carrying(&shown.bytes[..shown.len as usize]));
                counting(&bench, &[(Reason::RetryLoop, IN)], &[], || {
                    assert_eq!(bench.to(&challenge(cookie ^ 3).frame()).0, Drop)
                });
                // The stack sends its SYN again: whoever answers now may be another enforcer, with other cookies.
                counting(&bench, &[], &[(HELLO, OUT)], || assert_eq!(bench.out(&syn.frame()).0, Pass));
            }
            // It says nothing to who has said RESUME, or has an answer.
            let at = key(pu, SPORT, peer, PORT);
            for present in [sent(&bench), Flow { state: CONFIRMING, path: PATH_HELLO, ..sent(&bench) }] {
                bench.maps.flows.insert(&at, &present).unwrap();
                counting(&bench, &[(Reason::NoFlow, IN)], &[], || assert_eq!(bench.to(&challenge(7).frame()).0, Drop));
            }
            bench.maps.flows.remove(&at).unwrap();
            bench.known(SESSION, HANDLE);
        }
        bench.finish();
    });
}
