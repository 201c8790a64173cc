//! Entries from a map of one layout into one of another, while programs go on writing.
//!
//! First everything is copied. Then the caller lets the programs change over, and [`Carry::settle`] makes good what the
//! former programs did in between: what they entered is entered, what they changed is changed, what they removed is removed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use super::layouts::{self, Layout};
use crate::sys::{self, RawMap};

/// A map on its way.
#[derive(Debug)]
pub(super) struct Carry {
    from: RawMap,
    to: RawMap,
    layout: &'static Layout,
    /// What was copied: key to the value as it was, and as it was written.
    copied: HashMap<Box<[u8]>, (u64, u64)>,
}

impl Carry {
    /// From the map pinned at one place to the one pinned at another.
    pub(super) fn open(name: &str, from: &Path, to: &Path) -> io::Result<Self> {
        let (from, to) = (RawMap::open(from)?, RawMap::open(to)?);
        let (a, b) = (from.value_size() as u32, to.value_size() as u32);
        let layout = layouts::find(name, a.min(b), a.max(b))
            .ok_or_else(|| io::Error::other(format!("values of {a} bytes cannot be made values of {b}")))?;
        Ok(Self { from, to, layout, copied: HashMap::new() })
    }

    /// Makes the one what the other is.
    pub(super) fn copy(&mut self) -> io::Result<()> {
        let mut stale = Vec::new();
        self.to.for_each(|key, _| {
            stale.push(key.to_vec());
            Ok(())
        })?;
        let (to, layout, copied) = (&self.to, self.layout, &mut self.copied);
        self.from.for_each(|key, value| {
            let made = layout.convert(value);
            to.put(key, &made, 0)?;
            copied.insert(key.into(), (hash(value), hash(&made)));
            Ok(())
        })?;
        stale.iter().filter(|key| !copied.contains_key(key.as_slice())).try_for_each(|key| to.remove(key))
    }

    /// Makes good what the former programs did since; they must have ended.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        let (to, layout) = (&self.to, self.layout);
        let mut gone = std::mem::take(&mut self.copied);
        self.from.for_each(|key, value| {
            let before = gone.remove(key);
            let made = layout.convert(value);
            match before {
                Some((was, _)) if was == hash(value) => Ok(()),
                // What the new programs have changed meanwhile is newer.
                Some((_, wrote)) => match to.get(key)? {
                    Some(now) if hash(&now) == wrote => to.put(key, &made, 0),
                    _ => Ok(()),
                },
                None => match to.put(key, &made, sys::BPF_NOEXIST) {
                    Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
                    _ => Ok(()),
                },
            }
        })?;
        gone.iter().try_for_each(|(key, (_, wrote))| match to.get(key)? {
            Some(now) if hash(&now) == *wrote => to.remove(key),
            _ => Ok(()),
        })
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
