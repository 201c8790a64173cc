//! The feed, read again when it changes, and laid over all PUs.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use super::Teller;
use crate::{
    config,
    facts::{
        board::Board,
        feed::{Feed, Reader},
    },
    identity::Tags,
    workload::{Extractor, KnownPu, PuSink, Source, Stop, TagSource},
};

/// PUs whose digest is known only now are looked for that often.
const TICK: Duration = Duration::from_millis(500);

/// What the feed says now.
#[derive(Clone, Debug)]
pub(super) struct Feeds {
    config: config::Feed,
    board: Arc<Board>,
    // `None` until it was read for the first time.
    known: Arc<RwLock<Option<Arc<Feed>>>>,
}

impl Feeds {
    pub fn new(config: &config::Feed, board: Arc<Board>) -> Option<Self> {
        (!config.sources.is_empty()).then(|| Self { config: config.clone(), board, known: Arc::default() })
    }

    fn known(&self) -> Option<Arc<Feed>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refresh(&self, reader: &mut Reader) {
        let asked = reader.refresh();
        for source in asked.looked_at {
            let state = reader.state(source);
            match &state.trouble {
                Some(error) => self.board.wrong("feed", &state.source, error),
                None => {
                    self.board.right("feed", &state.source, format!("{} images and binaries", state.entries));
                }
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if asked.changed || known.is_none() {
            *known = Some(Arc::new(reader.feed()));
        }
    }
}

impl Source for Feeds {
    fn name(&self) -> &'static str {
        "feed"
    }

    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        let mut teller = Teller::default();
        let mut reader = Reader::new(&self.config);
        while !stop.is_set() {
            self.refresh(&mut reader);
            if let Some(feed) = self.known() {
                let pus = sink.known("");
                teller.keep(&pus);
                pus.iter().for_each(|pu| teller.tell(&*sink, pu, TagSource::Feed, feed.tags(&pu.tags.merged())));
            }
            reader.wait(TICK);
        }
        Ok(())
    }
}

impl Extractor for Feeds {
    fn source(&self) -> TagSource {
        TagSource::Feed
    }

    fn extract(&self, pu: &KnownPu) -> anyhow::Result<Tags> {
        let found = self.known().map(|feed| feed.tags(&pu.tags.merged()));
        Ok(found.or_else(|| pu.tags.get(TagSource::Feed).cloned()).unwrap_or_default())
    }
}
