use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::SideId;
use crate::model::{Clause, Networks, Operator, Selector, Side, Tags};

/// The distinct sides of all rules, and the index that finds those an identity matches.
#[derive(Default)]
pub(super) struct SideIndex {
    sides: Vec<Option<Entry>>,
    ids: HashMap<Arc<Side>, SideId>,
    words: HashMap<Box<str>, Key>,
    keys: Vec<Vec<Posting>>,
    pairs: Vec<Pair>,
    /// Alternatives that demand no tag at all.
    unanchored: Vec<Posting>,
}

struct Entry {
    side: Arc<Side>,
    uses: u32,
    alternatives: Box<[Box<[Test]>]>,
    anchors: Vec<Anchor>,
}

/// A tag key that rules mention, and its values.
struct Key {
    id: u32,
    values: HashMap<Box<str>, u32>,
}

/// A `key=value` that rules mention.
#[derive(Default)]
struct Pair {
    mentions: u32,
    postings: Vec<Posting>,
}

/// An alternative to try: the side and its position therein.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Posting {
    side: SideId,
    alternative: u32,
}

/// Where an alternative was filed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Anchor {
    Pair(u32),
    Key(u32),
    None,
}

/// A clause over numbers in place of words.
enum Test {
    SomeOf(Box<[u32]>),
    NoneOf(Box<[u32]>),
    Prefix(u32, Box<str>),
    Exists(u32),
    NotExists(u32),
}

impl SideIndex {
    /// Counts one more use of a side; returns its number and whether it is new. New sides must be
    /// filed with [`Self::file`] before the next look-up.
    pub fn intern(&mut self, side: &Side) -> (SideId, bool) {
        if let Some(&id) = self.ids.get(side) {
            if let Some(entry) = &mut self.sides[id as usize] {
                entry.uses += 1;
            }
            return (id, false);
        }
        let id = self.sides.len() as SideId;
        let side = Arc::new(side.clone());
        let alternatives = match &*side {
            Side::Tags(selector) => self.tests(selector),
            Side::Net(_) => Box::default(),
        };
        self.ids.insert(side.clone(), id);
        self.sides.push(Some(Entry { side, uses: 1, alternatives, anchors: Vec::new() }));
        (id, true)
    }

    /// Files new sides under the rarest tag each alternative demands. Done once all of a batch are
    /// interned, when it is known what is rare.
    pub fn file(&mut self, new: &[SideId]) {
        for &side in new {
            let Some(entry) = self.sides[side as usize].as_mut() else {
                continue;
            };
            for (alternative, tests) in entry.alternatives.iter().enumerate() {
                let posting = Posting { side, alternative: alternative as u32 };
                let anchors = anchors(tests, &self.pairs);
                for &anchor in &anchors {
                    match anchor {
                        Anchor::Pair(pair) => self.pairs[pair as usize].postings.push(posting),
                        Anchor::Key(key) => self.keys[key as usize].push(posting),
                        Anchor::None => self.unanchored.push(posting),
                    }
                }
                entry.anchors.extend(anchors);
            }
        }
    }

    /// Counts one use less of each; returns the sides that went with it.
    pub fn release(&mut self, ids: &[SideId]) -> Vec<SideId> {
        let mut gone = Vec::new();
        let mut anchors: HashSet<Anchor> = HashSet::new();
        for &id in ids {
            let Some(entry) = &mut self.sides[id as usize] else {
                continue;
            };
            entry.uses -= 1;
            if entry.uses > 0 {
                continue;
            }
            gone.push(id);
            if let Some(entry) = self.sides[id as usize].take() {
                for test in entry.alternatives.iter().flatten() {
                    if let Test::SomeOf(pairs) = test {
                        pairs.iter().for_each(|&pair| self.pairs[pair as usize].mentions -= 1);
                    }
                }
                self.ids.remove(&entry.side);
                anchors.extend(entry.anchors);
            }
        }
        // Each list is cleaned once, however many of its sides went.
        for anchor in anchors {
            let postings = match anchor {
                Anchor::Pair(pair) => &mut self.pairs[pair as usize].postings,
                Anchor::Key(key) => &mut self.keys[key as usize],
                Anchor::None => &mut self.unanchored,
            };
            postings.retain(|posting| self.sides[posting.side as usize].is_some());
        }
        gone
    }

    /// The side of a number, if still in use.
    pub fn side(&self, id: SideId) -> Option<&Side> {
        self.sides[id as usize].as_ref().map(|entry| &*entry.side)
    }

    /// The number of a side in use.
    pub fn id(&self, side: &Side) -> Option<SideId> {
        self.ids.get(side).copied()
    }

    /// How many sides are in use.
    pub fn live(&self) -> usize {
        self.ids.len()
    }

    /// How many numbers were given out.
    pub fn numbered(&self) -> usize {
        self.sides.len()
    }

    /// External networks among the sides.
    pub fn networks(&self) -> impl Iterator<Item = (SideId, &Networks)> {
        self.sides.iter().enumerate().filter_map(|(id, entry)| match entry.as_ref().map(|entry| &*entry.side) {
            Some(Side::Net(networks)) => Some((id as SideId, networks)),
            _ => None,
        })
    }

    /// The sides that match a PU's tags, in ascending order.
    pub fn matching(&self, tags: &Tags) -> Vec<SideId> {
        let view = View::new(self, tags);
        let mut found = Vec::new();
        let mut consider = |postings: &[Posting]| {
            for posting in postings {
                if let Some(entry) = &self.sides[posting.side as usize]
                    && view.passes(&entry.alternatives[posting.alternative as usize])
                {
                    found.push(posting.side);
                }
            }
        };
        consider(&self.unanchored);
        for &(key, _) in &view.keys {
            consider(&self.keys[key as usize]);
        }
        for &pair in &view.pairs {
            consider(&self.pairs[pair as usize].postings);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn tests(&mut self, selector: &Selector) -> Box<[Box<[Test]>]> {
        selector.alternatives.iter().map(|clauses| clauses.iter().map(|clause| self.test(clause)).collect()).collect()
    }

    fn test(&mut self, clause: &Clause) -> Test {
        let one = std::slice::from_ref;
        let key = self.key(&clause.key);
        match &clause.operator {
            Operator::Equals(value) => self.some_of(&clause.key, one(value)),
            Operator::In(values) => self.some_of(&clause.key, values),
            Operator::NotEquals(value) => Test::NoneOf(self.pairs_of(&clause.key, one(value))),
            Operator::NotIn(values) => Test::NoneOf(self.pairs_of(&clause.key, values)),
            Operator::Prefix(prefix) => Test::Prefix(key, prefix.as_str().into()),
            Operator::Exists => Test::Exists(key),
            Operator::NotExists => Test::NotExists(key),
        }
    }

    fn some_of(&mut self, key: &str, values: &[String]) -> Test {
        let pairs = self.pairs_of(key, values);
        for &pair in &pairs {
            self.pairs[pair as usize].mentions += 1;
        }
        Test::SomeOf(pairs)
    }

    fn key(&mut self, key: &str) -> u32 {
        if let Some(key) = self.words.get(key) {
            return key.id;
        }
        let id = self.keys.len() as u32;
        self.keys.push(Vec::new());
        self.words.insert(key.into(), Key { id, values: HashMap::new() });
        id
    }

    fn pairs_of(&mut self, key: &str, values: &[String]) -> Box<[u32]> {
        let Some(key) = self.words.get_mut(key) else {
            return Box::default();
        };
        let mut pairs: Vec<u32> = values
            .iter()
            .map(|value| match key.values.get(value.as_str()) {
                Some(&pair) => pair,
                None => {
                    let pair = self.pairs.len() as u32;
                    self.pairs.push(Pair::default());
                    key.values.insert(value.as_str().into(), pair);
                    pair
                }
            })
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs.into_boxed_slice()
    }
}

/// The cheapest set of places such that every identity that passes the tests is found in one.
fn anchors(tests: &[Test], pairs: &[Pair]) -> Vec<Anchor> {
    let rarest = tests
        .iter()
        .filter_map(|test| match test {
            Test::SomeOf(list) => Some(list),
            _ => None,
        })
        .min_by_key(|list| -> u64 { list.iter().map(|&pair| u64::from(pairs[pair as usize].mentions)).sum() });
    if let Some(list) = rarest {
        return list.iter().map(|&pair| Anchor::Pair(pair)).collect();
    }
    let key = tests.iter().find_map(|test| match test {
        Test::Prefix(key, _) | Test::Exists(key) => Some(Anchor::Key(*key)),
        _ => None,
    });
    vec![key.unwrap_or(Anchor::None)]
}

/// A PU's tags in the index's numbers; words that no rule mentions are left out.
struct View<'a> {
    keys: Vec<(u32, &'a BTreeSet<String>)>,
    pairs: Vec<u32>,
}

impl<'a> View<'a> {
    fn new(index: &SideIndex, tags: &'a Tags) -> Self {
        let mut view = Self { keys: Vec::new(), pairs: Vec::new() };
        for (word, values) in tags {
            let Some(key) = index.words.get(word.as_str()) else {
                continue;
            };
            if values.is_empty() {
                continue;
            }
            view.keys.push((key.id, values));
            for value in values {
                view.pairs.extend(key.values.get(value.as_str()));
            }
        }
        view.keys.sort_unstable_by_key(|(key, _)| *key);
        view.pairs.sort_unstable();
        view
    }

    fn passes(&self, tests: &[Test]) -> bool {
        tests.iter().all(|test| match test {
            Test::SomeOf(pairs) => self.has_any(pairs),
            Test::NoneOf(pairs) => !self.has_any(pairs),
            Test::Prefix(key, prefix) => {
                self.values(*key).is_some_and(|values| values.iter().any(|value| value.starts_with(&**prefix)))
            }
            Test::Exists(key) => self.values(*key).is_some(),
            Test::NotExists(key) => self.values(*key).is_none(),
        })
    }

    fn has_any(&self, pairs: &[u32]) -> bool {
        pairs.iter().any(|pair| self.pairs.binary_search(pair).is_ok())
    }

    fn values(&self, key: u32) -> Option<&BTreeSet<String>> {
        self.keys.binary_search_by_key(&key, |(key, _)| *key).ok().map(|at| self.keys[at].1)
    }
}
