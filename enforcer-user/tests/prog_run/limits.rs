//! Resets of every size, and what happens when something is full or gone.

use super::*;

/// Every length around the borders of words, and lengths beyond any header.
const LENGTHS: [usize; 12] = [1, 2, 3, 4, 5, 63, 64, 511, 512, 1200, 1447, 3001];

#[test]
fn resets_are_right_whatever_was_cut_off() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let data = |len: usize| (0..len).map(|at| (at * 37 % 251) as u8).collect::<Vec<u8>>();
            // A flow that was cut: each segment of either end is answered with the reset its sender accepts.
            let cut = Flow {
                state: CUT,
                reason: Reason::Revoked as u16,
                peer_isn: PEER_ISN,
                peer_handle: PEER_HANDLE,
                session: SESSION,
                ..sent(&bench)
            };
            bench.maps.flows.insert(&key(pu, SPORT, peer, PORT), &cut).unwrap();
            for len in LENGTHS {
                for (outward, flags) in
                    [(true, ACK | PSH), (false, ACK | PSH), (true, ACK | FIN), (true, 0), (false, 0)]
                {
                    let (source, target, sport, dport) =
                        if outward { (pu, peer, SPORT, PORT) } else { (peer, pu, PORT, SPORT) };
                    let segment = Segment {
                        source,
                        target,
                        sport,
                        dport,
                        seq: 1000,
                        ack: 2000,
                        flags,
                        options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
                        payload: data(len),
                    };
                    let frame = segment.frame();
                    let (action, out) = if outward { bench.out(&frame) } else { bench.to(&frame) };
                    assert_eq!(action, Redirect);
                    let reset = Segment::parse(&out);
                    assert_eq!((reset.source, reset.sport, reset.target, reset.dport), (target, dport, source, sport));
                    // The PU's own stack learns nothing but the end; the peer's enforcer learns why.
                    let why = if outward { 0 } else { 20 };
                    assert_eq!((reset.options.len(), reset.payload.len()), (why, 0), "a reset repeats nothing");
                    if !outward {
                        let proven =
                            sealed(KEY_OUT, DENY, Reason::Revoked as u8, 0, PEER_SESSION, (ISN, PEER_ISN, PEER_HANDLE));
                        assert_eq!(reset.last_option(), proven);
                    }
                    if flags & ACK != 0 {
                        assert_eq!((reset.flags, reset.seq, reset.ack), (RST, 2000, 0));
                    } else {
                        let acked = 1000 + len as u32;
                        assert_eq!((reset.flags, reset.seq, reset.ack), (RST | ACK, 2000, acked));
                    }
                }
            }
            // A first contact while no agent runs, and one without the authority to hold it.
            for len in LENGTHS.into_iter().filter(|len| *len <= CREDENTIAL_MAX) {
                let down = bench_down(&bench);
                let syn = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN)
                    .with(option(HELLO, 0, PEER_HANDLE, 1, 2))
                    .carrying(&data(len));
                let (action, out) = counting(&bench, &[(Reason::AgentDown, IN)], &[(HELLO, IN), (DENY, OUT)], || {
                    bench.to(&syn.frame())
                });
                assert_eq!(action, Redirect);
                assert_local_reset(&syn, &out);
                let answer = Segment::parse(&out);
                assert_eq!(answer.last_option(), option(DENY, Reason::AgentDown as u8, 0, 0, 0));
                drop(down);
            }
        }
        bench.finish();
    });
}

/// While it lives, the agent looks dead to the kernel.
struct Down<'a>(&'a Bench, enforcer_user::map_write::Table<u32, common::abi::Config>);

fn bench_down(bench: &Bench) -> Down<'_> {
    let table = enforcer_user::map_write::Table::open(bench.maps.directory(), "CONFIG").unwrap();
    let dead = common::abi::Config { heartbeat_ns: 0, agent_timeout_ns: 1, ..*bench.config.current() };
    table.insert(&0, &dead).unwrap();
    Down(bench, table)
}

impl std::ops::Drop for Down<'_> {
    fn drop(&mut self) {
        let _ = self.1.insert(&0, self.0.config.current());
    }
}

#[test]
fn without_an_agent_only_what_is_known_passes() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let down = bench_down(&bench);
            let known = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN).with(resume(PEER_ISN, PEER_HANDLE));
            assert_eq!(bench.to(&known.frame()).0, Pass);
            forget_resume(&bench, PEER_ISN, PEER_HANDLE);

            // The pair was never judged.
            bench.peer_pu(SESSION, PEER_HANDLE + 7, PEER_IDENTITY + 7);
            let unjudged = Segment::syn(peer, pu, SPORT + 1, PORT, PEER_ISN).with(resume(PEER_ISN, PEER_HANDLE + 7));
            let (action, out) =
                counting(&bench, &[(Reason::AgentDown, IN)], &[(DENY, OUT)], || bench.to(&unjudged.frame()));
            assert_eq!(action, Redirect);
            let expected = sealed(KEY_OUT, DENY, Reason::AgentDown as u8, 0, PEER_SESSION, (0, PEER_ISN, 0));
            assert_eq!(Segment::parse(&out).last_option(), expected);

            // Nor is an introduction read.
            let at = key(pu, SPORT, peer, PORT);
            bench.maps.flows.insert(&at, &Flow { path: PATH_HELLO, session: 0, ..sent(&bench) }).unwrap();
            let answer =
                Segment { ack: ISN.wrapping_add(1), flags: SYN | ACK, ..Segment::syn(peer, pu, PORT, SPORT, PEER_ISN) }
                    .with(option(HELLO_REPLY, 0, PEER_HANDLE, PEER_SESSION, 1))
                    .carrying(b"a credential");
            let (action, out) =
                counting(&bench, &[(Reason::AgentDown, IN)], &[(HELLO_REPLY, IN)], || bench.to(&answer.frame()));
            assert_eq!(action, Pass);
            let reset = Segment::parse(&out);
            assert_eq!((reset.flags, reset.ack, reset.payload.len()), (RST | ACK, ISN.wrapping_add(1), 0));
            drop(down);
        }
        bench.finish();
    });
}

#[test]
fn a_full_ring_is_counted_and_silent() {
    isolated(|place| {
        // Room for one record.
        let bench =
            with(place, MapSizes { handshake_ring_bytes: Some(4096), flows: Some(1000), ..MapSizes::default() });
        let [pu, peer, _] = families()[0];
        let hello = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN)
            .with(option(HELLO, 0, PEER_HANDLE, 1, 2))
            .carrying(b"a credential");
        let before = bench.counts();
        assert_eq!(bench.to(&hello.frame()).0, Drop);
        let one = bench.counts();
        assert_eq!(one.since(&before), Delta { losses: vec![(HELD, 1)], ..counted(&[], &[(HELLO, IN)]) });
        assert_eq!(bench.to(&hello.frame()).0, Drop);
        let expected =
            Delta { losses: vec![(LOSS_HANDSHAKE_RING, 1)], ..counted(&[(Reason::RingFull, IN)], &[(HELLO, IN)]) };
        assert_eq!(bench.counts().since(&one), expected);
        bench.finish();
    });
}

#[test]
fn a_full_table_keeps_the_old_and_denies_the_new() {
    isolated(|place| {
        let bench = with(place, MapSizes { flows: Some(2), ..MapSizes::default() });
        let [pu, peer, external] = families()[0];
        for sport in [1, 2] {
            assert_eq!(bench.out(&Segment::syn(pu, peer, sport, PORT, ISN).frame()).0, Pass);
        }
        let full = |expected: &[(Reason, bool)], handshakes: &[(u8, bool)], step: &dyn Fn()| {
            let before = bench.counts();
            step();
            let delta = Delta { losses: vec![(LOSS_FLOW_TABLE, 1)], ..counted(expected, handshakes) };
            assert_eq!(bench.counts().since(&before), delta);
        };
        full(&[(Reason::TableFull, OUT)], &[], &|| {
            let syn = Segment::syn(pu, peer, 3, PORT, ISN);
            let (action, out) = bench.out(&syn.frame());
            assert_eq!(action, Redirect);
            assert_local_reset(&syn, &out);
        });
        full(&[(Reason::TableFull, OUT)], &[], &|| {
            assert_eq!(bench.out(&Segment::syn(pu, external, 3, 443, ISN).frame()).0, Redirect);
        });
        full(&[(Reason::TableFull, IN)], &[(DENY, OUT)], &|| {
            let syn = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN).with(resume(PEER_ISN, PEER_HANDLE));
            let (action, out) = bench.to(&syn.frame());
            assert_eq!(action, Redirect);
            assert_eq!(type_and_reason(Segment::parse(&out).last_option()), (DENY, Some(Reason::TableFull)));
        });
        full(&[(Reason::TableFull, IN)], &[], &|| {
            assert_eq!(bench.to(&Segment::syn(external, pu, SPORT, 443, PEER_ISN).frame()).0, Drop);
        });
        for sport in [1, 2] {
            assert_eq!(flow(&bench, pu, sport, peer, PORT).unwrap().state, SYN_SENT);
            assert_eq!(bench.out(&Segment::syn(pu, peer, sport, PORT, ISN).frame()).0, Pass, "known ones go on");
        }
        bench.finish();
    });
}
