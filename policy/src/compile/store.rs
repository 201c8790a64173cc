use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::delta::{Delta, Scope};
use super::diff::{Diff, Listed};
use super::external::Externals;
use super::level::Levels;
use super::pair::{Contribution, PairVerdict, covered_keys, sweep};
use super::side_index::SideIndex;
use super::{Capabilities, CompileError, IdentityId, KnownNames, SideId};
use crate::model::{Identity, Moment, Namespace, PolicyRule, RuleId};

/// Rules and identities, ready to answer for any pair.
#[derive(Default)]
pub struct Compiled {
    capabilities: Capabilities,
    rules: HashMap<RuleId, Compact>,
    /// The highest number given so far. Numbers are not used again, so that a number in a log or
    /// map that is a moment old never names the wrong rule.
    last_rule: u32,
    /// The rules in the order of the list they came from.
    order: Vec<Listed>,
    by_sides: HashMap<(SideId, SideId), Vec<RuleId>>,
    /// How many rules have the side as subject and as object, by side number.
    uses: Vec<Uses>,
    index: SideIndex,
    pus: HashMap<IdentityId, Pu>,
    externals: Externals,
    levels: Levels,
    known: KnownNames,
    /// Rules that hold only until some moment, by that moment.
    timed: BTreeSet<(Moment, RuleId)>,
    now: Moment,
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

/// So many side numbers may lie idle before they are given out afresh.
const KEPT_NUMBERS: usize = 4096;

/// Above so many new sides, matching through the index beats trying each on every identity.
const MAX_TRIED: usize = 32;

impl Compiled {
    /// Compiles a list of rules, numbered from 1 in its order.
    pub fn new(rules: &[Arc<PolicyRule>], capabilities: Capabilities) -> Result<Self, CompileError> {
        let mut compiled = Self { capabilities, ..Self::default() };
        compiled.update_rules(rules)?;
        Ok(compiled)
    }

    /// Says what time it is: rules whose `until` has come hold no longer, and hold again if the clock was set back.
    ///
    /// At the start it is so early that none has expired.
    pub fn advance(&mut self, now: Moment) -> Delta {
        // Expired at `t` is what has an `until` of at most `t`.
        let (from, to) = (self.now.min(now), self.now.max(now));
        let beyond = |moment: Moment| (moment, RuleId(u32::MAX));
        let expired: Vec<RuleId> = match from == to {
            true => Vec::new(),
            false => self.timed.range(beyond(from)..=beyond(to)).map(|(_, id)| *id).collect(),
        };
        self.now = now;
        let mut changed: HashSet<(SideId, SideId)> = HashSet::new();
        for compact in expired.iter().filter_map(|id| self.compact(*id)) {
            changed.insert((compact.subject, compact.object));
        }
        let scope = if expired.len() > MAX_TOLD_APART {
            Scope::All
        } else {
            let mut sides = HashMap::new();
            if !expired.is_empty() {
                self.record_sides(&changed, &mut sides);
            }
            Scope::Some { rules: changed, sides, bounded: HashSet::new() }
        };
        Delta { expired, scope, ..Delta::default() }
    }

    /// The moment at which the next rule expires.
    pub fn next_expiry(&self) -> Option<Moment> {
        self.timed.range((self.now, RuleId(u32::MAX))..).next().map(|(until, _)| *until)
    }

    /// The moment given last.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Replaces the rules by a new list; on error nothing changes.
    ///
    /// Rules whose full name, namespace and text are in both lists keep their number.
    pub fn update_rules(&mut self, rules: &[Arc<PolicyRule>]) -> Result<Delta, CompileError> {
        let diff = Diff::new(&self.order, rules);
        self.check(&diff, rules)?;

        let mut delta = Delta { removed: diff.removed.clone(), ..Delta::default() };
        let mut new_sides = Vec::new();
        delta.moved = self.refresh_places(&diff, rules);
        let mut middle = Vec::with_capacity(diff.kept.len());
        for (rule, kept) in rules[diff.new_middle()].iter().zip(&diff.kept) {
            let id = match kept {
                Some(id) => {
                    if self.compact(*id).is_some_and(|compact| !compact.rule.same_place(rule)) {
                        delta.moved.push(*id);
                    }
                    self.refresh_place(*id, rule);
                    *id
                }
                None => {
                    let id = self.add_rule(rule, &mut new_sides);
                    delta.added.push(id);
                    id
                }
            };
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
        self.forget_the_past();
        let bounding = self.levels.take_changed();
        delta.scope = match told_apart {
            true => Scope::Some { rules: changed, sides, bounded: self.beneath(&bounding) },
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
        let asked = self.levels.asked(subject.0, object.0);
        let mut contributions = Vec::new();
        self.for_common_rules(subject.1, object.1, |id| {
            if let Some(Compact { rule, keys, .. }) = self.compact(id)
                && !rule.rule().is_expired(self.now)
                && asked.iter().any(|asked| asked.hears(rule))
            {
                contributions.push(Contribution { id, rule, keys });
            }
        });
        sweep(contributions, &asked)
    }

    /// The prefixes that rules name, in order, each with the identity of the addresses whose
    /// longest match it is. Addresses without a match are in no rule: denied by default.
    pub fn external_prefixes(&self) -> Vec<(IpNet, IdentityId)> {
        let prefixes = self.externals.prefixes();
        let mut list: Vec<_> = prefixes.iter().map(|(net, id)| (*net, *id)).collect();
        list.sort_unstable();
        list
    }

    /// Says by which names addresses are known. Returns the external identities that mean something else than before,
    /// whose pairs must be computed anew; read [`Compiled::external_prefixes`] again, too.
    pub fn set_names(&mut self, known: KnownNames) -> Vec<IdentityId> {
        if self.known == known {
            return Vec::new();
        }
        self.known = known;
        self.externals.rebuild(self.index.networks(), &self.known)
    }

    /// The names an address is known by.
    pub fn names(&self, address: IpAddr) -> Option<&BTreeSet<String>> {
        self.known.get(&address)
    }

    /// True when some rule means this name; it must be in lower case and without the final dot.
    pub fn means(&self, name: &str) -> bool {
        self.index.networks().any(|(_, networks)| networks.means(name))
    }

    /// True when some rule means peers by name.
    pub fn has_names(&self) -> bool {
        self.index.networks().any(|(_, networks)| !networks.names.is_empty())
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

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// True without any rule.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// All rules with their numbers, in the order of the list they came from.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &PolicyRule)> {
        self.order.iter().map(|listed| (listed.id, &*listed.rule))
    }

    fn check(&self, diff: &Diff, rules: &[Arc<PolicyRule>]) -> Result<(), CompileError> {
        let mut added: u32 = 0;
        for (rule, kept) in rules[diff.new_middle()].iter().zip(&diff.kept) {
            if kept.is_some() {
                continue;
            }
            added = added.saturating_add(1);
            check_rule(rule, self.capabilities)?;
        }
        match self.last_rule.checked_add(added) {
            Some(_) => Ok(()),
            None => Err(CompileError::TooManyRules),
        }
    }

    fn compact(&self, id: RuleId) -> Option<&Compact> {
        self.rules.get(&id)
    }

    /// Two PUs of one namespace that match the same sides are judged alike.
    pub(crate) fn sides_of(&self, id: IdentityId) -> &[SideId] {
        self.end(id).map_or(&[], |(_, sides)| sides)
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
        // Cannot overflow: checked before anything was changed.
        self.last_rule += 1;
        let id = RuleId(self.last_rule);
        let compact = self.enter(id, rule.clone(), new_sides);
        self.rules.insert(id, compact);
        self.levels.add(id, rule);
        self.timed.extend(rule.rule().until.map(|until| (until, id)));
        id
    }

    /// Enters a rule into the tables by side.
    fn enter(&mut self, id: RuleId, rule: Arc<PolicyRule>, new_sides: &mut Vec<SideId>) -> Compact {
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
        self.by_sides.entry((subject, object)).or_default().push(id);
        self.uses[subject as usize].as_subject.push(id);
        self.uses[object as usize].as_object.push(id);
        Compact { keys: covered_keys(rule.rule()), rule, subject, object }
    }

    /// Numbers sides and words afresh once most are of rules long gone; an agent that runs for
    /// months would otherwise remember every policy it ever had.
    fn forget_the_past(&mut self) {
        if self.index.numbered() <= 4 * self.index.live() + KEPT_NUMBERS {
            return;
        }
        let old = std::mem::take(&mut self.index);
        self.by_sides = HashMap::new();
        self.uses = Vec::new();
        let mut sides = Vec::new();
        for at in 0..self.order.len() {
            let (id, rule) = (self.order[at].id, self.order[at].rule.clone());
            let compact = self.enter(id, rule, &mut sides);
            self.rules.insert(id, compact);
        }
        self.index.file(&sides);
        for pu in self.pus.values_mut() {
            if let Identity::Pu { tags, .. } = &pu.identity {
                pu.sides = self.index.matching(tags);
            }
        }
        let index = &self.index;
        self.externals.renumber(|id| index.id(old.side(id)?));
    }

    /// Takes rules out; returns the sides that went with them.
    fn remove_rules(&mut self, removed: &[RuleId]) -> Vec<SideId> {
        let mut pairs: HashSet<(SideId, SideId)> = HashSet::new();
        let mut sides = Vec::with_capacity(2 * removed.len());
        for id in removed {
            if let Some(compact) = self.rules.remove(id) {
                pairs.insert((compact.subject, compact.object));
                sides.extend([compact.subject, compact.object]);
                self.levels.remove(*id, &compact.rule);
                if let Some(until) = compact.rule.rule().until {
                    self.timed.remove(&(until, *id));
                }
            }
        }
        let gone = self.index.release(&sides);
        // Each list is cleaned once, however many of its rules went.
        for pair in pairs {
            if let Some(rules) = self.by_sides.get_mut(&pair) {
                rules.retain(|id| self.rules.contains_key(id));
                if rules.is_empty() {
                    self.by_sides.remove(&pair);
                }
            }
        }
        sides.sort_unstable();
        sides.dedup();
        for side in sides {
            let uses = &mut self.uses[side as usize];
            uses.as_subject.retain(|id| self.rules.contains_key(id));
            uses.as_object.retain(|id| self.rules.contains_key(id));
        }
        gone
    }

    /// Rules that only moved within their file are shown at their new place. Which those are.
    fn refresh_places(&mut self, diff: &Diff, rules: &[Arc<PolicyRule>]) -> Vec<RuleId> {
        let mut moved = Vec::new();
        let (old_tail, new_tail) = (diff.old_middle().end, diff.new_middle().end);
        let head = (0..diff.head).map(|at| (at, at));
        let tail = (0..diff.tail).map(|at| (old_tail + at, new_tail + at));
        for (old, new) in head.chain(tail) {
            let (listed, rule) = (&mut self.order[old], &rules[new]);
            if !Arc::ptr_eq(&listed.rule, rule) && !listed.rule.same_place(rule) {
                listed.rule = rule.clone();
                let id = listed.id;
                moved.push(id);
                self.refresh_place(id, rule);
            }
        }
        moved
    }

    fn refresh_place(&mut self, id: RuleId, rule: &Arc<PolicyRule>) {
        if let Some(compact) = self.rules.get_mut(&id) {
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

    fn beneath(&self, namespaces: &HashSet<Namespace>) -> HashSet<IdentityId> {
        if namespaces.is_empty() {
            return HashSet::new();
        }
        let is_beneath = |pu: &Pu| {
            let mut path = pu.identity.namespace().into_iter().flat_map(Namespace::path);
            path.any(|name| namespaces.contains(name))
        };
        self.pus.iter().filter(|(_, pu)| is_beneath(pu)).map(|(id, _)| *id).collect()
    }

    fn has_networks(&self, changed: &HashSet<(SideId, SideId)>) -> bool {
        let is_net = |id: SideId| matches!(self.index.side(id), Some(crate::model::Side::Net(_)));
        changed.iter().any(|&(s, o)| is_net(s) || is_net(o))
    }

    fn externals_rebuild(&mut self, delta: &mut Delta) {
        let before = self.externals.prefixes().clone();
        self.externals.rebuild(self.index.networks(), &self.known);
        delta.externals_changed = before != *self.externals.prefixes();
    }
}

fn check_rule(rule: &PolicyRule, capabilities: Capabilities) -> Result<(), CompileError> {
    if !rule.rule().encrypt || capabilities.encrypt {
        return Ok(());
    }
    Err(CompileError::EncryptUnavailable { rule: rule.full_name(), location: rule.location().clone() })
}

/// Whether rules will compile, without compiling them.
///
/// # Errors
/// For the first that will not.
pub fn check_rules(rules: &[Arc<PolicyRule>], capabilities: Capabilities) -> Result<(), CompileError> {
    rules.iter().try_for_each(|rule| check_rule(rule, capabilities))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PortRange;
    use crate::parse::parse_file;

    fn policy(round: usize) -> Vec<Arc<PolicyRule>> {
        let mut text = "name: p\nrules:\n  - keep: allow k=0 -> net 10.0.0.0/8 tcp/1\n".to_owned();
        for n in 0..100 {
            text += &format!("  - r{n}: allow k={n} round{round} -> l={n} tcp/{round}\n");
        }
        text += &format!("  - allow net 10.{}.0.0/16 -> k=0 tcp/2\n", round % 5);
        parse_file("p", &text).unwrap()
    }

    #[test]
    fn months_of_changes_leave_nothing_behind() {
        let mut compiled = Compiled::new(&policy(0), Capabilities::default()).unwrap();
        let tags = |round: usize| {
            [("k", "7".to_owned()), (&*format!("round{round}"), "y".into())].map(|(k, v)| (k.to_owned(), v))
        };
        let root = crate::model::Namespace::root;
        compiled.add_identity(IdentityId(2), &Identity::pu(root(), [("l", "7")])).unwrap();
        compiled.add_identity(IdentityId(3), &Identity::pu(root(), [("k", "0")])).unwrap();
        let mut highest = 0;
        for round in 1..120 {
            let delta = compiled.update_rules(&policy(round)).unwrap();
            assert_eq!(delta.added.len(), 101);
            assert!(delta.externals_changed);
            highest = highest.max(compiled.index.numbered());
            compiled.add_identity(IdentityId(1), &Identity::pu(root(), tags(round))).unwrap();
            let fresh = compiled.pair(IdentityId(1), IdentityId(2));
            assert_eq!(fresh.intervals.len(), 1, "round {round}");
            assert_eq!(fresh.intervals[0].lo, super::super::port_key(6, round as u16));
            let inside = format!("10.{}.0.1", round % 5).parse().unwrap();
            let outside = "10.77.0.1".parse().unwrap();
            for (address, allowed) in [(inside, Some(2)), (outside, None)] {
                let external = compiled.external_identity(address).unwrap();
                let from = compiled.pair(external, IdentityId(3)).decide(PortRange::TCP, 2);
                assert_eq!(from.rule.is_some(), allowed.is_some());
                let to = compiled.pair(IdentityId(3), external).decide(PortRange::TCP, 1);
                assert_eq!(to.rule, Some(RuleId(1)), "the kept rule keeps its number");
            }
        }
        assert!(highest > KEPT_NUMBERS, "the test must reach the point of renumbering");
        assert!(compiled.index.numbered() < highest);
        assert!(compiled.index.numbered() <= KEPT_NUMBERS + 5 * compiled.index.live());
        assert_eq!(compiled.uses.len(), compiled.index.numbered());
    }

    #[test]
    fn encryption_is_refused_where_it_would_not_happen() {
        let text = "name: p\nrules:\n  - allow a -> b\n  - e: allow a -> b encrypt\n";
        let rules = parse_file("p.yaml", text).unwrap();
        let Err(error) = Compiled::new(&rules, Capabilities::default()) else {
            panic!("accepted");
        };
        let message = error.to_string();
        assert!(
            message.starts_with("p.yaml:4:5: rule `p/e`: encryption is not available in this build; remove `encrypt`"),
            "{message}"
        );

        let mut compiled = Compiled::new(&rules[..1], Capabilities::default()).unwrap();
        compiled.update_rules(&rules).unwrap_err();
        assert_eq!(compiled.rules().count(), 1, "nothing changed");
        let able = Compiled::new(&rules, Capabilities { encrypt: true }).unwrap();
        assert_eq!(able.rules().count(), 2);
    }

    #[test]
    fn numbers_of_external_networks_are_not_for_pus() {
        let mut compiled = Compiled::default();
        let pu = Identity::pu(crate::model::Namespace::root(), [("a", "b")]);
        let reserved = IdentityId(IdentityId::EXTERNAL | 1);
        assert_eq!(compiled.add_identity(reserved, &pu), Err(CompileError::ReservedIdentity(reserved.0)));
        let outside = Identity::external("10.0.0.1".parse().unwrap());
        assert_eq!(compiled.add_identity(IdentityId(1), &outside), Err(CompileError::NotAPu(1)));
    }
}
