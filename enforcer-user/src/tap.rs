//! The TAP device through which held frames go back into the kernel.
//!
//! A frame written here enters at the device's ingress, where the program `tap_inject` removes the trailer and hands the
//! frame to the interface it came from. The device is persistent, so that a restarted agent takes it over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use common::abi::{INJECTION_MAGIC, Injection};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::link_net;

const DEVICE: &str = "/dev/net/tun";
/// Shortest frame the kernel takes: a link-layer header (`ETH_HLEN`).
const FRAME_MIN: usize = 14;

/// Why there is no TAP, or why it did not take a frame.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No TUN/TAP in this kernel or container.
    #[error("{DEVICE}: {0}; load the module `tun`, or give the container this device")]
    Device(io::Error),
    /// A name the kernel does not accept.
    #[error("TAP name {0:?}: use 1 to 15 letters, digits, `-` or `_`")]
    Name(String),
    /// Another process holds the device.
    #[error("TAP {0} is in use by another process; stop the other agent, or set another `datapath.tap`")]
    Busy(String),
    /// The name belongs to something else.
    #[error("{0} exists and is no TAP device (it is {1}); set another `datapath.tap`")]
    Foreign(String, String),
    /// No permission.
    #[error("TAP {0}: not permitted; run as root or with CAP_NET_ADMIN")]
    Permission(String),
    /// Another failure.
    #[error("TAP {name}: {step}: {source}")]
    System {
        /// The device.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A frame without a link-layer header.
    #[error("TAP {0}: a frame of {1} bytes has no link-layer header")]
    Short(String, usize),
}

/// An open TAP device.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    index: u32,
}

impl Tap {
    /// Makes the device or takes over the one a former agent left, without addresses, and brings it up.
    ///
    /// # Errors
    /// [`TapError`]; a device open in another process is [`TapError::Busy`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        let file = attach(name)?;
        let system = |step| move |source| TapError::System { name: name.to_owned(), step, source };
        ioctl_value(&file, libc::TUNSETPERSIST, 1).map_err(system("make persistent"))?;
        // No link-local address, no router solicitations; the file is missing where IPv6 is off, which serves as well.
        match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("switch IPv6 off")(error)),
        }
        set_up(name).map_err(system("bring up"))?;
        let index = nix::net::if_::if_nametoindex(name).map_err(|error| system("find its index")(error.into()))?;
        Ok(Self { file, name: name.to_owned(), index })
    }

    /// Its interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands a frame (from its link-layer header on) to interface `ifindex`; `flags` are `common::abi::INJECT_*`.
    ///
    /// `count` is an entry of `REASON_STATS` ([`common::abi::reason_stat`]) to count it under, 0 for none.
    ///
    /// One system call; the frame may be longer than the MTU of the TAP.
    ///
    /// # Errors
    /// [`TapError::Short`], or what the kernel reports (`EIO` if somebody took the device down).
    pub fn inject(&self, frame: &[u8], ifindex: u32, flags: u32, count: u32) -> Result<(), TapError> {
        if frame.len() < FRAME_MIN {
            return Err(TapError::Short(self.name.clone(), frame.len()));
        }
        let trailer = trailer(&Injection { magic: INJECTION_MAGIC, ifindex, flags, count });
        let whole = frame.len() + trailer.len();
        let failed = |source| TapError::System { name: self.name.clone(), step: "write a frame", source };
        match (&self.file).write_vectored(&[IoSlice::new(frame), IoSlice::new(&trailer)]) {
            Ok(written) if written == whole => Ok(()),
            Ok(_) => Err(failed(io::ErrorKind::WriteZero.into())),
            Err(error) => Err(failed(error)),
        }
    }

    /// Counts under an entry of `REASON_STATS` what no frame is sent for; one that is lost is logged.
    pub fn count(&self, entry: u32) {
        // Redirected to no interface, so dropped, after it was counted.
        if let Err(error) = self.inject(&[0; FRAME_MIN], 0, 0, entry) {
            tracing::debug!(%error, "a verdict was not counted");
        }
    }

    /// Removes the device; whether there was one.
    ///
    /// # Errors
    /// [`TapError::Busy`] while an agent holds it, [`TapError::Foreign`] if the name belongs to something else.
    pub fn remove(name: &str) -> Result<bool, TapError> {
        let system = |step, source| TapError::System { name: name.to_owned(), step, source };
        if link_net::by_name(name).map_err(|error| system("look it up", error))?.is_none() {
            return Ok(false);
        }
        let file = attach(name)?;
        ioctl_value(&file, libc::TUNSETPERSIST, 0).map_err(|error| system("remove", error))?;
        Ok(true)
    }
}

fn trailer(injection: &Injection) -> [u8; size_of::<Injection>()] {
    let words = [injection.magic, injection.ifindex, injection.flags, injection.count];
    let mut bytes = [0; size_of::<Injection>()];
    for (at, word) in bytes.chunks_exact_mut(4).zip(words) {
        at.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn attach(name: &str) -> Result<File, TapError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(plain) {
        return Err(TapError::Name(name.to_owned()));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
        .map_err(TapError::Device)?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives until the call returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 {
        return Ok(file);
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EBUSY) => TapError::Busy(name.to_owned()),
        Some(libc::EPERM) => TapError::Permission(name.to_owned()),
        Some(libc::EINVAL) => match link_net::by_name(name) {
            Ok(Some(other)) => TapError::Foreign(name.to_owned(), other.kind.name().to_owned()),
            _ => TapError::System { name: name.to_owned(), step: "attach", source: error },
        },
        _ => TapError::System { name: name.to_owned(), step: "attach", source: error },
    })
}

fn set_up(name: &str) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = request(name);
    // SAFETY: SIOCGIFFLAGS reads and writes one `ifreq`, which lives until the call returns.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above filled this member of the union; it is a plain integer in any case.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_NOARP) as i16;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives until the call returns.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn ioctl_value(file: &File, command: libc::c_ulong, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the commands passed here take an integer, not a pointer.
    if unsafe { libc::ioctl(file.as_raw_fd(), command as libc::Ioctl, value) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A request about an interface whose name was checked to fit.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is made of integers, arrays and pointers that may be null.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_names_are_refused() {
        for name in ["", "a/b", "a b", "sixteen-letters-", "enf%d"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn a_name_of_something_else_is_refused() {
        let error = Tap::open("lo").unwrap_err().to_string();
        assert_eq!(error, "lo exists and is no TAP device (it is loopback); set another `datapath.tap`");
    }

    #[test]
    fn trailer_is_the_struct() {
        let bytes = trailer(&Injection { magic: INJECTION_MAGIC, ifindex: 3, flags: 5, count: 9 });
        assert_eq!(bytes[..4], INJECTION_MAGIC.to_ne_bytes());
        assert_eq!(bytes[4..8], 3_u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 5_u32.to_ne_bytes());
        assert_eq!(bytes[12..], 9_u32.to_ne_bytes());
    }
}
