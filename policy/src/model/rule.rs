use std::fmt;
use std::hash::BuildHasher;
use std::hash::{Hash, RandomState};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::ports::fmt_ports;
use super::{Head, Moment, Namespace, PortRange, Side, Tier};

/// Number of a rule in kernel maps, logs and explanations.
///
/// Keeps its value while the rule's full name and text stay the same, whatever happens to other
/// rules; never given to another rule in the life of a [`crate::Compiled`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId(pub u32);

/// What is done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The connection may be opened.
    Allow,
    /// The connection is refused.
    Deny,
}

/// What a rule says of the connections it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// They may be opened.
    Allow,
    /// They are refused.
    Deny,
    /// The rest of the tier is skipped; only in the admin and baseline tiers.
    Pass,
}

/// For which ends of a connection a rule speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ends {
    /// For both.
    #[default]
    Both,
    /// For that of the PU that opens the connection.
    Egress,
    /// For that of the PU it is opened to.
    Ingress,
}

/// What one rule line says. Its `Display` is the canonical line, which parses back to the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Name given by the author, unique within the policy.
    pub name: Option<String>,
    /// Allow, deny or pass.
    pub verb: Verb,
    /// Who opens the connection.
    pub subject: Side,
    /// To whom.
    pub object: Side,
    /// Where to; empty means every protocol and port.
    pub ports: Vec<PortRange>,
    /// For which ends it speaks.
    pub ends: Ends,
    /// The rule holds before this moment, not at it.
    pub until: Option<Moment>,
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
    head: Arc<Head>,
    position: u32,
    location: Location,
    // Shared by those of the same text in later readings of the policy.
    rule: Arc<Rule>,
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

impl Verb {
    /// The action, `None` for `pass`.
    pub fn action(self) -> Option<Action> {
        match self {
            Self::Allow => Some(Action::Allow),
            Self::Deny => Some(Action::Deny),
            Self::Pass => None,
        }
    }
}

impl Ends {
    /// True when the rule speaks for the end of the PU that opens the connection.
    pub fn egress(self) -> bool {
        self != Self::Ingress
    }

    /// True when the rule speaks for the end of the PU that is opened to.
    pub fn ingress(self) -> bool {
        self != Self::Egress
    }
}

impl Rule {
    /// A rule for every protocol and port, for both ends and for ever, without a name.
    pub fn new(verb: Verb, subject: Side, object: Side) -> Self {
        Self {
            name: None,
            verb,
            subject,
            object,
            ports: Vec::new(),
            ends: Ends::Both,
            until: None,
            encrypt: false,
            log: false,
            observe: false,
        }
    }

    /// True when the rule no longer holds.
    pub fn is_expired(&self, now: Moment) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// True when the rule speaks about this port of this protocol.
    pub fn covers(&self, protocol: u8, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|range| range.contains(protocol, port))
    }
}

impl PolicyRule {
    /// Puts a rule into a policy at a position (counted from 1).
    pub fn new(head: Arc<Head>, position: u32, location: Location, rule: impl Into<Arc<Rule>>) -> Self {
        let rule = rule.into();
        // Where the order of rules counts, a rule that moved is another.
        let place = if head.tier.is_ordered() { position } else { 0 };
        let digest = sum(&(&head, place, &rule));
        Self { head, position, location, rule, digest }
    }

    /// The same rule in another place, maybe of another policy.
    pub(crate) fn moved(&self, head: Arc<Head>, position: u32, location: Location) -> Self {
        if Arc::ptr_eq(&self.head, &head) && !head.tier.is_ordered() {
            return Self { head, position, location, rule: self.rule.clone(), digest: self.digest };
        }
        Self::new(head, position, location, self.rule.clone())
    }

    /// What holds for every rule of its policy.
    pub fn head(&self) -> &Arc<Head> {
        &self.head
    }

    /// Name of the policy.
    pub fn policy(&self) -> &str {
        &self.head.name
    }

    /// Namespace of the policy.
    pub fn namespace(&self) -> &Namespace {
        &self.head.namespace
    }

    /// Tier of the policy.
    pub fn tier(&self) -> Tier {
        self.head.tier
    }

    /// Its place in its policy, from 1.
    pub(crate) fn position(&self) -> u32 {
        self.position
    }

    /// The place in an ordered tier: priority, policy, position. Smaller is asked first.
    pub fn precedence(&self) -> (Tier, &str, u32) {
        (self.head.tier, &self.head.name, self.position)
    }

    /// What the rule says.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// What the rule says, by which one that only moved is known.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &Arc<Rule> {
        &self.rule
    }

    /// Where the rule was written.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// `policy/rule`, or `policy/#3` for the third rule when it has no name of its own.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.policy(), self.own_name())
    }

    /// Its name within its policy, or `#3` for the third rule when it has none.
    pub fn own_name(&self) -> String {
        self.rule.name.clone().unwrap_or_else(|| format!("#{}", self.position))
    }

    /// Equal for rules of the same policy, namespace, tier, name and text, wherever they stand; in an ordered tier
    /// of the same position, too.
    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    /// True when both would be shown the same way: same position and location.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        self.position == other.position && self.location == other.location
    }
}

/// A 128-bit keyed hash, which stands for what was hashed when two lists are compared: comparing 100,000 rules word by word
/// would cost more than the change itself. The key is random per process, so that no text can be prepared to collide.
pub(crate) fn sum(what: &impl Hash) -> u128 {
    static KEY: OnceLock<(u64, u64)> = OnceLock::new();
    let (k0, k1) = *KEY.get_or_init(|| (RandomState::new().hash_one(0), RandomState::new().hash_one(1)));
    let mut hasher = SipHasher13::new_with_keys(k0, k1);
    what.hash(&mut hasher);
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

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Pass => "pass",
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
        write!(f, "{} {} -> {}", self.verb, self.subject, self.object)?;
        fmt_ports(&self.ports, f)?;
        match self.ends {
            Ends::Both => {}
            Ends::Egress => f.write_str(" egress")?,
            Ends::Ingress => f.write_str(" ingress")?,
        }
        if let Some(until) = self.until {
            write!(f, " until {until}")?;
        }
        for (set, word) in [(self.encrypt, " encrypt"), (self.log, " log"), (self.observe, " observe")] {
            if set {
                f.write_str(word)?;
            }
        }
        Ok(())
    }
}
