//! `lab-tool raw`: segments no honest stack would send, and frames captured earlier.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;

use crate::segment::checksum;

#[derive(Args, Clone)]
pub(crate) struct Raw {
    /// Address and port the segment is for
    #[arg(long, required_unless_present = "frame")]
    pub(crate) to: Option<SocketAddr>,
    /// Address and port it claims to come from; port 40000 of the right address if not given
    #[arg(long)]
    pub(crate) from: Option<SocketAddr>,
    /// A UDP datagram: nothing of TCP's counts
    #[arg(long)]
    udp: bool,
    /// TCP flags, any of FSRPAU
    #[arg(long, default_value = "S")]
    flags: String,
    /// Sequence number
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) seq: u32,
    /// Acknowledgement number
    #[arg(long, default_value_t = 0)]
    ack: u32,
    /// TCP options in hex; padded with end-of-options to a multiple of four
    #[arg(long, default_value = "")]
    pub(crate) options: String,
    /// Payload in hex
    #[arg(long, default_value = "")]
    payload: String,
    /// A whole frame in hex, link header first, sent as it is through AF_PACKET
    #[arg(long, requires = "interface")]
    pub(crate) frame: Option<String>,
    /// The interface for --frame
    #[arg(long)]
    pub(crate) interface: Option<String>,
    /// Send --frame past the queueing discipline, and whatever else stands at the interface's egress
    #[arg(long, requires = "frame")]
    bypass: bool,
    /// How many times to send it
    #[arg(long, default_value_t = 1)]
    pub(crate) count: usize,
    /// Milliseconds to wait for answers
    #[arg(long, default_value_t = 200)]
    wait: u64,
}

/// A segment that came back.
#[derive(Serialize)]
struct Answer {
    flags: String,
    seq: u32,
    ack: u32,
    options: String,
    payload: String,
}

#[derive(Serialize)]
struct Report {
    sent: usize,
    errno: i32,
    answers: Vec<Answer>,
}

const FLAGS: &[u8] = b"FSRPAU";

impl Raw {
    pub(crate) fn run(self) -> Result<()> {
        let report = match (&self.frame, self.to) {
            (Some(frame), _) => self.send_frame(&from_hex(frame)?)?,
            (None, Some(to)) => self.send_segment(to)?,
            (None, None) => bail!("--to or --frame is needed"),
        };
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    }

    fn send_frame(&self, frame: &[u8]) -> Result<Report> {
        let interface = self.interface.as_deref().context("--frame needs --interface")?;
        let index = nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
        let socket = raw_socket(AddressFamily::Packet, None)?;
        if self.bypass {
            if let Err(error) = bypass_queue(&socket) {
                return Ok(Report { sent: 0, errno: error as i32, answers: Vec::new() });
            }
        }
        let mut errno = 0;
        let mut sent = 0;
        for _ in 0..self.count {
            match send_on_link(&socket, index, frame) {
                Ok(()) => sent += 1,
                Err(error) => errno = error as i32,
            }
        }
        Ok(Report { sent, errno, answers: Vec::new() })
    }

    fn send_segment(&self, to: SocketAddr) -> Result<Report> {
        let from = match self.from {
            Some(from) => from,
            None => SocketAddr::new(own_address(to)?, 40_000),
        };
        let packet = self.packet(from, to)?;
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        // IPPROTO_RAW means: the IP header is ours, in IPv4 and IPv6 alike.
        let sender = raw_socket(family, Some(SockProtocol::Raw))?;
        // Who does not listen must not count as a listener.
        let receiver = (self.wait > 0).then(|| raw_socket(family, Some(SockProtocol::Tcp))).transpose()?;
        let (mut sent, mut errno) = (0, 0);
        let target = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
        for _ in 0..self.count {
            match sendto(sender.as_raw_fd(), &packet, &target, MsgFlags::empty()) {
                Ok(_) => sent += 1,
                Err(error) => errno = error as i32,
            }
        }
        let answers = receiver.map_or(Ok(Vec::new()), |receiver| self.answers(&receiver, from, to))?;
        Ok(Report { sent, errno, answers })
    }

    fn answers(&self, receiver: &OwnedFd, from: SocketAddr, to: SocketAddr) -> Result<Vec<Answer>> {
        let deadline = Instant::now() + Duration::from_millis(self.wait);
        let mut answers = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(answers);
            }
            let micros = i64::try_from(left.as_micros())?.max(1);
            setsockopt(receiver, sockopt::ReceiveTimeout, &TimeVal::microseconds(micros))?;
            let count = match recv(receiver.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(count) => count,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            // IPv4 raw sockets deliver the IP header too, IPv6 ones do not.
            let start = if to.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
            answers.extend(buffer.get(start..count).and_then(|segment| answer(segment, to.port(), from.port())));
        }
    }

    /// The segment, or datagram, behind an IP header, checksums right.
    pub(crate) fn packet(&self, from: SocketAddr, to: SocketAddr) -> Result<Vec<u8>> {
        let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        let (proto, sum_at) = if self.udp { (17, 6) } else { (6, 16) };
        segment.extend(if self.udp { self.behind_ports_of_udp()? } else { self.behind_ports_of_tcp()? });
        let length = u16::try_from(segment.len()).context("the segment is too long")?;
        let (pseudo, header) = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let addresses = [from.octets(), to.octets()].concat();
                let pseudo = [&addresses[..], &[0, proto], &length.to_be_bytes()].concat();
                let mut header = vec![0x45, 0];
                header.extend((length + 20).to_be_bytes());
                header.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
                header.extend(addresses);
                let sum = checksum(&header).to_be_bytes();
                header[10..12].copy_from_slice(&sum);
                (pseudo, header)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let addresses = [from.octets(), to.octets()].concat();
                let pseudo = [&addresses[..], &u32::from(length).to_be_bytes(), &[0, 0, 0, proto]].concat();
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([proto, 64]);
                header.extend(addresses);
                (pseudo, header)
            }
            _ => bail!("--from and --to are of different families"),
        };
        let sum = checksum(&[pseudo, segment.clone()].concat()).to_be_bytes();
        segment[sum_at..sum_at + 2].copy_from_slice(&sum);
        Ok([header, segment].concat())
    }

    fn behind_ports_of_udp(&self) -> Result<Vec<u8>> {
        let payload = from_hex(&self.payload)?;
        let length = u16::try_from(8 + payload.len()).context("the datagram is too long")?;
        Ok([&length.to_be_bytes()[..], &[0, 0], &payload].concat())
    }

    fn behind_ports_of_tcp(&self) -> Result<Vec<u8>> {
        let mut options = from_hex(&self.options)?;
        options.resize(options.len().next_multiple_of(4), 0);
        ensure!(options.len() <= 40, "TCP has room for 40 bytes of options, not {}", options.len());
        let payload = from_hex(&self.payload)?;
        let mut flags = 0_u8;
        for letter in self.flags.bytes() {
            let bit =
                FLAGS.iter().position(|flag| *flag == letter).with_context(|| format!("no such flag: {letter}"))?;
            flags |= 1 << bit;
        }
        let mut segment = Vec::new();
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.push(u8::try_from((20 + options.len()) / 4)? << 4);
        segment.push(flags);
        segment.extend([0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(options);
        segment.extend(payload);
        Ok(segment)
    }
}

fn answer(segment: &[u8], from_port: u16, to_port: u16) -> Option<Answer> {
    let word = |at: usize| segment.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    if word(0)? != u32::from(from_port) << 16 | u32::from(to_port) {
        return None;
    }
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let flags = segment.get(13)?;
    let names = FLAGS.iter().enumerate().filter(|(bit, _)| flags & (1 << bit) != 0);
    Some(Answer {
        flags: names.map(|(_, name)| char::from(*name)).collect(),
        seq: word(4)?,
        ack: word(8)?,
        options: to_hex(segment.get(20..header)?),
        payload: to_hex(segment.get(header..)?),
    })
}

fn raw_socket(family: AddressFamily, protocol: Option<SockProtocol>) -> Result<OwnedFd> {
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context("raw sockets need root")
}

/// packet(7), PACKET_QDISC_BYPASS.
pub(crate) fn bypass_queue(socket: &OwnedFd) -> Result<(), Errno> {
    let yes: libc::c_int = 1;
    let length = std::mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open; the option's value is a live int of the length given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const yes).cast(),
            length,
        )
    };
    Errno::result(set).map(drop)
}

/// The source address the kernel would choose towards `to`.
fn own_address(to: SocketAddr) -> Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let probe = UdpSocket::bind((any, 0))?;
    probe.connect(to).with_context(|| format!("no route to {to}"))?;
    Ok(probe.local_addr()?.ip())
}

/// A packet socket that sees every frame of one interface.
pub(crate) fn bound_to_link(index: u32) -> Result<OwnedFd> {
    let descriptor = raw_socket(AddressFamily::Packet, None)?;
    // SAFETY: sockaddr_ll is plain data, for which zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(index)?;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    let length = std::mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the pointer is to live data of the length given.
    let bound = unsafe { libc::bind(descriptor.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(bound)?;
    Ok(descriptor)
}

pub(crate) fn send_on_link(socket: &OwnedFd, index: u32, frame: &[u8]) -> Result<(), Errno> {
    // SAFETY: sockaddr_ll is plain data, for which zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(index).unwrap_or_default();
    // The protocol decides which hooks and parsers see the frame, as for one the stack sends.
    address.sll_protocol = frame.get(12..14).map_or(0, |kind| u16::from_ne_bytes([kind[0], kind[1]]));
    let length = std::mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and both pointers are to live data of the lengths given.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const address).cast(), length)
    };
    Errno::result(sent).map(drop)
}

pub(crate) fn from_hex(text: &str) -> Result<Vec<u8>> {
    ensure!(text.len().is_multiple_of(2) && text.is_ascii(), "hex digits come in pairs: {text}");
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).with_context(|| format!("not hex: {text}"));
    (0..text.len()).step_by(2).map(byte).collect()
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_there_and_back_and_not() {
        assert_eq!(to_hex(&from_hex("fe14f989").expect("hex")), "fe14f989");
        assert!(from_hex("abc").is_err());
        assert!(from_hex("zz").is_err());
    }
}
