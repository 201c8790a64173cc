use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use super::{IdentityId, Prefixes, SideId};
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
    /// its number unless another class holds it.
    pub fn rebuild<'a>(&mut self, networks: impl Iterator<Item = (SideId, &'a Networks)>) {
        let cut = cut(networks);
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
                identity: Identity::External { networks: BTreeSet::from([prefix]), names: BTreeSet::new() },
            });
        }
        self.prefixes = prefixes;
        self.classes = classes;
        self.by_sides = by_sides;
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

/// For each prefix, the sides that mean the addresses whose longest match it is.
fn cut<'a>(networks: impl Iterator<Item = (SideId, &'a Networks)>) -> BTreeMap<IpNet, Box<[SideId]>> {
    #[derive(Default)]
    struct Named {
        include: Vec<SideId>,
        except: Vec<SideId>,
    }
    let mut named: HashMap<IpNet, Named> = HashMap::new();
    for (side, networks) in networks {
        for net in &networks.include {
            named.entry(*net).or_default().include.push(side);
        }
        for net in &networks.except {
            named.entry(*net).or_default().except.push(side);
        }
    }
    named
        .keys()
        .map(|&prefix| {
            let mut include = BTreeSet::new();
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
