//! `PU_SOCKETS`: the PU a socket belongs to, kept in the socket itself.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use super::MapWriteError;
use super::table::Pinned;
use crate::sys;

/// Socket storage, reached by a descriptor of the socket.
#[derive(Debug)]
pub struct Sockets(Pinned);

impl Sockets {
    pub(super) fn open(directory: &Path) -> Result<Self, MapWriteError> {
        Ok(Self(Pinned::open(directory, "PU_SOCKETS", size_of::<i32>(), size_of::<u32>())?))
    }

    /// The PU of this socket.
    ///
    /// # Errors
    /// `ENOTSOCK` within [`MapWriteError::System`] if it is no socket, or what else the kernel reports.
    pub fn get(&self, socket: BorrowedFd<'_>) -> Result<Option<u32>, MapWriteError> {
        sys::map_lookup(self.0.fd(), &socket.as_raw_fd()).map_err(self.0.failed("look up"))
    }

    /// Makes `pu` the PU of this socket, whoever else holds it.
    ///
    /// # Errors
    /// As [`Sockets::get`].
    pub fn insert(&self, socket: BorrowedFd<'_>, pu: u32) -> Result<(), MapWriteError> {
        sys::map_update(self.0.fd(), &socket.as_raw_fd(), &pu, 0).map_err(self.0.failed("insert"))
    }

    /// Takes the PU away from this socket; whether it had one.
    ///
    /// # Errors
    /// As [`Sockets::get`].
    pub fn remove(&self, socket: BorrowedFd<'_>) -> Result<bool, MapWriteError> {
        sys::map_delete(self.0.fd(), &socket.as_raw_fd()).map_err(self.0.failed("remove"))
    }
}
