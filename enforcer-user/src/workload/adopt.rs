//! Sockets that are older than their PU: found through their processes, marked in the kernel.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt};

use crate::map_write::{MapWriteError, Sockets};
use crate::sys;

/// A cgroup whose sockets could not be adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// No such cgroup, or not readable.
    #[error("cgroup {path}: {source}; give the path of a cgroup v2 directory")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A process whose descriptors may not be looked at: its sockets would stay unmanaged unnoticed.
    #[error("process {pid}: {source}; the agent needs CAP_SYS_PTRACE, and CAP_DAC_OVERRIDE for other users' processes")]
    Denied {
        /// The process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The map did not take a socket.
    #[error(transparent)]
    Map(#[from] MapWriteError),
}

/// What was found and marked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Processes looked at.
    pub processes: usize,
    /// Internet sockets marked; one shared by several processes counts once.
    pub sockets: usize,
    /// Listening sockets among them: protocol and address.
    pub listeners: Vec<Listener>,
    /// Descriptors that were gone or closed before they could be looked at.
    pub vanished: usize,
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Bound address and port.
    pub address: SocketAddr,
    /// Whether an IPv6 socket refuses IPv4.
    pub v6_only: bool,
}

/// How often a cgroup is looked through at most. Each look finds only what was handed on during the one before, so more than
/// a few mean that somebody plays hide-and-seek.
const PASSES: usize = 32;

/// Marks all internet sockets of the processes in `cgroup` and its descendants as those of `pu`; 0 makes them unmanaged.
///
/// Processes come, fork and go meanwhile, and take sockets with them: the cgroup is looked through until a look finds
/// nothing to mark. What is created meanwhile the kernel marks itself, as long as the cgroup is in `PU_CGROUPS` (for 0: no
/// longer in it) before this is called. A process that may not be looked into does not keep the others from being marked.
///
/// # Errors
/// [`AdoptError::Cgroup`] if the directory cannot be read, [`AdoptError::Denied`] if a process cannot be looked into,
/// [`AdoptError::Map`] if the kernel refuses a mark.
pub fn adopt(cgroup: &Path, pu: u32, sockets: &Sockets) -> Result<Adopted, AdoptError> {
    let mut adopted = Adopted::default();
    let mut found = Found::default();
    let quiet = until_quiet(|| {
        adopted.processes = 0;
        pass(cgroup, pu, sockets, &mut adopted, &mut found)
    })?;
    if !quiet {
        tracing::warn!(cgroup = %cgroup.display(), pu, "processes keep handing sockets on; some may not bear their PU");
    }
    match found.denied {
        Some((pid, source)) => Err(AdoptError::Denied { pid, source }),
        None => Ok(adopted),
    }
}

/// Sockets of a part of the hierarchy that belong to no PU in it.
pub struct Rest<'a> {
    /// The mark they bear; 0: none.
    pub from: u32,
    /// The PU that is to have them; 0: none.
    pub to: u32,
    /// Network namespace by its cookie; sockets elsewhere are another's.
    pub namespace: u64,
    /// Whether a cgroup, by its id, is a PU or waits to be sorted out.
    pub managed: &'a dyn Fn(u64) -> bool,
}

impl Rest<'_> {
    /// Marks them, those of this process excepted; how many.
    ///
    /// # Errors
    /// As [`adopt`]; processes that may not be looked into are logged and left.
    pub fn adopt(&self, root: &Path, sockets: &Sockets) -> Result<usize, AdoptError> {
        let mut marked = 0;
        until_quiet(|| {
            let now = self.pass(root, sockets)?;
            marked += now;
            Ok(now)
        })?;
        Ok(marked)
    }

    fn pass(&self, root: &Path, sockets: &Sockets) -> Result<usize, AdoptError> {
        let mut marked = 0;
        for pid in self.processes(root)? {
            let Ok(pidfd) = sys::pidfd_open(pid) else { continue };
            let descriptors = match socket_descriptors(pid) {
                Ok(descriptors) => descriptors,
                Err(error) => {
                    tracing::warn!(process = pid, %error, "its sockets are not the host PU's");
                    continue;
                }
            };
            for (number, _) in descriptors {
                let Ok(socket) = sys::pidfd_getfd(pidfd.as_fd(), number) else { continue };
                let here = sys::socket_netns_cookie(socket.as_fd()).is_ok_and(|cookie| cookie == self.namespace);
                if !is_internet(socket.as_fd()) || !here {
                    continue;
                }
                if sockets.get(socket.as_fd())?.unwrap_or(0) == self.from {
                    sockets.remark(socket.as_fd(), self.from, self.to)?;
                    marked += 1;
                }
            }
        }
        Ok(marked)
    }

    fn processes(&self, root: &Path) -> Result<Vec<u32>, AdoptError> {
        let failed = |source| AdoptError::Cgroup { path: root.to_owned(), source };
        let mut all = pids(root).map_err(failed)?;
        let mut waiting = children(root).map_err(failed)?;
        while let Some(directory) = waiting.pop() {
            if fs::metadata(&directory).is_ok_and(|meta| (self.managed)(meta.ino())) {
                continue;
            }
            all.extend(pids(&directory).unwrap_or_default());
            waiting.extend(children(&directory).unwrap_or_default());
        }
        all.sort_unstable();
        all.dedup();
        all.retain(|pid| *pid != std::process::id());
        Ok(all)
    }
}

/// Repeats a look until it marks nothing; false if it still does after [`PASSES`].
fn until_quiet(mut look: impl FnMut() -> Result<usize, AdoptError>) -> Result<bool, AdoptError> {
    for _ in 0..PASSES {
        if look()? == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What all looks together saw.
#[derive(Default)]
struct Found {
    inodes: HashSet<u64>,
    denied: Option<(u32, io::Error)>,
}

/// One look: how many sockets bore another PU until now.
fn pass(
    cgroup: &Path,
    pu: u32,
    sockets: &Sockets,
    adopted: &mut Adopted,
    found: &mut Found,
) -> Result<usize, AdoptError> {
    let mut marked = 0;
    let mut seen = HashSet::new();
    for pid in processes(cgroup)? {
        adopted.processes += 1;
        let Ok(pidfd) = sys::pidfd_open(pid) else {
            adopted.vanished += 1;
            continue;
        };
        let descriptors = match socket_descriptors(pid) {
            Ok(descriptors) => descriptors,
            Err(source) => {
                found.denied.get_or_insert((pid, source));
                continue;
            }
        };
        for (number, inode) in descriptors {
            if seen.contains(&inode) {
                continue;
            }
            let socket = match sys::pidfd_getfd(pidfd.as_fd(), number) {
                Ok(socket) => socket,
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    found.denied.get_or_insert((pid, source));
                    break;
                }
                Err(_) => {
                    adopted.vanished += 1;
                    continue;
                }
            };
            // The number may have been re-used since it was read: only what the descriptor itself says counts.
            if !is_internet(socket.as_fd()) {
                continue;
            }
            seen.insert(inode);
            if found.inodes.insert(inode) {
                adopted.sockets += 1;
                adopted.listeners.extend(listener(socket.as_fd()));
            }
            let present = sockets.get(socket.as_fd())?.unwrap_or(0);
            if present != pu {
                sockets.remark(socket.as_fd(), present, pu)?;
                marked += 1;
            }
        }
    }
    Ok(marked)
}

/// Process ids in a cgroup and its descendants.
///
/// # Errors
/// [`AdoptError::Cgroup`] if the directory itself cannot be read; descendants that vanish are left out.
pub fn processes(cgroup: &Path) -> Result<Vec<u32>, AdoptError> {
    let failed = |source| AdoptError::Cgroup { path: cgroup.to_owned(), source };
    let mut pids = pids(cgroup).map_err(failed)?;
    let mut waiting = children(cgroup).map_err(failed)?;
    while let Some(directory) = waiting.pop() {
        pids.extend(self::pids(&directory).unwrap_or_default());
        waiting.extend(children(&directory).unwrap_or_default());
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn pids(directory: &Path) -> io::Result<Vec<u32>> {
    let read = |file| fs::read_to_string(directory.join(file));
    let text = match read("cgroup.procs") {
        // A threaded cgroup lists threads only; every thread of a process has the same descriptors.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => read("cgroup.threads")?,
        other => other?,
    };
    // A process of another pid namespace is listed as 0.
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect())
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.flatten();
    Ok(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect())
}

/// Descriptor numbers of a process that are sockets, with the inode that stands for the socket; none if it has ended.
fn socket_descriptors(pid: u32) -> io::Result<Vec<(RawFd, u64)>> {
    let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        Err(_) => return Ok(Vec::new()),
    };
    let socket = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, inode))
    };
    Ok(entries.flatten().filter_map(socket).collect())
}

fn is_internet(socket: BorrowedFd<'_>) -> bool {
    matches!(domain(socket), Some(libc::AF_INET | libc::AF_INET6))
}

fn domain(socket: BorrowedFd<'_>) -> Option<i32> {
    sys::socket_option(socket, libc::SO_DOMAIN).ok()
}

fn listener(socket: BorrowedFd<'_>) -> Option<Listener> {
    if !getsockopt(&socket, sockopt::AcceptConn).ok()?
        || sys::socket_option(socket, libc::SO_PROTOCOL).ok()? != libc::IPPROTO_TCP
    {
        return None;
    }
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    let v6_only = domain(socket) == Some(libc::AF_INET6) && getsockopt(&socket, sockopt::Ipv6V6Only).unwrap_or(false);
    let address = match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddr::V4((*v4).into()),
        (None, Some(v6)) => SocketAddr::V6((*v6).into()),
        (None, None) => return None,
    };
    Some(Listener { address, v6_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_looked_through_until_nothing_new_turns_up() {
        let mut handed_on = [3, 1, 1, 0, 5].into_iter();
        assert!(until_quiet(|| Ok(handed_on.next().unwrap())).unwrap());
        assert_eq!(handed_on.next(), Some(5), "not once more than needed");
        let mut looks = 0;
        let endless = until_quiet(|| {
            looks += 1;
            Ok(1)
        });
        assert!(!endless.unwrap());
        assert_eq!(looks, PASSES, "not for ever");
        let gone = || AdoptError::Cgroup { path: PathBuf::new(), source: io::Error::other("gone") };
        assert!(until_quiet(|| Err(gone())).is_err());
    }
}
