//! SHA-256 of executables, computed once for each state of a file.

use std::{
    collections::HashMap,
    fmt::Write,
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    sync::{Mutex, PoisonError},
};

use ring::digest;

/// A file in one state: any change of its contents changes this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    // The owner of a file can set its time of modification, not this one.
    changed: (i64, i64),
}

impl From<&Metadata> for FileId {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Files remembered; beyond it all are forgotten and hashed again when they are asked for.
const FILES_MAX: usize = 4096;

/// Hashes that were computed already.
#[derive(Debug, Default)]
pub struct HashCache(Mutex<HashMap<FileId, String>>);

impl HashCache {
    /// The SHA-256 of an open file, 64 hexadecimal digits.
    ///
    /// # Errors
    /// If it cannot be read, or changes while it is.
    pub fn sha256(&self, file: &File) -> io::Result<String> {
        let id = FileId::from(&file.metadata()?);
        if let Some(known) = self.lock().get(&id) {
            return Ok(known.clone());
        }
        let hash = sha256(file)?;
        if FileId::from(&file.metadata()?) != id {
            return Err(io::Error::other("the file changed while it was read"));
        }
        let mut known = self.lock();
        if known.len() >= FILES_MAX {
            known.clear();
        }
        known.insert(id, hash.clone());
        Ok(hash)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<FileId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Read at once, bytes.
const CHUNK: usize = 256 << 10;

/// The SHA-256 of what is left to read, 64 hexadecimal digits.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(mut from: impl Read) -> io::Result<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => context.update(&chunk[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut hex = String::with_capacity(64);
    for byte in context.finish().as_ref() {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_sha256() {
        // FIPS 180-4, example of one block.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&b"abc"[..]).unwrap(), abc);
    }

    #[test]
    fn a_file_is_hashed_again_when_it_changes_and_only_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        let cache = HashCache::default();
        let first = cache.sha256(&File::open(&path).unwrap()).unwrap();
        let mut open = File::open(&path).unwrap();
        assert_eq!(cache.sha256(&open).unwrap(), first);
        let mut unread = String::new();
        open.read_to_string(&mut unread).unwrap();
        assert_eq!(unread, "abc", "what is known is not read again");
        // The same size and the same time of modification.
        let times = std::fs::FileTimes::new().set_modified(std::fs::metadata(&path).unwrap().modified().unwrap());
        std::fs::write(&path, "abd").unwrap();
        File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        assert_ne!(cache.sha256(&File::open(&path).unwrap()).unwrap(), first);
    }
}
