//! Service accounts of pods: their tokens are verified with keys that a thread of its own fetches, so that nobody waits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use ring::digest::{SHA256, digest};

use crate::{
    config::PodTokens,
    facts::{
        FactError, Fault,
        account::{self, Account, Pod},
        board::Board,
        http::Client,
        jwks::KeySet,
        jwt,
        keys::{Keys, Origin},
        unix_now,
    },
    workload::{PuSink, Source, Stop},
};

/// The kind of this source.
const KIND: &str = "serviceaccount";
/// How soon a changed key file, or a token of an unknown key, is noticed.
const TICK: Duration = Duration::from_millis(250);
/// Answers kept, at most.
const ANSWERS_MAX: usize = 16_384;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The service account of this name.
    Account(String),
    /// Nothing that is believed.
    Nothing,
    /// Nothing yet: the issuer's keys are not here. To be asked again.
    Pending,
}

/// The configured issuer, its keys, and what they said of tokens.
#[derive(Clone, Debug)]
pub struct Accounts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: PodTokens,
    /// None if no issuer is configured: then no token is believed.
    keys: Option<Keys>,
    board: Arc<Board>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The issuer's, since they were first fetched.
    keys: Option<Arc<KeySet>>,
    /// The name of a key that some token claims and nobody has.
    wanted: Option<String>,
    /// By digest of token and pod; nothing is kept of a token but that.
    answers: HashMap<[u8; 32], Option<Account>>,
    trouble: Option<FactError>,
    said: bool,
}

impl Accounts {
    pub(super) fn new(config: &PodTokens, board: Arc<Board>) -> Self {
        let client = Client { timeout: config.timeout, limit: 1 << 20, ca: config.ca.clone() };
        let keys = config.issuer.clone().map(|issuer| {
            board.expect(KIND, &issuer);
            Keys::new(Origin::new(issuer, config.jwks.as_deref()), client, config.refresh)
        });
        Self(Arc::new(Inner { config: config.clone(), keys, board, state: Mutex::default() }))
    }

    /// Whether there are keys to fetch.
    pub(super) fn is_source(&self) -> bool {
        self.0.keys.is_some()
    }

    /// What a token found in a pod says of it; never waits. What is not believed is counted, and logged, once.
    pub fn claim(&self, token: &str, pod: Pod<'_>) -> Claim {
        let Inner { config, keys, board, .. } = &*self.0;
        let (mut state, now) = (self.0.state(), unix_now());
        let no_keys = Arc::default();
        let keys = match (&state.keys, keys) {
            (Some(keys), _) => keys.clone(),
            (None, Some(_)) => return Claim::Pending,
            // Without an issuer the answer does not depend on keys.
            (None, None) => no_keys,
        };
        let key = fingerprint(token, pod);
        if let Some(known) = state.answers.get(&key)
            && known.as_ref().is_none_or(|account| now < account.expires)
        {
            return Claim::of(known.as_ref());
        }
        if let Some(wanted) = jwt::claimed_key(token).filter(|key| !keys.knows(key)) {
            state.wanted = Some(wanted);
        }
        let account = account::account(token, &keys, config, pod, now);
        if let Err(error) = &account {
            board.count(KIND, error.fault);
            // What is not configured is not worth more than one line, however many pods there are.
            if error.fault != Fault::Configuration || !std::mem::replace(&mut state.said, true) {
                let Pod { namespace, uid } = pod;
                tracing::warn!(namespace, uid, %error, "a pod's service account is left out");
            }
        }
        if state.answers.len() >= ANSWERS_MAX {
            state.answers.clear();
        }
        let account = account.ok();
        let claim = Claim::of(account.as_ref());
        state.answers.insert(key, account);
        claim
    }
}

impl Claim {
    fn of(account: Option<&Account>) -> Self {
        account.map_or(Self::Nothing, |account| Self::Account(account.name.clone()))
    }
}

impl Source for Accounts {
    fn name(&self) -> &'static str {
        "serviceaccounts"
    }

    fn run(&mut self, _sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        // Of its own, so that a silent issuer does not delay the end of the agent.
        let mut asking: Option<JoinHandle<()>> = None;
        loop {
            if asking.as_ref().is_none_or(JoinHandle::is_finished) {
                let inner = self.0.clone();
                asking = Some(thread::Builder::new().name("issuer".into()).spawn(move || inner.refresh())?);
            }
            if stop.wait(TICK) {
                return Ok(());
            }
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches keys if it is time to.
    fn refresh(&self) {
        let Some(keys) = &self.keys else { return };
        let wanted = self.state().wanted.take();
        let fetched = keys.for_key(wanted.as_deref());
        let trouble = keys.trouble().or_else(|| fetched.as_ref().err().cloned());
        let issuer = self.config.issuer.as_deref().unwrap_or_default();
        let mut state = self.state();
        match &trouble {
            Some(error) if state.trouble != trouble => self.board.wrong(KIND, issuer, error),
            None if state.keys.is_none() || state.trouble.is_some() => {
                self.board.right(KIND, issuer, "keys are at hand".into());
            }
            _ => {}
        }
        state.trouble = trouble;
        let fetched = fetched.ok();
        if fetched != state.keys {
            // Other keys, other answers: some may have been withdrawn.
            state.answers.clear();
            state.keys = fetched;
        }
    }
}

/// What stands for a token in a pod.
fn fingerprint(token: &str, pod: Pod<'_>) -> [u8; 32] {
    let text = [pod.namespace, pod.uid, token].join("\0");
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    fingerprint
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::facts::test_support::Signer;

    const POD: Pod<'_> = Pod { namespace: "shop", uid: "1234" };
    const ISSUER: &str = "https://api.example";

    fn token(signer: &Signer) -> String {
        signer.token(&json!({
            "iss": ISSUER, "aud": ISSUER, "exp": unix_now() + 600, "sub": "system:serviceaccount:shop:seller",
            "kubernetes.io": {"namespace": "shop", "pod": {"uid": "1234"}, "serviceaccount": {"name": "seller"}},
        }))
    }

    fn counted(board: &Board, fault: Fault) -> u64 {
        let families = board.collector().collect();
        let of = |metric: &&prometheus::proto::Metric| {
            let labels: Vec<&str> = metric.get_label().iter().map(|label| label.value()).collect();
            labels.contains(&KIND) && labels.contains(&fault.name())
        };
        families[0].get_metric().iter().filter(of).map(|metric| metric.get_counter().get_value() as u64).sum()
    }

    #[test]
    fn without_an_issuer_nothing_is_claimed_and_each_token_is_counted_once() {
        let board = Arc::new(Board::new().expect("a board"));
        let accounts = Accounts::new(&PodTokens::default(), board.clone());
        assert!(!accounts.is_source());
        let token = token(&Signer::new());
        for _ in 0..3 {
            assert_eq!(accounts.claim(&token, POD), Claim::Nothing);
        }
        assert_eq!(counted(&board, Fault::Configuration), 1);
    }

    #[test]
    fn keys_that_come_late_or_change_change_the_answer() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("keys.json");
        let text = file.to_str().expect("UTF-8").to_owned();
        let config = PodTokens { issuer: Some(ISSUER.into()), jwks: Some(text), ..PodTokens::default() };
        let board = Arc::new(Board::new().expect("a board"));
        let accounts = Accounts::new(&config, board.clone());
        let (signer, other) = (Signer::new(), Signer::new());
        let token = token(&signer);
        for _ in 0..3 {
            accounts.0.refresh();
            assert_eq!(accounts.claim(&token, POD), Claim::Pending, "no file");
        }
        assert_eq!(counted(&board, Fault::Configuration), 1, "told once");
        std::fs::write(&file, signer.jwks().to_string()).expect("written");
        accounts.0.refresh();
        assert_eq!(accounts.claim(&token, POD), Claim::Account("seller".into()));
        assert_eq!(accounts.claim(&token, Pod { uid: "5678", ..POD }), Claim::Nothing);
        assert_eq!(counted(&board, Fault::Untrusted), 1);
        // A key that was withdrawn vouches for nothing, whatever it once did.
        std::fs::write(&file, format!("{} ", other.jwks())).expect("written");
        accounts.0.refresh();
        assert_eq!(accounts.claim(&token, POD), Claim::Nothing);
        assert_eq!(counted(&board, Fault::Untrusted), 2);
        // A file that breaks keeps what was read before.
        std::fs::write(&file, "no keys").expect("written");
        accounts.0.refresh();
        assert_eq!(accounts.claim(&token, POD), Claim::Nothing);
    }
}
