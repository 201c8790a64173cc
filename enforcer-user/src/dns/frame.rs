//! Frames with DNS in them, as the kernel shows them in parts, and as they go on.

use std::collections::HashMap;

use super::Conn;
use crate::handshake::{build::finished_as, frame::ETH_LEN};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Frames of which not all parts have come.
#[derive(Debug, Default)]
pub struct Parts(HashMap<(Conn, u32), Vec<u8>>);

/// A part of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Whose.
    pub conn: Conn,
    /// Frames of different kinds do not mix.
    pub kind: u32,
    /// Where in the frame it begins.
    pub offset: usize,
    /// Length of the whole frame.
    pub total: usize,
    /// The part itself.
    pub bytes: &'a [u8],
}

/// Frames that may be incomplete at a time; one is for the moment between two records of the ring.
const INCOMPLETE_MAX: usize = 64;

impl Parts {
    /// Adds a part; the frame, if it was the last one.
    pub fn add(&mut self, part: Part<'_>) -> Option<Vec<u8>> {
        if part.offset == 0 && part.bytes.len() == part.total {
            return Some(part.bytes.to_vec());
        }
        let key = (part.conn, part.kind);
        if part.offset == 0 {
            if self.0.len() >= INCOMPLETE_MAX {
                self.0.clear();
            }
            self.0.insert(key, part.bytes.to_vec());
            return None;
        }
        let frame = self.0.get_mut(&key)?;
        if frame.len() != part.offset || part.offset + part.bytes.len() > part.total {
            self.0.remove(&key);
            return None;
        }
        frame.extend_from_slice(part.bytes);
        if frame.len() < part.total {
            return None;
        }
        self.0.remove(&key)
    }
}

/// A frame that holds UDP or TCP.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    // Without padding behind the IP packet.
    bytes: &'a [u8],
    v6: bool,
    tcp: bool,
    /// Only the first piece: its checksum is about more than is here.
    fragment: bool,
    l4: usize,
    payload: usize,
}

impl<'a> Datagram<'a> {
    /// Takes a frame apart; `None` if it is not well-formed, or holds IPv6 extension headers.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let ip = bytes.get(ETH_LEN..)?;
        let (v6, header, total, proto, fragment) = match bytes.get(12..14)? {
            [0x08, 0x00] => {
                let head = ip.first_chunk::<20>()?;
                let total = u16::from_be_bytes([head[2], head[3]]);
                let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
                (false, usize::from(head[0] & 0x0f) * 4, usize::from(total), head[9], fragment)
            }
            [0x86, 0xdd] => {
                let head = ip.first_chunk::<40>()?;
                (true, 40, 40 + usize::from(u16::from_be_bytes([head[4], head[5]])), head[6], false)
            }
            _ => return None,
        };
        let l4 = ETH_LEN + header;
        let bytes = bytes.get(..ETH_LEN + total)?;
        let header = match proto {
            TCP => usize::from(bytes.get(l4 + 12)? >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        let least = if proto == TCP { 20 } else { 8 };
        let well_formed = header >= least && l4 >= ETH_LEN + 20 && l4 + header <= bytes.len();
        well_formed.then_some(Self { bytes, v6, tcp: proto == TCP, fragment, l4, payload: l4 + header })
    }

    /// What the transport header precedes.
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.payload..).unwrap_or_default()
    }

    /// The sequence number, of TCP.
    pub fn seq(&self) -> Option<u32> {
        let bytes = self.bytes.get(self.l4 + 4..)?.first_chunk::<4>()?;
        self.tcp.then_some(u32::from_be_bytes(*bytes))
    }

    /// The frames to hand on in its place, checksums complete. What the kernel had put together from several TCP segments
    /// goes as segments of at most `max` bytes of payload.
    pub fn onward(&self, max: usize) -> Vec<Vec<u8>> {
        if self.fragment {
            return vec![self.bytes.to_vec()];
        }
        let Some(seq) = self.seq().filter(|_| self.payload().len() > max) else {
            return vec![finished(self.bytes.to_vec(), self)];
        };
        const FIN_PSH: u8 = 0x09;
        let pieces = self.payload().chunks(max.max(1));
        let last = pieces.len() - 1;
        pieces
            .enumerate()
            .map(|(at, piece)| {
                let mut frame = self.bytes[..self.payload].to_vec();
                frame.extend_from_slice(piece);
                let seq = seq.wrapping_add((at * max.max(1)) as u32);
                frame[self.l4 + 4..self.l4 + 8].copy_from_slice(&seq.to_be_bytes());
                if at != last {
                    frame[self.l4 + 13] &= !FIN_PSH;
                }
                finished(frame, self)
            })
            .collect()
    }
}

/// Writes lengths and checksums.
fn finished(frame: Vec<u8>, of: &Datagram<'_>) -> Vec<u8> {
    finished_as(frame, of.v6, of.l4, if of.tcp { TCP } else { UDP })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::build::{fold, sum};

    fn frame(tcp: bool, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
        let header = if tcp { 20 } else { 8 };
        bytes.extend([0x45, 0]);
        bytes.extend(((20 + header + payload.len()) as u16).to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, if tcp { TCP } else { UDP }, 0, 0, 192, 0, 2, 1, 10, 0, 0, 1]);
        bytes.extend([0, 53, 0x90, 0]);
        if tcp {
            bytes.extend([0, 0, 1, 0, 0, 0, 2, 0, 0x50, 0x18, 1, 0, 0xab, 0xcd, 0, 0]);
        } else {
            bytes.extend(((8 + payload.len()) as u16).to_be_bytes());
            bytes.extend([0xab, 0xcd]);
        }
        bytes.extend(payload);
        bytes
    }

    /// The sum over pseudo-header and segment is all ones where the checksum is right.
    fn is_complete(frame: &[u8]) -> bool {
        let proto = u32::from(frame[23]);
        let len = (frame.len() - 34) as u32;
        fold(sum(&frame[26..34]) + proto + len + sum(&frame[34..])) == 0 && fold(sum(&frame[14..34])) == 0
    }

    #[test]
    fn frames_go_on_complete_and_no_longer_than_the_link_takes() {
        let bytes = frame(false, b"question");
        let datagram = Datagram::parse(&bytes).expect("UDP");
        assert_eq!((datagram.payload(), datagram.seq()), (&b"question"[..], None));
        let onward = datagram.onward(4);
        assert!(onward.len() == 1 && is_complete(&onward[0]) && onward[0].len() == bytes.len());

        let payload: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
        let bytes = frame(true, &payload);
        let datagram = Datagram::parse(&bytes).expect("TCP");
        let onward = datagram.onward(1200);
        let mut rest = Vec::new();
        for (at, piece) in onward.iter().enumerate() {
            assert!(is_complete(piece));
            let part = Datagram::parse(piece).expect("a segment");
            assert_eq!(part.seq(), Some(256 + 1200 * at as u32));
            assert_eq!(piece[34 + 13] & 0x08 != 0, at == 2, "pushed at the end");
            rest.extend_from_slice(part.payload());
        }
        assert_eq!((onward.len(), rest), (3, payload));
    }

    #[test]
    fn nothing_malformed_is_taken() {
        let whole = frame(true, b"abc");
        for len in 0..whole.len() {
            assert!(Datagram::parse(&whole[..len]).is_none(), "{len}");
        }
        let mut odd = whole.clone();
        odd[34 + 12] = 0x40;
        assert!(Datagram::parse(&odd).is_none(), "a header that is too short");
        odd[14] = 0x40;
        assert!(Datagram::parse(&odd).is_none());
    }

    #[test]
    fn parts_make_a_frame_only_in_order() {
        let conn = Conn { pu: 1, key: Default::default() };
        let part = |offset, bytes| Part { conn, kind: 9, offset, total: 5, bytes };
        let mut parts = Parts::default();
        assert_eq!(parts.add(part(0, &[1, 2, 3, 4, 5])), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(parts.add(part(0, &[1, 2])), None);
        assert_eq!(parts.add(part(2, &[3, 4])), None);
        assert_eq!(parts.add(part(4, &[5])), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(parts.add(part(0, &[1, 2])), None);
        assert_eq!(parts.add(part(3, &[4, 5])), None, "a gap");
        assert_eq!(parts.add(part(2, &[3, 4, 5])), None, "of a frame that was given up");
    }
}
