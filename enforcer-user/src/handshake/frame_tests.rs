use proptest::prelude::*;

use super::*;
use crate::handshake::build::{complete, option_bytes, strip};
use crate::handshake::tests::{Tcp, checksums_hold};

fn tcp(v6: bool) -> Tcp {
    Tcp { v6, flags: SYN, seq: 0x1234_5678, ack: 9, payload: b"hello".to_vec(), ..Tcp::default() }
}

#[test]
fn fields_are_found() {
    for v6 in [false, true] {
        let option = OptionBytes::new(common::wire::HELLO, 1, 2, 3, 4);
        let bytes = Tcp { option: Some(option), ..tcp(v6) }.bytes();
        let padded = [&bytes[..], &[0; 6]].concat();
        let frame = Frame::parse(&padded).unwrap();
        assert_eq!(frame.bytes(), bytes);
        assert_eq!((frame.is_v6(), frame.is_syn(), frame.is_syn_ack()), (v6, true, false));
        assert_eq!((frame.source_port(), frame.destination_port()), (40_000, 80));
        assert_eq!((frame.seq(), frame.ack()), (0x1234_5678, 9));
        assert_eq!((frame.payload(), frame.option()), (&b"hello"[..], Some(option)));
        assert_eq!((common::is_v4(&frame.source()), common::is_v4(&frame.destination())), (!v6, !v6));
        assert_ne!(frame.source(), frame.destination());
    }
    let bytes = tcp(false).bytes();
    let frame = Frame::parse(&bytes).unwrap();
    assert_eq!(frame.source(), addr_v4(u32::from_ne_bytes([10, 0, 0, 1])));
    assert_eq!(frame.option(), None);
}

#[test]
fn what_is_no_segment_is_refused() {
    let error = |v6, at: usize, value: u8| {
        let mut bytes = tcp(v6).bytes();
        bytes[at] = value;
        Frame::parse(&bytes).map(|_| ()).unwrap_err()
    };
    assert_eq!(error(false, 12, 0x81), FrameError::NotTcp);
    assert_eq!(error(false, 14, 0x65), FrameError::Malformed("IPv4 header"));
    assert_eq!(error(false, 14, 0x44), FrameError::Malformed("IPv4 header"));
    assert_eq!(error(false, 17, 200), FrameError::Malformed("IP length"));
    assert_eq!(error(false, 17, 10), FrameError::Malformed("IP length"));
    assert_eq!(error(false, 17, 30), FrameError::Malformed("TCP header"));
    assert_eq!(error(false, 20, 0x20), FrameError::Fragment);
    assert_eq!(error(false, 21, 1), FrameError::Fragment);
    assert_eq!(error(false, 23, 17), FrameError::NotTcp);
    assert_eq!(error(false, 46, 0x40), FrameError::Malformed("TCP data offset"));
    assert_eq!(error(false, 46, 0xf0), FrameError::Malformed("TCP data offset"));
    assert_eq!(error(true, 14, 0x40), FrameError::Malformed("IPv6 header"));
    assert_eq!(error(true, 20, 44), FrameError::Fragment);
    assert_eq!(error(true, 20, 17), FrameError::NotTcp);
    for header in [0, 43, 51, 60, 135] {
        assert_eq!(error(true, 20, header), FrameError::ExtensionHeader(header));
    }
    let bytes = tcp(true).bytes();
    for len in 0..bytes.len() {
        assert!(Frame::parse(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn only_the_last_option_is_ours() {
    let option = OptionBytes::new(common::wire::HELLO, 1, 2, 3, 4);
    let bytes = Tcp { option: Some(option), before_option: vec![2, 4, 5, 180], ..tcp(false) }.bytes();
    assert_eq!(Frame::parse(&bytes).unwrap().option(), Some(option));
    for at in 0..4 {
        let mut bytes = bytes.clone();
        bytes[14 + 20 + 24 + at] ^= 1;
        assert_eq!(Frame::parse(&bytes).unwrap().option(), None);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3,
    ) {
        if bytes.len() > 24 && kind > 0 {
            let start: [u8; 3] = if kind == 1 { [0x08, 0x00, 0x45] } else { [0x86, 0xdd, 0x60] };
            bytes[12..15].copy_from_slice(&start);
            bytes[if kind == 1 { 23 } else { 20 }] = 6;
            bytes[16..20].copy_from_slice(&[0, 60, 0, 40]);
            bytes[20..22].copy_from_slice(if kind == 1 { &[0, 0] } else { &[6, 64] });
        }
        if let Ok(frame) = Frame::parse(&bytes) {
            let _ = (frame.option(), frame.payload(), frame.source(), frame.seq());
            for made in [strip(&frame), complete(&frame)] {
                prop_assert!(Frame::parse(&made).is_ok());
                prop_assert!(checksums_hold(&made));
            }
        }
    }

    #[test]
    fn built_frames_round_trip(
        v6: bool, seq: u32, ack: u32, flags: u8, payload in proptest::collection::vec(any::<u8>(), 0..1200),
        fields: (u8, u8, u16, u32, u64), with_option: bool,
    ) {
        let option = OptionBytes::new(fields.0 & 15, fields.1, fields.2, fields.3, fields.4);
        let option = with_option.then_some(option);
        let bytes = Tcp { v6, seq, ack, flags, payload: payload.clone(), option, ..Tcp::default() }.bytes();
        let frame = Frame::parse(&bytes).unwrap();
        prop_assert_eq!((frame.seq(), frame.ack(), frame.flags()), (seq, ack, flags));
        prop_assert_eq!((frame.option(), frame.payload()), (option, &payload[..]));
        prop_assert_eq!(option.map_or(0, |option| option_bytes(&option).len()), if with_option { 20 } else { 0 });
        let stripped = strip(&frame);
        let expected = Tcp { v6, seq, ack, flags, option, ..Tcp::default() }.bytes();
        prop_assert_eq!(stripped, expected);
    }
}
