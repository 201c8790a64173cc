//! An agent that only remembers, for the tests of sources.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{KnownPu, PuSink, Seen, SinkError, TagSet, TagSource};
use crate::identity::Tags;

/// What it was told.
#[derive(Debug, Default)]
pub(crate) struct Recording(Mutex<(BTreeMap<String, KnownPu>, usize)>);

impl Recording {
    fn lock(&self) -> MutexGuard<'_, (BTreeMap<String, KnownPu>, usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a PU was completed.
    pub fn completions(&self) -> usize {
        self.lock().1
    }
}

impl PuSink for Recording {
    fn appear(&self, key: &str, seen: Seen) -> Result<(), SinkError> {
        let mut told = self.lock();
        let present = told.0.get(key);
        let mut tags = present.map_or_else(TagSet::new, |pu| pu.tags.clone());
        for (source, of_source) in seen.tags {
            tags.set(source, of_source);
        }
        let pu = KnownPu {
            key: key.into(),
            id: key.into(),
            name: seen.name,
            namespace: seen.namespace.unwrap_or_else(|| "/default".into()),
            target: seen.target,
            tags,
            complete: seen.complete || present.is_some_and(|pu| pu.complete),
        };
        told.0.insert(key.into(), pu);
        Ok(())
    }

    fn tags(&self, key: &str, source: TagSource, tags: Tags) -> Result<(), SinkError> {
        let mut told = self.lock();
        let pu = told.0.get_mut(key).ok_or_else(|| SinkError::Unknown(key.into()))?;
        pu.tags.set(source, tags);
        Ok(())
    }

    fn complete(&self, key: &str) -> Result<(), SinkError> {
        let mut told = self.lock();
        told.1 += 1;
        told.0.get_mut(key).ok_or_else(|| SinkError::Unknown(key.into()))?.complete = true;
        Ok(())
    }

    fn gone(&self, key: &str) -> Result<(), SinkError> {
        self.lock().0.remove(key);
        Ok(())
    }

    fn known(&self, prefix: &str) -> Vec<KnownPu> {
        self.lock().0.values().filter(|pu| pu.key.starts_with(prefix)).cloned().collect()
    }
}
