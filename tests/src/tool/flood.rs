//! `lab-tool flood`: many segments made by hand, as fast as they go or at a rate, and an end to it in any case.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::errno::Errno;
use serde::Serialize;

use super::raw::{Raw, bound_to_link, bypass_queue, from_hex, send_on_link, to_hex};

#[derive(Args)]
pub(crate) struct Flood {
    /// The segment, and how many of it; or a whole frame, which is not varied
    #[command(flatten)]
    segment: Raw,
    /// Link-layer address the frames are for
    #[arg(long, required_unless_present = "frame")]
    mac: Option<String>,
    /// What is another in each
    #[arg(long, value_enum, value_delimiter = ',')]
    vary: Vec<Vary>,
    /// Frames a second; 0 for as many as go
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Seconds after which it ends, however many are left
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
enum Vary {
    /// Source port
    Port,
    /// Sequence number
    Seq,
    /// The last sixteen bits of the source address
    Source,
    /// The last eight bytes of the options
    Option,
}

#[derive(Serialize)]
struct Report {
    sent: usize,
    seconds: f64,
}

/// Frames that are different; then they begin anew.
const FRAMES: usize = 4096;
/// No flood is larger or longer, whatever it is told.
const MOST: usize = 5_000_000;
const LONGEST: f64 = 30.0;
/// Frames between two looks at the clock.
const BATCH: usize = 16;

impl Flood {
    pub(crate) fn run(self) -> Result<()> {
        let interface = self.segment.interface.as_deref().context("--interface is needed")?;
        let index = nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
        let frames = self.frames()?;
        let socket = bound_to_link(index)?;
        bypass_queue(&socket)?;
        println!("READY");
        let limit = Duration::from_secs_f64(self.seconds.clamp(0.0, LONGEST));
        let (begin, mut sent) = (Instant::now(), 0);
        for (number, frame) in frames.iter().cycle().take(self.segment.count.min(MOST)).enumerate() {
            if number % BATCH == 0 {
                let now = begin.elapsed();
                if now >= limit {
                    break;
                }
                if self.rate > 0 {
                    let due = Duration::from_secs_f64(number as f64 / self.rate as f64);
                    std::thread::sleep(due.saturating_sub(now));
                }
            }
            match send_on_link(&socket, index, frame) {
                Ok(()) => sent += 1,
                // The other end's queue is full: those are lost on the way, and not sent.
                Err(Errno::ENOBUFS | Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        println!("{}", serde_json::to_string(&Report { sent, seconds: begin.elapsed().as_secs_f64() })?);
        Ok(())
    }

    fn frames(&self) -> Result<Vec<Vec<u8>>> {
        if let Some(frame) = &self.segment.frame {
            ensure!(self.vary.is_empty(), "a whole frame is sent as it is");
            return Ok(vec![from_hex(frame)?]);
        }
        let to = self.segment.to.context("--to is needed")?;
        let from = self.segment.from.context("--from is needed")?;
        let mac = from_hex(&self.mac.as_deref().unwrap_or_default().replace(':', ""))?;
        ensure!(mac.len() == 6, "a link-layer address has six bytes");
        let kind: [u8; 2] = if to.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        let link = [&mac[..], &[2, 0, 0, 0, 0, 0xf1], &kind].concat();
        let number = if self.vary.is_empty() { 1 } else { FRAMES.min(self.segment.count.max(1)) };
        let frame = |number| Ok([link.clone(), self.varied(number, from, to)?].concat());
        (0..number as u64).map(frame).collect()
    }

    /// The packet of this number: each number gives another, the same in every run.
    fn varied(&self, number: u64, from: SocketAddr, to: SocketAddr) -> Result<Vec<u8>> {
        let noise = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (mut segment, mut from) = (self.segment.clone(), from);
        for vary in &self.vary {
            match vary {
                Vary::Port => from.set_port(20_000 + number as u16 % 40_000),
                Vary::Seq => segment.seq = segment.seq.wrapping_add(number as u32 * 65_537),
                Vary::Source => from.set_ip(neighbour(from.ip(), number as u16)),
                Vary::Option => {
                    let mut options = from_hex(&segment.options)?;
                    let Some(last) = options.last_chunk_mut::<8>() else { bail!("no options to vary") };
                    *last = noise.to_be_bytes();
                    segment.options = to_hex(&options);
                }
            }
        }
        segment.packet(from, to)
    }
}

/// Another address of the same network. IPv6: of another network of 64 bits.
fn neighbour(address: IpAddr, number: u16) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let [c, d] = number.to_be_bytes();
            [a, b, c, d].into()
        }
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[3] = number;
            segments.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_another_source() {
        let of = |number| neighbour([10, 77, 0, 9].into(), number).to_string();
        assert_eq!((of(0x0102), of(0x0103)), ("10.77.1.2".into(), "10.77.1.3".into()));
        let of = |number| neighbour("fd00:1::9".parse().expect("an address"), number).to_string();
        assert_eq!((of(1), of(2)), ("fd00:1:0:1::9".into(), "fd00:1:0:2::9".into()));
    }
}
