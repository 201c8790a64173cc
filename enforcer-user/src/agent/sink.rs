//! The agent as the sources of PUs see it.

use std::{path::PathBuf, sync::Arc};

use super::{
    Shared,
    names::TargetDoc,
    profiles::{self, Change},
    pus::{self, Wanted},
    state::LocalPu,
};
use crate::{
    admin::{AdminError, ErrorKind, PuTarget},
    identity::Tags,
    workload::{KnownPu, PuSink, Seen, SinkError, TagSet, TagSource},
};

/// The agent, for a source.
pub(crate) struct Sink(pub(super) Arc<Shared>);

impl Sink {
    fn find(&self, key: &str) -> Result<LocalPu, SinkError> {
        let found = self.0.state().pus.values().find(|pu| pu.key == key).cloned();
        found.ok_or_else(|| SinkError::Unknown(key.into()))
    }

    /// A PU that another source has found first and knows nothing more of: it is this source's from now on.
    fn unclaimed(&self, key: &str, target: &PuTarget) -> Option<LocalPu> {
        let mut state = self.0.state();
        let pu = state.pus.values_mut().find(|pu| !pu.complete && leads_to(&pu.target, target))?;
        tracing::debug!(pu = %pu.name, before = pu.key, now = key, "found by another source too");
        pu.key = key.into();
        Some(pu.clone())
    }
}

impl PuSink for Sink {
    fn appear(&self, key: &str, seen: Seen) -> Result<(), SinkError> {
        let shared = &self.0;
        let mut kept = TagSet::new();
        let mut complete = seen.complete;
        if let Ok(present) = self.find(key) {
            if leads_to(&present.target, &seen.target) {
                return update(shared, &present, seen);
            }
            // It has moved: what it is otherwise stays.
            kept = present.set.clone();
            complete |= present.complete;
            pus::end(shared, present.index);
        }
        if let Some(unclaimed) = self.unclaimed(key, &seen.target) {
            return update(shared, &unclaimed, seen);
        }
        for (source, tags) in seen.tags {
            kept.set(source, tags);
        }
        let wanted = Wanted {
            key: Some(key.into()),
            target: seen.target,
            name: Some(seen.name).filter(|name| !name.is_empty()),
            any_name: true,
            namespace: seen.namespace,
            tags: kept,
            complete,
        };
        pus::add(shared, wanted).map(drop).map_err(of_admin)
    }

    fn tags(&self, key: &str, source: TagSource, tags: Tags) -> Result<(), SinkError> {
        let pu = self.find(key)?;
        profiles::set_tags(&self.0, pu.index, source, &tags).map(drop).map_err(of_admin)
    }

    fn complete(&self, key: &str) -> Result<(), SinkError> {
        let pu = self.find(key)?;
        profiles::complete(&self.0, pu.index).map_err(of_admin)
    }

    fn gone(&self, key: &str) -> Result<(), SinkError> {
        if let Ok(pu) = self.find(key) {
            pus::end(&self.0, pu.index);
        }
        Ok(())
    }

    fn known(&self, prefix: &str) -> Vec<KnownPu> {
        let state = self.0.state();
        state.pus.values().filter(|pu| pu.key.starts_with(prefix)).map(known).collect()
    }
}

/// A PU is still there: what the source says of it replaces what it said before.
fn update(shared: &Shared, present: &LocalPu, seen: Seen) -> Result<(), SinkError> {
    let tags = seen.tags;
    let edit = |set: &mut TagSet| {
        for (source, tags) in &tags {
            set.set(*source, tags.clone());
        }
    };
    let taken = |name: &String| shared.state().pus.values().any(|pu| pu.name == *name);
    let name = Some(seen.name).filter(|name| !name.is_empty() && *name != present.name && !taken(name));
    let change = Change { name, namespace: seen.namespace, edit: &edit };
    profiles::change(shared, present.index, &change).map_err(of_admin)?;
    if seen.complete { profiles::complete(shared, present.index).map_err(of_admin) } else { Ok(()) }
}

fn leads_to(present: &TargetDoc, wanted: &PuTarget) -> bool {
    match (present, wanted) {
        (TargetDoc::Cgroup { path, id }, PuTarget::Cgroup(other)) => path == other && is_same(other, *id),
        (TargetDoc::Interface { name, index }, PuTarget::Interface(other)) => {
            name == other && crate::link_net::by_name(other).ok().flatten().is_some_and(|found| found.index == *index)
        }
        (TargetDoc::Command { path, .. }, PuTarget::Cgroup(other)) => path == other,
        _ => false,
    }
}

/// Whether a cgroup is the very one, and not a later one of the same name.
fn is_same(path: &PathBuf, id: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|directory| std::os::unix::fs::MetadataExt::ino(&directory) == id)
}

fn known(pu: &LocalPu) -> KnownPu {
    KnownPu {
        key: pu.key.clone(),
        id: pu.id.clone(),
        name: pu.name.clone(),
        namespace: pu.namespace.clone(),
        target: match &pu.target {
            TargetDoc::Cgroup { path, .. } | TargetDoc::Command { path, .. } => PuTarget::Cgroup(path.clone()),
            TargetDoc::Interface { name, .. } => PuTarget::Interface(name.clone()),
        },
        tags: pu.set.clone(),
        complete: pu.complete,
    }
}

fn of_admin(error: AdminError) -> SinkError {
    match error.kind {
        ErrorKind::Invalid | ErrorKind::Exists | ErrorKind::NotFound => SinkError::Refused(error.message),
        _ => SinkError::Failed(error.message),
    }
}
