//! `[containerd.tokens]`: whose tokens of service accounts are believed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{Problem, ensure};
use super::oidc::{CA_BUNDLE, check_issuer, check_times, resolve_file};

/// `[containerd.tokens]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PodTokens {
    /// Exact `iss` of the tokens: the API server's `--service-account-issuer`. None are believed without it.
    pub issuer: Option<String>,
    /// What must be among the `aud` of a token; the issuer if left out, as with the API server's `--api-audiences`.
    pub audience: Option<String>,
    /// File or address of the issuer's keys; by default the issuer's own description names it.
    pub jwks: Option<String>,
    /// How far the issuer's clock may be off.
    #[serde(with = "humantime_serde")]
    pub clock_skew: Duration,
    /// How often keys are fetched from an address.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// Longest wait for that address.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// PEM file of the authorities that are trusted for https.
    pub ca: PathBuf,
}

impl Default for PodTokens {
    fn default() -> Self {
        Self {
            issuer: None,
            audience: None,
            jwks: None,
            clock_skew: Duration::from_secs(30),
            refresh: Duration::from_secs(3600),
            timeout: Duration::from_secs(5),
            ca: CA_BUNDLE.into(),
        }
    }
}

impl PodTokens {
    pub(super) fn resolve(&mut self, base: &Path) {
        self.ca = base.join(&self.ca);
        if let Some(jwks) = &mut self.jwks {
            resolve_file(jwks, base);
        }
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        const SECTION: &str = "containerd.tokens";
        check_issuer(SECTION, self.issuer.as_deref(), self.jwks.as_deref())?;
        ensure(self.audience.as_deref() != Some(""), "containerd.tokens.audience", || "must not be empty".into())?;
        ensure(self.issuer.is_some() || self.audience.is_none(), "containerd.tokens.audience", || {
            "is of no use without `containerd.tokens.issuer`".into()
        })?;
        check_times(SECTION, self.clock_skew, self.refresh, self.timeout)
    }
}
