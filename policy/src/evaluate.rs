//! The meaning of a set of rules, said as plainly as possible. Slow: it looks at every rule.
//!
//! The compiled form must agree with this on every input; where they differ, this is right.

use serde::Serialize;

use crate::model::{Action, Identity, PolicyRule, RuleId, rule_applies};

/// What the rules say of one connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Enforced action.
    pub action: Action,
    /// The rule named as the reason: the lowest number among the matching rules of the action.
    /// `None` when no rule matched and the default refused.
    pub rule: Option<RuleId>,
    /// Some matching rule of the action asks for a log entry.
    pub log: bool,
    /// Some matching allow rule demands encryption. Always false on refusal.
    pub encrypt: bool,
    /// What the action would be, and by which rule, if observe rules were enforced; `None` when it
    /// would be the same.
    pub observed: Option<(Action, RuleId)>,
}

/// Judges one connection attempt: `subject` opens to `port` of `object`.
///
/// Deny beats allow, and what no rule allows is denied. Observe rules change nothing: with them
/// enforced beside the others, the outcome is compared, and reported if it differs.
pub fn evaluate<'a>(
    rules: impl IntoIterator<Item = (RuleId, &'a PolicyRule)>,
    subject: &Identity,
    object: &Identity,
    protocol: u8,
    port: u16,
) -> Decision {
    let matching: Vec<(RuleId, &PolicyRule)> =
        rules.into_iter().filter(|(_, rule)| matches(rule, subject, object, protocol, port)).collect();
    let of = |action: Action, observe: bool| {
        matching.iter().filter(move |(_, rule)| rule.rule().action == action && rule.rule().observe == observe)
    };
    let first = |action: Action, observe: bool| of(action, observe).map(|(id, _)| *id).min();

    let (action, rule) = match (first(Action::Deny, false), first(Action::Allow, false)) {
        (Some(deny), _) => (Action::Deny, Some(deny)),
        (None, Some(allow)) => (Action::Allow, Some(allow)),
        (None, None) => (Action::Deny, None),
    };
    let observed = match (first(Action::Deny, true), first(Action::Allow, true)) {
        (Some(deny), _) => (action == Action::Allow).then_some((Action::Deny, deny)),
        // An observed allow would not lift an enforced deny, only the default.
        (None, Some(allow)) => rule.is_none().then_some((Action::Allow, allow)),
        (None, None) => None,
    };
    Decision {
        action,
        rule,
        log: of(action, false).any(|(_, rule)| rule.rule().log),
        encrypt: action == Action::Allow && of(action, false).any(|(_, rule)| rule.rule().encrypt),
        observed,
    }
}

/// True when the rule has a say in this attempt.
pub fn matches(rule: &PolicyRule, subject: &Identity, object: &Identity, protocol: u8, port: u16) -> bool {
    rule_applies(rule.namespace(), subject, object)
        && rule.rule().subject.matches(subject)
        && rule.rule().object.matches(object)
        && rule.rule().covers(protocol, port)
}
