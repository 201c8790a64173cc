use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use super::{IdentityId, KnownNames, Prefixes, SideId};
use crate::model::{Identity, Networks};

/// The prefixes named by rules, cut into classes of addresses that the same rules speak about.
#[derive(Default)]
pub(super) struct Externals {
    prefixes: Prefixes,
    classes: HashMap<IdentityId, Class>,
    by_sides: HashMap<Box<[SideId]>, IdentityId>,
    last: u32,
}

pub(super) struct Class {
    pub sides: Box<[SideId]>,
    pub identity: Identity,
}

impl Externals {
    /// Cuts anew. Numbers stay where the matching sides stayed; where they changed, a prefix keeps
    /// its number unless another class holds it. Returns the numbers that mean something else than before.
    pub fn rebuild<'a>(
        &mut self,
        networks: impl Iterator<Item = (SideId, &'a Networks)>,
        known: &KnownNames,
    ) -> Vec<IdentityId> {
        let cut = cut(networks, known);
        let mut by_sides: HashMap<Box<[SideId]>, IdentityId> = HashMap::new();
        let mut taken: BTreeSet<IdentityId> = BTreeSet::new();
        for sides in cut.values() {
            if let Some(&id) = self.by_sides.get(sides)
                && taken.insert(id)
            {
                by_sides.insert(sides.clone(), id);
            }
        }
        let mut prefixes = Prefixes::new();
        let mut classes: HashMap<IdentityId, Class> = HashMap::new();
        for (prefix, sides) in cut {
            let id = match by_sides.get(&sides) {
                Some(&id) => id,
                None => {
                    let kept = self.prefixes.get(&prefix).copied();
                    let id = match kept {
                        Some(id) if !taken.contains(&id) => id,
                        _ => self.fresh(&taken),
                    };
                    taken.insert(id);
                    by_sides.insert(sides.clone(), id);
                    id
                }
            };
            prefixes.insert(prefix, id);
            classes.entry(id).or_insert_with(|| Class {
                sides,
                identity: Identity::External {
                    networks: BTreeSet::from([prefix]),
                    names: names_of(prefix, known).cloned().unwrap_or_default(),
                },
            });
        }
        let same = |id: &IdentityId, class: &Class| self.classes.get(id).is_some_and(|was| was.sides == class.sides);
        let changed = classes.iter().filter(|(id, class)| !same(id, class)).map(|(id, _)| *id).collect();
        self.prefixes = prefixes;
        self.classes = classes;
        self.by_sides = by_sides;
        changed
    }

    /// Follows a new numbering of sides; classes and their numbers stay.
    pub fn renumber(&mut self, number: impl Fn(SideId) -> Option<SideId>) {
        self.by_sides.clear();
        for (id, class) in &mut self.classes {
            let mut sides: Vec<SideId> = class.sides.iter().filter_map(|s| number(*s)).collect();
            sides.sort_unstable();
            class.sides = sides.into_boxed_slice();
            self.by_sides.insert(class.sides.clone(), *id);
        }
    }

    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    pub fn class(&self, id: IdentityId) -> Option<&Class> {
        self.classes.get(&id)
    }

    pub fn classes(&self) -> impl Iterator<Item = (IdentityId, &Class)> {
        self.classes.iter().map(|(id, class)| (*id, class))
    }

    /// A number used neither before nor by the new classes.
    fn fresh(&mut self, taken: &BTreeSet<IdentityId>) -> IdentityId {
        loop {
            self.last = self.last.wrapping_add(1) & !IdentityId::EXTERNAL;
            let id = IdentityId(self.last | IdentityId::EXTERNAL);
            if !self.classes.contains_key(&id) && !taken.contains(&id) {
                return id;
            }
        }
    }
}

/// The names of a prefix that is a single address.
fn names_of(prefix: IpNet, known: &KnownNames) -> Option<&BTreeSet<String>> {
    known.get(&prefix.addr()).filter(|_| prefix.prefix_len() == prefix.max_prefix_len())
}

/// For each prefix, the sides that mean the addresses whose longest match it is.
fn cut<'a>(
    networks: impl Iterator<Item = (SideId, &'a Networks)>,
    known: &KnownNames,
) -> BTreeMap<IpNet, Box<[SideId]>> {
    #[derive(Default)]
    struct Named {
        include: Vec<SideId>,
        except: Vec<SideId>,
    }
    let mut named: HashMap<IpNet, Named> = HashMap::new();
    let mut by_name: Vec<(SideId, &Networks)> = Vec::new();
    for (side, networks) in networks {
        if !networks.names.is_empty() {
            by_name.push((side, networks));
        }
        for net in &networks.include {
            named.entry(*net).or_default().include.push(side);
        }
        for net in &networks.except {
            named.entry(*net).or_default().except.push(side);
        }
    }
    let mut meaning: HashMap<&str, BTreeSet<SideId>> = HashMap::new();
    for (address, names) in known {
        for name in names {
            let meant = by_name.iter().filter(|(_, networks)| networks.means(name)).map(|(side, _)| *side);
            let sides = meaning.entry(name).or_insert_with(|| meant.collect());
            if !sides.is_empty() {
                named.entry(IpNet::from(*address)).or_default();
            }
        }
    }
    named
        .keys()
        .map(|&prefix| {
            let names = names_of(prefix, known).into_iter().flatten();
            let mut include: BTreeSet<SideId> = names.flat_map(|name| &meaning[name.as_str()]).copied().collect();
            let mut except = BTreeSet::new();
            let mut level = Some(prefix);
            while let Some(net) = level {
                if let Some(named) = named.get(&net) {
                    include.extend(&named.include);
                    except.extend(&named.except);
                }
                level = net.supernet();
            }
            (prefix, include.difference(&except).copied().collect())
        })
        .collect()
}
