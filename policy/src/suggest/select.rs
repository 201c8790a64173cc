//! The shortest selector that means some PUs and no other recorded one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{cover::Cover, tags::rank};
use crate::model::{Clause, Operator, Selector};

/// Single clauses of a target that are tried in pairs.
const PAIRED: usize = 48;
/// Groups that are listed one by one if nothing common tells them apart.
const ALTERNATIVES: usize = 64;

/// Finds selectors.
pub(super) struct Selectors<'a> {
    cover: &'a Cover,
    /// For each tag, the PUs that have it, in order. By all their tags: that is what a selector looks at.
    holders: BTreeMap<(&'a str, &'a str), Vec<u32>>,
    found: HashMap<Vec<u32>, Selected>,
}

/// A selector and whom it means.
#[derive(Clone, Debug)]
pub(super) struct Selected {
    pub selector: Selector,
    /// Recorded PUs it means, in order: the target, and those that could not be told from it.
    pub meant: Vec<u32>,
}

/// A clause that holds for the whole target.
struct Candidate {
    clause: Clause,
    meant: Vec<u32>,
    cost: usize,
}

impl<'a> Selectors<'a> {
    pub fn new(cover: &'a Cover) -> Self {
        let mut holders: BTreeMap<(&str, &str), Vec<u32>> = BTreeMap::new();
        for (number, pu) in (0..).zip(&cover.facts.pus) {
            for (key, values) in &pu.tags {
                for value in values {
                    holders.entry((key, value)).or_default().push(number);
                }
            }
        }
        Self { cover, holders, found: HashMap::new() }
    }

    /// The selector of some groups of PUs.
    pub fn select(&mut self, groups: &[u32]) -> Selected {
        if let Some(found) = self.found.get(groups) {
            return found.clone();
        }
        let selected = self.search(groups);
        self.found.insert(groups.to_vec(), selected.clone());
        selected
    }

    fn search(&mut self, groups: &[u32]) -> Selected {
        let target = self.members(groups);
        let together = self.conjunction(groups, &target);
        if together.meant.len() == target.len() || groups.len() == 1 || groups.len() > ALTERNATIVES {
            return together;
        }
        let each: Vec<Selected> = groups.iter().map(|group| self.select(&[*group])).collect();
        let meant: BTreeSet<u32> = each.iter().flat_map(|selected| selected.meant.iter().copied()).collect();
        if meant.len() >= together.meant.len() {
            return together;
        }
        let alternatives = each.into_iter().flat_map(|selected| selected.selector.alternatives).collect();
        Selected { selector: Selector { alternatives }, meant: meant.into_iter().collect() }
    }

    fn members(&self, groups: &[u32]) -> Vec<u32> {
        let members = groups.iter().flat_map(|group| self.cover.groups[*group as usize].iter().copied());
        members.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// One list of clauses: as few as possible, of the best tags.
    fn conjunction(&self, groups: &[u32], target: &[u32]) -> Selected {
        let mut candidates = self.candidates(groups);
        candidates.sort_by_cached_key(|candidate| (candidate.meant.len(), candidate.cost, order(&candidate.clause)));
        let exact = candidates.iter().filter(|candidate| candidate.meant.len() == target.len());
        if let Some(best) = exact.min_by_key(|candidate| (candidate.cost, order(&candidate.clause))) {
            return Selected { selector: one(vec![best.clause.clone()]), meant: target.to_vec() };
        }
        if let Some(clauses) = pair(&candidates, target) {
            return Selected { selector: one(clauses), meant: target.to_vec() };
        }
        self.narrow(groups, target, &candidates)
    }

    /// Clause by clause, each the one that leaves out the most of those who are not meant.
    fn narrow(&self, groups: &[u32], target: &[u32], candidates: &[Candidate]) -> Selected {
        let mut meant: Vec<u32> = (0..self.cover.facts.pus.len() as u32).collect();
        let mut clauses: Vec<Clause> = Vec::new();
        while meant.len() > target.len() {
            let best = candidates
                .iter()
                .map(|candidate| (common(&meant, &candidate.meant), candidate))
                .min_by_key(|(left, candidate)| (left.len(), candidate.cost, order(&candidate.clause)));
            match best {
                Some((left, candidate)) if left.len() < meant.len() => {
                    clauses.push(candidate.clause.clone());
                    meant = left;
                }
                _ => break,
            }
        }
        // What is left has all the target has: it is told by what it has beside.
        while let Some((clause, left)) = self.without(groups, target, &meant) {
            clauses.push(clause);
            meant = left;
        }
        clauses.sort_by_cached_key(|clause| {
            (matches!(clause.operator, Operator::NotEquals(_)), cost(clause), key(clause))
        });
        Selected { selector: one(clauses), meant }
    }

    /// A tag that nobody of the target has, and the most of those who are not meant.
    fn without(&self, groups: &[u32], target: &[u32], meant: &[u32]) -> Option<(Clause, Vec<u32>)> {
        let wrong = missing(meant, target);
        let mut tags: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for pu in &wrong {
            let group = self.cover.group_of[*pu as usize];
            if groups.contains(&group) {
                continue;
            }
            for (key, values) in &self.cover.telling[group as usize] {
                for value in values {
                    *tags.entry((key, value)).or_default() += 1;
                }
            }
        }
        tags.retain(|tag, _| self.holders.get(tag).is_none_or(|holders| common(holders, target).is_empty()));
        let best = tags
            .into_iter()
            .min_by_key(|((key, value), count)| (usize::MAX - count, rank(key, value).unwrap_or(9), *key, *value))?;
        let (key, value) = best.0;
        let clause = Clause { key: key.into(), operator: Operator::NotEquals(value.into()) };
        let holders = self.holders.get(&best.0)?;
        Some((clause, missing(meant, holders)))
    }

    /// Every clause `k=v` and `k in (…)` that holds for all of the target.
    fn candidates(&self, groups: &[u32]) -> Vec<Candidate> {
        let mut groups = groups.iter().map(|group| &self.cover.telling[*group as usize]);
        let Some(first) = groups.next() else { return Vec::new() };
        let rest: Vec<_> = groups.collect();
        let mut candidates = Vec::new();
        for (key, values) in first {
            if !rest.iter().all(|tags| tags.contains_key(key)) {
                continue;
            }
            let shared = values.iter().filter(|value| rest.iter().all(|tags| tags[key].contains(*value)));
            let mut any_shared = false;
            for value in shared {
                any_shared = true;
                let clause = Clause { key: key.clone(), operator: Operator::Equals(value.clone()) };
                let meant = self.holders.get(&(key.as_str(), value.as_str())).cloned().unwrap_or_default();
                candidates.push(Candidate { cost: cost(&clause), clause, meant });
            }
            if !any_shared {
                candidates.extend(self.list(key, std::iter::once(first).chain(rest.iter().copied())));
            }
        }
        candidates
    }

    /// `key in (…)`, of each group the value that the fewest PUs have.
    fn list<'t>(&self, key: &str, groups: impl Iterator<Item = &'t crate::model::Tags>) -> Option<Candidate> {
        let mut list = BTreeSet::new();
        for tags in groups {
            let holders = |value: &str| self.holders.get(&(key, value)).map_or(0, Vec::len);
            list.insert(tags.get(key)?.iter().min_by_key(|value| (holders(value), *value))?.clone());
        }
        let holders = list.iter().filter_map(|value| self.holders.get(&(key, value.as_str())));
        let meant: BTreeSet<u32> = holders.flatten().copied().collect();
        let clause = Clause { key: key.into(), operator: Operator::In(list.into_iter().collect()) };
        Some(Candidate { cost: cost(&clause), clause, meant: meant.into_iter().collect() })
    }
}

/// The best two clauses that together mean the target alone.
fn pair(candidates: &[Candidate], target: &[u32]) -> Option<Vec<Clause>> {
    let tried = &candidates[..candidates.len().min(PAIRED)];
    let mut best: Option<(usize, &Candidate, &Candidate)> = None;
    for (at, first) in tried.iter().enumerate() {
        for second in &tried[at + 1..] {
            let cost = first.cost + second.cost;
            if best.is_none_or(|(least, ..)| cost < least) && common(&first.meant, &second.meant).len() == target.len()
            {
                best = Some((cost, first, second));
            }
        }
    }
    let (_, first, second) = best?;
    let mut clauses = vec![first.clause.clone(), second.clause.clone()];
    clauses.sort_by_cached_key(|clause| (cost(clause), key(clause)));
    Some(clauses)
}

/// How much a reader would rather not see this clause.
fn cost(clause: &Clause) -> usize {
    let of = |value: &str| 10 * usize::from(rank(&clause.key, value).unwrap_or(9));
    match &clause.operator {
        Operator::Equals(value) | Operator::NotEquals(value) => of(value),
        Operator::In(list) => list.iter().map(|value| of(value)).max().unwrap_or(0) + 2 + 3 * list.len(),
        _ => 0,
    }
}

/// A fixed order among clauses that are equally good.
fn order(clause: &Clause) -> (String, String) {
    (clause.key.clone(), clause.to_string())
}

fn key(clause: &Clause) -> String {
    clause.to_string()
}

fn one(clauses: Vec<Clause>) -> Selector {
    Selector { alternatives: vec![clauses] }
}

/// What is in both of two ordered lists.
pub(super) fn common(a: &[u32], b: &[u32]) -> Vec<u32> {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    if short.len() * 16 < long.len() {
        return short.iter().copied().filter(|item| long.binary_search(item).is_ok()).collect();
    }
    let mut long = long.iter().peekable();
    let mut both = Vec::with_capacity(short.len());
    for item in short {
        while long.next_if(|other| *other < item).is_some() {}
        if long.peek() == Some(&item) {
            both.push(*item);
        }
    }
    both
}

/// What is in `a` and not in `b`, both ordered.
fn missing(a: &[u32], b: &[u32]) -> Vec<u32> {
    a.iter().copied().filter(|item| b.binary_search(item).is_err()).collect()
}
