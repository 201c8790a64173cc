//! Whether the agent's loops still turn: what `/healthz` and systemd's watchdog ask.
//!
//! A process that runs is not one that works: a thread that waits for a lock for ever holds up everything and looks alive.
//! So every loop says each time that it begins anew, and one that has not for longer than it may is stuck.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The pulse of all loops.
#[derive(Debug)]
pub struct Pulse {
    since: Instant,
    loops: Mutex<Vec<Arc<Loop>>>,
}

/// One loop.
#[derive(Debug)]
pub struct Loop {
    name: String,
    patience: Duration,
    since: Instant,
    /// Milliseconds after `since`.
    last: AtomicU64,
}

/// A loop that should have turned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Its thread.
    pub name: String,
    /// For how long it has not turned.
    pub silent: Duration,
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` has not turned for {:.1} s", self.name, self.silent.as_secs_f64())
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self { since: Instant::now(), loops: Mutex::default() }
    }
}

impl Pulse {
    /// A loop that turns at least every `patience`; it counts from now on, whether or not it has begun.
    pub fn expect(&self, name: &str, patience: Duration) -> Arc<Loop> {
        let one = Loop { name: name.to_owned(), patience, since: self.since, last: AtomicU64::new(0) };
        one.turn();
        let one = Arc::new(one);
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).push(one.clone());
        one
    }

    /// Those that should have turned and have not.
    pub fn stuck(&self) -> Vec<Stuck> {
        self.stuck_at(self.since.elapsed())
    }

    fn stuck_at(&self, now: Duration) -> Vec<Stuck> {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.iter().filter_map(|one| one.stuck_at(now)).collect()
    }
}

impl Loop {
    /// It begins anew.
    pub fn turn(&self) {
        self.turn_at(self.since.elapsed());
    }

    fn turn_at(&self, now: Duration) {
        self.last.store(millis(now), Ordering::Relaxed);
    }

    fn stuck_at(&self, now: Duration) -> Option<Stuck> {
        let silent = Duration::from_millis(millis(now).saturating_sub(self.last.load(Ordering::Relaxed)));
        (silent > self.patience).then(|| Stuck { name: self.name.clone(), silent })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_does_not_turn_is_stuck_until_it_does() {
        let pulse = Pulse::default();
        let at = Duration::from_millis;
        let (quick, slow) = (pulse.expect("quick", at(5_000)), pulse.expect("slow", at(60_000)));
        quick.turn_at(at(1_000));
        slow.turn_at(at(1_000));
        assert_eq!(pulse.stuck_at(at(6_000)), []);
        assert_eq!(pulse.stuck_at(at(6_001)), [Stuck { name: "quick".into(), silent: at(5_001) }]);
        assert_eq!(pulse.stuck_at(at(61_001)).len(), 2);
        quick.turn_at(at(61_000));
        assert_eq!(pulse.stuck_at(at(61_000)), []);
        assert_eq!(pulse.stuck(), [], "both turn later than now");
        let stuck = Stuck { name: "upkeep".into(), silent: at(2_340) };
        assert_eq!(stuck.to_string(), "`upkeep` has not turned for 2.3 s");
    }
}
