//! Frames the enforcer makes: stripped, completed, and resets.

use common::{
    Addr,
    drop_reason::Reason,
    flow::{Flow, FlowKey},
    is_v4,
    wire::{self, DENY, MacKey, OPTION_LEN, OptionBytes, Transcript},
};

use super::frame::{ACK, ETH_LEN, Frame, RST};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The frame without its payload, checksums complete. Our option stays.
pub fn strip(frame: &Frame<'_>) -> Vec<u8> {
    finished(frame.bytes()[..frame.payload_offset()].to_vec(), frame.is_v6(), frame.tcp_offset())
}

/// The frame as it is, checksums complete.
pub fn complete(frame: &Frame<'_>) -> Vec<u8> {
    finished(frame.bytes().to_vec(), frame.is_v6(), frame.tcp_offset())
}

/// A session in which a DENY can be proven.
#[derive(Clone, Copy, Debug)]
pub struct DenyProof<'a> {
    /// Key of packets this enforcer sends.
    pub key: &'a MacKey,
    /// Index the receiver of the DENY chose.
    pub peer_index: u32,
}

/// The answer that refuses a SYN or SYN-ACK: RST|ACK with DENY, toward its sender.
///
/// Without `proof` the DENY is informational: index and MAC are 0.
pub fn deny(frame: &Frame<'_>, reason: Reason, proof: Option<DenyProof<'_>>) -> Vec<u8> {
    // Numbers fit seven bits, which a test in `common` holds.
    let number = reason as u16 as u8;
    let option = match proof {
        Some(DenyProof { key, peer_index }) if peer_index != 0 => {
            let transcript = Transcript { sender_isn: 0, peer_isn: frame.seq(), peer_handle: 0 };
            wire::sealed(key, DENY, number, 0, peer_index, &transcript)
        }
        _ => OptionBytes::new(DENY, number, 0, 0, 0),
    };
    answer(frame, Some(option))
}

fn answer(frame: &Frame<'_>, option: Option<OptionBytes>) -> Vec<u8> {
    let mut link = [0; 12];
    link[..6].copy_from_slice(&frame.bytes()[6..12]);
    link[6..].copy_from_slice(&frame.bytes()[..6]);
    segment(&Segment {
        link,
        source: frame.destination(),
        destination: frame.source(),
        source_port: frame.destination_port(),
        destination_port: frame.source_port(),
        // RFC 9293 section 3.10.7.2: without ACK the sequence number is zero and the SYN is acknowledged. Payload is
        // not: the sender's stack never sent any.
        seq: if frame.flags() & ACK != 0 { frame.ack() } else { 0 },
        ack: frame.seq().wrapping_add(1),
        flags: RST | ACK,
        option,
        payload: &[],
    })
}

/// The reset that ends the connection attempt at the receiver of a refused SYN-ACK, as if its sender had refused:
/// in SYN_SENT the acknowledgement makes it acceptable.
pub fn reset_receiver(frame: &Frame<'_>) -> Vec<u8> {
    let mut link = [0; 12];
    link.copy_from_slice(&frame.bytes()[..12]);
    segment(&Segment {
        link,
        source: frame.source(),
        destination: frame.destination(),
        source_port: frame.source_port(),
        destination_port: frame.destination_port(),
        seq: frame.seq(),
        ack: frame.ack(),
        flags: RST | ACK,
        option: None,
        payload: &[],
    })
}

/// Which end of a flow a reset goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// The PU of this host; the reset seems to come from the peer.
    Local,
    /// The peer.
    Remote,
}

/// The two segments that cut a flow, without option, to the link-layer address `to`: a reset (RST|ACK), and a probe (ACK
/// of the number before) that whoever has moved on meanwhile answers with its true numbers. `seq` is the next sequence
/// number the receiver expects, `ack` the last it sent plus one; `reason` goes with the reset, for the peer's enforcer.
pub fn cut_flow(
    key: &FlowKey,
    toward: Toward,
    to: [u8; 6],
    seq: u32,
    ack: u32,
    reason: Option<OptionBytes>,
) -> [Vec<u8>; 2] {
    let (local, remote) = ((key.local, key.local_port), (key.remote, key.remote_port));
    let (source, destination) = match toward {
        Toward::Local => (remote, local),
        Toward::Remote => (local, remote),
    };
    [(seq, RST | ACK, reason), (seq.wrapping_sub(1), ACK, None)].map(|(seq, flags, option)| {
        let mut link = [0; 12];
        link[..6].copy_from_slice(&to);
        segment(&Segment {
            link,
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            seq,
            ack,
            flags,
            option,
            payload: &[],
        })
    })
}

/// A segment on an established connection (ACK) toward its peer, to the link-layer address `to`.
pub(super) fn on_flow(key: &FlowKey, to: [u8; 6], seq: u32, ack: u32, option: &OptionBytes, payload: &[u8]) -> Vec<u8> {
    let mut link = [0; 12];
    link[..6].copy_from_slice(&to);
    segment(&Segment {
        link,
        source: key.local,
        destination: key.remote,
        source_port: key.local_port,
        destination_port: key.remote_port,
        seq,
        ack,
        flags: ACK,
        option: Some(*option),
        payload,
    })
}

/// The SYN in `frame`, which carries nothing of ours yet, with `option` and `credential`; `None` if its header has no room.
pub fn introduce(frame: &Frame<'_>, option: &OptionBytes, credential: &[u8]) -> Option<Vec<u8>> {
    let header = frame.payload_offset() - frame.tcp_offset();
    if header + OPTION_LEN > 60 {
        return None;
    }
    let mut bytes = frame.bytes()[..frame.payload_offset()].to_vec();
    bytes.extend(option_bytes(option));
    bytes.extend(credential);
    let offset = frame.tcp_offset() + 12;
    bytes[offset] = (bytes[offset] & 0x0f) | ((header + OPTION_LEN) as u8 / 4) << 4;
    Some(finished(bytes, frame.is_v6(), frame.tcp_offset()))
}

/// The reset in answer to a SYN, toward the stack that sent it.
pub fn refuse_sender(frame: &Frame<'_>) -> Vec<u8> {
    answer(frame, None)
}

/// Why this end cut `flow`, bound to that very connection.
pub fn cut_reason(flow: &Flow, reason: Reason, proof: DenyProof<'_>) -> OptionBytes {
    let transcript = Transcript { sender_isn: flow.local_isn, peer_isn: flow.peer_isn, peer_handle: flow.peer_handle };
    wire::sealed(proof.key, DENY, reason as u8, 0, proof.peer_index, &transcript)
}

struct Segment<'a> {
    // Destination, then source.
    link: [u8; 12],
    source: Addr,
    destination: Addr,
    source_port: u16,
    destination_port: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    option: Option<OptionBytes>,
    payload: &'a [u8],
}

fn segment(segment: &Segment<'_>) -> Vec<u8> {
    const TTL: u8 = 64;
    const TCP: u8 = 6;
    let v6 = !(is_v4(&segment.source) && is_v4(&segment.destination));
    let mut bytes = segment.link.to_vec();
    let words = |addr: &Addr| addr.map(u32::to_ne_bytes).concat();
    if v6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, TCP, TTL]);
        bytes.extend(words(&segment.source));
        bytes.extend(words(&segment.destination));
    } else {
        // Don't fragment; then the identification may be zero (RFC 6864).
        bytes.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, TCP, 0, 0]);
        bytes.extend(&words(&segment.source)[12..]);
        bytes.extend(&words(&segment.destination)[12..]);
    }
    let tcp = bytes.len();
    let header_len = 20 + if segment.option.is_some() { OPTION_LEN } else { 0 };
    bytes.extend(segment.source_port.to_be_bytes());
    bytes.extend(segment.destination_port.to_be_bytes());
    bytes.extend(segment.seq.to_be_bytes());
    bytes.extend(segment.ack.to_be_bytes());
    bytes.extend([(header_len as u8 / 4) << 4, segment.flags, 0, 0, 0, 0, 0, 0]);
    if let Some(option) = &segment.option {
        bytes.extend(option_bytes(option));
    }
    bytes.extend(segment.payload);
    finished(bytes, v6, tcp)
}

/// The option as it stands in the packet.
pub(super) fn option_bytes(option: &OptionBytes) -> Vec<u8> {
    let mut bytes = vec![option.kind, option.len];
    bytes.extend(option.exid);
    bytes.extend([option.version_type, option.flags]);
    bytes.extend(option.handle);
    bytes.extend(option.index);
    bytes.extend(option.mac);
    bytes
}

/// Writes lengths and checksums of a TCP frame whose headers are in place.
pub(super) fn finished(bytes: Vec<u8>, v6: bool, tcp: usize) -> Vec<u8> {
    finished_as(bytes, v6, tcp, TCP)
}

/// The same of a frame of any protocol the enforcer writes, whose header begins at `l4`.
pub(crate) fn finished_as(mut bytes: Vec<u8>, v6: bool, l4: usize, protocol: u8) -> Vec<u8> {
    let ip = ETH_LEN;
    // Every caller's frame is at most as long as one that was parsed.
    let l4_len = (bytes.len() - l4) as u16;
    let addresses = if v6 {
        let payload = (bytes.len() - ip - 40) as u16;
        bytes[ip + 4..ip + 6].copy_from_slice(&payload.to_be_bytes());
        ip + 8..ip + 40
    } else {
        let total = (bytes.len() - ip) as u16;
        bytes[ip + 2..ip + 4].copy_from_slice(&total.to_be_bytes());
        bytes[ip + 10..ip + 12].fill(0);
        let sum = fold(sum(&bytes[ip..l4]));
        bytes[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        ip + 12..ip + 20
    };
    let udp = protocol == UDP;
    if udp {
        bytes[l4 + 4..l4 + 6].copy_from_slice(&l4_len.to_be_bytes());
    }
    let at = match protocol {
        TCP => l4 + 16,
        UDP => l4 + 6,
        _ => l4 + 2,
    };
    bytes[at..at + 2].fill(0);
    // Only ICMP's checksum is not about the addresses, too.
    let pseudo = if protocol == ICMP { 0 } else { sum(&bytes[addresses]) + u32::from(protocol) + u32::from(l4_len) };
    let sum = match fold(pseudo + sum(&bytes[l4..])) {
        // Zero stands for no checksum (RFC 768).
        0 if udp => 0xffff,
        sum => sum,
    };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// One's complement sum (RFC 1071), not folded; at most 64 KiB, so that it cannot overflow.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

/// The checksum of a sum.
pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
