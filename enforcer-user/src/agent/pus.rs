//! PUs of this host: making, signing, renewing, ending.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use common::{abi, drop_reason::Reason, identity::SessionPu};

use super::{
    Shared, clock, host_pu,
    names::{AGENT_DOC, AgentDoc, TargetDoc},
    policy,
    state::{LocalPu, State},
};
use crate::{
    admin::{AdminError, ErrorKind, PuTarget},
    identity::{PreparedCredential, credential},
    link_net,
    map_write::{INDEX_MAX, patiently},
    workload::{TagSet, TagSource, adopt, host},
};

/// What is to become a PU.
pub(super) struct Wanted {
    /// What its source calls it; none if a person makes it.
    pub key: Option<String>,
    pub target: PuTarget,
    pub name: Option<String>,
    /// Whether another name will do if this one is taken.
    pub any_name: bool,
    pub namespace: Option<String>,
    pub tags: TagSet,
    pub complete: bool,
}

/// Makes a PU: it is enforced when this returns, the sockets it had before included.
pub(super) fn add(shared: &Shared, wanted: Wanted) -> Result<(String, String, Option<PathBuf>), AdminError> {
    let (mut pu, credential) = draft(shared, &wanted)?;
    let (index, id) = (pu.index, pu.id.clone());
    // Without the lock: it looks into the file system.
    let (target, made) = resolve(shared, &wanted.target, &id)?;
    pu.target = target;
    let name = pu.name.clone();
    let installed = {
        let mut state = shared.state();
        match state.pus.values().find(|present| present.target == pu.target || present.key == pu.key) {
            Some(present) => {
                let message = format!("this is the PU `{}` already", present.name);
                Err(AdminError::new(ErrorKind::Exists, message))
            }
            None => Ok(state.install(pu, credential)),
        }
    };
    let done = match installed {
        Ok(done) => done,
        Err(error) => {
            if let Some(cgroup) = &made {
                let _ = std::fs::remove_dir(cgroup);
            }
            return Err(error);
        }
    };
    let done =
        done.and_then(|()| Ok(patiently(|| shared.state().judge_externals())?)).and_then(|()| bind(shared, index));
    if let Err(error) = done {
        // Sockets may bear its number already, and flows.
        end(shared, index);
        return Err(AdminError::internal(error));
    }
    tracing::info!(pu = %name, "PU made");
    Ok((id, name, made))
}

/// A PU with everything but its target, signed: a profile that does not fit must leave nothing behind.
fn draft(shared: &Shared, wanted: &Wanted) -> Result<(LocalPu, PreparedCredential), AdminError> {
    let invalid = |error: credential::PrepareError| AdminError::new(ErrorKind::Invalid, error.to_string());
    let mut state = shared.state();
    let index = state.next_pu()?;
    let id = format!("pu{index}");
    let mut name = wanted.name.clone().unwrap_or_else(|| id.clone());
    if state.pus.values().any(|pu| pu.name == name) {
        if !wanted.any_name {
            let message = format!("there is a PU named `{name}`; choose another --name");
            return Err(AdminError::new(ErrorKind::Exists, message));
        }
        name = format!("{name}-{index}");
    }
    let namespace = wanted.namespace.clone().unwrap_or_else(|| shared.config.namespace.clone());
    let mut set = wanted.tags.clone();
    let key = wanted.key.clone().unwrap_or_else(|| format!("user:{id}"));
    let of_host = host::tags(&shared.config, state.own.id().as_str());
    set.set(TagSource::Enforcer, host::tags_of(&key, of_host, state.own.id().name()));
    let carried = state.choose(&key, &name, &namespace, &set).map_err(invalid)?;
    let mut pu = LocalPu {
        index,
        key,
        id,
        name,
        namespace,
        set,
        tags: carried.tags,
        left_out: carried.left_out,
        complete: wanted.complete,
        issued_ms: 0,
        target: TargetDoc::Interface { name: String::new(), index: 0 },
        handle: state.free_handle(),
        identity: 0,
        credential: None,
        error: None,
        released: false,
        populated: false,
        created: clock::now(),
    };
    let credential = state.sign(&mut pu).map_err(invalid)?;
    Ok((pu, credential))
}

/// The target as the kernel knows it; for a command, its new cgroup.
fn resolve(shared: &Shared, target: &PuTarget, id: &str) -> Result<(TargetDoc, Option<PathBuf>), AdminError> {
    match target {
        PuTarget::Cgroup(path) => Ok((TargetDoc::Cgroup { path: path.clone(), id: cgroup_id(shared, path)? }, None)),
        PuTarget::Interface(name) => {
            let interface = link_net::by_name(name).map_err(AdminError::internal)?.ok_or_else(|| {
                AdminError::new(ErrorKind::NotFound, format!("no interface `{name}` here; see `ip link`"))
            })?;
            Ok((TargetDoc::Interface { name: name.clone(), index: interface.index }, None))
        }
        PuTarget::Command => {
            let path = shared.config.pu_cgroups().map_err(AdminError::internal)?.join(id);
            std::fs::create_dir_all(&path)
                .map_err(|error| AdminError::internal(format!("cannot make {}: {error}", path.display())))?;
            Ok((TargetDoc::Command { path: path.clone(), id: cgroup_id(shared, &path)? }, Some(path)))
        }
    }
}

/// A cgroup v2's id is the inode number of its directory (cgroup v2, `bpf_get_current_cgroup_id`).
fn cgroup_id(shared: &Shared, path: &Path) -> Result<u64, AdminError> {
    let invalid = |problem: String| AdminError::new(ErrorKind::Invalid, format!("{}: {problem}", path.display()));
    if !path.join("cgroup.procs").exists() {
        return Err(invalid("is no cgroup v2 directory".into()));
    }
    let root = shared.config.cgroup_root().map_err(AdminError::internal)?;
    let inside = path.canonicalize().is_ok_and(|path| root.canonicalize().is_ok_and(|root| path.starts_with(root)));
    if !inside {
        return Err(invalid(format!("lies outside of {}, where this enforcer looks", root.display())));
    }
    std::fs::metadata(path).map(|directory| directory.ino()).map_err(|error| invalid(error.to_string()))
}

/// Leads the kernel from the target to the PU.
fn bind(shared: &Shared, index: u32) -> anyhow::Result<()> {
    let Some((target, is_host)) = shared.state().pus.get(&index).map(|pu| (pu.target.clone(), pu.is_host())) else {
        return Ok(());
    };
    match target {
        TargetDoc::Cgroup { .. } if is_host => host_pu::bind(shared, index)?,
        TargetDoc::Cgroup { path, id } | TargetDoc::Command { path, id } => {
            // Looked at before, so that what is stopped stays so; and after, so that nothing enters unseen.
            refuse_foreign(&path)?;
            shared.maps.pu_cgroups.insert(&id, &index)?;
            refuse_foreign(&path)?;
            let adopted = adopt::adopt(&path, index, &shared.maps.pu_sockets)?;
            if adopted.sockets > 0 {
                tracing::info!(pu = index, sockets = adopted.sockets, "took over sockets older than the PU");
            }
            for (inner, path) in shared.state().inside(&path, index) {
                adopt::adopt(&path, inner, &shared.maps.pu_sockets)?;
            }
        }
        TargetDoc::Interface { index: ifindex, .. } => {
            shared.maps.pu_ifaces.insert(&ifindex, &index)?;
            shared.kernel().attach_pu_interface(ifindex)?;
        }
    }
    Ok(())
}

/// Processes with a network namespace of their own send and receive where no program of this enforcer is.
fn refuse_foreign(cgroup: &Path) -> anyhow::Result<()> {
    let own = std::fs::read_link("/proc/self/ns/net")?;
    for pid in adopt::processes(cgroup)? {
        if std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs != own) {
            anyhow::bail!(
                "process {pid} of {} has a network namespace of its own; make it a PU by its interface: \
                 `enforcer pu add --interface IF`",
                cgroup.display()
            );
        }
    }
    Ok(())
}

/// Attaches to the interfaces of PUs taken over from a former agent; one that is gone is upkeep's to notice.
pub(super) fn attach_interfaces(shared: &Shared) {
    let targets: Vec<TargetDoc> = shared.state().pus.values().map(|pu| pu.target.clone()).collect();
    for target in targets {
        if let TargetDoc::Interface { name, index } = target
            && let Err(error) = shared.kernel().attach_pu_interface(index)
        {
            tracing::warn!(interface = name, %error, "cannot attach to a PU's interface");
        }
    }
}

/// Ends a PU: its flows are cut, its processes become unmanaged.
pub(super) fn remove(shared: &Shared, which: &str) -> Result<(), AdminError> {
    let index = find(&shared.state(), which)?;
    end(shared, index);
    Ok(())
}

/// The command of a PU has ended: the PU goes when its cgroup is empty.
pub(super) fn release(shared: &Shared, which: &str) -> Result<(), AdminError> {
    let index = find(&shared.state(), which)?;
    if let Some(pu) = shared.state().pus.get_mut(&index) {
        pu.released = true;
    }
    reap(shared);
    Ok(())
}

pub(super) fn find(state: &State, which: &str) -> Result<u32, AdminError> {
    let found = state.pus.values().find(|pu| pu.id == which || pu.name == which).map(|pu| pu.index);
    found.ok_or_else(|| AdminError::new(ErrorKind::NotFound, format!("no PU `{which}`; see `enforcer pus`")))
}

/// A command's cgroup that nobody enters within this time is given up, seconds.
const ENTRY_PATIENCE: u64 = 60;

/// Ends PUs whose cgroup is gone, and commands whose cgroup is empty.
pub(super) fn reap(shared: &Shared) {
    // The file system is asked without the lock: a cgroup's files can take their time.
    let now = clock::now();
    let look = |pu: &LocalPu| {
        let waited = now.saturating_sub(pu.created) > ENTRY_PATIENCE;
        (pu.index, pu.target.clone(), pu.released || pu.populated || waited)
    };
    let targets: Vec<_> = shared.state().pus.values().map(look).collect();
    let mut over = Vec::new();
    for (index, target, may_end) in targets {
        match target {
            TargetDoc::Command { path, .. } => match is_populated(&path) {
                Some(true) => {
                    if let Some(pu) = shared.state().pus.get_mut(&index) {
                        pu.populated = true;
                    }
                }
                Some(false) if may_end => over.push(index),
                _ if is_gone(&path) => over.push(index),
                _ => {}
            },
            TargetDoc::Cgroup { path, id } => {
                let replaced = std::fs::metadata(&path).is_ok_and(|directory| directory.ino() != id);
                if replaced || is_gone(&path) {
                    over.push(index);
                }
            }
            TargetDoc::Interface { .. } => {}
        }
    }
    over.into_iter().for_each(|index| end(shared, index));
}

/// Whether a cgroup is gone for sure: an error of any other kind must not end a PU, for its processes would be unmanaged.
fn is_gone(cgroup: &Path) -> bool {
    std::fs::metadata(cgroup).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Whether processes live in a cgroup or below it; `None` if that cannot be told.
fn is_populated(cgroup: &Path) -> Option<bool> {
    let events = std::fs::read_to_string(cgroup.join("cgroup.events")).ok()?;
    Some(events.lines().any(|line| line == "populated 1"))
}

/// Ends the PU of an interface that is gone.
pub(super) fn interface_gone(shared: &Shared, ifindex: u32) {
    let gone = |pu: &&LocalPu| matches!(pu.target, TargetDoc::Interface { index, .. } if index == ifindex);
    let index = shared.state().pus.values().find(gone).map(|pu| pu.index);
    if let Some(index) = index {
        end(shared, index);
    }
}

/// Ends a PU: its flows are cut, its processes belong to the PU around it or are unmanaged.
pub(super) fn end(shared: &Shared, index: u32) {
    if let Some(pu) = give_up(shared, index) {
        policy::cut_where(shared, Reason::Revoked, |flow| flow.pu == index);
        tracing::info!(pu = %pu.name, "PU ended");
    }
}

/// Ends a PU as if it had never been one: its connections go on.
pub(super) fn let_go(shared: &Shared, index: u32) {
    if let Some(pu) = give_up(shared, index) {
        if let Err(error) = shared.maps.flows.retain(|_, flow| flow.pu != index) {
            tracing::error!(%error, "flows of a PU that is none any more stay");
        }
        tracing::info!(pu = %pu.name, "no PU any more");
    }
}

fn give_up(shared: &Shared, index: u32) -> Option<LocalPu> {
    let pu = shared.state().forget_pu(index)?;
    shared.waiting.forget(index);
    match &pu.target {
        TargetDoc::Cgroup { .. } if pu.is_host() => host_pu::release(shared, index),
        TargetDoc::Cgroup { path, id } | TargetDoc::Command { path, id } => {
            // Processes that remain belong to the PU around it, or are unmanaged: their sockets must not name a PU that
            // is gone.
            let (around, inside) = {
                let state = shared.state();
                (state.around(path), state.inside(path, index))
            };
            let around = shared.maps.pu_cgroups.get(id).ok().flatten().unwrap_or(around);
            for (pu, path) in std::iter::once((around, path.clone())).chain(inside) {
                if let Err(error) = adopt::adopt(&path, pu, &shared.maps.pu_sockets) {
                    tracing::debug!(%error, "the cgroup went before its PU");
                }
            }
            if matches!(pu.target, TargetDoc::Command { .. }) {
                let _ = std::fs::remove_dir(path);
            }
        }
        TargetDoc::Interface { index, .. } => {
            if let Err(error) = shared.kernel().detach_pu_interface(*index) {
                tracing::warn!(%error, "cannot detach from a PU's interface");
            }
        }
    }
    Some(pu)
}

impl State {
    /// PUs whose cgroups lie inside `cgroup`, outer ones first.
    fn inside(&self, cgroup: &Path, except: u32) -> Vec<(u32, PathBuf)> {
        let mut inside: Vec<_> = self
            .pus
            .values()
            .filter(|pu| pu.index != except)
            .filter_map(|pu| Some((pu.index, pu.target.cgroup()?.to_owned())))
            .filter(|(_, path)| path.starts_with(cgroup))
            .collect();
        inside.sort_by_key(|(_, path)| path.components().count());
        inside
    }

    /// The PU of the nearest cgroup around `cgroup`, 0 if there is none.
    fn around(&self, cgroup: &Path) -> u32 {
        let around = self.pus.values().filter_map(|pu| Some((pu.target.cgroup()?, pu.index)));
        let around = around.filter(|(path, _)| *path != cgroup && cgroup.starts_with(path));
        around.max_by_key(|(path, _)| path.components().count()).map_or(0, |(_, index)| index)
    }

    /// The index of a new PU, one that none ever had: sockets and flows of a PU can outlive it where nobody finds them, and
    /// must not become another's.
    fn next_pu(&mut self) -> Result<u32, AdminError> {
        let busy = |message: String| AdminError::new(ErrorKind::Busy, message);
        let capacity = self.pu_slots.capacity();
        if self.pus.len() >= capacity as usize {
            return Err(busy(format!("all {capacity} PUs are in use; remove one")));
        }
        let index = self.next_pu;
        if index > INDEX_MAX {
            return Err(busy("all numbers of PUs have been used; run `enforcer unload`, then start again".into()));
        }
        self.next_pu = index + 1;
        self.save_agent_doc().map_err(AdminError::internal)?;
        Ok(index)
    }

    /// Leaves to the next agent what it must know of this one.
    pub fn save_agent_doc(&self) -> anyhow::Result<()> {
        let doc = AgentDoc { next_pu: self.next_pu, enforcer: self.own.id().clone() };
        Ok(self.maps.pu_docs.insert(AGENT_DOC, &serde_json::to_vec(&doc)?)?)
    }

    /// A handle no PU has, and under which no peer knows a live connection. What peers remember of a former owner is void: it is taken from `KNOWN_TO_PEER` when the owner
    /// ends, so the new owner introduces itself first.
    pub fn free_handle(&mut self) -> u16 {
        loop {
            self.next_handle = self.next_handle.wrapping_add(1);
            let handle = self.next_handle;
            if handle != 0 && !self.retired.contains(&handle) && self.pus.values().all(|pu| pu.handle != handle) {
                return handle;
            }
        }
    }

    /// Takes a PU out of everything; what fails is logged, the rest is done.
    fn forget_pu(&mut self, index: u32) -> Option<LocalPu> {
        let pu = self.pus.remove(&index)?;
        let complain = |what: &str, result: Result<bool, crate::map_write::MapWriteError>| {
            if let Err(error) = result {
                tracing::error!(pu = %pu.name, %error, "cannot remove {what}");
            }
        };
        match pu.target {
            TargetDoc::Cgroup { id, .. } | TargetDoc::Command { id, .. } => {
                // One that never became this PU's may wait for another.
                let stopped = matches!(self.maps.pu_cgroups.get(&id), Ok(Some(abi::PU_UNSORTED)));
                if !stopped {
                    complain("its cgroup", self.maps.pu_cgroups.remove(&id));
                }
            }
            TargetDoc::Interface { index, .. } => complain("its interface", self.maps.pu_ifaces.remove(&index)),
        }
        if pu.is_host() {
            complain("it as the host's PU", self.forget_host().map(|()| true));
        }
        self.announcing.remove(&index);
        complain("its description", self.maps.pu_docs.remove(index));
        complain("its slot", self.pu_slots.remove(index).map(|()| true));
        let listeners = self.maps.pu_listeners.retain(|_, owner| *owner != index);
        complain("its listeners", listeners.map(|_| true));
        let known = self.maps.known_to_peer.retain(|known, _| known.handle != pu.handle);
        complain("what peers know of it", known.map(|_| true));
        let session = self.config.current().self_session;
        complain("its handle", self.maps.peer_pus.remove(&SessionPu { session, handle: pu.handle, pad: 0 }));
        if self.pus.is_empty()
            && let Err(error) = self.config.update(|config| config.flags &= !abi::CONFIG_HAS_PU)
        {
            tracing::error!(%error, "cannot note that there is no PU left");
        }
        Some(pu)
    }
}
