//! The meaning of a set of rules, said as plainly as possible. Slow: it looks at every rule.
//!
//! The compiled form must agree with this on every input; where they differ, this is right.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::consent::{Answer, Answers, Outcome};
use crate::model::{Action, Identity, Moment, Namespace, PolicyRule, RuleId, Tier, Verb};

/// What the rules say of one connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Enforced action.
    pub action: Action,
    /// The rule named as the reason: the lowest number among the rules that decided for a namespace as the action
    /// says. `None` when the default refused.
    pub rule: Option<RuleId>,
    /// Some rule that decided so asks for a log entry.
    pub log: bool,
    /// Some rule that allowed demands encryption. Always false on refusal.
    pub encrypt: bool,
    /// What the action would be, and by which rule, if observe rules were enforced; `None` when it
    /// would be the same.
    pub observed: Option<(Action, RuleId)>,
}

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// That of the PU which opens.
    Egress,
    /// That of the PU which is opened to.
    Ingress,
}

/// Judges one connection attempt: `subject` opens to `port` of `object`, at the moment `now`.
///
/// Each PU's end is judged by every namespace on the way from the root to the PU; see [`answers`]. One refusal
/// refuses, and so does one namespace that allows something, but not this. With observe rules enforced beside the
/// others, the outcome is compared, and reported if it differs.
pub fn evaluate<'a>(
    rules: impl IntoIterator<Item = (RuleId, &'a PolicyRule)>,
    subject: &Identity,
    object: &Identity,
    protocol: u8,
    port: u16,
    now: Moment,
) -> Decision {
    let rules: Vec<(RuleId, &PolicyRule)> = rules.into_iter().collect();
    answers(&rules, subject, object, protocol, port, now).values().copied().collect::<Answers>().decide()
}

/// What every namespace answers that has rules and holds one of the PUs, for that PU's end.
pub fn answers<'a>(
    rules: &[(RuleId, &'a PolicyRule)],
    subject: &Identity,
    object: &Identity,
    protocol: u8,
    port: u16,
    now: Moment,
) -> BTreeMap<(&'a Namespace, End), Answer> {
    #[derive(Default)]
    struct Asked<'a> {
        matching: Vec<(RuleId, &'a PolicyRule)>,
        /// The first of the allow rules, whether or not they match: of the enforced ones, and of all.
        bounds: Option<RuleId>,
        would_bound: Option<RuleId>,
    }
    let mut asked: BTreeMap<(&Namespace, End), Asked> = BTreeMap::new();
    for &(id, rule) in rules {
        let ends = [(End::Egress, subject), (End::Ingress, object)];
        let mut ends = ends.into_iter().filter(|(end, identity)| concerns(rule, *end, identity)).peekable();
        let holds =
            ends.peek().is_some() && !rule.rule().is_expired(now) && matches(rule, subject, object, protocol, port);
        for (end, _) in ends {
            let asked = asked.entry((rule.namespace(), end)).or_default();
            if holds {
                asked.matching.push((id, rule));
            }
            if rule.rule().verb == Verb::Allow && rule.tier() != Tier::Exempt {
                let least = |least: Option<RuleId>| Some(least.map_or(id, |least| least.min(id)));
                asked.would_bound = least(asked.would_bound);
                if !rule.rule().observe {
                    asked.bounds = least(asked.bounds);
                }
            }
        }
    }
    asked
        .into_iter()
        .map(|(key, Asked { matching, bounds, would_bound })| {
            let enforced: Vec<_> = matching.iter().filter(|(_, rule)| !rule.rule().observe).copied().collect();
            let answer = Answer {
                enforced: outcome(&enforced, bounds.is_some()),
                observed: outcome(&matching, would_bound.is_some()),
                bounded_by: would_bound.unwrap_or_default(),
            };
            (key, answer)
        })
        .collect()
}

/// True when the rule speaks for this end of this identity.
pub fn concerns(rule: &PolicyRule, end: End, identity: &Identity) -> bool {
    let speaks = match end {
        End::Egress => rule.rule().ends.egress(),
        End::Ingress => rule.rule().ends.ingress(),
    };
    speaks && identity.namespace().is_some_and(|namespace| rule.namespace().contains(namespace))
}

/// True when the rule's sides and ports mean this attempt.
pub fn matches(rule: &PolicyRule, subject: &Identity, object: &Identity, protocol: u8, port: u16) -> bool {
    rule.rule().subject.matches(subject) && rule.rule().object.matches(object) && rule.rule().covers(protocol, port)
}

/// What one namespace's matching rules say: tier after tier, until one answers.
fn outcome(matching: &[(RuleId, &PolicyRule)], bounds: bool) -> Outcome {
    let ordered = |baseline: bool| {
        matching
            .iter()
            .filter(|(_, rule)| rule.tier().is_ordered() && matches!(rule.tier(), Tier::Baseline(_)) == baseline)
            .min_by_key(|(id, rule)| (rule.precedence(), *id))
    };
    let normal = |verb: Verb| {
        let all = || matching.iter().filter(move |(_, rule)| rule.tier() == Tier::Normal && rule.rule().verb == verb);
        let first = all().map(|(id, _)| *id).min()?;
        let log = all().any(|(_, rule)| rule.rule().log);
        let encrypt = all().any(|(_, rule)| rule.rule().encrypt);
        Outcome::of(Tier::Normal, verb, first, log, encrypt)
    };
    let first = |found: Option<&(RuleId, &PolicyRule)>| {
        let (id, rule) = found?;
        Outcome::of(rule.tier(), rule.rule().verb, *id, rule.rule().log, rule.rule().encrypt)
    };
    first(ordered(false))
        .or_else(|| normal(Verb::Deny))
        .or_else(|| normal(Verb::Allow))
        .or_else(|| first(ordered(true)))
        .unwrap_or(if bounds { Outcome::Withheld } else { Outcome::Silent })
}
