//! `lab-tool serve`: one thread, epoll, and a log from which a test can tell what the listener saw.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use crate::traffic::ServerEvent;

#[derive(Args)]
pub(crate) struct Serve {
    /// Address and port to listen on; `[::]:PORT` takes IPv4 too. May be given more than once
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// What to answer
    #[arg(long, value_enum, default_value_t = Reply::Echo)]
    reply: Reply,
    /// Text to send as soon as a connection is accepted
    #[arg(long)]
    banner: Option<String>,
    /// Close after the first reply
    #[arg(long)]
    close: bool,
    /// Log nothing but READY
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
enum Reply {
    /// The same bytes
    Echo,
    /// An HTTP page, then close
    Http,
    /// Nothing: read and forget
    Sink,
}

struct Connection {
    stream: TcpStream,
    peer: String,
    total: u64,
    pending: Vec<u8>,
    request: Vec<u8>,
    closing: bool,
}

const PAGE: &str = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";

struct Server {
    options: Serve,
    epoll: Epoll,
    listeners: HashMap<u64, TcpListener>,
    connections: HashMap<u64, Connection>,
    buffer: Vec<u8>,
    log: String,
}

impl Serve {
    pub(crate) fn run(self) -> Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut listeners = HashMap::new();
        for address in &self.listen {
            let listener = TcpListener::from(bound(*address).with_context(|| format!("cannot listen on {address}"))?);
            let key = key_of(&listener);
            epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
            listeners.insert(key, listener);
        }
        println!("READY");
        let (connections, buffer, log) = (HashMap::new(), vec![0; 256 * 1024], String::new());
        Server { options: self, epoll, listeners, connections, buffer, log }.run()
    }
}

impl Server {
    fn run(mut self) -> Result<()> {
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..ready] {
                if self.listeners.contains_key(&event.data()) {
                    self.accept(event.data());
                } else {
                    self.serve(event.data());
                }
            }
            self.tell()?;
        }
    }

    /// Writes the log as far as it goes.
    fn tell(&mut self) -> std::io::Result<()> {
        if !self.log.is_empty() {
            std::io::stdout().write_all(self.log.as_bytes())?;
            self.log.clear();
        }
        Ok(())
    }

    fn accept(&mut self, key: u64) {
        while let Some(Ok((stream, peer))) = self.listeners.get(&key).map(TcpListener::accept) {
            let key = key_of(&stream);
            // Level-triggered writability would wake for every idle connection: edge-triggered for both.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            if stream.set_nonblocking(true).is_err() || self.epoll.add(&stream, EpollEvent::new(flags, key)).is_err() {
                continue;
            }
            let _ = stream.set_nodelay(true);
            let peer = canonical(peer).to_string();
            self.note("accept", &peer, 0, "");
            let pending = self.options.banner.clone().unwrap_or_default().into_bytes();
            let connection = Connection { stream, peer, total: 0, pending, request: Vec::new(), closing: false };
            self.connections.insert(key, connection);
            self.serve(key);
        }
    }

    fn serve(&mut self, key: u64) {
        let Some(mut connection) = self.connections.remove(&key) else {
            return;
        };
        match self.exchange(&mut connection) {
            Ok(true) => {
                self.connections.insert(key, connection);
            }
            Ok(false) => self.note("close", &connection.peer, connection.total, "eof"),
            Err(_) => self.note("close", &connection.peer, connection.total, "reset"),
        }
    }

    /// Reads and answers until nothing more is ready; whether the connection goes on.
    fn exchange(&mut self, connection: &mut Connection) -> std::io::Result<bool> {
        loop {
            // Whoever has an answer finds in the log what it answers.
            self.tell()?;
            while !connection.pending.is_empty() {
                match connection.stream.write(&connection.pending) {
                    Ok(count) => drop(connection.pending.drain(..count)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                    Err(error) => return Err(error),
                }
            }
            if connection.closing {
                return Ok(false);
            }
            let count = match connection.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            connection.total += count as u64;
            self.note("bytes", &connection.peer, count as u64, "");
            let received = &self.buffer[..count];
            match self.options.reply {
                Reply::Echo => connection.pending.extend_from_slice(received),
                Reply::Sink => {}
                Reply::Http => {
                    connection.request.extend_from_slice(received);
                    if connection.request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                        connection.pending.extend_from_slice(PAGE.as_bytes());
                    }
                }
            }
            let answered = !connection.pending.is_empty();
            connection.closing = answered && (self.options.close || self.options.reply == Reply::Http);
        }
    }

    fn note(&mut self, event: &str, peer: &str, count: u64, how: &str) {
        if self.options.quiet {
            return;
        }
        let event = ServerEvent { event: event.to_owned(), peer: peer.to_owned(), count, how: how.to_owned() };
        if let Ok(line) = serde_json::to_string(&event) {
            let _ = writeln!(self.log, "{line}");
        }
    }
}

/// An IPv4 client of an IPv6 listener is an IPv4 client.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn key_of(descriptor: &impl AsRawFd) -> u64 {
    u64::from(descriptor.as_raw_fd().unsigned_abs())
}

/// A listening socket, non-blocking.
pub(super) fn bound(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let descriptor = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&descriptor, sockopt::ReuseAddr, &true)?;
    bind(descriptor.as_raw_fd(), &SockaddrStorage::from(address))?;
    // The kernel cuts this down to net.core.somaxconn.
    listen(&descriptor, Backlog::new(65_535).unwrap_or(Backlog::MAXCONN))?;
    Ok(descriptor)
}
