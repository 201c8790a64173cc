use std::collections::{BTreeSet, HashMap, HashSet};

use crate::evaluate::End;
use crate::model::{Ends, Identity, Namespace, PolicyRule, RuleId, Tier, Verb};

/// Which namespaces have rules, and which of them bound what is allowed beneath.
#[derive(Default)]
pub(super) struct Levels {
    levels: HashMap<Namespace, Level>,
    /// Namespaces that began or ceased to bound since [`Levels::take_changed`].
    changed: HashSet<Namespace>,
}

#[derive(Default)]
struct Level {
    egress: Bounds,
    ingress: Bounds,
    /// Rules that speak for one end only; without any, both ends get the same answer.
    one_sided: u32,
    rules: u32,
}

/// The allow rules of a namespace that speak for one end.
#[derive(Default)]
pub(super) struct Bounds {
    enforced: u32,
    observed: BTreeSet<RuleId>,
}

/// A namespace that is asked about a pair of identities.
pub(super) struct Asked<'a> {
    namespace: &'a str,
    end: End,
    /// It answers for both ends alike.
    both: bool,
    bounds: &'a Bounds,
}

impl Levels {
    pub fn add(&mut self, id: RuleId, rule: &PolicyRule) {
        self.count(id, rule, true);
    }

    pub fn remove(&mut self, id: RuleId, rule: &PolicyRule) {
        self.count(id, rule, false);
    }

    /// Namespaces whose PUs may be judged otherwise though no rule about them changed.
    pub fn take_changed(&mut self) -> HashSet<Namespace> {
        std::mem::take(&mut self.changed)
    }

    /// The namespaces with rules on the way to either PU.
    pub fn asked(&self, subject: &Identity, object: &Identity) -> Vec<Asked<'_>> {
        let mut asked = Vec::new();
        let on_path = |identity: &Identity| -> Vec<(&Namespace, &Level)> {
            let path = identity.namespace().into_iter().flat_map(Namespace::path);
            path.filter_map(|name| self.levels.get_key_value(name)).collect()
        };
        let ingress = on_path(object);
        let mut answered = HashSet::new();
        for (namespace, level) in on_path(subject) {
            let both = level.one_sided == 0 && ingress.iter().any(|(other, _)| *other == namespace);
            if both {
                answered.insert(namespace.as_str());
            }
            asked.push(Asked { namespace: namespace.as_str(), end: End::Egress, both, bounds: &level.egress });
        }
        for (namespace, level) in ingress {
            if !answered.contains(namespace.as_str()) {
                let namespace = namespace.as_str();
                asked.push(Asked { namespace, end: End::Ingress, both: false, bounds: &level.ingress });
            }
        }
        asked
    }

    fn count(&mut self, id: RuleId, rule: &PolicyRule, adds: bool) {
        let namespace = rule.namespace();
        let level = self.levels.entry(namespace.clone()).or_default();
        let step = |counter: &mut u32| *counter = if adds { *counter + 1 } else { *counter - 1 };
        step(&mut level.rules);
        let ends = rule.rule().ends;
        if ends != Ends::Both {
            step(&mut level.one_sided);
        }
        if rule.rule().verb == Verb::Allow && rule.tier() != Tier::Exempt {
            for (bounds, speaks) in [(&mut level.egress, ends.egress()), (&mut level.ingress, ends.ingress())] {
                if !speaks {
                    continue;
                }
                let before = bounds.state();
                match (rule.rule().observe, adds) {
                    (false, _) => step(&mut bounds.enforced),
                    (true, true) => drop(bounds.observed.insert(id)),
                    (true, false) => drop(bounds.observed.remove(&id)),
                }
                if before != bounds.state() {
                    self.changed.insert(namespace.clone());
                }
            }
        }
        if level.rules == 0 {
            self.levels.remove(namespace);
        }
    }
}

impl Bounds {
    /// What is not allowed by a rule is denied.
    pub fn enforced(&self) -> bool {
        self.enforced > 0
    }

    /// The observe rule that would make it so.
    pub fn observed(&self) -> Option<RuleId> {
        self.observed.first().copied()
    }

    fn state(&self) -> (bool, Option<RuleId>) {
        (self.enforced(), if self.enforced() { None } else { self.observed() })
    }
}

impl<'a> Asked<'a> {
    /// Whether a rule takes part in this answer.
    pub fn hears(&self, rule: &PolicyRule) -> bool {
        let ends = rule.rule().ends;
        let speaks = match self.end {
            _ if self.both => true,
            End::Egress => ends.egress(),
            End::Ingress => ends.ingress(),
        };
        speaks && rule.namespace().as_str() == self.namespace
    }

    pub fn bounds(&self) -> &'a Bounds {
        self.bounds
    }
}
