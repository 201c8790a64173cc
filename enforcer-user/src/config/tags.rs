//! `[tags]`: which tags travel.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::workload::tags::{CARRY_DEFAULT, Carry};

const WAIT_MAX: Duration = Duration::from_secs(60);

/// `[tags]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tags {
    /// Patterns of keys that the profile carries, in order of their importance.
    pub carry: Vec<String>,
    /// How long the first SYNs of a PU wait whose tags are not all known yet.
    #[serde(with = "humantime_serde")]
    pub wait: Duration,
}

impl Default for Tags {
    fn default() -> Self {
        let carry = CARRY_DEFAULT.iter().map(|pattern| (*pattern).to_owned()).collect();
        Self { carry, wait: Duration::from_secs(2) }
    }
}

impl Tags {
    /// The patterns, read.
    pub fn carry(&self) -> Carry {
        // Checked when the file was read.
        Carry::new(&self.carry).unwrap_or_default()
    }

    pub(super) fn check(&self) -> Result<(), (String, String)> {
        if self.wait > WAIT_MAX {
            return Err(("tags.wait".into(), "must be at most 60s: TCP gives up before long".into()));
        }
        Carry::new(&self.carry).map(drop).map_err(|error| ("tags.carry".into(), error.to_string()))
    }
}
