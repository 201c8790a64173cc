use super::super::build::{fold, sum};
use super::*;
use common::{addr_v4, flow::SERVER, wire::MacKey};

const SESSION: common::identity::Session = common::identity::Session {
    key_out: MacKey { k0: 1, k1: 2 },
    key_in: MacKey { k0: 3, k1: 4 },
    until_ns: 0,
    peer_index: 8,
    peer: 0,
};

fn keys() -> [FlowKey; 4] {
    let v4 = |proto| FlowKey {
        local: addr_v4(u32::from_ne_bytes([10, 0, 0, 1])),
        remote: addr_v4(u32::from_ne_bytes([10, 0, 0, 2])),
        local_port: 1000,
        remote_port: 2000,
        proto,
        pad: [0; 3],
    };
    let v6 = |proto| FlowKey { local: [0xfd, 0, 0, 1], remote: [0xfd, 0, 0, 2], ..v4(proto) };
    [v4(UDP), v6(UDP), v4(ICMP), v6(ICMPV6)]
}

/// Every checksum of a frame is right.
#[track_caller]
fn assert_sound(bytes: &[u8], proto: u8) {
    let v6 = bytes[12] == 0x86;
    let l4 = ETH_LEN + if v6 { 40 } else { 20 };
    let pseudo = if v6 { sum(&bytes[ETH_LEN + 8..l4]) } else { sum(&bytes[ETH_LEN + 12..l4]) };
    let pseudo = if proto == ICMP { 0 } else { pseudo + u32::from(proto) + (bytes.len() - l4) as u32 };
    assert_eq!(fold(pseudo + sum(&bytes[l4..])), 0);
    assert!(v6 || fold(sum(&bytes[ETH_LEN..l4])) == 0);
}

#[test]
fn a_cut_is_told_in_a_packet_of_the_flow() {
    for key in keys() {
        for role in [CLIENT, SERVER] {
            let flow = Flow { role, session: 7, local_handle: 1, peer_handle: 2, reason: 31, ..Flow::default() };
            let bytes = cut(&key, &flow, &SESSION, [1; 6], 99);
            assert_sound(&bytes, key.proto);
            let (trailer, before) = Datagram::parse(&bytes).unwrap().trailer().unwrap();
            let fields = trailer.fields();
            assert!(before.is_empty());
            assert_eq!((fields.packet_type, fields.flags, fields.index, fields.sender_index), (DENY, 31, 8, 7));
            assert_eq!(trailer.mac(), mac(&SESSION.key_out, &fields, key.proto, &[0; 4]));
            let error = cut_unreachable(&key, &flow, [1; 6]);
            assert_eq!(error.is_some(), key.proto == UDP);
            if let Some(error) = error {
                let v6 = error[12] == 0x86;
                assert_eq!(error[..6], [1; 6], "for this host");
                assert_sound(&error, if v6 { ICMPV6 } else { ICMP });
                // What the error quotes is what this end sent.
                let quoted = [&[0; 12][..], &error[12..14], &error[ETH_LEN + if v6 { 48 } else { 28 }..]].concat();
                assert_eq!(quoted[quoted.len() - 8..][..4], [3, 232, 7, 208]);
            }
        }
    }
}

#[test]
fn a_retry_gives_back_what_was_sent_and_nothing_else() {
    for key in keys() {
        let flow = Flow { role: CLIENT, session: 7, local_handle: 1, peer_handle: 2, ..Flow::default() };
        let fields = Fields {
            packet_type: RESUME,
            flags: 0,
            handle: 1,
            peer_handle: 2,
            len: 5,
            index: 8,
            sender_index: 7,
            time: 9,
        };
        let mac = mac(&SESSION.key_out, &fields, key.proto, &first_words(b"hello"));
        let returned = Fields { packet_type: RETRY, flags: 18, ..fields };
        let sent = on_flow(&key, CLIENT, [1; 6], b"hello");
        let back = |payload: &[u8], fields: &Fields| {
            let sent = Datagram::parse(&sent).unwrap();
            sent.with(&[payload, &Trailer::new(fields, mac).bytes()], true)
        };
        let whole = back(b"hello", &returned);
        assert_sound(&whole, key.proto);
        let whole = Datagram::parse(&whole).unwrap();
        assert_eq!(whole.given_back(&flow, &SESSION), Some(fields));
        let (_, before) = whole.trailer().unwrap();
        let again = whole.with(&[before], true);
        assert_eq!(again[12..], sent[12..], "the very datagram");
        for (payload, fields) in [
            (b"hallo", returned),
            (b"hello", Fields { time: 10, ..returned }),
            (b"hello", Fields { packet_type: DENY, ..returned }),
        ] {
            let other = back(payload, &fields);
            assert_eq!(Datagram::parse(&other).unwrap().given_back(&flow, &SESSION), None, "{fields:?}");
        }
        let others = [Flow { session: 6, ..flow }, Flow { local_handle: 3, ..flow }];
        assert!(others.iter().all(|other| whole.given_back(other, &SESSION).is_none()));
        // What went ahead of a datagram brings nothing back but that there is no session.
        let bare = Fields { flags: BARE, len: 0, ..fields };
        let proof = super::mac(&SESSION.key_out, &bare, key.proto, &[0; 4]);
        let returned = Trailer::new(&Fields { packet_type: RETRY, flags: 18, ..bare }, proof);
        let back = Datagram::parse(&sent).unwrap().with(&[&returned.bytes()], true);
        assert_eq!(Datagram::parse(&back).unwrap().given_back(&flow, &SESSION), Some(bare));
    }
}

#[test]
fn what_the_stack_left_to_the_device_is_cut_up() {
    for key in &keys()[..2] {
        let whole = on_flow(key, CLIENT, [1; 6], &[7; 2500]);
        let pieces = Datagram::parse(&whole).unwrap().onward(1000);
        let lengths: Vec<usize> = pieces.iter().map(|piece| Datagram::parse(piece).unwrap().payload().len()).collect();
        assert_eq!(lengths, [1000, 1000, 500]);
        pieces.iter().for_each(|piece| assert_sound(piece, UDP));
        assert_eq!(Datagram::parse(&whole).unwrap().onward(0), [whole]);
    }
}

#[test]
fn what_is_no_datagram_is_refused() {
    let whole = on_flow(&keys()[0], CLIENT, [1; 6], b"hello");
    for cut in 0..whole.len() {
        assert!(Datagram::parse(&whole[..cut]).is_err(), "{cut}");
    }
    for (at, value) in [(12, 9), (14, 0x46), (21, 1), (23, 6), (39, 40)] {
        let mut other = whole.clone();
        other[at] = value;
        assert!(Datagram::parse(&other).is_err(), "{at}");
    }
}

#[test]
fn the_first_of_several_fragments_is_answered_in_one_piece() {
    for key in &keys()[..2] {
        let whole = on_flow(key, CLIENT, [1; 6], &[7; 1000]);
        let v6 = whole[12] == 0x86;
        let mut first = whole.clone();
        if v6 {
            // Next header, reserved, offset and "more", identification.
            first.splice(54..54, [UDP, 0, 0, 1, 0, 0, 0, 9]);
            first[20] = FRAGMENT;
            first[18..20].copy_from_slice(&1016_u16.to_be_bytes());
        } else {
            first[20] = 0x20;
        }
        let parsed = Datagram::parse(&first).unwrap();
        assert_eq!((parsed.payload(), parsed.trailer()), (&[7; 1000][..], None));
        assert_eq!(parsed.onward(0), [first.clone()], "as it is");
        let answer = parsed.with(&[b"hello"], false);
        assert_sound(&answer, UDP);
        let expected = Datagram::parse(&whole).unwrap().with(&[b"hello"], false);
        assert_eq!(answer[ETH_LEN + 12..], expected[ETH_LEN + 12..]);
        assert_sound(&parsed.unreachable().unwrap(), if v6 { ICMPV6 } else { ICMP });
        let offset = if v6 { ETH_LEN + 43 } else { ETH_LEN + 7 };
        let mut later = first;
        later[offset] = 8;
        assert!(matches!(Datagram::parse(&later), Err(FrameError::Fragment)));
    }
}
