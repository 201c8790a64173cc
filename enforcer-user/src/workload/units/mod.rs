//! PUs by cgroup: systemd units by name, and cgroups by path.
//!
//! Without systemd cgroup patterns work alike: both look at paths below the root of the hierarchy (`paths.cgroup`).

mod kernel;
mod pattern;

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

pub use kernel::{kernel_pattern, kernel_suffix};
pub use pattern::{CgroupMatch, PatternError};

/// A cgroup that exists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cgroup {
    /// Its path below the root, with a slash first.
    pub below: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Its id, the directory's inode.
    pub id: u64,
}

/// The system's unit a cgroup belongs to: the last component, if all before it are slices. What lies inside of a service or
/// scope was made by whoever runs there, a user's own units included, and is called as they like.
pub fn system_unit(below: &Path) -> Option<&str> {
    let mut names = below.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_str()),
        _ => None,
    });
    let unit = names.find(|name| !name.is_some_and(|name| name.ends_with(".slice")))??;
    is_unit(unit).then_some(unit)
}

/// Kinds of units that have processes.
fn is_unit(name: &str) -> bool {
    [".service", ".scope", ".socket", ".mount", ".swap"].iter().any(|kind| name.ends_with(kind))
}

/// All cgroups below `root`; those that go away meanwhile are left out.
///
/// # Errors
/// If the root cannot be read.
pub fn list(root: &Path) -> io::Result<Vec<Cgroup>> {
    let mut found = Vec::new();
    let mut waiting = vec![(String::new(), root.to_owned())];
    fs::read_dir(root)?;
    while let Some((below, directory)) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let (Some(name), Ok(meta)) = (entry.file_name().to_str().map(str::to_owned), entry.metadata()) else {
                continue;
            };
            let below = format!("{below}/{name}");
            waiting.push((below.clone(), entry.path()));
            found.push(Cgroup { below, directory: entry.path(), id: meta.ino() });
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_the_systems_only() {
        for (path, unit) in [
            ("/system.slice/nginx.service", Some("nginx.service")),
            ("/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service")),
            ("/system.slice/nginx.service/worker", Some("nginx.service")),
            ("/user.slice/user-1000.slice/session-2.scope", Some("session-2.scope")),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service", Some("user@1000.service")),
            ("/nginx.service", Some("nginx.service")),
            ("/machine/nginx.service", None),
            ("/system.slice", None),
            ("/", None),
        ] {
            assert_eq!(system_unit(Path::new(path)), unit, "{path}");
        }
    }

    #[test]
    fn directories_are_listed_with_what_is_below_them() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a.slice/b.service")).unwrap();
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        let found = list(root.path()).unwrap();
        let paths: Vec<_> = found.iter().map(|cgroup| cgroup.below.as_str()).collect();
        assert_eq!(paths, ["/a.slice", "/a.slice/b.service"]);
        assert_eq!(found[1].id, fs::metadata(root.path().join("a.slice/b.service")).unwrap().ino());
        assert!(list(&root.path().join("none")).is_err());
    }
}
