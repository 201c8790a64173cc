//! What the cloud says of this host, signed: `@cloud:*` tags of every PU here.

pub mod aws;
pub mod azure;
pub mod gcp;

use std::{path::Path, time::Duration};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;

use super::{
    FactError,
    http::Client,
    keys::{Keys, Origin},
    value,
};
use crate::{
    config::{Cloud, Provider},
    identity::Tags,
};

/// Where AWS, Azure and Google have their metadata server.
const LINK_LOCAL: &str = "http://169.254.169.254";

/// How far the cloud's clock may be off.
const SKEW: Duration = Duration::from_secs(60);

/// A verified statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// `@cloud:*`.
    pub tags: Tags,
    /// When it ends, Unix seconds, if it does.
    pub expires: Option<u64>,
}

/// Who is asked, and how.
#[derive(Debug)]
pub struct Source {
    config: Cloud,
    client: Client,
    keys: Keys,
}

impl Source {
    /// The provider of the configuration; `None` if there is none.
    pub fn new(config: &Cloud) -> Option<Self> {
        if config.provider == Provider::None {
            return None;
        }
        let origin = if config.jwks.contains("://") {
            Origin::Url(config.jwks.clone())
        } else {
            Origin::File(config.jwks.clone().into())
        };
        let client = Client { timeout: config.timeout, limit: 256 << 10, ca: config.ca.clone() };
        let keys = Keys::new(origin, client.clone(), Duration::from_secs(3600));
        Some(Self { config: config.clone(), client, keys })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self.config.provider {
            Provider::None => "none",
            Provider::Aws => "aws",
            Provider::Gcp => "gcp",
            Provider::Azure => "azure",
        }
    }

    /// Fetches a statement and verifies it at `now`, Unix seconds. Blocks for a few time-outs at most.
    ///
    /// # Errors
    /// If it cannot be had, or is not to be trusted.
    pub fn fetch(&self, now: u64) -> Result<Statement, FactError> {
        let endpoint = self.config.endpoint.as_deref().unwrap_or(LINK_LOCAL).trim_end_matches('/');
        match self.config.provider {
            Provider::None => Err(FactError::configuration("cloud", "no provider is configured (`cloud.provider`)")),
            Provider::Aws => aws::fetch(&self.client, endpoint, &self.config.certificates),
            Provider::Gcp => gcp::fetch(&self.client, endpoint, &self.config.audience, &self.keys, now),
            Provider::Azure => azure::fetch(&self.client, endpoint, &self.config.certificates, now),
        }
    }
}

/// A certificate the operator put on this host.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Name of its file without ending.
    pub name: String,
    /// DER.
    pub der: CertificateDer<'static>,
}

impl Certificate {
    /// A certificate in DER, and the name of what it stands for.
    pub fn new(name: &str, der: &[u8]) -> Self {
        Self { name: name.into(), der: der.to_vec().into() }
    }
}

/// All certificates in the `*.pem` and `*.crt` files of a directory.
///
/// # Errors
/// If the directory or a file of it cannot be read, or holds none.
pub fn read_certificates(directory: &Path) -> Result<Vec<Certificate>, FactError> {
    let problem = |path: &Path, problem: String| FactError::configuration(path.display().to_string(), problem);
    let unreadable = |error: std::io::Error| {
        problem(
            directory,
            format!("cannot be read: {error}; put the cloud's certificates there (`cloud.certificates`)"),
        )
    };
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .map_err(unreadable)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "pem" || ending == "crt"));
    files.sort();
    let mut certificates = Vec::new();
    for path in files {
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        let read: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
        let read = read.map_err(|error| problem(&path, format!("is no PEM file of certificates ({error})")))?;
        certificates.extend(read.into_iter().map(|der| Certificate { name: name.clone(), der }));
    }
    if certificates.is_empty() {
        return Err(problem(directory, "holds no certificate: expected `*.pem` or `*.crt` files".into()));
    }
    Ok(certificates)
}

/// Tags from the members of a verified document: pairs of member and key behind `@cloud:`.
fn tags(what: &str, provider: &str, document: &Value, members: &[(&str, &str)]) -> Result<Tags, FactError> {
    let mut tags = Tags::new();
    value::insert(&mut tags, what, "@cloud:provider", &provider.into())?;
    for (member, key) in members {
        if let Some(found) = document.get(member) {
            value::insert(&mut tags, what, &format!("@cloud:{key}"), found)?;
        }
    }
    Ok(tags)
}

/// A member that must be there, or the document is not what it says it is.
fn required<'a>(what: &str, document: &'a Value, member: &str) -> Result<&'a str, FactError> {
    let text = document.get(member).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| FactError::malformed(what, format!("lacks `{member}`")))
}

#[cfg(test)]
mod tests;
