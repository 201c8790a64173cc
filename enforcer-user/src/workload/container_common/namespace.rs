//! Network namespaces of processes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use crate::link_net;

/// A network namespace. While this exists so does the namespace, and its number is nobody else's.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    device_and_inode: (u64, u64),
    number: Option<i32>,
}

impl Namespace {
    /// The one a process is in.
    ///
    /// # Errors
    /// If the process has ended, or may not be looked into.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(&format!("/proc/{pid}/ns/net"))
    }

    /// The one this process is in.
    ///
    /// # Errors
    /// If `/proc` is not there.
    pub fn own() -> io::Result<Self> {
        Self::open("/proc/self/ns/net")
    }

    fn open(path: &str) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self { file, device_and_inode: (metadata.dev(), metadata.ino()), number: None })
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Self) -> bool {
        self.device_and_inode == other.device_and_inode
    }

    /// The number this host has for it, once an interface leads there.
    pub fn number(&mut self) -> Option<i32> {
        if self.number.is_none() {
            self.number = link_net::namespace_id(self.file.as_fd()).unwrap_or_else(|error| {
                tracing::debug!(%error, "a network namespace has no number");
                None
            });
        }
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_that_of_this_process() {
        let (own, process) = (Namespace::own().unwrap(), Namespace::of_process(std::process::id()).unwrap());
        assert!(own.is(&process));
        assert!(Namespace::of_process(u32::MAX).is_err());
    }
}
