use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::Namespace;

/// What holds for every rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    /// The policy's name.
    pub name: Arc<str>,
    /// Where the policy lives: it speaks of PUs there and beneath.
    pub namespace: Namespace,
    /// When, among the policies of its namespace, it is asked.
    pub tier: Tier,
}

/// In which order the policies of one namespace are asked; the first that answers decides for the namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// What the enforcer itself exempts: an allow rule of it decides for all namespaces. No policy file can be of it.
    Exempt,
    /// Asked first, by priority, the smallest first; of each policy the first rule that matches answers.
    Admin(u16),
    /// Asked next, all at once: deny beats allow.
    #[default]
    Normal,
    /// Asked where nothing above answered, by priority, as the admin tier.
    Baseline(u16),
}

impl Head {
    /// A policy of the normal tier.
    pub fn new(name: impl Into<Arc<str>>, namespace: Namespace) -> Self {
        Self { name: name.into(), namespace, tier: Tier::Normal }
    }
}

impl Tier {
    /// The tier's name, without the priority.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exempt => "exempt",
            Self::Admin(_) => "admin",
            Self::Normal => "normal",
            Self::Baseline(_) => "baseline",
        }
    }

    /// True where rules are asked one after the other.
    pub fn is_ordered(self) -> bool {
        self != Self::Normal
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exempt | Self::Normal => f.write_str(self.name()),
            Self::Admin(priority) | Self::Baseline(priority) => write!(f, "{}/{priority}", self.name()),
        }
    }
}
