//! `lab-tool transfer`: many connections that all carry data until told to stop, every byte of which is checked.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::socket;
use crate::traffic::Transferred;

#[derive(Args)]
pub(crate) struct Transfer {
    /// Addresses and ports of servers that answer with the same bytes
    #[arg(required = true)]
    to: Vec<SocketAddr>,
    /// Connections to each of them
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Milliseconds to wait for a connection, and at the end for the last answers
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

/// How many are opened at a time.
const BATCH: usize = 200;
/// Bytes of a turn; the next begins when all have come back.
const TURN: usize = 256;
/// Turns handled before others get the processor.
const EVENTS: usize = 128;
const REST: Duration = Duration::from_millis(8);

struct Connection {
    stream: TcpStream,
    /// Differs between connections, so that none gets away with another's bytes.
    seed: u8,
    sent: u64,
    echoed: u64,
}

impl Transfer {
    /// Prints `READY {"open":n,"failed":n}`; on SIGTERM waits for what is under way, and prints a [`Transferred`].
    pub(crate) fn run(self) -> Result<()> {
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTERM);
        stop.thread_block()?;
        let stop = SignalFd::with_flags(&stop, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let mut open = self.open();
        let wanted = self.to.len() * self.count;
        println!("READY {{\"open\":{},\"failed\":{}}}", open.len(), wanted - open.len());
        ensure!(open.len() < u32::MAX as usize, "too many connections");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (index, connection) in open.iter().enumerate() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
            connection.stream.set_nonblocking(true)?;
            epoll.add(&connection.stream, event)?;
        }
        let mut told = Transferred { open: open.len() as u64, ..Transferred::default() };
        let mut lost = vec![false; open.len()];
        for (index, connection) in open.iter_mut().enumerate() {
            told.note(&mut lost[index], connection.turn());
        }
        let mut events = vec![EpollEvent::empty(); EVENTS];
        let mut end = None;
        loop {
            let ready = match epoll.wait(&mut events, EpollTimeout::try_from(REST)?) {
                Err(nix::errno::Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..ready] {
                let index = event.data() as usize;
                if !lost[index] {
                    let went_on = open[index].answered(&mut told, end.is_none());
                    told.note(&mut lost[index], went_on);
                    if lost[index] {
                        epoll.delete(&open[index].stream)?;
                    }
                }
            }
            if end.is_none() && stop.read_signal()?.is_some() {
                end = Some(Instant::now() + Duration::from_millis(self.timeout));
            }
            if let Some(end) = end {
                let quiet = open.iter().zip(&lost).all(|(one, lost)| *lost || one.sent == one.echoed);
                if quiet || Instant::now() >= end {
                    break;
                }
            }
            std::thread::sleep(REST);
        }
        told.sent = open.iter().map(|connection| connection.sent).sum();
        told.echoed = open.iter().map(|connection| connection.echoed).sum();
        told.least = open.iter().map(|connection| connection.echoed).min().unwrap_or_default();
        println!("DONE {}", serde_json::to_string(&told)?);
        Ok(())
    }

    fn open(&self) -> Vec<Connection> {
        let mut open = Vec::new();
        let all: Vec<SocketAddr> = self.to.iter().flat_map(|to| std::iter::repeat_n(*to, self.count)).collect();
        for batch in all.chunks(BATCH) {
            let started: Vec<_> = batch.iter().map(|to| socket::start(*to, None)).collect();
            let deadline = Instant::now() + Duration::from_millis(self.timeout);
            for (stream, started) in started {
                if let (Some(stream), Ok(())) = (stream, started)
                    && socket::finish(&stream, deadline).is_ok()
                {
                    open.push(Connection { stream, seed: open.len() as u8, sent: 0, echoed: 0 });
                }
            }
        }
        open
    }
}

impl Connection {
    fn byte(&self, at: u64) -> u8 {
        (at as u8).wrapping_mul(31).wrapping_add(self.seed)
    }

    /// Sends the next turn. So little always fits: nothing else is under way.
    fn turn(&mut self) -> std::io::Result<()> {
        let turn: Vec<u8> = (self.sent..self.sent + TURN as u64).map(|at| self.byte(at)).collect();
        self.stream.write_all(&turn)?;
        self.sent += TURN as u64;
        Ok(())
    }

    fn answered(&mut self, told: &mut Transferred, go_on: bool) -> std::io::Result<()> {
        let mut buffer = [0; TURN];
        loop {
            let count = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let expected = (self.echoed..).map(|at| self.byte(at));
            told.wrong +=
                buffer[..count].iter().zip(expected).filter(|(got, expected)| *got != expected).count() as u64;
            self.echoed += count as u64;
            if self.echoed == self.sent && go_on {
                self.turn()?;
            }
        }
    }
}

impl Transferred {
    fn note(&mut self, lost: &mut bool, result: std::io::Result<()>) {
        if result.is_err() && !*lost {
            *lost = true;
            self.lost += 1;
        }
    }
}
