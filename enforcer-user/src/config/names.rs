//! `[names]`: peers that the policy means by DNS name.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// `[names]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// How long a DNS answer holds beyond its own time to live.
    #[serde(with = "humantime_serde")]
    pub stale: Duration,
    /// Addresses learned from DNS answers, at most.
    pub max_addresses: u32,
    /// Resolvers whose answers are believed; empty for all that the policy lets a PU ask.
    pub resolvers: Vec<IpNet>,
}

impl Default for Names {
    fn default() -> Self {
        Self { stale: Duration::from_secs(300), max_addresses: 16_384, resolvers: Vec::new() }
    }
}

impl Names {
    /// The first key whose value makes no sense, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let week = Duration::from_secs(7 * 24 * 3600);
        if self.stale < Duration::from_secs(1) || self.stale > week {
            return Err(("names.stale".into(), "must be between 1s and 7days".into()));
        }
        if !(1..=65_536).contains(&self.max_addresses) {
            return Err(("names.max_addresses".into(), "must be between 1 and 65536".into()));
        }
        match self.resolvers.iter().find(|network| **network != network.trunc()) {
            Some(network) => {
                Err(("names.resolvers".into(), format!("{network} has host bits set; write {}", network.trunc())))
            }
            None => Ok(()),
        }
    }
}
