//! The cloud's statement, fetched in the background and renewed: nothing waits for it.

use std::{
    sync::{Arc, PoisonError, RwLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::Teller;
use crate::{
    config,
    facts::{
        FactError, Fault,
        board::Board,
        cloud::{Source as Provider, Statement},
        unix_now,
    },
    hardening::{Files, Hardening},
    identity::Tags,
    workload::{Extractor, KnownPu, PuSink, Source, Stop, TagSource},
};

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(10);
/// PUs that came meanwhile are looked for that often.
const TICK: Duration = Duration::from_millis(500);
/// A statement that ends is renewed that long before, seconds.
const EARLY: u64 = 60;

/// The provider, and what it said last.
#[derive(Clone, Debug)]
pub(super) struct Cloud {
    provider: Arc<Provider>,
    renew: Duration,
    board: Arc<Board>,
    hardening: Arc<Hardening>,
    // `None` until the first answer, right or wrong.
    known: Arc<RwLock<Option<Statement>>>,
}

impl Cloud {
    pub fn new(config: &config::Cloud, board: Arc<Board>, hardening: Arc<Hardening>) -> Option<Self> {
        let provider = Arc::new(Provider::new(config)?);
        board.expect("cloud", provider.name());
        Some(Self { provider, renew: config.renew, board, hardening, known: Arc::default() })
    }

    fn known(&self) -> Option<Statement> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks anew; how long what is known now is good for.
    fn refresh(&self) -> Duration {
        let now = unix_now();
        let name = self.provider.name();
        let (known, wait) = match self.provider.fetch(now) {
            Ok(statement) => {
                self.board.right("cloud", name, format!("{} tags verified", statement.tags.len()));
                let left = statement.expires.map_or(u64::MAX, |end| end.saturating_sub(now + EARLY));
                let wait = self.renew.min(Duration::from_secs(left)).max(TICK);
                (statement, wait)
            }
            Err(error) => {
                self.board.wrong("cloud", name, &error);
                (self.after(&error, now), RETRY.min(self.renew))
            }
        };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(known);
        wait
    }

    /// What stays believed after a failure: while nobody answers, what was verified and has not ended; else nothing.
    fn after(&self, error: &FactError, now: u64) -> Statement {
        let former = self.known().filter(|known| known.expires.is_none_or(|end| now < end));
        former.filter(|_| error.fault == Fault::Unreachable).unwrap_or(Statement { tags: Tags::new(), expires: None })
    }
}

impl Source for Cloud {
    fn name(&self) -> &'static str {
        "cloud"
    }

    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        let mut teller = Teller::default();
        let mut due = Instant::now();
        // Of its own, so that whoever is silent delays neither the end of the agent nor what is known already.
        let mut asking: Option<JoinHandle<Duration>> = None;
        loop {
            if let Some(asked) = asking.take_if(|asking| asking.is_finished()) {
                due = Instant::now() + asked.join().unwrap_or(RETRY);
            } else if asking.is_none() && Instant::now() >= due {
                let cloud = self.clone();
                let ask = move || {
                    cloud.hardening.confine("cloud-request", Files::Reading);
                    cloud.refresh()
                };
                asking = Some(thread::Builder::new().name("cloud-request".into()).spawn(ask)?);
            }
            if let Some(statement) = self.known() {
                let pus = sink.known("");
                teller.keep(&pus);
                pus.iter().for_each(|pu| teller.tell(&*sink, pu, TagSource::Cloud, statement.tags.clone()));
            }
            if stop.wait(TICK) {
                return Ok(());
            }
        }
    }
}

impl Extractor for Cloud {
    fn source(&self) -> TagSource {
        TagSource::Cloud
    }

    fn extract(&self, pu: &KnownPu) -> anyhow::Result<Tags> {
        let known = self.known().map(|statement| statement.tags);
        Ok(known.or_else(|| pu.tags.get(TagSource::Cloud).cloned()).unwrap_or_default())
    }
}
