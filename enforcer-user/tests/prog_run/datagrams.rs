//! Datagrams: trailers that are right, wrong, old, seen before; what is asked, given back, refused; what was merged; errors of ICMP.

use common::datagram::{DatagramPeer, TRAILER_LEN};
use enforcer_user::map_write::Table;
use prog::segment::{datagram, parse_datagram};
use std::hash::Hasher;

use super::*;

const MAGIC: [u8; 4] = [0x5a, 0x54, 0xd6, 0xe1];
const SECOND: u64 = 1_000_000_000;

/// What a trailer says.
#[derive(Clone, Copy)]
struct Says {
    packet_type: u8,
    flags: u8,
    handle: u16,
    index: u32,
    sender_index: u32,
    peer_handle: u16,
    time: u64,
}

fn says(packet_type: u8, time: u64) -> Says {
    let (handle, index, sender_index, peer_handle) = (PEER_HANDLE, SESSION, PEER_SESSION, HANDLE);
    Says { packet_type, flags: 0, handle, index, sender_index, peer_handle, time }
}

/// The payload with its trailer, whose MAC is another implementation's, byte for byte as the documentation has it.
fn with(key: MacKey, says: Says, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u16;
    let mut message = vec![says.packet_type, says.flags];
    message.extend(says.handle.to_le_bytes());
    message.extend(says.index.to_le_bytes());
    message.extend(says.sender_index.to_le_bytes());
    message.extend(says.peer_handle.to_le_bytes());
    message.extend(len.to_le_bytes());
    message.extend(says.time.to_le_bytes());
    message.extend(17_u64.to_le_bytes());
    let mut covered = payload.to_vec();
    covered.resize(32, 0);
    message.extend(covered);
    let mut hasher = siphasher::sip::SipHasher24::new_with_keys(key.k0, key.k1);
    hasher.write(&message);
    let mut bytes = payload.to_vec();
    bytes.extend([0x10 | says.packet_type, says.flags]);
    bytes.extend(says.handle.to_be_bytes());
    bytes.extend(says.index.to_be_bytes());
    bytes.extend(says.sender_index.to_be_bytes());
    bytes.extend(says.peer_handle.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(says.time.to_be_bytes());
    bytes.extend(hasher.finish().to_be_bytes());
    bytes.extend(MAGIC);
    bytes
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 37 % 251) as u8).collect()
}

fn udp_key(local: IpAddr, local_port: u16, remote: IpAddr, remote_port: u16) -> common::flow::FlowKey {
    common::flow::FlowKey { proto: 17, ..key(local, local_port, remote, remote_port) }
}

/// The bench, where UDP port [`PORT`] is allowed both ways, and the next one denied by a rule.
fn udp_bench(place: &Place) -> Bench {
    let mut bench = bench(place);
    let rule = |port, rule, flags| {
        let at = position(17, port);
        Interval { low: at, high: at, rule, observed_rule: 0, flags }
    };
    let rules = [rule(PORT, ALLOW_RULE, VERDICT_ALLOW), rule(PORT + 1, DENY_RULE, 0)];
    for (subject, object) in [(IDENTITY, PEER_IDENTITY), (PEER_IDENTITY, IDENTITY)] {
        bench.pairs.write(Pair { subject, object }, &rules).unwrap();
    }
    bench
}

/// Asserts what was held, reasons and handshakes while `step` ran.
#[track_caller]
fn holding(bench: &Bench, held: u64, reasons: &[(Reason, bool)], handshakes: &[(u8, bool)], step: impl FnOnce()) {
    let before = bench.counts();
    step();
    let losses = if held > 0 { vec![(HELD, held)] } else { Vec::new() };
    assert_eq!(bench.counts().since(&before), Delta { losses, ..counted(reasons, handshakes) });
}

#[test]
fn a_right_trailer_opens_the_flow_and_comes_off() {
    isolated(|place| {
        let bench = udp_bench(place);
        let mut time = 5 * SECOND;
        for [pu, peer, _] in families() {
            for (sport, len) in (SPORT..).zip([0, 1, 2, 3, 31, 32, 33, 63, 512, 1200, 1447, 3000]) {
                let data = payload(len);
                time += 1;
                let frame = datagram(peer, pu, sport, PORT, &with(KEY_IN, says(RESUME, time), &data));
                let seen = [(Reason::Allowed, IN)];
                let (action, out) = counting(&bench, &seen, &[(RESUME, IN)], || bench.to(&frame));
                assert_eq!(action, Pass, "{len}");
                // Lengths and checksums are right again.
                assert_eq!(parse_datagram(&out), (peer, pu, sport, PORT, data.clone()));
                let flow = bench.maps.flows.get(&udp_key(pu, PORT, peer, sport)).unwrap().unwrap();
                assert_eq!(
                    (flow.state, flow.role, flow.session, flow.rule),
                    (SYN_RECEIVED, SERVER, SESSION, ALLOW_RULE)
                );
                // Once more, as the same flow's: with a newer one, and then without.
                time += 1;
                let frame = datagram(peer, pu, sport, PORT, &with(KEY_IN, says(RESUME, time), &data));
                counting(&bench, &[], &[(RESUME, IN)], || assert_eq!(bench.to(&frame).0, Pass));
                let plain = datagram(peer, pu, sport, PORT, &data);
                counting(&bench, &[], &[], || assert_eq!(bench.to(&plain), (Pass, plain.clone())));
                // The answer says who answers, until the client sends without.
                let answer = datagram(pu, peer, PORT, sport, &data);
                if len <= 1000 {
                    let (action, out) = counting(&bench, &[], &[(RESUME_REPLY, OUT)], || bench.out(&answer));
                    assert_eq!(action, Pass);
                    let (.., said) = parse_datagram(&out);
                    let at = said.len() - TRAILER_LEN;
                    let stamp = u64::from_be_bytes(said[at + 16..at + 24].try_into().unwrap());
                    let expected = Says {
                        handle: HANDLE,
                        index: PEER_SESSION,
                        sender_index: SESSION,
                        peer_handle: PEER_HANDLE,
                        ..says(RESUME_REPLY, stamp)
                    };
                    assert_eq!(said, with(KEY_OUT, expected, &data));
                }
                counting(&bench, &[], &[], || assert_eq!(bench.to(&plain).0, Pass));
                if len <= 1000 {
                    counting(&bench, &[], &[], || assert_eq!(bench.out(&answer), (Pass, answer.clone())));
                }
            }
        }
        bench.finish();
    });
}

#[test]
fn a_wrong_trailer_opens_nothing() {
    isolated(|place| {
        let bench = udp_bench(place);
        for [pu, peer, _] in families() {
            let data = payload(48);
            let bytes = with(KEY_IN, says(RESUME, 9 * SECOND), &data);
            let refused = |bytes: &[u8], what: &str| {
                let before = bench.counts();
                let (action, _) = bench.to(&datagram(peer, pu, SPORT, PORT, bytes));
                let delta = bench.counts().since(&before);
                assert_ne!(action, Pass, "{what}");
                assert_eq!(delta.reasons.len(), 1, "{what}: {delta:?}");
                delta.reasons[0].0
            };
            // What the MAC covers of the payload, and every bit of the trailer but for the type: another one is for somebody else.
            for bit in (0..32 * 8).chain(48 * 8 + 4..bytes.len() * 8) {
                let mut other = bytes.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                let reason = refused(&other, &format!("bit {bit}"));
                let expected: &[&str] = match bit / 8 {
                    // Another version.
                    48 => &["hello_malformed"],
                    52..=55 => &["unknown_session"],
                    at if at >= bytes.len() - 4 => &["protocol_denied"],
                    _ => &["resume_mac"],
                };
                assert!(expected.contains(&reason), "bit {bit}: {reason}");
            }
            for len in [47_u16, 49, 0, u16::MAX] {
                let mut other = bytes.clone();
                other[62..64].copy_from_slice(&len.to_be_bytes());
                assert_eq!(refused(&other, "length"), "resume_mac");
            }
            assert_eq!(refused(&with(KEY_OUT, says(RESUME, 9 * SECOND), &data), "reflected"), "resume_mac");
            for cut in 1..TRAILER_LEN {
                assert_eq!(refused(&bytes[48 + cut..], "cut short"), "protocol_denied", "{cut}");
            }
            // UDP's own length does not agree with the packet's.
            let mut frame = datagram(peer, pu, SPORT, PORT, &bytes);
            let at = if pu.is_ipv6() { 58 } else { 38 };
            frame[at + 1] -= 1;
            counting(&bench, &[(Reason::ProtocolDenied, IN)], &[], || assert_eq!(bench.to(&frame).0, Drop));
        }
        assert!(bench.maps.flows.is_empty().unwrap());
        bench.finish();
    });
}

#[test]
fn a_trailer_is_good_for_once_and_not_for_long() {
    isolated(|place| {
        let bench = udp_bench(place);
        let mut time = 100 * SECOND;
        for [pu, peer, _] in families() {
            time += 10 * SECOND;
            let frame = |sport, time| datagram(peer, pu, sport, PORT, &with(KEY_IN, says(RESUME, time), b"hello"));
            let opened = [(Reason::Allowed, IN)];
            let replayed = [(Reason::DatagramReplayed, IN)];
            counting(&bench, &opened, &[(RESUME, IN)], || assert_eq!(bench.to(&frame(1, time)).0, Pass));
            for sport in [1, 2] {
                counting(&bench, &replayed, &[], || assert_eq!(bench.to(&frame(sport, time)).0, Drop, "{sport}"));
            }
            // Overtaken, but by less than a second of the sender's clock.
            counting(&bench, &opened, &[(RESUME, IN)], || assert_eq!(bench.to(&frame(3, time - SECOND)).0, Pass));
            counting(&bench, &replayed, &[], || assert_eq!(bench.to(&frame(4, time - SECOND - 1)).0, Drop));
            assert_eq!(bench.maps.flows.get(&udp_key(pu, PORT, peer, 4)).unwrap(), None);
        }
        bench.finish();
    });
}

#[test]
fn what_nobody_knows_goes_back_and_what_is_denied_is_told() {
    isolated(|place| {
        let bench = udp_bench(place);
        let mut time = 200 * SECOND;
        for [pu, peer, _] in families() {
            let data = payload(77);
            for (index, handle, peer_handle, reason) in [
                (SESSION + 1, PEER_HANDLE, HANDLE, Reason::UnknownSession),
                (SESSION, PEER_HANDLE + 1, HANDLE, Reason::UnknownHandle),
                (SESSION, PEER_HANDLE, HANDLE + 1, Reason::UnknownHandle),
            ] {
                time += 1;
                let sent = Says { index, handle, peer_handle, ..says(RESUME, time) };
                let bytes = with(KEY_IN, sent, &data);
                let frame = datagram(peer, pu, SPORT, PORT, &bytes);
                let (action, out) = counting(&bench, &[(reason, IN)], &[(RETRY, OUT)], || bench.to(&frame));
                assert_eq!(action, Redirect);
                // The very datagram, but for type and flags.
                let mut expected = bytes;
                expected[77..79].copy_from_slice(&[0x10 | RETRY, reason as u8]);
                assert_eq!(parse_datagram(&out), (pu, peer, PORT, SPORT, expected));
            }
            for (port, reason) in [(PORT + 1, Reason::DenyRule), (PORT + 2, Reason::NoRule)] {
                time += 1;
                let frame = datagram(peer, pu, SPORT, port, &with(KEY_IN, says(RESUME, time), &data));
                let (action, out) = counting(&bench, &[(reason, IN)], &[(DENY, OUT)], || bench.to(&frame));
                assert_eq!(action, Redirect);
                let (source, target, sport, dport, said) = parse_datagram(&out);
                assert_eq!((source, target, sport, dport), (pu, peer, port, SPORT));
                let stamp = u64::from_be_bytes(said[16..24].try_into().unwrap());
                let expected = Says {
                    packet_type: DENY,
                    flags: reason as u8,
                    handle: HANDLE,
                    index: PEER_SESSION,
                    sender_index: SESSION,
                    peer_handle: PEER_HANDLE,
                    time: stamp,
                };
                assert_eq!(said, with(KEY_OUT, expected, &[]), "nothing of what was sent");
            }
        }
        assert!(bench.maps.flows.is_empty().unwrap());
        bench.finish();
    });
}

#[test]
fn a_source_may_introduce_itself_over_udp_so_often() {
    isolated(|place| {
        let bench = udp_bench(place);
        let shield = Table::open(bench.maps.directory(), "SHIELD").unwrap();
        let present: common::shield::Shield = shield.get(&0).unwrap().unwrap_or_default();
        // Three at once, and then one in an hour.
        let hour = 3600 * SECOND;
        let few = common::shield::Shield { source_interval_ns: hour, source_burst_ns: 2 * hour, ..present };
        shield.insert(&0, &few).unwrap();
        for [pu, peer, _] in families() {
            let hello = |number| {
                let says = Says { index: 7, sender_index: 0, peer_handle: 0, ..says(HELLO, number) };
                datagram(peer, pu, SPORT, PORT, &with(KEY_IN, says, &payload(611)))
            };
            let mut held = 0;
            for number in 0..8 {
                let before = bench.counts();
                assert_eq!(bench.to(&hello(number)).0, Drop);
                let delta = bench.counts().since(&before);
                let spent = counted(&[(Reason::HelloBudget, IN)], &[]);
                let shown = Delta { losses: vec![(HELD, 1)], ..counted(&[], &[(HELLO, IN)]) };
                assert!(delta == spent || delta == shown && held == number, "{delta:?}");
                held += u64::from(delta == shown);
            }
            assert!((1..=3).contains(&held), "{held}");
            // Nor is it asked to start over.
            let unknown = Says { index: SESSION + 1, ..says(RESUME, 1) };
            let frame = datagram(peer, pu, SPORT, PORT, &with(KEY_IN, unknown, b"hello"));
            counting(&bench, &[(Reason::UnknownSession, IN)], &[], || assert_eq!(bench.to(&frame).0, Drop));
        }
        bench.finish();
    });
}

#[test]
fn what_a_pu_sends_bears_identity_where_it_was_met_and_waits_where_not() {
    isolated(|place| {
        let bench = udp_bench(place);
        for [pu, peer, _] in families() {
            let at = |sport| udp_key(pu, sport, peer, PORT);
            let frame = |sport, len: usize| datagram(pu, peer, sport, PORT, &payload(len));
            // One is counted, however many parts it has.
            for len in [1, 1400, 3000] {
                holding(&bench, 1, &[], &[], || assert_eq!(bench.out(&frame(1, len)).0, Redirect, "{len}"));
            }
            assert_eq!(bench.maps.flows.get(&at(1)).unwrap().unwrap().session, 0);
            let met = DatagramPeer { addr: addr(peer), port: PORT, proto: 17 };
            let of = SessionPu { session: SESSION, handle: PEER_HANDLE, pad: 0 };
            bench.maps.datagram_peers.insert(&met, &of).unwrap();
            let room = 1280 - TRAILER_LEN - if pu.is_ipv6() { 48 } else { 28 };
            for (sport, len) in (10..).zip([0, 1, 31, 32, 33, 1000, room]) {
                let (action, out) = counting(&bench, &[], &[(RESUME, OUT)], || bench.out(&frame(sport, len)));
                assert_eq!(action, Pass, "{len}");
                let (.., said) = parse_datagram(&out);
                let stamp = u64::from_be_bytes(said[len + 16..len + 24].try_into().unwrap());
                let expected = Says {
                    handle: HANDLE,
                    index: PEER_SESSION,
                    sender_index: SESSION,
                    peer_handle: PEER_HANDLE,
                    ..says(RESUME, stamp)
                };
                assert_eq!(said, with(KEY_OUT, expected, &payload(len)));
                // Until the server is heard, whose word is verified.
                let answer = |key, says| datagram(peer, pu, PORT, sport, &with(key, says, b"answer"));
                let reply = says(RESUME_REPLY, 300 * SECOND + u64::from(sport) + u64::from(pu.is_ipv6()) * SECOND);
                let wrong = [(Reason::ReplyMac, IN)];
                for (key, said) in [
                    (KEY_OUT, reply),
                    (KEY_IN, Says { index: SESSION + 1, ..reply }),
                    (KEY_IN, Says { peer_handle: HANDLE + 1, ..reply }),
                ] {
                    counting(&bench, &wrong, &[], || assert_eq!(bench.to(&answer(key, said)).0, Drop));
                }
                let missing = datagram(peer, pu, PORT, sport, b"answer");
                counting(&bench, &[(Reason::IdentityMissing, IN)], &[], || assert_eq!(bench.to(&missing).0, Drop));
                let right = answer(KEY_IN, reply);
                let seen = [(Reason::Allowed, OUT)];
                let (action, out) = counting(&bench, &seen, &[(RESUME_REPLY, IN)], || bench.to(&right));
                assert_eq!((action, parse_datagram(&out).4), (Pass, b"answer".to_vec()));
                counting(&bench, &[(Reason::DatagramReplayed, IN)], &[], || assert_eq!(bench.to(&right).0, Drop));
                let plain = frame(sport, len);
                counting(&bench, &[], &[], || assert_eq!(bench.out(&plain), (Pass, plain.clone())));
            }
            // Beyond what every path takes it goes ahead; of what a PU writes itself nothing does.
            counting(&bench, &[], &[], || assert_eq!(bench.out(&frame(30, room + 1)).0, Redirect));
            let forged = datagram(pu, peer, 31, PORT, &with(KEY_OUT, says(RESUME, 1), b"hello"));
            counting(&bench, &[(Reason::ForgedByPu, OUT)], &[], || assert_eq!(bench.out(&forged).0, Drop));
        }
        bench.finish();
    });
}

#[test]
fn merged_datagrams_are_the_agents_to_take_apart() {
    isolated(|place| {
        let bench = udp_bench(place);
        for [pu, peer, _] in families() {
            let one = |time| with(KEY_IN, says(RESUME, time), &payload(100));
            let gso = one(1).len() as u32;
            let all = |parts: &[Vec<u8>]| datagram(peer, pu, SPORT, PORT, &parts.concat());
            let to = |frame: &[u8]| bench.run_merged("tc_pu_egress", frame, gso).0;
            let merged = [(Reason::DatagramMerged, IN)];
            // Without a flow: if the last one is a peer's.
            holding(&bench, 1, &[], &[], || assert_eq!(to(&all(&[one(400), one(401)])), Drop));
            let forged = with(KEY_OUT, says(RESUME, 1), &payload(100));
            holding(&bench, 0, &merged, &[], || assert_eq!(to(&all(&[one(400), forged.clone()])), Drop));
            bench.maps.flows.insert(&udp_key(pu, PORT, peer, SPORT), &received(&bench)).unwrap();
            // Of a flow: wherever the identity is.
            for parts in [[one(400), payload(50)], [payload(136), one(401)], [one(400), forged]] {
                holding(&bench, 1, &[], &[], || assert_eq!(to(&all(&parts)), Drop));
            }
            // Nothing is to be taken apart that bears none.
            let plain = all(&[payload(136), payload(136)]);
            holding(&bench, 0, &[], &[], || assert_eq!(to(&plain), Pass));
        }
        bench.finish();
    });
}

#[test]
fn an_error_passes_with_the_flow_it_quotes() {
    isolated(|place| {
        let bench = udp_bench(place);
        for [pu, peer, far] in families() {
            let (proto, errors) = if pu.is_ipv6() {
                (58, [[1, 4], [2, 0], [3, 0], [4, 1]])
            } else {
                (1, [[3, 3], [3, 4], [11, 0], [12, 0]])
            };
            let of = |source, target, [kind, code]: [u8; 2], quote: &[u8]| {
                packet(source, target, proto, &[&[kind, code, 0, 0, 0, 0, 5, 0], &quote[14..]].concat())
            };
            for live in [sent(&bench), Flow { state: ESTABLISHED, ..sent(&bench) }] {
                bench.maps.flows.insert(&udp_key(pu, SPORT, peer, PORT), &live).unwrap();
                bench.maps.flows.insert(&key(pu, SPORT, peer, PORT), &live).unwrap();
                let udp = datagram(pu, peer, SPORT, PORT, b"hello");
                let tcp = Segment::syn(pu, peer, SPORT, PORT, ISN).frame();
                let headers = if pu.is_ipv6() { 54 } else { 34 };
                for error in errors {
                    // Of whatever sender: a router on the way is none of the flow's ends.
                    for (source, quote) in [(peer, &udp[..]), (far, &udp), (far, &tcp), (far, &udp[..headers + 8])] {
                        let frame = of(source, pu, error, quote);
                        counting(&bench, &[], &[], || assert_eq!(bench.to(&frame), (Pass, frame.clone())));
                    }
                    for quote in [
                        datagram(pu, peer, SPORT + 1, PORT, b"hello"),
                        datagram(pu, peer, SPORT, PORT + 1, b"hello"),
                        datagram(pu, far, SPORT, PORT, b"hello"),
                        datagram(peer, pu, PORT, SPORT, b"hello"),
                    ] {
                        let frame = of(far, pu, error, &quote);
                        counting(&bench, &[(Reason::NoFlow, IN)], &[], || assert_eq!(bench.to(&frame).0, Drop));
                    }
                    // What the PU got it may complain about, to whom it came from.
                    let got = datagram(peer, pu, PORT, SPORT, b"hello");
                    let complaint = of(pu, peer, error, &got);
                    counting(&bench, &[], &[], || assert_eq!(bench.out(&complaint), (Pass, complaint.clone())));
                    for complaint in [of(pu, far, error, &got), of(pu, peer, error, &udp)] {
                        let denied = [(Reason::ProtocolDenied, OUT)];
                        counting(&bench, &denied, &[], || assert_eq!(bench.out(&complaint).0, Drop));
                    }
                }
            }
            // What was cut is no flow any more.
            let cut = Flow { state: CUT, reason: Reason::Revoked as u16, ..sent(&bench) };
            bench.maps.flows.insert(&udp_key(pu, SPORT, peer, PORT), &cut).unwrap();
            let frame = of(peer, pu, errors[0], &datagram(pu, peer, SPORT, PORT, b"hello"));
            counting(&bench, &[(Reason::NoFlow, IN)], &[], || assert_eq!(bench.to(&frame).0, Drop));
        }
        bench.finish();
    });
}

#[test]
fn later_fragments_follow_the_first() {
    isolated(|place| {
        let bench = udp_bench(place);
        for [pu, peer, _] in families() {
            // The pieces of a datagram, of which the first one has the ports.
            let piece = |sport: u16, id: u8, first: bool| {
                let whole = datagram(pu, peer, sport, PORT, &payload(1000));
                if pu.is_ipv6() {
                    let offset = if first { [0, 1] } else { [4, 0] };
                    let header = [17, 0, offset[0], offset[1], 0, 0, 0, id];
                    return packet(pu, peer, 44, &[&header, &whole[54..]].concat());
                }
                let mut whole = whole;
                whole[18..22].copy_from_slice(&[0, id, if first { 0x20 } else { 0 }, if first { 0 } else { 200 }]);
                whole
            };
            let alone = [(Reason::Fragment, OUT)];
            counting(&bench, &alone, &[], || assert_eq!(bench.out(&piece(1, 1, false)).0, Drop));
            // Nobody was met: they wait together.
            for first in [true, false, false] {
                holding(&bench, 1, &[], &[], || assert_eq!(bench.out(&piece(1, 1, first)).0, Redirect));
            }
            counting(&bench, &alone, &[], || assert_eq!(bench.out(&piece(1, 2, false)).0, Drop));
            // Met: what still comes goes on.
            let at = udp_key(pu, 1, peer, PORT);
            bench.maps.flows.insert(&at, &Flow { state: ESTABLISHED, ..sent(&bench) }).unwrap();
            counting(&bench, &[], &[], || assert_eq!(bench.out(&piece(1, 1, false)).0, Pass));
            for first in [true, false] {
                counting(&bench, &[], &[], || assert_eq!(bench.out(&piece(1, 3, first)).0, Pass));
            }
            // Refused: none of them.
            bench.maps.flows.remove(&at).unwrap();
            counting(&bench, &alone, &[], || assert_eq!(bench.out(&piece(1, 1, false)).0, Drop));
            // On the way to a PU only the first one can be judged; with it dropped the rest is never put together.
            let to = |first| {
                let mut frame = piece(1, 4, first);
                let (addresses, half) = if pu.is_ipv6() { (22, 16) } else { (26, 4) };
                frame[addresses..addresses + 2 * half].rotate_left(half);
                frame
            };
            counting(&bench, &[(Reason::ProtocolDenied, IN)], &[], || assert_eq!(bench.to(&to(true)).0, Drop));
            counting(&bench, &[], &[], || assert_eq!(bench.to(&to(false)).0, Pass));
        }
        bench.finish();
    });
}
