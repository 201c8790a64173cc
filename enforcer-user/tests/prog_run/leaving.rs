//! What a PU sends: identity attached, or refused before it leaves.

use super::*;

#[test]
fn a_syn_of_a_known_session_resumes() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let syn = Segment::syn(pu, peer, SPORT, PORT, ISN);
            let (action, out) = counting(&bench, &[], &[(RESUME, OUT)], || bench.out(&syn.frame()));
            assert_eq!(action, Pass);
            let option = sealed(KEY_OUT, RESUME, 0, HANDLE, PEER_SESSION, (ISN, 0, 0));
            assert_eq!(Segment::parse(&out), syn.clone().with(option));
            let flow = flow(&bench, pu, SPORT, peer, PORT).unwrap();
            assert_eq!((flow.state, flow.role, flow.path), (SYN_SENT, CLIENT, PATH_RESUME));
            assert_eq!((flow.pu, flow.session, flow.local_isn, flow.local_handle), (PU, SESSION, ISN, HANDLE));
            assert_eq!((flow.pu_ifindex, flow.next_out), (bench.ifindex, ISN.wrapping_add(1)));
            assert_eq!((flow.packets_out, flow.packets_in), (1, 0));

            // A retransmission is the same packet, for the same flow.
            assert_eq!(bench.out(&syn.frame()), (Pass, out));
            assert_eq!(bench.maps.flows.get(&key(pu, SPORT, peer, PORT)).unwrap().unwrap().packets_out, 2);

            // Expired, or with an index not known yet: HELLO instead.
            for session in [Session { until_ns: 1, ..session() }, Session { peer_index: 0, ..session() }] {
                bench.session(SESSION, &session);
                counting(&bench, &[], &[(HELLO, OUT)], || bench.out(&syn.frame()));
            }
            bench.session(SESSION, &session());
            bench.maps.known_to_peer.insert(&SessionPu { session: SESSION, handle: HANDLE, pad: 0 }, &1).unwrap();
            counting(&bench, &[], &[(HELLO, OUT)], || bench.out(&syn.frame()));
            bench.known(SESSION, HANDLE);
        }
        bench.finish();
    });
}

#[test]
fn a_syn_to_a_stranger_carries_the_credential() {
    isolated(|place| {
        let mut bench = bench(place);
        let v0 = bench.ifindex;
        for [pu, peer, _] in families() {
            let elsewhere = match peer {
                IpAddr::V4(_) => "10.9.9.9".parse().unwrap(),
                IpAddr::V6(_) => "fd00::9".parse().unwrap(),
            };
            let mut sent = 0;
            for len in [1, 2, 3, 4, 611, 1000, CREDENTIAL_MAX] {
                let credential = credential(len, len as u8);
                bench.pu(PU, v0, IDENTITY, HANDLE, &credential);
                let syn = Segment::syn(pu, elsewhere, SPORT, PORT, ISN);
                // Data of Fast Open is cut off.
                for data in [&b""[..], b"x", b"GET / HTTP/1.0\r\n\r\n"] {
                    let frame = syn.clone().carrying(data).frame();
                    // Nothing has come back when it is sent for the third time.
                    sent += 1;
                    let told = [(Reason::HelloUnanswered, OUT)];
                    let told = if sent == 3 { &told[..] } else { &[] };
                    let (action, out) = counting(&bench, told, &[(HELLO, OUT)], || bench.out(&frame));
                    assert_eq!(action, Pass);
                    let option = option(HELLO, 0, HANDLE, credential.hash_index, credential.hash_mac);
                    let expected = syn.clone().with(option).carrying(&credential.bytes[..len]);
                    assert_eq!(Segment::parse(&out), expected, "{len} bytes for {data:?}");
                }
                let flow = flow(&bench, pu, SPORT, elsewhere, PORT).unwrap();
                assert_eq!((flow.state, flow.path, flow.session), (SYN_SENT, PATH_HELLO, 0));
            }
        }
        bench.finish();
    });
}

#[test]
fn a_full_header_is_given_room_or_refused() {
    isolated(|place| {
        let bench = bench(place);
        let mptcp = [30, 12, 1, 0x81, 1, 2, 3, 4, 5, 6, 7, 8];
        let fast_open_cookie = [34, 10, 9, 8, 7, 6, 5, 4, 3, 2];
        let md5: [u8; 18] = std::array::from_fn(|at| match at {
            0 => 19,
            1 => 18,
            _ => at as u8,
        });
        for [pu, peer, _] in families() {
            let mut plain = Segment::syn(pu, peer, SPORT, PORT, ISN);
            let full = |tail: &[u8]| {
                let mut syn = plain.clone();
                syn.options.extend(tail);
                syn.options.resize(syn.options.len().next_multiple_of(4), 1);
                syn
            };
            for (what, syn) in [("MPTCP", full(&mptcp)), ("Fast Open", full(&fast_open_cookie))] {
                for data in [&b""[..], b"abc"] {
                    let frame = syn.clone().carrying(data).frame();
                    let (action, out) = counting(&bench, &[], &[(RESUME, OUT)], || bench.out(&frame));
                    let option = sealed(KEY_OUT, RESUME, 0, HANDLE, PEER_SESSION, (ISN, 0, 0));
                    assert_eq!((action, Segment::parse(&out)), (Pass, plain.clone().with(option)), "{what}");
                }
            }
            // An option that ends on an odd byte: the gap is filled.
            plain.options = vec![2, 4, 5, 180, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 3, 3, 7];
            let mut syn = plain.clone();
            syn.options.extend(mptcp);
            syn.options.resize(32, 0);
            let (action, out) = bench.out(&syn.frame());
            plain.options.resize(20, 1);
            let option = sealed(KEY_OUT, RESUME, 0, HANDLE, PEER_SESSION, (ISN, 0, 0));
            assert_eq!((action, Segment::parse(&out)), (Pass, plain.clone().with(option)));

            let mut signed = Segment::syn(pu, peer, SPORT, PORT, ISN);
            signed.options.extend(md5);
            signed.options.resize(40, 0);
            let (action, out) = counting(&bench, &[(Reason::OptionSpace, OUT)], &[], || bench.out(&signed.frame()));
            assert_eq!(action, Redirect);
            assert_local_reset(&signed, &out);
            assert_eq!(flow(&bench, pu, SPORT, peer, PORT), None);
        }
        bench.finish();
    });
}

#[test]
fn what_a_pu_may_not_send_is_refused_at_once() {
    isolated(|place| {
        let bench = bench(place);
        let outside: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db9::1".parse().unwrap()];
        for ([pu, peer, external], outside) in families().into_iter().zip(outside) {
            let refused = |target, port, reason: Reason, option: Option<[u8; 20]>| {
                let mut syn = Segment::syn(pu, target, SPORT, port, ISN);
                if let Some(option) = option {
                    syn = syn.with(option);
                }
                let (action, out) = counting(&bench, &[(reason, OUT)], &[], || bench.out(&syn.frame()));
                assert_eq!(action, Redirect, "{reason:?}");
                assert_local_reset(&syn, &out);
                assert_eq!(flow(&bench, pu, SPORT, target, port), None);
            };
            refused(outside, PORT, Reason::OutsideIdentityNetworks, None);
            refused(external, 444, Reason::DenyRule, None);
            refused(external, 445, Reason::OutsideIdentityNetworks, None);
            refused(peer, PORT, Reason::ForgedByPu, Some(resume(ISN, HANDLE)));
            refused(peer, PORT, Reason::ForgedByPu, Some(option(HELLO, 0, HANDLE, 1, 2)));

            let stray = |flags, carried: Option<[u8; 20]>, reason| {
                let mut segment = Segment { flags, ..Segment::syn(pu, peer, SPORT, PORT, ISN) };
                segment.options = carried.map(Into::into).unwrap_or_default();
                let frame = segment.frame();
                let (action, _) = counting(&bench, &[(reason, OUT)], &[], || bench.out(&frame));
                assert_eq!(action, Drop);
            };
            stray(ACK, None, Reason::NoFlow);
            stray(ACK | PSH, None, Reason::NoFlow);
            stray(SYN | ACK, None, Reason::NoFlow);
            stray(RST, None, Reason::NoFlow);
            stray(ACK, Some(confirm()), Reason::ForgedByPu);
            stray(SYN | ACK, Some(confirm()), Reason::ForgedByPu);
            stray(RST | ACK, Some(option(DENY, 1, 0, 0, 0)), Reason::ForgedByPu);

            // The external host is reached without identity.
            let syn = Segment::syn(pu, external, SPORT, 443, ISN);
            let (action, out) = counting(&bench, &[(Reason::Allowed, OUT)], &[], || bench.out(&syn.frame()));
            assert_eq!((action, Segment::parse(&out)), (Pass, syn));
            let flow = flow(&bench, pu, SPORT, external, 443).unwrap();
            assert_eq!((flow.state, flow.path, flow.rule), (ESTABLISHED, PATH_EXTERNAL, ALLOW_RULE));
            assert_eq!((flow.peer_identity, flow.session), (EXTERNAL, 0));
        }
        bench.finish();
    });
}

#[test]
fn without_a_valid_credential_nothing_leaves() {
    isolated(|place| {
        let mut bench = bench(place);
        let v0 = bench.ifindex;
        for [pu, peer, _] in families() {
            bench.maps.known_to_peer.remove(&SessionPu { session: SESSION, handle: HANDLE, pad: 0 }).unwrap();
            let syn = Segment::syn(pu, peer, SPORT, PORT, ISN);
            let refused = |bench: &Bench, reason| {
                let (action, out) = counting(bench, &[(reason, OUT)], &[], || bench.out(&syn.frame()));
                assert_eq!(action, Redirect, "{reason:?}");
                assert_local_reset(&syn, &out);
                assert_eq!(flow(bench, pu, SPORT, peer, PORT), None);
            };
            let expired = prog::now() - TICK;
            bench.pus.set_credential(PU, IDENTITY, HANDLE, &the_credential(), expired).unwrap();
            refused(&bench, Reason::NoCredential);
            bench.maps.pu_ifaces.insert(&v0, &(PU + 1)).unwrap();
            refused(&bench, Reason::NoCredential);
            bench.maps.pu_ifaces.insert(&v0, &PU_TOO_DEEP).unwrap();
            refused(&bench, Reason::TooDeep);
            bench.pu(PU, v0, IDENTITY, HANDLE, &the_credential());
            counting(&bench, &[], &[(HELLO, OUT)], || assert_eq!(bench.out(&syn.frame()).0, Pass));
        }
        bench.finish();
    });
}

#[test]
fn unmanaged_processes_may_be_denied() {
    isolated(|place| {
        let mut bench = bench(place);
        bench.config.update(|config| config.flags |= CONFIG_UNMANAGED_DENY).unwrap();
        for [host, peer, _] in families() {
            // The bench gives each packet a socket, as a local process's has.
            let syn = Segment::syn(host, peer, SPORT, PORT, ISN);
            let denied = [(Reason::UnmanagedDenied, OUT)];
            let (action, out) = counting(&bench, &denied, &[], || bench.run("tc_egress", &syn.frame()));
            assert_eq!(action, Redirect);
            assert_local_reset(&syn, &out);
            let datagram = udp(host, peer, SPORT, PORT);
            counting(&bench, &denied, &[], || assert_eq!(bench.run("tc_egress", &datagram).0, Drop));
            for (sport, dport) in [(68, 53), (546, 67), (67, 68)] {
                let datagram = udp(host, peer, sport, dport);
                counting(&bench, &denied, &[], || assert_eq!(bench.run("tc_egress", &datagram).0, Drop, "{sport}"));
            }
            let coming = Segment::syn(peer, host, SPORT, PORT, PEER_ISN).frame();
            let denied = [(Reason::UnmanagedDenied, IN)];
            counting(&bench, &denied, &[], || assert_eq!(bench.run("tc_ingress", &coming).0, Drop));
            // Live connections, and what a host needs to have an address at all, go on.
            let segment = Segment { flags: ACK | PSH, ..syn }.carrying(b"data").frame();
            for (program, frame) in [
                ("tc_egress", &segment),
                ("tc_ingress", &segment),
                ("tc_egress", &udp(host, peer, 68, 67)),
                ("tc_egress", &udp(host, peer, 546, 547)),
                ("tc_ingress", &udp(peer, host, 67, 68)),
            ] {
                counting(&bench, &[], &[], || assert_eq!(bench.run(program, frame).0, Pass, "{program}"));
            }
        }
        bench.finish();
    });
}
