//! `PAIRS` and `INTERVALS`: the verdicts.
//!
//! Pairs whose intervals are equal share one run. A run is never changed while a pair leads to it: the new one is written
//! beside it, the pair is turned over with one update, and the space of the old one rests for a while, as a program that
//! looked the pair up just before may still be searching there.

mod space;

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use common::abi::MAX_INTERVALS;
use common::verdict::{Interval, Pair, Run, VERDICT_ALLOW, VERDICT_LOG};
use policy::{Action, PairVerdict};
use ring::digest;

use super::{MapWriteError, Table};
use space::Space;

type Digest = [u8; 32];

/// How much of the two maps is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairsUse {
    /// Pairs.
    pub pairs: u64,
    /// Pairs that fit.
    pub pairs_capacity: u32,
    /// Different lists of intervals.
    pub runs: u64,
    /// Intervals in use, those at rest included.
    pub intervals: u32,
    /// Intervals that fit.
    pub intervals_capacity: u32,
}

/// The writer of `PAIRS` and `INTERVALS`.
#[derive(Debug)]
pub struct Pairs {
    pairs: Table<Pair, Run>,
    intervals: Table<u32, Interval>,
    digests: HashMap<Pair, Digest>,
    runs: HashMap<Digest, Shared>,
    space: Space,
}

#[derive(Debug)]
struct Shared {
    run: Run,
    pairs: u32,
}

impl Pairs {
    /// Takes over what is in the maps; pairs that lead nowhere sensible are removed.
    ///
    /// # Errors
    /// As `Maps::open`.
    pub fn open(maps: &Path) -> Result<Self, MapWriteError> {
        let pairs: Table<Pair, Run> = Table::open(maps, "PAIRS")?;
        let intervals: Table<u32, Interval> = Table::open(maps, "INTERVALS")?;
        let capacity = intervals.capacity().min(MAX_INTERVALS);
        let mut entries = pairs.entries()?;
        entries.sort_by_key(|(pair, run)| (run.start, run.len, pair.subject, pair.object));
        let mut adopted =
            Self { pairs, intervals, digests: HashMap::new(), runs: HashMap::new(), space: Space::new(capacity) };
        let mut last: Option<(Run, Digest)> = None;
        for (pair, run) in entries {
            let known = last.filter(|(same, _)| *same == run).map(|(_, digest)| digest);
            match known.map_or_else(|| adopted.adopt(run), |digest| Ok(Some(digest)))? {
                Some(digest) => {
                    adopted.count(pair, digest);
                    last = Some((run, digest));
                }
                None => drop(adopted.pairs.remove(&pair)?),
            }
        }
        Ok(adopted)
    }

    /// Makes `intervals` the verdicts of `pair`; whether anything changed. They must be sorted and disjoint.
    ///
    /// # Errors
    /// [`MapWriteError::Unsorted`], [`MapWriteError::Full`], [`MapWriteError::Resting`] if there will be room within a second
    /// (see [`patiently`](super::patiently)), or what the kernel reports; the former verdicts stay in force.
    pub fn write(&mut self, pair: Pair, intervals: &[Interval]) -> Result<bool, MapWriteError> {
        check(pair, intervals)?;
        let digest = digest(intervals);
        let former = self.digests.get(&pair).copied();
        if former == Some(digest) {
            return Ok(false);
        }
        let run = self.share(digest, intervals)?;
        if let Err(error) = self.pairs.insert(&pair, &run) {
            self.forget_if_unused(digest);
            return Err(error);
        }
        self.count(pair, digest);
        if let Some(former) = former {
            self.release(former);
        }
        Ok(true)
    }

    /// Removes the verdicts of `pair`, so that it counts as not judged; whether there were any.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn remove(&mut self, pair: Pair) -> Result<bool, MapWriteError> {
        self.pairs.remove(&pair)?;
        match self.digests.remove(&pair) {
            Some(digest) => {
                self.release(digest);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Whether there are verdicts for `pair`.
    pub fn contains(&self, pair: &Pair) -> bool {
        self.digests.contains_key(pair)
    }

    /// All pairs that have verdicts, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Pair> {
        self.digests.keys()
    }

    /// The verdicts of `pair` as the kernel sees them.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn read(&self, pair: &Pair) -> Result<Option<Vec<Interval>>, MapWriteError> {
        match self.pairs.get(pair)? {
            Some(run) => self.read_run(run),
            None => Ok(None),
        }
    }

    /// How much is in use.
    pub fn usage(&self) -> PairsUse {
        PairsUse {
            pairs: self.digests.len() as u64,
            pairs_capacity: self.pairs.capacity(),
            runs: self.runs.len() as u64,
            intervals: self.space.used(),
            intervals_capacity: self.space.capacity(),
        }
    }

    fn adopt(&mut self, run: Run) -> Result<Option<Digest>, MapWriteError> {
        if run.len > 0 && !self.space.occupy(run) {
            return Ok(None);
        }
        let Some(intervals) = self.read_run(run)? else { return Ok(None) };
        let digest = digest(&intervals);
        // Two runs of equal content can only stem from a former agent's death in the middle of a change; both are kept.
        let mut key = digest;
        while self.runs.contains_key(&key) {
            key = again(&key);
        }
        self.runs.insert(key, Shared { run, pairs: 0 });
        Ok(Some(key))
    }

    fn read_run(&self, run: Run) -> Result<Option<Vec<Interval>>, MapWriteError> {
        let Some(end) = run.start.checked_add(run.len).filter(|end| *end <= self.intervals.capacity()) else {
            return Ok(None);
        };
        (run.start..end).map(|index| self.intervals.get(&index)).collect()
    }

    /// The run of this content, written if there was none.
    fn share(&mut self, digest: Digest, intervals: &[Interval]) -> Result<Run, MapWriteError> {
        if let Some(shared) = self.runs.get(&digest) {
            return Ok(shared.run);
        }
        let run = self.allocate(intervals.len())?;
        let keys: Vec<u32> = (run.start..run.start + run.len).collect();
        if let Err(error) = self.intervals.insert_all(&keys, intervals) {
            self.space.release(run, Instant::now());
            return Err(error);
        }
        self.runs.insert(digest, Shared { run, pairs: 0 });
        Ok(run)
    }

    fn allocate(&mut self, len: usize) -> Result<Run, MapWriteError> {
        let full = MapWriteError::Full { name: "INTERVALS", capacity: self.space.capacity() };
        let Ok(len) = u32::try_from(len) else { return Err(full) };
        match self.space.allocate(len, Instant::now()) {
            Some(run) => Ok(run),
            None => {
                Err(self.space.next_rested().map_or(full, |until| MapWriteError::Resting { name: "INTERVALS", until }))
            }
        }
    }

    fn count(&mut self, pair: Pair, digest: Digest) {
        self.digests.insert(pair, digest);
        if let Some(shared) = self.runs.get_mut(&digest) {
            shared.pairs += 1;
        }
    }

    fn release(&mut self, digest: Digest) {
        if let Some(shared) = self.runs.get_mut(&digest) {
            shared.pairs -= 1;
        }
        self.forget_if_unused(digest);
    }

    fn forget_if_unused(&mut self, digest: Digest) {
        if self.runs.get(&digest).is_some_and(|shared| shared.pairs == 0) {
            if let Some(shared) = self.runs.remove(&digest) {
                self.space.release(shared.run, Instant::now());
            }
        }
    }
}

/// The verdicts on a pair of identities as the kernel looks them up.
pub fn intervals(verdict: &PairVerdict) -> Vec<Interval> {
    verdict
        .intervals
        .iter()
        .map(|from| {
            let allow = if from.action == Action::Allow { VERDICT_ALLOW } else { 0 };
            let log = if from.log { VERDICT_LOG } else { 0 };
            Interval {
                low: from.lo,
                high: from.hi,
                rule: from.rule.0,
                observed_rule: from.observed_rule.0,
                flags: allow | log,
            }
        })
        .collect()
}

fn check(pair: Pair, intervals: &[Interval]) -> Result<(), MapWriteError> {
    let mut end = None;
    for (index, interval) in intervals.iter().enumerate() {
        if interval.low > interval.high || end.is_some_and(|end| interval.low <= end) {
            return Err(MapWriteError::Unsorted { subject: pair.subject, object: pair.object, index });
        }
        end = Some(interval.high);
    }
    Ok(())
}

fn digest(intervals: &[Interval]) -> Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    for Interval { low, high, rule, observed_rule, flags } in intervals {
        [low, high, rule, observed_rule, flags].into_iter().for_each(|word| context.update(&word.to_ne_bytes()));
    }
    fixed(context.finish())
}

fn again(key: &Digest) -> Digest {
    fixed(digest::digest(&digest::SHA256, key))
}

fn fixed(digest: digest::Digest) -> Digest {
    let mut fixed = [0; 32];
    fixed.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(low: u32, high: u32) -> Interval {
        Interval { low, high, ..Interval::default() }
    }

    #[test]
    fn disorder_is_refused() {
        let pair = Pair { subject: 1, object: 2 };
        assert!(check(pair, &[]).is_ok());
        assert!(check(pair, &[interval(0, 0), interval(1, 5), interval(7, u32::MAX)]).is_ok());
        for bad in [
            vec![interval(2, 1)],
            vec![interval(1, 5), interval(5, 6)],
            vec![interval(1, 5), interval(0, 0)],
            vec![interval(0, u32::MAX), interval(0, 1)],
        ] {
            assert!(matches!(check(pair, &bad), Err(MapWriteError::Unsorted { .. })), "{bad:?}");
        }
    }

    #[test]
    fn every_field_counts_for_sharing() {
        let base = Interval { low: 1, high: 2, rule: 3, observed_rule: 4, flags: 1 };
        for other in [
            Interval { low: 0, ..base },
            Interval { high: 3, ..base },
            Interval { rule: 4, ..base },
            Interval { observed_rule: 5, ..base },
            Interval { flags: 0, ..base },
        ] {
            assert_ne!(digest(&[base]), digest(&[other]));
        }
        assert_eq!(digest(&[base]), digest(&[base]));
    }
}
