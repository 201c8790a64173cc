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
        feed::{Feed, Reader, SourceState},
    },
    hardening::{Files, Hardening},
    identity::Tags,
    workload::{Extractor, KnownPu, PuSink, Source, Stop, TagSource},
};

/// PUs whose digest is known only now are looked for that often.
const TICK: Duration = Duration::from_millis(300);

/// What the feed says now.
#[derive(Clone, Debug)]
pub(super) struct Feeds {
    config: config::Feed,
    board: Arc<Board>,
    hardening: Arc<Hardening>,
    known: Arc<RwLock<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// What each source says; `None` until it was asked for the first time.
    parts: Vec<Option<Feed>>,
    /// All of them together, once all were asked.
    whole: Option<Arc<Feed>>,
}

impl Feeds {
    pub fn new(config: &config::Feed, board: Arc<Board>, hardening: Arc<Hardening>) -> Option<Self> {
        let known = Known { parts: vec![None; config.sources.len()], whole: None };
        let known = Arc::new(RwLock::new(known));
        config.sources.iter().for_each(|source| board.expect("feed", source));
        (!config.sources.is_empty()).then(|| Self { config: config.clone(), board, hardening, known })
    }

    fn known(&self) -> Option<Arc<Feed>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).whole.clone()
    }

    /// Reads one source until told to stop.
    fn follow(&self, number: usize, stop: &Stop) {
        let source = self.config.sources.get(number).cloned().into_iter().collect();
        let mut reader = Reader::new(&config::Feed { sources: source, ..self.config.clone() });
        while !stop.is_set() {
            let refreshed = reader.refresh();
            if !refreshed.looked_at.is_empty() {
                self.tell(&reader.state(0));
            }
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if refreshed.changed || known.parts[number].is_none() {
                known.parts[number] = Some(reader.feed());
                known.whole = known.parts.iter().all(Option::is_some).then(|| {
                    let mut whole = Feed::default();
                    known.parts.iter().flatten().for_each(|part| whole.merge(part));
                    Arc::new(whole)
                });
            }
            drop(known);
            reader.wait(TICK);
        }
    }

    fn tell(&self, state: &SourceState) {
        match &state.trouble {
            Some(error) => self.board.wrong("feed", &state.source, error),
            None => self.board.right("feed", &state.source, format!("{} images and binaries", state.entries)),
        }
    }
}

impl Source for Feeds {
    fn name(&self) -> &'static str {
        "feed"
    }

    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        // Each of its own, so that an address that is silent holds up neither the others nor the end of the agent.
        for number in 0..self.config.sources.len() {
            let (feeds, stop) = (self.clone(), stop.clone());
            let name = format!("feed-{number}");
            let follow = move || {
                feeds.hardening.confine(&format!("feed-{number}"), Files::Reading);
                feeds.follow(number, &stop);
            };
            std::thread::Builder::new().name(name).spawn(follow)?;
        }
        let mut teller = Teller::default();
        loop {
            if let Some(feed) = self.known() {
                let pus = sink.known("");
                teller.keep(&pus);
                pus.iter().for_each(|pu| teller.tell(&*sink, pu, TagSource::Feed, feed.tags(&pu.tags.merged())));
            }
            if stop.wait(TICK) {
                return Ok(());
            }
        }
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
