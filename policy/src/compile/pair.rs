use std::collections::BTreeSet;

use serde::Serialize;

use crate::evaluate::Decision;
use crate::model::{Action, Rule, RuleId};

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
    pub rule: &'a Rule,
    pub keys: &'a [(u32, u32)],
}

/// Walks the keys from low to high, keeping the set of rules that cover the current one.
pub(super) fn sweep(rules: &[Contribution<'_>]) -> PairVerdict {
    let mut edges: Vec<(u32, bool, usize)> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        for &(lo, hi) in rule.keys {
            edges.push((lo, true, index));
            edges.push((hi + 1, false, index));
        }
    }
    edges.sort_unstable();

    let mut active = Active::default();
    let mut verdict = PairVerdict::default();
    let mut edges = edges.into_iter().peekable();
    while let Some((lo, starts, index)) = edges.next() {
        active.toggle(&rules[index], starts);
        if let Some(&(next, ..)) = edges.peek()
            && next > lo
            && let Some(interval) = active.interval(lo, next - 1)
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

/// The rules that cover the current key, lowest number first.
#[derive(Default)]
struct Active {
    deny: BTreeSet<RuleId>,
    allow: BTreeSet<RuleId>,
    observed_deny: BTreeSet<RuleId>,
    observed_allow: BTreeSet<RuleId>,
    logged_deny: u32,
    logged_allow: u32,
    encrypted: u32,
}

impl Active {
    fn toggle(&mut self, contribution: &Contribution<'_>, starts: bool) {
        let rule = contribution.rule;
        let set = match (rule.action, rule.observe) {
            (Action::Deny, false) => &mut self.deny,
            (Action::Allow, false) => &mut self.allow,
            (Action::Deny, true) => &mut self.observed_deny,
            (Action::Allow, true) => &mut self.observed_allow,
        };
        if starts {
            set.insert(contribution.id);
        } else {
            set.remove(&contribution.id);
        }
        if rule.observe {
            return;
        }
        let count = |counter: &mut u32, counts: bool| match (counts, starts) {
            (true, true) => *counter += 1,
            (true, false) => *counter -= 1,
            (false, _) => {}
        };
        match rule.action {
            Action::Deny => count(&mut self.logged_deny, rule.log),
            Action::Allow => {
                count(&mut self.logged_allow, rule.log);
                count(&mut self.encrypted, rule.encrypt);
            }
        }
    }

    /// The verdict here, `None` when it is the default and nothing is observed.
    fn interval(&self, lo: u32, hi: u32) -> Option<Interval> {
        let (action, rule, log, encrypt) = match (self.deny.first(), self.allow.first()) {
            (Some(&deny), _) => (Action::Deny, deny, self.logged_deny > 0, false),
            (None, Some(&allow)) => (Action::Allow, allow, self.logged_allow > 0, self.encrypted > 0),
            (None, None) => (Action::Deny, RuleId::NONE, false, false),
        };
        let observed = match (self.observed_deny.first(), self.observed_allow.first()) {
            (Some(&deny), _) if action == Action::Allow => Some((Action::Deny, deny)),
            (None, Some(&allow)) if rule == RuleId::NONE => Some((Action::Allow, allow)),
            _ => None,
        };
        if rule == RuleId::NONE && observed.is_none() {
            return None;
        }
        Some(Interval {
            lo,
            hi,
            action,
            rule,
            log,
            encrypt,
            observed_action: observed.map(|(action, _)| action),
            observed_rule: observed.map_or(RuleId::NONE, |(_, rule)| rule),
        })
    }
}
