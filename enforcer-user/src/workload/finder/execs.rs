//! Processes sorted out when they execute a program.
//!
//! A process that a rule matches moves, with what it forked meanwhile, to the cgroup of its PU. One PU holds all processes of
//! the same rule, executable, hash and user: peers know it already when the next one starts.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use common::{
    abi::PU_UNSORTED,
    workload::{FileKey, FileVerdict},
};
use ring::digest;

use super::{EXECUTED, Finder, containers::InContainer, name_of, place::Place, rules::Rule, sockets};
use crate::{
    admin::PuTarget,
    sys,
    workload::{
        PuSink, Seen, TagSource, adopt,
        exec_match::{Executed, Look, is_same},
    },
};

/// A process of a rule.
struct Match {
    key: String,
    name: String,
    rule: Rule,
    cgroup: PathBuf,
}

/// A PU without processes is kept so long for the next one.
const LINGER: Duration = Duration::from_secs(60);
/// The kernel tells of a process within this time, or was not able to.
const TOLD_WITHIN: Duration = Duration::from_millis(50);

impl Finder {
    /// Sorts out a process; `file` is what the kernel saw it execute.
    pub(super) fn sort_process(&mut self, process: u32, file: Option<(FileKey, u64)>) {
        match self.in_container(process) {
            InContainer::Stopped => return,
            InContainer::Pu => return self.release(process),
            InContainer::No => {}
        }
        match self.find(process, file) {
            Ok(Some(found)) => self.take(process, &found),
            Ok(None) => self.release(process),
            // What cannot be looked at has ended, or is left as it is until it can.
            Err(error) if is_gone(process) => {
                tracing::debug!(process, %error, "ended before it was sorted out");
                self.forget(process);
            }
            Err(error) => tracing::warn!(process, %error, "cannot be sorted out, and may not communicate"),
        }
    }

    fn find(&self, process: u32, file: Option<(FileKey, u64)>) -> io::Result<Option<Match>> {
        if !self.rules.has_execs() || !Place::is_here(process)? || self.place.cgroup_of(process).is_none() {
            return Ok(None);
        }
        let hashes = self.rules.wants_hash().then_some(&self.hashes);
        let (look, meta) = Look::at(process, hashes)?;
        if let Some((key, ctime_sec)) = file
            && is_same(&meta, &key, ctime_sec)
        {
            let verdict = FileVerdict { ctime_sec, bits: self.rules.file_bits(&look), pad: 0 };
            if let Err(error) = self.maps.exec_files.insert(&key, &verdict) {
                tracing::warn!(%error, "the kernel asks for this file again");
            }
        }
        let executed = Executed::at(process)?;
        let Some((number, rule)) = self.rules.of_process(&look, &executed) else { return Ok(None) };
        let exe = fs::read_link(format!("/proc/{process}/exe"))?;
        let what = format!("{number}\0{}\0{:?}\0{}\0{}", exe.display(), look.sha256, meta.ino(), executed.uid);
        let hash = digest::digest(&digest::SHA256, what.as_bytes());
        let short: String = hash.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let name = rule.name.clone().unwrap_or_else(|| name_of(&exe));
        Ok(Some(Match {
            key: format!("{EXECUTED}{short}"),
            name,
            rule: rule.clone(),
            cgroup: self.place.pu_cgroups.join(format!("exec-{short}")),
        }))
    }

    /// Moves a process and what it forked into its PU.
    fn take(&mut self, process: u32, found: &Match) {
        let made = fs::create_dir_all(&found.cgroup);
        // Until it is a PU nothing in it may communicate, whatever becomes of this agent.
        self.stop(&found.cgroup);
        if let Err(error) = made.and_then(|()| self.move_all(process, &found.cgroup)) {
            if is_gone(process) {
                return self.forget(process);
            }
            return tracing::error!(process, name = found.name, %error, "cannot move it to its PU; it may not communicate");
        }
        let seen = Seen {
            target: PuTarget::Cgroup(found.cgroup.clone()),
            name: found.name.clone(),
            namespace: found.rule.namespace.clone(),
            tags: vec![(TagSource::Config, found.rule.tags.clone())],
            complete: true,
        };
        let pu = match self.pipeline.appear(&found.key, seen) {
            Ok(()) => self.pu_at(&found.cgroup),
            Err(error) => {
                tracing::error!(process, name = found.name, %error, "cannot be a PU, and may not communicate");
                PU_UNSORTED
            }
        };
        self.empty_since.remove(&found.key);
        for member in self.group(process) {
            // Sockets it brought along were others'.
            sockets::mark(member, pu, None, &self.maps.pu_sockets);
            self.forget(member);
        }
        sockets::mark(process, pu, None, &self.maps.pu_sockets);
        self.forget(process);
    }

    /// Stops what is no PU (yet).
    pub(super) fn stop(&self, cgroup: &Path) {
        let stopped = fs::metadata(cgroup).map(|meta| self.maps.pu_cgroups.insert_new(&meta.ino(), &PU_UNSORTED));
        match stopped {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(cgroup = %cgroup.display(), %error, "it is not stopped"),
            Err(error) => tracing::error!(cgroup = %cgroup.display(), %error, "it is not stopped"),
        }
    }

    /// Moves a process, then again what it forked before it was moved, until there is no more.
    fn move_all(&self, process: u32, cgroup: &Path) -> io::Result<()> {
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, process.to_string())?;
        let mut moved = BTreeSet::from([process]);
        loop {
            let more: Vec<u32> = self.group(process).into_iter().filter(|member| moved.insert(*member)).collect();
            if more.is_empty() {
                return Ok(());
            }
            for member in more {
                match fs::write(&procs, member.to_string()) {
                    Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                    _ => {}
                }
            }
        }
    }

    /// What the kernel stopped in vain.
    fn release(&mut self, process: u32) {
        let members = self.group(process);
        self.forget(process);
        let pu = self.place.cgroup_of(process).map_or_else(|| self.maps.host_pu(), |cgroup| self.pu_around(&cgroup));
        sockets::mark(process, pu, Some(PU_UNSORTED), &self.maps.pu_sockets);
        // What it forked may have executed something else meanwhile.
        for member in members {
            self.sort_process(member, None);
        }
    }

    /// Processes that were forked by an unsorted one.
    fn group(&self, root: u32) -> Vec<u32> {
        let entries = self.maps.unsorted.entries().unwrap_or_default();
        entries
            .into_iter()
            .filter(|(process, entry)| entry.root == root && *process != root)
            .map(|(process, _)| process)
            .collect()
    }

    fn forget(&self, process: u32) {
        if let Err(error) = self.maps.unsorted.remove(&process) {
            tracing::error!(process, %error, "stays unsorted");
        }
    }

    fn pu_at(&self, cgroup: &Path) -> u32 {
        let id = fs::metadata(cgroup).map(|meta| meta.ino());
        id.ok().and_then(|id| self.maps.pu_cgroups.get(&id).ok().flatten()).unwrap_or(PU_UNSORTED)
    }

    /// Sorts out what was stopped and not told of.
    pub(super) fn sweep_unsorted(&mut self) {
        let now = sys::monotonic_ns();
        let late = |since: u64| Duration::from_nanos(now.saturating_sub(since)) > TOLD_WITHIN;
        let entries = self.maps.unsorted.entries().unwrap_or_default();
        let roots: BTreeSet<u32> =
            entries.iter().filter(|(_, entry)| late(entry.since_ns)).map(|(_, entry)| entry.root).collect();
        for root in roots {
            if is_gone(root) {
                // What it forked lives on: each is sorted out for itself.
                for member in self.group(root) {
                    self.sort_process(member, None);
                }
                self.forget(root);
            } else {
                self.sort_process(root, None);
            }
        }
    }

    /// Finds processes that run already.
    pub(super) fn sweep_processes(&mut self) {
        if !self.rules.has_execs() {
            return;
        }
        for process in adopt::processes(&self.place.root).unwrap_or_default() {
            let inside = self.place.cgroup_of(process).is_some_and(|cgroup| self.is_managed(&cgroup));
            if process == std::process::id() || inside {
                continue;
            }
            if let Ok(Some(found)) = self.find(process, None) {
                self.take(process, &found);
            }
        }
    }

    /// Whether a cgroup or one around it is a PU.
    fn is_managed(&self, cgroup: &Path) -> bool {
        cgroup.ancestors().take_while(|around| around.starts_with(&self.place.root)).any(|around| {
            let id = fs::metadata(around).map(|meta| meta.ino());
            id.is_ok_and(|id| self.maps.pu_cgroups.get(&id).ok().flatten().is_some())
        })
    }

    /// Ends PUs whose processes have ended some time ago.
    pub(super) fn sweep_empty(&mut self) {
        for pu in self.pipeline.known(EXECUTED) {
            let PuTarget::Cgroup(cgroup) = &pu.target else { continue };
            let populated = fs::read_to_string(cgroup.join("cgroup.events")).map(|text| text.contains("populated 1"));
            if populated.unwrap_or(cgroup.exists()) {
                self.empty_since.remove(&pu.key);
                continue;
            }
            let since = *self.empty_since.entry(pu.key.clone()).or_insert_with(Instant::now);
            // A process that enters meanwhile keeps the directory from being removed.
            if since.elapsed() < LINGER || fs::remove_dir(cgroup).is_err() && cgroup.exists() {
                continue;
            }
            self.empty_since.remove(&pu.key);
            if let Err(error) = self.pipeline.gone(&pu.key) {
                tracing::warn!(pu = %pu.name, %error, "it stays a PU");
            }
        }
    }
}

fn is_gone(process: u32) -> bool {
    crate::workload::object::start_time(process).is_none()
}
