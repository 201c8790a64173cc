//! What an enforcer loads at start: its certificate, its key, and whom it trusts.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    chain::Window,
    id::EnforcerId,
    verify::{CredentialError, Verifier},
};

/// A file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it and what to do.
    pub problem: String,
}

impl LoadError {
    pub(super) fn new(path: &Path, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into() }
    }
}

/// This enforcer's certificate and signing key.
pub struct OwnIdentity {
    id: EnforcerId,
    certificate: CertificateDer<'static>,
    pub(super) key: EcdsaKeyPair,
    window: Window,
}

impl OwnIdentity {
    /// Loads certificate and key, both PEM. Whether others will accept the certificate is [`Self::check`]'s matter.
    ///
    /// # Errors
    /// Names the file and what is wrong: unreadable, truncated, readable by all, not P-256, certificate of another
    /// key, certificate that names no enforcer.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, LoadError> {
        let mut certificates = read_certificates(certificate)?;
        if certificates.len() > 1 {
            let problem = format!(
                "holds {} certificates, expected the enforcer's alone: packets have no room for intermediates",
                certificates.len()
            );
            return Err(LoadError::new(certificate, problem));
        }
        // `read_certificates` never returns an empty list.
        let leaf = certificates.remove(0);
        Self::from_der(leaf, &read_private_key(key)?).map_err(|problem| match problem {
            OwnProblem::Certificate(problem) => LoadError::new(certificate, problem),
            OwnProblem::Key(problem) => LoadError::new(key, problem),
            OwnProblem::Mismatch => {
                LoadError::new(key, format!("is not the key of the certificate {}", certificate.display()))
            }
        })
    }

    /// As [`Self::load`], from PEM in memory.
    ///
    /// # Errors
    /// As [`Self::load`], without the files' names.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, LoadError> {
        let in_memory = Path::new("(memory)");
        let leaf = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| LoadError::new(in_memory, pem_problem(&error)))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| LoadError::new(in_memory, pem_problem(&error)))?;
        Self::from_der(leaf, &key).map_err(|problem| LoadError::new(in_memory, problem.to_string()))
    }

    fn from_der(leaf: CertificateDer<'static>, key: &PrivateKeyDer<'_>) -> Result<Self, OwnProblem> {
        let facts = facts(&leaf).map_err(OwnProblem::Certificate)?;
        let uri = facts.only_uri.ok_or_else(|| {
            OwnProblem::Certificate("names no enforcer (one spiffe:// URI as subject alternative name)".into())
        })?;
        let id = EnforcerId::parse(&uri).map_err(|error| OwnProblem::Certificate(error.to_string()))?;
        let PrivateKeyDer::Pkcs8(pkcs8) = key else {
            let problem = "is not in PKCS #8 form: convert it with `openssl pkcs8 -topk8 -nocrypt`";
            return Err(OwnProblem::Key(problem.into()));
        };
        let random = ring::rand::SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.secret_pkcs8_der(), &random)
            .map_err(|error| OwnProblem::Key(format!("is not a usable P-256 key ({error})")))?;
        if key.public_key().as_ref() != facts.public_key {
            return Err(OwnProblem::Mismatch);
        }
        Ok(Self { id, certificate: leaf, key, window: facts.window })
    }

    /// Whether peers that trust what `verifier` trusts will accept this certificate at `now` (Unix seconds).
    ///
    /// # Errors
    /// The very error a peer would meet.
    pub fn check(&self, verifier: &mut Verifier, now: u64) -> Result<(), CredentialError> {
        verifier.verify_certificate(&self.certificate, now).map(|_| ())
    }

    /// This enforcer's id, from its certificate.
    pub fn id(&self) -> &EnforcerId {
        &self.id
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// End of the certificate's validity, Unix seconds.
    pub fn not_after(&self) -> u64 {
        self.window.not_after
    }
}

impl fmt::Debug for OwnIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnIdentity({})", self.id)
    }
}

#[derive(Debug, thiserror::Error)]
enum OwnProblem {
    #[error("certificate: {0}")]
    Certificate(String),
    #[error("key: {0}")]
    Key(String),
    #[error("the key is not the certificate's")]
    Mismatch,
}

/// What this project asks of a certificate, read without judging it.
pub(super) struct Facts {
    pub(super) window: Window,
    /// Uncompressed point, for P-256; other keys as they are encoded.
    pub(super) public_key: Vec<u8>,
    pub(super) digital_signature: bool,
    pub(super) is_ca: bool,
    pub(super) only_uri: Option<String>,
}

/// Reads a certificate's facts, or says why it is none.
pub(super) fn facts(der: &[u8]) -> Result<Facts, String> {
    let (rest, cert) = X509Certificate::from_der(der).map_err(|error| format!("is no X.509 certificate ({error})"))?;
    if !rest.is_empty() {
        return Err("has bytes behind the certificate".into());
    }
    let seconds = |time: &x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let usage = cert.key_usage().map_err(|error| format!("has a malformed key usage ({error})"))?;
    let names = cert.subject_alternative_name().map_err(|error| format!("has a malformed name ({error})"))?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    Ok(Facts {
        window: Window {
            not_before: seconds(&cert.validity().not_before),
            not_after: seconds(&cert.validity().not_after),
        },
        public_key: cert.public_key().subject_public_key.data.to_vec(),
        digital_signature: usage.is_some_and(|usage| usage.value.digital_signature()),
        is_ca: cert.is_ca(),
        only_uri: match uris[..] {
            [uri] => Some(uri.into()),
            _ => None,
        },
    })
}

/// All certificates of a PEM file; at least one.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let bytes = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| LoadError::new(path, pem_problem(&error)))?;
    if certificates.is_empty() {
        return Err(LoadError::new(path, "holds no certificate: expected PEM `-----BEGIN CERTIFICATE-----`"));
    }
    Ok(certificates)
}

/// The one private key of a PEM file that others may not read.
pub(super) fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let bytes = zeroize::Zeroizing::new(read(path)?);
    let mode = fs::metadata(path).map_err(|error| LoadError::new(path, io_problem(&error)))?.mode();
    if mode & 0o007 != 0 {
        return Err(LoadError::new(path, format!("mode {:o} lets everybody use the key: chmod 600", mode & 0o777)));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        let problem = match error {
            rustls_pki_types::pem::Error::NoItemsFound => {
                "holds no private key: expected PEM `-----BEGIN PRIVATE KEY-----`".into()
            }
            error => pem_problem(&error),
        };
        LoadError::new(path, problem)
    })
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|error| LoadError::new(path, io_problem(&error)))
}

fn io_problem(error: &io::Error) -> String {
    format!("cannot be read: {error}")
}

fn pem_problem(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::NoItemsFound => "holds nothing of the expected kind".into(),
        Error::MissingSectionEnd { end_marker } => {
            format!("is truncated: `-----END {}-----` is missing", String::from_utf8_lossy(end_marker))
        }
        error => format!("is no valid PEM ({error})"),
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
