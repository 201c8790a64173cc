//! Sessions of users end with their tokens: their tags are taken away.
//!
//! When a session ends is a tag itself (`@user:expires`), so that a restarted agent knows it too.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::Teller;
use crate::{
    facts::{token, unix_now},
    identity::Tags,
    workload::{PuSink, Source, Stop, TagSource},
};

/// Tags go at most that long after their token has ended.
const TICK: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub(super) struct Sessions {
    /// Sources that are not configured (any more): what a former agent left of them goes.
    absent: BTreeSet<TagSource>,
}

impl Sessions {
    pub fn new(absent: BTreeSet<TagSource>) -> Self {
        Self { absent }
    }
}

impl Source for Sessions {
    fn name(&self) -> &'static str {
        "user-sessions"
    }

    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        let mut teller = Teller::default();
        loop {
            let now = unix_now();
            let pus = sink.known("");
            teller.keep(&pus);
            for pu in &pus {
                for source in &self.absent {
                    teller.tell(&*sink, pu, *source, Tags::new());
                }
                if let Some(tags) = pu.tags.get(TagSource::Token)
                    // One whose end is not known has ended.
                    && token::expires(tags).is_none_or(|end| now >= end)
                {
                    tracing::info!(pu = %pu.name, "the user's token has expired");
                    teller.tell(&*sink, pu, TagSource::Token, Tags::new());
                }
            }
            if stop.wait(TICK) {
                return Ok(());
            }
        }
    }
}
