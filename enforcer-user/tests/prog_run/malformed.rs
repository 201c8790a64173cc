//! Frames that lie about themselves.

use super::*;

/// What a frame's headers are made to claim, and how each way of a PU's interface must take it.
struct Bad {
    what: &'static str,
    frame: Vec<u8>,
    out: Option<Reason>,
    to: Option<Reason>,
}

fn malformed() -> Vec<Bad> {
    let [pu4, peer4, far4] = families()[0];
    let [pu6, peer6, _] = families()[1];
    let v4 = Segment::syn(pu4, peer4, SPORT, PORT, ISN).frame();
    let v6 = Segment::syn(pu6, peer6, SPORT, PORT, ISN).frame();
    let tcp6 = v6[54..].to_vec();
    let bad = |what, frame, reason| Bad { what, frame, out: Some(reason), to: Some(reason) };
    let changed = |frame: &[u8], at: usize, to: &[u8]| {
        let mut frame = frame.to_vec();
        frame[at..at + to.len()].copy_from_slice(to);
        frame
    };
    let extended = |chain: &[u8], first: u8| packet(pu6, peer6, first, &[chain, &tcp6].concat());
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = |headers: usize| {
        let mut chain = Vec::new();
        for left in (0..headers).rev() {
            chain.extend(options(if left == 0 { 6 } else { 60 }));
        }
        extended(&chain, 60)
    };
    // An IPv4 connection's addresses, as this side keeps them, in a packet of the other family.
    let mapped = [&[0; 10][..], &[0xff, 0xff, 10, 0, 0, 1]].concat();
    let mut cases = vec![
        bad("IPv6 from a mapped IPv4 address", changed(&v6, 22, &mapped), Reason::Malformed),
        bad("IPv6 to a mapped IPv4 address", changed(&v6, 38, &mapped), Reason::Malformed),
        bad("IPv4 header cut short", v4[..30].to_vec(), Reason::Malformed),
        bad("IPv6 header cut short", v6[..50].to_vec(), Reason::Malformed),
        bad("version 5 in IPv4", changed(&v4, 14, &[0x55]), Reason::Malformed),
        bad("ihl below five", changed(&v4, 14, &[0x44]), Reason::Malformed),
        bad("ihl beyond the packet", changed(&v4, 14, &[0x4f]), Reason::Malformed),
        bad("TCP header cut short", v4[..50].to_vec(), Reason::Malformed),
        bad("data offset below five", changed(&v4, 46, &[0x40]), Reason::Malformed),
        bad("data offset beyond the packet", changed(&v4, 46, &[0xf0]), Reason::Malformed),
        bad("IPv4 length below its headers", changed(&v4, 16, &[0, 39]), Reason::Malformed),
        bad("IPv6 length below its header", changed(&v6, 18, &[0, 19]), Reason::Malformed),
        bad("IPv4 first fragment", changed(&v4, 20, &[0x20, 0]), Reason::Fragment),
        bad("IPv4 tiny first fragment", changed(&v4, 20, &[0x20, 0])[..42].to_vec(), Reason::Fragment),
        bad("IPv4 first fragment without ports", changed(&v4, 20, &[0x20, 0])[..36].to_vec(), Reason::Malformed),
        bad("hop-by-hop options", extended(&options(6), 0), Reason::ExtensionHeader),
        bad("destination options", extended(&options(6), 60), Reason::ExtensionHeader),
        bad("routing header", extended(&[6, 0, 0, 0, 0, 0, 0, 0], 43), Reason::ExtensionHeader),
        bad("authentication header", extended(&[6, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1], 51), Reason::ExtensionHeader),
        bad("IPv6 first fragment", extended(&[6, 0, 0, 1, 0, 0, 0, 9], 44), Reason::Fragment),
        bad("IPv6 atomic fragment", extended(&[6, 0, 0, 0, 0, 0, 0, 9], 44), Reason::ExtensionHeader),
        bad("seven options headers", chain(7), Reason::ExtensionHeader),
        bad("nine options headers", chain(9), Reason::Malformed),
        bad("extension header cut short", extended(&options(6), 60)[..58].to_vec(), Reason::Malformed),
        bad("extension header beyond the packet", extended(&[6, 200, 0, 0, 0, 0, 0, 0], 60), Reason::Malformed),
        bad("ESP", packet(pu6, peer6, 50, &[0; 32]), Reason::ProtocolDenied),
        bad("no next header", packet(pu6, peer6, 59, &[]), Reason::ProtocolDenied),
        bad("unknown protocol", packet(pu4, peer4, 200, &[0; 32]), Reason::ProtocolDenied),
        bad("SCTP", packet(pu4, peer4, 132, &[0; 32]), Reason::ProtocolDenied),
        bad("UDP by address", udp(pu4, far4, SPORT, PORT), Reason::ProtocolDenied),
        bad("UDP cut short", udp(pu4, peer4, SPORT, PORT)[..36].to_vec(), Reason::Malformed),
        bad("echo request by address", packet(pu4, far4, 1, &[8, 0, 0, 0, 0, 0, 0, 0]), Reason::ProtocolDenied),
        bad("ICMP of one byte", packet(pu4, peer4, 1, &[8]), Reason::Malformed),
    ];
    // Only the first fragment says whose it is; with it dropped the rest is never put together, but it would leave.
    let passing = |what, frame| Bad { what, frame, out: None, to: None };
    let leaving = |what, frame| Bad { what, frame, out: Some(Reason::Fragment), to: None };
    cases.push(leaving("IPv4 later fragment", changed(&v4, 20, &[0, 1])));
    cases.push(leaving("IPv6 later fragment", extended(&[6, 0, 0, 8, 0, 0, 0, 9], 44)));
    let optional = [&[0x46][..], &v4[15..34], &[7, 4, 4, 0], &v4[34..]].concat();
    cases.push(bad("IPv4 options", [&v4[..14], &optional].concat(), Reason::ExtensionHeader));
    for (what, protocol) in [("IPv4 in IPv4", 4), ("IPv6 in IPv4", 41), ("GRE", 47), ("ESP in IPv4", 50)] {
        cases.push(bad(what, packet(pu4, peer4, protocol, &v4[14..]), Reason::ProtocolDenied));
    }
    cases.push(bad("VXLAN", udp(pu4, far4, SPORT, 4789), Reason::ProtocolDenied));
    cases.push(bad("a type of no internet", changed(&v4, 12, &[0x88, 0xb5]), Reason::ProtocolDenied));
    cases.push(passing("a frame of IEEE 802.2", changed(&v4, 12, &[0, 38])));
    cases.push(passing("ARP", changed(&v4, 12, &[8, 6])));
    cases.push(passing("neighbour solicitation", packet(pu6, peer6, 58, &[135; 24])));
    // An error without what it is about, of what was never sent, and of a packet that itself cannot be read.
    let error = |quote: &[u8]| packet(peer4, pu4, 1, &[&[3, 1, 0, 0, 0, 0, 0, 0], quote].concat());
    let no_flow = |what, frame| Bad { what, frame, out: Some(Reason::ProtocolDenied), to: Some(Reason::NoFlow) };
    cases.push(bad("ICMP error without quote", error(&[]), Reason::Malformed));
    cases.push(bad("ICMP error whose quote has no ports", error(&v4[14..34]), Reason::Malformed));
    cases.push(no_flow("ICMP error", error(&v4[14..])));
    let error = |quote: &[u8]| packet(peer6, pu6, 58, &[&[1, 4, 0, 0, 0, 0, 0, 0], quote].concat());
    cases.push(no_flow("ICMPv6 error", error(&v6[14..])));
    cases.push(bad("ICMPv6 error that quotes nine options headers", error(&chain(9)[14..]), Reason::Malformed));
    cases
}

/// What `BPF_PROG_TEST_RUN` takes for traffic control: a whole network header. The shield runs on less.
fn shortest(frame: &[u8]) -> usize {
    match frame[12..14] {
        [8, 0] => 34,
        [0x86, 0xdd] => 54,
        _ => 14,
    }
}

#[test]
fn malformed_frames_have_their_reasons() {
    isolated(|place| {
        let bench = bench(place);
        for Bad { what, frame, out, to } in malformed() {
            assert_eq!(bench.shield(&frame), Pass, "{what} at the shield");
            if frame.len() < shortest(&frame) {
                continue;
            }
            for (inbound, program, reason) in [(OUT, "tc_pu_ingress", out), (IN, "tc_pu_egress", to)] {
                let before = bench.counts();
                let (action, _) = bench.run(program, &frame);
                let delta = bench.counts().since(&before);
                let expected: Vec<_> = reason.iter().map(|reason| (reason.name(), inbound, 1)).collect();
                assert_eq!(delta.reasons, expected, "{what} at {program}");
                assert_eq!(action, if reason.is_some() { Drop } else { Pass }, "{what} at {program}");
            }
            // Nothing of a PU's: the host's own traffic is left alone.
            for program in ["tc_ingress", "tc_egress"] {
                let before = bench.counts();
                assert_eq!(bench.run(program, &frame).0, Pass, "{what} at {program}");
                assert_eq!(bench.counts().since(&before), Delta::default(), "{what} at {program}");
            }
        }
        assert!(bench.maps.flows.is_empty().unwrap());
        bench.finish();
    });
}

#[test]
fn no_truncation_of_any_packet_slips_through() {
    isolated(|place| {
        let bench = bench(place);
        for [pu, peer, _] in families() {
            let out = Segment::syn(pu, peer, SPORT, PORT, ISN).frame();
            let to = Segment::syn(peer, pu, SPORT, PORT, PEER_ISN).with(resume(PEER_ISN, PEER_HANDLE)).frame();
            for (program, frame) in [("tc_pu_ingress", &out), ("tc_pu_egress", &to)] {
                for len in 15..frame.len() {
                    assert_eq!(bench.shield(&frame[..len]), Pass);
                    if len < shortest(frame) {
                        continue;
                    }
                    let before = bench.counts();
                    let (action, _) = bench.run(program, &frame[..len]);
                    assert_ne!(action, Pass, "{len} bytes of {} at {program}", frame.len());
                    let reasons = bench.counts().since(&before).reasons;
                    assert_eq!(reasons.len(), 1, "{len} bytes at {program}: {reasons:?}");
                }
            }
        }
        assert!(bench.maps.flows.is_empty().unwrap());
        bench.finish();
    });
}
