//! TCP segments as bytes and back, with every length and checksum proven on the way back (RFC 9293, RFC 1071).

use std::net::IpAddr;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// Options of an ordinary SYN: MSS, SACK permitted, timestamps, no-operation, window scale.
const SYN_OPTIONS: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];

const MAC_ADDRESSES: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub source: IpAddr,
    pub target: IpAddr,
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Segment {
    /// A SYN with the usual options.
    pub fn syn(source: IpAddr, target: IpAddr, sport: u16, dport: u16, seq: u32) -> Self {
        let options = SYN_OPTIONS.to_vec();
        Self { source, target, sport, dport, seq, ack: 0, flags: SYN, options, payload: Vec::new() }
    }

    /// With `option` behind the others.
    pub fn with(mut self, option: [u8; 20]) -> Self {
        self.options.extend(option);
        self
    }

    pub fn carrying(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The last twenty bytes of the header.
    pub fn last_option(&self) -> [u8; 20] {
        self.options[self.options.len() - 20..].try_into().unwrap()
    }

    /// The frame, both checksums complete.
    pub fn frame(&self) -> Vec<u8> {
        assert!(self.options.len().is_multiple_of(4) && self.options.len() <= 40);
        let mut tcp = Vec::new();
        tcp.extend(self.sport.to_be_bytes());
        tcp.extend(self.dport.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([((20 + self.options.len()) << 2) as u8, self.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let check = !sum(&tcp, pseudo(self.source, self.target, 6, tcp.len()));
        tcp[16..18].copy_from_slice(&check.to_be_bytes());
        packet(self.source, self.target, 6, &tcp)
    }

    /// Takes a frame apart.
    ///
    /// # Panics
    /// Unless every length fits exactly and every checksum is right.
    pub fn parse(frame: &[u8]) -> Self {
        let (source, target, proto, tcp) = network(frame);
        assert_eq!(proto, 6, "not TCP");
        assert_eq!(sum(tcp, pseudo(source, target, 6, tcp.len())), 0xffff, "TCP checksum of {frame:02x?}");
        let header = usize::from(tcp[12] >> 4) * 4;
        assert!((20..=tcp.len()).contains(&header), "data offset");
        let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        Self {
            source,
            target,
            sport: (word(0) >> 16) as u16,
            dport: word(0) as u16,
            seq: word(4),
            ack: word(8),
            flags: tcp[13],
            options: tcp[20..header].to_vec(),
            payload: tcp[header..].to_vec(),
        }
    }
}

/// A UDP datagram without payload.
pub fn udp(source: IpAddr, target: IpAddr, sport: u16, dport: u16) -> Vec<u8> {
    datagram(source, target, sport, dport, &[])
}

/// A UDP datagram, checksum complete.
pub fn datagram(source: IpAddr, target: IpAddr, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut udp = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat();
    let check = match !sum(&udp, pseudo(source, target, 17, udp.len())) {
        // Zero stands for no checksum (RFC 768).
        0 => 0xffff,
        check => check,
    };
    udp[6..8].copy_from_slice(&check.to_be_bytes());
    packet(source, target, 17, &udp)
}

/// Takes a UDP datagram apart: addresses, ports, payload.
///
/// # Panics
/// Unless every length fits exactly and every checksum is right.
pub fn parse_datagram(frame: &[u8]) -> (IpAddr, IpAddr, u16, u16, Vec<u8>) {
    let (source, target, proto, udp) = network(frame);
    assert_eq!(proto, 17, "not UDP");
    assert_eq!(sum(udp, pseudo(source, target, 17, udp.len())), 0xffff, "UDP checksum of {frame:02x?}");
    let part = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    assert_eq!(usize::from(part(4)), udp.len(), "UDP length");
    (source, target, part(0), part(2), udp[8..].to_vec())
}

/// A frame with this network payload.
pub fn packet(source: IpAddr, target: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = MAC_ADDRESSES.to_vec();
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            frame.extend([8, 0]);
            let mut header = vec![0x45, 0];
            header.extend((20 + payload.len() as u16).to_be_bytes());
            header.extend([0x12, 0x34, 0x40, 0, 57, proto, 0, 0]);
            header.extend(source.octets());
            header.extend(target.octets());
            let check = !sum(&header, 0);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([proto, 57]);
            frame.extend(source.octets());
            frame.extend(target.octets());
        }
        _ => panic!("two families"),
    }
    frame.extend(payload);
    frame
}

fn network(frame: &[u8]) -> (IpAddr, IpAddr, u8, &[u8]) {
    let ip = &frame[14..];
    match frame[12..14] {
        [8, 0] => {
            let header = usize::from(ip[0] & 15) * 4;
            assert_eq!(sum(&ip[..header], 0), 0xffff, "IP checksum");
            assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len(), "IP length");
            let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
            (address(12), address(16), ip[9], &ip[header..])
        }
        [0x86, 0xdd] => {
            assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])) + 40, ip.len(), "IPv6 length");
            let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap());
            (address(8), address(24), ip[6], &ip[40..])
        }
        _ => panic!("not IP"),
    }
}

fn pseudo(source: IpAddr, target: IpAddr, proto: u8, len: usize) -> u32 {
    let of = |address| match address {
        IpAddr::V4(v4) => u32::from(sum(&v4.octets(), 0)),
        IpAddr::V6(v6) => u32::from(sum(&v6.octets(), 0)),
    };
    of(source) + of(target) + u32::from(proto) + len as u32
}

/// One's-complement sum of big-endian words, folded.
pub fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
