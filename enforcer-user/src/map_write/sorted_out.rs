//! Sockets that were sorted out a moment ago: their SYNs may wait for that, or be on their way to where SYNs wait.

use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::abi::PU_UNSORTED;
use nix::sys::socket::{SockaddrStorage, getsockname};

use crate::sys;

/// Sockets that are remembered. A SYN whose socket is forgotten waits in vain; TCP sends it again.
const REMEMBERED: usize = 4096;
/// The kernel may read a socket's mark so long before it says when it held the SYN.
const SLACK: Duration = Duration::from_millis(10);

/// The last sockets whose mark said that they are not sorted out, or does so now.
#[derive(Debug, Default)]
pub struct SortedOut {
    recent: Mutex<Recent>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Recent {
    sockets: VecDeque<Socket>,
    noted: u64,
}

#[derive(Clone, Copy, Debug)]
struct Socket {
    when_ns: u64,
    cookie: u64,
    port: u16,
    pu: u32,
}

impl SortedOut {
    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A socket bears another mark from now on.
    pub(super) fn note(&self, socket: BorrowedFd<'_>, pu: u32) {
        let name = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok();
        let port = name.and_then(|name| {
            let v4 = name.as_sockaddr_in().map(|name| name.port());
            v4.or_else(|| name.as_sockaddr_in6().map(|name| name.port()))
        });
        let cookie = sys::socket_cookie(socket).unwrap_or_default();
        self.remember(Socket { when_ns: sys::monotonic_ns(), cookie, port: port.unwrap_or_default(), pu });
    }

    fn remember(&self, socket: Socket) {
        let mut recent = self.lock();
        if recent.sockets.len() >= REMEMBERED {
            recent.sockets.pop_front();
        }
        recent.sockets.push_back(socket);
        recent.noted += 1;
        self.news.notify_all();
    }

    /// The PU that a socket became one of, by its cookie; 0 if it is nobody's, `None` if it is not sorted out.
    pub fn socket(&self, cookie: u64) -> Option<u32> {
        let recent = self.lock();
        let last = recent.sockets.iter().rev().find(|socket| socket.cookie == cookie);
        last.map(|socket| socket.pu).filter(|pu| *pu != PU_UNSORTED)
    }

    /// Whether a socket with this local port was sorted out after this moment (`CLOCK_MONOTONIC`), or shortly before.
    pub fn port(&self, port: u16, since_ns: u64) -> bool {
        let since_ns = since_ns.saturating_sub(SLACK.as_nanos() as u64);
        let recent = self.lock();
        let mut later = recent.sockets.iter().rev().take_while(|socket| socket.when_ns >= since_ns);
        later.any(|socket| socket.port == port && socket.pu != PU_UNSORTED)
    }

    /// Waits until more than `noted` sockets were noted, at most so long; how many were.
    pub fn wait(&self, noted: u64, at_most: Duration) -> u64 {
        let recent = self.lock();
        let waited = self.news.wait_timeout_while(recent, at_most, |recent| recent.noted <= noted);
        waited.unwrap_or_else(PoisonError::into_inner).0.noted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(when_ns: u64, cookie: u64, port: u16, pu: u32) -> Socket {
        Socket { when_ns, cookie, port, pu }
    }

    #[test]
    fn the_last_mark_of_a_socket_counts() {
        let sockets = SortedOut::default();
        assert_eq!(sockets.socket(7), None);
        for (pu, said) in [(3, Some(3)), (PU_UNSORTED, None), (0, Some(0))] {
            sockets.remember(socket(1, 7, 80, pu));
            sockets.remember(socket(1, 8, 80, 9));
            assert_eq!(sockets.socket(7), said);
        }
        assert_eq!(sockets.wait(5, Duration::from_secs(60)), 6);
        assert_eq!(sockets.wait(6, Duration::ZERO), 6);
    }

    #[test]
    fn a_port_counts_from_a_moment_on() {
        let (sockets, slack) = (SortedOut::default(), SLACK.as_nanos() as u64);
        sockets.remember(socket(slack + 10, 1, 80, 4));
        sockets.remember(socket(slack + 20, 2, 81, PU_UNSORTED));
        assert!(sockets.port(80, 0) && sockets.port(80, 2 * slack + 10));
        assert!(!sockets.port(80, 2 * slack + 11), "it was looked at after that");
        assert!(!sockets.port(81, 0), "it is not sorted out");
    }

    #[test]
    fn memory_is_bounded() {
        let sockets = SortedOut::default();
        for cookie in 0..=REMEMBERED as u64 {
            sockets.remember(socket(1, cookie, 80, 4));
        }
        assert_eq!((sockets.socket(0), sockets.socket(1)), (None, Some(4)));
        assert_eq!(sockets.lock().sockets.len(), REMEMBERED);
    }

    #[test]
    fn a_socket_is_known_by_cookie_and_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = SortedOut::default();
        sockets.note(std::os::fd::AsFd::as_fd(&listener), 5);
        let cookie = sys::socket_cookie(std::os::fd::AsFd::as_fd(&listener)).unwrap();
        assert_eq!(sockets.socket(cookie), Some(5));
        assert!(sockets.port(listener.local_addr().unwrap().port(), 0));
    }
}
