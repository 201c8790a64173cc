//! `PU_SOCKETS`: the PU a socket belongs to, kept in the socket itself.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use common::abi::PU_UNSORTED;

use super::table::Pinned;
use super::{MapWriteError, SortedOut};
use crate::sys;

/// Socket storage, reached by a descriptor of the socket.
#[derive(Debug)]
pub struct Sockets {
    map: Pinned,
    sorted_out: SortedOut,
}

impl Sockets {
    pub(super) fn open(directory: &Path) -> Result<Self, MapWriteError> {
        let map = Pinned::open(directory, "PU_SOCKETS", size_of::<i32>(), size_of::<u32>())?;
        Ok(Self { map, sorted_out: SortedOut::default() })
    }

    /// What became of sockets that were not sorted out.
    pub fn sorted_out(&self) -> &SortedOut {
        &self.sorted_out
    }

    /// Makes `to` the PU of a socket that bore `from`, and notes if it is sorted out by that.
    ///
    /// # Errors
    /// As [`Sockets::get`].
    pub fn remark(&self, socket: BorrowedFd<'_>, from: u32, to: u32) -> Result<(), MapWriteError> {
        self.insert(socket, to)?;
        if from == PU_UNSORTED || to == PU_UNSORTED {
            self.sorted_out.note(socket, to);
        }
        Ok(())
    }

    /// The PU of this socket.
    ///
    /// # Errors
    /// `ENOTSOCK` within [`MapWriteError::System`] if it is no socket, or what else the kernel reports.
    pub fn get(&self, socket: BorrowedFd<'_>) -> Result<Option<u32>, MapWriteError> {
        sys::map_lookup(self.map.fd(), &socket.as_raw_fd()).map_err(self.map.failed("look up"))
    }

    /// Makes `pu` the PU of this socket, whoever else holds it.
    ///
    /// # Errors
    /// As [`Sockets::get`].
    pub fn insert(&self, socket: BorrowedFd<'_>, pu: u32) -> Result<(), MapWriteError> {
        sys::map_update(self.map.fd(), &socket.as_raw_fd(), &pu, 0).map_err(self.map.failed("insert"))
    }

    /// Takes the PU away from this socket; whether it had one.
    ///
    /// # Errors
    /// As [`Sockets::get`].
    pub fn remove(&self, socket: BorrowedFd<'_>) -> Result<bool, MapWriteError> {
        sys::map_delete(self.map.fd(), &socket.as_raw_fd()).map_err(self.map.failed("remove"))
    }
}
