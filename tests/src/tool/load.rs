//! `lab-tool crr | rr | stream`: load generators. The server is `lab-tool serve --quiet` (`--reply sink` for stream).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::sys::socket::{setsockopt, sockopt};

use super::socket;
use crate::traffic;

#[derive(Args)]
pub(crate) struct Load {
    /// Address and port to call
    to: SocketAddr,
    /// Seconds to measure, after a tenth of it to warm up
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Connections at work at the same time, a thread each
    #[arg(long, default_value_t = 1)]
    parallel: usize,
    /// Bytes of a request (and, from an echo server, of its response), or of one write of a stream
    #[arg(long)]
    size: Option<usize>,
    /// How crr ends a connection
    #[arg(long, value_enum, default_value_t = Close::Reset)]
    close: Close,
    /// rr by datagrams; the server is `lab-tool hear --echo`
    #[arg(long)]
    datagrams: bool,
}

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
enum Close {
    /// With a reset: no TIME_WAIT, so ports never run out
    Reset,
    /// With FIN, the client first
    Fin,
    /// With FIN, the server first (`serve --close`)
    Server,
}

#[derive(Default)]
struct Tally {
    count: u64,
    failed: u64,
    micros: Vec<f32>,
}

/// Whether the measured time has begun, and whether it is over.
struct Phase {
    measuring: AtomicBool,
    over: AtomicBool,
}

impl Load {
    pub(crate) fn run(self, kind: &str) -> Result<()> {
        ensure!(self.seconds > 0.0 && self.parallel > 0, "--seconds and --parallel must be above zero");
        let phase = Phase { measuring: AtomicBool::new(false), over: AtomicBool::new(false) };
        let (tallies, seconds) = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.parallel).map(|_| scope.spawn(|| self.work(kind, &phase))).collect();
            std::thread::sleep(Duration::from_secs_f64(self.seconds / 10.0));
            let begin = Instant::now();
            phase.measuring.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_secs_f64(self.seconds));
            phase.over.store(true, Ordering::Relaxed);
            let seconds = begin.elapsed().as_secs_f64();
            let tallies: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            (tallies, seconds)
        });
        let mut all = Tally::default();
        for tally in tallies {
            let Ok(tally) = tally else { bail!("a worker panicked") };
            let tally = tally?;
            all.count += tally.count;
            all.failed += tally.failed;
            all.micros.extend(tally.micros);
        }
        all.micros.sort_by(f32::total_cmp);
        let result = traffic::Load {
            kind: kind.to_owned(),
            seconds,
            count: all.count,
            rate: all.count as f64 / seconds,
            failed: all.failed,
            median_micros: quantile(&all.micros, 0.5),
            p99_micros: quantile(&all.micros, 0.99),
        };
        println!("{}", serde_json::to_string(&result)?);
        Ok(())
    }

    fn work(&self, kind: &str, phase: &Phase) -> Result<Tally> {
        let mut tally = Tally::default();
        if kind == "crr" {
            while !phase.over.load(Ordering::Relaxed) {
                let connected = self.connect_request_response();
                match (phase.measuring.load(Ordering::Relaxed), connected) {
                    (false, _) => {}
                    (true, Ok(micros)) => tally.add(1, Some(micros)),
                    (true, Err(_)) => tally.failed += 1,
                }
            }
            return Ok(tally);
        }
        if self.datagrams {
            return self.datagrams(phase);
        }
        let mut stream = socket::connected(self.to, Duration::from_secs(5))
            .with_context(|| format!("cannot connect to {}", self.to))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut bytes = vec![b'x'; self.size.unwrap_or(if kind == "rr" { 1 } else { 128 * 1024 })];
        while !phase.over.load(Ordering::Relaxed) {
            let begin = Instant::now();
            stream.write_all(&bytes)?;
            if kind == "rr" {
                stream.read_exact(&mut bytes)?;
            }
            if phase.measuring.load(Ordering::Relaxed) {
                match kind {
                    "rr" => tally.add(1, Some(micros(begin))),
                    _ => tally.add(bytes.len() as u64, None),
                }
            }
        }
        Ok(tally)
    }

    /// One datagram there and back after another, on one socket.
    fn datagrams(&self, phase: &Phase) -> Result<Tally> {
        let mut tally = Tally::default();
        let any = if self.to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(self.to)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut bytes = vec![b'x'; self.size.unwrap_or(1)];
        while !phase.over.load(Ordering::Relaxed) {
            let begin = Instant::now();
            let answered = socket.send(&bytes).and_then(|_| socket.recv(&mut bytes));
            match (phase.measuring.load(Ordering::Relaxed), answered) {
                (false, _) => {}
                (true, Ok(_)) => tally.add(1, Some(micros(begin))),
                (true, Err(_)) => tally.failed += 1,
            }
        }
        Ok(tally)
    }

    /// One connection from SYN to close; the microseconds connect(2) took.
    fn connect_request_response(&self) -> Result<f32> {
        let begin = Instant::now();
        // A blocking connect: the extra poll of a deadline would be measured too.
        let mut stream = TcpStream::connect(self.to)?;
        let connected = micros(begin);
        stream.set_nodelay(true)?;
        let mut bytes = [b'x'; 1024];
        let bytes = &mut bytes[..self.size.unwrap_or(1).min(1024)];
        stream.write_all(bytes)?;
        stream.read_exact(bytes)?;
        match self.close {
            Close::Reset => setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?,
            Close::Fin => {}
            Close::Server => drop(stream.read(&mut [0])?),
        }
        Ok(connected)
    }
}

impl Tally {
    fn add(&mut self, count: u64, micros: Option<f32>) {
        self.count += count;
        self.micros.extend(micros);
    }
}

fn micros(begin: Instant) -> f32 {
    begin.elapsed().as_secs_f32() * 1e6
}

fn quantile(sorted: &[f32], share: f64) -> f64 {
    let index = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
    sorted.get(index).copied().map_or(0.0, f64::from)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_of_few_values() {
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[3.0], 0.99), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), 2.0);
    }
}
