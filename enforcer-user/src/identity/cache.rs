//! A bounded cache: when it is full the oldest entry goes.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Map of at most `capacity` entries.
///
/// Only what was verified is ever entered, so strangers cannot push entries out and first-in-first-out is enough.
pub(super) struct Cache<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
    capacity: usize,
}

impl<K: Clone + Eq + Hash, V> Cache<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), capacity }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.entries.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.capacity {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        self.entries.retain(|key, value| keep(key, value));
        self.order.retain(|key| self.entries.contains_key(key));
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_goes_first_and_the_bound_holds() {
        let mut cache = Cache::new(2);
        for key in [1, 2, 2, 3] {
            cache.insert(key, key * 10);
        }
        assert_eq!((cache.len(), cache.get(&1), cache.get(&2), cache.get(&3)), (2, None, Some(&20), Some(&30)));
        cache.retain(|key, _| *key == 3);
        cache.insert(4, 40);
        assert_eq!((cache.len(), cache.get(&3), cache.get(&4)), (2, Some(&30), Some(&40)));
        cache.clear();
        assert_eq!(cache.len(), 0);
    }
}
