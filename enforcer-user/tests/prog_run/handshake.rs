//! From the answer to the confirmation, RETRY and DENY.

use super::*;

#[test]
fn a_retry_becomes_the_syn_again() {
    isolated(|place| {
        let bench = bench(place);
        let credential = the_credential();
        for [pu, peer, _] in families() {
            let syn = Segment { flags: SYN | 0xc0, ..Segment::syn(pu, peer, SPORT, PORT, ISN) };
            bench.out(&syn.frame());
            let retry = Segment {
                source: peer,
                target: pu,
                sport: PORT,
                dport: SPORT,
                seq: 0,
                ack: ISN.wrapping_add(1),
                flags: RST | ACK | 0xc0,
                ..syn.clone()
            }
            .with(option(RETRY, Reason::UnknownSession as u8, 0, 0, 0));
            let late = Segment { ack: ISN, ..retry.clone() }.frame();
            counting(&bench, &[(Reason::NoFlow, IN)], &[], || assert_eq!(bench.to(&late).0, Drop));

            let (action, out) = counting(&bench, &[], &[(HELLO, OUT), (RETRY, IN)], || bench.to(&retry.frame()));
            assert_eq!(action, Redirect);
            let hello = option(HELLO, 0, HANDLE, credential.hash_index, credential.hash_mac);
            let expected = syn.clone().with(hello).carrying(&credential.bytes[..credential.len as usize]);
            assert_eq!(Segment::parse(&out), expected);
            let found = flow(&bench, pu, SPORT, peer, PORT).unwrap();
            assert_eq!((found.state, found.path, found.session), (SYN_SENT, PATH_HELLO, 0));
            assert_eq!(found.flags & FLAG_RETRIED, FLAG_RETRIED);

            counting(&bench, &[(Reason::RetryLoop, IN)], &[], || assert_eq!(bench.to(&retry.frame()).0, Drop));
            // The peer has forgotten this PU: the next SYN introduces it.
            counting(&bench, &[], &[(HELLO, OUT)], || bench.out(&Segment { sport: 1, ..syn.clone() }.frame()));
            bench.known(SESSION, HANDLE);
        }
        bench.finish();
    });
}

#[test]
fn a_resume_taken_for_a_replay_is_said_otherwise_without_any_agent() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let syn = Segment::syn(pu, peer, SPORT, PORT, ISN);
            counting(&bench, &[], &[(RESUME, OUT)], || bench.out(&syn.frame()));
            let retry = Segment {
                source: peer,
                target: pu,
                sport: PORT,
                dport: SPORT,
                seq: 0,
                ack: ISN.wrapping_add(1),
                flags: RST | ACK,
                ..syn.clone()
            }
            .with(option(RETRY, Reason::ResumeReplayed as u8, 0, 0, 0));
            let (action, out) = counting(&bench, &[], &[(RESUME, OUT), (RETRY, IN)], || bench.to(&retry.frame()));
            let again = syn.clone().with(sealed(KEY_OUT, RESUME, RESUME_AGAIN, HANDLE, PEER_SESSION, (ISN, 0, 0)));
            assert_eq!((action, Segment::parse(&out)), (Redirect, again.clone()));
            let found = flow(&bench, pu, SPORT, peer, PORT).unwrap();
            assert_eq!((found.state, found.path, found.session), (SYN_SENT, PATH_RESUME, SESSION));
            counting(&bench, &[(Reason::RetryLoop, IN)], &[], || assert_eq!(bench.to(&retry.frame()).0, Drop));
            // TCP's own repetition says it as it was said last.
            let (action, out) = counting(&bench, &[], &[(RESUME, OUT)], || bench.out(&syn.frame()));
            assert_eq!((action, Segment::parse(&out)), (Pass, again));
            // Another connection has another MAC anyway.
            let other = Segment { sport: 1, ..syn.clone() };
            let (_, out) = counting(&bench, &[], &[(RESUME, OUT)], || bench.out(&other.frame()));
            let plain = sealed(KEY_OUT, RESUME, 0, HANDLE, PEER_SESSION, (ISN, 0, 0));
            assert_eq!(Segment::parse(&out), other.with(plain));
        }
        bench.finish();
    });
}

#[test]
fn the_answer_carries_its_proof() {
    isolated(|place| {
        let bench = bench(place);
        let credential = the_credential();
        for [pu, peer, _] in families() {
            let at = key(pu, PORT, peer, SPORT);
            let answer = Segment { ack: PEER_ISN + 1, flags: SYN | ACK, ..Segment::syn(pu, peer, PORT, SPORT, ISN) };
            bench.maps.flows.insert(&at, &Flow { local_isn: 0, ..received(&bench) }).unwrap();
            let (action, out) = counting(&bench, &[], &[(RESUME_REPLY, OUT)], || bench.out(&answer.frame()));
            let reply = sealed(KEY_OUT, RESUME_REPLY, 0, HANDLE, PEER_SESSION, (ISN, PEER_ISN, PEER_HANDLE));
            assert_eq!((action, Segment::parse(&out)), (Pass, answer.clone().with(reply)));
            assert_eq!(bench.maps.flows.get(&at).unwrap().unwrap().local_isn, ISN);

            // The client asks who that is: the same segment, now with the credential.
            let asked =
                Segment { source: peer, target: pu, sport: SPORT, dport: PORT, flags: RST | ACK, ..answer.clone() }
                    .with(option(RETRY, Reason::UnknownHandle as u8, 0, 0, 0));
            let (action, out) = counting(&bench, &[], &[(HELLO_REPLY, OUT), (RETRY, IN)], || bench.to(&asked.frame()));
            let introduced = sealed(KEY_OUT, HELLO_REPLY, 0, HANDLE, SESSION, (ISN, PEER_ISN, PEER_HANDLE));
            let credential_bytes = &credential.bytes[..credential.len as usize];
            let expected = answer.clone().with(introduced).carrying(credential_bytes);
            assert_eq!((action, Segment::parse(&out)), (Redirect, expected.clone()));
            counting(&bench, &[(Reason::RetryLoop, IN)], &[], || assert_eq!(bench.to(&asked.frame()).0, Drop));

            // A client that does not know this PU gets the credential at once.
            bench.maps.known_to_peer.remove(&SessionPu { session: SESSION, handle: HANDLE, pad: 0 }).unwrap();
            bench.maps.flows.insert(&at, &Flow { local_isn: 0, ..received(&bench) }).unwrap();
            let (action, out) = counting(&bench, &[], &[(HELLO_REPLY, OUT)], || bench.out(&answer.frame()));
            assert_eq!((action, Segment::parse(&out)), (Pass, expected));
            let found = bench.maps.flows.get(&at).unwrap().unwrap();
            assert_eq!((found.path, found.flags), (PATH_HELLO, FLAG_CREDENTIAL_SENT));
            bench.known(SESSION, HANDLE);

            let forged = answer.clone().with(reply).frame();
            counting(&bench, &[(Reason::ForgedByPu, OUT)], &[], || assert_eq!(bench.out(&forged).0, Drop));
            bench.maps.flows.insert(&at, &Flow { session: 1, ..received(&bench) }).unwrap();
            let gone = answer.frame();
            counting(&bench, &[(Reason::SessionExpired, OUT)], &[], || assert_eq!(bench.out(&gone).0, Drop));
        }
        bench.finish();
    });
}

#[test]
fn nothing_passes_before_the_confirmation() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let at = key(pu, PORT, peer, SPORT);
            let bare = Segment {
                source: peer,
                target: pu,
                sport: SPORT,
                dport: PORT,
                seq: PEER_ISN + 1,
                ack: ISN.wrapping_add(1),
                flags: ACK,
                options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
                payload: b"the first bytes".to_vec(),
            };
            let refused = |segment: Segment, reason| {
                bench.maps.flows.insert(&at, &received(&bench)).unwrap();
                let frame = segment.frame();
                counting(&bench, &[(reason, IN)], &[], || assert_eq!(bench.to(&frame).0, Drop));
                assert_eq!(bench.maps.flows.get(&at).unwrap().unwrap().state, SYN_RECEIVED);
            };
            refused(bare.clone(), Reason::Unconfirmed);
            refused(Segment { flags: ACK | FIN, ..bare.clone() }, Reason::Unconfirmed);
            for bit in 32..160 {
                // The index is covered by the MAC like everything else.
                let mut forged = bare.clone().with(confirm());
                forged.options[12 + bit / 8] ^= 1 << (bit % 8);
                refused(forged, Reason::ConfirmMac);
            }
            for (isn, peer_isn, handle) in
                [(PEER_ISN + 1, ISN, HANDLE), (PEER_ISN, ISN + 1, HANDLE), (PEER_ISN, ISN, HANDLE + 1)]
            {
                let other = sealed(KEY_IN, CONFIRM, 0, PEER_HANDLE, PEER_SESSION, (isn, peer_isn, handle));
                refused(bare.clone().with(other), Reason::ConfirmMac);
            }
            let own = sealed(KEY_OUT, CONFIRM, 0, PEER_HANDLE, PEER_SESSION, (PEER_ISN, ISN, HANDLE));
            refused(bare.clone().with(own), Reason::ConfirmMac);

            // The right one teaches the peer's index, once, and that the peer knows the credential it was sent.
            bench.session(SESSION, &Session { peer_index: 0, ..session() });
            let known = SessionPu { session: SESSION, handle: HANDLE, pad: 0 };
            bench.maps.known_to_peer.remove(&known).unwrap();
            let sent = Flow { flags: FLAG_CREDENTIAL_SENT, ..received(&bench) };
            bench.maps.flows.insert(&at, &sent).unwrap();
            let frame = bare.clone().with(confirm()).frame();
            let (action, out) = counting(&bench, &[(Reason::Allowed, IN)], &[(CONFIRM, IN)], || bench.to(&frame));
            assert_eq!((action, out), (Pass, frame));
            let found = bench.maps.flows.get(&at).unwrap().unwrap();
            assert_eq!((found.state, found.packets_in), (ESTABLISHED, 1));
            assert_eq!(bench.maps.sessions.get(&SESSION).unwrap().unwrap().peer_index, PEER_SESSION);
            assert!(bench.maps.known_to_peer.get(&known).unwrap().is_some());
            counting(&bench, &[], &[], || assert_eq!(bench.to(&bare.frame()).0, Pass));
        }
        bench.finish();
    });
}

#[test]
fn the_answer_is_verified_and_confirmed() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let at = key(pu, SPORT, peer, PORT);
            let bare =
                Segment { ack: ISN.wrapping_add(1), flags: SYN | ACK, ..Segment::syn(peer, pu, PORT, SPORT, PEER_ISN) };
            let reply = |handle, index| sealed(KEY_IN, RESUME_REPLY, 0, handle, index, (PEER_ISN, ISN, HANDLE));
            let good = bare.clone().with(reply(PEER_HANDLE, SESSION));
            let fresh = || bench.maps.flows.insert(&at, &sent(&bench)).unwrap();

            // Wrong proofs are ignored, as an attacker on the path could send them.
            for bit in 32..160 {
                fresh();
                let mut forged = good.clone();
                forged.options[20 + bit / 8] ^= 1 << (bit % 8);
                let (action, _) = bench.to(&forged.frame());
                assert_eq!(action, Drop, "bit {bit}");
                assert_eq!(bench.maps.flows.get(&at).unwrap().unwrap().state, SYN_SENT);
            }
            for segment in [
                Segment { ack: ISN, ..good.clone() },
                Segment { seq: PEER_ISN + 1, ..good.clone() },
                bare.clone().with(reply(PEER_HANDLE, SESSION + 1)),
                bare.clone().with(sealed(KEY_IN, RESUME_REPLY, 0, PEER_HANDLE, SESSION, (PEER_ISN, ISN, 0))),
            ] {
                let frame = segment.frame();
                counting(&bench, &[(Reason::ReplyMac, IN)], &[], || assert_eq!(bench.to(&frame).0, Drop));
            }
            let loaded = good.clone().carrying(b"data").frame();
            counting(&bench, &[(Reason::HelloMalformed, IN)], &[], || assert_eq!(bench.to(&loaded).0, Drop));

            // A PU never met: its enforcer is asked.
            let unmet = bare.clone().with(reply(PEER_HANDLE + 1, SESSION));
            let (action, out) =
                counting(&bench, &[(Reason::UnknownHandle, IN)], &[(RETRY, OUT)], || bench.to(&unmet.frame()));
            let retry = option(RETRY, Reason::UnknownHandle as u8, 0, 0, 0);
            let turned =
                Segment { source: pu, target: peer, sport: SPORT, dport: PORT, flags: RST | ACK, ..bare.clone() };
            assert_eq!((action, Segment::parse(&out)), (Redirect, turned.with(retry)));

            // The right one is let through, and the acknowledgement proves this end.
            let (action, out) = counting(&bench, &[], &[(RESUME_REPLY, IN)], || bench.to(&good.frame()));
            assert_eq!((action, out), (Pass, good.frame()));
            let confirming = bench.maps.flows.get(&at).unwrap().unwrap();
            assert_eq!((confirming.state, confirming.rule, confirming.peer_isn), (CONFIRMING, ALLOW_RULE, PEER_ISN));

            // The same once more is the stack's matter. Another server's, who was shown the same SYN, comes too late.
            counting(&bench, &[], &[(RESUME_REPLY, IN)], || assert_eq!(bench.to(&good.frame()).0, Pass));
            let other = sealed(KEY_IN, RESUME_REPLY, 0, PEER_HANDLE, SESSION, (PEER_ISN + 1, ISN, HANDLE));
            let second = Segment { seq: PEER_ISN + 1, ..bare.clone() }.with(other).frame();
            counting(&bench, &[(Reason::ReplyMac, IN)], &[], || assert_eq!(bench.to(&second).0, Drop));
            let still = bench.maps.flows.get(&at).unwrap().unwrap();
            assert_eq!(
                (still.state, still.peer_isn, still.confirm_mac),
                (CONFIRMING, PEER_ISN, confirming.confirm_mac)
            );
            let ack = Segment {
                source: pu,
                target: peer,
                sport: SPORT,
                dport: PORT,
                seq: ISN.wrapping_add(1),
                ack: PEER_ISN + 1,
                flags: ACK,
                options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
                payload: Vec::new(),
            };
            let proof = sealed(KEY_OUT, CONFIRM, 0, HANDLE, SESSION, (ISN, PEER_ISN, PEER_HANDLE));
            // Data that comes before the peer was heard is cut off; TCP sends it again.
            for data in [&b""[..], b"x", b"GET / HTTP/1.0\r\n\r\n", &[7; 1400]] {
                let frame = ack.clone().carrying(data).frame();
                let (action, out) = counting(&bench, &[], &[(CONFIRM, OUT)], || bench.out(&frame));
                assert_eq!((action, Segment::parse(&out)), (Pass, ack.clone().with(proof)), "{data:?}");
            }
            let forged = ack.clone().with(confirm()).frame();
            counting(&bench, &[(Reason::ForgedByPu, OUT)], &[], || assert_eq!(bench.out(&forged).0, Drop));

            // Lost acknowledgement: the answer comes again. Then the peer is heard.
            counting(&bench, &[], &[(RESUME_REPLY, IN)], || assert_eq!(bench.to(&good.frame()).0, Pass));
            let heard = Segment {
                source: peer,
                target: pu,
                sport: PORT,
                dport: SPORT,
                seq: PEER_ISN + 1,
                ack: ISN.wrapping_add(1),
                ..ack.clone()
            }
            .frame();
            counting(&bench, &[(Reason::Allowed, OUT)], &[], || assert_eq!(bench.to(&heard).0, Pass));
            assert_eq!(bench.maps.flows.get(&at).unwrap().unwrap().state, ESTABLISHED);
            let data = ack.clone().carrying(b"request").frame();
            counting(&bench, &[], &[], || assert_eq!(bench.out(&data), (Pass, data.clone())));
            // A late CONFIRM of this flow is fine, any other option is not.
            counting(&bench, &[], &[], || assert_eq!(bench.out(&ack.clone().with(proof).frame()).0, Pass));
            counting(&bench, &[(Reason::ForgedByPu, OUT)], &[], || assert_eq!(bench.out(&forged).0, Drop));
        }
        bench.finish();
    });
}

#[test]
fn an_answer_that_is_not_allowed_ends_the_attempt() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let answer = |port| Segment {
                ack: ISN.wrapping_add(1),
                flags: SYN | ACK,
                ..Segment::syn(peer, pu, port, SPORT, PEER_ISN)
            };
            let reply = sealed(KEY_IN, RESUME_REPLY, 0, PEER_HANDLE, SESSION, (PEER_ISN, ISN, HANDLE));
            for (port, carried, path, reason) in [
                (PORT + 1, Some(reply), PATH_RESUME, Reason::DenyRule),
                (PORT + 2, Some(reply), PATH_RESUME, Reason::NoRule),
                (PORT, None, PATH_RESUME, Reason::IdentityMissing),
                (PORT, None, PATH_HELLO, Reason::PeerNoIdentity),
            ] {
                let at = key(pu, SPORT, peer, port);
                bench.maps.flows.insert(&at, &Flow { path, ..sent(&bench) }).unwrap();
                let mut answer = answer(port);
                if let Some(option) = carried {
                    answer = answer.with(option);
                }
                let (action, out) = counting(&bench, &[(reason, IN)], &[], || bench.to(&answer.frame()));
                assert_eq!(action, Pass, "{reason:?}");
                let reset = Segment::parse(&out);
                assert_eq!((reset.source, reset.target), (peer, pu), "{reason:?}");
                assert_eq!((reset.sport, reset.dport), (port, SPORT));
                assert_eq!((reset.flags, reset.seq, reset.ack), (RST | ACK, 0, ISN.wrapping_add(1)));
                assert_eq!(bench.maps.flows.get(&at).unwrap(), None);
            }
        }
        bench.finish();
    });
}

#[test]
fn a_refusal_by_the_peer_must_be_authentic() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let at = key(pu, SPORT, peer, PORT);
            let bare = Segment {
                source: peer,
                target: pu,
                sport: PORT,
                dport: SPORT,
                seq: 0,
                ack: ISN.wrapping_add(1),
                flags: RST | ACK,
                ..Segment::syn(peer, pu, PORT, SPORT, 0)
            };
            let deny = |reason: u8| sealed(KEY_IN, DENY, reason, 0, SESSION, (0, ISN, 0));
            let sent = || bench.maps.flows.insert(&at, &sent(&bench)).unwrap();
            sent();
            for bit in 40..160 {
                let mut forged = bare.clone().with(deny(Reason::NoRule as u8));
                forged.options[20 + bit / 8] ^= 1 << (bit % 8);
                let frame = forged.frame();
                counting(&bench, &[(Reason::ReplyMac, IN)], &[], || assert_eq!(bench.to(&frame).0, Drop));
            }
            // Another session's peer, however authentic, is not the one that was asked.
            let with = |session| Flow { session, ..super::sent(&bench) };
            bench.maps.flows.insert(&at, &with(SESSION + 1)).unwrap();
            let other = bare.clone().with(deny(Reason::NoRule as u8)).frame();
            counting(&bench, &[(Reason::ReplyMac, IN)], &[], || assert_eq!(bench.to(&other).0, Drop));
            bench.maps.flows.insert(&at, &with(SESSION)).unwrap();
            counting(&bench, &[(Reason::NoRule, IN)], &[(DENY, IN)], || assert_eq!(bench.to(&other).0, Pass));
            sent();
            let late = Segment { ack: ISN, ..bare.clone() }.with(deny(1)).frame();
            counting(&bench, &[(Reason::NoFlow, IN)], &[], || assert_eq!(bench.to(&late).0, Drop));
            assert!(bench.maps.flows.get(&at).unwrap().is_some());

            for (number, reason) in [(1, Reason::NoRule), (27, Reason::TableFull), (200, Reason::PeerDenied)] {
                sent();
                let frame = bare.clone().with(deny(number)).frame();
                let (action, out) = counting(&bench, &[(reason, IN)], &[(DENY, IN)], || bench.to(&frame));
                assert_eq!((action, out), (Pass, frame));
                assert_eq!(bench.maps.flows.get(&at).unwrap(), None);
            }
            sent();
            let plain = bare.clone().with(option(DENY, Reason::AgentDown as u8, 0, 0, 0)).frame();
            counting(&bench, &[(Reason::AgentDown, IN)], &[(DENY, IN)], || assert_eq!(bench.to(&plain).0, Pass));
        }
        bench.finish();
    });
}
