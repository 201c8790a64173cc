//! Sockets that were made before their process was sorted out.

use std::{
    fs,
    os::fd::{AsFd, RawFd},
};

use crate::{map_write::Sockets, sys};

/// Passes over the sockets of a process: what it hands on meanwhile is found by the next.
const PASSES: usize = 3;

/// Marks the internet sockets of a process as `pu`'s: all, or those that bear the mark `only`. What cannot be looked at
/// keeps its mark: unsorted sockets stay refused.
pub(super) fn mark(process: u32, pu: u32, only: Option<u32>, sockets: &Sockets) {
    for _ in 0..PASSES {
        if mark_once(process, pu, only, sockets) == 0 {
            return;
        }
    }
}

fn mark_once(process: u32, pu: u32, only: Option<u32>, sockets: &Sockets) -> usize {
    let Ok(handle) = sys::pidfd_open(process) else { return 0 };
    let mut marked = 0;
    for number in descriptors(process) {
        let Ok(socket) = sys::pidfd_getfd(handle.as_fd(), number) else { continue };
        let domain = sys::socket_option(socket.as_fd(), libc::SO_DOMAIN);
        if !matches!(domain, Ok(libc::AF_INET | libc::AF_INET6)) {
            continue;
        }
        let present = sockets.get(socket.as_fd()).ok().flatten().unwrap_or(0);
        if present != pu && only.is_none_or(|only| present == only) {
            match sockets.remark(socket.as_fd(), present, pu) {
                Ok(()) => marked += 1,
                Err(error) => tracing::warn!(process, %error, "a socket keeps its mark"),
            }
        }
    }
    marked
}

fn descriptors(process: u32) -> Vec<RawFd> {
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    let entries = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    entries.filter(is_socket).filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
