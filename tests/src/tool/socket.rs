//! Connecting with a deadline, and what an error means to an application.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt, socket, sockopt,
};

use crate::traffic::Outcome;

/// Starts to connect; the socket is non-blocking and may be connected, connecting, or already refused.
pub(crate) fn start(to: SocketAddr, from: Option<SocketAddr>) -> (Option<TcpStream>, Result<(), Errno>) {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let descriptor = match socket(family, SockType::Stream, flags, None) {
        Ok(descriptor) => descriptor,
        Err(error) => return (None, Err(error)),
    };
    if let Some(from) = from {
        let _ = setsockopt(&descriptor, sockopt::ReuseAddr, &true);
        if let Err(error) = bind(descriptor.as_raw_fd(), &SockaddrStorage::from(from)) {
            return (None, Err(error));
        }
    }
    let result = match connect(descriptor.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) => Ok(()),
        other => other,
    };
    (Some(TcpStream::from(descriptor)), result)
}

/// Waits until a started connection is made or refused.
pub(crate) fn finish(stream: &TcpStream, deadline: Instant) -> Result<(), Errno> {
    if !wait(stream, PollFlags::POLLOUT, deadline)? {
        return Err(Errno::ETIMEDOUT);
    }
    match getsockopt(stream, sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// How often TCP has sent something again (`TCP_INFO`).
pub(crate) fn retransmissions(stream: &TcpStream) -> u32 {
    // SAFETY: a structure of integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the pointers are to writable memory of the size given.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len)
    };
    if result == 0 { info.tcpi_total_retrans } else { u32::MAX }
}

/// Waits for readiness; false if the deadline passed first.
pub(crate) fn wait(stream: &TcpStream, what: PollFlags, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be a busy loop.
        let left = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stream.as_fd(), what)], left) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A connected, blocking stream.
pub(crate) fn connected(to: SocketAddr, timeout: Duration) -> Result<TcpStream, Errno> {
    let (stream, started) = start(to, None);
    started?;
    let stream = stream.ok_or(Errno::EBADF)?;
    finish(&stream, Instant::now() + timeout)?;
    stream.set_nonblocking(false).map_err(|error| errno(&error))?;
    Ok(stream)
}

pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// What the application would call this error.
pub(crate) fn outcome(errno: Errno) -> Outcome {
    match errno {
        Errno::ECONNREFUSED => Outcome::Refused,
        Errno::EPERM | Errno::EACCES => Outcome::Eperm,
        Errno::ETIMEDOUT | Errno::EAGAIN => Outcome::Timeout,
        Errno::ECONNRESET | Errno::EPIPE => Outcome::Reset,
        _ => Outcome::Error,
    }
}
