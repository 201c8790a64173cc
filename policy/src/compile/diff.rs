use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::model::{PolicyRule, RuleId};

/// A rule's place in the list. Holds the rule itself, so that comparing lists stays in one array.
pub(super) struct Listed {
    pub id: RuleId,
    pub rule: Arc<PolicyRule>,
}

/// Which rules of a new list are old acquaintances.
pub(super) struct Diff {
    /// How many rules at the start of both lists are equal.
    pub head: usize,
    /// How many at the end.
    pub tail: usize,
    old_length: usize,
    /// For each rule of the new list between those, its number if it had one.
    pub kept: Vec<Option<RuleId>>,
    pub removed: Vec<RuleId>,
}

impl Diff {
    pub fn new(old: &[Listed], new: &[Arc<PolicyRule>]) -> Self {
        let same =
            |(old, new): &(&Listed, &Arc<PolicyRule>)| Arc::ptr_eq(&old.rule, new) || old.rule.digest() == new.digest();
        let head = old.iter().zip(new).take_while(same).count();
        let (old_rest, new_rest) = (&old[head..], &new[head..]);
        let from_end = old_rest.iter().rev().zip(new_rest.iter().rev());
        let tail = from_end.take_while(same).count();
        let old_middle = &old_rest[..old_rest.len() - tail];
        let new_middle = &new_rest[..new_rest.len() - tail];

        let mut by_digest: HashMap<u128, VecDeque<RuleId>> = HashMap::new();
        for listed in old_middle {
            let same = by_digest.entry(listed.rule.digest()).or_default();
            same.push_back(listed.id);
        }
        let mut known = |rule: &Arc<PolicyRule>| by_digest.get_mut(&rule.digest())?.pop_front();
        let kept = new_middle.iter().map(&mut known).collect();

        let left: HashSet<RuleId> = by_digest.into_values().flatten().collect();
        let removed = old_middle.iter().map(|listed| listed.id).filter(|id| left.contains(id)).collect();
        Self { head, tail, old_length: old.len(), kept, removed }
    }

    pub fn old_middle(&self) -> Range<usize> {
        self.head..self.old_length - self.tail
    }

    pub fn new_middle(&self) -> Range<usize> {
        self.head..self.head + self.kept.len()
    }
}
