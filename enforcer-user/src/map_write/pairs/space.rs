//! Which parts of `INTERVALS` are free.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use common::verdict::Run;

/// How long a released run rests; a program runs for microseconds, so this is ample.
const REST: Duration = Duration::from_secs(1);

/// Free space by place and by size, and what rests.
#[derive(Debug)]
pub(super) struct Space {
    capacity: u32,
    free: u32,
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    resting: VecDeque<(Instant, Run)>,
}

impl Space {
    pub(super) fn new(capacity: u32) -> Self {
        let mut space =
            Self { capacity, free: 0, by_start: BTreeMap::new(), by_len: BTreeSet::new(), resting: VecDeque::new() };
        space.add(0, capacity);
        space
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// What is not free, what rests included.
    pub(super) fn used(&self) -> u32 {
        self.capacity - self.free
    }

    /// Takes the smallest hole that fits, or none. Nothing takes no space.
    pub(super) fn allocate(&mut self, len: u32, now: Instant) -> Option<Run> {
        self.wake(now);
        if len == 0 {
            return Some(Run::default());
        }
        let (hole, start) = self.by_len.range((len, 0)..).next().copied()?;
        self.take(start, hole);
        self.add(start + len, hole - len);
        Some(Run { start, len })
    }

    /// Takes exactly this run; false if it is not wholly free.
    pub(super) fn occupy(&mut self, run: Run) -> bool {
        let Some(end) = run.start.checked_add(run.len) else { return false };
        let Some((&start, &len)) = self.by_start.range(..=run.start).next_back() else { return false };
        if run.len == 0 || end > start + len {
            return false;
        }
        self.take(start, len);
        self.add(start, run.start - start);
        self.add(end, start + len - end);
        true
    }

    /// Gives a run back; it is used again after [`REST`].
    pub(super) fn release(&mut self, run: Run, now: Instant) {
        if run.len > 0 {
            self.resting.push_back((now + REST, run));
        }
    }

    /// When the next run has rested.
    pub(super) fn next_rested(&self) -> Option<Instant> {
        self.resting.front().map(|(when, _)| *when)
    }

    fn wake(&mut self, now: Instant) {
        while self.next_rested().is_some_and(|when| when <= now) {
            if let Some((_, run)) = self.resting.pop_front() {
                self.join(run);
            }
        }
    }

    fn join(&mut self, run: Run) {
        let (mut start, mut len) = (run.start, run.len);
        if let Some((&before, &hole)) = self.by_start.range(..start).next_back() {
            if before + hole == start {
                self.take(before, hole);
                (start, len) = (before, hole + len);
            }
        }
        if let Some(&hole) = self.by_start.get(&(start + len)) {
            self.take(start + len, hole);
            len += hole;
        }
        self.add(start, len);
    }

    fn add(&mut self, start: u32, len: u32) {
        if len > 0 {
            self.by_start.insert(start, len);
            self.by_len.insert((len, start));
            self.free += len;
        }
    }

    fn take(&mut self, start: u32, len: u32) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.free -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn released_space_rests_before_it_is_used_again() {
        let mut space = Space::new(10);
        let start = Instant::now();
        let run = space.allocate(10, start).unwrap();
        space.release(run, start);
        assert_eq!(space.allocate(1, start + REST - Duration::from_nanos(1)), None);
        assert_eq!(space.next_rested(), Some(start + REST));
        assert_eq!(space.allocate(10, start + REST), Some(Run { start: 0, len: 10 }));
    }

    #[test]
    fn only_free_space_can_be_occupied() {
        let mut space = Space::new(10);
        assert!(space.occupy(Run { start: 2, len: 3 }));
        assert!(!space.occupy(Run { start: 4, len: 1 }));
        assert!(!space.occupy(Run { start: 0, len: 3 }));
        assert!(!space.occupy(Run { start: 9, len: 2 }));
        assert!(!space.occupy(Run { start: u32::MAX, len: 2 }));
        assert!(space.occupy(Run { start: 5, len: 5 }));
        assert_eq!(space.used(), 8);
        assert_eq!(space.allocate(2, Instant::now()), Some(Run { start: 0, len: 2 }));
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_nothing_leaks(steps in prop::collection::vec((any::<bool>(), 0_u32..9, any::<usize>()), 1..300)) {
            let mut space = Space::new(64);
            let mut now = Instant::now();
            let mut live: Vec<Run> = Vec::new();
            for (give_back, len, which) in steps {
                now += REST;
                if give_back && !live.is_empty() {
                    let run = live.swap_remove(which % live.len());
                    space.release(run, now);
                } else if let Some(run) = space.allocate(len, now) {
                    prop_assert!(run.len == len && run.start + run.len <= 64);
                    prop_assert!(live.iter().all(|other| run.start + run.len <= other.start || other.start + other.len <= run.start || run.len == 0));
                    if len > 0 {
                        live.push(run);
                    }
                }
            }
            live.drain(..).for_each(|run| space.release(run, now));
            let whole = space.allocate(64, now + REST);
            prop_assert_eq!(whole, Some(Run { start: 0, len: 64 }));
        }
    }
}
