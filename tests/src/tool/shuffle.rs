//! `lab-tool shuffle`: a bad stretch of network between two interfaces, which doubles packets and changes their order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

#[derive(Args)]
pub(crate) struct Shuffle {
    /// Both interfaces
    #[arg(required = true, num_args = 2)]
    interfaces: Vec<String>,
    /// Percentage of packets that come twice
    #[arg(long, default_value_t = 50)]
    double: u64,
    /// Percentage of packets, copies included, that come one to four milliseconds later
    #[arg(long, default_value_t = 50)]
    delay: u64,
}

/// Bytes of packets that may wait for this process.
const BUFFER: usize = 64 << 20;

/// When, in which order, through which side, which frame.
type Queued = Reverse<(Instant, u64, usize, Vec<u8>)>;

impl Shuffle {
    /// Prints `READY`, then works until it is killed.
    pub(crate) fn run(self) -> Result<()> {
        let sides = [packet_socket(&self.interfaces[0])?, packet_socket(&self.interfaces[1])?];
        println!("READY");
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        let (mut queue, mut count) = (BinaryHeap::<Queued>::new(), 0);
        let mut buffer = vec![0; 65_536];
        loop {
            let timeout = if queue.is_empty() { PollTimeout::NONE } else { PollTimeout::from(1_u8) };
            let mut polled = [0, 1].map(|side| PollFd::new(AsFd::as_fd(&sides[side]), PollFlags::POLLIN));
            poll(&mut polled, timeout)?;
            for (side, from) in sides.iter().enumerate() {
                while let Some(length) = receive(from, &mut buffer)? {
                    let frame = &buffer[..length];
                    let copies = if !is_ip(frame) || chance.percent() >= self.double { 1 } else { 2 };
                    for _ in 0..copies {
                        let delayed = is_ip(frame) && chance.percent() < self.delay;
                        let delay =
                            if delayed { Duration::from_micros(1000 + chance.next() % 3000) } else { Duration::ZERO };
                        count += 1;
                        queue.push(Reverse((Instant::now() + delay, count, 1 - side, frame.to_vec())));
                    }
                }
            }
            while queue.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
                if let Some(Reverse((_, _, side, frame))) = queue.pop() {
                    // A full queue loses a packet, as networks do.
                    let _ = nix::unistd::write(&sides[side], &frame);
                }
            }
        }
    }
}

/// A deterministic source of chance: xorshift64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn percent(&mut self) -> u64 {
        (self.next() >> 11) % 100
    }
}

/// TCP or UDP; a neighbour's solicitation that comes twice proves nothing.
fn is_ip(frame: &[u8]) -> bool {
    let protocol = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23),
        Some([0x86, 0xdd]) => frame.get(20),
        _ => None,
    };
    matches!(protocol, Some(6 | 17))
}

fn packet_socket(interface: &str) -> Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    let socket = super::raw::bound_to_link(index).with_context(|| format!("cannot take the packets of {interface}"))?;
    // A burst of credentials fills the default several times over, and a stretch that loses packets is another test's.
    setsockopt(&socket, RcvBufForce, &BUFFER).context("no room for bursts; it takes root")?;
    Ok(socket)
}

/// A frame that came from outside, or `None` if there is none now.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>> {
    loop {
        // SAFETY: sockaddr_ll is plain data, for which zeroes are valid.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = std::mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the descriptor is open, and every pointer is to live data of the length given.
        let count = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        match Errno::result(count) {
            Ok(_) if from.sll_pkttype == libc::PACKET_OUTGOING => {}
            Ok(count) => return Ok(usize::try_from(count).ok()),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
