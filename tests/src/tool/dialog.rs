//! `lab-tool dialog`: one end of a TCP connection, played step by step, for what ordinary clients and servers never do.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, bind, sendto, setsockopt, sockopt};

use super::{serve, socket};
use crate::traffic::Talk;

#[derive(Args)]
pub(crate) struct Dialog {
    /// Call this address and port
    #[arg(long, conflicts_with = "listen", required_unless_present = "listen")]
    to: Option<SocketAddr>,
    /// Call from this address and port
    #[arg(long)]
    from: Option<SocketAddr>,
    /// Listen on this address and port instead, and take one connection after the other
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Ask for Multipath TCP
    #[arg(long)]
    mptcp: bool,
    /// Keep the first acknowledgement back until there is data to go with it
    #[arg(long)]
    lazy_ack: bool,
    /// Send this text with the SYN (TCP Fast Open)
    #[arg(long)]
    fast_open: Option<String>,
    /// Listening: take Fast Open, with this many waiting
    #[arg(long, default_value_t = 0)]
    fast_open_queue: i32,
    /// How many connections, one after the other
    #[arg(long, default_value_t = 1)]
    times: usize,
    /// Milliseconds to wait for each step
    #[arg(long, default_value_t = 5000)]
    timeout: u64,
    /// send=TEXT expect=TEXT fin eof reset cut wait=MILLISECONDS
    steps: Vec<Step>,
}

#[derive(Clone)]
enum Step {
    /// Send this text.
    Send(String),
    /// Receive exactly this text.
    Expect(String),
    /// Send no more.
    Fin,
    /// The other end sends no more.
    Eof,
    /// End the connection by a reset.
    Reset,
    /// The other end, or its enforcer, ends the connection by a reset.
    Cut,
    /// Do nothing for this long.
    Wait(Duration),
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.split_once('=') {
            Some(("send", text)) => Self::Send(text.to_owned()),
            Some(("expect", text)) => Self::Expect(text.to_owned()),
            Some(("wait", millis)) => {
                Self::Wait(Duration::from_millis(millis.parse().map_err(|_| format!("not milliseconds: {millis}"))?))
            }
            None if text == "fin" => Self::Fin,
            None if text == "eof" => Self::Eof,
            None if text == "reset" => Self::Reset,
            None if text == "cut" => Self::Cut,
            _ => return Err("expected send=TEXT, expect=TEXT, fin, eof, reset, cut or wait=MILLISECONDS".into()),
        })
    }
}

impl Dialog {
    /// Prints a [`Talk`] for each connection; a listener prints `READY` before.
    pub(crate) fn run(self) -> Result<()> {
        let listener = self.listen.map(|address| self.bound(address)).transpose()?;
        if listener.is_some() {
            println!("READY");
        }
        for _ in 0..self.times {
            let begin = Instant::now();
            let stream = match &listener {
                Some(listener) => listener.accept().map(|(stream, _)| stream).map_err(Into::into),
                None => self.called(),
            };
            let micros = u64::try_from(begin.elapsed().as_micros())?;
            let talk = match stream {
                Ok(stream) => self.play(stream, micros),
                Err(error) => Talk { ok: false, failed: format!("connect: {error:#}"), micros },
            };
            println!("{}", serde_json::to_string(&talk)?);
        }
        Ok(())
    }

    fn bound(&self, address: SocketAddr) -> Result<TcpListener> {
        let listener = TcpListener::from(serve::bound(address).with_context(|| format!("cannot listen on {address}"))?);
        listener.set_nonblocking(false)?;
        if self.fast_open_queue > 0 {
            set_tcp_option(&listener, libc::TCP_FASTOPEN, self.fast_open_queue)?;
        }
        Ok(listener)
    }

    fn called(&self) -> Result<TcpStream> {
        let to = self.to.context("nobody to call")?;
        let protocol = if self.mptcp { libc::IPPROTO_MPTCP } else { libc::IPPROTO_TCP };
        let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: plain values; the descriptor is checked and owned by nobody else.
        let descriptor = unsafe {
            let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
            let number = match Errno::result(libc::socket(family, kind, protocol)) {
                // A PU gets no MPTCP socket; programs that try one do this.
                Err(Errno::EPERM) if self.mptcp => Errno::result(libc::socket(family, kind, libc::IPPROTO_TCP))?,
                other => other?,
            };
            OwnedFd::from_raw_fd(number)
        };
        if let Some(from) = self.from {
            setsockopt(&descriptor, sockopt::ReuseAddr, &true)?;
            bind(descriptor.as_raw_fd(), &SockaddrStorage::from(from))?;
        }
        if self.lazy_ack {
            set_tcp_option(&descriptor, libc::TCP_QUICKACK, 0)?;
        }
        let stream = TcpStream::from(descriptor);
        match &self.fast_open {
            Some(data) => {
                let target = SockaddrStorage::from(to);
                let sent = sendto(
                    stream.as_raw_fd(),
                    data.as_bytes(),
                    &target,
                    MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
                )?;
                if sent != data.len() {
                    bail!("{sent} of {} bytes sent", data.len());
                }
            }
            None => {
                stream.set_nonblocking(true)?;
                match nix::sys::socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
                    Err(Errno::EINPROGRESS) => {}
                    other => other?,
                }
                socket::finish(&stream, Instant::now() + Duration::from_millis(self.timeout))?;
                stream.set_nonblocking(false)?;
            }
        }
        Ok(stream)
    }

    fn play(&self, mut stream: TcpStream, micros: u64) -> Talk {
        for (number, step) in self.steps.iter().enumerate() {
            if let Err(error) = self.step(&mut stream, step) {
                return Talk { ok: false, failed: format!("step {}: {error:#}", number + 1), micros };
            }
            if matches!(step, Step::Reset) {
                break;
            }
        }
        Talk { ok: true, failed: String::new(), micros }
    }

    fn step(&self, stream: &mut TcpStream, step: &Step) -> Result<()> {
        stream.set_read_timeout(Some(Duration::from_millis(self.timeout)))?;
        match step {
            Step::Send(text) => stream.write_all(text.as_bytes())?,
            Step::Expect(text) => {
                let mut bytes = vec![0; text.len()];
                stream.read_exact(&mut bytes)?;
                if bytes != text.as_bytes() {
                    bail!("{:?} came instead of {text:?}", String::from_utf8_lossy(&bytes));
                }
            }
            Step::Fin => stream.shutdown(Shutdown::Write)?,
            Step::Eof => match stream.read(&mut [0; 64])? {
                0 => {}
                count => bail!("{count} bytes came instead of the end"),
            },
            // The close follows when the stream is dropped.
            Step::Reset => setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?,
            Step::Cut => match stream.read(&mut [0; 64]) {
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {}
                Err(error) => return Err(error.into()),
                Ok(count) => bail!("{count} bytes came instead of a reset"),
            },
            Step::Wait(time) => std::thread::sleep(*time),
        }
        Ok(())
    }
}

fn set_tcp_option(socket: &impl AsRawFd, option: i32, value: i32) -> Result<()> {
    // SAFETY: the descriptor is open; the pointer is to a live value of the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            std::mem::size_of::<i32>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop).with_context(|| format!("cannot set TCP option {option}"))
}
