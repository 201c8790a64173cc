//! First contact over datagrams: HELLO and HELLO_REPLY on the flow's own addresses and ports, each with a credential and a
//! trailer, and what else the agent makes of held datagrams.

use std::sync::Arc;

use common::{
    Addr,
    datagram::{BARE, COOKIE, COVERED, Fields, OUT_OF_BAND, TRAILER_LEN, Trailer, WANTED_LEN, mac},
    drop_reason::Reason,
    flow::{CLIENT, Flow, FlowKey},
    is_v4,
    wire::{CONFIRM, DENY, HELLO, HELLO_COOKIE, HELLO_REPLY, OptionBytes, RESUME, RETRY},
};

use super::{
    Frame, FrameError, HandshakeError, LocalPu, Own, Session,
    build::finished_as,
    frame::ETH_LEN,
    sessions::{IN_FLIGHT, same_mac},
};
use crate::identity::{PreparedCredential, VerifiedCredential, Verifier};

const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// IPv6's fragment header, among next headers.
const FRAGMENT: u8 = 44;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// Length of the header of UDP, of an echo, and of a fragment.
const HEADER: usize = 8;

/// A datagram in a frame: UDP, or an echo of ICMP or ICMPv6.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    // Without padding behind the IP packet.
    bytes: &'a [u8],
    v6: bool,
    proto: u8,
    /// Behind IPv6's fragment header, if there is one.
    l4: usize,
    /// The first of several pieces.
    fragment: bool,
}

impl<'a> Datagram<'a> {
    /// Takes a frame apart. Checksums are not looked at: captured frames may hold partial ones.
    ///
    /// # Errors
    /// If it is not a datagram, or a later piece of one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        use FrameError::Malformed;
        let ip = bytes.get(ETH_LEN..).ok_or(Malformed("Ethernet header"))?;
        let (v6, l4, total, proto, fragment) = match [bytes[12], bytes[13]] {
            [0x08, 0x00] => {
                let head = ip.first_chunk::<20>().ok_or(Malformed("IPv4 header"))?;
                let fragment = u16::from_be_bytes([head[6], head[7]]);
                if head[0] != 0x45 {
                    return Err(Malformed("IPv4 header"));
                }
                if fragment & 0x1fff != 0 {
                    return Err(FrameError::Fragment);
                }
                let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
                (false, ETH_LEN + V4_HEADER, total, head[9], fragment & 0x2000 != 0)
            }
            [0x86, 0xdd] => {
                let head = ip.first_chunk::<40>().ok_or(Malformed("IPv6 header"))?;
                if head[0] >> 4 != 6 {
                    return Err(Malformed("IPv6 header"));
                }
                let total = V6_HEADER + usize::from(u16::from_be_bytes([head[4], head[5]]));
                if head[6] == FRAGMENT {
                    let head = ip[V6_HEADER..].first_chunk::<HEADER>().ok_or(Malformed("fragment header"))?;
                    if u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0 {
                        return Err(FrameError::Fragment);
                    }
                    (true, ETH_LEN + V6_HEADER + HEADER, total, head[0], true)
                } else {
                    (true, ETH_LEN + V6_HEADER, total, head[6], false)
                }
            }
            _ => return Err(FrameError::NotTcp),
        };
        let bytes = bytes.get(..ETH_LEN + total).ok_or(Malformed("IP length"))?;
        let head = bytes.get(l4..).and_then(<[u8]>::first_chunk::<HEADER>).ok_or(Malformed("transport header"))?;
        let known = match (proto, v6) {
            (UDP, _) => fragment || usize::from(u16::from_be_bytes([head[4], head[5]])) == bytes.len() - l4,
            (ICMP, false) => matches!(head[0], 0 | 8),
            (ICMPV6, true) => matches!(head[0], 128 | 129),
            _ => return Err(FrameError::NotTcp),
        };
        if !known {
            return Err(Malformed("datagram"));
        }
        Ok(Self { bytes, v6, proto, l4, fragment })
    }

    /// What follows the transport header, trailer and all.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.l4 + HEADER..]
    }

    /// The trailer and what is before it, if there is one and its length agrees.
    pub fn trailer(&self) -> Option<(Trailer, &'a [u8])> {
        let at = self.payload().len().checked_sub(TRAILER_LEN).filter(|_| !self.fragment)?;
        let (before, trailer) = self.payload().split_at(at);
        let trailer = Trailer::parse(trailer)?;
        (usize::from(trailer.fields().len) == before.len()).then_some((trailer, before))
    }

    /// The same datagram with another payload, in one piece and with complete checksums; `back` to where it came from.
    pub fn with(&self, payload: &[&[u8]], back: bool) -> Vec<u8> {
        let (mut bytes, l4) = self.network_header();
        bytes.extend(&self.bytes[self.l4..self.l4 + HEADER]);
        if back {
            let addresses = if self.v6 { ETH_LEN + 8 } else { ETH_LEN + 12 };
            let half = if self.v6 { 16 } else { 4 };
            swap(&mut bytes, 0, 6);
            swap(&mut bytes, addresses, half);
            match (self.proto, bytes[l4]) {
                (UDP, _) => swap(&mut bytes, l4, 2),
                (ICMP, kind) => bytes[l4] = 8 - kind,
                (_, kind) => bytes[l4] = kind ^ 1,
            }
            bytes[if self.v6 { ETH_LEN + 7 } else { ETH_LEN + 8 }] = 64;
        }
        if !self.v6 {
            bytes[ETH_LEN + 6] &= 0x40;
        }
        payload.iter().for_each(|part| bytes.extend(*part));
        finished_as(bytes, self.v6, l4, self.proto)
    }

    /// The headers before the transport header, without that of a fragment; how long they are.
    fn network_header(&self) -> (Vec<u8>, usize) {
        let l4 = ETH_LEN + if self.v6 { V6_HEADER } else { V4_HEADER };
        let mut bytes = self.bytes[..l4].to_vec();
        if self.v6 {
            bytes[ETH_LEN + 6] = self.proto;
        }
        (bytes, l4)
    }

    /// The frames that go on in this one's place, checksums complete: where the stack left it to the device, cut into pieces
    /// of `segment` bytes of payload.
    pub fn onward(&self, segment: usize) -> Vec<Vec<u8>> {
        if self.fragment {
            return vec![self.bytes.to_vec()];
        }
        if segment == 0 || self.payload().len() <= segment {
            return vec![self.with(&[self.payload()], false)];
        }
        self.payload().chunks(segment).map(|piece| self.with(&[piece], false)).collect()
    }

    /// HELLO from the sender of this datagram, with any `number` to know the answer by, and what a CHALLENGE asked for.
    pub fn hello(&self, credential: &PreparedCredential, handle: u16, number: u64, cookie: Option<u64>) -> Vec<u8> {
        let fields = Fields {
            packet_type: HELLO,
            flags: if cookie.is_some() { COOKIE } else { 0 },
            handle,
            len: length(credential.bytes()),
            index: credential.hash_index(),
            time: number,
            ..Fields::default()
        };
        let trailer = Trailer::new(&fields, cookie.unwrap_or(credential.hash_mac()));
        self.with(&[credential.bytes(), &trailer.bytes()], false)
    }

    /// The answer to the HELLO in this datagram.
    pub fn hello_reply(&self, accept: &Accept, credential: &PreparedCredential, hash: &[u8; 32]) -> Vec<u8> {
        let fields = Fields {
            packet_type: HELLO_REPLY,
            handle: accept.local.handle,
            peer_handle: accept.peer.profile().handle,
            len: length(credential.bytes()),
            index: accept.session.index,
            time: accept.number,
            ..Fields::default()
        };
        let mac = mac(&accept.session.keys.outbound, &fields, self.proto, &words(hash));
        self.with(&[credential.bytes(), &Trailer::new(&fields, mac).bytes()], true)
    }

    /// The answer that refuses the HELLO in this datagram, without proof.
    pub fn deny(&self, reason: Reason, number: u64) -> Vec<u8> {
        // Numbers fit seven bits, which a test in `common` holds.
        let fields = Fields { packet_type: DENY, flags: reason as u8, time: number, ..Fields::default() };
        self.with(&[&Trailer::new(&fields, 0).bytes()], true)
    }

    /// What the sender of this datagram sends in its place, where it is not to be sent.
    pub fn denied(&self, trailer: &Trailer) -> Vec<u8> {
        self.with(&[&trailer.bytes()], false)
    }

    /// The error of ICMP that the sender of this datagram gets for it: nobody is there. Echoes get none.
    pub fn unreachable(&self) -> Option<Vec<u8>> {
        if self.proto != UDP {
            return None;
        }
        let (mut bytes, l4) = self.network_header();
        swap(&mut bytes, 0, 6);
        swap(&mut bytes, if self.v6 { ETH_LEN + 8 } else { ETH_LEN + 12 }, if self.v6 { 16 } else { 4 });
        if self.v6 {
            bytes[ETH_LEN + 6] = ICMPV6;
            bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]);
        } else {
            bytes[ETH_LEN + 6..ETH_LEN + 8].fill(0);
            bytes[ETH_LEN + 9] = ICMP;
            bytes.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        }
        bytes.extend(&self.bytes[ETH_LEN..self.l4 + HEADER]);
        Some(finished_as(bytes, self.v6, l4, if self.v6 { ICMPV6 } else { ICMP }))
    }

    /// What was sent in `flow`, under `session`, that this RETRY gives back.
    pub fn given_back(&self, flow: &Flow, session: &common::identity::Session) -> Option<Fields> {
        let (trailer, before) = self.trailer()?;
        let fields = trailer.fields();
        if fields.packet_type != RETRY || fields.sender_index != flow.session || fields.handle != flow.local_handle {
            return None;
        }
        let covered = first_words(before);
        // Type and flags are overwritten.
        [(RESUME, 0), (CONFIRM, 0), (RESUME, BARE), (CONFIRM, BARE)]
            .into_iter()
            .map(|(packet_type, flags)| Fields { packet_type, flags, ..fields })
            .find(|sent| same_mac(mac(&session.key_out, sent, self.proto, &covered), trailer.mac()))
    }
}

/// Exchanges two neighbouring pieces of `len` bytes.
fn swap(bytes: &mut [u8], at: usize, len: usize) {
    bytes[at..at + 2 * len].rotate_left(len);
}

fn length(credential: &[u8]) -> u16 {
    // A credential is at most 1180 bytes long.
    credential.len() as u16
}

fn words(bytes: &[u8; COVERED]) -> [u64; COVERED / 8] {
    let mut words = [0; COVERED / 8];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    words
}

/// The beginning of a payload, as a MAC covers it.
fn first_words(payload: &[u8]) -> [u64; COVERED / 8] {
    let mut first = [0; COVERED];
    for (to, from) in first.iter_mut().zip(payload) {
        *to = *from;
    }
    words(&first)
}

/// What an enforcer says over UDP, from the client's port `from` to the peer's enforcer at port `to`, for the connection that a
/// SYN opens.
#[derive(Clone, Copy, Debug)]
pub struct OutOfBand<'a> {
    /// The SYN, as the client's stack sent it.
    pub syn: &'a Frame<'a>,
    /// Source port.
    pub from: u16,
    /// Destination port.
    pub to: u16,
}

impl OutOfBand<'_> {
    /// HELLO for the SYN's PU, with any `number` to know the answer by, and what a CHALLENGE asked for.
    pub fn hello(&self, credential: &PreparedCredential, handle: u16, number: u64, cookie: Option<u64>) -> Vec<u8> {
        let fields = Fields {
            packet_type: HELLO,
            flags: OUT_OF_BAND | if cookie.is_some() { COOKIE } else { 0 },
            handle,
            len: WANTED_LEN as u16 + length(credential.bytes()),
            index: credential.hash_index(),
            time: number,
            ..Fields::default()
        };
        let trailer = Trailer::new(&fields, cookie.unwrap_or(credential.hash_mac()));
        self.with(&[&self.wanted(), credential.bytes(), &trailer.bytes()])
    }

    /// CONFIRM for the PU that goes by `handle`: its peer's credential has come, and `session` is open; at the clock `time`.
    pub fn confirm(&self, session: &Session, handle: u16, peer_handle: u16, time: u64) -> Vec<u8> {
        let fields = Fields {
            packet_type: CONFIRM,
            flags: OUT_OF_BAND,
            handle,
            peer_handle,
            len: WANTED_LEN as u16,
            index: session.peer_index,
            sender_index: session.index,
            time,
        };
        let wanted = self.wanted();
        let mac = mac(&session.keys.outbound, &fields, UDP, &first_words(&wanted));
        self.with(&[&wanted, &Trailer::new(&fields, mac).bytes()])
    }

    fn wanted(&self) -> [u8; WANTED_LEN] {
        self.syn.destination_port().to_be_bytes()
    }

    fn with(&self, payload: &[&[u8]]) -> Vec<u8> {
        let (v6, l4) = (self.syn.is_v6(), self.syn.tcp_offset());
        let mut bytes = self.syn.bytes()[..l4].to_vec();
        bytes[ETH_LEN + if v6 { 6 } else { 9 }] = UDP;
        bytes.extend([self.from.to_be_bytes(), self.to.to_be_bytes(), [0; 2], [0; 2]].concat());
        payload.iter().for_each(|part| bytes.extend(*part));
        finished_as(bytes, v6, l4, UDP)
    }
}

/// A client whose HELLO was found right. It may still be replaying.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Its credential.
    pub peer: Arc<VerifiedCredential>,
    number: u64,
}

/// A client that may be answered, if policy allows it.
#[derive(Clone, Debug)]
pub struct Accept {
    /// Its credential.
    pub peer: Arc<VerifiedCredential>,
    /// The session; to be written to `SESSIONS` before the answer leaves.
    pub session: Session,
    local: LocalPu,
    number: u64,
}

/// Verifies the HELLO in `datagram` at `now` (Unix seconds).
///
/// # Errors
/// With the reason to count, and to send in a DENY.
pub fn authenticate(verifier: &mut Verifier, datagram: &Datagram<'_>, now: u64) -> Result<Hello, HandshakeError> {
    let (trailer, credential) = datagram.trailer().ok_or(HandshakeError::Unexpected("a trailer"))?;
    let fields = trailer.fields();
    let credential = match (fields.packet_type, fields.flags & !COOKIE) {
        (HELLO, 0) => credential,
        (HELLO, OUT_OF_BAND) => credential.get(WANTED_LEN..).ok_or(HandshakeError::Unexpected("a port"))?,
        _ => return Err(HandshakeError::Unexpected("HELLO")),
    };
    let flags = if fields.flags & COOKIE != 0 { HELLO_COOKIE } else { 0 };
    let option = OptionBytes::new(HELLO, flags, fields.handle, fields.index, trailer.mac());
    Ok(Hello { peer: verifier.verify_hello(&option, credential, now)?, number: fields.time })
}

impl Hello {
    /// Opens or finds the session for what is sent to `local`.
    ///
    /// # Errors
    /// If the prekeys do not agree, the session would have ended, or there is no room for it.
    pub fn accept(self, own: &mut Own<'_>, local: LocalPu, now: u64) -> Result<Accept, HandshakeError> {
        // The prekey that the answer's credential will show.
        let prekey = own.prekeys.get(local.epoch).ok_or(HandshakeError::OwnPrekey(local.epoch))?;
        let (key, keys) = own.keys(prekey, &self.peer)?;
        let session = own.sessions.open(key, keys, now)?.clone();
        Ok(Accept { peer: self.peer, session, local, number: self.number })
    }
}

/// A HELLO_REPLY whose credential was found right. Its sender may still be replaying: only the MAC proves it live.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The server's credential.
    pub peer: Arc<VerifiedCredential>,
    trailer: Trailer,
    proto: u8,
}

/// Verifies the credential in the HELLO_REPLY in `datagram` at `now` (Unix seconds).
///
/// # Errors
/// With the reason to count.
pub fn verify(verifier: &mut Verifier, datagram: &Datagram<'_>, now: u64) -> Result<Shown, HandshakeError> {
    let (trailer, credential) = datagram.trailer().ok_or(HandshakeError::Unexpected("a trailer"))?;
    if trailer.packet_type() != HELLO_REPLY {
        return Err(HandshakeError::Unexpected("HELLO_REPLY"));
    }
    let peer = verifier.verify(credential, now)?;
    peer.check_handle(trailer.fields().handle)?;
    Ok(Shown { peer, trailer, proto: datagram.proto })
}

impl Shown {
    /// Proves its sender live, who was asked by `local` with `number`, and opens or finds the session.
    ///
    /// # Errors
    /// [`HandshakeError::ReplyMac`], or no room for the session.
    pub fn authenticate(
        self,
        own: &mut Own<'_>,
        local: LocalPu,
        number: u64,
        now: u64,
    ) -> Result<(Arc<VerifiedCredential>, Session), HandshakeError> {
        let fields = self.trailer.fields();
        if fields.index == 0 || fields.time != number || fields.peer_handle != local.handle {
            return Err(HandshakeError::ReplyMac);
        }
        // The credential in our HELLO may be older than the present one: try every prekey the server may have seen, the
        // likeliest first.
        let mut prekeys = own.prekeys.live();
        prekeys.sort_by_key(|prekey| prekey.epoch != local.epoch);
        for prekey in prekeys {
            let (key, keys) = own.keys(prekey, &self.peer)?;
            let expected = mac(&keys.inbound, &fields, self.proto, &words(self.peer.hash()));
            if !same_mac(expected, self.trailer.mac()) {
                continue;
            }
            // The server opened it in time; that its answer was on its way meanwhile makes nothing new of it.
            let index = own.sessions.open(key, keys, now.saturating_sub(IN_FLIGHT))?.index;
            own.sessions.set_peer_index(index, fields.index);
            let session = own.sessions.get(index).cloned().ok_or(HandshakeError::SessionEnded)?;
            return Ok((self.peer, session));
        }
        Err(HandshakeError::ReplyMac)
    }
}

/// The DENY of this end of a flow, for the reason in it, at the clock `time`.
pub fn cut_trailer(proto: u8, flow: &Flow, session: &common::identity::Session, time: u64) -> Trailer {
    let fields = Fields {
        packet_type: DENY,
        flags: flow.reason as u8,
        handle: flow.local_handle,
        peer_handle: flow.peer_handle,
        len: 0,
        index: session.peer_index,
        sender_index: flow.session,
        time,
    };
    Trailer::new(&fields, mac(&session.key_out, &fields, proto, &[0; COVERED / 8]))
}

/// The packet that tells the peer of a flow that this end has cut it, to the link-layer address `to`; at the clock `time`.
pub fn cut(key: &FlowKey, flow: &Flow, session: &common::identity::Session, to: [u8; 6], time: u64) -> Vec<u8> {
    on_flow(key, flow.role, to, &cut_trailer(key.proto, flow, session, time).bytes())
}

/// The error of ICMP that tells the socket of a flow that this end has cut it; `None` where there is none.
pub fn cut_unreachable(key: &FlowKey, flow: &Flow, to: [u8; 6]) -> Option<Vec<u8>> {
    let mut bytes = on_flow(key, flow.role, [0; 6], &[]);
    // It comes back to where the flow's packets leave.
    bytes[6..12].copy_from_slice(&to);
    Datagram::parse(&bytes).ok()?.unreachable()
}

/// A packet of this end of a flow.
fn on_flow(key: &FlowKey, role: u8, to: [u8; 6], payload: &[u8]) -> Vec<u8> {
    const TTL: u8 = 64;
    let v6 = !(is_v4(&key.local) && is_v4(&key.remote));
    let words = |addr: &Addr| addr.map(u32::to_ne_bytes).concat();
    let mut bytes = to.to_vec();
    bytes.extend([0; 6]);
    if v6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, key.proto, TTL]);
        bytes.extend(words(&key.local));
        bytes.extend(words(&key.remote));
    } else {
        // Don't fragment; then the identification may be zero (RFC 6864).
        bytes.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, key.proto, 0, 0]);
        bytes.extend(&words(&key.local)[12..]);
        bytes.extend(&words(&key.remote)[12..]);
    }
    let l4 = bytes.len();
    if key.proto == UDP {
        bytes.extend(key.local_port.to_be_bytes());
        bytes.extend(key.remote_port.to_be_bytes());
        bytes.extend([0; 4]);
    } else {
        let id = if role == CLIENT { key.local_port } else { key.remote_port };
        let kind = match (key.proto == ICMPV6, role == CLIENT) {
            (false, true) => 8,
            (false, false) => 0,
            (true, true) => 128,
            (true, false) => 129,
        };
        bytes.extend([kind, 0, 0, 0]);
        bytes.extend(id.to_be_bytes());
        bytes.extend([0; 2]);
    }
    bytes.extend(payload);
    finished_as(bytes, v6, l4, key.proto)
}

#[cfg(test)]
#[path = "datagram_tests.rs"]
mod tests;
