//! The source that finds PUs by cgroup and by what a process executes, as `[[workload]]` says.
//!
//! The kernel stops what may be meant before it can send ([`crate::load`]: `process_exec`, `process_fork`, `cgroup_mkdir`) and
//! tells of it; here it is sorted out. What the kernel could not tell (a full ring, a time without agent) is found by
//! looking at everything now and then.

mod cgroups;
mod containers;
mod events;
mod execs;
mod place;
mod probe;
mod rules;
mod sockets;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use common::workload::{
    CGROUP_PATTERNS, WATCH_CGROUPS, WATCH_CONTAINERS, WATCH_EXEC, WATCH_PUS, WORKLOAD_CGROUP, WORKLOAD_EXEC, Watch,
};

use super::{
    Pipeline, PuSink, Source, Stop, adopt,
    container_common::Stopped,
    object::{self, HashCache},
    units,
};
use crate::{config::Config, load::kernel_offsets, map_write::Maps};

use containers::Container;
use events::{Event, Events};
use place::Place;
pub use place::check;
use rules::Rules;

/// Finds PUs as the configuration says.
pub struct Finder {
    maps: Arc<Maps>,
    pipeline: Arc<Pipeline>,
    place: Place,
    rules: Rules,
    hashes: HashCache,
    prepared: bool,
    /// The first look is at what another agent left.
    starting: bool,
    /// Stopped cgroups that were not found when they were last looked for.
    stopped: HashSet<u64>,
    /// Stopped cgroups that could not be made PUs at once: path, and how often that is still tried.
    again: HashMap<u64, (String, u32)>,
    /// Stopped cgroups of containers, and what engines say of them.
    containers: HashMap<u64, Container>,
    stopped_containers: Stopped,
    /// Since when a PU has no process.
    empty_since: HashMap<String, Instant>,
}

impl Finder {
    /// Reads the rules; nothing is done before it runs. Of `stopped_containers` container engines say what they are.
    ///
    /// # Errors
    /// If a rule names a user that is not there, or the hierarchy cannot be found.
    pub fn new(
        config: &Config,
        maps: Arc<Maps>,
        pipeline: Arc<Pipeline>,
        stopped_containers: Stopped,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            maps,
            pipeline,
            place: Place::new(config)?,
            rules: Rules::new(config)?,
            hashes: HashCache::default(),
            prepared: false,
            starting: true,
            stopped: HashSet::new(),
            again: HashMap::new(),
            containers: HashMap::new(),
            stopped_containers,
            empty_since: HashMap::new(),
        })
    }

    /// Tells the kernel what to stop, and takes what runs already; an agent is not ready before.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn prepare(&mut self) -> anyhow::Result<()> {
        arm_with(&mut self.place, &self.rules, self.stopped_containers.is_in_use(), &self.maps)?;
        self.starting = true;
        self.sweep(true);
        self.sweep_processes();
        self.starting = false;
        self.prepared = true;
        Ok(())
    }

    fn handle(&mut self, event: &Event) {
        match event.kind {
            WORKLOAD_CGROUP => self.sort_cgroup(event.cgroup, &event.path),
            WORKLOAD_EXEC => self.sort_process(event.process, Some((event.file, event.ctime_sec))),
            _ => self.look_again(event.process),
        }
    }

    /// The main process of a PU may have become another program.
    fn look_again(&self, process: u32) {
        let Some(cgroup) = self.place.cgroup_of(process) else { return };
        for pu in self.pipeline.known("") {
            let crate::admin::PuTarget::Cgroup(path) = &pu.target else { continue };
            if !cgroup.starts_with(path) {
                continue;
            }
            let main = adopt::processes(path).ok().and_then(|all| object::main_process(&all));
            if main.is_some_and(|main| main.pid == process) {
                self.pipeline.examine(&pu.key);
            }
        }
    }

    /// Finds what no event told of.
    fn sweep(&mut self, all: bool) {
        if all {
            self.sweep_cgroups();
            self.sweep_empty();
        }
        self.sort_again();
        self.tend_containers();
        self.sweep_unsorted();
    }
}

/// What the keys of PUs begin with that hold processes of a rule.
pub(crate) const EXECUTED: &str = "exec:";

/// Tells the kernel what to stop, for whoever will find it.
///
/// # Errors
/// If a rule names a user that is not there, the hierarchy cannot be found, or what the kernel reports.
pub fn arm(config: &Config, maps: &Maps) -> anyhow::Result<()> {
    arm_with(&mut Place::new(config)?, &Rules::new(config)?, config.engines() > 0, maps)
}

fn arm_with(place: &mut Place, rules: &Rules, containers: bool, maps: &Maps) -> anyhow::Result<()> {
    let mut watch = Watch { root: place.root_id, root_level: place.root_level, flags: WATCH_PUS, ..Watch::default() };
    let late = "workloads are found late: what starts may communicate unmanaged for a moment";
    if rules.is_empty() && !containers {
        maps.watch.insert(&0, &watch)?;
        maps.exec_files.retain(|_, _| false)?;
        return Ok(());
    }
    match kernel_offsets() {
        Ok(offsets) => watch.offsets = offsets,
        Err(error) => {
            tracing::warn!(%error, "{late}");
            maps.watch.insert(&0, &watch)?;
            return Ok(());
        }
    }
    if !probe::is_first_namespace()? {
        match probe::kernel_path(&place.root, watch.offsets, maps) {
            Ok(path) => place.is_called(path),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "in a cgroup namespace, {late}"),
        }
        watch.root_level = place.root_level;
    }
    let patterns: Vec<_> = rules.patterns().collect();
    let limit = CGROUP_PATTERNS as usize;
    if patterns.len() > limit {
        tracing::warn!(
            limit,
            "more units and cgroups in `[[workload]]` than the kernel looks for at once; the last are found late"
        );
    }
    for (index, pattern) in patterns.iter().take(limit).enumerate() {
        let compiled = units::kernel_pattern(pattern, &place.kernel_root);
        maps.cgroup_patterns.insert(&(index as u32), &compiled)?;
    }
    watch.patterns = patterns.len().min(limit) as u32;
    if watch.patterns > 0 {
        watch.flags |= WATCH_CGROUPS;
    }
    if containers {
        watch.flags |= WATCH_CONTAINERS;
    }
    if rules.has_execs() {
        watch.flags |= WATCH_EXEC;
    }
    watch.unknown_file = rules.unknown_file();
    maps.exec_users.retain(|uid, _| rules.names_user(*uid))?;
    for uid in rules.users() {
        maps.exec_users.insert(&uid, &1)?;
    }
    maps.watch.insert(&0, &watch)?;
    // Judged by other rules, perhaps.
    maps.exec_files.retain(|_, _| false)?;
    Ok(())
}

/// Between looks at processes that the kernel stopped and did not tell of.
const SOON: Duration = Duration::from_millis(100);
/// Between looks at what engines say of stopped containers.
const VERY_SOON: Duration = Duration::from_millis(10);
/// Between looks at all cgroups.
const SELDOM: Duration = Duration::from_secs(5);

impl Source for Finder {
    fn name(&self) -> &'static str {
        "workloads"
    }

    fn run(&mut self, _: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        let mut events = Events::open(self.maps.directory()).context("events of workloads")?;
        if !std::mem::take(&mut self.prepared) {
            self.prepare()?;
            self.prepared = false;
        }
        let mut next_all = Instant::now() + SELDOM;
        while !stop.is_set() {
            let found = events.wait(if self.expects_answers() { VERY_SOON } else { SOON })?;
            for event in &found {
                self.handle(event);
            }
            let all = Instant::now() >= next_all;
            if all {
                next_all = Instant::now() + SELDOM;
            }
            self.sweep(all);
        }
        Ok(())
    }
}

/// The key of a PU that is a cgroup.
fn cgroup_key(below: &str) -> String {
    format!("cgroup:{below}")
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
