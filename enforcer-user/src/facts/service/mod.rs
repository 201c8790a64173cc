//! The facts of a running agent: sources that fetch and tell all PUs, extractors that tell a new one at once.

mod accounts;
mod cloud;
mod feed;
mod plugins;
mod sessions;

use std::{collections::HashMap, sync::Arc};

pub use accounts::{Accounts, Claim};

use super::{
    FactError,
    board::Board,
    token::{Issuer, UserSession},
};
use crate::{
    config::Config,
    hardening::Hardening,
    identity::Tags,
    workload::{Extractor, KnownPu, PuSink, SinkError, Source, TagSource},
};

/// Everything that this configuration asks for.
#[derive(Debug)]
pub struct Facts {
    board: Arc<Board>,
    issuer: Option<Issuer>,
    accounts: Accounts,
    cloud: Option<cloud::Cloud>,
    feed: Option<feed::Feeds>,
    plugins: Option<plugins::Plugins>,
    sessions: sessions::Sessions,
}

impl Facts {
    /// Nothing is fetched before [`Self::sources`] run. The threads that fetch are confined by `hardening`.
    ///
    /// # Errors
    /// Never in practice: the metrics' names are constant.
    pub fn new(config: &Config, hardening: &Arc<Hardening>) -> prometheus::Result<Self> {
        let board = Arc::new(Board::new()?);
        let cloud = cloud::Cloud::new(&config.cloud, board.clone(), hardening.clone());
        let feed = feed::Feeds::new(&config.feed, board.clone(), hardening.clone());
        let plugins = plugins::Plugins::new(&config.plugin, board.clone());
        // Tags of sources that a former configuration had.
        let absent = [
            (TagSource::Cloud, cloud.is_none()),
            (TagSource::Feed, feed.is_none()),
            (TagSource::Plugin, plugins.is_none()),
        ];
        let absent = absent.into_iter().filter(|(_, absent)| *absent).map(|(source, _)| source).collect();
        let issuer = Issuer::new(&config.oidc);
        if let Some(issuer) = &issuer {
            board.expect("oidc", issuer.name());
        }
        let accounts = Accounts::new(&config.containerd.tokens, board.clone());
        Ok(Self { board, issuer, accounts, cloud, feed, plugins, sessions: sessions::Sessions::new(absent) })
    }

    /// What is to run, each in a thread of its own.
    pub fn sources(&self) -> Vec<Box<dyn Source>> {
        let mut sources: Vec<Box<dyn Source>> = vec![Box::new(self.sessions.clone())];
        if self.accounts.is_source() {
            sources.push(Box::new(self.accounts.clone()));
        }
        sources.extend(self.cloud.clone().map(|cloud| Box::new(cloud) as Box<dyn Source>));
        sources.extend(self.feed.clone().map(|feed| Box::new(feed) as Box<dyn Source>));
        sources.extend(self.plugins.clone().map(|plugins| Box::new(plugins) as Box<dyn Source>));
        sources
    }

    /// What a new PU is asked about. The feed looks at digests, so it must come after those who find them.
    pub fn extractors(&self) -> Vec<Arc<dyn Extractor>> {
        let mut extractors: Vec<Arc<dyn Extractor>> = Vec::new();
        extractors.extend(self.cloud.clone().map(|cloud| Arc::new(cloud) as Arc<dyn Extractor>));
        extractors.extend(self.feed.clone().map(|feed| Arc::new(feed) as Arc<dyn Extractor>));
        extractors
    }

    /// The session of a user's token at `now`, Unix seconds; blocks while an issuer's keys are fetched.
    ///
    /// # Errors
    /// Says which check failed; never quotes the token.
    pub fn session(&self, token: &str, now: u64) -> Result<UserSession, FactError> {
        let Some(issuer) = &self.issuer else {
            let problem = "no issuer is trusted; configure `oidc.issuer` and `oidc.audience`";
            return Err(FactError::configuration("user token", problem));
        };
        let session = issuer.session(token, now);
        if let Err(error) = &session {
            self.board.count("oidc", error.fault);
            tracing::warn!(%error, "a user's token was refused");
        }
        match issuer.trouble() {
            Some(trouble) => self.board.wrong("oidc", issuer.name(), &trouble),
            None if session.is_ok() => self.board.right("oidc", issuer.name(), "keys are at hand".into()),
            None => {}
        }
        session
    }

    /// Who tells the service accounts of pods.
    pub fn accounts(&self) -> Accounts {
        self.accounts.clone()
    }

    /// How every source fares.
    pub fn board(&self) -> &Board {
        &self.board
    }
}

/// Tells the agent tags, once: what it refused is not tried again until it differs.
#[derive(Debug, Default)]
struct Teller {
    refused: HashMap<String, Tags>,
}

impl Teller {
    /// Makes `tags` those of `source`, if they are not.
    fn tell(&mut self, sink: &dyn PuSink, pu: &KnownPu, source: TagSource, tags: Tags) {
        if pu.tags.get(source).cloned().unwrap_or_default() == tags || self.refused.get(&pu.key) == Some(&tags) {
            return;
        }
        match sink.tags(&pu.key, source, tags.clone()) {
            Ok(()) => drop(self.refused.remove(&pu.key)),
            // It ended meanwhile.
            Err(SinkError::Unknown(_)) => {}
            Err(error) => {
                tracing::warn!(pu = %pu.name, source = source.as_str(), %error, "tags were not taken");
                self.refused.insert(pu.key.clone(), tags);
            }
        }
    }

    /// Forgets PUs that are gone.
    fn keep(&mut self, known: &[KnownPu]) {
        if !self.refused.is_empty() {
            self.refused.retain(|key, _| known.iter().any(|pu| pu.key == *key));
        }
    }
}

#[cfg(test)]
mod tests;
