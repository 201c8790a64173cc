//! A map of fixed keys and values.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::Pod;
use aya::maps::{MapData, MapError};

use super::MapWriteError;
use crate::sys;

/// A pinned map; safe to use from several threads, as the kernel orders the changes.
pub struct Table<K, V> {
    map: Pinned,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> std::fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Table").field(&self.map.name).finish()
    }
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens the map pinned as `name` in `directory`.
    ///
    /// # Errors
    /// [`MapWriteError::Missing`], [`MapWriteError::Layout`], or what the kernel reports.
    pub fn open(directory: &Path, name: &'static str) -> Result<Self, MapWriteError> {
        let map = Pinned::open(directory, name, size_of::<K>(), size_of::<V>())?;
        Ok(Self { map, types: PhantomData })
    }

    /// The map's name.
    pub fn name(&self) -> &'static str {
        self.map.name
    }

    /// How many entries fit.
    pub fn capacity(&self) -> u32 {
        self.map.capacity
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapWriteError> {
        sys::map_lookup(self.map.fd(), key).map_err(self.map.failed("look up"))
    }

    /// Writes `value` under `key`, whether or not there was one.
    ///
    /// # Errors
    /// [`MapWriteError::Full`], or what the kernel reports.
    pub fn insert(&self, key: &K, value: &V) -> Result<(), MapWriteError> {
        sys::map_update(self.map.fd(), key, value, 0).map_err(self.map.failed("insert"))
    }

    /// Writes `value` under `key` if there was none; whether it was written.
    ///
    /// # Errors
    /// [`MapWriteError::Full`], or what the kernel reports.
    pub fn insert_new(&self, key: &K, value: &V) -> Result<bool, MapWriteError> {
        match sys::map_update(self.map.fd(), key, value, sys::BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(self.map.failed("insert")(error)),
        }
    }

    /// Replaces the value under `key` if there is one; whether there was. Never brings a deleted entry back.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn replace(&self, key: &K, value: &V) -> Result<bool, MapWriteError> {
        match sys::map_update(self.map.fd(), key, value, sys::BPF_EXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.map.failed("replace")(error)),
        }
    }

    /// Removes `key`; whether it was there.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn remove(&self, key: &K) -> Result<bool, MapWriteError> {
        sys::map_delete(self.map.fd(), key).map_err(self.map.failed("remove"))
    }

    /// Calls `each` with every entry. What changes meanwhile may be seen or not; a few calls for 100,000 entries.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn for_each(&self, mut each: impl FnMut(&K, &V)) -> Result<(), MapWriteError> {
        sys::map_for_each(self.map.fd(), |keys, values| {
            keys.iter().zip(values).for_each(|(key, value)| each(key, value))
        })
        .map_err(self.map.failed("iterate"))
    }

    /// All entries.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn entries(&self) -> Result<Vec<(K, V)>, MapWriteError> {
        let mut entries = Vec::new();
        self.for_each(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    /// Removes every entry that `keep` refuses; how many. One whose value changed meanwhile may be removed too.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn retain(&self, mut keep: impl FnMut(&K, &V) -> bool) -> Result<usize, MapWriteError> {
        let mut gone = Vec::new();
        self.for_each(|key, value| {
            if !keep(key, value) {
                gone.push(*key);
            }
        })?;
        let mut removed = 0;
        for key in gone {
            removed += usize::from(self.remove(&key)?);
        }
        Ok(removed)
    }

    /// How many entries there are; walks over all of them.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn len(&self) -> Result<u64, MapWriteError> {
        let mut count = 0;
        sys::map_for_each::<K, V>(self.map.fd(), |keys, _| count += keys.len() as u64)
            .map_err(self.map.failed("iterate"))?;
        Ok(count)
    }

    /// Whether there are none.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn is_empty(&self) -> Result<bool, MapWriteError> {
        Ok(self.len()? == 0)
    }

    /// Name, entries and capacity.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn fill(&self) -> Result<(&'static str, u64, u32), MapWriteError> {
        Ok((self.name(), self.len()?, self.capacity()))
    }

    /// Writes many entries with one call.
    pub(super) fn insert_all(&self, keys: &[K], values: &[V]) -> Result<(), MapWriteError> {
        sys::map_update_batch(self.map.fd(), keys, values).map_err(self.map.failed("insert"))
    }
}

/// A pinned map whose element sizes were checked.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) name: &'static str,
    pub(super) capacity: u32,
    data: MapData,
}

impl Pinned {
    pub(super) fn open(directory: &Path, name: &'static str, key: usize, value: usize) -> Result<Self, MapWriteError> {
        let data = MapData::from_pin(directory.join(name)).map_err(|error| match error {
            MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::NotFound => {
                MapWriteError::Missing { name, directory: directory.to_owned() }
            }
            MapError::SyscallError(error) => MapWriteError::System { name, operation: "open", source: error.io_error },
            other => MapWriteError::System { name, operation: "open", source: io::Error::other(other) },
        })?;
        let info = data.info().map_err(|error| MapWriteError::System {
            name,
            operation: "describe",
            source: io::Error::other(error),
        })?;
        for (what, found, expected) in
            [("keys", info.key_size(), key as u32), ("values", info.value_size(), value as u32)]
        {
            if found != expected {
                return Err(MapWriteError::Layout { name, what, found, expected });
            }
        }
        Ok(Self { name, capacity: info.max_entries(), data })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.data.fd().as_fd()
    }

    pub(super) fn failed(&self, operation: &'static str) -> impl Fn(io::Error) -> MapWriteError + use<> {
        let (name, capacity) = (self.name, self.capacity);
        move |source| match source.raw_os_error() {
            // A hash map answers E2BIG when full, an LPM trie ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => MapWriteError::Full { name, capacity },
            _ => MapWriteError::System { name, operation, source },
        }
    }
}
