//! The way back into the kernel: frames through the TAP, on a real kernel.
//!
//! Needs root.

mod place;

use std::mem::size_of;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use common::abi::{INJECT_INGRESS, INJECT_TRUSTED};
use enforcer_user::link_net::{self, Change};
use enforcer_user::load::{Kernel, unload};
use enforcer_user::map_write::ConfigWriter;
use enforcer_user::tap::Tap;
use place::{Place, TAP, ip, isolated};

/// A loaded kernel side with its TAP.
fn opened(place: &Place) -> (Kernel, Tap) {
    let mut kernel = Kernel::open(&place.options()).unwrap();
    let tap = Tap::open(TAP).unwrap();
    kernel.attach_tap(&tap).unwrap();
    ConfigWriter::open(&place.maps()).unwrap().update(|config| config.mark = 0x5eed_1234).unwrap();
    (kernel, tap)
}

#[test]
fn frames_go_where_their_trailer_says_without_it() {
    isolated(|place| {
        let (kernel, tap) = opened(place);
        let v0 = link_net::by_name("v0").unwrap().unwrap().index;
        let v1 = link_net::by_name("v1").unwrap().unwrap().index;
        let (at_v0, at_v1) = (Sniffer::new(v0), Sniffer::new(v1));
        for length in [14, 60, 1514, 2048] {
            let frame = frame(length);
            tap.inject(&frame, v0, INJECT_INGRESS | INJECT_TRUSTED, 0).unwrap();
            assert_eq!(at_v0.next(), frame, "{length} bytes to the ingress");
        }
        let frame = frame(1514);
        tap.inject(&frame, v0, INJECT_TRUSTED, 0).unwrap();
        assert_eq!(at_v1.next(), frame, "out through v0 is in at v1");
        assert!(tap.inject(&frame[..13], v0, INJECT_INGRESS, 0).unwrap_err().to_string().contains("13 bytes"));
        drop((kernel, tap));
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn the_loopback_takes_frames_back() {
    isolated(|place| {
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        ip("addr add 10.9.0.1/24 dev v0");
        ip("addr add fd09::1/64 dev v0 nodad");
        let (kernel, tap) = opened(place);
        for address in ["127.0.0.1", "10.9.0.1", "::1", "fd09::1"] {
            let address: IpAddr = address.parse().unwrap();
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let frame = datagram(address, socket.local_addr().unwrap().port(), b"back again");
            tap.inject(&frame, 1, INJECT_INGRESS | INJECT_TRUSTED, 0).unwrap();
            let mut buffer = [0; 32];
            let received = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{address}: {error}"));
            assert_eq!(&buffer[..received], b"back again", "{address}");
        }
        // It is the settings that let them in.
        for (setting, address) in [("route_localnet", "127.0.0.1"), ("accept_local", "10.9.0.1")] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/lo/{setting}"), "0").unwrap();
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let frame = datagram(address.parse().unwrap(), socket.local_addr().unwrap().port(), b"back again");
            tap.inject(&frame, 1, INJECT_INGRESS | INJECT_TRUSTED, 0).unwrap();
            assert!(socket.recv(&mut [0; 32]).is_err(), "{setting}");
        }
        drop((kernel, tap));
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn interfaces_are_watched() {
    isolated(|_| {
        let (send, receive) = mpsc::channel();
        let watch = link_net::watch(move |change| drop(send.send(change))).unwrap();
        let until = |wanted: &dyn Fn(&Change) -> bool| {
            while !wanted(&receive.recv_timeout(Duration::from_secs(5)).expect("no such change")) {}
        };
        until(&|change| matches!(change, Change::Present(there) if there.name == "v1"));
        ip("link add w0 type veth peer name w1");
        until(&|change| matches!(change, Change::Present(there) if there.name == "w0" && there.kind.name() == "veth"));
        let index = link_net::by_name("w0").unwrap().unwrap().index;
        ip("link del w0");
        until(&|change| *change == Change::Gone(index, "w0".into()));
        drop(watch);
        assert_eq!(
            receive.try_iter().filter(|change| matches!(change, Change::Present(i) if i.name == "x")).count(),
            0
        );
        assert_eq!(receive.recv().err(), Some(mpsc::RecvError), "the thread has ended");
    });
}

/// A frame of a protocol nobody speaks (local experimental, IEEE 802), to nobody.
fn frame(length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|index| index as u8).collect();
    frame[..6].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// An Ethernet frame with a datagram from an address to itself.
fn datagram(address: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut udp = [port.to_be_bytes(), port.to_be_bytes(), length.to_be_bytes(), [0; 2]].concat();
    udp.extend(payload);
    let (kind, header, pseudo) = match address {
        IpAddr::V4(v4) => {
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
            header.extend([v4.octets(), v4.octets()].concat());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            (0x0800_u16, header, [v4.octets().as_slice(), &v4.octets()].concat())
        }
        IpAddr::V6(v6) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([17, 64]);
            header.extend([v6.octets(), v6.octets()].concat());
            (0x86dd, header, [v6.octets().as_slice(), &v6.octets()].concat())
        }
    };
    let sum = checksum(&[pseudo.as_slice(), &[0, 17], &length.to_be_bytes(), &udp].concat());
    udp[6..8].copy_from_slice(&sum);
    [[0; 12].as_slice(), &kind.to_be_bytes(), &header, &udp].concat()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A packet socket that sees the frames of [`frame`] coming in at one interface.
struct Sniffer(OwnedFd);

impl Sniffer {
    fn new(index: u32) -> Self {
        let protocol = 0x88b5_u16.to_be();
        // SAFETY: plain integers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: `sockaddr_ll` is made of integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the address is live and of the length passed.
        assert_eq!(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) }, 0);
        let timeout = libc::timeval { tv_sec: 2, tv_usec: 0 };
        let length = size_of::<libc::timeval>() as u32;
        // SAFETY: the value is live and of the length passed.
        let result =
            unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const timeout).cast(), length) };
        assert_eq!(result, 0);
        Self(socket)
    }

    fn next(&self) -> Vec<u8> {
        let mut buffer = vec![0_u8; 4096];
        match nix::sys::socket::recv(self.0.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty()) {
            Ok(length) => buffer[..length].to_vec(),
            Err(error) => panic!("no frame: {error}"),
        }
    }
}
