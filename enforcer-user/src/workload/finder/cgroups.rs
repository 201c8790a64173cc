//! Cgroups sorted out.

use std::{collections::HashSet, os::unix::fs::MetadataExt, path::Path, time::Duration};

use common::abi::PU_UNSORTED;

use super::{Finder, cgroup_key, name_of, rules::Rule, sockets};
use crate::{
    admin::PuTarget,
    workload::{PuSink, Seen, SinkError, TagSource, adopt, units},
};

/// What cannot be made a PU at once is tried again so often, [`super::SOON`]; then whenever all cgroups are looked at.
const TRIES: u32 = 10;

impl Finder {
    /// Sorts out a cgroup the kernel told of, by the path the kernel calls it.
    pub(super) fn sort_cgroup(&mut self, id: u64, kernel_path: &str) {
        match self.place.below(kernel_path) {
            Some(below) => self.sort_below(id, below, TRIES),
            None => self.let_go(id, None),
        }
    }

    /// Sorts out again what could not be made a PU a moment ago: a process that enters its namespace only now, perhaps.
    pub(super) fn sort_again(&mut self) {
        for (id, (below, tries)) in std::mem::take(&mut self.again) {
            self.sort_below(id, &below, tries);
        }
    }

    fn sort_below(&mut self, id: u64, below: &str, tries: u32) {
        let directory = self.place.directory(below);
        match self.rules.of_cgroup(below).cloned() {
            Some(rule) if !self.place.is_own(&directory) => {
                // The kernel tells of it before it can be seen in the file system.
                (0..20)
                    .take_while(|_| !directory.exists())
                    .for_each(|_| std::thread::sleep(Duration::from_micros(500)));
                if self.show_cgroup(below, &directory, &rule) && tries > 0 {
                    self.again.insert(id, (below.to_owned(), tries - 1));
                }
            }
            _ if self.is_engines(id, below, &directory) => {}
            _ => self.let_go(id, Some(&directory)),
        }
    }

    /// Makes a cgroup a PU; whether to try that again soon.
    fn show_cgroup(&self, below: &str, directory: &Path, rule: &Rule) -> bool {
        let seen = Seen {
            target: PuTarget::Cgroup(directory.to_owned()),
            name: rule.name.clone().unwrap_or_else(|| name_of(directory)),
            namespace: rule.namespace.clone(),
            tags: vec![(TagSource::Config, rule.tags.clone())],
            complete: true,
        };
        match self.pipeline.appear(&cgroup_key(below), seen) {
            Ok(()) => {}
            // It ended before it was looked at.
            Err(_) if !directory.exists() => {}
            Err(SinkError::Failed(error)) => {
                tracing::warn!(cgroup = below, error, "not yet a PU; tried again");
                self.stop(directory);
                return true;
            }
            Err(error) => tracing::error!(cgroup = below, %error, "cannot be a PU, and may not communicate"),
        }
        false
    }

    /// What the kernel stopped in vain.
    pub(super) fn let_go(&self, id: u64, directory: Option<&Path>) {
        match self.maps.pu_cgroups.get(&id) {
            Ok(Some(PU_UNSORTED)) => {}
            _ => return,
        }
        if let Err(error) = self.maps.pu_cgroups.remove(&id) {
            tracing::error!(%error, "a cgroup stays without permission to communicate");
        }
        let Some(directory) = directory else { return };
        let pu = self.pu_around(directory);
        for process in adopt::processes(directory).unwrap_or_default() {
            sockets::mark(process, pu, Some(PU_UNSORTED), &self.maps.pu_sockets);
        }
    }

    /// The PU of the nearest cgroup that is one or waits to be, or the host's, or 0.
    pub(super) fn pu_around(&self, directory: &Path) -> u32 {
        let around = directory.ancestors().take_while(|around| around.starts_with(&self.place.root));
        let id = |around: &Path| std::fs::metadata(around).ok().map(|meta| meta.ino());
        let pu = |id: u64| self.maps.pu_cgroups.get(&id).ok().flatten();
        around.filter_map(id).find_map(pu).unwrap_or_else(|| self.maps.host_pu())
    }

    /// Looks at all cgroups: those nobody told of, and those that are gone.
    pub(super) fn sweep_cgroups(&mut self) {
        let cgroups = match units::list(&self.place.root) {
            Ok(cgroups) => cgroups,
            Err(error) => return tracing::error!(%error, "cannot look for cgroups"),
        };
        let mut wanted = HashSet::new();
        for cgroup in &cgroups {
            if let Some(rule) = self.rules.of_cgroup(&cgroup.below)
                && !self.place.is_own(&cgroup.directory)
            {
                wanted.insert(cgroup_key(&cgroup.below));
                let present = self.maps.pu_cgroups.get(&cgroup.id).ok().flatten();
                if present.is_none_or(|pu| pu == PU_UNSORTED) || self.starting {
                    self.show_cgroup(&cgroup.below, &cgroup.directory, rule);
                }
            }
        }
        for pu in self.pipeline.known("cgroup:") {
            if !wanted.contains(&pu.key)
                && let Err(error) = self.pipeline.gone(&pu.key)
            {
                tracing::warn!(pu = %pu.name, %error, "it stays a PU");
            }
        }
        self.sweep_stopped(&cgroups);
    }

    /// Entries of cgroups that are stopped and should not be, or are gone.
    fn sweep_stopped(&mut self, cgroups: &[units::Cgroup]) {
        let stopped: Vec<u64> = match self.maps.pu_cgroups.entries() {
            Ok(entries) => entries.into_iter().filter(|(_, pu)| *pu == PU_UNSORTED).map(|(id, _)| id).collect(),
            Err(error) => return tracing::error!(%error, "cannot look at stopped cgroups"),
        };
        for id in stopped {
            let cgroup = cgroups.iter().find(|cgroup| cgroup.id == id);
            let wanted = self.containers.contains_key(&id)
                || cgroup.is_some_and(|cgroup| {
                    self.rules.of_cgroup(&cgroup.below).is_some()
                        || self.is_engines(id, &cgroup.below, &cgroup.directory)
                });
            // One made since the list was: its event tells of it.
            let gone = cgroup.is_none() && !self.stopped.insert(id);
            if !wanted && (cgroup.is_some() || gone) {
                self.let_go(id, cgroup.map(|cgroup| cgroup.directory.as_path()));
                self.stopped.remove(&id);
            }
        }
    }
}
