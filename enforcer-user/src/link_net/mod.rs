//! Interfaces of the agent's network namespace: list, tell physical from virtual, watch.

mod netlink;
pub mod sysctl;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::EventFd;

use netlink::Message;

/// What is behind an interface, as far as the enforcer cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `lo`.
    Loopback,
    /// Backed by a device; the name of that device (`0000:00:03.0`, `virtio0`).
    Physical(String),
    /// Made of software; the kernel's name of the kind (`veth`, `bridge`, `tun`), empty if it gives none.
    Virtual(String),
}

impl Kind {
    /// Short name for logs and tables.
    pub fn name(&self) -> &str {
        match self {
            Self::Loopback => "loopback",
            Self::Physical(_) => "physical",
            Self::Virtual(kind) if kind.is_empty() => "virtual",
            Self::Virtual(kind) => kind,
        }
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Index, unique in the namespace until it is gone.
    pub index: u32,
    /// Name.
    pub name: String,
    /// What is behind it.
    pub kind: Kind,
    /// MTU, bytes.
    pub mtu: u32,
    /// Link-layer address; zeroes where there is none of six bytes.
    pub address: [u8; 6],
    /// Whether it is administratively up.
    pub up: bool,
    /// The interface that takes all its packets, if it is enslaved.
    pub master: Option<Master>,
    /// Index of the interface it lies on, if that is in this network namespace too (VLAN, macvlan, ipvlan).
    pub lower: Option<u32>,
    /// Id, in this network namespace, of the namespace that its other end is in (a veth's); `None` if that is here.
    pub peer_namespace: Option<i32>,
}

/// What an interface is enslaved to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its index.
    pub index: u32,
    /// The kernel's name of its kind (`bridge`, `bond`, `vrf`).
    pub kind: String,
}

impl Interface {
    /// The master that the stack sees packets of this interface at, instead of here. A VRF is none: it only routes.
    pub fn port_of(&self) -> Option<&Master> {
        self.master.as_ref().filter(|master| ["bridge", "bond", "team", "openvswitch"].contains(&master.kind.as_str()))
    }

    /// Whether it is of this kind of virtual interface.
    pub fn is_a(&self, kind: &str) -> bool {
        matches!(&self.kind, Kind::Virtual(own) if own == kind)
    }
}

/// A change of the set of interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// New, renamed, or another property changed; may repeat what is known.
    Present(Interface),
    /// Gone: index and last name.
    Gone(u32, String),
}

/// All interfaces of this network namespace, by index.
///
/// # Errors
/// What the netlink socket reports; `EPERM`/`EAFNOSUPPORT` in a confined process.
pub fn list() -> io::Result<Vec<Interface>> {
    let mut found = Vec::new();
    netlink::dump_links(|message| {
        if let Message::Link(interface) = message {
            found.push(interface);
        }
    })?;
    found.sort_by_key(|interface: &Interface| interface.index);
    Ok(found)
}

/// The interface of this name, if there is one.
///
/// # Errors
/// As [`list`].
pub fn by_name(name: &str) -> io::Result<Option<Interface>> {
    Ok(list()?.into_iter().find(|interface| interface.name == name))
}

/// The interface of this index, if there is one.
///
/// # Errors
/// As [`list`].
pub fn by_index(index: u32) -> io::Result<Option<Interface>> {
    Ok(list()?.into_iter().find(|interface| interface.index == index))
}

/// The id that this network namespace has for another one: the `peer_namespace` of interfaces that lead there. `None` if no
/// interface does.
///
/// # Errors
/// `EINVAL` if the descriptor is no network namespace's.
pub fn namespace_id(namespace: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    netlink::namespace_id(namespace).map(|id| (id >= 0).then_some(id))
}

/// Removes the clsact qdisc of an interface, with the filters at it.
///
/// # Errors
/// `ENOENT` or `EINVAL` if there is none, `ENODEV` if there is no such interface.
pub fn delete_clsact(index: u32) -> io::Result<()> {
    netlink::delete_clsact(index)
}

/// A thread that reports changes; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// Calls `on_change` for every interface there is and then for every change, from a thread of its own.
///
/// The subscription exists before the first report, so nothing is missed in between; a report may repeat.
///
/// # Errors
/// What the netlink socket or the thread's creation reports.
pub fn watch(mut on_change: impl FnMut(Change) + Send + 'static) -> io::Result<Watch> {
    let socket = netlink::subscribe_links()?;
    let stop = EventFd::new().map_err(io::Error::from)?;
    let stop_in_thread = stop.as_fd().try_clone_to_owned()?;
    let present = list()?;
    let thread = thread::Builder::new().name("interfaces".into()).spawn(move || {
        present.into_iter().for_each(|interface| on_change(Change::Present(interface)));
        watch_until(&socket, &stop_in_thread, on_change);
    })?;
    Ok(Watch { stop, thread: Some(thread) })
}

fn watch_until(socket: &OwnedFd, stop: &OwnedFd, mut on_change: impl FnMut(Change)) {
    loop {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return tracing::error!(%error, "interfaces are no longer watched"),
            Ok(_) => {}
        }
        if fds[1].any().unwrap_or(true) {
            return;
        }
        let received = netlink::receive(socket.as_fd(), &mut |message| match message {
            Message::Link(interface) => on_change(Change::Present(interface)),
            Message::Gone(index, name) => on_change(Change::Gone(index, name)),
            Message::NamespaceId(_) => {}
        });
        match received {
            Ok(_) => {}
            // The kernel dropped messages because this thread was too slow: look at everything again.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => match list() {
                Ok(present) => present.into_iter().for_each(|interface| on_change(Change::Present(interface))),
                Err(error) => tracing::warn!(%error, "interfaces cannot be listed"),
            },
            Err(error) => return tracing::error!(%error, "interfaces are no longer watched"),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let stopped = self.stop.write(1).is_ok();
        if let (true, Some(thread)) = (stopped, self.thread.take()) {
            // A panic in the callback was reported by the panic hook already.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_with_its_kind() {
        let lo = by_name("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.kind.clone()), (1, Kind::Loopback));
        assert_eq!(by_index(1).unwrap().unwrap(), lo);
        assert_eq!(by_name("no-such-interface").unwrap(), None);
    }
}
