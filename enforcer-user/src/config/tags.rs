//! `[tags]`: which tags travel.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::workload::tags::{CARRY_DEFAULT, CARRY_EXECUTED_DEFAULT, Carry};

const WAIT_MAX: Duration = Duration::from_secs(60);

/// `[tags]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tags {
    /// Patterns of keys that the profile carries, in order of their importance.
    pub carry: Vec<String>,
    /// More of them, for PUs of processes that match a `[[workload]]` with `exe`, `sha256` or `user`.
    pub carry_executed: Vec<String>,
    /// How long the first SYNs of a PU wait whose tags are not all known yet.
    #[serde(with = "humantime_serde")]
    pub wait: Duration,
}

impl Default for Tags {
    fn default() -> Self {
        let owned = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Self {
            carry: owned(CARRY_DEFAULT),
            carry_executed: owned(CARRY_EXECUTED_DEFAULT),
            wait: Duration::from_secs(2),
        }
    }
}

impl Tags {
    /// The patterns, read.
    pub fn carry(&self) -> Carry {
        // Checked when the file was read.
        Carry::new(&self.carry).unwrap_or_default()
    }

    /// The patterns for PUs of processes that match a rule, read.
    pub fn carry_executed(&self) -> Carry {
        Carry::new(&self.carry_executed).map_or_else(|_| self.carry(), |more| self.carry().and(&more))
    }

    pub(super) fn check(&self) -> Result<(), (String, String)> {
        if self.wait > WAIT_MAX {
            return Err(("tags.wait".into(), "must be at most 60s: TCP gives up before long".into()));
        }
        for (key, patterns) in [("tags.carry", &self.carry), ("tags.carry_executed", &self.carry_executed)] {
            Carry::new(patterns).map_err(|error| (key.into(), error.to_string()))?;
        }
        Ok(())
    }
}
