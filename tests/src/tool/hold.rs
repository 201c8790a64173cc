//! `lab-tool hold`: connections kept open, so that a test can see which a change of policy cuts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::socket;

#[derive(Args)]
pub(crate) struct Hold {
    /// Address and port to call
    to: SocketAddr,
    /// How many connections to keep
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Milliseconds to wait for each connection
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
    /// Send every SYN before any answer is waited for
    #[arg(long)]
    burst: bool,
    /// Send a byte on every connection this often, in milliseconds (0: never)
    #[arg(long, default_value_t = 0)]
    ping: u64,
}

#[derive(Serialize)]
struct Ended {
    event: &'static str,
    index: usize,
    how: &'static str,
    errno: i32,
    millis: u128,
}

impl Hold {
    /// Prints `READY {"open":n,"failed":n}`, then a line for each connection that ends, and leaves when none is left.
    pub(crate) fn run(self) -> Result<()> {
        let timeout = Duration::from_millis(self.timeout);
        let made = if self.burst { self.burst(timeout) } else { self.one_by_one(timeout) };
        let mut open: Vec<(usize, TcpStream)> = made.into_iter().enumerate().collect();
        println!("READY {{\"open\":{},\"failed\":{}}}", open.len(), self.count - open.len());
        let begin = Instant::now();
        let step = if self.ping == 0 { 1000 } else { self.ping };
        let step = PollTimeout::try_from(Duration::from_millis(step)).context("--ping is too long")?;
        while !open.is_empty() {
            let mut polled: Vec<_> =
                open.iter().map(|(_, stream)| PollFd::new(stream.as_fd(), PollFlags::POLLIN)).collect();
            let ready = poll(&mut polled, step)?;
            let ready: Vec<bool> = polled.iter().map(|entry| ready > 0 && entry.any() == Some(true)).collect();
            let mut ready = ready.into_iter();
            open.retain_mut(|(index, stream)| {
                let (how, errno) = match ready.next() {
                    Some(true) => match stream.read(&mut [0; 4096]) {
                        Ok(0) => ("closed", 0),
                        Ok(_) => return true,
                        Err(error) => ("reset", error.raw_os_error().unwrap_or_default()),
                    },
                    _ if self.ping > 0 => match stream.write(b".") {
                        Ok(_) => return true,
                        Err(error) => ("reset", error.raw_os_error().unwrap_or_default()),
                    },
                    _ => return true,
                };
                let ended = Ended { event: "ended", index: *index, how, errno, millis: begin.elapsed().as_millis() };
                println!("{}", serde_json::to_string(&ended).unwrap_or_default());
                false
            });
        }
        Ok(())
    }

    fn one_by_one(&self, timeout: Duration) -> Vec<TcpStream> {
        (0..self.count).filter_map(|_| socket::connected(self.to, timeout).ok()).collect()
    }

    fn burst(&self, timeout: Duration) -> Vec<TcpStream> {
        let started: Vec<_> = (0..self.count).map(|_| socket::start(self.to, None)).collect();
        let deadline = Instant::now() + timeout;
        let made = started.into_iter().filter_map(|(stream, started)| {
            let stream = stream.filter(|_| started.is_ok())?;
            socket::finish(&stream, deadline).ok()?;
            stream.set_nonblocking(false).ok()?;
            Some(stream)
        });
        made.collect()
    }
}
