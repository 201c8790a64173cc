use common::addr_v4;

use super::*;
use crate::handshake::{
    frame::SYN,
    tests::{Tcp, checksums_hold},
};

#[test]
fn checksums_agree_with_a_known_packet() {
    // RFC 1071 section 3.
    assert_eq!(!fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    // A header whose checksum is in place sums to nothing.
    let ip = "4500003c1c4640004006b1e6ac100a63ac100a0c";
    let bytes: Vec<u8> = (0..20).map(|at| u8::from_str_radix(&ip[at * 2..at * 2 + 2], 16).unwrap()).collect();
    assert_eq!(fold(sum(&bytes)), 0);
}

#[test]
fn partial_checksums_and_payload_go() {
    for v6 in [false, true] {
        let syn = Tcp { v6, flags: SYN, seq: 5, payload: vec![7; 601], ..Tcp::default() };
        let mut partial = syn.bytes();
        let tcp = if v6 { 54 } else { 34 };
        partial[tcp + 16..tcp + 18].fill(0x55);
        let frame = Frame::parse(&partial).unwrap();
        assert_eq!(complete(&frame), syn.bytes());
        assert_eq!(strip(&frame), Tcp { payload: vec![], ..syn }.bytes());
    }
}

#[test]
fn a_refused_syn_is_answered_as_tcp_asks() {
    for v6 in [false, true] {
        let bytes = Tcp { v6, flags: SYN, seq: u32::MAX, ack: 0, payload: vec![1; 100], ..Tcp::default() }.bytes();
        let syn = Frame::parse(&bytes).unwrap();
        let made = deny(&syn, Reason::NoRule, None);
        assert!(checksums_hold(&made));
        let rst = Frame::parse(&made).unwrap();
        assert_eq!((rst.flags(), rst.seq(), rst.ack()), (RST | ACK, 0, 0));
        assert_eq!((rst.source(), rst.destination()), (syn.destination(), syn.source()));
        assert_eq!((rst.source_port(), rst.destination_port()), (80, 40_000));
        assert_eq!((&made[..6], &made[6..12]), (&bytes[6..12], &bytes[..6]));
        assert_eq!(rst.option(), Some(OptionBytes::new(DENY, 1, 0, 0, 0)));
        assert!(rst.payload().is_empty());
    }
}

#[test]
fn a_refused_syn_ack_ends_both_ends() {
    let key = MacKey { k0: 1, k1: 2 };
    let bytes = Tcp { flags: SYN | ACK, seq: 100, ack: 201, payload: vec![1; 100], ..Tcp::default() }.bytes();
    let syn_ack = Frame::parse(&bytes).unwrap();

    let made = deny(&syn_ack, Reason::DenyRule, Some(DenyProof { key: &key, peer_index: 77 }));
    let rst = Frame::parse(&made).unwrap();
    assert_eq!((rst.flags(), rst.seq(), rst.ack()), (RST | ACK, 201, 101));
    assert_eq!(rst.source(), syn_ack.destination());
    let transcript = Transcript { sender_isn: 0, peer_isn: 100, peer_handle: 0 };
    assert_eq!(rst.option(), Some(wire::sealed(&key, DENY, 2, 0, 77, &transcript)));
    let unknown = deny(&syn_ack, Reason::DenyRule, Some(DenyProof { key: &key, peer_index: 0 }));
    assert_eq!(Frame::parse(&unknown).unwrap().option(), Some(OptionBytes::new(DENY, 2, 0, 0, 0)));

    let made = reset_receiver(&syn_ack);
    assert!(checksums_hold(&made));
    let rst = Frame::parse(&made).unwrap();
    assert_eq!((rst.flags(), rst.seq(), rst.ack(), rst.option()), (RST | ACK, 100, 201, None));
    assert_eq!((rst.source(), rst.destination()), (syn_ack.source(), syn_ack.destination()));
    assert_eq!(made[..12], bytes[..12]);
}

#[test]
fn flows_are_cut_at_either_end() {
    let v4 = [addr_v4(u32::from_ne_bytes([10, 0, 0, 1])), addr_v4(u32::from_ne_bytes([10, 0, 0, 2]))];
    for [local, remote] in [v4, [[1, 2, 3, 4], [5, 6, 7, 8]]] {
        let key = FlowKey { local, remote, local_port: 80, remote_port: 40_000, proto: 6, pad: [0; 3] };
        let link = [2, 0, 0, 0, 0, 1];
        let flow = Flow { local_isn: 5, peer_isn: 6, peer_handle: 7, ..Flow::default() };
        let mac_key = MacKey { k0: 1, k1: 2 };
        let why = cut_reason(&flow, Reason::Revoked, DenyProof { key: &mac_key, peer_index: 8 });
        assert_eq!((why.packet_type(), why.flags, why.index()), (DENY, Reason::Revoked as u8, 8));
        let expected = [(1, RST | ACK, Some(why)), (0, ACK, None)];
        for (made, (seq, flags, option)) in cut_flow(&key, Toward::Remote, link, 1, 2, Some(why)).iter().zip(expected) {
            assert!(checksums_hold(made));
            assert_eq!(made[..6], link);
            let cut = Frame::parse(made).unwrap();
            assert_eq!((cut.flags(), cut.seq(), cut.ack(), cut.option()), (flags, seq, 2, option));
            assert_eq!((cut.source(), cut.source_port()), (local, 80));
            assert_eq!((cut.destination(), cut.destination_port()), (remote, 40_000));
        }
        let [reset, _] = cut_flow(&key, Toward::Local, link, 3, 4, None);
        let rst = Frame::parse(&reset).unwrap();
        assert_eq!((rst.seq(), rst.ack()), (3, 4));
        assert_eq!((rst.source(), rst.source_port()), (remote, 40_000));
        assert_eq!((rst.destination(), rst.destination_port()), (local, 80));
    }
}
