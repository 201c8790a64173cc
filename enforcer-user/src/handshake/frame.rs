//! Captured frames: Ethernet, IPv4 or IPv6, TCP, our option, payload.

use common::{
    Addr, addr_v4,
    drop_reason::Reason,
    wire::{OPTION_LEN, OptionBytes},
};

/// Bytes of the Ethernet header; every interface has one here, also `lo`.
pub const ETH_LEN: usize = 14;

/// TCP flag.
pub const FIN: u8 = 0x01;
/// TCP flag.
pub const SYN: u8 = 0x02;
/// TCP flag.
pub const RST: u8 = 0x04;
/// TCP flag.
pub const ACK: u8 = 0x10;

const TCP: u8 = 6;

/// A well-formed TCP segment in a frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    // Without padding behind the IP packet.
    bytes: &'a [u8],
    v6: bool,
    tcp: usize,
    payload: usize,
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Lengths or versions contradict each other; says where.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// Neither IPv4 nor IPv6, or not TCP.
    #[error("not TCP")]
    NotTcp,
    /// IPv6 extension headers.
    #[error("IPv6 extension header {0}")]
    ExtensionHeader(u8),
    /// A fragment.
    #[error("fragment")]
    Fragment,
}

impl FrameError {
    /// The reason under which this is counted and reported.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::Malformed,
            Self::NotTcp => Reason::ProtocolDenied,
            Self::ExtensionHeader(_) => Reason::ExtensionHeader,
            Self::Fragment => Reason::Fragment,
        }
    }
}

impl<'a> Frame<'a> {
    /// Takes a frame apart. Checksums are not looked at: captured frames may hold partial ones.
    ///
    /// # Errors
    /// If it is not one unfragmented TCP segment without IPv6 extension headers.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        use FrameError::Malformed;
        let ip = bytes.get(ETH_LEN..).ok_or(Malformed("Ethernet header"))?;
        let (v6, header_len, total_len) = match [bytes[12], bytes[13]] {
            [0x08, 0x00] => {
                let header = ip.first_chunk::<20>().ok_or(Malformed("IPv4 header"))?;
                let header_len = usize::from(header[0] & 0x0f) * 4;
                if header[0] >> 4 != 4 || header_len < 20 {
                    return Err(Malformed("IPv4 header"));
                }
                // More fragments, or an offset.
                if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
                    return Err(FrameError::Fragment);
                }
                if header[9] != TCP {
                    return Err(FrameError::NotTcp);
                }
                (false, header_len, usize::from(u16::from_be_bytes([header[2], header[3]])))
            }
            [0x86, 0xdd] => {
                let header = ip.first_chunk::<40>().ok_or(Malformed("IPv6 header"))?;
                if header[0] >> 4 != 6 {
                    return Err(Malformed("IPv6 header"));
                }
                match header[6] {
                    TCP => {}
                    44 => return Err(FrameError::Fragment),
                    // Hop-by-hop, routing, ESP, AH, no next header, destination options, mobility, HIP, shim6, tests
                    // (IANA, "IPv6 Extension Header Types").
                    other @ (0 | 43 | 50 | 51 | 59 | 60 | 135 | 139 | 140 | 253 | 254) => {
                        return Err(FrameError::ExtensionHeader(other));
                    }
                    _ => return Err(FrameError::NotTcp),
                }
                (true, 40, 40 + usize::from(u16::from_be_bytes([header[4], header[5]])))
            }
            _ => return Err(FrameError::NotTcp),
        };
        if total_len > ip.len() || header_len > total_len {
            return Err(Malformed("IP length"));
        }
        let bytes = &bytes[..ETH_LEN + total_len];
        let tcp = ETH_LEN + header_len;
        let header = bytes[tcp..].first_chunk::<20>().ok_or(Malformed("TCP header"))?;
        let payload = tcp + usize::from(header[12] >> 4) * 4;
        if payload < tcp + 20 || payload > bytes.len() {
            return Err(Malformed("TCP data offset"));
        }
        Ok(Self { bytes, v6, tcp, payload })
    }

    /// The frame, without padding.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether it is IPv6.
    pub fn is_v6(&self) -> bool {
        self.v6
    }

    /// Source address.
    pub fn source(&self) -> Addr {
        self.addr(if self.v6 { 8 } else { 12 })
    }

    /// Destination address.
    pub fn destination(&self) -> Addr {
        self.addr(if self.v6 { 24 } else { 16 })
    }

    /// Source port.
    pub fn source_port(&self) -> u16 {
        self.u16(0)
    }

    /// Destination port.
    pub fn destination_port(&self) -> u16 {
        self.u16(2)
    }

    /// Sequence number.
    pub fn seq(&self) -> u32 {
        self.u32(4)
    }

    /// Acknowledgement number.
    pub fn ack(&self) -> u32 {
        self.u32(8)
    }

    /// TCP flags, lower eight.
    pub fn flags(&self) -> u8 {
        self.bytes[self.tcp + 13]
    }

    /// Whether SYN is set and neither ACK, FIN nor RST.
    pub fn is_syn(&self) -> bool {
        self.flags() & (FIN | SYN | RST | ACK) == SYN
    }

    /// Whether SYN and ACK are set and neither FIN nor RST.
    pub fn is_syn_ack(&self) -> bool {
        self.flags() & (FIN | SYN | RST | ACK) == SYN | ACK
    }

    /// Our option, if it ends the TCP header.
    pub fn option(&self) -> Option<OptionBytes> {
        let at = self.payload.checked_sub(OPTION_LEN).filter(|at| *at >= self.tcp + 20)?;
        let bytes = self.bytes[at..].first_chunk::<OPTION_LEN>()?;
        let [kind, len, exid0, exid1, version_type, flags, handle0, handle1, rest @ ..] = *bytes;
        let (index, mac) = rest.split_first_chunk::<4>()?;
        let option = OptionBytes {
            kind,
            len,
            exid: [exid0, exid1],
            version_type,
            flags,
            handle: [handle0, handle1],
            index: *index,
            mac: mac.try_into().ok()?,
        };
        option.is_ours().then_some(option)
    }

    /// What follows the TCP header.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload..]
    }

    /// Where the TCP header starts.
    pub(super) fn tcp_offset(&self) -> usize {
        self.tcp
    }

    /// Where the payload starts.
    pub(super) fn payload_offset(&self) -> usize {
        self.payload
    }

    fn addr(&self, at: usize) -> Addr {
        let word = |at: usize| {
            let at = ETH_LEN + at;
            // `parse` saw the whole IP header.
            u32::from_ne_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
        };
        if self.v6 { [word(at), word(at + 4), word(at + 8), word(at + 12)] } else { addr_v4(word(at)) }
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[self.tcp + at], self.bytes[self.tcp + at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) << 16 | u32::from(self.u16(at + 2))
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
