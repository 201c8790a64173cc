//! Just enough rtnetlink (RFC 3549; `linux/rtnetlink.h`, `linux/if_link.h`) to list and watch interfaces.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, setsockopt, sockopt,
};

use super::{Interface, Kind, Master};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_DELQDISC: u16 = 37;
/// Ids of other network namespaces (`linux/net_namespace.h`).
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_PARENT_DEV_NAME: u16 = 56;
/// Marks in the upper bits of an attribute's type.
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
/// `struct rtgenmsg`, padded.
const GEN_HEADER: usize = 4;
/// `struct tcmsg`.
const TC_HEADER: usize = 20;
/// `TC_H_CLSACT` as parent, its major number as handle.
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// A parsed message about an interface.
pub(super) enum Message {
    Link(Interface),
    Gone(u32, String),
    NamespaceId(i32),
}

/// Whether more messages of a dump are to come.
#[derive(PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
}

/// Calls `each` for every interface.
pub(super) fn dump_links(mut each: impl FnMut(Message)) -> io::Result<()> {
    let socket = open(0)?;
    let mut request = Vec::with_capacity(HEADER + LINK_HEADER);
    request.extend(((HEADER + LINK_HEADER) as u32).to_ne_bytes());
    request.extend(RTM_GETLINK.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request.extend(1_u32.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    request.extend([0; LINK_HEADER]);
    socket::send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    while receive(socket.as_fd(), &mut each)? == Progress::More {}
    Ok(())
}

/// Removes the clsact qdisc of an interface, with the filters at it.
pub(super) fn delete_clsact(index: u32) -> io::Result<()> {
    let socket = open(0)?;
    let mut request = Vec::with_capacity(HEADER + TC_HEADER);
    request.extend(((HEADER + TC_HEADER) as u32).to_ne_bytes());
    request.extend(RTM_DELQDISC.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    request.extend(1_u32.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    request.extend([0; 4]);
    request.extend(index.to_ne_bytes());
    request.extend(CLSACT_HANDLE.to_ne_bytes());
    request.extend(CLSACT_PARENT.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    socket::send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    while receive(socket.as_fd(), &mut |_| {})? == Progress::More {}
    Ok(())
}

/// Asks for the id of a network namespace in this one; the kernel answers -1 if it has none.
pub(super) fn namespace_id(namespace: BorrowedFd<'_>) -> io::Result<i32> {
    let socket = open(0)?;
    let length = HEADER + GEN_HEADER + 8;
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(RTM_GETNSID.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request.extend(1_u32.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    request.extend([0; GEN_HEADER]);
    request.extend(8_u16.to_ne_bytes());
    request.extend(NETNSA_FD.to_ne_bytes());
    request.extend(namespace.as_raw_fd().to_ne_bytes());
    socket::send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut id = None;
    receive(socket.as_fd(), &mut |message| {
        if let Message::NamespaceId(found) = message {
            id = Some(found);
        }
    })?;
    id.ok_or_else(|| io::Error::other("the kernel did not say the namespace's id"))
}

/// A socket that receives every change of an interface.
pub(super) fn subscribe_links() -> io::Result<OwnedFd> {
    open(libc::RTMGRP_LINK as u32)
}

/// Receives one datagram and calls `each` for the messages in it.
pub(super) fn receive(socket: BorrowedFd<'_>, each: &mut impl FnMut(Message)) -> io::Result<Progress> {
    // The kernel fills at most 32 KiB of a dump into one datagram (`rtnl_dump`, NLMSG_GOODSIZE).
    let mut buffer = vec![0_u8; 64 << 10];
    let length = loop {
        match socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => break length,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    parse(buffer.get(..length).unwrap_or_default(), each)
}

fn open(groups: u32) -> io::Result<OwnedFd> {
    let socket =
        socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    setsockopt(&socket, sockopt::RcvBuf, &(1 << 20))?;
    socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

fn parse(mut bytes: &[u8], each: &mut impl FnMut(Message)) -> io::Result<Progress> {
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = length as usize;
        let Some(body) = bytes.get(HEADER..length) else { break };
        match kind {
            NLMSG_DONE => return Ok(Progress::Done),
            NLMSG_ERROR => {
                let error = u32_at(body, 0).unwrap_or(0) as i32;
                return if error == 0 { Ok(Progress::Done) } else { Err(io::Error::from_raw_os_error(-error)) };
            }
            RTM_NEWLINK => link(body).into_iter().for_each(|interface| each(Message::Link(interface))),
            RTM_NEWNSID => namespace(body).into_iter().for_each(|id| each(Message::NamespaceId(id))),
            RTM_DELLINK => link(body).into_iter().for_each(|gone| each(Message::Gone(gone.index, gone.name))),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Progress::More)
}

/// The id in a message about a namespace.
fn namespace(body: &[u8]) -> Option<i32> {
    let (_, value) = attributes(body.get(GEN_HEADER..)?).find(|(kind, _)| *kind == NETNSA_NSID)?;
    u32_at(value, 0).map(|id| id as i32)
}

/// The interface a message is about; `None` for a bridge's own notes about its ports and for anything malformed.
fn link(body: &[u8]) -> Option<Interface> {
    if i32::from(*body.first()?) != libc::AF_UNSPEC {
        return None;
    }
    let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
    let (mut name, mut mtu, mut info_kind, mut parent) = (None, 0, String::new(), None);
    let (mut master, mut port_kind, mut lower, mut peer_namespace) = (None, String::new(), None, None);
    let mut address = [0; 6];
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            IFLA_IFNAME => name = Some(text(value)),
            IFLA_MTU => mtu = u32_at(value, 0)?,
            IFLA_ADDRESS => address = value.try_into().unwrap_or_default(),
            IFLA_PARENT_DEV_NAME => parent = Some(text(value)),
            IFLA_MASTER => master = u32_at(value, 0),
            IFLA_LINK => lower = u32_at(value, 0),
            IFLA_LINK_NETNSID => peer_namespace = u32_at(value, 0).map(|id| id as i32),
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_INFO_KIND => info_kind = text(value),
                        IFLA_INFO_SLAVE_KIND => port_kind = text(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let kind = if flags & libc::IFF_LOOPBACK as u32 != 0 {
        Kind::Loopback
    } else {
        match parent {
            Some(device) => Kind::Physical(device),
            None => Kind::Virtual(info_kind),
        }
    };
    Some(Interface {
        index,
        name: name?,
        kind,
        mtu,
        address,
        up: flags & libc::IFF_UP as u32 != 0,
        master: master.map(|index| Master { index, kind: port_kind }),
        lower: lower.filter(|lower| peer_namespace.is_none() && *lower != 0 && *lower != index),
        peer_namespace,
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0_u8; LINK_HEADER];
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        body[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        attributes.iter().for_each(|attribute| body.extend(attribute));
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(RTM_NEWLINK.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    fn parsed(bytes: &[u8]) -> Vec<Interface> {
        let mut found = Vec::new();
        parse(bytes, &mut |message| {
            if let Message::Link(interface) = message {
                found.push(interface);
            }
        })
        .map(drop)
        .unwrap();
        found
    }

    #[test]
    fn kind_and_parent_decide() {
        let veth = message(&[
            attribute(IFLA_IFNAME, b"v0\0"),
            attribute(IFLA_MTU, &1500_u32.to_ne_bytes()),
            attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
            attribute(IFLA_LINK_NETNSID, &0_i32.to_ne_bytes()),
            attribute(IFLA_LINKINFO | 0x8000, &attribute(IFLA_INFO_KIND, b"veth\0")),
        ]);
        let (kind, address) = (Kind::Virtual("veth".into()), [2, 0, 0, 0, 0, 1]);
        let expected = Interface {
            index: 7,
            name: "v0".into(),
            kind,
            mtu: 1500,
            address,
            up: true,
            master: None,
            lower: None,
            peer_namespace: Some(0),
        };
        assert_eq!(parsed(&veth), [expected]);
        let nic = message(&[attribute(IFLA_IFNAME, b"eth0\0"), attribute(IFLA_PARENT_DEV_NAME, b"virtio0\0")]);
        assert_eq!(parsed(&nic)[0].kind, Kind::Physical("virtio0".into()));
    }

    #[test]
    fn masters_and_lower_interfaces_are_told() {
        let port = message(&[
            attribute(IFLA_IFNAME, b"p0\0"),
            attribute(IFLA_LINK, &3_u32.to_ne_bytes()),
            attribute(IFLA_LINK_NETNSID, &0_u32.to_ne_bytes()),
            attribute(IFLA_MASTER, &9_u32.to_ne_bytes()),
            attribute(
                IFLA_LINKINFO,
                &[attribute(IFLA_INFO_KIND, b"veth\0"), attribute(IFLA_INFO_SLAVE_KIND, b"bridge\0")].concat(),
            ),
        ]);
        let port = &parsed(&port)[0];
        assert_eq!(port.master, Some(Master { index: 9, kind: "bridge".into() }));
        assert_eq!((port.port_of().is_some(), port.lower), (true, None), "the peer is in another namespace");
        let upper = message(&[
            attribute(IFLA_IFNAME, b"m0\0"),
            attribute(IFLA_LINK, &3_u32.to_ne_bytes()),
            attribute(IFLA_MASTER, &9_u32.to_ne_bytes()),
            attribute(
                IFLA_LINKINFO,
                &[attribute(IFLA_INFO_KIND, b"macvlan\0"), attribute(IFLA_INFO_SLAVE_KIND, b"vrf\0")].concat(),
            ),
        ]);
        let upper = &parsed(&upper)[0];
        assert_eq!((upper.port_of(), upper.lower, upper.is_a("macvlan")), (None, Some(3), true));
    }

    #[test]
    fn cut_messages_are_left_out() {
        let whole = message(&[attribute(IFLA_IFNAME, b"v0\0")]);
        for end in 0..whole.len() {
            assert_eq!(parsed(&whole[..end]), [], "cut at {end}");
        }
    }
}
