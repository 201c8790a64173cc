//! TCP segments taken apart, to be changed and put together again as if their sender had sent them so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use common::wire::{OPTION_LEN, OptionBytes};

const ETH_LEN: usize = 14;
const TCP: u8 = 6;

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const ACK: u8 = 0x10;

/// A TCP segment in an Ethernet frame. Lengths and checksums are not kept: they are made by [`Segment::to_frame`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    link: [u8; ETH_LEN],
    network: Vec<u8>,
    header: [u8; 20],
    /// The options, each byte of them; the identity option is the last twenty.
    pub options: Vec<u8>,
    /// What follows the TCP header.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Takes a frame apart; `None` if it is anything but a whole TCP segment right behind an IP header.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (link, rest) = frame.split_first_chunk::<ETH_LEN>()?;
        let (network_len, total) = match [link[12], link[13]] {
            [0x08, 0x00] if *rest.get(9)? == TCP => {
                (usize::from(rest[0] & 15) * 4, usize::from(u16::from_be_bytes([rest[2], rest[3]])))
            }
            [0x86, 0xdd] if *rest.get(6)? == TCP => (40, 40 + usize::from(u16::from_be_bytes([rest[4], rest[5]]))),
            _ => return None,
        };
        let (network, rest) = rest.get(..total)?.split_at_checked(network_len)?;
        let (header, rest) = rest.split_first_chunk::<20>()?;
        let (options, payload) = rest.split_at_checked((usize::from(header[12] >> 4) * 4).checked_sub(20)?)?;
        Some(Self {
            link: *link,
            network: network.to_vec(),
            header: *header,
            options: options.to_vec(),
            payload: payload.to_vec(),
        })
    }

    /// The frame, with lengths and checksums right for what the segment now is.
    pub fn to_frame(&self) -> Vec<u8> {
        let mut header = self.header;
        let words = u8::try_from((20 + self.options.len()) / 4).unwrap_or(15).min(15);
        header[12] = words << 4 | header[12] & 15;
        header[16..18].fill(0);
        let mut segment = [&header[..], &self.options, &self.payload].concat();
        let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
        let mut network = self.network.clone();
        let addresses = if self.is_v6() {
            network[4..6].copy_from_slice(&length.to_be_bytes());
            8..40
        } else {
            let total = length + u16::try_from(network.len()).unwrap_or(0);
            network[2..4].copy_from_slice(&total.to_be_bytes());
            network[10..12].fill(0);
            let sum = checksum(&network);
            network[10..12].copy_from_slice(&sum.to_be_bytes());
            12..20
        };
        let pseudo = [&network[addresses], &[0, TCP], &length.to_be_bytes()].concat();
        let sum = checksum(&[&pseudo[..], &segment].concat());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        [&self.link[..], &network, &segment].concat()
    }

    /// Whether it travels in IPv6.
    pub fn is_v6(&self) -> bool {
        self.link[12] == 0x86
    }

    /// Address and port it comes from.
    pub fn source(&self) -> SocketAddr {
        self.end(0)
    }

    /// Address and port it goes to.
    pub fn destination(&self) -> SocketAddr {
        self.end(1)
    }

    /// Changes the link-layer address it goes to.
    pub fn set_link_destination(&mut self, address: [u8; 6]) {
        self.link[..6].copy_from_slice(&address);
    }

    /// Changes the address it goes to, if it is an IPv4 one.
    pub fn set_destination_v4(&mut self, address: Ipv4Addr) {
        if !self.is_v6() {
            self.network[16..20].copy_from_slice(&address.octets());
        }
    }

    /// Changes the port it comes from.
    pub fn set_source_port(&mut self, port: u16) {
        self.header[..2].copy_from_slice(&port.to_be_bytes());
    }

    /// Changes the port it goes to.
    pub fn set_destination_port(&mut self, port: u16) {
        self.header[2..4].copy_from_slice(&port.to_be_bytes());
    }

    /// Sequence number.
    pub fn seq(&self) -> u32 {
        self.word(4)
    }

    /// Acknowledgement number.
    pub fn ack(&self) -> u32 {
        self.word(8)
    }

    /// Changes the sequence number.
    pub fn set_seq(&mut self, seq: u32) {
        self.header[4..8].copy_from_slice(&seq.to_be_bytes());
    }

    /// Changes the acknowledgement number.
    pub fn set_ack(&mut self, ack: u32) {
        self.header[8..12].copy_from_slice(&ack.to_be_bytes());
    }

    /// The window, as it stands there.
    pub fn window(&self) -> u16 {
        u16::from_be_bytes([self.header[14], self.header[15]])
    }

    /// The two bits of explicit congestion notification in the network header (RFC 3168 section 5).
    pub fn congestion(&self) -> u8 {
        if self.is_v6() { self.network[1] >> 4 & 3 } else { self.network[1] & 3 }
    }

    /// The flags byte.
    pub fn flags(&self) -> u8 {
        self.header[13]
    }

    /// Changes the flags byte.
    pub fn set_flags(&mut self, flags: u8) {
        self.header[13] = flags;
    }

    /// Opens a connection.
    pub fn is_syn(&self) -> bool {
        self.flags() & (SYN | ACK | RST) == SYN
    }

    /// Answers the opening of a connection.
    pub fn is_syn_ack(&self) -> bool {
        self.flags() & (SYN | ACK | RST) == SYN | ACK
    }

    /// The identity option, if the header ends with one.
    pub fn identity(&self) -> Option<OptionBytes> {
        option_from(&self.options)
    }

    /// The bytes of the identity option, if the header ends with one.
    pub fn identity_mut(&mut self) -> Option<&mut [u8; OPTION_LEN]> {
        self.identity()?;
        self.options.last_chunk_mut()
    }

    /// Takes the identity option out; whether there was one.
    pub fn take_identity(&mut self) -> bool {
        let there = self.identity().is_some();
        if there {
            self.options.truncate(self.options.len() - OPTION_LEN);
        }
        there
    }

    /// Puts an identity option at the end of the header, in place of the one there.
    pub fn set_identity(&mut self, option: &OptionBytes) {
        self.take_identity();
        self.options.extend(option_bytes(option));
    }

    fn end(&self, which: usize) -> SocketAddr {
        let port = u16::from_be_bytes([self.header[which * 2], self.header[which * 2 + 1]]);
        let ip = if self.is_v6() {
            let bytes: [u8; 16] = std::array::from_fn(|at| self.network[8 + which * 16 + at]);
            IpAddr::V6(Ipv6Addr::from(bytes))
        } else {
            let bytes: [u8; 4] = std::array::from_fn(|at| self.network[12 + which * 4 + at]);
            IpAddr::from(bytes)
        };
        SocketAddr::new(ip, port)
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|byte| self.header[at + byte]))
    }
}

/// The identity option at the end of `bytes`, if there is one.
pub fn option_from(bytes: &[u8]) -> Option<OptionBytes> {
    let bytes: &[u8; OPTION_LEN] = bytes.last_chunk()?;
    let option = OptionBytes {
        kind: bytes[0],
        len: bytes[1],
        exid: [bytes[2], bytes[3]],
        version_type: bytes[4],
        flags: bytes[5],
        handle: [bytes[6], bytes[7]],
        index: [bytes[8], bytes[9], bytes[10], bytes[11]],
        mac: [bytes[12], bytes[13], bytes[14], bytes[15], bytes[16], bytes[17], bytes[18], bytes[19]],
    };
    option.is_ours().then_some(option)
}

/// The option as it stands in the packet.
pub fn option_bytes(option: &OptionBytes) -> [u8; OPTION_LEN] {
    let mut bytes = [0; OPTION_LEN];
    bytes[0] = option.kind;
    bytes[1] = option.len;
    bytes[2..4].copy_from_slice(&option.exid);
    bytes[4] = option.version_type;
    bytes[5] = option.flags;
    bytes[6..8].copy_from_slice(&option.handle);
    bytes[8..12].copy_from_slice(&option.index);
    bytes[12..].copy_from_slice(&option.mac);
    bytes
}

/// The Internet checksum, RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use common::wire::RESUME;

    use super::*;

    // A SYN from 10.77.0.1:40000 to 10.77.0.2:80 with MSS 1460, checksums right.
    fn syn() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend([0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2]);
        frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 41, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
        Segment::parse(&frame).expect("a segment").to_frame()
    }

    #[test]
    fn a_segment_comes_back_as_it_was() {
        let segment = Segment::parse(&syn()).expect("a segment");
        assert_eq!(segment.to_frame(), syn());
        assert_eq!((segment.source().to_string(), segment.destination().port()), ("10.77.0.1:40000".into(), 80));
        assert!(segment.is_syn() && !segment.is_syn_ack() && segment.seq() == 41);
        assert_eq!(checksum(&syn()[14..34]), 0, "a right checksum sums up to nothing");
    }

    #[test]
    fn options_and_payload_grow_and_shrink() {
        let mut segment = Segment::parse(&syn()).expect("a segment");
        let option = OptionBytes::new(RESUME, 1, 2, 3, 4);
        segment.set_identity(&option);
        segment.set_identity(&option);
        segment.payload = b"xyz".to_vec();
        let mut read = Segment::parse(&segment.to_frame()).expect("a segment");
        assert_eq!((read.identity(), read.payload.as_slice()), (Some(option), &b"xyz"[..]));
        assert!(read.take_identity() && !read.take_identity());
        read.payload.clear();
        assert_eq!(read.to_frame(), syn());
    }

    #[test]
    fn anything_else_is_none() {
        let frame = syn();
        for end in 0..frame.len() {
            assert_eq!(Segment::parse(&frame[..end]), None, "{end}");
        }
        let mut udp = frame;
        udp[23] = 17;
        assert_eq!(Segment::parse(&udp), None);
    }

    #[test]
    fn checksum_of_rfc_1071_example() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
