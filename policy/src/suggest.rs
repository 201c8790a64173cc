//! From flow records to a policy: the smallest readable set of tag rules that allows what was recorded.
//!
//! [`Observations`] takes records one by one and keeps who talked to whom, not the records. [`Observations::suggest`] then
//! puts PUs that differ only in accidental tags (ids, hashes, addresses) together, groups services by who uses
//! them, and finds for every group the shortest selector that means it and no other recorded PU. What a rule allows
//! beyond what was recorded is computed from the rule itself and said beside it.
//!
//! The result depends on what was recorded, not on the order of the records.

mod collect;
mod cover;
mod outside;
mod select;
mod tags;
mod write;

use serde::Serialize;

pub use collect::Observations;
pub use tags::{accidental, rank};

use crate::model::{Namespace, Rule};

/// A policy made of observations. `Display` is a policy file with comments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// Name of the policy.
    pub name: String,
    /// Namespace of the policy: the one asked for, or the nearest that holds every PU recorded.
    pub namespace: Namespace,
    /// The rules.
    pub rules: Vec<SuggestedRule>,
    /// What they were made of.
    pub seen: Seen,
    /// What the reader should know beside the rules.
    pub notes: Vec<String>,
}

/// How much was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Lines read.
    pub records: u64,
    /// PUs (namespace and tags) at either end of any record.
    pub pus: u64,
    /// Addresses without identity at the other end of an allowed connection.
    pub addresses: u64,
    /// Connections that were allowed, each counted once.
    pub flows: u64,
    /// Refused attempts; nothing is suggested for them.
    pub refused: u64,
    /// Records that cannot be turned into a rule: an end is unknown, or nobody knows who opened.
    pub unusable: u64,
}

/// A rule with what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SuggestedRule {
    /// Its name.
    pub name: String,
    /// The rule as a line, without its name.
    pub text: String,
    /// The same, as a rule.
    #[serde(skip)]
    pub rule: Rule,
    /// Recorded connections it covers.
    pub flows: u64,
    /// Pairs of recorded ends it covers.
    pub pairs: u64,
    /// What it would newly allow.
    pub newly: Newly,
}

/// What a rule allows that was not recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Newly {
    /// Pairs of recorded PUs, or of a PU and a recorded address, that it lets talk where they did not.
    pub pairs: u64,
    /// Some of them, as `from -> to`.
    pub examples: Vec<String>,
    /// Ports that nobody used, opened because a list of the used ones would be too long.
    pub ports: u64,
    /// Addresses covered by its networks; 0 if it names none. Saturates.
    pub addresses: u64,
    /// Of these, recorded.
    pub addresses_seen: u64,
    /// It covers every protocol, because the language has no name for one that was used.
    pub every_protocol: bool,
}

impl Newly {
    /// Whether it allows exactly what was recorded.
    pub fn is_nothing(&self) -> bool {
        self.pairs == 0 && self.ports == 0 && self.addresses == self.addresses_seen && !self.every_protocol
    }
}
