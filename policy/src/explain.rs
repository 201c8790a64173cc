//! Why a connection is allowed or denied, and why no other rule decided.

use std::fmt;

use serde::Serialize;

use crate::evaluate::{evaluate, matches};
use crate::model::{
    Action, Clause, Identity, Location, Operator, PolicyRule, PortRange, RuleId, Selector, Side, rule_applies,
};

/// At most so many rules that did not decide are listed.
pub const MAX_OTHERS: usize = 20;

/// The decision for one connection attempt with its reasons. `Display` is for people, `Serialize`
/// for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Protocol and port in question, such as `tcp/443`.
    pub target: String,
    /// Enforced action.
    pub action: Action,
    /// The rule that decided; `None` when the default denied.
    pub rule: Option<Cited>,
    /// The connection is logged.
    pub log: bool,
    /// Payload must be encrypted.
    pub encrypt: bool,
    /// The action if observe rules were enforced, where that differs, and the rule to thank.
    pub observed: Option<Observed>,
    /// Rules that did not decide though they match at least one end, the closest first.
    pub others: Vec<Other>,
    /// How many more of those there are than listed.
    pub others_omitted: usize,
}

/// A rule as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cited {
    /// Its number.
    pub id: RuleId,
    /// Its full name.
    pub name: String,
    /// Its canonical text, without the name.
    pub text: String,
    /// Where it stands.
    pub location: Location,
}

/// What would be if observe rules were enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observed {
    /// The action then.
    pub action: Action,
    /// The observe rule behind it.
    pub rule: Cited,
}

/// A rule that did not decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Other {
    /// The rule.
    pub rule: Cited,
    /// Everything that kept it from deciding.
    pub reasons: Vec<Reason>,
}

/// One thing that kept a rule from deciding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// It matches, but a deny rule beats it.
    OverriddenByDeny {
        /// The deny rule named as the reason.
        by: RuleId,
    },
    /// It matches and says the same, but the rule named is that of the lowest number.
    SameOutcome {
        /// The rule named.
        by: RuleId,
    },
    /// It matches, but is only observed.
    ObserveOnly {
        /// What it says.
        would: Action,
    },
    /// It does not cover the port.
    Port {
        /// What it covers.
        covers: String,
    },
    /// It is of a namespace that neither end lives in or beneath.
    Namespace {
        /// The rule's namespace.
        namespace: String,
    },
    /// The subject is not as it demands.
    Subject {
        /// The clauses that fail, with what was found.
        failed: Vec<String>,
    },
    /// The object is not as it demands.
    Object {
        /// The clauses that fail, with what was found.
        failed: Vec<String>,
    },
}

/// Explains the decision for `subject` opening to `port` of `object` under a set of rules.
pub fn explain<'a>(
    rules: impl IntoIterator<Item = (RuleId, &'a PolicyRule)>,
    subject: &Identity,
    object: &Identity,
    protocol: u8,
    port: u16,
) -> Explanation {
    let rules: Vec<(RuleId, &PolicyRule)> = rules.into_iter().collect();
    let decision = evaluate(rules.iter().copied(), subject, object, protocol, port);
    let cite = |wanted: RuleId| {
        let found = rules.iter().find(|(id, _)| *id == wanted);
        found.map(|(id, rule)| Cited::new(*id, rule))
    };

    let deciders = [decision.rule, decision.observed.map(|(_, id)| id)];
    let mut others: Vec<(usize, RuleId, &PolicyRule, Vec<Reason>)> = rules
        .iter()
        .filter(|(id, _)| !deciders.contains(&Some(*id)))
        .filter(|(_, rule)| rule.rule().subject.matches(subject) || rule.rule().object.matches(object))
        .map(|&(id, rule)| {
            let reasons = match matches(rule, subject, object, protocol, port) {
                true => vec![overruled(rule, &decision)],
                false => mismatches(rule, subject, object, protocol, port),
            };
            (distance(&reasons), id, rule, reasons)
        })
        .collect();
    others.sort_by_key(|(distance, id, ..)| (*distance, *id));
    let others_omitted = others.len().saturating_sub(MAX_OTHERS);
    others.truncate(MAX_OTHERS);

    Explanation {
        target: PortRange { protocol, low: port, high: port }.to_string(),
        action: decision.action,
        rule: decision.rule.and_then(cite),
        log: decision.log,
        encrypt: decision.encrypt,
        observed: decision.observed.and_then(|(action, id)| {
            let rule = cite(id)?;
            Some(Observed { action, rule })
        }),
        others: others
            .into_iter()
            .map(|(_, id, rule, reasons)| Other { rule: Cited::new(id, rule), reasons })
            .collect(),
        others_omitted,
    }
}

/// Why a rule that matches did not decide.
fn overruled(rule: &PolicyRule, decision: &crate::evaluate::Decision) -> Reason {
    let rule = rule.rule();
    match decision.rule {
        _ if rule.observe => Reason::ObserveOnly { would: rule.action },
        Some(by) if rule.action == decision.action => Reason::SameOutcome { by },
        by => Reason::OverriddenByDeny { by: by.unwrap_or(RuleId::NONE) },
    }
}

fn mismatches(rule: &PolicyRule, subject: &Identity, object: &Identity, protocol: u8, port: u16) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let body = rule.rule();
    if !body.covers(protocol, port) {
        let covers: Vec<String> = body.ports.iter().map(PortRange::to_string).collect();
        reasons.push(Reason::Port { covers: covers.join(" ") });
    }
    if !rule_applies(rule.namespace(), subject, object) {
        reasons.push(Reason::Namespace { namespace: rule.namespace().to_string() });
    }
    if !body.subject.matches(subject) {
        reasons.push(Reason::Subject { failed: failures(&body.subject, subject) });
    }
    if !body.object.matches(object) {
        reasons.push(Reason::Object { failed: failures(&body.object, object) });
    }
    reasons
}

/// How far a rule was from deciding, for the order in which rules are shown.
fn distance(reasons: &[Reason]) -> usize {
    let weight = |reason: &Reason| match reason {
        Reason::OverriddenByDeny { .. } | Reason::SameOutcome { .. } => 0,
        Reason::ObserveOnly { .. } => 0,
        Reason::Port { .. } | Reason::Namespace { .. } => 1,
        Reason::Subject { failed } | Reason::Object { failed } => 1 + failed.len(),
    };
    reasons.iter().map(weight).sum()
}

fn failures(side: &Side, identity: &Identity) -> Vec<String> {
    match (side, identity) {
        (Side::Tags(selector), Identity::Pu { tags, .. }) => closest(selector, |clause| {
            (!clause.matches(tags)).then(|| {
                let found = match tags.get(&clause.key).filter(|values| !values.is_empty()) {
                    Some(values) => {
                        let clauses = values
                            .iter()
                            .map(|value| Clause { key: clause.key.clone(), operator: Operator::Equals(value.clone()) });
                        let list: Vec<String> = clauses.map(|clause| clause.to_string()).collect();
                        list.join(" and ")
                    }
                    None => format!("no {}", clause.key),
                };
                format!("{clause} (it has {found})")
            })
        }),
        (Side::Net(networks), Identity::External { networks: covering }) => {
            let list: Vec<String> = covering.iter().map(|net| net.to_string()).collect();
            vec![format!("{networks} (it is in {})", list.join(", "))]
        }
        (side, Identity::Pu { .. }) => vec![format!("{side} (it is a PU)")],
        (side, Identity::External { .. }) => {
            vec![format!("{side} (it is an external network)")]
        }
    }
}

/// The failures of the alternative with the fewest.
fn closest(selector: &Selector, failure: impl Fn(&Clause) -> Option<String>) -> Vec<String> {
    let alternatives = selector.alternatives.iter();
    alternatives
        .map(|clauses| clauses.iter().filter_map(&failure).collect::<Vec<_>>())
        .min_by_key(Vec::len)
        .unwrap_or_default()
}

impl Cited {
    fn new(id: RuleId, rule: &PolicyRule) -> Self {
        let mut body = rule.rule().clone();
        body.name = None;
        Self { id, name: rule.full_name(), text: body.to_string(), location: rule.location().clone() }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.action {
            Action::Allow => "allowed",
            Action::Deny => "denied",
        };
        match &self.rule {
            Some(rule) => writeln!(f, "{}: {verb} by {rule}\n    {}", self.target, rule.text)?,
            None => writeln!(f, "{}: denied by default, no rule allows it", self.target)?,
        }
        for (set, text) in [(self.log, "the connection is logged"), (self.encrypt, "its payload must be encrypted")] {
            if set {
                writeln!(f, "  {text}")?;
            }
        }
        if let Some(observed) = &self.observed {
            let (action, rule) = (observed.action, &observed.rule);
            writeln!(f, "  observed: would {action} by {rule}\n    {}", rule.text)?;
        }
        if !self.others.is_empty() {
            writeln!(f, "Did not decide:")?;
        }
        for other in &self.others {
            writeln!(f, "  {}\n    {}", other.rule, other.rule.text)?;
            for reason in &other.reasons {
                writeln!(f, "    - {reason}")?;
            }
        }
        if self.others_omitted > 0 {
            writeln!(f, "  and {} more that match one end", self.others_omitted)?;
        }
        Ok(())
    }
}

impl fmt::Display for Cited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} `{}` ({})", self.id, self.name, self.location)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverriddenByDeny { by } => write!(f, "matches, but deny rule {by} beats it"),
            Self::SameOutcome { by } => {
                write!(f, "matches too; rule {by} is named for its lower number")
            }
            Self::ObserveOnly { would } => {
                write!(f, "matches and would {would}, but is only observed")
            }
            Self::Port { covers } => write!(f, "covers only {covers}"),
            Self::Namespace { namespace } => {
                write!(f, "speaks only of {namespace}, where neither end lives")
            }
            Self::Subject { failed } => write!(f, "subject fails {}", failed.join(", ")),
            Self::Object { failed } => write!(f, "object fails {}", failed.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Namespace;
    use crate::parse::parse_file;

    const POLICY: &str = "\
name: p
rules:
  - web: allow app=a | app=z -> app=b tcp/80,443
  - again: allow app=a -> app=b tcp
  - no-guests: deny user=guest -> app=b
  - trial: deny app=a -> app=b observe
  - outside: allow app=a -> net 10.0.0.0/8
  - away: allow any -> app=b tcp/80
";

    fn explained(subject: &[(&str, &str)], port: u16) -> Explanation {
        let rules = parse_file("p.yaml", POLICY).unwrap();
        let numbered = rules.iter().zip(1..).map(|(rule, id)| (RuleId(id), &**rule));
        let subject = Identity::pu(Namespace::root(), subject.iter().copied());
        let object = Identity::pu(Namespace::root(), [("app", "b")]);
        explain(numbered, &subject, &object, PortRange::TCP, port)
    }

    #[test]
    fn names_the_rule_and_what_it_beat() {
        let explanation = explained(&[("app", "a")], 80);
        let text = explanation.to_string();
        assert!(
            text.starts_with(
                "tcp/80: allowed by rule 1 `p/web` (p.yaml:3:5)\n    allow app=a | app=z -> app=b tcp/80,443\n"
            ),
            "{text}"
        );
        assert_eq!(explanation.observed.unwrap().rule.name, "p/trial");
        let reasons: Vec<(u32, String)> =
            explanation.others.iter().map(|other| (other.rule.id.0, other.reasons[0].to_string())).collect();
        let expected = [
            (2, "matches too; rule 1 is named for its lower number"),
            (6, "matches too; rule 1 is named for its lower number"),
            (3, "subject fails user=guest (it has no user)"),
            (5, "object fails net 10.0.0.0/8 (it is a PU)"),
        ];
        assert_eq!(reasons, expected.map(|(id, text)| (id, text.to_owned())));
    }

    #[test]
    fn deny_beats_allow_and_ports_are_named() {
        let explanation = explained(&[("app", "a"), ("user", "guest")], 8080);
        assert_eq!(explanation.rule.as_ref().unwrap().name, "p/no-guests");
        let of = |id: u32| {
            let other = explanation.others.iter().find(|o| o.rule.id.0 == id).unwrap();
            other.reasons.clone()
        };
        assert_eq!(of(2), [Reason::OverriddenByDeny { by: RuleId(3) }]);
        assert_eq!(of(1), [Reason::Port { covers: "tcp/80 tcp/443".into() }]);
        assert_eq!(of(4), [Reason::ObserveOnly { would: Action::Deny }]);
    }

    #[test]
    fn the_default_is_named_and_json_is_complete() {
        let explanation = explained(&[("app", "c"), ("app", "d")], 443);
        assert!(explanation.to_string().starts_with("tcp/443: denied by default"));
        let first = &explanation.others[0];
        assert_eq!(first.rule.name, "p/away");
        let json = serde_json::to_value(&explanation).unwrap();
        assert_eq!(json["action"], "deny");
        assert_eq!(json["rule"], serde_json::Value::Null);
        assert_eq!(json["others"][1]["reasons"][0]["reason"], "subject");
        assert_eq!(json["others"][1]["reasons"][0]["failed"][0], "app=a (it has app=c and app=d)");
    }

    #[test]
    fn long_lists_are_cut_with_a_count() {
        let lines = "  - allow app=x -> any tcp/1\n".repeat(MAX_OTHERS + 5);
        let rules = parse_file("p", &format!("name: p\nrules:\n{lines}")).unwrap();
        let numbered = rules.iter().zip(1..).map(|(rule, id)| (RuleId(id), &**rule));
        let pu = Identity::pu(Namespace::root(), [("app", "y")]);
        let explanation = explain(numbered, &pu, &pu, PortRange::TCP, 1);
        assert_eq!(explanation.others.len(), MAX_OTHERS);
        assert_eq!(explanation.others_omitted, 5);
        assert!(explanation.to_string().ends_with("and 5 more that match one end\n"));
    }
}
