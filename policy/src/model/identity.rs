use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Namespace;

/// The tags of a PU: each key holds a set of values.
pub type Tags = BTreeMap<String, BTreeSet<String>>;

/// One end of a connection as policy sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// A PU that proved its Trust Profile.
    Pu {
        /// Where the PU lives.
        namespace: Namespace,
        /// What the PU is.
        tags: Tags,
    },
    /// An address without an enforcer.
    External {
        /// Prefixes that hold the address; its own /32 or /128 is enough.
        networks: BTreeSet<IpNet>,
        /// DNS names it is known by, in lower case and without the final dot.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        names: BTreeSet<String>,
    },
}

impl Identity {
    /// A PU with the given tags; a key may come more than once.
    pub fn pu<K, V>(namespace: Namespace, tags: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<String>,
        V: Into<String>,
    {
        let mut set = Tags::new();
        for (key, value) in tags {
            set.entry(key.into()).or_default().insert(value.into());
        }
        Self::Pu { namespace, tags: set }
    }

    /// A single address outside every enforcer.
    pub fn external(address: std::net::IpAddr) -> Self {
        Self::External { networks: BTreeSet::from([IpNet::from(address)]), names: BTreeSet::new() }
    }

    /// The namespace of a PU, `None` for an external network.
    pub fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::Pu { namespace, .. } => Some(namespace),
            Self::External { .. } => None,
        }
    }
}
