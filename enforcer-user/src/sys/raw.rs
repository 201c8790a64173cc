//! Entries of pinned maps whose layout is known at run time only.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::maps::MapData;

use super::{BPF_MAP_DELETE_ELEM, BPF_MAP_GET_NEXT_KEY, BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, ElemAttr, bpf};

/// A pinned map, seen as bytes. Not for per-CPU maps, whose values are larger than they say.
#[derive(Debug)]
pub(crate) struct RawMap {
    data: MapData,
    key: usize,
    value: usize,
    entries: u32,
}

impl RawMap {
    /// Opens what is pinned at `pin`.
    pub fn open(pin: &Path) -> io::Result<Self> {
        let data = MapData::from_pin(pin).map_err(io::Error::other)?;
        let info = data.info().map_err(io::Error::other)?;
        let (key, value, entries) = (info.key_size() as usize, info.value_size() as usize, info.max_entries());
        Ok(Self { data, key, value, entries })
    }

    /// Size of a value.
    pub fn value_size(&self) -> usize {
        self.value
    }

    /// Calls `each` with every entry. What changes meanwhile may be seen or not, or twice.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let (mut key, mut next, mut value) = (vec![0; self.key], vec![0; self.key], vec![0; self.value]);
        let mut started = false;
        // A key that went away meanwhile makes the kernel begin anew: not for ever.
        for _ in 0..u64::from(self.entries) * 2 + 16 {
            if !self.next_key(started.then_some(&key), &mut next)? {
                return Ok(());
            }
            if self.read(&next, &mut value)? {
                each(&next, &value)?;
            }
            std::mem::swap(&mut key, &mut next);
            started = true;
        }
        Ok(())
    }

    /// The value under `key`.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value];
        Ok(self.read(key, &mut value)?.then_some(value))
    }

    /// Writes `value` under `key`; `flags` is 0, or one of the `BPF_*EXIST` of this module's parent.
    pub fn put(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        if key.len() != self.key || value.len() != self.value {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let attr = ElemAttr { value: value.as_ptr() as u64, flags, ..self.attr(key) };
        bpf(BPF_MAP_UPDATE_ELEM, &attr).map(drop)
    }

    /// Removes `key`, if it is there.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        if key.len() != self.key {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        present(bpf(BPF_MAP_DELETE_ELEM, &self.attr(key))).map(drop)
    }

    fn read(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        if key.len() != self.key || value.len() != self.value {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let attr = ElemAttr { value: value.as_mut_ptr() as u64, ..self.attr(key) };
        present(bpf(BPF_MAP_LOOKUP_ELEM, &attr))
    }

    fn next_key(&self, after: Option<&Vec<u8>>, next: &mut [u8]) -> io::Result<bool> {
        if next.len() != self.key || after.is_some_and(|key| key.len() != self.key) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = ElemAttr { value: next.as_mut_ptr() as u64, ..self.attr(next) };
        attr.key = after.map_or(0, |key| key.as_ptr() as u64);
        present(bpf(BPF_MAP_GET_NEXT_KEY, &attr))
    }

    fn attr(&self, key: &[u8]) -> ElemAttr {
        let map = self.data.fd().as_fd().as_raw_fd() as u32;
        ElemAttr { map, pad: 0, key: key.as_ptr() as u64, value: 0, flags: 0 }
    }
}

fn present<T>(result: io::Result<T>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
