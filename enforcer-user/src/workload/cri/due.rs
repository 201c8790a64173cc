//! When to list pods again.

use std::time::{Duration, Instant};

use super::super::container_common::STOP_LOOK;

/// For so long after an event, everything is listed again every so often: a runtime tells of a sandbox's process a moment
/// before it lists the sandbox.
const ECHO: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(50));
/// How often everything is listed at least: if nothing says that something happened, and if something does that is no
/// event, or if there are no events.
const RESYNC: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1));
/// Lists are so far apart at least, however many events come.
const APART: Duration = Duration::from_millis(10);

/// What is known of the last list, and of what happened since.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    listed: Instant,
    told: Instant,
    hinted: Instant,
}

impl Due {
    /// Pods were just listed.
    pub fn new(now: Instant) -> Self {
        Self { listed: now, told: now, hinted: now }
    }

    /// An event told that something happened.
    pub fn told(&mut self, now: Instant) {
        self.told = now;
    }

    /// Interfaces or cgroups changed: perhaps a pod whose event was lost.
    pub fn hinted(&mut self, now: Instant) {
        self.hinted = now;
    }

    /// Pods are listed now.
    pub fn listed(&mut self, now: Instant) {
        self.listed = now;
    }

    /// Whether to list again; `polling` if there are no events.
    pub fn is_due(&self, now: Instant, polling: bool) -> bool {
        // What a hint is about may be listed only a moment after it.
        let unseen = self.hinted + ECHO.0 > self.listed;
        let resync = if polling || unseen { RESYNC.1 } else { RESYNC.0 };
        let since = now.saturating_duration_since(self.listed);
        (self.is_new() && since >= APART) || (self.echoes(now) && since >= ECHO.1) || since >= resync
    }

    /// How long to wait for something to happen.
    pub fn pause(&self, now: Instant) -> Duration {
        match (self.is_new(), self.echoes(now)) {
            (true, _) => APART,
            (_, true) => ECHO.1,
            _ => STOP_LOOK,
        }
    }

    fn is_new(&self) -> bool {
        self.told > self.listed
    }

    fn echoes(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.told) < ECHO.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moments at which pods are listed, ms, within so many seconds of looking every 10 ms.
    fn lists(due: &mut Due, now: &mut Instant, seconds: u64, polling: bool) -> Vec<u128> {
        let began = *now;
        let mut lists = Vec::new();
        for _ in 0..seconds * 100 {
            *now += Duration::from_millis(10);
            if due.is_due(*now, polling) {
                due.listed(*now);
                lists.push(now.duration_since(began).as_millis());
            }
        }
        lists
    }

    #[test]
    fn an_event_echoes_and_a_hint_is_followed_up() {
        let mut now = Instant::now();
        let mut due = Due::new(now);
        lists(&mut due, &mut now, 5, false);
        assert_eq!(lists(&mut due, &mut now, 60, false).len(), 2, "nothing happens");
        assert_eq!(lists(&mut due, &mut now, 10, true).len(), 10, "there are no events");
        now += Duration::from_millis(10);
        due.told(now);
        let echo = lists(&mut due, &mut now, 5, false);
        assert_eq!((echo[0], echo[1], echo.len()), (10, 60, 20), "{echo:?}");
        let began = now;
        let mut stormy = 0;
        while now < began + Duration::from_secs(1) {
            now += Duration::from_micros(100);
            due.told(now);
            if due.is_due(now, false) {
                due.listed(now);
                stormy += 1;
            }
        }
        assert!((90..=100).contains(&stormy), "a storm of events: {stormy}");
        lists(&mut due, &mut now, 5, false);
        due.hinted(now);
        let followed = lists(&mut due, &mut now, 10, false);
        assert_eq!(followed, [10, 1010], "at once, and when what it is about is listed");
    }
}
