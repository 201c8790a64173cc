//! Cgroups of containers: stopped when they are made, until their engine has said what they are.
//!
//! One that is known by its cgroup is made a PU by the engine's source; the others are let go here.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use common::abi::PU_UNSORTED;

use super::Finder;
use crate::{
    admin::PuTarget,
    config::PU_CGROUPS,
    workload::{
        PuSink,
        container_common::{Verdict, container_of},
        cri, docker,
    },
};

/// A stopped cgroup.
#[derive(Clone, Debug)]
pub(super) struct Container {
    id: String,
    directory: PathBuf,
    since: Instant,
}

/// What the cgroup of a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InContainer {
    /// A container's of which it is not known yet.
    Stopped,
    /// A PU, or it lies in one.
    Pu,
    /// Anything else.
    No,
}

/// The kernel tells of a cgroup before it can be seen in the file system.
const SEEN_WITHIN: Duration = Duration::from_millis(100);
/// So long the engine's answer is expected any moment.
const FRESH: Duration = Duration::from_secs(1);

impl Finder {
    /// Whether a stopped cgroup is a container's, so that its engine decides.
    pub(super) fn is_engines(&mut self, cgroup: u64, below: &str, directory: &Path) -> bool {
        let Some(id) = outermost_container(below).filter(|_| self.stopped_containers.is_in_use()) else { return false };
        let container = Container { id: id.to_owned(), directory: directory.to_owned(), since: Instant::now() };
        self.containers.insert(cgroup, container);
        self.stopped_containers.stop(id);
        true
    }

    /// Whether an engine is about to say what a container is.
    pub(super) fn expects_answers(&self) -> bool {
        self.containers.values().any(|container| container.since.elapsed() < FRESH)
    }

    /// Lets go of containers' cgroups that are to be no PUs.
    pub(super) fn tend_containers(&mut self) {
        if self.containers.is_empty() {
            return;
        }
        let known = [docker::PREFIX, cri::PREFIX].into_iter().flat_map(|prefix| self.pipeline.known(prefix));
        let of_engines: Vec<PathBuf> = known
            .filter_map(|pu| match pu.target {
                PuTarget::Cgroup(path) => Some(path),
                _ => None,
            })
            .collect();
        for (cgroup, container) in self.containers.clone() {
            let stays = match self.maps.pu_cgroups.get(&cgroup) {
                Ok(Some(PU_UNSORTED)) => self.stays_stopped(cgroup, &container, &of_engines),
                Ok(_) => false,
                Err(_) => true,
            };
            if !stays {
                self.containers.remove(&cgroup);
                // An engine may make several cgroups that are called after one container.
                if self.containers.values().all(|other| other.id != container.id) {
                    self.stopped_containers.forget(&container.id);
                }
            }
        }
    }

    fn stays_stopped(&self, cgroup: u64, container: &Container, of_engines: &[PathBuf]) -> bool {
        let directory = container.directory.as_path();
        let Some(meta) = fs::metadata(directory).ok().filter(|meta| meta.ino() == cgroup) else {
            let stays = container.since.elapsed() < SEEN_WITHIN;
            if !stays {
                self.let_go(cgroup, None);
            }
            return stays;
        };
        // A container of a pod, or what a container made.
        let is_inside = of_engines.iter().any(|path| path != directory && directory.starts_with(path));
        // Whoever a part of the tree was delegated to names cgroups as they like.
        let is_delegated = fs::metadata(&self.place.root).is_ok_and(|root| root.uid() != meta.uid());
        match self.stopped_containers.verdict(&container.id) {
            Verdict::Stay if !is_inside && !is_delegated => return true,
            Verdict::Unanswered => tracing::warn!(
                cgroup = %directory.display(),
                "no container engine says what this is: it communicates as no PU"
            ),
            _ => {}
        }
        self.let_go(cgroup, Some(directory));
        false
    }

    /// Where a process is: in containers no rule for processes holds.
    pub(super) fn in_container(&self, process: u32) -> InContainer {
        let cgroup = self.place.cgroup_of(process).filter(|_| self.stopped_containers.is_in_use());
        let Some(cgroup) = cgroup else { return InContainer::No };
        if self.containers.values().any(|container| cgroup.starts_with(&container.directory)) {
            return InContainer::Stopped;
        }
        match self.pu_around(&cgroup) {
            0 | PU_UNSORTED => InContainer::No,
            pu if pu == self.maps.host_pu() => InContainer::No,
            _ => InContainer::Pu,
        }
    }
}

/// The container of a cgroup whose name is a container's, unless it lies inside of another container or of the enforcer's own.
fn outermost_container(below: &str) -> Option<&str> {
    let (around, name) = below.rsplit_once('/')?;
    let others = |name: &str| container_of(name).is_some() || name == PU_CGROUPS;
    container_of(name).filter(|_| !around.split('/').any(others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_makes_is_no_container_of_an_engine_here() {
        let (id, other) = ("1".repeat(64), "a".repeat(64));
        for (below, container) in [
            (format!("/docker/{id}"), Some(&id)),
            (format!("/system.slice/docker-{id}.scope"), Some(&id)),
            (format!("/kubepods/burstable/pod7/{id}"), Some(&id)),
            (format!("/{id}"), Some(&id)),
            (format!("/docker/{other}/docker/{id}"), None),
            (format!("/docker-{other}.scope/{id}"), None),
            (format!("/enforcer.pus/{id}"), None),
            (format!("/docker/{id}/inner"), None),
            ("/docker".into(), None),
            (id.clone(), None),
        ] {
            assert_eq!(outermost_container(&below), container.map(String::as_str), "{below}");
        }
    }
}
