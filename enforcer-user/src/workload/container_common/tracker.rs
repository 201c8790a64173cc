//! Keeps the agent's PUs equal to the units of an engine.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::{PuSink, Seen, SinkError};
use super::{CgroupWatch, Namespace, Network, Unit, note_refused};
use crate::admin::PuTarget;
use crate::link_net::{self, Interface};

/// How long a unit is looked for after the engine told of it. After that only interfaces, cgroups and events tell.
const PATIENCE: Duration = Duration::from_secs(10);

/// Units and their PUs. Nothing is told to the agent but by [`Tracker::settle`] and [`Tracker::end`].
pub struct Tracker {
    prefix: &'static str,
    own: Namespace,
    cgroup_mount: PathBuf,
    units: BTreeMap<String, Tracked>,
    bridges: BTreeSet<String>,
    /// Ports of the bridges that no unit is known for: index and name.
    pending: BTreeMap<u32, String>,
    /// PUs the agent had when this began, by target: they keep their keys.
    former: Vec<(PuTarget, String)>,
}

#[derive(Debug)]
struct Tracked {
    unit: Unit,
    /// Containers it consists of.
    members: BTreeSet<String>,
    /// The cgroup that all its containers are in and nothing else.
    cgroup: Option<PathBuf>,
    /// One of its processes, as the engine says.
    pid: Option<u32>,
    namespace: Option<Namespace>,
    pus: BTreeMap<String, PuTarget>,
    /// When it was last said to exist.
    told: Instant,
    /// What the agent refused, so that it is said once.
    refused: Option<(PuTarget, String)>,
}

impl Tracker {
    /// A tracker of units whose keys begin with `prefix`; `cgroup_mount` is what `/proc/PID/cgroup` is relative to.
    ///
    /// # Errors
    /// If `/proc` is not there.
    pub fn new(prefix: &'static str, cgroup_mount: &Path, sink: &dyn PuSink) -> io::Result<Self> {
        let former = sink.known(prefix).into_iter().map(|pu| (pu.target, pu.key)).collect();
        Ok(Self {
            prefix,
            own: Namespace::own()?,
            cgroup_mount: cgroup_mount.to_owned(),
            units: BTreeMap::new(),
            bridges: BTreeSet::new(),
            pending: BTreeMap::new(),
            former,
        })
    }

    /// The bridges whose ports belong to units, by name.
    pub fn set_bridges(&mut self, bridges: BTreeSet<String>) {
        self.bridges = bridges;
    }

    /// There is a unit, or it has changed; `members` are its containers.
    pub fn know(&mut self, id: &str, unit: Unit, members: impl IntoIterator<Item = String>, sink: &dyn PuSink) {
        let (members, told) = (members.into_iter().collect(), Instant::now());
        match self.units.get_mut(id) {
            Some(tracked) if tracked.unit == unit => (tracked.members, tracked.told) = (members, told),
            Some(tracked) => {
                if tracked.unit.refused != unit.refused {
                    note_refused(&unit);
                }
                (tracked.unit, tracked.members, tracked.told, tracked.refused) = (unit, members, told, None);
                for (key, target) in tracked.pus.clone() {
                    tell(sink, &key, tracked, target);
                }
            }
            None => {
                note_refused(&unit);
                let (cgroup, pid, namespace, refused) = (None, None, None, None);
                let tracked = Tracked { unit, members, cgroup, pid, namespace, pus: BTreeMap::new(), told, refused };
                self.units.insert(id.to_owned(), tracked);
            }
        }
    }

    /// A process of a unit, from the engine.
    pub fn runs(&mut self, id: &str, pid: u32) {
        if let Some(tracked) = self.units.get_mut(id) {
            if tracked.pid != Some(pid) {
                (tracked.pid, tracked.namespace) = (Some(pid), None);
            }
        }
    }

    /// A cgroup that holds all of a unit's containers, and nothing else.
    pub fn lives_in(&mut self, id: &str, cgroup: PathBuf) {
        if let Some(tracked) = self.units.get_mut(id) {
            tracked.cgroup = Some(cgroup);
        }
    }

    /// Whether there is such a unit.
    pub fn knows(&self, id: &str) -> bool {
        self.units.contains_key(id)
    }

    /// Whether a container is what it is by its cgroup; `None` if no unit has it, or that is not known yet.
    pub fn is_by_cgroup(&self, container: &str) -> Option<bool> {
        let tracked = self.units.values().find(|tracked| tracked.members.contains(container))?;
        match tracked.unit.network {
            Network::Own => Some(false),
            Network::Host => Some(true),
            Network::Shared => Some(Namespace::of_process(tracked.pid?).ok()?.is(&self.own)),
        }
    }

    /// Whether a unit has this container.
    pub fn has(&self, container: &str) -> bool {
        self.units.values().any(|tracked| tracked.members.contains(container))
    }

    /// A unit ended.
    pub fn end(&mut self, id: &str, sink: &dyn PuSink) {
        for key in self.units.remove(id).into_iter().flat_map(|tracked| tracked.pus.into_keys()) {
            forget(sink, &key);
        }
    }

    /// Everything that exists has been told: units that were not, and PUs of an earlier run, ended meanwhile.
    pub fn only(&mut self, ids: &BTreeSet<String>, sink: &dyn PuSink) {
        let gone: Vec<String> = self.units.keys().filter(|id| !ids.contains(*id)).cloned().collect();
        gone.iter().for_each(|id| self.end(id, sink));
        self.settle(None, sink).unwrap_or_else(|error| tracing::warn!(%error, "interfaces cannot be listed"));
        let current: BTreeSet<&String> = self.units.values().flat_map(|tracked| tracked.pus.keys()).collect();
        let pending: Vec<String> = self.pending.values().map(|name| self.pending_key(name)).collect();
        for (_, key) in std::mem::take(&mut self.former) {
            if !current.contains(&key) && !pending.contains(&key) {
                forget(sink, &key);
            }
        }
    }

    /// Whether a unit still lacks what it is attributed by, and has not for long.
    pub fn is_waiting(&self) -> bool {
        self.units.values().any(|tracked| tracked.pus.is_empty() && tracked.told.elapsed() < PATIENCE)
    }

    /// Brings the agent up to date with interfaces and cgroups as they are now.
    ///
    /// # Errors
    /// If interfaces cannot be listed.
    pub fn settle(&mut self, cgroups: Option<&CgroupWatch>, sink: &dyn PuSink) -> io::Result<()> {
        let ids: Vec<String> = self.units.keys().cloned().collect();
        for id in &ids {
            self.locate(id, cgroups, sink);
        }
        let interfaces = link_net::list()?;
        self.interfaces(&interfaces, sink);
        Ok(())
    }

    /// Finds the namespace or the cgroup of a unit.
    fn locate(&mut self, id: &str, cgroups: Option<&CgroupWatch>, sink: &dyn PuSink) {
        let Some(tracked) = self.units.get_mut(id) else { return };
        if tracked.unit.network == Network::Own {
            if tracked.namespace.is_none() {
                let cgroup = || tracked.members.iter().find_map(|member| cgroups?.of_container(member));
                let pids = match tracked.pid {
                    Some(pid) => vec![pid],
                    None => cgroup().map(|cgroup| processes(&cgroup)).unwrap_or_default(),
                };
                let others = pids.into_iter().filter_map(|pid| Namespace::of_process(pid).ok());
                // The runtime itself is in the cgroup too for a moment, in the host's namespace.
                tracked.namespace = others.into_iter().find(|namespace| !namespace.is(&self.own));
            }
            return;
        }
        if tracked.unit.network == Network::Shared {
            let pid = tracked.pid.and_then(|pid| Namespace::of_process(pid).ok());
            if !pid.is_some_and(|namespace| namespace.is(&self.own)) {
                return;
            }
        }
        let own = format!("{}{id}", self.prefix);
        let mut wanted: BTreeMap<String, PathBuf> = BTreeMap::new();
        match &tracked.cgroup {
            Some(cgroup) => drop(wanted.insert(own, cgroup.clone())),
            None => {
                for member in &tracked.members {
                    let seen = cgroups.and_then(|cgroups| cgroups.of_container(member));
                    let known = || tracked.pid.and_then(|pid| cgroup_of_process(pid, member, &self.cgroup_mount));
                    if let Some(path) = seen.or_else(|| if member == id { known() } else { None }) {
                        let part = || format!("{own}/{}", member.get(..12).unwrap_or(member));
                        wanted.insert(if member == id { own.clone() } else { part() }, path);
                    }
                }
            }
        }
        for (key, path) in wanted {
            let target = PuTarget::Cgroup(path);
            if tracked.pus.get(&key) != Some(&target) {
                appear(sink, key, tracked, target);
            }
        }
    }

    fn interfaces(&mut self, interfaces: &[Interface], sink: &dyn PuSink) {
        let numbers: BTreeMap<i32, String> = self
            .units
            .iter_mut()
            .filter_map(|(id, tracked)| Some((tracked.namespace.as_mut()?.number()?, id.clone())))
            .collect();
        for tracked in self.units.values_mut() {
            let here = |target: &PuTarget| match target {
                PuTarget::Interface(name) => interfaces.iter().any(|interface| interface.name == *name),
                _ => true,
            };
            let gone: Vec<String> =
                tracked.pus.iter().filter(|(_, target)| !here(target)).map(|(key, _)| key.clone()).collect();
            for key in gone {
                tracked.pus.remove(&key);
                forget(sink, &key);
            }
        }
        let bridges: BTreeSet<u32> =
            interfaces.iter().filter(|found| self.bridges.contains(&found.name)).map(|found| found.index).collect();
        let pending = std::mem::take(&mut self.pending);
        for interface in interfaces.iter().filter(|interface| interface.is_a("veth")) {
            let owner = interface.peer_namespace.and_then(|number| numbers.get(&number));
            let was_pending = pending.contains_key(&interface.index);
            let is_pending = match owner {
                Some(id) => !self.belongs(id, interface, sink) && was_pending,
                None => interface.master.as_ref().is_some_and(|master| bridges.contains(&master.index)),
            };
            if is_pending && !was_pending {
                self.hold(interface, sink);
            }
            if is_pending {
                self.pending.insert(interface.index, interface.name.clone());
            }
        }
        for (index, name) in pending {
            if !interfaces.iter().any(|interface| interface.index == index) {
                forget(sink, &self.pending_key(&name));
            }
        }
    }

    /// An interface leads to a unit; whether it is a PU of it now. One that was pending is taken over by the new key.
    fn belongs(&mut self, id: &str, interface: &Interface, sink: &dyn PuSink) -> bool {
        let former = |target: &PuTarget| self.former.iter().find(|(theirs, _)| theirs == target).map(|(_, key)| key);
        let target = PuTarget::Interface(interface.name.clone());
        let former = former(&target).filter(|key| key.starts_with(&format!("{}{id}", self.prefix))).cloned();
        let Some(tracked) = self.units.get_mut(id) else { return false };
        if tracked.pus.values().any(|present| *present == target) {
            return true;
        }
        let own = format!("{}{id}", self.prefix);
        let key = former.unwrap_or_else(|| match tracked.pus.contains_key(&own) {
            true => format!("{own}/{}", interface.name),
            false => own,
        });
        appear(sink, key, tracked, target)
    }

    /// An interface is a port of an engine's bridge, and nobody knows yet whose.
    fn hold(&self, interface: &Interface, sink: &dyn PuSink) {
        let key = self.pending_key(&interface.name);
        let target = PuTarget::Interface(interface.name.clone());
        let seen = Seen { target, name: key.clone(), namespace: None, tags: Vec::new(), complete: false };
        if let Err(error) = sink.appear(&key, seen) {
            tracing::warn!(interface = %interface.name, %error, "a port of a container bridge is not held back");
        }
    }

    fn pending_key(&self, interface: &str) -> String {
        format!("{}?{interface}", self.prefix)
    }
}

/// Tells the agent of a PU of a unit; whether there is one now.
fn appear(sink: &dyn PuSink, key: String, tracked: &mut Tracked, target: PuTarget) -> bool {
    let made = tell(sink, &key, tracked, target.clone());
    if made {
        tracked.pus.insert(key, target);
    }
    made
}

fn tell(sink: &dyn PuSink, key: &str, tracked: &mut Tracked, target: PuTarget) -> bool {
    let unit = &tracked.unit;
    let seen = Seen {
        target: target.clone(),
        name: unit.name.clone(),
        namespace: unit.namespace.clone(),
        tags: unit.tags.clone(),
        complete: true,
    };
    let Err(error) = sink.appear(key, seen.clone()) else {
        tracked.refused = None;
        return true;
    };
    let refused = (target, error.to_string());
    if tracked.refused.as_ref() != Some(&refused) {
        tracing::error!(container = %unit.name, %error, "cannot be a PU; it is allowed nothing");
        tracked.refused = Some(refused);
    }
    // Without an identity it must not be unmanaged: a PU that is never complete is denied.
    matches!(error, SinkError::Refused(_))
        && sink.appear(key, Seen { tags: Vec::new(), complete: false, ..seen }).is_ok()
}

fn forget(sink: &dyn PuSink, key: &str) {
    if let Err(error) = sink.gone(key) {
        tracing::warn!(key, %error, "a PU did not end wholly");
    }
}

/// The processes directly in a cgroup, lowest id first.
fn processes(cgroup: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect();
    pids.sort_unstable();
    pids
}

/// The cgroup v2 directory of the container that a process is in; the process may have made others inside.
fn cgroup_of_process(pid: u32, container: &str, mount: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = mount.join(text.lines().find_map(|line| line.strip_prefix("0::/"))?);
    let of_container =
        |path: &&Path| path.file_name().and_then(|name| name.to_str()).and_then(super::container_of) == Some(container);
    Some(path.ancestors().find(of_container).unwrap_or(&path).to_owned())
}
