//! `lab-tool calls`: one caller of many addresses, who keeps count.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::socket;
use crate::traffic::{Calls, Outcome};

#[derive(Args)]
pub(crate) struct CallAll {
    /// Addresses and ports to call, in turn
    #[arg(required = true)]
    to: Vec<SocketAddr>,
    /// For so many seconds
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Milliseconds to wait for the connection, and again for the reply
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
}

/// One connection in so many ends with FIN, and leaves a TIME_WAIT behind; the others with a reset.
const FINISHED: usize = 16;

impl CallAll {
    pub(crate) fn run(self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        let mut tally: BTreeMap<(SocketAddr, Outcome), (u64, u64)> = BTreeMap::new();
        for (number, to) in self.to.iter().cycle().enumerate() {
            // Everybody is called at least once.
            if number >= self.to.len() && Instant::now() >= end {
                break;
            }
            let begin = Instant::now();
            let outcome = match self.call(*to, number % FINISHED == 0) {
                Ok(outcome) => outcome,
                Err(errno) => socket::outcome(errno),
            };
            let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
            let (count, slowest) = tally.entry((*to, outcome)).or_default();
            *count += 1;
            *slowest = micros.max(*slowest);
        }
        let calls = tally.into_iter().map(|((to, outcome), (count, slowest_micros))| Calls {
            to: to.to_string(),
            outcome,
            count,
            slowest_micros,
        });
        println!("{}", serde_json::to_string(&calls.collect::<Vec<_>>())?);
        Ok(())
    }

    fn call(&self, to: SocketAddr, finished: bool) -> Result<Outcome, Errno> {
        let timeout = Duration::from_millis(self.timeout);
        let stream = socket::connected(to, timeout)?;
        if !finished {
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, sockopt::Linger, &now)?;
        }
        ask(&stream, timeout).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Errno::ETIMEDOUT,
            _ => socket::errno(&error),
        })
    }
}

fn ask(mut stream: &TcpStream, timeout: Duration) -> std::io::Result<Outcome> {
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(b"?")?;
    Ok(if stream.read(&mut [0])? == 1 { Outcome::Ok } else { Outcome::Closed })
}
