//! Where this enforcer is in charge: its part of the cgroup hierarchy.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

use super::rules::Rules;
use crate::config::Config;

/// The part of the hierarchy below `paths.cgroup`.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its directory.
    pub root: PathBuf,
    /// The id of its cgroup.
    pub root_id: u64,
    /// Its level.
    pub root_level: u32,
    /// Its path as the kernel calls it; in a cgroup namespace, once the kernel was asked.
    pub kernel_root: String,
    /// Where the enforcer makes cgroups.
    pub pu_cgroups: PathBuf,
    mount: PathBuf,
    mounted: String,
}

impl Place {
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let root = config.cgroup_root()?;
        let root = root.canonicalize().with_context(|| format!("cgroup {}", root.display()))?;
        let (mount, mounted) = mount_of(&fs::read_to_string("/proc/self/mountinfo")?, &root)
            .with_context(|| format!("{} lies on no cgroup v2 mount", root.display()))?;
        let inner = root.strip_prefix(&mount)?;
        let kernel_root = join(&mounted, inner);
        let root_id = fs::metadata(&root)?.ino();
        let pu_cgroups = root.join(crate::config::PU_CGROUPS);
        let mut place = Self { root, root_id, root_level: 0, kernel_root: String::new(), pu_cgroups, mount, mounted };
        place.is_called(kernel_root);
        Ok(place)
    }

    /// The kernel's path of the root, where another than [`Self::new`] could see is the right one.
    pub fn is_called(&mut self, kernel_root: String) {
        self.root_level = kernel_root.split('/').filter(|name| !name.is_empty()).count() as u32;
        self.kernel_root = kernel_root;
    }

    /// The path below the root of a path as the kernel calls it.
    pub fn below<'a>(&self, kernel: &'a str) -> Option<&'a str> {
        let below = kernel.strip_prefix(self.kernel_root.trim_end_matches('/'))?;
        below.starts_with('/').then_some(below)
    }

    /// The directory of a cgroup of this part.
    pub fn directory(&self, below: &str) -> PathBuf {
        self.root.join(below.trim_start_matches('/'))
    }

    /// Whether the enforcer made it.
    pub fn is_own(&self, directory: &Path) -> bool {
        directory.starts_with(&self.pu_cgroups)
    }

    /// The directory of the cgroup of a process, if it is in this part.
    pub fn cgroup_of(&self, process: u32) -> Option<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        let inner = path.strip_prefix(self.mounted.trim_end_matches('/'))?;
        let directory = self.mount.join(inner.trim_start_matches('/'));
        directory.starts_with(&self.root).then_some(directory)
    }

    /// Whether a process shares this agent's network namespace; elsewhere nothing of it can be judged.
    pub fn is_here(process: u32) -> io::Result<bool> {
        Ok(fs::read_link(format!("/proc/{process}/ns/net"))? == fs::read_link("/proc/self/ns/net")?)
    }
}

fn join(mounted: &str, inner: &Path) -> String {
    let inner = inner.to_string_lossy();
    if inner.is_empty() { mounted.into() } else { format!("{}/{inner}", mounted.trim_end_matches('/')) }
}

/// Mount point of the cgroup v2 mount that a path lies on, and what of the hierarchy is mounted there (proc_pid_mountinfo(5)).
fn mount_of(mountinfo: &str, path: &Path) -> Option<(PathBuf, String)> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup2 ").then(|| (PathBuf::from(point), root.to_owned()))
    });
    mounts.filter(|(point, _)| path.starts_with(point)).max_by_key(|(point, _)| point.components().count())
}

/// Whether the rules leave the agent itself out: what they make a PU must not hold it.
///
/// # Errors
/// If a pattern matches a cgroup in which this agent runs, or a rule names a user that is not there.
pub fn check(config: &Config) -> anyhow::Result<()> {
    let rules = Rules::new(config)?;
    if config.workload.is_empty() {
        return Ok(());
    }
    let place = Place::new(config)?;
    let Some(own) = place.cgroup_of(std::process::id()) else { return Ok(()) };
    for directory in
        own.ancestors().take_while(|directory| *directory != place.root && directory.starts_with(&place.root))
    {
        let below = format!("/{}", directory.strip_prefix(&place.root)?.display());
        let pattern = rules.patterns().find(|pattern| pattern.matches(&below));
        ensure!(
            pattern.is_none(),
            "`[[workload]]`: {:?} matches {below}, in which this agent runs; it would be refused its own connections: name others",
            pattern.map(|pattern| pattern.text()).unwrap_or_default()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_counts() {
        let mountinfo = "24 1 0:22 / /sys rw - sysfs sysfs rw\n\
            30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
            31 24 0:26 /lab /mnt/lab rw - cgroup2 none rw\n";
        let of = |path: &str| mount_of(mountinfo, Path::new(path));
        assert_eq!(of("/sys/fs/cgroup/a"), Some(("/sys/fs/cgroup".into(), "/".into())));
        assert_eq!(of("/mnt/lab/a"), Some(("/mnt/lab".into(), "/lab".into())));
        assert_eq!(of("/tmp"), None);
        assert_eq!(join("/", Path::new("")), "/");
        assert_eq!(join("/", Path::new("a/b")), "/a/b");
        assert_eq!(join("/lab", Path::new("a")), "/lab/a");
    }
}
