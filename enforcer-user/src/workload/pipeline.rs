//! Between sources and the agent: what is known of a PU is found out before the PU may communicate.
//!
//! A PU is complete when its source says so and every extractor has looked at it once. Later looks (the main process was
//! replaced, ports were opened) change tags of a PU that goes on communicating.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Extractor, KnownPu, PuSink, Seen, SinkError, TagSource};
use crate::identity::Tags;

/// Nothing can be said yet, and nothing needs to: no process runs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no process runs there yet")]
pub struct NotYet;

/// The agent, with extractors in front. Dropping it ends its threads.
pub struct Pipeline {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    sink: Arc<dyn PuSink>,
    extractors: Vec<Arc<dyn Extractor>>,
    work: Mutex<Work>,
    some: Condvar,
}

#[derive(Default)]
struct Work {
    stop: bool,
    queue: VecDeque<String>,
    queued: HashSet<String>,
    /// Being looked at.
    busy: HashSet<String>,
    /// To be looked at again, and how long was waited the last time.
    later: HashMap<String, (Instant, Duration)>,
    /// PUs that are not complete: whether their source says that they are, whether they were looked at.
    incomplete: HashMap<String, (bool, bool)>,
    /// PUs whose open ports are looked at next.
    round: VecDeque<String>,
    /// When complete PUs were looked at, as long as they [`REST`].
    looked_at: HashMap<String, Instant>,
}

impl Work {
    /// When a PU may be looked at again, if not now.
    fn rests_until(&self, key: &str, now: Instant) -> Option<Instant> {
        let until = *self.looked_at.get(key)? + REST;
        (until > now && !self.incomplete.contains_key(key)).then_some(until)
    }
}

/// PUs looked at at once.
const THREADS: usize = 2;
/// The first wait for a process, doubled up to [`PATIENCE`].
const HASTE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_millis(500);
/// A complete PU is not looked at twice within this time: each change of what travels is a signature and news for all peers, and a
/// PU may execute programs as often as it likes.
const REST: Duration = Duration::from_millis(500);
/// PUs looked at again each second, for what changes while they run.
const AGAIN: usize = 8;

impl Pipeline {
    /// Starts the threads. Extractors run in the order given.
    ///
    /// # Errors
    /// If the system has no threads left.
    pub fn start(sink: Arc<dyn PuSink>, extractors: Vec<Arc<dyn Extractor>>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { sink, extractors, work: Mutex::default(), some: Condvar::new() });
        let mut pipeline = Self { shared: shared.clone(), threads: Vec::new() };
        for number in 0..THREADS {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("extract-{number}"));
            pipeline.threads.push(thread.spawn(move || shared.run(number == 0))?);
        }
        Ok(pipeline)
    }

    /// Has a PU looked at that somebody made as not complete, and completes it then.
    pub fn finish(&self, key: &str) {
        self.shared.work().incomplete.insert(key.to_owned(), (true, false));
        self.examine(key);
    }

    /// Has a PU looked at (again); soon, and once for several requests.
    pub fn examine(&self, key: &str) {
        self.shared.enqueue(key);
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.work().stop = true;
        self.shared.some.notify_all();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl PuSink for Pipeline {
    fn appear(&self, key: &str, seen: Seen) -> Result<(), SinkError> {
        let said = seen.complete;
        let known = self.known(key).into_iter().any(|pu| pu.key == key && pu.complete);
        if !known && !self.shared.extractors.is_empty() {
            // First, so that whoever is done looking finds it.
            self.shared.work().incomplete.insert(key.to_owned(), (said, false));
            let appeared = self.shared.sink.appear(key, Seen { complete: false, ..seen });
            if appeared.is_err() {
                self.shared.work().incomplete.remove(key);
            }
            appeared?;
        } else {
            self.shared.sink.appear(key, Seen { complete: known || said, ..seen })?;
        }
        self.examine(key);
        Ok(())
    }

    fn tags(&self, key: &str, source: TagSource, tags: Tags) -> Result<(), SinkError> {
        self.shared.sink.tags(key, source, tags)?;
        // What extractors find may depend on it.
        Ok(())
    }

    fn complete(&self, key: &str) -> Result<(), SinkError> {
        let looked_at = match self.shared.work().incomplete.get_mut(key) {
            Some((said, looked_at)) => {
                *said = true;
                *looked_at
            }
            None => true,
        };
        if looked_at { self.shared.complete(key) } else { Ok(()) }
    }

    fn gone(&self, key: &str) -> Result<(), SinkError> {
        let mut work = self.shared.work();
        work.incomplete.remove(key);
        work.later.remove(key);
        drop(work);
        self.shared.sink.gone(key)
    }

    fn known(&self, prefix: &str) -> Vec<KnownPu> {
        self.shared.sink.known(prefix)
    }
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, key: &str) {
        let mut work = self.work();
        if work.queued.insert(key.to_owned()) {
            work.queue.push_back(key.to_owned());
            self.some.notify_one();
        }
    }

    fn run(&self, goes_round: bool) {
        let mut next_round = Instant::now() + Duration::from_secs(1);
        loop {
            if goes_round && Instant::now() >= next_round {
                next_round = Instant::now() + Duration::from_secs(1);
                self.go_round();
            }
            let Some(key) = self.next() else { return };
            let Some(key) = key else { continue };
            let waits = self.look(&key).is_err();
            let mut work = self.work();
            work.busy.remove(&key);
            let now = Instant::now();
            work.looked_at.retain(|_, when| now.duration_since(*when) < REST);
            work.looked_at.insert(key.clone(), now);
            if waits && work.incomplete.contains_key(&key) {
                let waited = work.later.get(&key).map_or(HASTE, |(_, waited)| (*waited * 2).min(PATIENCE));
                work.later.insert(key, (Instant::now() + waited, waited));
            } else {
                work.later.remove(&key);
            }
        }
    }

    /// The next PU to look at, `None` inside if there is none just now, `None` at the end.
    fn next(&self) -> Option<Option<String>> {
        let mut work = self.work();
        if work.stop {
            return None;
        }
        let now = Instant::now();
        let due = work.later.iter().find(|(key, (when, _))| *when <= now && !work.busy.contains(*key));
        let key = due.map(|(key, _)| key.clone()).or_else(|| {
            // One that is being looked at has its turn when that is over.
            let ready = |key: &String| !work.busy.contains(key) && work.rests_until(key, now).is_none();
            let at = work.queue.iter().position(ready)?;
            work.queue.remove(at)
        });
        let Some(key) = key else {
            let rested = work.queue.iter().filter_map(|key| work.rests_until(key, now));
            let next = work.later.values().map(|(when, _)| *when).chain(rested).min();
            let wait = next
                .map_or(PATIENCE, |when| when.saturating_duration_since(now))
                .clamp(Duration::from_millis(1), PATIENCE);
            drop(self.some.wait_timeout(work, wait).unwrap_or_else(PoisonError::into_inner));
            return Some(None);
        };
        work.queued.remove(&key);
        work.queue.retain(|queued| *queued != key);
        if let Some((when, _)) = work.later.get_mut(&key) {
            // Not again before this look is over.
            *when = now + Duration::from_secs(3600);
        }
        work.busy.insert(key.clone());
        Some(Some(key))
    }

    /// Lets every extractor look.
    fn look(&self, key: &str) -> Result<(), NotYet> {
        let find = || self.sink.known(key).into_iter().find(|pu| pu.key == key);
        for extractor in &self.extractors {
            let Some(pu) = find() else { return Ok(()) };
            let source = extractor.source();
            let tags = match extractor.extract(&pu) {
                Ok(tags) => tags,
                Err(error) if error.is::<NotYet>() => return Err(NotYet),
                Err(error) => {
                    tracing::warn!(pu = %pu.name, %source, "cannot find out all about it: {error:#}");
                    continue;
                }
            };
            if pu.tags.get(source).is_none_or(|present| *present != tags)
                && let Err(error) = self.sink.tags(key, source, tags)
                && !matches!(error, SinkError::Unknown(_))
            {
                tracing::warn!(pu = %pu.name, %source, %error, "tags were not taken");
            }
        }
        let said = match self.work().incomplete.get_mut(key) {
            Some((said, looked_at)) => {
                *looked_at = true;
                *said
            }
            None => false,
        };
        if said && let Err(error) = self.complete(key) {
            tracing::warn!(pu = key, %error, "it stays without permission to communicate");
        }
        Ok(())
    }

    fn complete(&self, key: &str) -> Result<(), SinkError> {
        let completed = self.sink.complete(key);
        if !matches!(completed, Err(SinkError::Failed(_))) {
            self.work().incomplete.remove(key);
        }
        completed
    }

    fn go_round(&self) {
        let mut work = self.work();
        if work.round.is_empty() {
            drop(work);
            let all = self.sink.known("");
            work = self.work();
            work.round.extend(all.into_iter().filter(|pu| pu.complete).map(|pu| pu.key));
        }
        let several = work.round.len().min(AGAIN);
        let some: Vec<String> = work.round.drain(..several).collect();
        drop(work);
        some.iter().for_each(|key| self.enqueue(key));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{
        admin::PuTarget,
        workload::{TagSet, test_sink::Recording},
    };

    struct Fixed(TagSource, Tags, AtomicUsize);

    impl Extractor for Fixed {
        fn source(&self) -> TagSource {
            self.0
        }

        fn extract(&self, pu: &KnownPu) -> anyhow::Result<Tags> {
            // Until it has been asked so often.
            if self.2.load(Ordering::SeqCst) > 0 {
                self.2.fetch_sub(1, Ordering::SeqCst);
                return Err(NotYet.into());
            }
            anyhow::ensure!(pu.name != "bad", "cannot");
            Ok(self.1.clone())
        }
    }

    fn seen(name: &str, complete: bool) -> Seen {
        Seen { target: PuTarget::Cgroup("/x".into()), name: name.into(), namespace: None, tags: Vec::new(), complete }
    }

    fn tags(key: &str, value: &str) -> Tags {
        [(key.to_owned(), [value.to_owned()].into())].into()
    }

    fn until(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !what() {
            assert!(Instant::now() < deadline, "waited in vain");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn one(sink: &Recording, key: &str) -> KnownPu {
        sink.known(key).remove(0)
    }

    #[test]
    fn a_pu_is_complete_when_source_and_extractors_are_done() {
        let sink = Arc::new(Recording::default());
        let slow = Arc::new(Fixed(TagSource::Object, tags("@sys:uid", "0"), AtomicUsize::new(3)));
        let pipeline = Pipeline::start(sink.clone(), vec![slow]).unwrap();
        pipeline.appear("a", seen("a", false)).unwrap();
        until(|| !one(&sink, "a").tags.is_empty());
        assert!(!one(&sink, "a").complete, "its source has not said so");
        pipeline.complete("a").unwrap();
        until(|| one(&sink, "a").complete);
        assert_eq!(one(&sink, "a").tags, [(TagSource::Object, tags("@sys:uid", "0"))].into_iter().collect::<TagSet>());
        pipeline.appear("b", seen("b", true)).unwrap();
        until(|| one(&sink, "b").complete);
        assert!(!one(&sink, "b").tags.is_empty(), "not before it was looked at");
    }

    #[test]
    fn one_that_is_complete_stays_so_when_it_appears_again() {
        let sink = Arc::new(Recording::default());
        let pipeline =
            Pipeline::start(sink.clone(), vec![Arc::new(Fixed(TagSource::Object, Tags::new(), AtomicUsize::new(0)))])
                .unwrap();
        pipeline.appear("a", seen("a", true)).unwrap();
        until(|| one(&sink, "a").complete);
        let completions = sink.completions();
        pipeline.appear("a", seen("a", false)).unwrap();
        assert!(one(&sink, "a").complete);
        assert_eq!(sink.completions(), completions);
    }

    #[test]
    fn what_cannot_be_found_out_keeps_no_pu_waiting() {
        let sink = Arc::new(Recording::default());
        let pipeline = Pipeline::start(
            sink.clone(),
            vec![
                Arc::new(Fixed(TagSource::Object, Tags::new(), AtomicUsize::new(0))),
                Arc::new(Fixed(TagSource::Feed, Tags::new(), AtomicUsize::new(0))),
            ],
        )
        .unwrap();
        pipeline.appear("a", seen("bad", true)).unwrap();
        until(|| one(&sink, "a").complete);
        pipeline.gone("a").unwrap();
        assert!(sink.known("a").is_empty());
    }

    /// Counts how often it looks.
    struct Counting(AtomicUsize);

    impl Extractor for Counting {
        fn source(&self) -> TagSource {
            TagSource::Object
        }

        fn extract(&self, _: &KnownPu) -> anyhow::Result<Tags> {
            let looks = self.0.fetch_add(1, Ordering::SeqCst);
            Ok(tags("@sys:exe", &looks.to_string()))
        }
    }

    #[test]
    fn one_that_executes_all_the_time_is_looked_at_now_and_then() {
        let sink = Arc::new(Recording::default());
        let looks = Arc::new(Counting(AtomicUsize::new(0)));
        let pipeline = Pipeline::start(sink.clone(), vec![looks.clone()]).unwrap();
        let begin = Instant::now();
        pipeline.appear("a", seen("a", true)).unwrap();
        until(|| one(&sink, "a").complete);
        for _ in 0..100 {
            pipeline.examine("a");
            std::thread::sleep(Duration::from_millis(1));
        }
        // The last request is not lost.
        let before = looks.0.load(Ordering::SeqCst);
        pipeline.examine("a");
        until(|| looks.0.load(Ordering::SeqCst) > before);
        let most = begin.elapsed().as_millis() / REST.as_millis() + 2;
        assert!(
            looks.0.load(Ordering::SeqCst) as u128 <= most,
            "{looks} looks",
            looks = looks.0.load(Ordering::SeqCst)
        );
    }

    #[test]
    fn without_extractors_the_source_alone_decides() {
        let sink = Arc::new(Recording::default());
        let pipeline = Pipeline::start(sink.clone(), Vec::new()).unwrap();
        pipeline.appear("a", seen("a", true)).unwrap();
        assert!(one(&sink, "a").complete);
        pipeline.appear("b", seen("b", false)).unwrap();
        assert!(!one(&sink, "b").complete);
        pipeline.complete("b").unwrap();
        assert!(one(&sink, "b").complete);
    }
}
