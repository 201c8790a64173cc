//! What happened to connections: the last few thousand records, and a live stream of them.
//!
//! The telemetry ring may deliver a million events a second, of which people read a handful: events are stored as the
//! kernel wrote them, in memory taken once, and turned into names and text only when somebody looks.

mod render;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::event::Event;
use tokio::sync::{broadcast, mpsc};

use crate::{
    admin::{FollowItem, view::RecordView},
    metrics::RuleVerdicts,
    records::Recorder,
};

pub use render::{Clock, Names, RuleName, Tagged, flow_view, ip_addr, protocol_name, record_view};
pub(crate) use render::{path_name, reason_name, rule_name, time_text};

/// Records kept.
pub const CAPACITY: usize = 4096;
/// Rendered records a follower may be behind before it makes its task wait.
const FOLLOWER_QUEUE: usize = 256;

/// The flow log.
pub struct FlowLog {
    ring: Mutex<Ring>,
    live: broadcast::Sender<Event>,
    names: Arc<dyn Names>,
    recorder: Option<Recorder>,
    verdicts: Option<RuleVerdicts>,
}

impl FlowLog {
    /// An empty log.
    pub fn new(names: Arc<dyn Names>) -> Self {
        Self {
            ring: Mutex::new(Ring::default()),
            live: broadcast::Sender::new(CAPACITY),
            names,
            recorder: None,
            verdicts: None,
        }
    }

    /// The same, with records written of everything it takes in.
    pub fn with_recorder(self, recorder: Option<Recorder>) -> Self {
        Self { recorder, ..self }
    }

    /// The same, with everything it takes in counted by rule.
    pub fn with_verdicts(self, verdicts: RuleVerdicts) -> Self {
        Self { verdicts: Some(verdicts), ..self }
    }

    /// What counts by rule, if anything does.
    pub fn verdicts(&self) -> Option<&RuleVerdicts> {
        self.verdicts.as_ref()
    }

    /// What writes records, if anything does.
    pub fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// Takes an event in.
    pub fn push(&self, event: &Event) {
        self.ring().push(event);
        if let Some(recorder) = &self.recorder {
            recorder.take(event);
        }
        if let Some(verdicts) = &self.verdicts {
            verdicts.take(event);
        }
        if self.live.receiver_count() > 0 {
            // Fails only if the last follower has just left.
            let _ = self.live.send(*event);
        }
    }

    /// At most `limit` of the latest records, newest last.
    pub fn recent(&self, limit: usize) -> Vec<RecordView> {
        let events = self.ring().latest(limit);
        let clock = Clock::now();
        events.iter().map(|event| record_view(event, &*self.names, &clock)).collect()
    }

    /// Every record from now on. Ends when the receiver is dropped. Must be called within a tokio runtime.
    pub fn follow(&self) -> mpsc::Receiver<FollowItem> {
        let (sender, receiver) = mpsc::channel(FOLLOWER_QUEUE);
        let mut live = self.live.subscribe();
        let names = Arc::clone(&self.names);
        tokio::spawn(async move {
            loop {
                let item = tokio::select! {
                    event = live.recv() => match event {
                        Ok(event) => FollowItem::Record(Box::new(record_view(&event, &*names, &Clock::now()))),
                        Err(broadcast::error::RecvError::Lagged(count)) => FollowItem::Missed(count),
                        Err(broadcast::error::RecvError::Closed) => return,
                    },
                    () = sender.closed() => return,
                };
                if sender.send(item).await.is_err() {
                    return;
                }
            }
        });
        receiver
    }

    /// A panic elsewhere cannot leave the ring half-written: every state of it is valid.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Ring {
    events: Vec<Event>,
    /// Where the next event goes: behind the last until all slots are taken, then to the oldest.
    next: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self { events: Vec::with_capacity(CAPACITY), next: 0 }
    }
}

impl Ring {
    fn push(&mut self, event: &Event) {
        match self.events.get_mut(self.next) {
            Some(oldest) => *oldest = *event,
            None => self.events.push(*event),
        }
        self.next = (self.next + 1) % CAPACITY;
    }

    fn latest(&self, limit: usize) -> Vec<Event> {
        let (newer, older) = self.events.split_at(self.next.min(self.events.len()));
        let skip = self.events.len().saturating_sub(limit);
        older.iter().chain(newer).skip(skip).copied().collect()
    }
}

#[cfg(test)]
mod tests;
