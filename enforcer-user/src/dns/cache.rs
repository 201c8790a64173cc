//! What was learned, and how long it holds.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use policy::KnownNames;
use serde::{Deserialize, Serialize};

/// Addresses, and the names they are known by, each until some moment (Unix seconds).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache(BTreeMap<IpAddr, BTreeMap<String, u64>>);

impl Cache {
    /// Notes that an address is known by a name. `Some(true)` if that is new, `None` if there are `max` addresses already.
    pub fn learn(&mut self, address: IpAddr, name: &str, until: u64, max: usize) -> Option<bool> {
        if !self.0.contains_key(&address) && self.0.len() >= max {
            return None;
        }
        let names = self.0.entry(address).or_default();
        match names.get_mut(name) {
            Some(known) => {
                *known = until.max(*known);
                Some(false)
            }
            None => {
                names.insert(name.to_owned(), until);
                Some(true)
            }
        }
    }

    /// Whether something is over at `now`.
    pub fn has_expired(&self, now: u64) -> bool {
        self.0.values().flat_map(BTreeMap::values).any(|until| *until <= now)
    }

    /// Forgets what is over at `now`, but for addresses in use; whether anything was.
    pub fn expire(&mut self, now: u64, in_use: &HashSet<IpAddr>) -> bool {
        self.retain(|address, _, until| until > now || in_use.contains(&address))
    }

    /// Forgets what does not satisfy a condition on address, name and moment; whether anything was.
    pub fn retain(&mut self, keep: impl Fn(IpAddr, &str, u64) -> bool) -> bool {
        let before = self.names();
        for (address, names) in &mut self.0 {
            names.retain(|name, until| keep(*address, name, *until));
        }
        self.0.retain(|_, names| !names.is_empty());
        before != self.names()
    }

    /// What is over at `now` holds until `then`.
    pub fn postpone(&mut self, now: u64, then: u64) {
        for until in self.0.values_mut().flat_map(BTreeMap::values_mut).filter(|until| **until <= now) {
            *until = then;
        }
    }

    /// As the policy's compiler takes it.
    pub fn known(&self) -> KnownNames {
        self.0.iter().map(|(address, names)| (*address, names.keys().cloned().collect())).collect()
    }

    /// Addresses known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn names(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_goes_unless_it_is_in_use() {
        let [a, b]: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("address"));
        let mut cache = Cache::default();
        assert_eq!(cache.learn(a, "a.org", 10, 2), Some(true));
        assert_eq!(cache.learn(a, "a.org", 20, 2), Some(false), "asked again");
        assert_eq!(cache.learn(a, "a.org", 5, 2), Some(false), "a shorter answer takes nothing away");
        assert_eq!(cache.learn(b, "b.org", 10, 2), Some(true));
        assert_eq!(cache.learn([192, 0, 2, 9].into(), "c.org", 10, 2), None, "full");
        assert!(!cache.has_expired(9) && cache.has_expired(10));
        assert!(!cache.expire(10, &HashSet::from([b])));
        cache.postpone(10, 11);
        assert!(!cache.has_expired(10));
        assert_eq!(cache.len(), 2);
        assert!(cache.expire(11, &HashSet::new()));
        assert_eq!(cache.known(), KnownNames::from([(a, ["a.org".to_owned()].into())]));
        assert!(cache.expire(20, &HashSet::new()) && cache.is_empty());
    }
}
