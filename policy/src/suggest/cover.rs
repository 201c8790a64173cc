//! Who belongs together, and which groups use which services.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    collect::{Facts, Ports},
    tags::{is_detail, rank},
};
use crate::model::Tags;

/// What was recorded, cut into rules.
#[derive(Debug)]
pub(super) struct Cover {
    pub facts: Facts,
    /// PUs that differ in accidental tags only, for each PU the number of its group.
    pub group_of: Vec<u32>,
    /// The PUs of each group.
    pub groups: Vec<Vec<u32>>,
    /// Tags of a group's PUs that say what they are.
    pub telling: Vec<Tags>,
    /// PU to PU: groups, groups.
    pub inside: Vec<Block>,
    /// PU to other: groups, others.
    pub out: Vec<Block>,
    /// Other to PU: others, groups.
    pub inward: Vec<Block>,
}

/// Every one of `from` uses every one of `to` on all of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    pub from: Vec<u32>,
    pub to: Vec<u32>,
    pub ports: Vec<(u8, u16)>,
}

type Service = (u8, u16);
type Uses = BTreeMap<(u32, u32), BTreeSet<Service>>;

pub(super) fn cover(facts: Facts) -> Cover {
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let mut telling: Vec<Tags> = Vec::new();
    let mut group_of = Vec::with_capacity(facts.pus.len());
    let mut numbers = BTreeMap::new();
    for (number, pu) in (0..).zip(&facts.pus) {
        let mut tags = telling_tags(&pu.tags);
        if tags.is_empty() {
            // Better an accident than nothing to go by.
            tags.clone_from(&pu.tags);
        }
        let group = *numbers.entry((pu.namespace.clone(), tags.clone())).or_insert_with(|| {
            groups.push(Vec::new());
            telling.push(tags);
            groups.len() - 1
        });
        groups[group].push(number);
        group_of.push(group as u32);
    }
    let group = |pu: u32| group_of[pu as usize];
    let inside = blocks(&uses(&facts.inside, |(from, to)| (group(from), group(to))));
    let out = blocks(&coarse(uses(&facts.out, |(from, to)| (group(from), to)), |(group, _)| group));
    let inward = blocks(&coarse(uses(&facts.inward, |(from, to)| (from, group(to))), |(_, group)| group));
    Cover { facts, group_of, groups, telling, inside, out, inward }
}

fn telling_tags(tags: &Tags) -> Tags {
    let mut telling = Tags::new();
    for (key, values) in tags {
        let values: BTreeSet<String> = values.iter().filter(|value| rank(key, value).is_some()).cloned().collect();
        if !values.is_empty() {
            telling.insert(key.clone(), values);
        }
    }
    // With a name of its own, a workload is the same in its next version.
    let best = telling.iter().flat_map(|(key, values)| values.iter().filter_map(move |value| rank(key, value))).min();
    telling.retain(|key, _| !best.is_some_and(|best| is_detail(key, best)));
    telling
}

fn uses(recorded: &BTreeMap<(u32, u32), Ports>, number: impl Fn((u32, u32)) -> (u32, u32)) -> Uses {
    let mut uses = Uses::new();
    for (pair, ports) in recorded {
        uses.entry(number(*pair)).or_default().extend(ports.keys());
    }
    uses
}

/// Kinds of port sets that a group may use of addresses; beyond it every address is given all of them.
const PORT_SETS: usize = 2;

/// Addresses come and go: which of a group's ports which of them was asked for is chance if it is many things.
fn coarse(mut uses: Uses, group: impl Fn((u32, u32)) -> u32) -> Uses {
    let mut sets: BTreeMap<u32, BTreeSet<BTreeSet<(u8, u16)>>> = BTreeMap::new();
    for (pair, ports) in &uses {
        sets.entry(group(*pair)).or_default().insert(ports.clone());
    }
    for (pair, ports) in &mut uses {
        if let Some(sets) = sets.get(&group(*pair)).filter(|sets| sets.len() > PORT_SETS) {
            ports.extend(sets.iter().flatten());
        }
    }
    uses
}

/// The fewest blocks that cover exactly the uses, of two ways to cut them: by service, or by pair.
fn blocks(uses: &Uses) -> Vec<Block> {
    let (by_service, by_pair) = (by_service(uses), by_pair(uses));
    if by_pair.len() < by_service.len() { by_pair } else { by_service }
}

/// Who uses a service, then what has the same users.
fn by_service(uses: &Uses) -> Vec<Block> {
    let mut users: BTreeMap<(u32, (u8, u16)), Vec<u32>> = BTreeMap::new();
    for ((from, to), ports) in uses {
        for port in ports {
            users.entry((*to, *port)).or_default().push(*from);
        }
    }
    let mut ports_of: BTreeMap<(u32, Vec<u32>), Vec<Service>> = BTreeMap::new();
    for ((to, port), users) in users {
        ports_of.entry((to, users)).or_default().push(port);
    }
    let mut servers_of: BTreeMap<(Vec<u32>, Vec<Service>), Vec<u32>> = BTreeMap::new();
    for ((to, users), ports) in ports_of {
        servers_of.entry((users, ports)).or_default().push(to);
    }
    servers_of.into_iter().map(|((from, ports), to)| Block { from, to, ports }).collect()
}

/// What each uses of each, then who uses the same.
fn by_pair(uses: &Uses) -> Vec<Block> {
    let mut servers_of: BTreeMap<(u32, Vec<Service>), Vec<u32>> = BTreeMap::new();
    for ((from, to), ports) in uses {
        servers_of.entry((*from, ports.iter().copied().collect())).or_default().push(*to);
    }
    let mut users_of: BTreeMap<(Vec<u32>, Vec<Service>), Vec<u32>> = BTreeMap::new();
    for ((from, ports), to) in servers_of {
        users_of.entry((to, ports)).or_default().push(from);
    }
    users_of.into_iter().map(|((to, ports), from)| Block { from, to, ports }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_exactly_what_is_used() {
        // Two users of one database, a monitor of everything.
        let port = |number| BTreeSet::from([(6, number)]);
        let uses = Uses::from([
            ((1, 9), port(5432)),
            ((2, 9), port(5432)),
            ((3, 1), port(9100)),
            ((3, 2), port(9100)),
            ((3, 9), port(9100)),
        ]);
        let blocks = blocks(&uses);
        let block = |from: &[u32], to: &[u32], port| Block { from: from.into(), to: to.into(), ports: vec![(6, port)] };
        assert_eq!(blocks, [block(&[1, 2], &[9], 5432), block(&[3], &[1, 2, 9], 9100)]);
        let covered: BTreeSet<_> = blocks
            .iter()
            .flat_map(|block| block.from.iter().flat_map(|from| block.to.iter().map(|to| (*from, *to))))
            .collect();
        assert_eq!(covered, uses.keys().copied().collect());
    }
}
