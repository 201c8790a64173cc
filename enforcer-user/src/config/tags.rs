//! `[tags]`: which tags travel.

use serde::{Deserialize, Serialize};

use crate::workload::tags::{CARRY_DEFAULT, Carry};

/// `[tags]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tags {
    /// Patterns of keys that the profile carries, in order of their importance.
    pub carry: Vec<String>,
}

impl Default for Tags {
    fn default() -> Self {
        Self { carry: CARRY_DEFAULT.iter().map(|pattern| (*pattern).to_owned()).collect() }
    }
}

impl Tags {
    /// The patterns, read.
    pub fn carry(&self) -> Carry {
        // Checked when the file was read.
        Carry::new(&self.carry).unwrap_or_default()
    }

    pub(super) fn check(&self) -> Result<(), (String, String)> {
        Carry::new(&self.carry).map(drop).map_err(|error| ("tags.carry".into(), error.to_string()))
    }
}
