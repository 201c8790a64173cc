//! The trailer that carries identity on datagrams: UDP, and the echoes of ICMP and ICMPv6.
//!
//! ```text
//! version, type (1) | flags (1) | PU handle (2) | session index (4) | sender's index (4) | peer's handle (2) | length (2) |
//! time (8) | MAC (8) | magic (4)
//! ```
//!
//! It ends the packet, so it is found without walking anything; what comes before it is the application's, or a credential.
//! All integers travel in network byte order.

use crate::wire::{MacKey, VERSION, siphash24_8};

/// Length of the trailer, bytes.
pub const TRAILER_LEN: usize = 36;
/// Last word of a [`Trailer`].
pub const MAGIC: u32 = 0x5a54_d6e1;
/// Flag of RESUME and RESUME_REPLY: the packet was made to carry nothing but this, for those that follow it.
pub const BARE: u8 = 1;
/// Flag of HELLO and CONFIRM: out of band, for a TCP connection whose path refuses them on its own segments. The port it is for
/// comes first in the payload, in [`WANTED_LEN`] bytes.
pub const OUT_OF_BAND: u8 = 2;
/// Flag of HELLO: the MAC is the one of a CHALLENGE, as with [`crate::wire::HELLO_COOKIE`].
pub const COOKIE: u8 = 4;
/// Bytes of the port in an out-of-band packet.
pub const WANTED_LEN: usize = 2;
/// Bytes of a payload's beginning that a MAC covers.
pub const COVERED: usize = 32;

/// Entries of `DATAGRAM_PROGRAMS`, which continue where the programs at interfaces leave off: the way out of a PU and the way to
/// it, each of sockets and of a PU's own interface, and what makes a packet bare.
pub const PROGRAMS: [&str; 5] = ["dg_out", "dg_pu_out", "dg_in", "dg_pu_in", "dg_bare"];
/// Of [`PROGRAMS`]: what makes a packet bare.
pub const PROGRAM_BARE: u32 = 4;

/// How much a datagram of a PU may come behind a later one of the same PU and session, nanoseconds of its sender's clock.
pub const REORDER_NS: u64 = 1_000_000_000;

/// The trailer as it lies in the packet. Aligned so that the kernel side moves it by words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trailer {
    /// Version and type; types are those of [`crate::wire`].
    pub version_type: u8,
    /// [`BARE`], [`OUT_OF_BAND`], [`COOKIE`]; the number of a reason in DENY and RETRY.
    pub flags: u8,
    /// PU handle of the sender.
    pub handle: [u8; 2],
    /// Index the receiver chose for the session; of HELLO the first four bytes of the credential's SHA-256.
    pub index: [u8; 4],
    /// Index the sender chose for the session.
    pub sender_index: [u8; 4],
    /// PU handle of the receiver.
    pub peer_handle: [u8; 2],
    /// Bytes between the transport header and the trailer.
    pub len: [u8; 2],
    /// The sender's clock. Of HELLO any number, which HELLO_REPLY, CHALLENGE, and a DENY without session, repeat.
    pub time: [u8; 8],
    /// MAC; of HELLO the next eight bytes of the credential's SHA-256.
    pub mac: [u8; 8],
    /// [`MAGIC`].
    pub magic: [u8; 4],
}

/// What stands in a [`Trailer`] besides the MAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Type.
    pub packet_type: u8,
    /// Flags.
    pub flags: u8,
    /// PU handle of the sender.
    pub handle: u16,
    /// PU handle of the receiver.
    pub peer_handle: u16,
    /// Bytes between the transport header and the trailer.
    pub len: u16,
    /// Index the receiver chose.
    pub index: u32,
    /// Index the sender chose.
    pub sender_index: u32,
    /// The sender's clock.
    pub time: u64,
}

impl Trailer {
    /// A trailer of these fields.
    #[inline(always)]
    pub const fn new(fields: &Fields, mac: u64) -> Self {
        Self {
            version_type: (VERSION << 4) | fields.packet_type,
            flags: fields.flags,
            handle: fields.handle.to_be_bytes(),
            index: fields.index.to_be_bytes(),
            sender_index: fields.sender_index.to_be_bytes(),
            peer_handle: fields.peer_handle.to_be_bytes(),
            len: fields.len.to_be_bytes(),
            time: fields.time.to_be_bytes(),
            mac: mac.to_be_bytes(),
            magic: MAGIC.to_be_bytes(),
        }
    }

    /// The trailer in these bytes, if they are one, of any version.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<TRAILER_LEN>()?;
        let part = |at: usize| [bytes[at], bytes[at + 1]];
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let long = |at: usize| {
            let ([a, b, c, d], [e, f, g, h]) = (word(at), word(at + 4));
            [a, b, c, d, e, f, g, h]
        };
        let found = Self {
            version_type: bytes[0],
            flags: bytes[1],
            handle: part(2),
            index: word(4),
            sender_index: word(8),
            peer_handle: part(12),
            len: part(14),
            time: long(16),
            mac: long(24),
            magic: word(32),
        };
        found.is_ours().then_some(found)
    }

    /// As it lies in the packet.
    pub fn bytes(&self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&[self.version_type, self.flags]);
        put(&self.handle);
        put(&self.index);
        put(&self.sender_index);
        put(&self.peer_handle);
        put(&self.len);
        put(&self.time);
        put(&self.mac);
        put(&self.magic);
        bytes
    }

    /// Whether these bytes are our trailer, of any version.
    #[inline(always)]
    pub const fn is_ours(&self) -> bool {
        u32::from_ne_bytes(self.magic) == MAGIC.to_be()
    }

    /// The type if the version is ours, else 0.
    #[inline(always)]
    pub const fn packet_type(&self) -> u8 {
        if self.version_type >> 4 == VERSION { self.version_type & 0x0f } else { 0 }
    }

    /// Everything but the MAC.
    #[inline(always)]
    pub const fn fields(&self) -> Fields {
        Fields {
            packet_type: self.packet_type(),
            flags: self.flags,
            handle: u16::from_be_bytes(self.handle),
            peer_handle: u16::from_be_bytes(self.peer_handle),
            len: u16::from_be_bytes(self.len),
            index: u32::from_be_bytes(self.index),
            sender_index: u32::from_be_bytes(self.sender_index),
            time: u64::from_be_bytes(self.time),
        }
    }

    /// MAC.
    #[inline(always)]
    pub const fn mac(&self) -> u64 {
        u64::from_be_bytes(self.mac)
    }
}

/// The MAC of a trailer on a packet of this protocol. `covered` is the payload's beginning, zeros behind its end, as
/// little-endian words; of HELLO_REPLY the SHA-256 of the credential. Addresses and ports are not in it: they change on the
/// way.
#[inline(always)]
pub fn mac(key: &MacKey, fields: &Fields, proto: u8, covered: &[u64; COVERED / 8]) -> u64 {
    siphash24_8(
        key,
        [
            fields.packet_type as u64
                | (fields.flags as u64) << 8
                | (fields.handle as u64) << 16
                | (fields.index as u64) << 32,
            fields.sender_index as u64 | (fields.peer_handle as u64) << 32 | (fields.len as u64) << 48,
            fields.time,
            proto as u64,
            covered[0],
            covered[1],
            covered[2],
            covered[3],
        ],
    )
}

/// Key of `DATAGRAM_PEERS`: a peer's end of datagrams. Of an echo the port of the end that answers is type and code.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DatagramPeer {
    /// Address.
    pub addr: crate::Addr,
    /// Port, host order.
    pub port: u16,
    /// IP protocol.
    pub proto: u16,
}

/// Key of the kernel's memory of accepted trailers.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Accepted {
    /// The sender's clock.
    pub time: u64,
    /// Session, by the index this enforcer chose.
    pub session: u32,
    /// Handle of the sender's PU.
    pub handle: u16,
    /// Zero.
    pub pad: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{RESUME, RESUME_REPLY};

    const FIELDS: Fields = Fields {
        packet_type: RESUME,
        flags: BARE,
        handle: 0x0102,
        peer_handle: 0x0304,
        len: 0x0506,
        index: 0x0708_090a,
        sender_index: 0x0b0c_0d0e,
        time: 0x0f10_1112_1314_1516,
    };

    #[test]
    fn the_trailer_round_trips_through_its_bytes() {
        assert_eq!(size_of::<Trailer>(), TRAILER_LEN);
        let trailer = Trailer::new(&FIELDS, 0x1718_191a_1b1c_1d1e);
        assert_eq!((trailer.fields(), trailer.mac()), (FIELDS, 0x1718_191a_1b1c_1d1e));
        let bytes = trailer.bytes();
        assert_eq!(bytes[..16], [0x13, 1, 1, 2, 7, 8, 9, 10, 11, 12, 13, 14, 3, 4, 5, 6]);
        assert!(bytes[16..32].iter().copied().eq(0x0f..0x1f));
        assert_eq!(Trailer::parse(&bytes), Some(trailer));
        let mut other = bytes;
        other[35] ^= 1;
        assert_eq!(Trailer::parse(&other), None);
        assert_eq!(Trailer::parse(&bytes[1..]), None);
    }

    #[test]
    fn everything_changes_the_mac() {
        let key = MacKey { k0: 1, k1: 2 };
        let base = mac(&key, &FIELDS, 17, &[1, 2, 3, 4]);
        let others = [
            Fields { packet_type: RESUME_REPLY, ..FIELDS },
            Fields { flags: 0, ..FIELDS },
            Fields { handle: 0, ..FIELDS },
            Fields { peer_handle: 0, ..FIELDS },
            Fields { len: 0, ..FIELDS },
            Fields { index: 0, ..FIELDS },
            Fields { sender_index: 0, ..FIELDS },
            Fields { time: 0, ..FIELDS },
        ];
        for other in others {
            assert_ne!(mac(&key, &other, 17, &[1, 2, 3, 4]), base, "{other:?}");
        }
        assert_ne!(mac(&key, &FIELDS, 1, &[1, 2, 3, 4]), base);
        for word in 0..4 {
            let mut covered = [1, 2, 3, 4];
            covered[word] ^= 1 << 63;
            assert_ne!(mac(&key, &FIELDS, 17, &covered), base);
        }
    }
}
