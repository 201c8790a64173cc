//! Containers whose cgroups the kernel stopped when they were made: what their engines say of them.
//!
//! One that is known by its cgroup becomes a PU, and by that is not stopped any more. One that is known otherwise, or that no
//! engine knows, is let go. Engines that say nothing are waited for, but not for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long engines are waited for that say nothing of a container.
const PATIENCE: Duration = Duration::from_secs(10);

/// The containers, for whoever stops them and for the engines' sources.
#[derive(Clone, Debug)]
pub struct Stopped {
    engines: usize,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    containers: BTreeMap<String, Said>,
    sources: Vec<Weak<Notify>>,
}

/// What was said of a container.
#[derive(Debug)]
struct Said {
    since: Instant,
    /// Its engine knows it; whether by its cgroup.
    by_cgroup: Option<bool>,
    /// Engines that do not know it.
    foreign_to: BTreeSet<&'static str>,
}

/// What is to be done about a container's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays stopped, until it is a PU or more is known.
    Stay,
    /// It is no PU, or not by its cgroup.
    LetGo,
    /// Not every engine has said something in time.
    Unanswered,
}

impl Stopped {
    /// With so many engines to ask.
    pub fn new(engines: usize) -> Self {
        Self { engines, inner: Arc::default() }
    }

    /// Whether there is anybody to ask.
    pub fn is_in_use(&self) -> bool {
        self.engines > 0
    }

    /// The cgroup of a container is stopped: engines are asked what it is.
    pub fn stop(&self, container: &str) {
        let mut inner = self.lock();
        let said = Said { since: Instant::now(), by_cgroup: None, foreign_to: BTreeSet::new() };
        inner.containers.entry(container.to_owned()).or_insert(said);
        inner.sources.retain(|source| source.upgrade().map(|source| source.notify_one()).is_some());
    }

    /// The cgroup of a container is not stopped any more.
    pub fn forget(&self, container: &str) {
        self.lock().containers.remove(container);
    }

    /// What is to be done about a container.
    pub fn verdict(&self, container: &str) -> Verdict {
        let inner = self.lock();
        match inner.containers.get(container) {
            Some(Said { by_cgroup: Some(true), .. }) => Verdict::Stay,
            None | Some(Said { by_cgroup: Some(false), .. }) => Verdict::LetGo,
            Some(said) if said.foreign_to.len() >= self.engines => Verdict::LetGo,
            Some(said) if said.since.elapsed() >= PATIENCE => Verdict::Unanswered,
            Some(_) => Verdict::Stay,
        }
    }

    /// Has a source woken when there is something to say.
    pub(super) fn wake(&self, source: &Arc<Notify>) {
        self.lock().sources.push(Arc::downgrade(source));
    }

    /// Containers of which nobody has said that they are its own, and this engine not that it does not know them; and since when
    /// they are stopped.
    pub fn open(&self, engine: &'static str) -> Vec<(String, Instant)> {
        let inner = self.lock();
        let open =
            inner.containers.iter().filter(|(_, said)| said.by_cgroup.is_none() && !said.foreign_to.contains(engine));
        open.map(|(container, said)| (container.clone(), said.since)).collect()
    }

    /// An engine knows a container; whether by its cgroup.
    pub fn known(&self, container: &str, by_cgroup: bool) {
        if let Some(said) = self.lock().containers.get_mut(container) {
            said.by_cgroup = Some(by_cgroup);
        }
    }

    /// An engine does not know a container.
    pub fn foreign(&self, engine: &'static str, container: &str) {
        if let Some(said) = self.lock().containers.get_mut(container) {
            said.foreign_to.insert(engine);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_engine_that_knows_it_is_enough_and_all_must_not_know_it() {
        let stopped = Stopped::new(2);
        for container in ["a", "b", "c", "d"] {
            stopped.stop(container);
            assert_eq!(stopped.verdict(container), Verdict::Stay);
        }
        stopped.known("a", true);
        stopped.known("b", false);
        stopped.foreign("docker:", "c");
        let verdicts = ["a", "b", "c", "d", "e"].map(|container| stopped.verdict(container));
        assert_eq!(verdicts, [Verdict::Stay, Verdict::LetGo, Verdict::Stay, Verdict::Stay, Verdict::LetGo]);
        let open = |engine| stopped.open(engine).into_iter().map(|(container, _)| container).collect::<Vec<_>>();
        assert_eq!(open("docker:"), ["d"]);
        assert_eq!(open("pod:"), ["c", "d"]);
        stopped.foreign("pod:", "c");
        assert_eq!(stopped.verdict("c"), Verdict::LetGo);
    }

    #[test]
    fn nobody_is_waited_for_for_ever() {
        let stopped = Stopped::new(1);
        stopped.stop("a");
        stopped.stop("b");
        stopped.known("b", true);
        let past = Instant::now().checked_sub(PATIENCE).expect("the machine runs for longer");
        stopped.lock().containers.values_mut().for_each(|said| said.since = past);
        assert_eq!(stopped.verdict("a"), Verdict::Unanswered);
        assert_eq!(stopped.verdict("b"), Verdict::Stay, "its engine says that it will be a PU");
    }

    #[test]
    fn sources_are_woken_while_they_last() {
        let (stopped, source) = (Stopped::new(1), Arc::new(Notify::new()));
        stopped.wake(&source);
        stopped.stop("a");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let woken = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), source.notified()).await });
        assert!(woken.is_ok());
        drop(source);
        stopped.stop("b");
        assert!(stopped.lock().sources.is_empty());
    }
}
