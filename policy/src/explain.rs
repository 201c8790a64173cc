//! Why a connection is allowed or denied, and why no other rule decided.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::consent::{Answer, Answers, Outcome};
use crate::evaluate::{Decision, End, answers, concerns, matches};
use crate::model::{
    Action, Clause, Ends, Identity, Location, Moment, Namespace, Operator, PolicyRule, PortRange, RuleId, Selector,
    Side, Tier, Verb,
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
    /// What each namespace asked said of it, from the root down; where one with allow rules did not allow it, that is
    /// why it is denied.
    pub namespaces: Vec<NamespaceAnswer>,
    /// Rules that did not decide though they match at least one end, the closest first.
    pub others: Vec<Other>,
    /// How many more of those there are than listed.
    pub others_omitted: usize,
}

/// What one namespace said for one end of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamespaceAnswer {
    /// The namespace.
    pub namespace: String,
    /// For the end of the PU that opens, or of the one opened to.
    pub end: End,
    /// What it said.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Full name of the rule that decided for it.
    pub name: Option<String>,
}

/// A rule as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cited {
    /// Its number.
    pub id: RuleId,
    /// Its full name: that of its policy and its own.
    pub name: String,
    /// Where its policy lives.
    pub namespace: String,
    /// Tier of its policy, with the priority where it has one.
    pub tier: String,
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
    /// It matches, but another is asked before it: of an earlier tier, a smaller priority, or higher up in its policy.
    Outranked {
        /// That rule.
        by: RuleId,
    },
    /// It matches, but a rule of the enforcer itself exempts this from all namespaces.
    Exempted {
        /// That rule.
        by: RuleId,
    },
    /// It matches and leaves the decision to the next tier.
    Passed,
    /// It allows the connection, but these namespaces of either PU allow others only.
    Withheld {
        /// The namespaces.
        by: Vec<String>,
    },
    /// Its time is over.
    Expired {
        /// When it ended.
        until: Moment,
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
    /// It is of a namespace that no end it speaks for lives in or beneath.
    Namespace {
        /// The rule's namespace.
        namespace: String,
        /// The ends it speaks for.
        ends: Ends,
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

/// Explains the decision for `subject` opening to `port` of `object` under a set of rules, at the moment `now`.
pub fn explain<'a>(
    rules: impl IntoIterator<Item = (RuleId, &'a PolicyRule)>,
    subject: &Identity,
    object: &Identity,
    protocol: u8,
    port: u16,
    now: Moment,
) -> Explanation {
    let rules: Vec<(RuleId, &PolicyRule)> = rules.into_iter().collect();
    let answers = answers(&rules, subject, object, protocol, port, now);
    let decision = answers.values().copied().collect::<Answers>().decide();
    let attempt = Attempt { rules: &rules, subject, object, protocol, port, now, answers: &answers, decision };
    let cite = |wanted: RuleId| attempt.rule(wanted).map(|rule| Cited::new(wanted, rule));

    let deciders = [decision.rule, decision.observed.map(|(_, id)| id)];
    let mut others: Vec<(usize, RuleId, &PolicyRule)> = rules
        .iter()
        .filter(|(id, _)| !deciders.contains(&Some(*id)))
        .filter(|(_, rule)| rule.rule().subject.matches(subject) || rule.rule().object.matches(object))
        .map(|&(id, rule)| (attempt.distance(rule), id, rule))
        .collect();
    others.sort_unstable_by_key(|(distance, id, _)| (*distance, *id));
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
        namespaces: attempt.namespaces(),
        others: others
            .into_iter()
            .map(|(_, id, rule)| Other { rule: Cited::new(id, rule), reasons: attempt.reasons(id, rule) })
            .collect(),
        others_omitted,
    }
}

/// What is explained, and what came of it.
struct Attempt<'a> {
    rules: &'a [(RuleId, &'a PolicyRule)],
    subject: &'a Identity,
    object: &'a Identity,
    protocol: u8,
    port: u16,
    now: Moment,
    answers: &'a BTreeMap<(&'a Namespace, End), Answer>,
    decision: Decision,
}

impl Attempt<'_> {
    fn rule(&self, wanted: RuleId) -> Option<&PolicyRule> {
        self.rules.iter().find(|(id, _)| *id == wanted).map(|(_, rule)| *rule)
    }

    fn matches(&self, rule: &PolicyRule) -> bool {
        matches(rule, self.subject, self.object, self.protocol, self.port)
    }

    /// The ends a rule speaks for, of PUs that live where it holds.
    fn ends(&self, rule: &PolicyRule) -> Vec<End> {
        [(End::Egress, self.subject), (End::Ingress, self.object)]
            .into_iter()
            .filter(|(end, identity)| concerns(rule, *end, identity))
            .map(|(end, _)| end)
            .collect()
    }

    fn namespaces(&self) -> Vec<NamespaceAnswer> {
        self.answers
            .iter()
            .map(|((namespace, end), answer)| NamespaceAnswer {
                namespace: namespace.to_string(),
                end: *end,
                outcome: answer.enforced,
                name: answer.enforced.rule().and_then(|id| self.rule(id)).map(PolicyRule::full_name),
            })
            .collect()
    }

    /// How far a rule was from deciding, for the order in which rules are shown.
    fn distance(&self, rule: &PolicyRule) -> usize {
        let body = rule.rule();
        let side = |side: &Side, identity: &Identity| match (side.matches(identity), side, identity) {
            (true, ..) => 0,
            (false, Side::Tags(selector), Identity::Pu { tags, .. }) => {
                let failed = |clauses: &Vec<Clause>| clauses.iter().filter(|clause| !clause.matches(tags)).count();
                1 + selector.alternatives.iter().map(failed).min().unwrap_or(0)
            }
            (false, ..) => 2,
        };
        usize::from(!body.covers(self.protocol, self.port))
            + usize::from(self.ends(rule).is_empty())
            + usize::from(body.is_expired(self.now))
            + side(&body.subject, self.subject)
            + side(&body.object, self.object)
    }

    fn reasons(&self, id: RuleId, rule: &PolicyRule) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let body = rule.rule();
        if let Some(until) = body.until.filter(|_| body.is_expired(self.now)) {
            reasons.push(Reason::Expired { until });
        }
        if !body.covers(self.protocol, self.port) {
            let covers: Vec<String> = body.ports.iter().map(PortRange::to_string).collect();
            reasons.push(Reason::Port { covers: covers.join(" ") });
        }
        if self.ends(rule).is_empty() {
            reasons.push(Reason::Namespace { namespace: rule.namespace().to_string(), ends: body.ends });
        }
        if !body.subject.matches(self.subject) {
            reasons.push(Reason::Subject { failed: failures(&body.subject, self.subject) });
        }
        if !body.object.matches(self.object) {
            reasons.push(Reason::Object { failed: failures(&body.object, self.object) });
        }
        if reasons.is_empty() {
            reasons.push(self.overruled(id, rule));
        }
        reasons
    }

    /// Why a rule that matches did not decide.
    fn overruled(&self, id: RuleId, rule: &PolicyRule) -> Reason {
        if let (true, Some(would)) = (rule.rule().observe, rule.rule().verb.action()) {
            return Reason::ObserveOnly { would };
        }
        let ends = self.ends(rule);
        let said = |end: &End| self.answers.get(&(rule.namespace(), *end)).and_then(|answer| answer.enforced.rule());
        if ends.iter().any(|end| said(end) == Some(id)) {
            return self.overruled_elsewhere(rule);
        }
        for end in &ends {
            if let Some(by) = self.before(id, rule, *end) {
                return Reason::Outranked { by };
            }
        }
        match ends.iter().find_map(said) {
            _ if rule.rule().verb == Verb::Pass => Reason::Passed,
            Some(by) if self.rule(by).is_some_and(|other| other.rule().verb == rule.rule().verb) => {
                Reason::SameOutcome { by }
            }
            by => Reason::OverriddenByDeny { by: by.unwrap_or(RuleId::NONE) },
        }
    }

    /// Of a rule that decided for its own namespace.
    fn overruled_elsewhere(&self, rule: &PolicyRule) -> Reason {
        match self.decision.rule {
            Some(by) if self.rule(by).is_some_and(|rule| rule.tier() == Tier::Exempt) => Reason::Exempted { by },
            Some(by) if rule.rule().verb.action() == Some(self.decision.action) => Reason::SameOutcome { by },
            Some(by) => Reason::OverriddenByDeny { by },
            None => {
                let withheld = self.answers.iter().filter(|(_, answer)| answer.enforced == Outcome::Withheld);
                let mut by: Vec<String> = withheld.map(|((namespace, _), _)| namespace.to_string()).collect();
                by.dedup();
                Reason::Withheld { by }
            }
        }
    }

    /// The rule that is asked before this one and kept it from being asked.
    fn before(&self, id: RuleId, rule: &PolicyRule, end: End) -> Option<RuleId> {
        let rival = |other: &PolicyRule| {
            other.namespace() == rule.namespace()
                && concerns(other, end, if end == End::Egress { self.subject } else { self.object })
                && !other.rule().observe
                && !other.rule().is_expired(self.now)
                && self.matches(other)
        };
        let same_tier = |a: Tier, b: Tier| a.name() == b.name();
        if rule.tier().is_ordered() {
            let rivals = self.rules.iter().filter(|(_, other)| same_tier(other.tier(), rule.tier()) && rival(other));
            let first = rivals.min_by_key(|(other_id, other)| (other.precedence(), *other_id)).map(|(first, _)| *first);
            if first != Some(id) {
                return first;
            }
        }
        let decider = self.answers.get(&(rule.namespace(), end))?.enforced.rule()?;
        let tier = self.rule(decider)?.tier();
        (!same_tier(tier, rule.tier()) && rule.rule().verb != Verb::Pass).then_some(decider)
    }
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
        (Side::Net(meant), Identity::External { networks, names }) => {
            let list: Vec<String> = networks.iter().map(ToString::to_string).chain(names.iter().cloned()).collect();
            vec![format!("{meant} (it is in {})", list.join(", "))]
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
        Self {
            id,
            name: rule.full_name(),
            namespace: rule.namespace().to_string(),
            tier: rule.tier().to_string(),
            text: body.to_string(),
            location: rule.location().clone(),
        }
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
            None => {
                let withheld = |end| {
                    let names = self.namespaces.iter().filter(move |said| said.end == end);
                    let names = names.filter(|said| said.outcome == Outcome::Withheld);
                    names.map(|said| said.namespace.as_str()).collect::<Vec<_>>()
                };
                let mut by = [withheld(End::Egress), withheld(End::Ingress)].concat();
                by.sort_unstable();
                by.dedup();
                match self.namespaces.iter().any(|said| matches!(said.outcome, Outcome::Accepted { .. })) {
                    true => writeln!(f, "{}: denied by default, {} does not allow it", self.target, by.join(" and "))?,
                    false => writeln!(f, "{}: denied by default, no rule allows it", self.target)?,
                }
            }
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
        // With one namespace and one answer, all has been said.
        let told = |said: &NamespaceAnswer| (said.namespace.clone(), said.outcome);
        if self.namespaces.iter().any(|said| told(said) != told(&self.namespaces[0])) {
            writeln!(f, "Asked:")?;
            for said in &self.namespaces {
                writeln!(f, "  {said}")?;
            }
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

impl fmt::Display for NamespaceAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match self.end {
            End::Egress => "egress",
            End::Ingress => "ingress",
        };
        write!(f, "{} for {end}: ", self.namespace)?;
        let name = self.name.as_deref().unwrap_or_default();
        match self.outcome {
            Outcome::Exempted { rule, .. } => write!(f, "exempted by rule {rule} `{name}`"),
            Outcome::Accepted { rule, .. } => write!(f, "allowed by rule {rule} `{name}`"),
            Outcome::Refused { rule, .. } => write!(f, "denied by rule {rule} `{name}`"),
            Outcome::Withheld => f.write_str("allows others, not this"),
            Outcome::Silent => f.write_str("nothing to say"),
        }
    }
}

impl fmt::Display for Cited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} `{}`", self.id, self.name)?;
        if self.namespace != "/" {
            write!(f, " of {}", self.namespace)?;
        }
        if self.tier != Tier::Normal.name() {
            write!(f, ", tier {}", self.tier)?;
        }
        write!(f, " ({})", self.location)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverriddenByDeny { by } => write!(f, "matches, but deny rule {by} beats it"),
            Self::SameOutcome { by } => {
                write!(f, "matches too; rule {by} is named for its lower number")
            }
            Self::Outranked { by } => write!(f, "matches, but rule {by} is asked before it"),
            Self::Exempted { by } => write!(f, "matches, but rule {by} of the enforcer itself exempts this"),
            Self::Passed => f.write_str("matches, and leaves the decision to the next tier"),
            Self::Withheld { by } => write!(f, "allows it, but {} does not", by.join(" and ")),
            Self::Expired { until } => write!(f, "expired at {until}"),
            Self::ObserveOnly { would } => {
                write!(f, "matches and would {would}, but is only observed")
            }
            Self::Port { covers } => write!(f, "covers only {covers}"),
            Self::Namespace { namespace, ends: Ends::Both } => {
                write!(f, "speaks only of {namespace}, where neither end lives")
            }
            Self::Namespace { namespace, ends } => {
                let pu = if *ends == Ends::Egress { "subject" } else { "object" };
                write!(f, "speaks only for PUs of {namespace}, where the {pu} does not live")
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
        explain(numbered, &subject, &object, PortRange::TCP, port, Moment::START)
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
    fn namespaces_tiers_ends_and_expiry_are_told() {
        let text = "\
- {name: first, tier: admin, priority: 1, namespace: /acme, rules: [pass app=a -> app=b tcp/80, deny app=a -> app=b]}
- name: parent
  namespace: /acme
  rules:
    - narrow: allow app=a -> app=b tcp/80,443
    - out: allow app=a -> app=b tcp/80 ingress
    - over: allow app=a -> app=b until 1970-01-01T00:00:10Z
- name: child
  namespace: /acme/prod
  rules:
    - wide: allow any -> any tcp/80
    - elsewhere: allow any -> any tcp/81
";
        let rules = parse_file("p", text).unwrap();
        let numbered = || rules.iter().zip(1..).map(|(rule, id)| (RuleId(id), &**rule));
        let pu = |namespace: &str, app| Identity::pu(namespace.parse().unwrap(), [("app", app)]);
        let now = Moment::from_unix(10);
        let ends = (pu("/acme/prod", "a"), pu("/acme/prod", "b"));
        let allowed = explain(numbered(), &ends.0, &ends.1, PortRange::TCP, 80, now);
        assert_eq!(allowed.rule.as_ref().unwrap().name, "parent/narrow");
        let reason = |of: &Explanation, name: &str| {
            let other = of.others.iter().find(|other| other.rule.name == name).unwrap();
            other.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        for (name, expected) in [
            ("first/#1", "matches, and leaves the decision to the next tier"),
            ("first/#2", "matches, but rule 1 is asked before it"),
            ("parent/out", "matches too; rule 3 is named for its lower number"),
            ("parent/over", "expired at 1970-01-01T00:00:10Z"),
            ("child/wide", "matches too; rule 3 is named for its lower number"),
            ("child/elsewhere", "covers only tcp/81"),
        ] {
            assert_eq!(reason(&allowed, name), expected, "{name}");
        }
        let refused = explain(numbered(), &ends.0, &ends.1, PortRange::TCP, 443, now);
        let text = refused.to_string();
        assert!(text.starts_with("tcp/443: denied by rule 2 `first/#2` of /acme, tier admin/1 (p:1:"), "{text}");
        assert!(text.contains("\n  /acme/prod for egress: allows others, not this\n"), "{text}");
        assert_eq!(reason(&refused, "parent/narrow"), "matches, but rule 2 is asked before it");
        let beside = explain(numbered(), &pu("/acme/prod", "a"), &pu("/other", "b"), PortRange::TCP, 80, now);
        assert_eq!(reason(&beside, "parent/out"), "speaks only for PUs of /acme, where the object does not live");
        let withheld = explain(numbered(), &pu("/acme/prod", "c"), &pu("/acme/prod", "d"), PortRange::TCP, 80, now);
        assert!(withheld.to_string().starts_with("tcp/80: denied by default, /acme does not allow it\n"), "{withheld}");
        assert_eq!(reason(&withheld, "child/wide"), "allows it, but /acme does not");
    }

    #[test]
    fn long_lists_are_cut_with_a_count() {
        let lines = "  - allow app=x -> any tcp/1\n".repeat(MAX_OTHERS + 5);
        let rules = parse_file("p", &format!("name: p\nrules:\n{lines}")).unwrap();
        let numbered = rules.iter().zip(1..).map(|(rule, id)| (RuleId(id), &**rule));
        let pu = Identity::pu(Namespace::root(), [("app", "y")]);
        let explanation = explain(numbered, &pu, &pu, PortRange::TCP, 1, Moment::START);
        assert_eq!(explanation.others.len(), MAX_OTHERS);
        assert_eq!(explanation.others_omitted, 5);
        assert!(explanation.to_string().ends_with("and 5 more that match one end\n"));
    }
}
