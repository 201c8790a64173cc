//! What container engines have in common: units (a container, a pod) that appear, and the way from a unit to what the
//! kernel attributes its packets by.
//!
//! A unit with a network namespace of its own is known by the interfaces that lead there: the kernel numbers the namespaces
//! that interfaces of this host have their other end in, so the interfaces of a unit are those with the number of its
//! process's namespace. Between its making and that moment such an interface belongs to nobody: if it is a port of one of
//! the engine's bridges it is a PU that is not complete, so nothing passes. A unit in the host's namespace is known by
//! its cgroup, from the moment the runtime makes that, before the first process enters.

mod cgroups;
mod follow;
mod namespace;
mod stopped;
mod tracker;

pub use cgroups::{CgroupWatch, container_of};
pub use follow::{Engine, STOP_LOOK, Site, follow};
pub use namespace::Namespace;
pub use stopped::{Stopped, Verdict};
pub use tracker::Tracker;

use super::TagSource;
use super::tags::{TagError, note_left_out};
use crate::identity::Tags;

/// A container or a pod, as its engine tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Name for people and records.
    pub name: String,
    /// Namespace of the PU; the configured one if there is none.
    pub namespace: Option<String>,
    /// What it is.
    pub tags: Vec<(TagSource, Tags)>,
    /// Labels that could not be tags.
    pub refused: Vec<TagError>,
    /// Where its packets come from.
    pub network: Network,
}

/// Whose network namespace a unit is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Its own.
    Own,
    /// The engine's.
    Host,
    /// Another unit's; which one tells its process.
    Shared,
}

/// Whether this is the id of a container: it becomes part of keys, and is looked for in paths.
pub fn is_container_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Adds a value unless it is empty.
pub fn value(tags: &mut Tags, key: &str, value: &str) {
    if !value.is_empty() {
        tags.entry(key.to_owned()).or_default().insert(value.to_owned());
    }
}

/// The union of two sets of tags.
pub fn join(mut tags: Tags, more: Tags) -> Tags {
    for (key, values) in more {
        tags.entry(key).or_default().extend(values);
    }
    tags
}

/// Logs and counts the labels of a unit that were left out; they are of the first of its sources.
fn note_refused(unit: &Unit) {
    if let Some((source, _)) = unit.tags.first() {
        note_left_out(*source, unit.refused.len());
    }
    for error in &unit.refused {
        tracing::warn!(container = %unit.name, %error, "a label was left out");
    }
}
