//! What a process executes, as it can be trusted.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use common::workload::FileKey;

use crate::workload::object::HashCache;

/// An executable file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Its path, if this agent finds the same file there: a process in a mount namespace of its own can call any file
    /// anything.
    pub path: Option<PathBuf>,
    /// Its hash, if a rule asks for it and it could be read.
    pub sha256: Option<String>,
}

/// A process that executes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// Real user.
    pub uid: u32,
    /// Command line, arguments separated by spaces.
    pub command: String,
}

impl Look {
    /// Looks at what a process executes; also the file's state, to tell whether the kernel meant the same.
    ///
    /// # Errors
    /// If the process has ended, or is one of the kernel's.
    pub fn at(pid: u32, hashes: Option<&HashCache>) -> io::Result<(Self, Metadata)> {
        let link = format!("/proc/{pid}/exe");
        let named = fs::read_link(&link)?;
        let file = File::open(&link)?;
        let meta = file.metadata()?;
        let same = fs::metadata(&named).is_ok_and(|here| (here.dev(), here.ino()) == (meta.dev(), meta.ino()));
        let sha256 = match hashes {
            Some(hashes) => Some(hashes.sha256(&file)?),
            None => None,
        };
        Ok((Self { path: same.then_some(named), sha256 }, meta))
    }
}

impl Executed {
    /// Looks at a process.
    ///
    /// # Errors
    /// If it has ended.
    pub fn at(pid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
        let uid = uid.ok_or_else(|| io::Error::other(format!("/proc/{pid}/status names no user")))?;
        Ok(Self { uid, command: crate::workload::object::command_line(pid)? })
    }
}

/// Whether the kernel meant a file in this state. Devices are not compared: overlays have several.
pub(crate) fn is_same(meta: &Metadata, file: &FileKey, ctime_sec: u64) -> bool {
    meta.ino() == file.inode && meta.ctime() as u64 == ctime_sec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_file_is_looked_at_not_the_one_that_is_called_so_now() {
        let directory = tempfile::tempdir().unwrap();
        let exe = directory.path().join("program");
        fs::copy("/bin/sleep", &exe).unwrap();
        let mut child = std::process::Command::new(&exe).arg("5").spawn().unwrap();
        let hashes = HashCache::default();
        let (first, meta) = Look::at(child.id(), Some(&hashes)).unwrap();
        assert_eq!(first.path.as_deref(), Some(exe.as_path()));
        assert_eq!(meta.ino(), fs::metadata(&exe).unwrap().ino());
        assert!(Executed::at(child.id()).unwrap().command.ends_with("program 5"));
        fs::remove_file(&exe).unwrap();
        fs::write(&exe, "another").unwrap();
        let (then, _) = Look::at(child.id(), Some(&hashes)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(then.path, None, "what is called so now is another file");
        assert_eq!(then.sha256, first.sha256);
        assert!(Look::at(child.id(), None).is_err());
    }
}
