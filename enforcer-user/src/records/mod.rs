//! Flow records: events of connections, added up over an interval and written by a thread of its own.
//!
//! Whoever gives events never waits: what the disk does not take in time is dropped and counted. The schema is in
//! `docs/flow-records.md`, the type is [`policy::FlowRecord`].

mod group;
mod live;
mod read;
mod sink;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    event::{EVENT_START, Event},
    flow::{ESTABLISHED, Flow, FlowKey},
};

use crate::{
    config::Records,
    flow_log::{Clock, Names},
    metrics::RecordCounts,
};

pub use read::{ReadError, lines};

use group::{Group, Key};
use live::{Each, Live};
use sink::Sink;

/// Takes events in and writes records.
pub struct Recorder {
    names: Arc<dyn Names>,
    host: String,
    interval: Duration,
    max_groups: usize,
    sink: Sink,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

/// What became of records.
#[derive(Debug, Default)]
pub struct Counters {
    /// Lines written.
    pub written: AtomicU64,
    /// Records lost because an interval had too many groups.
    pub dropped_groups: AtomicU64,
    /// Records lost because the disk was too slow.
    pub dropped_queue: AtomicU64,
    /// Records lost because the file could not be written.
    pub dropped_write: AtomicU64,
}

impl From<&Counters> for RecordCounts {
    fn from(counters: &Counters) -> Self {
        Self { written: counters.written.load(Ordering::Relaxed), dropped: counters.dropped().into() }
    }
}

impl Counters {
    /// Records lost, by cause.
    pub fn dropped(&self) -> [(&'static str, u64); 3] {
        [
            ("groups", self.dropped_groups.load(Ordering::Relaxed)),
            ("queue", self.dropped_queue.load(Ordering::Relaxed)),
            ("write", self.dropped_write.load(Ordering::Relaxed)),
        ]
    }
}

struct State {
    groups: HashMap<Key, Group>,
    denied: usize,
    live: Live,
    flush: Instant,
}

/// The event of a flow whose end nobody told of, at its last packet.
pub fn ended(key: &FlowKey, flow: &Flow) -> Event {
    live::snapshot(key, flow, flow.seen_ns.max(flow.created_ns))
}

impl Recorder {
    /// Starts the writer; `None` if records are not wanted.
    ///
    /// # Errors
    /// If its thread cannot be started. A file that cannot be written is no error: it may be writable later.
    pub fn start(config: &Records, host: &str, names: Arc<dyn Names>) -> io::Result<Option<Self>> {
        if config.file.as_os_str().is_empty() {
            return Ok(None);
        }
        let counters = Arc::new(Counters::default());
        Ok(Some(Self {
            names,
            host: host.to_owned(),
            interval: config.interval,
            max_groups: config.max_groups,
            sink: Sink::start(config, counters.clone())?,
            counters,
            state: Mutex::new(State {
                groups: HashMap::new(),
                denied: 0,
                live: Live::default(),
                flush: Instant::now() + config.interval,
            }),
        }))
    }

    /// What became of records.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes an event in.
    pub fn take(&self, event: &Event) {
        if self.interval.is_zero() {
            let mut group = Group::new(event, &*self.names, &self.host, true);
            group.add(event, event.kind != common::event::EVENT_END);
            self.sink.write(vec![group.into_record(&Clock::now())]);
            return;
        }
        // Its end will come, or it will be found alive.
        if event.kind == EVENT_START {
            return;
        }
        let mut guard = self.state();
        let state = &mut *guard;
        let (event, fresh) = state.live.rest_of(event);
        self.add(state, &event, fresh);
    }

    /// Whether [`Self::flush`] is due.
    pub fn is_due(&self) -> bool {
        let mut state = self.state();
        let now = Instant::now();
        let due = !self.interval.is_zero() && now >= state.flush;
        if due {
            state.flush = now + self.interval;
        }
        due
    }

    /// Adds what live flows have moved since they were last seen, and writes the interval's records.
    ///
    /// `flows` shows each flow, and answers whether these were all.
    pub fn flush(&self, flows: impl FnOnce(Each<'_>) -> bool) {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut live = std::mem::take(&mut state.live);
        let established = |each: Each<'_>| {
            flows(&mut |key, flow| {
                if flow.state == ESTABLISHED {
                    each(key, flow);
                }
            })
        };
        live.walk(established, crate::sys::monotonic_ns(), |event, fresh| self.add(state, event, fresh));
        state.live = live;
        state.denied = 0;
        let clock = Clock::now();
        let mut records: Vec<_> = state.groups.drain().map(|(_, group)| group.into_record(&clock)).collect();
        drop(guard);
        if !records.is_empty() {
            records.sort_by(|a, b| (&a.since, a.port).cmp(&(&b.since, b.port)));
            self.sink.write(records);
        }
    }

    fn add(&self, state: &mut State, event: &Event, fresh: bool) {
        let key = Key::of(event);
        let allowed = key.is_allowed();
        if let Some(group) = state.groups.get_mut(&key) {
            return group.add(event, fresh);
        }
        // A scan shall not crowd out what was allowed.
        let full = state.groups.len() >= self.max_groups || (!allowed && state.denied >= self.max_groups / 2);
        if full {
            self.counters.dropped_groups.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.denied += usize::from(!allowed);
        let mut group = Group::new(event, &*self.names, &self.host, false);
        group.add(event, fresh);
        state.groups.insert(key, group);
    }

    /// A panic elsewhere leaves sums that are a little off at worst.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
