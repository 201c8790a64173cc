//! From the answers of every namespace asked to one decision.

use serde::Serialize;

use crate::evaluate::Decision;
use crate::model::{Action, RuleId, Tier, Verb};

/// What a namespace answers for one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// By its enforced rules.
    pub enforced: Outcome,
    /// If its observe rules were enforced beside them.
    pub observed: Outcome,
    /// The allow rule of the lowest number among those that speak for the end, observed ones included: it, if it
    /// is an observe rule, would make a silent namespace withhold.
    pub bounded_by: RuleId,
}

/// The answer itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// The enforcer itself exempts it: allowed, whatever any namespace says.
    Exempted {
        /// Its rule.
        rule: RuleId,
        /// It asks for a log entry.
        log: bool,
    },
    /// A rule allows it.
    Accepted {
        /// The rule.
        rule: RuleId,
        /// It, or another that allows it beside it, asks for a log entry.
        log: bool,
        /// It, or another that allows it beside it, demands encryption.
        encrypt: bool,
    },
    /// A rule denies it.
    Refused {
        /// The rule.
        rule: RuleId,
        /// It, or another that denies it beside it, asks for a log entry.
        log: bool,
    },
    /// No rule matches, and there are allow rules for this end: what they do not allow is denied.
    Withheld,
    /// No rule matches, and none could have allowed anything: others decide.
    Silent,
}

impl Outcome {
    /// What a rule of this tier that decides says; `None` for `pass`.
    pub fn of(tier: Tier, verb: Verb, rule: RuleId, log: bool, encrypt: bool) -> Option<Self> {
        match verb {
            Verb::Allow if tier == Tier::Exempt => Some(Self::Exempted { rule, log }),
            Verb::Allow => Some(Self::Accepted { rule, log, encrypt }),
            Verb::Deny => Some(Self::Refused { rule, log }),
            Verb::Pass => None,
        }
    }

    /// The rule that decided.
    pub fn rule(self) -> Option<RuleId> {
        match self {
            Self::Exempted { rule, .. } | Self::Accepted { rule, .. } | Self::Refused { rule, .. } => Some(rule),
            Self::Withheld | Self::Silent => None,
        }
    }
}

/// The answers of all namespaces and both ends, added up one by one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answers {
    enforced: Sum,
    observed: Sum,
    /// Observe rules that make a difference to a namespace's answer, the lowest number of each kind.
    newly_refused: Option<RuleId>,
    newly_withheld: Option<RuleId>,
    newly_accepted: Option<RuleId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    exempted: Option<RuleId>,
    exempted_log: bool,
    refused: Option<RuleId>,
    refused_log: bool,
    withheld: bool,
    accepted: Option<RuleId>,
    accepted_log: bool,
    encrypt: bool,
}

impl Answers {
    pub fn add(&mut self, answer: &Answer) {
        self.enforced.add(answer.enforced);
        self.observed.add(answer.observed);
        match (answer.enforced, answer.observed) {
            (Outcome::Refused { .. }, Outcome::Refused { .. })
            | (Outcome::Accepted { .. }, Outcome::Accepted { .. }) => {}
            (_, Outcome::Refused { rule, .. }) => lower(&mut self.newly_refused, rule),
            (_, Outcome::Accepted { rule, .. }) => lower(&mut self.newly_accepted, rule),
            (Outcome::Silent, Outcome::Withheld) => lower(&mut self.newly_withheld, answer.bounded_by),
            _ => {}
        }
    }

    pub fn decide(&self) -> Decision {
        let (action, rule) = self.enforced.action();
        let (would, _) = self.observed.action();
        let culprit = match would {
            Action::Deny => self.newly_refused.or(self.newly_withheld),
            Action::Allow => self.newly_accepted,
        };
        Decision {
            action,
            rule,
            log: match action {
                Action::Allow if self.enforced.exempted.is_some() => self.enforced.exempted_log,
                Action::Allow => self.enforced.accepted_log,
                Action::Deny => self.enforced.refused_log,
            },
            encrypt: action == Action::Allow && self.enforced.exempted.is_none() && self.enforced.encrypt,
            observed: culprit.filter(|_| would != action).map(|rule| (would, rule)),
        }
    }
}

impl FromIterator<Answer> for Answers {
    fn from_iter<T: IntoIterator<Item = Answer>>(answers: T) -> Self {
        let mut all = Self::default();
        answers.into_iter().for_each(|answer| all.add(&answer));
        all
    }
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Exempted { rule, log } => {
                lower(&mut self.exempted, rule);
                self.exempted_log |= log;
            }
            Outcome::Accepted { rule, log, encrypt } => {
                lower(&mut self.accepted, rule);
                self.accepted_log |= log;
                self.encrypt |= encrypt;
            }
            Outcome::Refused { rule, log } => {
                lower(&mut self.refused, rule);
                self.refused_log |= log;
            }
            Outcome::Withheld => self.withheld = true,
            Outcome::Silent => {}
        }
    }

    fn action(&self) -> (Action, Option<RuleId>) {
        if let Some(rule) = self.exempted {
            return (Action::Allow, Some(rule));
        }
        match (self.refused, self.withheld, self.accepted) {
            (Some(rule), ..) => (Action::Deny, Some(rule)),
            (None, true, _) | (None, false, None) => (Action::Deny, None),
            (None, false, Some(rule)) => (Action::Allow, Some(rule)),
        }
    }
}

fn lower(least: &mut Option<RuleId>, rule: RuleId) {
    *least = Some(least.map_or(rule, |least| least.min(rule)));
}
