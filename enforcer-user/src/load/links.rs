//! Pinned links: taken over with the new program, or made anew.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};

use super::LoadError;
use crate::sys::{self, LinkInfo};

/// How a program came to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// There was no usable link.
    Attached,
    /// A link of a former agent runs the new program now; there was no moment without one.
    TakenOver,
}

/// Where a link must be for it to be taken over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// `sys::LINK_*`.
    pub(super) kind: u32,
    /// Interface index or cgroup id.
    pub(super) target: u64,
}

/// Makes the link pinned at `pin` run `program`, or pins the one that `attach` makes.
pub(super) fn place<L: Unpinned>(
    pin: &Path,
    place: Place,
    program: BorrowedFd<'_>,
    attach: impl FnOnce() -> Result<L, LoadError>,
) -> Result<Placed, LoadError> {
    let failed = |step| move |source| LoadError::Path { path: pin.to_owned(), step, source };
    let stale = match sys::obj_get(pin) {
        Ok(link) => {
            let info = sys::link_info(link.as_fd()).map_err(failed("read"))?;
            if info.kind == place.kind && info.target == place.target {
                match sys::link_update(link.as_fd(), program) {
                    Ok(()) => return Ok(Placed::TakenOver),
                    // The interface or cgroup went away between the two calls.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    Err(error) => return Err(failed("replace the program of the link")(error)),
                }
            }
            true
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(failed("open")(error)),
    };
    let link = attach()?;
    if stale {
        remove(pin)?;
    }
    // Dropping the descriptor leaves the link to its pin.
    link.pin_to(pin).map_err(failed("pin"))?;
    Ok(Placed::Attached)
}

/// Pins a link of a kind that takes no other program in the place of the one that may be there.
pub(super) fn replace(pin: &Path, link: FdLink) -> Result<(), LoadError> {
    let failed = |step| move |source| LoadError::Path { path: pin.to_owned(), step, source };
    let mut fresh = pin.as_os_str().to_owned();
    // No dots on a bpffs.
    fresh.push("_new");
    let fresh = PathBuf::from(fresh);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    link.pin_to(&fresh).map_err(failed("pin"))?;
    fs::rename(&fresh, pin).map_err(failed("replace"))
}

/// A link that was just made.
pub(super) trait Unpinned {
    /// Pins it.
    fn pin_to(self, path: &Path) -> io::Result<()>;
}

impl Unpinned for FdLink {
    fn pin_to(self, path: &Path) -> io::Result<()> {
        self.pin(path).map(drop).map_err(io::Error::other)
    }
}

/// A kind of link that aya does not pin.
impl Unpinned for OwnedFd {
    fn pin_to(self, path: &Path) -> io::Result<()> {
        sys::obj_pin(self.as_fd(), path)
    }
}

/// Detaches a pinned link, at once, and removes its pin; whether there was one.
pub(super) fn remove(pin: &Path) -> Result<bool, LoadError> {
    match sys::obj_get(pin) {
        // One that hangs nowhere any more, or of a kind that goes with its last descriptor only, is no obstacle.
        Ok(link) => drop(sys::link_detach(link.as_fd())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(LoadError::Path { path: pin.to_owned(), step: "open", source }),
    }
    fs::remove_file(pin).map_err(|source| LoadError::Path { path: pin.to_owned(), step: "remove", source })?;
    Ok(true)
}

/// The link pinned at `pin` if it still hangs somewhere.
pub(super) fn live(pin: &Path) -> Option<FdLink> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    let info = sys::link_info(sys::obj_get(pin).ok()?.as_fd()).ok()?;
    (info.target != 0).then_some(link)
}

/// Names of the pinned links and what they are, sorted by name.
///
/// # Errors
/// If the directory or a pin cannot be read.
pub fn pinned(links: &Path) -> Result<Vec<(String, LinkInfo)>, LoadError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LoadError::Path { path, step: "read", source }
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(links).map_err(failed(links))? {
        let path = entry.map_err(failed(links))?.path();
        let link = sys::obj_get(&path).map_err(failed(&path))?;
        let info = sys::link_info(link.as_fd()).map_err(failed(&path))?;
        found.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), info));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}
