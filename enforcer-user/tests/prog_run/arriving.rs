//! What comes to a PU: known peers, strangers, and the shield before them.

use super::*;

#[test]
fn a_syn_with_the_right_mac_is_judged_here() {
    isolated(|place| {
        let bench = bench(place);
        for ([pu, peer, _], first) in families().into_iter().zip([PEER_ISN, PEER_ISN + 3]) {
            // No two attempts have the same number.
            let isn = |port| first + u32::from(port - PORT);
            let syn = |port| Segment::syn(peer, pu, SPORT, port, isn(port)).with(resume(isn(port), PEER_HANDLE));
            let frame = syn(PORT).frame();
            let (action, out) = counting(&bench, &[], &[(RESUME, IN)], || bench.to(&frame));
            assert_eq!((action, out), (Pass, frame));
            let found = flow(&bench, pu, PORT, peer, SPORT).unwrap();
            assert_eq!((found.state, found.role, found.path), (SYN_RECEIVED, SERVER, PATH_RESUME));
            assert_eq!((found.peer_isn, found.peer_handle, found.session), (first, PEER_HANDLE, SESSION));
            assert_eq!((found.rule, found.observed_rule, found.flags), (ALLOW_RULE, OBSERVED, FLAG_LOG));
            assert_eq!((found.local_identity, found.peer_identity), (IDENTITY, PEER_IDENTITY));

            for (port, reason) in [(PORT + 1, Reason::DenyRule), (PORT + 2, Reason::NoRule)] {
                let syn = syn(port);
                let (action, out) = counting(&bench, &[(reason, IN)], &[(DENY, OUT)], || bench.to(&syn.frame()));
                assert_eq!(action, Redirect);
                assert_local_reset(&syn, &out);
                let answer = Segment::parse(&out);
                assert_eq!(answer.options.len(), 20, "nothing else comes back");
                let expected = sealed(KEY_OUT, DENY, reason as u8, 0, PEER_SESSION, (0, isn(port), 0));
                assert_eq!(answer.last_option(), expected);
                assert_eq!(flow(&bench, pu, port, peer, SPORT), None);
            }
        }
        bench.finish();
    });
}

#[test]
fn every_bit_of_a_resume_counts() {
    isolated(|place| {
        let bench = bench(place);
        let [pu, peer, _] = families()[0];
        let good = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN).with(resume(PEER_ISN, PEER_HANDLE));
        let before = bench.counts();
        let mut unknown = 0;
        for bit in 0..160 {
            let mut forged = good.clone();
            forged.options[20 + bit / 8] ^= 1 << (bit % 8);
            let frame = forged.frame();
            let (action, _) = bench.to(&frame);
            let shielded = bench.shield(&frame);
            match bit / 8 {
                // No longer our option: a stranger.
                0..4 => assert_eq!((action, shielded), (Drop, Pass), "bit {bit}"),
                // Another version or type.
                4 => assert_eq!(shielded, Pass, "bit {bit}"),
                // Another session: asked to start over.
                8..12 => {
                    unknown += 1;
                    assert_eq!((action, shielded), (Redirect, Pass), "bit {bit}");
                }
                _ => assert_eq!((action, shielded), (Drop, Drop), "bit {bit}"),
            }
            assert_eq!(flow(&bench, pu, PORT, peer, SPORT), None, "bit {bit}");
        }
        let delta = bench.counts().since(&before);
        let count = |reason: Reason| {
            delta.reasons.iter().find(|(name, ..)| *name == reason.name()).map_or(0, |(_, _, count)| *count)
        };
        assert_eq!(count(Reason::UnknownSession), unknown);
        assert_eq!(count(Reason::NoIdentity), 4 * 8);
        // Flags, handle and MAC: once by traffic control, once by the shield.
        assert_eq!(count(Reason::ResumeMac), 2 * 8 * (1 + 2 + 8));
        // Another ISN is another connection.
        let replayed = Segment { seq: PEER_ISN + 1, ..good.clone() };
        counting(&bench, &[(Reason::ResumeMac, IN)], &[], || assert_eq!(bench.to(&replayed.frame()).0, Drop));
        let loaded = good.carrying(b"data");
        counting(&bench, &[(Reason::HelloMalformed, IN)], &[], || assert_eq!(bench.to(&loaded.frame()).0, Drop));
        bench.finish();
    });
}

#[test]
fn unknown_sessions_and_handles_are_asked_to_start_over() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let plain = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN);
            let asked = |option: [u8; 20], reason: Reason| {
                let syn = Segment { flags: SYN | 0xc0, ..plain.clone() }.with(option);
                let (action, out) = counting(&bench, &[(reason, IN)], &[(RETRY, OUT)], || bench.to(&syn.frame()));
                assert_eq!(action, Redirect);
                let answer = Segment::parse(&out);
                let expected = Segment {
                    source: pu,
                    target: peer,
                    sport: PORT,
                    dport: SPORT,
                    seq: 0,
                    ack: PEER_ISN + 1,
                    flags: RST | ACK | 0xc0,
                    ..plain.clone()
                };
                let retry = prog::option(RETRY, reason as u8, 0, 0, 0);
                assert_eq!(answer, expected.with(retry), "{reason:?}");
                assert_eq!(flow(&bench, pu, PORT, peer, SPORT), None);
            };
            let unknown = sealed(KEY_IN, RESUME, 0, PEER_HANDLE, SESSION + 1, (PEER_ISN, 0, 0));
            asked(unknown, Reason::UnknownSession);
            asked(resume(PEER_ISN, PEER_HANDLE + 1), Reason::UnknownHandle);

            bench.session(SESSION, &Session { until_ns: prog::now() - TICK, ..session() });
            asked(resume(PEER_ISN, PEER_HANDLE), Reason::UnknownSession);
            bench.session(SESSION, &session());

            let known = SessionPu { session: SESSION, handle: PEER_HANDLE, pad: 0 };
            let expired = PeerPu { until_ns: prog::now() - TICK, identity: PEER_IDENTITY, ..PeerPu::default() };
            bench.maps.peer_pus.insert(&known, &expired).unwrap();
            asked(resume(PEER_ISN, PEER_HANDLE), Reason::UnknownHandle);
            bench.peer_pu(SESSION, PEER_HANDLE, PEER_IDENTITY);
        }
        bench.finish();
    });
}

#[test]
fn strangers_meet_silence_or_a_reset() {
    isolated(|place| {
        let mut bench = bench(place);
        for [pu, peer, external] in families() {
            let from_peer = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN);
            counting(&bench, &[(Reason::NoIdentity, IN)], &[], || assert_eq!(bench.to(&from_peer.frame()).0, Drop));
            let allowed = Segment::syn(external, pu, SPORT, 443, PEER_ISN).frame();
            counting(&bench, &[(Reason::Allowed, IN)], &[], || assert_eq!(bench.to(&allowed).0, Pass));
            let found = flow(&bench, pu, 443, external, SPORT).unwrap();
            assert_eq!((found.state, found.role, found.path), (ESTABLISHED, SERVER, PATH_EXTERNAL));
            let denied = Segment::syn(external, pu, SPORT, 444, PEER_ISN);
            counting(&bench, &[(Reason::DenyRule, IN)], &[], || assert_eq!(bench.to(&denied.frame()).0, Drop));
            let unnamed = Segment::syn(external, pu, SPORT, 445, PEER_ISN);
            counting(&bench, &[(Reason::NoIdentity, IN)], &[], || assert_eq!(bench.to(&unnamed.frame()).0, Drop));

            bench.config.update(|config| config.flags |= CONFIG_STRANGERS_REJECT).unwrap();
            for (syn, reason) in [(&from_peer, Reason::NoIdentity), (&denied, Reason::DenyRule)] {
                let (action, out) = counting(&bench, &[(reason, IN)], &[(DENY, OUT)], || bench.to(&syn.frame()));
                assert_eq!(action, Redirect);
                assert_local_reset(syn, &out);
                assert!(Segment::parse(&out).options.is_empty(), "nothing is told to a stranger");
            }
            bench.config.update(|config| config.flags = 0).unwrap();

            let both = Segment::syn(peer, pu, PORT, SPORT, PEER_ISN).with(resume(PEER_ISN, PEER_HANDLE)).frame();
            bench.maps.flows.insert(&key(pu, SPORT, peer, PORT), &sent(&bench)).unwrap();
            counting(&bench, &[(Reason::SimultaneousOpen, IN)], &[], || assert_eq!(bench.to(&both).0, Drop));
            for flags in [ACK, ACK | FIN, RST, SYN | ACK, 0] {
                let stray = Segment { flags, dport: 9, ..from_peer.clone() }.frame();
                counting(&bench, &[(Reason::NoFlow, IN)], &[], || assert_eq!(bench.to(&stray).0, Drop));
            }
        }
        bench.finish();
    });
}

#[test]
fn sockets_are_attributed_by_their_storage() {
    isolated(|place| {
        let bench = bench(place);
        place::ip("addr add 10.0.0.1/8 dev v0");
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        let [pu, peer, _] = families()[0];
        let syn = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN);
        let ingress = |segment: &Segment| bench.run("tc_ingress", &segment.frame()).0;
        counting(&bench, &[], &[], || assert_eq!(ingress(&syn), Pass, "unmanaged"));
        bench.maps.pu_sockets.insert(listener.as_fd(), PU).unwrap();
        counting(&bench, &[(Reason::NoIdentity, IN)], &[], || assert_eq!(ingress(&syn), Drop));
        let known = syn.clone().with(resume(PEER_ISN, PEER_HANDLE));
        counting(&bench, &[], &[(RESUME, IN)], || assert_eq!(ingress(&known), Pass));
        assert_eq!(flow(&bench, pu, PORT, peer, SPORT).unwrap().pu_ifindex, 0);
        // A flow that is enforced at an interface is none of the socket's programs' business, and the other way round.
        let ack = Segment { flags: ACK, ..syn.clone() };
        counting(&bench, &[(Reason::Unconfirmed, IN)], &[], || assert_eq!(ingress(&ack), Drop));
        counting(&bench, &[], &[], || assert_eq!(bench.to(&ack.frame()).0, Pass));
        bench.maps.pu_sockets.insert(listener.as_fd(), 77).unwrap();
        let unknown = Segment { sport: 1, ..syn };
        counting(&bench, &[(Reason::NoCredential, IN)], &[], || assert_eq!(ingress(&unknown), Drop));
        bench.finish();
    });
}

#[test]
fn the_shield_drops_what_traffic_control_would_and_nothing_else() {
    isolated(|place| {
        let mut bench = bench(place);
        for [pu, peer, external] in families() {
            let any = if pu.is_ipv4() { common::addr_v4(0) } else { addr(pu) };
            bench.maps.pu_listeners.insert(&ListenerKey { addr: any, port: PORT, pad: 0 }, &PU).unwrap();
            let shield = |bench: &Bench, segment: &Segment| bench.shield(&segment.frame());
            let syn = |isn| Segment::syn(peer, pu, SPORT, PORT, isn);
            let good = syn(PEER_ISN).with(resume(PEER_ISN, PEER_HANDLE));
            counting(&bench, &[], &[], || assert_eq!(shield(&bench, &good), Pass));
            let forged = Segment { seq: PEER_ISN + 1, ..good.clone() };
            counting(&bench, &[(Reason::ResumeMac, IN)], &[], || assert_eq!(shield(&bench, &forged), Drop));
            let others = [
                Segment { flags: ACK, ..forged.clone() },
                Segment { flags: SYN | ACK, ..forged.clone() },
                Segment { flags: RST, ..forged.clone() },
                syn(1).with(sealed(KEY_IN, RESUME, 0, PEER_HANDLE, SESSION + 1, (1, 0, 0))),
                syn(1).with(option(HELLO, 0, PEER_HANDLE, 1, 2)),
                Segment { dport: PORT + 1, ..syn(1) },
                Segment { source: external, ..syn(1) },
            ];
            for other in &others {
                counting(&bench, &[], &[], || assert_eq!(shield(&bench, other), Pass, "{other:?}"));
            }
            counting(&bench, &[(Reason::NoIdentity, IN)], &[], || assert_eq!(shield(&bench, &syn(1)), Drop));
            bench.session(SESSION, &Session { until_ns: 1, ..session() });
            counting(&bench, &[], &[], || {
                assert_eq!(shield(&bench, &forged), Pass, "an expired session is asked to start over")
            });
            bench.session(SESSION, &session());
            bench.config.update(|config| config.flags |= CONFIG_STRANGERS_REJECT).unwrap();
            counting(&bench, &[], &[], || {
                assert_eq!(shield(&bench, &syn(1)), Pass, "resets are for traffic control to send")
            });
            bench.config.update(|config| config.flags = 0).unwrap();
        }
        bench.finish();
    });
}

#[test]
fn a_pair_never_judged_is_the_agents() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let held = |frame: &[u8], handshakes: &[(u8, bool)]| {
                let before = bench.counts();
                assert_eq!(bench.to(frame).0, Drop);
                let expected = Delta { losses: vec![(HELD, 1)], ..counted(&[], handshakes) };
                assert_eq!(bench.counts().since(&before), expected);
            };
            let other = PEER_HANDLE + 5;
            bench.peer_pu(SESSION, other, PEER_IDENTITY + 5);
            let syn = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN);
            held(&syn.clone().with(resume(PEER_ISN, other)).frame(), &[]);
            assert_eq!(flow(&bench, pu, PORT, peer, SPORT), None);
            held(&syn.with(option(HELLO, 0, other, 1, 2)).carrying(b"a credential").frame(), &[(HELLO, IN)]);

            let at = key(pu, SPORT, peer, PORT);
            bench.maps.flows.insert(&at, &sent(&bench)).unwrap();
            let reply = sealed(KEY_IN, RESUME_REPLY, 0, other, SESSION, (PEER_ISN, ISN, HANDLE));
            let bare =
                Segment { ack: ISN.wrapping_add(1), flags: SYN | ACK, ..Segment::syn(peer, pu, PORT, SPORT, PEER_ISN) };
            held(&bare.clone().with(reply).frame(), &[]);
            let introduced = option(HELLO_REPLY, 0, other, SESSION, 1);
            held(&bare.with(introduced).carrying(b"a credential").frame(), &[(HELLO_REPLY, IN)]);
            assert_eq!(bench.maps.flows.get(&at).unwrap().unwrap().state, SYN_SENT);
        }
        bench.finish();
    });
}

/// SipHash-2-4 as it runs in the kernel, against another implementation, which is held against the vector of its paper first.
#[test]
fn the_kernels_mac_is_siphash() {
    use std::hash::Hasher;
    let mut reference = siphasher::sip::SipHasher24::new_with_keys(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
    reference.write(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    assert_eq!(reference.finish(), 0xa129_ca61_49be_45e5);
    isolated(|place| {
        let bench = bench(place);
        let [pu, peer, _] = families()[0];
        let session = bench.maps.sessions.get(&SESSION).unwrap().unwrap();
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ state >> 33
        };
        for number in 0..500 {
            let special = [0, u64::MAX, 1, 1 << 63];
            let (k0, k1) = if number < 16 { (special[number % 4], special[number / 4]) } else { (next(), next()) };
            let (isn, handle) = (next() as u32, next() as u16);
            bench.maps.sessions.insert(&SESSION, &Session { key_in: MacKey { k0, k1 }, ..session }).unwrap();
            let option = sealed(MacKey { k0, k1 }, RESUME, 0, handle, SESSION, (isn, 0, 0));
            let syn = |option| Segment::syn(peer, pu, SPORT, PORT, isn).with(option).frame();
            assert_eq!(bench.shield(&syn(option)), Pass, "{k0:x} {k1:x} {isn:x} {handle:x}");
            let mut wrong = option;
            wrong[12 + number % 8] ^= 1 << (next() % 8);
            assert_eq!(bench.shield(&syn(wrong)), Drop, "{k0:x} {k1:x} {isn:x} {handle:x}");
        }
        bench.finish();
    });
}
