//! How the kernel calls the root of a cgroup namespace: nobody within can see it (cgroup_namespaces(7)), but the kernel says it of every
//! cgroup that is made.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use common::workload::{CGROUP_PATTERNS, Offsets, WATCH_CGROUPS};

use super::events::Events;
use crate::{map_write::Maps, workload::units};

/// `PROC_CGROUP_INIT_INO` (linux/proc_ns.h): the first cgroup namespace.
const FIRST: u64 = 0xEFFF_FFFB;
/// The kernel tells of a cgroup before mkdir(2) returns.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether this process is in the first cgroup namespace, where paths are as the kernel calls them.
pub(super) fn is_first_namespace() -> io::Result<bool> {
    Ok(fs::metadata("/proc/self/ns/cgroup")?.ino() == FIRST)
}

/// The kernel's path of the directory `root`: of a cgroup that is made there for a moment. What is watched for already stays so.
///
/// # Errors
/// The cgroup cannot be made, or the kernel does not tell of it.
pub(super) fn kernel_path(root: &Path, offsets: Offsets, maps: &Maps) -> anyhow::Result<String> {
    let name = format!("/enforcer-probe-{}", std::process::id());
    let directory = root.join(&name[1..]);
    let mut events = Events::open(maps.directory()).context("events of workloads")?;
    let before = maps.watch.get(&0)?.unwrap_or_default();
    let mut watch = before;
    let place = watch.patterns.min(CGROUP_PATTERNS - 1);
    maps.cgroup_patterns.insert(&place, &units::kernel_suffix(&name))?;
    watch.offsets = offsets;
    watch.patterns = place + 1;
    watch.flags |= WATCH_CGROUPS;
    maps.watch.insert(&0, &watch)?;
    let made = fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()));
    let id = fs::metadata(&directory).map(|meta| meta.ino());
    let told =
        made.and_then(|()| told_of(&mut events, &name, *id.as_ref().map_err(|_| anyhow::anyhow!("it is gone"))?));
    let _ = fs::remove_dir(&directory);
    maps.watch.insert(&0, &before)?;
    if let Ok(id) = id {
        // It was stopped like any that is meant.
        let _ = maps.pu_cgroups.remove(&id);
    }
    told
}

/// Others may make cgroups of that name elsewhere. What else is told meanwhile is found by the look at everything that follows.
fn told_of(events: &mut Events, name: &str, id: u64) -> anyhow::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let found = events.wait(Duration::from_millis(20))?;
        if let Some(path) =
            found.iter().find(|event| event.cgroup == id).and_then(|event| event.path.strip_suffix(name))
        {
            return Ok(if path.is_empty() { "/".into() } else { path.into() });
        }
    }
    anyhow::bail!("the kernel does not tell of cgroups")
}
