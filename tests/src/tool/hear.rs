//! `lab-tool hear` and `lab-tool tell`: datagrams to one or to many, and sockets that share a port.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use serde_json::json;

#[derive(Args)]
pub(crate) struct Hear {
    /// Address and port to bind
    at: SocketAddr,
    /// Accept connections instead of datagrams
    #[arg(long)]
    tcp: bool,
    /// A multicast group to join on eth0
    #[arg(long)]
    join: Vec<IpAddr>,
    /// Share the port with other sockets, of which the kernel chooses one for each packet
    #[arg(long)]
    group: bool,
    /// As --group, and always choose the member that came as this one, counted from 0
    #[arg(long)]
    choose: Option<u32>,
    /// Send every datagram back, and print none
    #[arg(long, conflicts_with = "tcp")]
    echo: bool,
}

#[derive(Args)]
pub(crate) struct Tell {
    /// Where to send
    to: SocketAddr,
    /// Address to send from; each datagram from a port of its own
    #[arg(long)]
    from: IpAddr,
    /// What to send
    #[arg(long, default_value = "hello")]
    text: String,
    /// How many datagrams
    #[arg(long, default_value_t = 1)]
    count: usize,
}

impl Hear {
    pub(crate) fn run(self) -> Result<()> {
        let kind = if self.tcp { SockType::Stream } else { SockType::Datagram };
        let socket = socket(family(self.at.ip()), kind, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        if self.group || self.choose.is_some() {
            setsockopt(&socket, sockopt::ReusePort, &true)?;
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(self.at))
            .with_context(|| format!("cannot bind {}", self.at))?;
        if self.tcp {
            listen(&socket, Backlog::new(100)?)?;
        }
        if let Some(member) = self.choose {
            always(&socket, member).context("cannot choose among the group")?;
        }
        if self.tcp { accept(socket.into()) } else { self.receive(socket.into()) }
    }

    fn receive(&self, socket: UdpSocket) -> Result<()> {
        for group in &self.join {
            match group {
                IpAddr::V4(group) => {
                    let any = std::net::Ipv4Addr::UNSPECIFIED;
                    // The only route a lab's host has for multicast is the one to its own network.
                    let ours = nix::ifaddrs::getifaddrs()?.find_map(|found| {
                        let address = found.address?.as_sockaddr_in()?.ip();
                        (found.interface_name == "eth0").then_some(address)
                    });
                    socket.join_multicast_v4(group, &ours.unwrap_or(any))?;
                }
                IpAddr::V6(group) => socket.join_multicast_v6(group, nix::net::if_::if_nametoindex("eth0")?)?,
            }
        }
        ready();
        let mut buffer = [0; 2048];
        loop {
            let (count, from) = socket.recv_from(&mut buffer)?;
            if self.echo {
                // Who does not listen any more is told by ICMP, which is no trouble of ours.
                let _ = socket.send_to(&buffer[..count], from);
                continue;
            }
            heard(from, &String::from_utf8_lossy(&buffer[..count]));
        }
    }
}

fn accept(listener: TcpListener) -> Result<()> {
    ready();
    loop {
        let (_, from) = listener.accept()?;
        heard(from, "");
    }
}

fn ready() {
    println!("READY");
    let _ = std::io::stdout().flush();
}

fn heard(from: SocketAddr, text: &str) {
    println!("{}", json!({ "from": from.to_string(), "text": text }));
    let _ = std::io::stdout().flush();
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// socket(7), SO_ATTACH_REUSEPORT_CBPF: a program of one instruction, "return `member`".
fn always(socket: &OwnedFd, member: u32) -> Result<(), Errno> {
    const RETURN_CONSTANT: u16 = 0x06;
    let mut instruction = libc::sock_filter { code: RETURN_CONSTANT, jt: 0, jf: 0, k: member };
    let program = libc::sock_fprog { len: 1, filter: &raw mut instruction };
    let length = std::mem::size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the descriptor is open; the program is live data of the length given, as is the instruction it points to.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    };
    Errno::result(set).map(drop)
}

impl Tell {
    pub(crate) fn run(self) -> Result<()> {
        let (mut sent, mut errno) = (0, 0);
        let mut to = self.to;
        if let SocketAddr::V6(to) = &mut to {
            to.set_scope_id(nix::net::if_::if_nametoindex("eth0")?);
        }
        for _ in 0..self.count {
            let socket = UdpSocket::bind((self.from, 0)).with_context(|| format!("cannot bind {}", self.from))?;
            socket.set_broadcast(true)?;
            match socket.send_to(self.text.as_bytes(), to) {
                Ok(_) => sent += 1,
                Err(error) => errno = error.raw_os_error().unwrap_or_default(),
            }
        }
        println!("{}", json!({ "sent": sent, "errno": errno }));
        Ok(())
    }
}
