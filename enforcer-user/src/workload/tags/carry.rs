//! Which tags travel: a credential must fit one packet, so not every tag can.

use std::collections::BTreeMap;

use super::{TagSet, is_reserved};
use crate::identity::{Tags, credential::PrepareError};

/// `tags.carry` unless the configuration says otherwise.
pub const CARRY_DEFAULT: &[&str] = &[
    "!org.opencontainers.*",
    "com.docker.compose.project",
    "com.docker.compose.service",
    "!com.docker.*",
    "!io.kubernetes.*",
    "!io.cri-containerd.*",
    "!pod-template-hash",
    "!controller-revision-hash",
    "*",
    "@k8s:namespace",
    "@k8s:serviceaccount",
    "@user:sub",
    "@user:preferred_username",
    "@user:email",
    "@user:groups",
    "@feed:threat",
    "@feed:severity",
    "@sys:unit",
    "@container:image",
    "!@host:id",
    "@host:*",
    "@cloud:account",
    "@cloud:region",
    "@container:name",
    "@feed:score",
    "@k8s:pod",
];

/// `tags.carry_executed` unless the configuration says otherwise: what a PU of processes that match a rule is made of, so
/// that it changes only if what runs is another program.
pub const CARRY_EXECUTED_DEFAULT: &[&str] = &["@sys:exe", "@sys:sha256", "@sys:user"];

/// Says that a PU is a host itself, and which: always carried, for by it the enforcer's own rules know it.
const HOST_PU_KEY: &str = "@host:pu";

/// Patterns of keys that travel, in order of their importance.
///
/// The first pattern that matches a key decides: `!PATTERN` keeps it on this host, any other lets it travel, and tells how
/// soon it is left out when there is no room. `*` stands for any characters; a pattern that does not begin with `@` never
/// matches a reserved key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    travels: bool,
    key: String,
}

/// A pattern that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no pattern of tag keys; write for example \"app\", \"team-*\", \"@sys:*\" or \"!pod-template-hash\"")]
pub struct CarryError(pub String);

/// What travels, and what does not for want of room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// What the profile carries, and so what policy judges at both ends.
    pub tags: Tags,
    /// Keys that match a pattern and are left out, most important first.
    pub left_out: Vec<String>,
}

/// Tags that somebody asked for do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tags are {over} bytes too large for one packet at MTU 1280")]
pub struct TooLarge {
    /// By how many bytes.
    pub over: usize,
    /// The largest as `key=value`, and what each takes in bytes; largest first.
    pub largest: Vec<(String, usize)>,
}

impl TooLarge {
    /// The same as the refusal of a PU, which names the largest tags.
    pub fn of_pu(self, pu: &str) -> PrepareError {
        PrepareError::TooLarge { pu: pu.into(), over: self.over, largest: self.largest }
    }
}

impl Default for Carry {
    fn default() -> Self {
        let key = |pattern: &&str| Pattern {
            travels: !pattern.starts_with('!'),
            key: pattern.trim_start_matches('!').to_owned(),
        };
        Self(CARRY_DEFAULT.iter().map(key).collect())
    }
}

impl Carry {
    /// Reads patterns as the configuration has them.
    ///
    /// # Errors
    /// If one could match no key.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, CarryError> {
        let one = |pattern: &S| {
            let pattern = pattern.as_ref();
            let key = pattern.strip_prefix('!').unwrap_or(pattern);
            let bad = key.is_empty() || key.starts_with('!') || key.contains('=') || key.chars().any(char::is_control);
            if bad {
                Err(CarryError(pattern.into()))
            } else {
                Ok(Pattern { travels: !pattern.starts_with('!'), key: key.into() })
            }
        };
        patterns.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// These patterns, and behind them those of `more`.
    pub fn and(&self, more: &Self) -> Self {
        Self(self.0.iter().chain(&more.0).cloned().collect())
    }

    /// Chooses what travels within `room` bytes of the profile's JSON ([`tag_len`] each).
    ///
    /// A key travels with all its values or not at all: half a set would turn the meaning of `!=` around. Keys that
    /// somebody asked for ([`super::TagSource::is_mandatory`]) come first, the others in the order of the patterns until one does not
    /// fit; the one that does not is left out, and so is everything behind it that does not fit either.
    ///
    /// # Errors
    /// If what somebody asked for does not fit.
    pub fn select(&self, set: &TagSet, room: usize) -> Result<Carried, TooLarge> {
        let (mut mandatory, mut optional) = (Tags::new(), BTreeMap::new());
        for (key, values) in set.merged() {
            let Some(rank) = self.rank(&key) else { continue };
            let asked_for =
                values.iter().flat_map(|value| set.sources(&key, value)).any(|source| source.is_mandatory());
            if asked_for || key == HOST_PU_KEY {
                mandatory.insert(key, values);
            } else {
                optional.insert((rank, key), values);
            }
        }
        let mut used: usize = mandatory.iter().map(|(key, values)| key_len(key, values)).sum();
        if used > room {
            return Err(too_large(&mandatory, used - room));
        }
        let mut carried = Carried { tags: mandatory, left_out: Vec::new() };
        for ((_, key), values) in optional {
            let len = key_len(&key, &values);
            if used + len <= room {
                used += len;
                carried.tags.insert(key, values);
            } else {
                carried.left_out.push(key);
            }
        }
        Ok(carried)
    }

    /// Whether this key travels if there is room.
    pub fn carries(&self, key: &str) -> bool {
        self.rank(key).is_some()
    }

    /// Place of the first pattern that matches, `None` if the key stays here.
    fn rank(&self, key: &str) -> Option<usize> {
        if key == HOST_PU_KEY {
            return Some(0);
        }
        let first = self.0.iter().position(|pattern| {
            is_reserved(key) == is_reserved(&pattern.key) && glob(pattern.key.as_bytes(), key.as_bytes())
        })?;
        self.0[first].travels.then_some(first)
    }
}

/// Bytes a tag takes in the profile's JSON: quoted and escaped, with its comma.
pub fn tag_len(key: &str, value: &str) -> usize {
    // Serialising a string cannot fail.
    serde_json::to_string(&format!("{key}={value}")).map_or(usize::MAX / 4096, |json| json.len() + 1)
}

fn key_len(key: &str, values: &std::collections::BTreeSet<String>) -> usize {
    values.iter().map(|value| tag_len(key, value)).sum()
}

/// Tags named when they do not fit.
const NAMED: usize = 3;

fn too_large(tags: &Tags, over: usize) -> TooLarge {
    let each = |(key, values): (&String, &std::collections::BTreeSet<String>)| {
        values.iter().map(|value| (format!("{key}={value}"), tag_len(key, value))).collect::<Vec<_>>()
    };
    let mut largest: Vec<_> = tags.iter().flat_map(each).collect();
    largest.sort_by_key(|(_, len)| std::cmp::Reverse(*len));
    largest.truncate(NAMED);
    TooLarge { over, largest }
}

/// Whether `text` is what `pattern` says, `*` standing for any characters.
pub(crate) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, t) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}
