//! Cgroup v2 subtrees: one a host, so that a host's processes can be attributed, and ended, as a whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid machines.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    mount.context("no cgroup v2 is mounted; try: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// The cgroup of a running process, as a path below the mount of cgroup v2.
pub(crate) fn of_process(pid: u32) -> Result<PathBuf> {
    let file = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .with_context(|| format!("{file} names no cgroup v2"))?;
    Ok(cgroup2_mount()?.join(line))
}

/// Ends every process below `path`, then removes the subtree. Absent subtrees are fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let _ = fs::write(path.join("cgroup.kill"), "1");
        match remove_tree(path) {
            Ok(()) => return remove_v1(path),
            Err(error) if Instant::now() > deadline => {
                bail!("cannot remove the cgroup {}: {error}", path.display())
            }
            // Killed processes leave their cgroup a moment after the kill was written.
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Container runtimes make the directories of their containers in every hierarchy of cgroup v1 too.
fn remove_v1(path: &Path) -> Result<()> {
    let below = path.strip_prefix(cgroup2_mount()?).context("a cgroup outside of its hierarchy")?;
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    for line in mounts.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        if let [_, mount, "cgroup", ..] = fields[..] {
            let path = Path::new(mount).join(below);
            if path.exists() {
                remove_tree(&path).with_context(|| format!("cannot remove the cgroup {}", path.display()))?;
            }
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
