//! `[oidc]`: whose user tokens are believed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::check::{Problem, between, ensure};
use crate::facts::http::{check_url, is_protected};

/// PEM bundle of authorities for https where Debian and most others have it.
pub(super) const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// `[oidc]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Oidc {
    /// Exact `iss` of the tokens; none are accepted without it.
    pub issuer: Option<String>,
    /// What must be among the `aud` of a token.
    pub audience: String,
    /// File or address of the issuer's keys; by default the issuer's own description names it.
    pub jwks: Option<String>,
    /// Claims that become `@user:CLAIM` tags; a dot leads into an object.
    pub claims: Vec<String>,
    /// What `typ` of a token's header must be, if anything.
    pub typ: Option<String>,
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

impl Default for Oidc {
    fn default() -> Self {
        Self {
            issuer: None,
            audience: "enforcer".into(),
            jwks: None,
            claims: ["sub", "email", "groups"].map(String::from).to_vec(),
            typ: None,
            clock_skew: Duration::from_secs(30),
            refresh: Duration::from_secs(3600),
            timeout: Duration::from_secs(5),
            ca: CA_BUNDLE.into(),
        }
    }
}

impl Oidc {
    pub(super) fn resolve(&mut self, base: &Path) {
        self.ca = base.join(&self.ca);
        if let Some(jwks) = &mut self.jwks {
            resolve_file(jwks, base);
        }
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        check_issuer("oidc", self.issuer.as_deref(), self.jwks.as_deref())?;
        ensure(!self.audience.is_empty(), "oidc.audience", || "must not be empty".into())?;
        ensure(!self.claims.is_empty(), "oidc.claims", || "must name at least one claim".into())?;
        for claim in &self.claims {
            let fits = !claim.is_empty() && !claim.chars().any(|c| c.is_control() || c.is_whitespace() || c == '=');
            ensure(fits, "oidc.claims", || format!("{claim:?} is no claim that a tag could be named after"))?;
        }
        check_times("oidc", self.clock_skew, self.refresh, self.timeout)
    }
}

/// An issuer of tokens, and where its keys are.
pub(super) fn check_issuer(section: &str, issuer: Option<&str>, jwks: Option<&str>) -> Result<(), Problem> {
    let (key, jwks_key) = (format!("{section}.issuer"), format!("{section}.jwks"));
    ensure(issuer.is_some() || jwks.is_none(), &jwks_key, || format!("is of no use without `{key}`"))?;
    if let (Some(issuer), None) = (issuer, jwks) {
        protected(&key, issuer)?;
    }
    ensure(issuer != Some(""), &key, || "must not be empty".into())?;
    match jwks.filter(|place| place.contains("://")) {
        Some(place) => protected(&jwks_key, place),
        None => Ok(()),
    }
}

/// What is said of an issuer's clock, and of the fetching of its keys.
pub(super) fn check_times(
    section: &str,
    clock_skew: Duration,
    refresh: Duration,
    timeout: Duration,
) -> Result<(), Problem> {
    between(&format!("{section}.clock_skew"), clock_skew, Duration::ZERO, Duration::from_secs(600))?;
    between(&format!("{section}.refresh"), refresh, Duration::from_secs(10), Duration::from_secs(24 * 3600))?;
    between(&format!("{section}.timeout"), timeout, Duration::from_millis(100), Duration::from_secs(60))
}

/// A relative path starts at the configuration's directory; an address stays what it is.
pub(super) fn resolve_file(place: &mut String, base: &Path) {
    if !place.contains("://")
        && let Some(path) = base.join(&*place).to_str()
    {
        *place = path.into();
    }
}

/// What keys are taken from must not be changed on its way.
pub(super) fn protected(key: &str, url: &str) -> Result<(), Problem> {
    check_url(url).map_err(|error| (key.to_owned(), error.to_string()))?;
    ensure(is_protected(url), key, || format!("{url:?} must be https, or on this very host"))
}
