//! Where an issuer's keys come from: a file, an address, or the issuer's own description of itself.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde::Deserialize;

use super::{
    FactError,
    http::{Client, is_protected},
    jwks::KeySet,
};

/// Unknown keys do not make this host ask more often than this: anybody can name one.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Keys that could not be fetched anew for so long are not used any more: they may have been withdrawn since.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Longest key file, bytes.
const FILE_MAX: u64 = 1 << 20;

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file; read again when it changes.
    File(PathBuf),
    /// An address of a key set.
    Url(String),
    /// The issuer's `/.well-known/openid-configuration`, which names that address (OpenID Connect Discovery, section 4).
    Issuer(String),
}

impl Origin {
    /// Where an issuer's keys are if `jwks` names a file or an address, or nothing.
    pub fn new(issuer: String, jwks: Option<&str>) -> Self {
        match jwks {
            None => Self::Issuer(issuer),
            Some(place) if place.contains("://") => Self::Url(place.into()),
            Some(path) => Self::File(path.into()),
        }
    }
}

/// Keys of one issuer, kept.
#[derive(Debug)]
pub struct Keys {
    origin: Origin,
    client: Client,
    refresh: Duration,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    keys: Option<Arc<KeySet>>,
    fetched: Option<Instant>,
    asked: Option<Instant>,
    file: Option<(SystemTime, u64)>,
    trouble: Option<FactError>,
}

impl Keys {
    /// Nothing is fetched until the first token comes.
    pub fn new(origin: Origin, client: Client, refresh: Duration) -> Self {
        Self { origin, client, refresh, kept: Mutex::default() }
    }

    /// The keys to verify a token with that names `key`; blocks while they are fetched.
    ///
    /// # Errors
    /// If there are none, and none can be fetched. What was fetched before is kept through a failure, for a day.
    pub fn for_key(&self, key: Option<&str>) -> Result<Arc<KeySet>, FactError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_due(&kept, key) {
            let now = Instant::now();
            kept.asked = Some(now);
            match self.fetch(&mut kept.file) {
                Ok(Some(keys)) => {
                    *kept = Kept {
                        keys: Some(Arc::new(keys)),
                        fetched: Some(now),
                        asked: Some(now),
                        file: kept.file,
                        trouble: None,
                    };
                }
                Ok(None) => kept.fetched = Some(now),
                Err(error) => {
                    if kept.trouble.as_ref() != Some(&error) {
                        tracing::warn!(%error, "keys of an issuer cannot be read; the former ones stay");
                    }
                    kept.trouble = Some(error);
                }
            }
        }
        if kept.fetched.is_some_and(|fetched| fetched.elapsed() > STALE) {
            kept.keys = None;
        }
        kept.keys.clone().ok_or_else(|| {
            let unknown = || FactError::unreachable("keys of the issuer", "have not been fetched yet; try again");
            kept.trouble.clone().unwrap_or_else(unknown)
        })
    }

    /// Why the keys are not as fresh as they should be, if so.
    pub fn trouble(&self) -> Option<FactError> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).trouble.clone()
    }

    fn is_due(&self, kept: &Kept, key: Option<&str>) -> bool {
        // A look at a file's time costs nothing.
        if matches!(self.origin, Origin::File(_)) {
            return true;
        }
        let allowed = kept.asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN);
        let unknown = |keys: &Arc<KeySet>| key.is_some_and(|key| !keys.knows(key));
        let wanted = kept.keys.as_ref().is_none_or(unknown)
            || kept.fetched.is_none_or(|fetched| fetched.elapsed() >= self.refresh);
        allowed && wanted
    }

    /// The keys as they are now; `None` if the file has not changed.
    fn fetch(&self, seen: &mut Option<(SystemTime, u64)>) -> Result<Option<KeySet>, FactError> {
        match &self.origin {
            Origin::File(path) => {
                let what = path.display().to_string();
                let unreadable =
                    |error: std::io::Error| FactError::configuration(&what, format!("cannot be read: {error}"));
                let meta = std::fs::metadata(path).map_err(unreadable)?;
                let stamp = (meta.modified().map_err(unreadable)?, meta.len());
                if *seen == Some(stamp) {
                    return Ok(None);
                }
                if stamp.1 > FILE_MAX {
                    return Err(FactError::malformed(what, format!("is longer than {FILE_MAX} bytes")));
                }
                let keys = KeySet::parse(&what, &std::fs::read(path).map_err(unreadable)?)?;
                *seen = Some(stamp);
                Ok(Some(keys))
            }
            Origin::Url(url) => self.get(url).map(Some),
            Origin::Issuer(issuer) => {
                let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                let answer = self.client.get(&address, &[("accept", "application/json")])?;
                let described = discovered(&address, issuer, &answer.body)?;
                self.get(&described).map(Some)
            }
        }
    }

    fn get(&self, url: &str) -> Result<KeySet, FactError> {
        KeySet::parse(url, &self.client.get(url, &[("accept", "application/json")])?.body)
    }
}

/// The address of the keys, from an issuer's description of itself.
///
/// # Errors
/// If it describes another issuer, or names an address that anybody on the way could answer for.
pub fn discovered(what: &str, issuer: &str, json: &[u8]) -> Result<String, FactError> {
    #[derive(Deserialize)]
    struct Description {
        issuer: String,
        jwks_uri: String,
    }
    let description: Description = serde_json::from_slice(json)
        .map_err(|error| FactError::malformed(what, format!("is no OpenID configuration ({error})")))?;
    if description.issuer != issuer {
        return Err(FactError::untrusted(what, format!("describes another issuer than `{issuer}`")));
    }
    if !is_protected(&description.jwks_uri) {
        return Err(FactError::untrusted(what, "names an address for its keys that is not https"));
    }
    Ok(description.jwks_uri)
}
