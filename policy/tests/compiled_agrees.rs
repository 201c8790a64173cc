//! The compiled form against the evaluator, on random policies that change all the time.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use policy::{
    Capabilities, Compiled, Delta, Identity, IdentityId, KnownNames, Moment, PairVerdict, PolicyRule, RuleId, evaluate,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use support::{ADDRESSES, PROBES, policy_rule, pu};

#[derive(Clone, Debug)]
enum Change {
    Insert(Index, Arc<PolicyRule>),
    Replace(Index, Arc<PolicyRule>),
    Remove(Index),
    Swap(Index, Index),
    Several(Vec<Arc<PolicyRule>>),
    SetIdentity(u32, Identity),
    RemoveIdentity(u32),
    Advance(Moment),
    SetNames(KnownNames),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        2 => (at(), policy_rule()).prop_map(|(at, rule)| Change::Insert(at, rule)),
        2 => (at(), policy_rule()).prop_map(|(at, rule)| Change::Replace(at, rule)),
        2 => at().prop_map(Change::Remove),
        1 => (at(), at()).prop_map(|(a, b)| Change::Swap(a, b)),
        // More than are tried one by one, to take the other path through the store.
        1 => vec(policy_rule(), 30..50).prop_map(Change::Several),
        2 => (0u32..6, pu()).prop_map(|(id, pu)| Change::SetIdentity(id, pu)),
        1 => (0u32..6).prop_map(Change::RemoveIdentity),
        1 => names().prop_map(Change::SetNames),
        1 => (0u64..70).prop_map(|seconds| Change::Advance(Moment::from_unix(seconds))),
    ]
}

fn names() -> impl Strategy<Value = KnownNames> {
    let name = select(vec!["a.org", "b.a.org", "c.b.a.org", "x.net"]).prop_map(str::to_owned);
    let address = select(ADDRESSES.to_vec()).prop_map(|address| address.parse().unwrap());
    btree_map(address, btree_set(name, 1..3), 0..4)
}

/// The compiled state beside what it should be.
struct World {
    rules: Vec<Arc<PolicyRule>>,
    pus: BTreeMap<u32, Identity>,
    compiled: Compiled,
    decisions: u64,
}

/// One end of a connection: its true identity and the number the compiled form knows it by.
type End = (Identity, Option<IdentityId>);

impl World {
    fn new(rules: Vec<Arc<PolicyRule>>, pus: Vec<Identity>) -> Self {
        let mut world = Self {
            compiled: Compiled::new(&rules, Capabilities { encrypt: true }).unwrap(),
            rules,
            pus: BTreeMap::new(),
            decisions: 0,
        };
        for (id, identity) in pus.into_iter().enumerate() {
            world.set(id as u32, identity);
        }
        world
    }

    fn set(&mut self, id: u32, identity: Identity) {
        self.compiled.add_identity(IdentityId(id), &identity).unwrap();
        self.pus.insert(id, identity);
    }

    fn apply(&mut self, change: Change) {
        let length = self.rules.len();
        match change {
            Change::Insert(at, rule) => self.rules.insert(at.index(length + 1), rule),
            Change::Replace(at, rule) if length > 0 => self.rules[at.index(length)] = rule,
            Change::Remove(at) if length > 0 => drop(self.rules.remove(at.index(length))),
            Change::Swap(a, b) if length > 0 => self.rules.swap(a.index(length), b.index(length)),
            Change::Several(rules) => {
                self.rules.truncate(length / 2);
                self.rules.extend(rules);
            }
            Change::SetIdentity(id, identity) => return self.set(id, identity),
            Change::RemoveIdentity(id) => {
                let known = self.pus.remove(&id).is_some();
                assert_eq!(self.compiled.remove_identity(IdentityId(id)), known);
                return;
            }
            Change::Advance(now) => return self.advance(now),
            Change::SetNames(names) => return self.set_names(names),
            _ => {}
        }
        self.update();
    }

    fn advance(&mut self, now: Moment) {
        let verdicts = self.verdicts();
        let next = self.compiled.next_expiry();
        let before = self.compiled.now();
        let delta = self.compiled.advance(now);
        assert_eq!(self.compiled.now(), now);
        if before <= now {
            assert_eq!(delta.is_empty(), next.is_none_or(|next| next > now), "{next:?} {now}");
        }
        self.check_unaffected(&delta, verdicts);
    }

    fn set_names(&mut self, names: KnownNames) {
        let verdicts = self.verdicts();
        let changed = self.compiled.set_names(names);
        for ((subject, object), verdict) in verdicts {
            let known = |id| self.compiled.identity(id).is_some();
            if known(subject) && known(object) && !changed.contains(&subject) && !changed.contains(&object) {
                assert_eq!(verdict, self.compiled.pair(subject, object), "unaffected pair changed");
            }
        }
    }

    fn check_unaffected(&self, delta: &Delta, verdicts: Vec<((IdentityId, IdentityId), PairVerdict)>) {
        for ((subject, object), verdict) in verdicts {
            let known = |id| self.compiled.identity(id).is_some();
            if known(subject) && known(object) && !delta.affects(subject, object) {
                assert_eq!(verdict, self.compiled.pair(subject, object), "unaffected pair changed");
            }
        }
    }

    fn update(&mut self) {
        let verdicts = self.verdicts();
        let names = |compiled: &Compiled| -> HashMap<RuleId, String> {
            compiled
                .rules()
                .map(|(id, rule)| {
                    (
                        id,
                        format!(
                            "{:?} {:?} {}",
                            rule.head(),
                            rule.tier().is_ordered().then(|| rule.precedence().2),
                            rule.rule()
                        ),
                    )
                })
                .collect()
        };
        let places = |compiled: &Compiled| -> HashMap<RuleId, String> {
            compiled.rules().map(|(id, rule)| (id, format!("{} {}", rule.full_name(), rule.location()))).collect()
        };
        let before = names(&self.compiled);
        let stood = places(&self.compiled);
        let prefixes = self.compiled.external_prefixes();
        let delta = self.compiled.update_rules(&self.rules).unwrap();
        let after = names(&self.compiled);

        assert_eq!(after.len(), self.rules.len());
        for (id, place) in places(&self.compiled) {
            let moved = stood.get(&id).is_some_and(|stood| *stood != place);
            assert!(!moved || delta.moved.contains(&id), "rule {id} moved to {place}");
        }
        self.check_numbers(&delta, &before, &after);
        assert_eq!(delta.externals_changed, prefixes != self.compiled.external_prefixes());
        self.check_unaffected(&delta, verdicts);
    }

    fn check_numbers(&self, delta: &Delta, before: &HashMap<RuleId, String>, after: &HashMap<RuleId, String>) {
        for (id, text) in after {
            match before.get(id) {
                Some(old) => assert_eq!(old, text, "rule {id} changed under its number"),
                None => assert!(delta.added.contains(id)),
            }
        }
        for id in before.keys().filter(|id| !after.contains_key(id)) {
            assert!(delta.removed.contains(id));
        }
        assert_eq!(before.len() + delta.added.len(), after.len() + delta.removed.len());
        // What went has no equal among what came: else it would have kept its number.
        for id in &delta.removed {
            assert!(delta.added.iter().all(|new| after[new] != before[id]));
        }
    }

    fn ends(&self) -> Vec<End> {
        let pus = self.pus.iter().map(|(id, pu)| (pu.clone(), Some(IdentityId(*id))));
        let externals = ADDRESSES.map(|address| {
            let address = address.parse().unwrap();
            let mut identity = Identity::external(address);
            if let Identity::External { names, .. } = &mut identity {
                names.extend(self.compiled.names(address).into_iter().flatten().cloned());
            }
            (identity, self.compiled.external_identity(address))
        });
        pus.chain(externals).collect()
    }

    fn verdicts(&self) -> Vec<((IdentityId, IdentityId), PairVerdict)> {
        let ids: Vec<IdentityId> = self.ends().into_iter().filter_map(|(_, id)| id).collect();
        ids.iter()
            .flat_map(|s| ids.iter().map(move |o| (*s, *o)))
            .map(|(s, o)| ((s, o), self.compiled.pair(s, o)))
            .collect()
    }

    fn check(&mut self) {
        let ends = self.ends();
        for (subject, subject_id) in &ends {
            for (object, object_id) in &ends {
                let verdict = match (subject_id, object_id) {
                    (Some(subject), Some(object)) => self.compiled.pair(*subject, *object),
                    _ => PairVerdict::default(),
                };
                check_form(&verdict);
                for (protocol, port) in PROBES {
                    let expected =
                        evaluate(self.compiled.rules(), subject, object, protocol, port, self.compiled.now());
                    let got = verdict.decide(protocol, port);
                    assert_eq!(got, expected, "{subject:?} -> {object:?} {protocol}/{port}");
                    self.decisions += 1;
                }
            }
        }
    }
}

/// Sorted, disjoint, merged, and nowhere a restatement of the default.
fn check_form(verdict: &PairVerdict) {
    for interval in &verdict.intervals {
        assert!(interval.lo <= interval.hi);
        assert!(interval.rule != RuleId::NONE || interval.observed_action.is_some());
        assert_eq!(interval.observed_action.is_some(), interval.observed_rule != RuleId::NONE);
    }
    for pair in verdict.intervals.windows(2) {
        assert!(pair[0].hi < pair[1].lo);
        let mut joined = pair[1];
        (joined.lo, joined.hi) = (pair[0].lo, pair[0].hi);
        assert!(pair[0].hi + 1 < pair[1].lo || joined != pair[0], "not merged");
    }
}

#[test]
fn compiled_agrees_with_the_evaluator_through_every_change() {
    let mut runner = TestRunner::new(Config { cases: 160, ..Config::default() });
    let decisions = std::cell::Cell::new(0);
    let world = (vec(policy_rule(), 0..25), vec(pu(), 1..5), vec(change(), 0..6));
    runner
        .run(&world, |(rules, pus, changes)| {
            let mut world = World::new(rules, pus);
            world.check();
            for change in changes {
                world.apply(change);
                world.check();
            }
            decisions.set(decisions.get() + world.decisions);
            Ok(())
        })
        .unwrap();
    assert!(decisions.get() >= 100_000, "only {} decisions", decisions.get());
}
