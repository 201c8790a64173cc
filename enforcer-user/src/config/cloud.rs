//! `[cloud]`: whether the cloud is asked what this host is.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    check::{Problem, between, ensure, not_empty},
    oidc::{CA_BUNDLE, protected, resolve_file},
};
use crate::facts::http::check_url;

/// `[cloud]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cloud {
    /// Whose metadata server is asked.
    pub provider: Provider,
    /// Where it is; the provider's well-known address by default.
    pub endpoint: Option<String>,
    /// Directory of the certificates that statements are verified with: of AWS `REGION.pem`, of Azure roots and
    /// intermediates.
    pub certificates: PathBuf,
    /// File or address of Google's keys.
    pub jwks: String,
    /// What the statement is asked for, and must be meant for (GCP).
    pub audience: String,
    /// Longest wait for each request.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How often the statement is fetched and verified anew.
    #[serde(with = "humantime_serde")]
    pub renew: Duration,
    /// PEM file of the authorities that are trusted for https.
    pub ca: PathBuf,
}

/// `cloud.provider`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Nobody is asked.
    #[default]
    None,
    /// Amazon EC2: instance identity document, IMDSv2.
    Aws,
    /// Google Compute Engine: instance identity token.
    Gcp,
    /// Azure: attested data.
    Azure,
}

impl Default for Cloud {
    fn default() -> Self {
        Self {
            provider: Provider::default(),
            endpoint: None,
            certificates: "/etc/enforcer/cloud".into(),
            jwks: "https://www.googleapis.com/oauth2/v3/certs".into(),
            audience: "enforcer".into(),
            timeout: Duration::from_secs(2),
            renew: Duration::from_secs(1800),
            ca: CA_BUNDLE.into(),
        }
    }
}

impl Cloud {
    pub(super) fn resolve(&mut self, base: &Path) {
        self.certificates = base.join(&self.certificates);
        self.ca = base.join(&self.ca);
        resolve_file(&mut self.jwks, base);
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        if let Some(endpoint) = &self.endpoint {
            check_url(endpoint).map_err(|error| ("cloud.endpoint".to_owned(), error.to_string()))?;
        }
        not_empty("cloud.certificates", &self.certificates)?;
        if self.jwks.contains("://") {
            protected("cloud.jwks", &self.jwks)?;
        }
        ensure(!self.jwks.is_empty(), "cloud.jwks", || "must not be empty".into())?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/".contains(c);
        ensure(!self.audience.is_empty() && self.audience.chars().all(plain), "cloud.audience", || {
            "must be letters, digits and -._~:/ only".into()
        })?;
        between("cloud.timeout", self.timeout, Duration::from_millis(100), Duration::from_secs(60))?;
        between("cloud.renew", self.renew, Duration::from_secs(1), Duration::from_secs(24 * 3600))
    }
}
