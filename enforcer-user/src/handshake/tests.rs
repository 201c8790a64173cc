//! Two enforcers in memory: everything they say to each other passes as bytes of frames, and every bit of it is tried
//! the other way.

use common::{
    drop_reason::Reason,
    wire::{self, CONFIRM, HELLO, HELLO_COOKIE, MacKey, OPTION_LEN, OptionBytes, Transcript},
};

use super::*;
use crate::identity::{
    OwnIdentity, PreparedCredential, TrustProfile, Verifier,
    ca::{Authority, KeyUsagePurpose},
    credential::{HEADER_LEN, prepare},
    test_support::{NOW, SKEW, authority, enforcer, options, profile, verifier},
};
use datagram::Datagram;
use frame::{ACK, SYN};

/// A frame to be made.
#[derive(Clone, Default)]
pub(super) struct Tcp {
    pub(super) v6: bool,
    /// From the server to the client.
    pub(super) backward: bool,
    pub(super) flags: u8,
    pub(super) seq: u32,
    pub(super) ack: u32,
    /// Other options, a multiple of four bytes.
    pub(super) before_option: Vec<u8>,
    pub(super) option: Option<OptionBytes>,
    pub(super) payload: Vec<u8>,
}

impl Tcp {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (mut ends, mut ports) = ([1, 2], [40_000_u16, 80]);
        if self.backward {
            ends.reverse();
            ports.reverse();
        }
        let mut bytes = [[2, 0, 0, 0, 0, ends[1]], [2, 0, 0, 0, 0, ends[0]]].concat();
        if self.v6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
            bytes.extend(ends.map(|end| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, end]).concat());
        } else {
            bytes.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            bytes.extend(ends.map(|end| [10, 0, 0, end]).concat());
        }
        let tcp = bytes.len();
        bytes.extend(ports.map(u16::to_be_bytes).concat());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        let option = self.option.as_ref().map(build::option_bytes).unwrap_or_default();
        let words = (20 + self.before_option.len() + option.len()) / 4;
        bytes.extend([(words as u8) << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend(&self.before_option);
        bytes.extend(option);
        bytes.extend(&self.payload);
        build::finished(bytes, self.v6, tcp)
    }
}

/// Whether IP and TCP checksums are those of the contents.
pub(super) fn checksums_hold(bytes: &[u8]) -> bool {
    let frame = Frame::parse(bytes).unwrap();
    let (ip, tcp) = (&bytes[14..], frame.tcp_offset());
    let folded = |mut sum: u32| {
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum
    };
    let addresses = if frame.is_v6() { &ip[8..40] } else { &ip[12..20] };
    let tcp_len = (frame.bytes().len() - tcp) as u32;
    let total = build::sum(addresses) + 6 + tcp_len + build::sum(&frame.bytes()[tcp..]);
    folded(total) == 0xffff && (frame.is_v6() || folded(build::sum(&bytes[14..tcp])) == 0xffff)
}

/// An enforcer with one PU.
struct Machine {
    own: OwnIdentity,
    prekeys: Prekeys,
    sessions: Sessions,
    verifier: Verifier,
    local: LocalPu,
    credential: PreparedCredential,
    v6: bool,
}

impl Machine {
    fn new(name: &str, own: OwnIdentity, verifier: Verifier) -> Self {
        let prekeys = Prekeys::new(3600, 600, NOW).unwrap();
        let handle = name.bytes().map(u16::from).sum();
        let profile = TrustProfile { handle, ..profile(own.id(), prekeys.current()) };
        let local = LocalPu { pu: 3, identity: 30, handle, epoch: prekeys.current().epoch };
        let credential = prepare(&own, &profile).unwrap();
        Self { credential, own, prekeys, sessions: Sessions::new(16), verifier, local, v6: false }
    }

    fn renew(&mut self) {
        self.prekeys.rotate(NOW).unwrap();
        let profile = TrustProfile { handle: self.local.handle, ..profile(self.own.id(), self.prekeys.current()) };
        self.credential = prepare(&self.own, &profile).unwrap();
        self.local.epoch = self.prekeys.current().epoch;
    }

    fn syn(&self, isn: u32) -> Vec<u8> {
        let (index, mac) = (self.credential.hash_index(), self.credential.hash_mac());
        let option = Some(OptionBytes::new(HELLO, 0, self.local.handle, index, mac));
        let payload = self.credential.bytes().to_vec();
        Tcp { v6: self.v6, flags: SYN, seq: isn, option, payload, ..Tcp::default() }.bytes()
    }

    fn on_syn(&mut self, bytes: &[u8]) -> Result<responder::Accept, HandshakeError> {
        let hello = responder::authenticate(&mut self.verifier, &Frame::parse(bytes)?, NOW)?;
        let mut own = Own { id: self.own.id(), prekeys: &mut self.prekeys, sessions: &mut self.sessions };
        hello.accept(&mut own, self.local, NOW)
    }

    fn syn_ack(&self, accept: &responder::Accept, isn: u32) -> Vec<u8> {
        let (ack, option) = (accept.peer_isn.wrapping_add(1), Some(accept.reply(isn)));
        let payload = self.credential.bytes().to_vec();
        let flags = SYN | ACK;
        Tcp { v6: self.v6, backward: true, flags, seq: isn, ack, option, payload, ..Tcp::default() }.bytes()
    }

    fn on_syn_ack(&mut self, isn: u32, bytes: &[u8]) -> Result<initiator::Reply, HandshakeError> {
        let mut own = Own { id: self.own.id(), prekeys: &mut self.prekeys, sessions: &mut self.sessions };
        initiator::authenticate(&mut self.verifier, &mut own, self.local, isn, &Frame::parse(bytes)?, NOW)
    }

    fn ack(&self, reply: &initiator::Reply, isn: u32) -> Vec<u8> {
        let (seq, ack) = (isn.wrapping_add(1), reply.peer_isn.wrapping_add(1));
        Tcp { v6: self.v6, flags: ACK, seq, ack, option: Some(reply.confirm), ..Tcp::default() }.bytes()
    }
}

fn on_ack(accept: &responder::Accept, isn: u32, bytes: &[u8]) -> Result<u32, HandshakeError> {
    let option = Frame::parse(bytes)?.option().ok_or(HandshakeError::Unexpected("CONFIRM"))?;
    accept.confirm(&option, isn)
}

fn machines_of(authority: &Authority) -> (Machine, Machine) {
    let machine = |name| Machine::new(name, enforcer(authority, &options(name)), verifier([authority]));
    (machine("a"), machine("b"))
}

fn machines() -> (Machine, Machine) {
    machines_of(&authority("Test CA"))
}

fn reason<T>(result: Result<T, HandshakeError>) -> Reason {
    result.map_or_else(|error| error.reason(), |_| Reason::Allowed)
}

const ISN_A: u32 = u32::MAX;
const ISN_B: u32 = 0x5566_7788;

#[test]
fn two_enforcers_authenticate_each_other() {
    for v6 in [false, true] {
        let (mut a, mut b) = machines();
        (a.v6, b.v6) = (v6, v6);
        let syn = a.syn(ISN_A);
        assert!(checksums_hold(&syn));
        let accept = b.on_syn(&syn).unwrap();
        assert_eq!(accept.peer.enforcer(), a.own.id());
        let reply = a.on_syn_ack(ISN_A, &b.syn_ack(&accept, ISN_B)).unwrap();
        assert_eq!(reply.peer.enforcer(), b.own.id());
        assert_eq!(on_ack(&accept, ISN_B, &a.ack(&reply, ISN_A)), Ok(reply.session.index));

        let (at_a, at_b) = (&reply.session, &accept.session);
        assert_eq!((at_a.keys.outbound, at_a.keys.inbound), (at_b.keys.inbound, at_b.keys.outbound));
        assert_eq!((at_a.peer_index, at_b.peer_index), (at_b.index, 0));
        assert_eq!((at_a.until, at_b.until), (NOW + 4200, NOW + 4200));
        assert_eq!(a.sessions.get(at_a.index), Some(at_a));

        let (client, server) = (reply.flow(), accept.flow());
        assert_eq!((client.local_isn, client.peer_isn, server.peer_isn), (ISN_A, ISN_B, ISN_A));
        assert_eq!((client.local_handle, client.peer_handle), (server.peer_handle, server.local_handle));
        assert_eq!((client.state, client.role), (common::flow::CONFIRMING, common::flow::CLIENT));
        assert_eq!((server.state, server.role), (common::flow::SYN_RECEIVED, common::flow::SERVER));
        assert_eq!((client.session, server.session), (at_a.index, at_b.index));
        assert_eq!((client.confirm_mac, client.pu, client.local_identity), (reply.confirm.mac(), 3, 30));
    }
}

#[test]
fn one_session_serves_both_directions_and_all_connections() {
    let (mut a, mut b) = machines();
    let first = b.on_syn(&a.syn(1)).unwrap();
    let reply = a.on_syn_ack(1, &b.syn_ack(&first, 2)).unwrap();
    let second = b.on_syn(&a.syn(3)).unwrap();
    let backward = a.on_syn(&b.syn(5)).unwrap();
    assert_eq!(first.session.index, second.session.index);
    assert_eq!(backward.session.index, reply.session.index);
    assert_eq!((a.sessions.len(), b.sessions.len()), (1, 1));
    let reply = b.on_syn_ack(5, &a.syn_ack(&backward, 6)).unwrap();
    assert_eq!(reply.session.index, first.session.index);
    assert_eq!(on_ack(&backward, 6, &b.ack(&reply, 5)), Ok(first.session.index));
}

/// Applies `judge` to the frame with each bit of its last `len` bytes flipped, with that byte's offset among them.
fn flipped(frame: &[u8], len: usize, mut judge: impl FnMut(usize, &[u8])) {
    let start = frame.len() - len;
    let mut bytes = frame.to_vec();
    for bit in 0..len * 8 {
        bytes[start + bit / 8] ^= 1 << (bit % 8);
        judge(bit / 8, &bytes);
        bytes[start + bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn every_flipped_bit_of_a_hello_is_refused() {
    let (a, mut b) = machines();
    let syn = a.syn(ISN_A);
    let len = OPTION_LEN + a.credential.bytes().len();
    flipped(&syn, len, |at, bytes| {
        if at == 5 && bytes[bytes.len() - len + 5] == HELLO_COOKIE {
            // The kernel holds none with a wrong cookie: the next test.
            return;
        }
        let expected = match at {
            // Not our option, or not a HELLO.
            0..6 => Reason::HelloMalformed,
            6..8 => Reason::ProfileMismatch,
            _ => Reason::HelloTampered,
        };
        assert_eq!(reason(b.on_syn(bytes)), expected, "byte {at}");
    });
    assert!(b.sessions.is_empty());
    // Only the handle's sixteen got as far as the signatures, of which one sufficed.
    let stats = b.verifier.stats();
    assert_eq!((stats.misses, stats.chain_hits, stats.credential_hits), (1, 0, 15));
}

/// The kernel has found the cookie right; the index is still a part of the credential's hash.
#[test]
fn a_hello_with_a_cookie_is_bound_to_its_credential() {
    let (a, mut b) = machines();
    let mut syn = a.syn(ISN_A);
    let len = OPTION_LEN + a.credential.bytes().len();
    let at = syn.len() - len;
    syn[at + 5] = HELLO_COOKIE;
    syn[at + 12..at + 20].fill(0x5a);
    flipped(&syn, len, |at, bytes| {
        let expected = match at {
            0..6 => Reason::HelloMalformed,
            6..8 => Reason::ProfileMismatch,
            12..20 => return,
            _ => Reason::HelloTampered,
        };
        let flag_gone = at == 5 && bytes[bytes.len() - len + 5] == 0;
        let expected = if flag_gone { Reason::HelloTampered } else { expected };
        assert_eq!(reason(b.on_syn(bytes)), expected, "byte {at}");
    });
    assert!(b.sessions.is_empty());
    assert_eq!(b.on_syn(&syn).unwrap().peer_isn, ISN_A);
}

#[test]
fn every_flipped_bit_of_a_hello_reply_is_refused() {
    let (mut a, mut b) = machines();
    let accept = b.on_syn(&a.syn(ISN_A)).unwrap();
    let syn_ack = b.syn_ack(&accept, ISN_B);
    let payload_len = b.credential.bytes().len();
    let certificate = HEADER_LEN..HEADER_LEN + b.own.certificate().len();
    flipped(&syn_ack, OPTION_LEN + payload_len, |at, bytes| {
        let found = reason(a.on_syn_ack(ISN_A, bytes));
        let expected = match at {
            0..5 => found == Reason::HelloMalformed,
            6..8 => found == Reason::ProfileMismatch,
            5..OPTION_LEN => found == Reason::ReplyMac,
            _ => match at - OPTION_LEN {
                ..HEADER_LEN => found == Reason::HelloMalformed,
                at if certificate.contains(&at) => {
                    matches!(found, Reason::HelloMalformed | Reason::CredentialSignature)
                }
                _ => found == Reason::CredentialSignature,
            },
        };
        assert!(expected, "byte {at}: {found:?}");
    });
    assert!(a.sessions.is_empty());
    assert_eq!(reason(a.on_syn_ack(ISN_A, &syn_ack)), Reason::Allowed);
}

#[test]
fn every_flipped_bit_of_a_confirm_is_refused() {
    let (mut a, mut b) = machines();
    let accept = b.on_syn(&a.syn(ISN_A)).unwrap();
    let reply = a.on_syn_ack(ISN_A, &b.syn_ack(&accept, ISN_B)).unwrap();
    flipped(&a.ack(&reply, ISN_A), OPTION_LEN, |at, bytes| {
        let expected = if at < 4 { Reason::HelloMalformed } else { Reason::ConfirmMac };
        assert_eq!(reason(on_ack(&accept, ISN_B, bytes)), expected, "byte {at}");
    });
}

#[test]
fn tcp_flags_and_numbers_are_bound() {
    let (mut a, mut b) = machines();
    let (syn_at, seq_at, ack_at) = (34 + 13, 34 + 4, 34 + 8);
    let mut syn = a.syn(ISN_A);
    syn[syn_at] |= ACK;
    assert_eq!(reason(b.on_syn(&syn)), Reason::HelloMalformed);
    // A changed initial sequence number shows when the server answers for it.
    let mut syn = a.syn(ISN_A);
    syn[seq_at] ^= 1;
    let misled = b.on_syn(&syn).unwrap();
    assert_eq!(reason(a.on_syn_ack(ISN_A, &b.syn_ack(&misled, ISN_B))), Reason::ReplyMac);
    let accept = b.on_syn(&a.syn(ISN_A)).unwrap();
    let syn_ack = b.syn_ack(&accept, ISN_B);
    for at in [seq_at, seq_at + 3, ack_at, ack_at + 3] {
        let mut changed = syn_ack.clone();
        changed[at] ^= 1;
        assert_eq!(reason(a.on_syn_ack(ISN_A, &changed)), Reason::ReplyMac);
    }
    let mut changed = syn_ack.clone();
    changed[syn_at] &= !SYN;
    assert_eq!(reason(a.on_syn_ack(ISN_A, &changed)), Reason::HelloMalformed);
    assert!(a.sessions.is_empty());
}

#[test]
fn replays_of_other_connections_are_refused() {
    let (mut a, mut b) = machines();
    let old = b.on_syn(&a.syn(1)).unwrap();
    let old_syn_ack = b.syn_ack(&old, 2);
    let old_reply = a.on_syn_ack(1, &old_syn_ack).unwrap();
    let old_ack = a.ack(&old_reply, 1);

    assert_eq!(reason(a.on_syn_ack(3, &old_syn_ack)), Reason::ReplyMac);
    // With the acknowledgement put right.
    let frame = Frame::parse(&old_syn_ack).unwrap();
    let adapted = Tcp {
        backward: true,
        flags: SYN | ACK,
        seq: 2,
        ack: 4,
        option: frame.option(),
        payload: frame.payload().to_vec(),
        ..Tcp::default()
    };
    assert_eq!(reason(a.on_syn_ack(3, &adapted.bytes())), Reason::ReplyMac);

    let new = b.on_syn(&a.syn(3)).unwrap();
    assert_eq!(reason(on_ack(&new, 4, &old_ack)), Reason::ConfirmMac);
    assert_eq!(reason(on_ack(&new, 2, &old_ack)), Reason::ConfirmMac, "same server ISN, other client ISN");
    assert_eq!(reason(on_ack(&old, 4, &old_ack)), Reason::ConfirmMac, "same client ISN, other server ISN");
    assert_eq!(reason(on_ack(&old, 2, &old_ack)), Reason::Allowed);
    // What the server itself said is no confirmation either.
    let reflected = Tcp { flags: ACK, option: Some(old.reply(2)), ..Tcp::default() }.bytes();
    assert_eq!(reason(on_ack(&old, 2, &reflected)), Reason::ConfirmMac);
}

#[test]
fn a_stolen_credential_is_worth_nothing() {
    let (a, mut b) = machines();
    // The thief has all that ever was on the wire, an authority-issued enforcer of its own, but not a's prekey.
    let mut thief = Prekeys::new(3600, 600, NOW).unwrap();
    let accept = b.on_syn(&a.syn(ISN_A)).unwrap();
    let shared = thief.agree(thief.current().epoch, &b.prekeys.current().key).unwrap();
    let keys = session_keys::derive(
        &shared,
        Party { id: a.own.id(), prekey: a.prekeys.current() },
        Party { id: b.own.id(), prekey: b.prekeys.current() },
    );
    let transcript = Transcript { sender_isn: ISN_A, peer_isn: ISN_B, peer_handle: b.local.handle };
    for key in [keys.outbound, keys.inbound, MacKey::default()] {
        let forged = wire::sealed(&key, CONFIRM, 0, a.local.handle, 9, &transcript);
        let ack = Tcp { flags: ACK, option: Some(forged), ..Tcp::default() }.bytes();
        assert_eq!(reason(on_ack(&accept, ISN_B, &ack)), Reason::ConfirmMac);
    }
    // The same at the server's end: b's credential, but not b's prekey.
    let mut a = a;
    let mut server = b;
    server.sessions = Sessions::new(16);
    let stolen = server.credential.clone();
    server.prekeys = Prekeys::new(3600, 600, NOW).unwrap();
    server.local.epoch = server.prekeys.current().epoch;
    let accept = server.on_syn(&a.syn(ISN_A)).unwrap();
    server.credential = stolen;
    assert_eq!(reason(a.on_syn_ack(ISN_A, &server.syn_ack(&accept, ISN_B))), Reason::ReplyMac);
    assert!(a.sessions.is_empty());
}

#[test]
fn wrong_credentials_are_refused_at_either_end() {
    let ours = authority("Test CA");
    let theirs = authority("Test CA");
    type Change = fn(&mut crate::identity::ca::IssueOptions);
    let cases: [(&Authority, Change, Reason); 5] = [
        (&theirs, |_| {}, Reason::ChainUntrusted),
        (&ours, |o| o.not_after = NOW - SKEW - 1, Reason::CertificateExpired),
        (&ours, |o| o.not_before = NOW + SKEW + 1, Reason::CertificateNotYetValid),
        (&ours, |o| o.key_usages = vec![KeyUsagePurpose::KeyAgreement], Reason::CertificateUsage),
        (&ours, |o| o.uri = Some("spiffe://other.example/enforcer/x".into()), Reason::CertificateName),
    ];
    for (issuer, change, expected) in cases {
        let mut options = options("x");
        change(&mut options);
        let mut wrong = Machine::new("x", enforcer(issuer, &options), verifier([&ours]));
        let (_, mut good) = machines_of(&ours);
        assert_eq!(reason(good.on_syn(&wrong.syn(1))), expected, "as client");
        let accept = wrong.on_syn(&good.syn(1)).unwrap();
        assert_eq!(reason(good.on_syn_ack(1, &wrong.syn_ack(&accept, 2))), expected, "as server");
        assert!(good.sessions.is_empty());
    }
    let lives = [
        (NOW - 400, NOW - SKEW, Reason::CredentialExpired),
        (NOW + SKEW + 1, NOW + 400, Reason::CredentialNotYetValid),
    ];
    for (issued, expires, expected) in lives {
        let (mut wrong, mut good) = machines_of(&ours);
        let profile = TrustProfile {
            handle: wrong.local.handle,
            issued,
            expires,
            ..profile(wrong.own.id(), wrong.prekeys.current())
        };
        wrong.credential = prepare(&wrong.own, &profile).unwrap();
        assert_eq!(reason(good.on_syn(&wrong.syn(1))), expected, "as client");
        let accept = wrong.on_syn(&good.syn(1)).unwrap();
        assert_eq!(reason(good.on_syn_ack(1, &wrong.syn_ack(&accept, 2))), expected, "as server");
    }
}

#[test]
fn a_signed_prekey_of_small_order_is_refused() {
    let (mut a, mut b) = machines();
    let prekey = PublicPrekey { key: [0; 32], ..a.prekeys.current() };
    let profile = TrustProfile { handle: a.local.handle, ..profile(a.own.id(), prekey) };
    a.credential = prepare(&a.own, &profile).unwrap();
    assert_eq!(reason(b.on_syn(&a.syn(1))), Reason::ProfileMismatch);
    assert!(b.sessions.is_empty());
}

#[test]
fn rotation_between_syn_and_syn_ack_harms_nobody() {
    let (mut a, mut b) = machines();
    let accept = b.on_syn(&a.syn(ISN_A)).unwrap();
    let syn_ack = b.syn_ack(&accept, ISN_B);
    a.renew();
    let reply = a.on_syn_ack(ISN_A, &syn_ack).unwrap();
    assert_eq!(on_ack(&accept, ISN_B, &a.ack(&reply, ISN_A)), Ok(reply.session.index));
    // The next connection has its own session under the new prekey.
    let next = b.on_syn(&a.syn(7)).unwrap();
    assert_ne!(next.session.index, accept.session.index);
    assert_eq!(b.sessions.len(), 2);
}

#[test]
fn a_pu_whose_prekey_is_gone_has_no_credential() {
    let (a, mut b) = machines();
    b.local.epoch -= 1;
    assert_eq!(reason(b.on_syn(&a.syn(1))), Reason::NoCredential);
}

#[test]
fn an_enforcer_has_a_session_with_itself() {
    let (mut a, _) = machines();
    let mut own = Own { id: a.own.id(), prekeys: &mut a.prekeys, sessions: &mut a.sessions };
    let session = own.self_session(NOW).unwrap();
    assert_eq!(own.self_session(NOW).unwrap(), session);
    assert_eq!((session.peer_index, session.keys.inbound), (session.index, session.keys.outbound));
    let accept = a.on_syn(&a.syn(1)).unwrap();
    let reply = a.on_syn_ack(1, &a.syn_ack(&accept, 2)).unwrap();
    assert_eq!((accept.session.index, reply.session.index), (session.index, session.index));
    assert_eq!(on_ack(&accept, 2, &a.ack(&reply, 1)), Ok(session.index));
}

#[test]
fn the_client_can_prove_a_refusal() {
    let (mut a, mut b) = machines();
    let accept = b.on_syn(&a.syn(1)).unwrap();
    let syn_ack = b.syn_ack(&accept, 2);
    let reply = a.on_syn_ack(1, &syn_ack).unwrap();
    let frame = Frame::parse(&syn_ack).unwrap();
    let deny = build::deny(&frame, Reason::NoRule, Some(reply.deny_proof()));
    let option = Frame::parse(&deny).unwrap().option().unwrap();
    let transcript = Transcript { sender_isn: 0, peer_isn: 2, peer_handle: 0 };
    let expected = wire::sealed(&accept.session.keys.inbound, wire::DENY, 1, 0, accept.session.index, &transcript);
    assert_eq!(option, expected);
}

#[test]
fn full_tables_have_their_own_reason() {
    let ours = authority("Test CA");
    let (a, mut b) = machines_of(&ours);
    b.sessions = Sessions::new(1);
    let c = Machine::new("c", enforcer(&ours, &options("c")), verifier([&ours]));
    assert_eq!(reason(b.on_syn(&a.syn(1))), Reason::Allowed);
    assert_eq!(reason(b.on_syn(&c.syn(1))), Reason::TableFull);
    assert_eq!(reason(b.on_syn(&a.syn(2))), Reason::Allowed);
}

#[test]
fn two_enforcers_meet_out_of_band() {
    const SYN_OPTIONS: [u8; 4] = [2, 4, 5, 180];
    for (v6, cookie) in [(false, None), (true, None), (false, Some(77)), (true, Some(78))] {
        let (mut a, mut b) = machines();
        let syn = Tcp { v6, flags: SYN, seq: 9, before_option: SYN_OPTIONS.into(), ..Tcp::default() }.bytes();
        let syn = Frame::parse(&syn).unwrap();
        let beside = datagram::OutOfBand { syn: &syn, from: 40_000, to: 9753 };
        let hello = beside.hello(&a.credential, a.local.handle, 5, cookie);
        assert!(hello.len() <= 14 + 1280, "{} bytes", hello.len());
        let asked = Datagram::parse(&hello).unwrap();
        let (trailer, before) = asked.trailer().unwrap();
        assert_eq!(before[..2], 80_u16.to_be_bytes(), "the port that is wanted");
        assert_eq!(trailer.mac(), cookie.unwrap_or(a.credential.hash_mac()));
        let accept = {
            let mut own = Own { id: b.own.id(), prekeys: &mut b.prekeys, sessions: &mut b.sessions };
            let hello = datagram::authenticate(&mut b.verifier, &asked, NOW).unwrap();
            hello.accept(&mut own, b.local, NOW).unwrap()
        };
        assert_eq!(accept.peer.enforcer(), a.own.id());
        let reply = asked.hello_reply(&accept, &b.credential, b.credential.hash());
        let reply = Datagram::parse(&reply).unwrap();
        let (peer, session) = {
            let mut own = Own { id: a.own.id(), prekeys: &mut a.prekeys, sessions: &mut a.sessions };
            let shown = datagram::verify(&mut a.verifier, &reply, NOW).unwrap();
            assert_eq!(reason(shown.clone().authenticate(&mut own, a.local, 6, NOW)), Reason::ReplyMac);
            shown.authenticate(&mut own, a.local, 5, NOW).unwrap()
        };
        assert_eq!((peer.enforcer(), session.peer_index), (b.own.id(), accept.session.index));
        let confirm = beside.confirm(&session, a.local.handle, b.local.handle, 11);
        let (trailer, wanted) = Datagram::parse(&confirm).unwrap().trailer().unwrap();
        let fields = trailer.fields();
        assert_eq!((fields.index, fields.sender_index, wanted), (accept.session.index, session.index, &[0, 80][..]));
        let covered = [u64::from(u16::from_le_bytes([0, 80])), 0, 0, 0];
        let expected = common::datagram::mac(&accept.session.keys.inbound, &fields, 17, &covered);
        assert_eq!(trailer.mac(), expected, "the server's kernel takes it");
    }
}

#[test]
fn an_out_of_band_hello_is_what_its_flags_say() {
    use common::datagram::{COOKIE, OUT_OF_BAND};
    let (a, mut b) = machines();
    let syn = Tcp { flags: SYN, ..Tcp::default() }.bytes();
    let syn = Frame::parse(&syn).unwrap();
    let beside = datagram::OutOfBand { syn: &syn, from: 40_000, to: 9753 };
    let hello = beside.hello(&a.credential, a.local.handle, 5, None);
    let flags = hello.len() - common::datagram::TRAILER_LEN + 1;
    for (value, expected) in [
        (OUT_OF_BAND, Reason::Allowed),
        // The MAC is no part of the hash then, and the cookie for the kernel to look at.
        (OUT_OF_BAND | COOKIE, Reason::Allowed),
        // The port would be a part of the credential.
        (0, Reason::HelloTampered),
        (COOKIE, Reason::HelloTampered),
        (OUT_OF_BAND | 8, Reason::HelloMalformed),
    ] {
        let mut hello = hello.clone();
        hello[flags] = value;
        let result = datagram::authenticate(&mut b.verifier, &Datagram::parse(&hello).unwrap(), NOW);
        assert_eq!(reason(result), expected, "flags {value}");
    }
}
