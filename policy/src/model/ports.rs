use std::fmt;

use serde::Serialize;

/// Ports of one protocol, both bounds included.
///
/// For ICMP and ICMPv6 the "port" is `type << 8 | code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PortRange {
    /// IP protocol number: [`PortRange::TCP`], [`PortRange::UDP`], [`PortRange::ICMP`] or
    /// [`PortRange::ICMP6`].
    pub protocol: u8,
    /// Lowest port.
    pub low: u16,
    /// Highest port, not below `low`.
    pub high: u16,
}

impl PortRange {
    /// Protocol number of ICMP.
    pub const ICMP: u8 = 1;
    /// Protocol number of TCP.
    pub const TCP: u8 = 6;
    /// Protocol number of UDP.
    pub const UDP: u8 = 17;
    /// Protocol number of ICMPv6.
    pub const ICMP6: u8 = 58;

    /// Every port of a protocol.
    pub fn all(protocol: u8) -> Self {
        Self { protocol, low: 0, high: u16::MAX }
    }

    /// True when the range holds this port of this protocol.
    pub fn contains(&self, protocol: u8, port: u16) -> bool {
        self.protocol == protocol && (self.low..=self.high).contains(&port)
    }

    /// True when every port of the protocol is in the range.
    pub fn is_all(&self) -> bool {
        self.low == 0 && self.high == u16::MAX
    }

    /// The protocol's number by its name in the rule language.
    pub(crate) fn protocol_by_name(name: &str) -> Option<u8> {
        Some(match name {
            "tcp" => Self::TCP,
            "udp" => Self::UDP,
            "icmp" => Self::ICMP,
            "icmp6" => Self::ICMP6,
            _ => return None,
        })
    }

    pub(crate) fn is_icmp(protocol: u8) -> bool {
        matches!(protocol, Self::ICMP | Self::ICMP6)
    }

    fn fmt_bounds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !Self::is_icmp(self.protocol) {
            return match self.low == self.high {
                true => write!(f, "{}", self.low),
                false => write!(f, "{}-{}", self.low, self.high),
            };
        }
        let [low_type, low_code] = self.low.to_be_bytes();
        let [high_type, high_code] = self.high.to_be_bytes();
        if self.low == self.high {
            return write!(f, "{low_type}:{low_code}");
        }
        write!(f, "{low_type}")?;
        if low_code != 0 {
            write!(f, ":{low_code}")?;
        }
        if low_type == high_type && low_code == 0 && high_code == u8::MAX {
            return Ok(());
        }
        write!(f, "-{high_type}")?;
        if high_code != u8::MAX {
            write!(f, ":{high_code}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match protocol_name(self.protocol) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "protocol {}", self.protocol)?,
        }
        if self.is_all() {
            return Ok(());
        }
        f.write_str("/")?;
        self.fmt_bounds(f)
    }
}

/// Writes port ranges as the rule language does, such as `tcp/80,443 udp/53`.
pub(super) fn fmt_ports(ports: &[PortRange], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut open: Option<u8> = None;
    for range in ports {
        if open == Some(range.protocol) && !range.is_all() {
            f.write_str(",")?;
            range.fmt_bounds(f)?;
        } else {
            write!(f, " {range}")?;
            open = (!range.is_all()).then_some(range.protocol);
        }
    }
    Ok(())
}

fn protocol_name(protocol: u8) -> Option<&'static str> {
    Some(match protocol {
        PortRange::TCP => "tcp",
        PortRange::UDP => "udp",
        PortRange::ICMP => "icmp",
        PortRange::ICMP6 => "icmp6",
        _ => return None,
    })
}
