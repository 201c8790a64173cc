use std::fmt;
use std::hash::BuildHasher;
use std::hash::{Hash, RandomState};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::ports::fmt_ports;
use super::{Namespace, PortRange, Side};

/// Number of a rule in kernel maps, logs and explanations.
///
/// Keeps its value while the rule's full name and text stay the same, whatever happens to other
/// rules; never given to another rule in the life of a [`crate::Compiled`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId(pub u32);

/// What a rule, or the default, says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The connection may be opened.
    Allow,
    /// The connection is refused.
    Deny,
}

/// What one rule line says. Its `Display` is the canonical line, which parses back to the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Name given by the author, unique within the policy.
    pub name: Option<String>,
    /// Allow or deny.
    pub action: Action,
    /// Who opens the connection.
    pub subject: Side,
    /// To whom.
    pub object: Side,
    /// Where to; empty means every protocol and port.
    pub ports: Vec<PortRange>,
    /// Payload must be encrypted.
    pub encrypt: bool,
    /// Connections decided by this rule are to be logged.
    pub log: bool,
    /// Report what the rule would do, change nothing.
    pub observe: bool,
}

/// Where in a policy file something stands; lines and columns count from 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Location {
    /// Name of the file.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// A rule in its place: which policy it belongs to and where that was written.
///
/// Immutable, so that the digest by which changes are found stays true.
#[derive(Clone, Debug)]
pub struct PolicyRule {
    policy: Arc<str>,
    namespace: Namespace,
    position: u32,
    location: Location,
    rule: Rule,
    digest: u128,
}

impl RuleId {
    /// No rule: the default decided.
    pub const NONE: Self = Self(0);

    /// `None` for [`RuleId::NONE`].
    pub fn some(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

impl Rule {
    /// True when the rule speaks about this port of this protocol.
    pub fn covers(&self, protocol: u8, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|range| range.contains(protocol, port))
    }
}

impl PolicyRule {
    /// Puts a rule into a policy at a position (counted from 1).
    pub fn new(policy: Arc<str>, namespace: Namespace, position: u32, location: Location, rule: Rule) -> Self {
        let digest = digest(&policy, &namespace, &rule);
        Self { policy, namespace, position, location, rule, digest }
    }

    /// Name of the policy.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// Namespace of the policy.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What the rule says.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Where the rule was written.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// `policy/rule`, or `policy/#3` for the third rule when it has no name of its own.
    pub fn full_name(&self) -> String {
        match &self.rule.name {
            Some(name) => format!("{}/{name}", self.policy),
            None => format!("{}/#{}", self.policy, self.position),
        }
    }

    /// Equal for rules of the same policy, namespace, name and text, wherever they stand.
    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    /// True when both would be shown the same way: same position and location.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        self.position == other.position && self.location == other.location
    }
}

/// A 128-bit keyed hash stands for the text when two lists of rules are compared: comparing 100,000
/// rules word by word would cost more than the change itself. The key is random per process, so
/// that no text can be prepared to collide.
fn digest(policy: &str, namespace: &Namespace, rule: &Rule) -> u128 {
    static KEY: OnceLock<(u64, u64)> = OnceLock::new();
    let (k0, k1) = *KEY.get_or_init(|| (RandomState::new().hash_one(0), RandomState::new().hash_one(1)));
    let mut hasher = SipHasher13::new_with_keys(k0, k1);
    (policy, namespace, rule).hash(&mut hasher);
    hasher.finish128().as_u128()
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}: ")?;
        }
        write!(f, "{} {} -> {}", self.action, self.subject, self.object)?;
        fmt_ports(&self.ports, f)?;
        for (set, word) in [(self.encrypt, " encrypt"), (self.log, " log"), (self.observe, " observe")] {
            if set {
                f.write_str(word)?;
            }
        }
        Ok(())
    }
}
