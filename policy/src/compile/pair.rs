use std::collections::BTreeSet;

use serde::Serialize;

use super::level::Asked;
use crate::consent::{Answer, Answers, Outcome};
use crate::evaluate::Decision;
use crate::model::{Action, PolicyRule, Rule, RuleId, Tier, Verb};

/// Every verdict for connections from one identity to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PairVerdict {
    /// Sorted and disjoint, adjacent ones differ. Keys in no interval are denied by default.
    pub intervals: Vec<Interval>,
}

/// One verdict for a range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Interval {
    /// Lowest [`port_key`], included.
    pub lo: u32,
    /// Highest [`port_key`], included.
    pub hi: u32,
    /// Enforced action.
    pub action: Action,
    /// The rule named as the reason, [`RuleId::NONE`] for the default deny.
    pub rule: RuleId,
    /// Connections are to be logged.
    pub log: bool,
    /// Payload must be encrypted.
    pub encrypt: bool,
    /// What the action would be with observe rules enforced, where that differs.
    pub observed_action: Option<Action>,
    /// The observe rule that would change it, [`RuleId::NONE`] if none.
    pub observed_rule: RuleId,
}

/// Protocol and port as one number, `protocol << 16 | port`.
pub fn port_key(protocol: u8, port: u16) -> u32 {
    u32::from(protocol) << 16 | u32::from(port)
}

impl PairVerdict {
    /// The decision for a port of a protocol.
    pub fn decide(&self, protocol: u8, port: u16) -> Decision {
        let key = port_key(protocol, port);
        let at = self.intervals.partition_point(|interval| interval.hi < key);
        match self.intervals.get(at) {
            Some(interval) if interval.lo <= key => Decision {
                action: interval.action,
                rule: interval.rule.some(),
                log: interval.log,
                encrypt: interval.encrypt,
                observed: interval.observed_action.map(|action| (action, interval.observed_rule)),
            },
            _ => Decision { action: Action::Deny, rule: None, log: false, encrypt: false, observed: None },
        }
    }
}

/// The keys a rule covers, sorted, disjoint and not adjacent.
pub(super) fn covered_keys(rule: &Rule) -> Box<[(u32, u32)]> {
    if rule.ports.is_empty() {
        return Box::new([(0, port_key(u8::MAX, u16::MAX))]);
    }
    let mut ranges: Vec<(u32, u32)> = rule
        .ports
        .iter()
        .map(|range| (port_key(range.protocol, range.low), port_key(range.protocol, range.high)))
        .collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (lo, hi) in ranges {
        match merged.last_mut() {
            Some(last) if lo <= last.1 + 1 => last.1 = last.1.max(hi),
            _ => merged.push((lo, hi)),
        }
    }
    merged.into_boxed_slice()
}

/// What a pair's verdict is made of: one rule that matches both ends.
#[derive(Clone, Copy)]
pub(super) struct Contribution<'a> {
    pub id: RuleId,
    pub rule: &'a PolicyRule,
    pub keys: &'a [(u32, u32)],
}

/// Walks the keys from low to high, keeping for each namespace asked the rules that cover the current one.
pub(super) fn sweep(mut rules: Vec<Contribution<'_>>, asked: &[Asked<'_>]) -> PairVerdict {
    // From here on a rule's place in the list is its rank.
    rules.sort_unstable_by(|a, b| {
        let ranked = |rule: &Contribution<'_>| rule.rule.tier().is_ordered();
        match (ranked(a), ranked(b)) {
            (true, true) => (a.rule.precedence(), a.id).cmp(&(b.rule.precedence(), b.id)),
            (false, false) => a.id.cmp(&b.id),
            (a, b) => a.cmp(&b),
        }
    });
    let mut edges: Vec<(u32, bool, usize)> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        for &(lo, hi) in rule.keys {
            edges.push((lo, true, index));
            edges.push((hi + 1, false, index));
        }
    }
    edges.sort_unstable();

    let mut active: Vec<Active<'_>> = asked.iter().map(|asked| Active::new(asked, &rules)).collect();
    let mut verdict = PairVerdict::default();
    let mut edges = edges.into_iter().peekable();
    while let Some((lo, starts, index)) = edges.next() {
        active
            .iter_mut()
            .filter(|level| level.asked.hears(rules[index].rule))
            .for_each(|level| level.toggle(index, starts));
        if let Some(&(next, ..)) = edges.peek()
            && next > lo
            && let Some(interval) = interval(&active, lo, next - 1)
        {
            verdict.append(interval);
        }
    }
    verdict
}

impl PairVerdict {
    fn append(&mut self, interval: Interval) {
        if let Some(last) = self.intervals.last_mut() {
            let continued = Interval { lo: last.lo, ..interval };
            let same = Interval { hi: interval.hi, ..*last } == continued;
            if same && last.hi + 1 == interval.lo {
                last.hi = interval.hi;
                return;
            }
        }
        self.intervals.push(interval);
    }
}

/// The verdict here, `None` when it is the default and nothing is observed.
fn interval(active: &[Active<'_>], lo: u32, hi: u32) -> Option<Interval> {
    let decision = active.iter().map(Active::answer).collect::<Answers>().decide();
    if decision.rule.is_none() && decision.observed.is_none() {
        return None;
    }
    Some(Interval {
        lo,
        hi,
        action: decision.action,
        rule: decision.rule.unwrap_or(RuleId::NONE),
        log: decision.log,
        encrypt: decision.encrypt,
        observed_action: decision.observed.map(|(action, _)| action),
        observed_rule: decision.observed.map_or(RuleId::NONE, |(_, rule)| rule),
    })
}

/// The rules of one namespace that cover the current key, by their rank.
struct Active<'a> {
    asked: &'a Asked<'a>,
    rules: &'a [Contribution<'a>],
    /// Those of the exempt tier among them: their ranks are the smallest.
    admin: BTreeSet<usize>,
    baseline: BTreeSet<usize>,
    /// Those of the normal tier.
    deny: Alike,
    allow: Alike,
    observed_deny: BTreeSet<usize>,
    observed_allow: BTreeSet<usize>,
}

/// Enforced rules of the normal tier that say the same.
#[derive(Default)]
struct Alike {
    rules: BTreeSet<usize>,
    logged: u32,
    encrypted: u32,
}

impl<'a> Active<'a> {
    fn new(asked: &'a Asked<'a>, rules: &'a [Contribution<'a>]) -> Self {
        Self {
            asked,
            rules,
            admin: BTreeSet::new(),
            baseline: BTreeSet::new(),
            deny: Alike::default(),
            allow: Alike::default(),
            observed_deny: BTreeSet::new(),
            observed_allow: BTreeSet::new(),
        }
    }

    fn toggle(&mut self, index: usize, starts: bool) {
        let rule = self.rules[index].rule;
        let set = match (rule.tier(), rule.rule().verb, rule.rule().observe) {
            (Tier::Exempt | Tier::Admin(_), ..) => &mut self.admin,
            (Tier::Baseline(_), ..) => &mut self.baseline,
            (Tier::Normal, Verb::Deny, false) => return self.deny.toggle(index, rule.rule(), starts),
            (Tier::Normal, Verb::Deny, true) => &mut self.observed_deny,
            (Tier::Normal, _, false) => return self.allow.toggle(index, rule.rule(), starts),
            (Tier::Normal, _, true) => &mut self.observed_allow,
        };
        if starts {
            set.insert(index);
        } else {
            set.remove(&index);
        }
    }

    fn answer(&self) -> Answer {
        let bounds = self.asked.bounds();
        let silent = |bounded: bool| if bounded { Outcome::Withheld } else { Outcome::Silent };
        Answer {
            enforced: self.outcome(false).unwrap_or(silent(bounds.enforced())),
            observed: self.outcome(true).unwrap_or(silent(bounds.enforced() || bounds.observed().is_some())),
            bounded_by: bounds.observed().unwrap_or_default(),
        }
    }

    /// What the tiers answer, with observe rules enforced or without them.
    fn outcome(&self, observed: bool) -> Option<Outcome> {
        let first = |rules: &BTreeSet<usize>| {
            let heard = |index: &&usize| observed || !self.rules[**index].rule.rule().observe;
            let Contribution { id, rule, .. } = self.rules[*rules.iter().find(heard)?];
            Outcome::of(rule.tier(), rule.rule().verb, id, rule.rule().log, rule.rule().encrypt)
        };
        let normal = |verb: Verb, enforced: &Alike, others: &BTreeSet<usize>| {
            let other = others.first().filter(|_| observed);
            let index = enforced.rules.first().into_iter().chain(other).min()?;
            Outcome::of(Tier::Normal, verb, self.rules[*index].id, enforced.logged > 0, enforced.encrypted > 0)
        };
        first(&self.admin)
            .or_else(|| normal(Verb::Deny, &self.deny, &self.observed_deny))
            .or_else(|| normal(Verb::Allow, &self.allow, &self.observed_allow))
            .or_else(|| first(&self.baseline))
    }
}

impl Alike {
    fn toggle(&mut self, index: usize, rule: &Rule, starts: bool) {
        let count = |counter: &mut u32, counts: bool| match (counts, starts) {
            (true, true) => *counter += 1,
            (true, false) => *counter -= 1,
            (false, _) => {}
        };
        count(&mut self.logged, rule.log);
        count(&mut self.encrypted, rule.encrypt);
        if starts {
            self.rules.insert(index);
        } else {
            self.rules.remove(&index);
        }
    }
}
