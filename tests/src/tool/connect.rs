//! `lab-tool connect`: attempts, one after another or all at once, each with its outcome, errno and microseconds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use nix::errno::Errno;
use nix::poll::PollFlags;

use super::socket;
use crate::traffic::{Attempt, Attempts, Outcome};

#[derive(Args)]
pub(crate) struct Connect {
    /// Address and port to call
    to: SocketAddr,
    /// Address and port to call from; port 0 leaves the port to the kernel
    #[arg(long)]
    from: Option<SocketAddr>,
    /// How many attempts to make
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Make all attempts at the same time
    #[arg(long)]
    parallel: bool,
    /// Milliseconds to wait for the connection, and again for the reply
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
    /// Milliseconds between attempts
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Text to send once connected; a reply is then waited for
    #[arg(long)]
    payload: Option<String>,
    /// Fetch this path by HTTP/1.0 instead of sending a payload
    #[arg(long, conflicts_with = "payload")]
    http: Option<String>,
    /// Wait for the server to speak first
    #[arg(long)]
    listen: bool,
}

impl Connect {
    pub(crate) fn run(self) -> Result<()> {
        let mut attempts = Vec::with_capacity(self.count);
        if self.parallel {
            let made = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..self.count).map(|_| scope.spawn(|| self.attempt())).collect();
                threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
            });
            attempts.extend(made.into_iter().flatten());
        }
        for number in attempts.len()..self.count {
            if number > 0 && self.pause > 0 {
                std::thread::sleep(Duration::from_millis(self.pause));
            }
            attempts.push(self.attempt());
        }
        println!("{}", serde_json::to_string(&Attempts { attempts })?);
        Ok(())
    }

    fn attempt(&self) -> Attempt {
        let timeout = Duration::from_millis(self.timeout);
        let begin = Instant::now();
        let (stream, started) = socket::start(self.to, self.from);
        let connected = started.and_then(|()| match &stream {
            Some(stream) => socket::finish(stream, begin + timeout),
            None => Err(Errno::EBADF),
        });
        let micros = micros_since(begin);
        let retransmissions = stream.as_ref().map(socket::retransmissions).unwrap_or_default();
        let answered_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let local = stream.as_ref().and_then(|stream| stream.local_addr().ok());
        let mut reply = Vec::new();
        let talked = connected.and_then(|()| match &stream {
            Some(stream) => self.talk(stream, Instant::now() + timeout, &mut reply),
            None => Err(Errno::EBADF),
        });
        let (outcome, errno) = match talked {
            Ok(()) if self.expects_reply() && reply.is_empty() => (Outcome::Closed, 0),
            Ok(()) => (Outcome::Ok, 0),
            Err(errno) => (socket::outcome(errno), errno as i32),
        };
        Attempt {
            outcome,
            errno,
            micros,
            total_micros: micros_since(begin),
            retransmissions,
            answered_at: u64::try_from(answered_at).unwrap_or(u64::MAX),
            local: local.map(|local| local.to_string()).unwrap_or_default(),
            remote: self.to.to_string(),
            reply: String::from_utf8_lossy(&reply).into_owned(),
        }
    }

    fn expects_reply(&self) -> bool {
        self.payload.is_some() || self.http.is_some() || self.listen
    }

    /// Sends what is to be sent and reads until as much came back, or, with HTTP, until the end.
    fn talk(&self, mut stream: &TcpStream, deadline: Instant, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let request = match (&self.payload, &self.http) {
            (Some(payload), _) => payload.clone(),
            (None, Some(path)) => format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.to),
            (None, None) => String::new(),
        };
        // Requests are short: they fit a fresh socket's buffer.
        stream.write_all(request.as_bytes()).map_err(|error| socket::errno(&error))?;
        let mut buffer = [0; 16 * 1024];
        while self.expects_reply() {
            if !socket::wait(stream, PollFlags::POLLIN, deadline)? {
                return Err(Errno::ETIMEDOUT);
            }
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => reply.extend_from_slice(&buffer[..count]),
                Err(error) if socket::errno(&error) == Errno::EAGAIN => {}
                Err(error) => return Err(socket::errno(&error)),
            }
            if self.http.is_none() && reply.len() >= request.len().max(1) {
                break;
            }
        }
        Ok(())
    }
}

fn micros_since(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX)
}
