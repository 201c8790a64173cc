//! What a policy is made of: rules, their sides, and the identities they speak about.

mod domain;
mod head;
mod identity;
mod moment;
mod namespace;
mod ports;
mod rule;
mod selector;

pub use domain::{DomainError, DomainPattern};
pub use head::{Head, Tier};
pub use identity::{Identity, Tags};
pub use moment::{Moment, MomentError};
pub use namespace::{Namespace, NamespaceError};
pub use ports::PortRange;
pub use rule::{Action, Ends, Location, PolicyRule, Rule, RuleId, Verb};
pub use selector::{Clause, Networks, Operator, Selector, Side};

pub(crate) use rule::sum;

/// True for words the rule line gives a meaning of its own; as a tag key they must be quoted.
pub(crate) fn is_keyword(word: &str) -> bool {
    const KEYWORDS: [&str; 20] = [
        "allow", "and", "any", "deny", "egress", "encrypt", "except", "icmp", "icmp6", "in", "ingress", "log", "net",
        "not", "observe", "or", "pass", "tcp", "udp", "until",
    ];
    KEYWORDS.contains(&word)
}

/// True for characters that need no quotes in a key or value.
pub(crate) fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | '@' | '+' | '~' | '%')
}

/// True for words that begin a port list wherever they stand outside quotes.
pub(crate) fn starts_port_list(word: &str) -> bool {
    let protocol = word.split_once('/').map_or(word, |(protocol, _)| protocol);
    PortRange::protocol_by_name(protocol).is_some()
}

/// True for words that, standing alone, are more likely a mistyped port list than a tag key: taken
/// for a key, they would silently turn a rule about ports into one about a tag nobody has.
pub(crate) fn looks_like_ports(word: &str) -> bool {
    word.contains('/') || word.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | ':'))
}
