//! Object attributes: what a process is, read from the kernel, as tags `@sys:…`.
//!
//! | Tag | Value |
//! |---|---|
//! | `@sys:uid`, `@sys:user` | effective user: number, name |
//! | `@sys:gid`, `@sys:group` | effective group: number; names of it and all others |
//! | `@sys:exe`, `@sys:sha256` | path and hash of the executable |
//! | `@sys:lib` | shared libraries the executable asks for |
//! | `@sys:cmd` | command line |
//! | `@sys:listen` | ports on which the PU listens, as `tcp/443` |
//! | `@sys:unit` | systemd unit of the system |
//! | `@sys:kernel`, `@sys:hostname`, `@sys:arch`, `@sys:netns` | where it runs |

mod hash;
mod libraries;
mod listening;
mod process;

use std::path::Path;

pub use hash::{FileId, HashCache, sha256};
pub(crate) use process::command_line;
pub use process::{MainProcess, main_process, start_time};

use super::{Extractor, KnownPu, NotYet, TagSource, adopt, units};
use crate::{admin::PuTarget, identity::Tags};

/// Keys whose values are those of the main process, so that they are known only when it runs.
pub const CHANGING: [&str; 9] = [
    "@sys:uid",
    "@sys:user",
    "@sys:gid",
    "@sys:group",
    "@sys:exe",
    "@sys:sha256",
    "@sys:lib",
    "@sys:cmd",
    "@sys:listen",
];

/// Finds the object attributes of PUs that are cgroups, by their main process.
#[derive(Debug, Default)]
pub struct Attributes {
    hashes: HashCache,
    listening: listening::Listening,
    cgroup_root: Option<std::path::PathBuf>,
}

impl Attributes {
    /// For cgroups below `root`, whose part of a PU's path names its systemd unit.
    pub fn new(root: &Path) -> Self {
        Self { cgroup_root: Some(root.to_owned()), ..Self::default() }
    }

    /// The tags of one process.
    ///
    /// # Errors
    /// If it has ended.
    pub fn of_process(&self, pid: u32) -> std::io::Result<Tags> {
        process::tags(pid, &self.hashes)
    }

    /// The tags of the main process of a cgroup with all below it, and of the cgroup itself.
    ///
    /// # Errors
    /// [`NotYet`] if nothing runs there.
    pub fn of_cgroup(&self, cgroup: &Path) -> anyhow::Result<Tags> {
        let processes = adopt::processes(cgroup)?;
        let main = main_process(&processes).ok_or(NotYet)?;
        // `enforcer exec` before it has become the command.
        if process::is_own_program(main.pid) {
            return Err(NotYet.into());
        }
        let mut tags = match process::tags(main.pid, &self.hashes) {
            Ok(tags) => tags,
            Err(_) if start_time(main.pid) != Some(main.started) => return Err(NotYet.into()),
            Err(error) => return Err(error.into()),
        };
        let ports = self.listening.ports(&processes);
        if !ports.is_empty() {
            tags.insert("@sys:listen".into(), ports);
        }
        let inside = self.cgroup_root.as_ref().and_then(|root| cgroup.strip_prefix(root).ok());
        if let Some(unit) = inside.and_then(units::system_unit) {
            tags.insert("@sys:unit".into(), [unit.to_owned()].into());
        }
        // A process that ended while it was looked at may have been looked at in two lives.
        if start_time(main.pid) != Some(main.started) {
            return Err(NotYet.into());
        }
        Ok(tags)
    }
}

impl Extractor for Attributes {
    fn source(&self) -> TagSource {
        TagSource::Object
    }

    fn extract(&self, pu: &KnownPu) -> anyhow::Result<Tags> {
        match &pu.target {
            PuTarget::Cgroup(path) => self.of_cgroup(path),
            // What is behind an interface is told of by who put it there.
            PuTarget::Interface(_) | PuTarget::Command => Ok(Tags::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(tags: &Tags, key: &str) -> String {
        let values = &tags[key];
        assert_eq!(values.len(), 1, "{key}: {values:?}");
        values.iter().next().unwrap().clone()
    }

    #[test]
    fn this_process_is_described() {
        let attributes = Attributes::default();
        let tags = attributes.of_process(std::process::id()).unwrap();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(one(&tags, "@sys:exe"), exe.to_str().unwrap());
        assert_eq!(one(&tags, "@sys:uid"), nix::unistd::geteuid().to_string());
        assert_eq!(one(&tags, "@sys:gid"), nix::unistd::getegid().to_string());
        assert_eq!(one(&tags, "@sys:sha256").len(), 64);
        assert!(tags["@sys:lib"].contains("libc.so.6"), "{:?}", tags["@sys:lib"]);
        assert!(one(&tags, "@sys:cmd").contains("enforcer_user"));
        assert_eq!(one(&tags, "@sys:arch"), std::env::consts::ARCH);
        assert_eq!(one(&tags, "@sys:hostname"), nix::unistd::gethostname().unwrap().to_str().unwrap());
        for (key, values) in &tags {
            assert!(TagSource::Object.may_set(key), "{key}");
            assert!(values.iter().all(|value| super::super::tags::check_form(key, value).is_ok()), "{key}: {values:?}");
        }
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(Attributes::default().of_process(u32::MAX).is_err());
        assert!(Attributes::default().of_cgroup(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn the_main_process_is_the_oldest() {
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        let found = main_process(&[child.id(), std::process::id(), u32::MAX]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.pid, std::process::id());
        assert_eq!(main_process(&[child.id()]), None);
    }
}
