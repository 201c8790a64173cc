//! Tags by their sources: who may set which key, and which of them travel in the profile.
//!
//! A PU keeps its tags apart by [`TagSource`], so that each source can replace its own without touching those of others.
//! What policy judges, at both ends, is what the profile carries: [`Carry::select`] chooses it.

mod carry;
mod left_out;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

pub(crate) use carry::glob;
pub use carry::{CARRY_DEFAULT, CARRY_EXECUTED_DEFAULT, Carried, Carry, CarryError, TooLarge};
pub use left_out::{left_out, note_left_out};

use crate::identity::Tags;

/// Where a tag comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TagSource {
    /// Command line or admin socket.
    User,
    /// This host's configuration.
    Config,
    /// Attributes of the process itself.
    Object,
    /// Container engine: attributes, and labels of the container.
    Container,
    /// Pod: attributes, and labels of the pod.
    Pod,
    /// The enforcer: its id, and what the configuration says of the host.
    Enforcer,
    /// A signed statement of the cloud.
    Cloud,
    /// A verified token of a user.
    Token,
    /// A plugin.
    Plugin,
    /// The vulnerability and reputation feed.
    Feed,
}

impl TagSource {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::User,
        Self::Config,
        Self::Object,
        Self::Container,
        Self::Pod,
        Self::Enforcer,
        Self::Cloud,
        Self::Token,
        Self::Plugin,
        Self::Feed,
    ];

    /// The name in views and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Config => "config",
            Self::Object => "object",
            Self::Container => "container",
            Self::Pod => "pod",
            Self::Enforcer => "enforcer",
            Self::Cloud => "cloud",
            Self::Token => "token",
            Self::Plugin => "plugin",
            Self::Feed => "feed",
        }
    }

    /// Whether this source may set `key`: reserved keys belong to one source each, plain keys to those that speak for
    /// people.
    pub fn may_set(self, key: &str) -> bool {
        if is_reserved(key) {
            return self.prefix().is_some_and(|prefix| key.len() > prefix.len() && key.starts_with(prefix));
        }
        matches!(self, Self::User | Self::Config | Self::Container | Self::Pod | Self::Plugin)
    }

    /// Whether a PU cannot start when a tag of this source that is to be carried does not fit: somebody asked for it.
    pub fn is_mandatory(self) -> bool {
        matches!(self, Self::User | Self::Config | Self::Container | Self::Pod | Self::Token)
    }

    /// What the reserved keys of this source begin with.
    fn prefix(self) -> Option<&'static str> {
        match self {
            Self::Object => Some("@sys:"),
            Self::Container => Some("@container:"),
            Self::Pod => Some("@k8s:"),
            Self::Enforcer => Some("@host:"),
            Self::Cloud => Some("@cloud:"),
            Self::Token => Some("@user:"),
            Self::Feed => Some("@feed:"),
            Self::User | Self::Config | Self::Plugin => None,
        }
    }
}

impl fmt::Display for TagSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether only the enforcer's own extractors may set this key.
pub fn is_reserved(key: &str) -> bool {
    key.starts_with('@')
}

/// Longest key and longest value that anything foreign may set, bytes; no longer one would fit a packet.
pub const TAG_LEN_MAX: usize = 1024;

/// Why a tag that somebody outside of the enforcer gave is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// A key of the enforcer's.
    #[error("tag `{0}`: keys that begin with `@` are set by the enforcer itself; choose another key")]
    Reserved(String),
    /// No key, or characters that no tag may have.
    #[error("tag `{0}`: expected a key without `=`, and neither key nor value with control characters")]
    Malformed(String),
    /// Longer than any packet could carry.
    #[error("tag `{0}…` is longer than {TAG_LEN_MAX} bytes; shorten it")]
    TooLong(String),
}

/// Whether a tag may come from a person, a label or a plugin.
///
/// # Errors
/// If its key is reserved, or it is no tag at all.
pub fn check_plain(key: &str, value: &str) -> Result<(), TagError> {
    if is_reserved(key) {
        return Err(TagError::Reserved(key.into()));
    }
    check_form(key, value)
}

/// Whether a tag can be one, whoever sets it.
///
/// # Errors
/// If it is malformed or longer than any packet could carry.
pub fn check_form(key: &str, value: &str) -> Result<(), TagError> {
    if key.len() > TAG_LEN_MAX || value.len() > TAG_LEN_MAX {
        return Err(TagError::TooLong(key.chars().take(40).collect()));
    }
    if key.is_empty() || key.contains('=') || key.chars().chain(value.chars()).any(char::is_control) {
        return Err(TagError::Malformed(format!("{key}={value}").chars().filter(|c| !c.is_control()).collect()));
    }
    Ok(())
}

/// Tags as they are found: those that may be taken, and why the others are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sifted {
    /// What may be taken.
    pub tags: Tags,
    /// What is left out, for the log and the counter.
    pub refused: Vec<TagError>,
}

/// Takes labels, or a plugin's answer: what is no plain tag is left out.
pub fn sift<K: AsRef<str>, V: AsRef<str>>(found: impl IntoIterator<Item = (K, V)>) -> Sifted {
    let mut sifted = Sifted::default();
    for (key, value) in found {
        let (key, value) = (key.as_ref(), value.as_ref());
        match check_plain(key, value) {
            Ok(()) => drop(sifted.tags.entry(key.into()).or_default().insert(value.into())),
            Err(error) => sifted.refused.push(error),
        }
    }
    sifted
}

/// The tags of a PU by source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct TagSet(BTreeMap<TagSource, Tags>);

impl TagSet {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the tags of one source; whether anything changed. Keys the source may not set, malformed tags and keys
    /// without value are left out: the caller who wants to tell of them looks first ([`check_plain`], [`sift`]).
    pub fn set(&mut self, source: TagSource, tags: Tags) -> bool {
        let tags = permitted(source, tags);
        if tags.is_empty() {
            return self.0.remove(&source).is_some();
        }
        let changed = self.0.get(&source) != Some(&tags);
        self.0.insert(source, tags);
        changed
    }

    /// Adds to the tags of one source; whether anything changed.
    pub fn add(&mut self, source: TagSource, tags: Tags) -> bool {
        let mut all = self.get(source).cloned().unwrap_or_default();
        for (key, values) in tags {
            all.entry(key).or_default().extend(values);
        }
        self.set(source, all)
    }

    /// The tags of one source.
    pub fn get(&self, source: TagSource) -> Option<&Tags> {
        self.0.get(&source)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All tags: the values of a key are the union of those of all sources.
    pub fn merged(&self) -> Tags {
        let mut merged = Tags::new();
        for tags in self.0.values() {
            for (key, values) in tags {
                merged.entry(key.clone()).or_default().extend(values.iter().cloned());
            }
        }
        merged
    }

    /// The sources of a tag.
    pub fn sources(&self, key: &str, value: &str) -> Vec<TagSource> {
        let has = |tags: &Tags| tags.get(key).is_some_and(|values| values.contains(value));
        self.0.iter().filter(|(_, tags)| has(tags)).map(|(source, _)| *source).collect()
    }

    /// Source, key and value of every tag.
    pub fn iter(&self) -> impl Iterator<Item = (TagSource, &str, &str)> {
        self.0.iter().flat_map(|(source, tags)| {
            tags.iter()
                .flat_map(move |(key, values)| values.iter().map(move |value| (*source, key.as_str(), value.as_str())))
        })
    }
}

impl FromIterator<(TagSource, Tags)> for TagSet {
    fn from_iter<T: IntoIterator<Item = (TagSource, Tags)>>(found: T) -> Self {
        let mut set = Self::new();
        for (source, tags) in found {
            set.add(source, tags);
        }
        set
    }
}

fn permitted(source: TagSource, mut tags: Tags) -> Tags {
    tags.retain(|key, values| {
        values.retain(|value| check_form(key, value).is_ok());
        source.may_set(key) && !values.is_empty()
    });
    tags
}

#[cfg(test)]
mod tests;
