//! Workloads: where PUs come from.
//!
//! A *source* watches some part of the world (a container engine, systemd, exec events) and tells the agent which PUs
//! there are; an *extractor* finds tags of a PU, whatever source showed it. Both know nothing of the agent but the traits
//! here.
//!
//! ## Writing a source
//!
//! 1. Implement [`Source`]: [`Source::run`] is called in a thread of its own and stays there until `stop` is set. A source
//!    that is asynchronous starts its own runtime inside. When it returns an error, that is logged and it runs
//!    again after a pause; so on entry it always looks at everything that is there, not only at what changes.
//! 2. For every PU call [`PuSink::appear`] with a key that stays the same as long as the PU lives, whoever restarts
//!    (`docker:<container id>`, `cgroup:<path>`). Calling it again with the same key is how a source says "still there": the
//!    tags it names are replaced, those of other sources stay.
//! 3. Call it *before* the workload can send its first packet, with `complete: false` if tags are still to be found: such a PU is
//!    enforced and allowed nothing. Give the rest with [`PuSink::tags`], then call [`PuSink::complete`]; whatever happens, call
//!    it within seconds, for the PU's first SYN waits that long.
//! 4. Call [`PuSink::gone`] when it ended. After a restart compare with [`PuSink::known`]: PUs with the source's prefix that
//!    are not there any more ended meanwhile.
//!
//! Tags go in by their [`TagSource`]: labels and other foreign names through [`tags::sift`], which leaves out reserved
//! keys; log and count what it refused.

pub mod adopt;
pub mod container_common;
pub mod cri;
pub mod docker;
pub mod exec_match;
pub mod finder;
pub mod host;
pub mod object;
pub mod pipeline;
pub mod tags;
#[cfg(test)]
pub(crate) mod test_sink;
pub mod units;

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use pipeline::{NotYet, Pipeline};
pub use tags::{TagSet, TagSource};

use crate::{admin::PuTarget, identity::Tags};

/// A PU as a source found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What leads the kernel to it.
    pub target: PuTarget,
    /// Name for people and records; the agent chooses one if it is empty, and makes it unique if another PU has it.
    pub name: String,
    /// Namespace; the configured one if there is none.
    pub namespace: Option<String>,
    /// Tags known so far.
    pub tags: Vec<(TagSource, Tags)>,
    /// Nothing else is to be found: the PU may communicate as policy says.
    pub complete: bool,
}

/// A PU as the agent has it, for extractors, plugins and feeds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct KnownPu {
    /// The source's key; PUs that people made have `user:<id>`.
    pub key: String,
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// What leads the kernel to it; the cgroup of a command is [`PuTarget::Cgroup`] here.
    pub target: PuTarget,
    /// All tags by source, carried or not.
    pub tags: TagSet,
    /// Whether its identity is complete.
    pub complete: bool,
}

/// Why the agent did not take what a source said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The PU cannot be one: its cgroup is gone, its tags do not fit, it is another PU already.
    #[error("{0}")]
    Refused(String),
    /// No PU has this key.
    #[error("no PU has the key `{0}`")]
    Unknown(String),
    /// The agent failed; the same may work later.
    #[error("{0}")]
    Failed(String),
}

/// The agent as sources see it. Calls are short, from any thread, and none waits for the network.
pub trait PuSink: Send + Sync {
    /// There is a PU with this key: makes it, or brings the one that has the key up to date.
    ///
    /// # Errors
    /// [`SinkError::Refused`] if it cannot be a PU. An existing PU with this key then stays as it was.
    fn appear(&self, key: &str, seen: Seen) -> Result<(), SinkError>;

    /// Replaces the tags of one source.
    ///
    /// # Errors
    /// [`SinkError::Unknown`] if it ended; [`SinkError::Refused`] if the tags do not fit: the PU keeps those it had.
    fn tags(&self, key: &str, source: TagSource, tags: Tags) -> Result<(), SinkError>;

    /// All tags are there: the PU may communicate as policy says.
    ///
    /// # Errors
    /// [`SinkError::Unknown`] if it ended.
    fn complete(&self, key: &str) -> Result<(), SinkError>;

    /// The PU ended. One that is not known is no error: it ended twice.
    ///
    /// # Errors
    /// [`SinkError::Failed`] if something of it remains.
    fn gone(&self, key: &str) -> Result<(), SinkError>;

    /// The PUs whose key begins with `prefix`, all with an empty one.
    fn known(&self, prefix: &str) -> Vec<KnownPu>;
}

/// Something that finds PUs.
pub trait Source: Send {
    /// Name for the log and for the thread, at most 15 characters.
    fn name(&self) -> &'static str;

    /// Finds PUs until told to stop.
    ///
    /// # Errors
    /// Whatever kept it from going on; it is run again after a pause.
    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()>;
}

/// Something that finds tags of PUs.
pub trait Extractor: Send + Sync {
    /// The source under which its tags are entered.
    fn source(&self) -> TagSource;

    /// All tags of this source for `pu`; those it had are replaced. Extractors run one after the other in the order in
    /// which they are registered, each seeing what the ones before found, and the PU waits for them: answer within a second.
    ///
    /// # Errors
    /// What could not be found; the tags of this source stay as they are, and the PU goes on without them.
    fn extract(&self, pu: &KnownPu) -> anyhow::Result<Tags>;
}

/// Tells a source to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Tells it.
    pub fn set(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Whether it is told.
    pub fn is_set(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits at most so long; whether it is told.
    pub fn wait(&self, at_most: Duration) -> bool {
        let told = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *self.0.1.wait_timeout_while(told, at_most, |told| !*told).unwrap_or_else(PoisonError::into_inner).0
    }
}
