use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;

use super::delta::{Delta, Scope};
use super::external::Externals;
use super::pair::{Contribution, PairVerdict, covered_keys, sweep};
use super::side_index::SideIndex;
use super::{Capabilities, CompileError, IdentityId, SideId};
use crate::model::{Identity, PolicyRule, RuleId, rule_applies};

/// Rules and identities, ready to answer for any pair.
#[derive(Default)]
pub struct Compiled {
    capabilities: Capabilities,
    /// By rule number less one. Numbers are not used again, so that a number in a log or map that
    /// is a moment old never names the wrong rule.
    rules: Vec<Option<Compact>>,
    /// The rules in the order of the list they came from.
    order: Vec<Listed>,
    by_sides: HashMap<(SideId, SideId), Vec<RuleId>>,
    /// How many rules have the side as subject and as object, by side number.
    uses: Vec<Uses>,
    index: SideIndex,
    pus: HashMap<IdentityId, Pu>,
    externals: Externals,
}

/// A rule's place in the list. Holds the rule itself, so that comparing lists stays in one array.
struct Listed {
    id: RuleId,
    rule: Arc<PolicyRule>,
}

/// A rule with its sides and ports in numbers.
struct Compact {
    rule: Arc<PolicyRule>,
    subject: SideId,
    object: SideId,
    keys: Box<[(u32, u32)]>,
}

#[derive(Default)]
struct Uses {
    as_subject: Vec<RuleId>,
    as_object: Vec<RuleId>,
}

struct Pu {
    identity: Identity,
    sides: Vec<SideId>,
}

/// Above so many changed rules a delta does not say which pairs it affects.
const MAX_TOLD_APART: usize = 1024;

/// Above so many new sides, matching through the index beats trying each on every identity.
const MAX_TRIED: usize = 32;

impl Compiled {
    /// Compiles a list of rules, numbered from 1 in its order.
    pub fn new(rules: &[Arc<PolicyRule>], capabilities: Capabilities) -> Result<Self, CompileError> {
        let mut compiled = Self { capabilities, ..Self::default() };
        compiled.update_rules(rules)?;
        Ok(compiled)
    }

    /// Replaces the rules by a new list; on error nothing changes.
    ///
    /// Rules whose full name, namespace and text are in both lists keep their number.
    pub fn update_rules(&mut self, rules: &[Arc<PolicyRule>]) -> Result<Delta, CompileError> {
        let diff = Diff::new(&self.order, rules);
        self.check(&diff, rules)?;

        let mut delta = Delta { removed: diff.removed.clone(), ..Delta::default() };
        let mut new_sides = Vec::new();
        self.refresh_places(&diff, rules);
        let mut middle = Vec::with_capacity(diff.kept.len());
        for (rule, kept) in rules[diff.new_middle()].iter().zip(&diff.kept) {
            let id = match kept {
                Some(id) => *id,
                None => {
                    let id = self.add_rule(rule, &mut new_sides);
                    delta.added.push(id);
                    id
                }
            };
            self.refresh_place(id, rule);
            middle.push(Listed { id, rule: rule.clone() });
        }
        self.order.splice(diff.old_middle(), middle);
        self.index.file(&new_sides);
        self.match_new_sides(&new_sides);

        let mut changed: HashSet<(SideId, SideId)> = HashSet::new();
        for id in delta.added.iter().chain(&delta.removed) {
            if let Some(compact) = self.compact(*id) {
                changed.insert((compact.subject, compact.object));
            }
        }
        let told_apart = delta.added.len() + delta.removed.len() <= MAX_TOLD_APART;
        let mut sides = HashMap::new();
        if told_apart {
            self.record_sides(&changed, &mut sides);
        }

        let net_before = self.has_networks(&changed);
        let gone = self.remove_rules(&delta.removed);
        self.forget_sides(&gone);
        if net_before {
            self.externals_rebuild(&mut delta);
            if told_apart {
                self.record_sides(&changed, &mut sides);
            }
        }
        delta.scope = match told_apart {
            true => Scope::Some { rules: changed, sides },
            false => Scope::All,
        };
        Ok(delta)
    }

    /// Adds a PU, or replaces it. Its pairs must be computed anew.
    pub fn add_identity(&mut self, id: IdentityId, identity: &Identity) -> Result<(), CompileError> {
        if id.is_external() {
            return Err(CompileError::ReservedIdentity(id.0));
        }
        let Identity::Pu { tags, .. } = identity else {
            return Err(CompileError::NotAPu(id.0));
        };
        let pu = Pu { sides: self.index.matching(tags), identity: identity.clone() };
        self.pus.insert(id, pu);
        Ok(())
    }

    /// Forgets a PU; true when there was one.
    pub fn remove_identity(&mut self, id: IdentityId) -> bool {
        self.pus.remove(&id).is_some()
    }

    /// The PU or external network of a number.
    pub fn identity(&self, id: IdentityId) -> Option<&Identity> {
        self.end(id).map(|(identity, _)| identity)
    }

    /// Every verdict for connections from `subject` to `object`. Of an unknown identity nothing is
    /// allowed.
    pub fn pair(&self, subject: IdentityId, object: IdentityId) -> PairVerdict {
        let (Some(subject), Some(object)) = (self.end(subject), self.end(object)) else {
            return PairVerdict::default();
        };
        let mut contributions = Vec::new();
        self.for_common_rules(subject.1, object.1, |id| {
            if let Some(compact) = self.compact(id)
                && rule_applies(compact.rule.namespace(), subject.0, object.0)
            {
                contributions.push(Contribution { id, rule: compact.rule.rule(), keys: &compact.keys });
            }
        });
        sweep(&contributions)
    }

    /// The prefixes that rules name, in order, each with the identity of the addresses whose
    /// longest match it is. Addresses without a match are in no rule: denied by default.
    pub fn external_prefixes(&self) -> Vec<(IpNet, IdentityId)> {
        let prefixes = self.externals.prefixes();
        let mut list: Vec<_> = prefixes.iter().map(|(net, id)| (*net, *id)).collect();
        list.sort_unstable();
        list
    }

    /// The external identity of an address: that of its longest matching prefix.
    pub fn external_identity(&self, address: IpAddr) -> Option<IdentityId> {
        let mut level = Some(IpNet::from(address));
        while let Some(net) = level {
            if let Some(id) = self.externals.prefixes().get(&net) {
                return Some(*id);
            }
            level = net.supernet();
        }
        None
    }

    /// The rule of a number.
    pub fn rule(&self, id: RuleId) -> Option<&Arc<PolicyRule>> {
        self.compact(id).map(|compact| &compact.rule)
    }

    /// All rules with their numbers, in the order of the list they came from.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &PolicyRule)> {
        self.order.iter().map(|listed| (listed.id, &*listed.rule))
    }

    fn check(&self, diff: &Diff, rules: &[Arc<PolicyRule>]) -> Result<(), CompileError> {
        let mut added = 0;
        for (rule, kept) in rules[diff.new_middle()].iter().zip(&diff.kept) {
            if kept.is_some() {
                continue;
            }
            added += 1;
            if rule.rule().encrypt && !self.capabilities.encrypt {
                return Err(CompileError::EncryptUnavailable {
                    rule: rule.full_name(),
                    location: rule.location().clone(),
                });
            }
        }
        match u32::try_from(self.rules.len() + added) {
            Ok(_) => Ok(()),
            Err(_) => Err(CompileError::TooManyRules),
        }
    }

    fn compact(&self, id: RuleId) -> Option<&Compact> {
        let at = (id.0 as usize).checked_sub(1)?;
        self.rules.get(at)?.as_ref()
    }

    fn end(&self, id: IdentityId) -> Option<(&Identity, &[SideId])> {
        if id.is_external() {
            let class = self.externals.class(id)?;
            return Some((&class.identity, &class.sides));
        }
        let pu = self.pus.get(&id)?;
        Some((&pu.identity, &pu.sides))
    }

    /// Calls `found` once for each rule whose subject is among one list and its object among the
    /// other, walking whatever is shortest.
    fn for_common_rules(&self, subject: &[SideId], object: &[SideId], mut found: impl FnMut(RuleId)) {
        let uses = |sides: &[SideId], of: fn(&Uses) -> &[RuleId]| -> usize {
            sides.iter().map(|&s| of(&self.uses[s as usize]).len()).sum()
        };
        let by_pair = subject.len().saturating_mul(object.len());
        let by_subject = uses(subject, |uses| &uses.as_subject);
        let by_object = uses(object, |uses| &uses.as_object);
        if by_pair <= by_subject.min(by_object) {
            for &s in subject {
                for &o in object {
                    if let Some(rules) = self.by_sides.get(&(s, o)) {
                        rules.iter().for_each(|id| found(*id));
                    }
                }
            }
            return;
        }
        let from_subject = by_subject <= by_object;
        let near = if from_subject { subject } else { object };
        for &side in near {
            let uses = &self.uses[side as usize];
            let rules = if from_subject { &uses.as_subject } else { &uses.as_object };
            for &id in rules {
                let far = self.compact(id).is_some_and(|compact| match from_subject {
                    true => object.binary_search(&compact.object).is_ok(),
                    false => subject.binary_search(&compact.subject).is_ok(),
                });
                if far {
                    found(id);
                }
            }
        }
    }

    fn add_rule(&mut self, rule: &Arc<PolicyRule>, new_sides: &mut Vec<SideId>) -> RuleId {
        let mut intern = |side| {
            let (id, new) = self.index.intern(side);
            if new {
                new_sides.push(id);
                self.uses.push(Uses::default());
            }
            id
        };
        let subject = intern(&rule.rule().subject);
        let object = intern(&rule.rule().object);
        self.rules.push(Some(Compact { rule: rule.clone(), subject, object, keys: covered_keys(rule.rule()) }));
        // The length was checked against the range of numbers before anything was changed.
        let id = RuleId(self.rules.len() as u32);
        self.by_sides.entry((subject, object)).or_default().push(id);
        self.uses[subject as usize].as_subject.push(id);
        self.uses[object as usize].as_object.push(id);
        id
    }

    /// Takes rules out; returns the sides that went with them.
    fn remove_rules(&mut self, removed: &[RuleId]) -> Vec<SideId> {
        let gone_rules: HashSet<RuleId> = removed.iter().copied().collect();
        let mut touched: HashSet<SideId> = HashSet::new();
        let mut gone = Vec::new();
        for &id in removed {
            let Some(compact) = self.rules[id.0 as usize - 1].take() else {
                continue;
            };
            let sides = (compact.subject, compact.object);
            if let Some(rules) = self.by_sides.get_mut(&sides) {
                rules.retain(|rule| *rule != id);
                if rules.is_empty() {
                    self.by_sides.remove(&sides);
                }
            }
            for side in [sides.0, sides.1] {
                touched.insert(side);
                if self.index.release(side) {
                    gone.push(side);
                }
            }
        }
        for side in touched {
            let uses = &mut self.uses[side as usize];
            uses.as_subject.retain(|id| !gone_rules.contains(id));
            uses.as_object.retain(|id| !gone_rules.contains(id));
        }
        gone
    }

    /// Rules that only moved within their file are shown at their new place.
    fn refresh_places(&mut self, diff: &Diff, rules: &[Arc<PolicyRule>]) {
        let (old_tail, new_tail) = (diff.old_middle().end, diff.new_middle().end);
        let head = (0..diff.head).map(|at| (at, at));
        let tail = (0..diff.tail).map(|at| (old_tail + at, new_tail + at));
        for (old, new) in head.chain(tail) {
            let (listed, rule) = (&mut self.order[old], &rules[new]);
            if !Arc::ptr_eq(&listed.rule, rule) && !listed.rule.same_place(rule) {
                listed.rule = rule.clone();
                let id = listed.id;
                self.refresh_place(id, rule);
            }
        }
    }

    fn refresh_place(&mut self, id: RuleId, rule: &Arc<PolicyRule>) {
        if let Some(Some(compact)) = self.rules.get_mut(id.0 as usize - 1) {
            compact.rule = rule.clone();
        }
    }

    fn match_new_sides(&mut self, new: &[SideId]) {
        if new.len() > MAX_TRIED {
            for pu in self.pus.values_mut() {
                if let Identity::Pu { tags, .. } = &pu.identity {
                    pu.sides = self.index.matching(tags);
                }
            }
            return;
        }
        // Numbers only grow, so what is appended keeps the list sorted.
        for &id in new {
            let Some(side) = self.index.side(id) else {
                continue;
            };
            for pu in self.pus.values_mut() {
                if side.matches(&pu.identity) {
                    pu.sides.push(id);
                }
            }
        }
    }

    fn forget_sides(&mut self, gone: &[SideId]) {
        if gone.is_empty() {
            return;
        }
        let gone: HashSet<SideId> = gone.iter().copied().collect();
        for pu in self.pus.values_mut() {
            if gone.len() <= MAX_TRIED {
                for side in &gone {
                    if let Ok(at) = pu.sides.binary_search(side) {
                        pu.sides.remove(at);
                    }
                }
            } else {
                pu.sides.retain(|side| !gone.contains(side));
            }
        }
    }

    /// Notes which of the changed rules' sides each identity matches at this moment.
    fn record_sides(&self, changed: &HashSet<(SideId, SideId)>, sides: &mut HashMap<IdentityId, Vec<SideId>>) {
        let mut wanted: Vec<SideId> = changed.iter().flat_map(|&(s, o)| [s, o]).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let pus = self.pus.iter().map(|(id, pu)| (*id, pu.sides.as_slice()));
        let externals = self.externals.classes().map(|(id, class)| (id, &*class.sides));
        for (id, matched) in pus.chain(externals) {
            for side in &wanted {
                if matched.binary_search(side).is_ok() {
                    let list = sides.entry(id).or_default();
                    if !list.contains(side) {
                        list.push(*side);
                    }
                }
            }
        }
    }

    fn has_networks(&self, changed: &HashSet<(SideId, SideId)>) -> bool {
        let is_net = |id: SideId| matches!(self.index.side(id), Some(crate::model::Side::Net(_)));
        changed.iter().any(|&(s, o)| is_net(s) || is_net(o))
    }

    fn externals_rebuild(&mut self, delta: &mut Delta) {
        let before = self.externals.prefixes().clone();
        self.externals.rebuild(self.index.networks());
        delta.externals_changed = before != *self.externals.prefixes();
    }
}

/// Which rules of a new list are old acquaintances.
struct Diff {
    /// How many rules at the start of both lists are equal.
    head: usize,
    /// How many at the end.
    tail: usize,
    old_length: usize,
    /// For each rule of the new list between those, its number if it had one.
    kept: Vec<Option<RuleId>>,
    removed: Vec<RuleId>,
}

impl Diff {
    fn new(old: &[Listed], new: &[Arc<PolicyRule>]) -> Self {
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

    fn old_middle(&self) -> Range<usize> {
        self.head..self.old_length - self.tail
    }

    fn new_middle(&self) -> Range<usize> {
        self.head..self.head + self.kept.len()
    }
}
