//! Attachment for kernels without tcx (before 6.6): filters at a clsact qdisc.
//!
//! A filter is no link and cannot be pinned; it stays by itself, and its fixed priority and handle are what a restarted
//! agent finds it by. Directories beside the pins remember where filters are and which qdiscs are ours to remove.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::links::Link;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

use super::LoadError;
use super::links::Placed;
use crate::link_net::{self, Interface};

const HANDLE: TcHandle = TcHandle::new(0, 1);
/// Name of the marker of a qdisc that the enforcer made.
const QDISC: &str = "_qdisc";

/// Makes `program` the filter of this direction and priority.
pub(super) fn place(
    marks: &Path,
    program: &mut SchedClassifier,
    name: &'static str,
    interface: &Interface,
    direction: TcAttachType,
    priority: u16,
) -> Result<Placed, LoadError> {
    let failed = |error: &dyn std::error::Error| LoadError::Attach {
        program: name,
        place: interface.name.clone(),
        reason: format!("clsact: {error}"),
    };
    match tc::qdisc_add_clsact(&interface.name) {
        Ok(()) => mark(&marks.join(format!("if{}{QDISC}", interface.index)))?,
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(failed(&error)),
    }
    mark(&marks.join(format!("if{}", interface.index)))?;
    let former = SchedClassifierLink::attached(&interface.name, direction, priority, HANDLE, None)
        .map_err(|error| failed(&error))?;
    let (result, placed) = match program.attach_to_link(former) {
        Ok(link) => (Ok(link), Placed::TakenOver),
        Err(_) => {
            let options = TcAttachOptions::Netlink(NlOptions { priority, handle: HANDLE, classid: None });
            (program.attach_with_options(&interface.name, direction, options), Placed::Attached)
        }
    };
    let link = result.and_then(|link| program.take_link(link)).map_err(|error| failed(&error))?;
    // Dropping it would remove the filter.
    std::mem::forget(link);
    Ok(placed)
}

/// Whether filters of ours are, or were, at this interface: what is elsewhere is somebody else's.
pub(super) fn is_marked(marks: &Path, index: u32) -> bool {
    marks.join(format!("if{index}")).exists()
}

/// Removes one filter; whether it was there.
pub(super) fn remove(interface: &str, direction: TcAttachType, priority: u16) -> bool {
    SchedClassifierLink::attached(interface, direction, priority, HANDLE, None)
        .map_err(ProgramError::from)
        .and_then(Link::detach)
        .is_ok()
}

/// Removes the filters at the marked interfaces, the qdiscs that are ours, and the marks.
pub(super) fn remove_all(marks: &Path, filters: &[(TcAttachType, u16)]) -> Result<(), LoadError> {
    let Ok(entries) = fs::read_dir(marks) else { return Ok(()) };
    for entry in entries.flatten() {
        let mark = entry.file_name().to_string_lossy().into_owned();
        let (number, ours) = match mark.strip_suffix(QDISC) {
            Some(number) => (number, true),
            None => (mark.as_str(), false),
        };
        let index = number.strip_prefix("if").and_then(|index| index.parse().ok()).unwrap_or(0);
        if let Some(interface) = link_net::by_index(index).map_err(LoadError::Interfaces)? {
            for (direction, priority) in filters {
                remove(&interface.name, *direction, *priority);
            }
            if ours {
                match link_net::delete_clsact(index) {
                    Ok(()) => {}
                    // Somebody removed it already.
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {}
                    Err(source) => {
                        return Err(LoadError::Path { path: entry.path(), step: "remove the clsact of", source });
                    }
                }
            }
        }
        fs::remove_dir(entry.path()).map_err(|source| LoadError::Path {
            path: entry.path(),
            step: "remove",
            source,
        })?;
    }
    Ok(())
}

fn mark(path: &Path) -> Result<(), LoadError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(LoadError::Path { path: path.to_owned(), step: "create", source }),
    }
}
