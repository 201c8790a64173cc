//! `[feed]`: what is known of images and binaries to be vulnerable or hostile.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    check::{Problem, between, ensure},
    oidc::{CA_BUNDLE, resolve_file},
};
use crate::facts::http::{check_url, is_protected};

/// `[feed]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Feed {
    /// Files, directories whose `*.json` are read, or addresses.
    pub sources: Vec<String>,
    /// How often addresses are asked.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// Longest wait for an address.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Longest file or answer, bytes.
    pub max_bytes: usize,
    /// PEM file of the authorities that are trusted for https.
    pub ca: PathBuf,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            refresh: Duration::from_secs(300),
            timeout: Duration::from_secs(10),
            max_bytes: 64 << 20,
            ca: CA_BUNDLE.into(),
        }
    }
}

impl Feed {
    pub(super) fn resolve(&mut self, base: &Path) {
        self.ca = base.join(&self.ca);
        self.sources.iter_mut().for_each(|source| resolve_file(source, base));
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        let key = "feed.sources";
        for source in &self.sources {
            if source.contains("://") {
                check_url(source).map_err(|error| (key.to_owned(), error.to_string()))?;
                ensure(is_protected(source), key, || format!("{source:?} must be https, or on this very host"))?;
            }
            ensure(!source.is_empty(), key, || "must not hold an empty path".into())?;
        }
        between("feed.refresh", self.refresh, Duration::from_secs(1), Duration::from_secs(24 * 3600))?;
        between("feed.timeout", self.timeout, Duration::from_millis(100), Duration::from_secs(300))?;
        ensure((1024..=1 << 30).contains(&self.max_bytes), "feed.max_bytes", || {
            "must be between 1024 and 1073741824".into()
        })
    }
}
