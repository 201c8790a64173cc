//! A man in the middle: between a host and the switch, he sees, changes, drops, holds, repeats and invents segments.
//!
//! The host's cable is taken out of the switch and plugged into him; he carries frames by two packet sockets. Whatever
//! he touches leaves with right lengths and checksums, so that only a check of identity can find out.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socket};

use crate::host::Host;
use crate::segment::Segment;

/// Which way a frame travels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// From the host to the switch.
    FromHost,
    /// From the switch to the host.
    ToHost,
}

/// What the man in the middle does with a segment after he looked at it, and perhaps changed it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It goes on.
    Forward,
    /// It does not.
    Drop,
}

/// A segment he saw.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Where it was going.
    pub way: Way,
    /// As it came.
    pub original: Segment,
    /// As it went on, if it did.
    pub forwarded: Option<Segment>,
}

type Script = Box<dyn FnMut(Way, &mut Segment) -> Fate + Send>;

/// The man in the middle of a host's cable. He goes when this is dropped, and the cable is as before.
pub struct Mitm {
    host: Host,
    mind: Arc<Mutex<Mind>>,
    cables: Arc<[OwnedFd; 2]>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Mind {
    script: Script,
    seen: Vec<Sighting>,
    datagrams: Vec<(Way, Vec<u8>)>,
    deaf: Option<u16>,
}

impl fmt::Debug for Mitm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mitm").field("host", &self.host.name()).finish_non_exhaustive()
    }
}

impl Host {
    /// Puts a man in the middle of this host's cable. He lets everything pass until he gets a script.
    pub fn man_in_the_middle(&self) -> Result<Mitm> {
        let name = self.name();
        let switch = &self.shared().switch;
        switch.ip(&format!(
            "link add w-{name} mtu {mtu} type veth peer name m-{name} mtu {mtu}\nlink set p-{name} nomaster\n\
             link set m-{name} master br0 up\nlink set w-{name} up\n",
            mtu = self.shared().mtu()
        ))?;
        let cables = switch.enter(|| Ok([cable(&format!("p-{name}"))?, cable(&format!("w-{name}"))?]))?;
        let cables = Arc::new(cables);
        let mind = Arc::new(Mutex::new(Mind {
            script: Box::new(|_, _| Fate::Forward),
            seen: Vec::new(),
            datagrams: Vec::new(),
            deaf: None,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (cables, mind, stop) = (cables.clone(), mind.clone(), stop.clone());
            std::thread::Builder::new().name("mitm".into()).spawn(move || carry(&cables, &mind, &stop))?
        };
        Ok(Mitm { host: self.clone(), mind, cables, stop, thread: Some(thread) })
    }
}

impl Mitm {
    /// From now on `script` decides about every TCP segment; what was seen so far is forgotten. Other frames pass, but for what
    /// [`Self::block_udp`] says.
    pub fn play(&self, script: impl FnMut(Way, &mut Segment) -> Fate + Send + 'static) {
        let mut mind = self.mind.lock().unwrap_or_else(PoisonError::into_inner);
        *mind = Mind { script: Box::new(script), seen: Vec::new(), datagrams: Vec::new(), ..*mind };
    }

    /// As [`Self::play`], but what was seen stays.
    pub fn play_on(&self, script: impl FnMut(Way, &mut Segment) -> Fate + Send + 'static) {
        self.mind.lock().unwrap_or_else(PoisonError::into_inner).script = Box::new(script);
    }

    /// Every TCP segment seen under the present script, in order.
    pub fn seen(&self) -> Vec<Sighting> {
        self.mind.lock().unwrap_or_else(PoisonError::into_inner).seen.clone()
    }

    /// From now on no UDP datagram from or to this port passes.
    pub fn block_udp(&self, port: u16) {
        self.mind.lock().unwrap_or_else(PoisonError::into_inner).deaf = Some(port);
    }

    /// The frame of every UDP datagram from or to this port seen since the present script began, in order, whether or not it
    /// passed.
    pub fn datagrams(&self, port: u16) -> Vec<(Way, Vec<u8>)> {
        let mind = self.mind.lock().unwrap_or_else(PoisonError::into_inner);
        mind.datagrams.iter().filter(|(_, frame)| is_udp(frame, port)).cloned().collect()
    }

    /// Sends a frame of his own making; it is not among what was seen.
    pub fn send(&self, way: Way, frame: &[u8]) -> Result<()> {
        let cable = &self.cables[usize::from(way == Way::FromHost)];
        send(cable.as_raw_fd(), frame, MsgFlags::empty()).context("the man in the middle cannot send")?;
        Ok(())
    }

    /// Sends a segment of his own making; it is not among what was seen.
    pub fn inject(&self, way: Way, segment: &Segment) -> Result<()> {
        self.send(way, &segment.to_frame())
    }
}

impl Drop for Mitm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let name = self.host.name();
        let _ = self.host.shared().switch.ip(&format!("link del w-{name}\nlink set p-{name} master br0\n"));
    }
}

fn carry(cables: &[OwnedFd; 2], mind: &Mutex<Mind>, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [0, 1].map(|at| PollFd::new(cables[at].as_fd(), PollFlags::POLLIN));
        if poll(&mut ready, PollTimeout::from(20_u8)).is_err() {
            continue;
        }
        for (from, way) in [(0, Way::FromHost), (1, Way::ToHost)] {
            while let Ok(count) = recv(cables[from].as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                if let Some(frame) = decide(&buffer[..count], way, mind) {
                    // A frame the other side will not take is lost, as on any cable.
                    let _ = send(cables[1 - from].as_raw_fd(), &frame, MsgFlags::empty());
                }
            }
        }
    }
}

fn decide(frame: &[u8], way: Way, mind: &Mutex<Mind>) -> Option<Vec<u8>> {
    let mut mind = mind.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(original) = Segment::parse(frame) else {
        mind.datagrams.push((way, frame.to_vec()));
        return (!mind.deaf.is_some_and(|port| is_udp(frame, port))).then(|| frame.to_vec());
    };
    let mut segment = original.clone();
    let fate = (mind.script)(way, &mut segment);
    let forwarded = (fate == Fate::Forward).then_some(segment);
    let frame = forwarded.as_ref().map(Segment::to_frame);
    mind.seen.push(Sighting { way, original, forwarded });
    frame
}

/// Whether this is a UDP datagram, right behind its IP header, from or to this port.
fn is_udp(frame: &[u8], port: u16) -> bool {
    const UDP: u8 = 17;
    let at = match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.get(23) == Some(&UDP) => 34,
        Some([0x86, 0xdd]) if frame.get(20) == Some(&UDP) => 54,
        _ => return false,
    };
    frame.get(at..at + 4).is_some_and(|ports| ports[..2] == port.to_be_bytes() || ports[2..] == port.to_be_bytes())
}

/// A packet socket on an interface, which does not hear what it says itself.
fn cable(interface: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    // Bound to all protocols only once it is bound to one interface: before that it would hear every one.
    let descriptor = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let yes: libc::c_int = 1;
    // SAFETY: the descriptor is open; the option's value is a live int of the length given.
    let set = unsafe {
        libc::setsockopt(
            descriptor.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const yes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(set).context("cannot make a packet socket deaf to itself")?;
    // SAFETY: sockaddr_ll is plain data, for which zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index)?;
    // SAFETY: the descriptor is open; the address is live and of the length given.
    let bound = unsafe {
        libc::bind(
            descriptor.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    Errno::result(bound).with_context(|| format!("cannot listen on {interface}"))?;
    Ok(descriptor)
}
