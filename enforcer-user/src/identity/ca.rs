//! The authority of a small installation: `enforcer ca init` and `enforcer ca issue`.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType, SerialNumber,
};
pub use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use ring::rand::SecureRandom;
use rustls_pki_types::CertificateDer;

use super::{
    id::{EnforcerId, IdError},
    keys,
};

/// File of the authority's certificate.
pub const CA_CERT: &str = "ca.crt";
/// File of the authority's private key.
pub const CA_KEY: &str = "ca.key";

/// Longest lifetime that is granted: what fits the four-digit years of X.509 with room to spare.
pub const LIFETIME_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file that would be written is there already.
    #[error("{} exists and is not overwritten: choose another directory, or move it away", .0.display())]
    Exists(PathBuf),
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The authority's files cannot be used.
    #[error(transparent)]
    Load(#[from] keys::LoadError),
    /// A name cannot be certified.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The authority's name is empty or too long.
    #[error("authority name `{0}`: use 1 to 64 characters")]
    Name(String),
    /// A lifetime of nothing or of more than [`LIFETIME_MAX`].
    #[error("lifetime of {0} s: use 1 second to 100 years")]
    Lifetime(u64),
    /// The certificate would outlive its authority.
    #[error("the certificate would outlive its authority, which ends in {0} s: choose a shorter lifetime")]
    Outlives(u64),
    /// The certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// What a certificate says; [`Default`] apart from the times is what enforcers get.
#[derive(Clone, Debug)]
pub struct IssueOptions {
    /// Common name of the subject.
    pub common_name: String,
    /// URI in the subject alternative name, if any.
    pub uri: Option<String>,
    /// DNS names in the subject alternative name.
    pub dns_names: Vec<String>,
    /// Start of validity, Unix seconds.
    pub not_before: u64,
    /// End of validity, Unix seconds.
    pub not_after: u64,
    /// Key usage; empty for none.
    pub key_usages: Vec<KeyUsagePurpose>,
    /// Extended key usage; empty for none.
    pub extended_key_usages: Vec<ExtendedKeyUsagePurpose>,
    /// Whether the certificate is an authority's.
    pub is_ca: bool,
}

impl IssueOptions {
    /// What the enforcer `id` gets, for `lifetime` from `now` (Unix seconds).
    pub fn for_enforcer(id: &EnforcerId, now: u64, lifetime: Duration) -> Self {
        Self {
            common_name: id.name().into(),
            uri: Some(id.as_str().into()),
            dns_names: Vec::new(),
            not_before: now,
            not_after: now.saturating_add(lifetime.as_secs()),
            key_usages: vec![KeyUsagePurpose::DigitalSignature],
            // Both, so that the same certificate serves as either end of TLS.
            extended_key_usages: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            is_ca: false,
        }
    }
}

/// A certificate and its key, PEM.
pub struct Issued {
    /// Certificate.
    pub cert_pem: String,
    /// Private key, PKCS #8.
    pub key_pem: zeroize::Zeroizing<String>,
}

/// An authority, loaded or new.
pub struct Authority {
    cert: CertificateDer<'static>,
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
    not_after: u64,
}

/// Makes an authority in `dir` (created 0700 if need be): [`CA_CERT`] and [`CA_KEY`], 0600.
///
/// # Errors
/// If either file exists (nothing is written then) or cannot be written (nothing is left behind then).
pub fn init(dir: &Path, name: &str, lifetime: Duration) -> Result<(), CaError> {
    let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
    refuse_existing(&[&cert_path, &key_path])?;
    let (authority, key_pem) = Authority::generate(name, unix_now(), lifetime)?;
    write_pair(dir, (&cert_path, &authority.cert_pem), (&key_path, &key_pem))
}

/// Issues a certificate to the enforcer `name` from the authority in `dir`: `NAME.crt` and `NAME.key` in `out`, 0600.
/// Returns both paths.
///
/// # Errors
/// As [`init`]; also if the name is not fit for a SPIFFE id or the authority ends earlier.
pub fn issue(
    dir: &Path,
    name: &str,
    out: &Path,
    lifetime: Duration,
    trust_domain: &str,
) -> Result<(PathBuf, PathBuf), CaError> {
    let id = EnforcerId::new(trust_domain, name)?;
    check_lifetime(lifetime)?;
    let authority = Authority::load(dir)?;
    let now = unix_now();
    let options = IssueOptions::for_enforcer(&id, now, lifetime);
    if options.not_after > authority.not_after {
        return Err(CaError::Outlives(authority.not_after.saturating_sub(now)));
    }
    issue_with(&authority, name, out, &options)
}

/// As [`issue`], with every property of the certificate chosen by the caller and none checked.
///
/// # Errors
/// If a file exists or cannot be written.
pub fn issue_with(
    authority: &Authority,
    file_name: &str,
    out: &Path,
    options: &IssueOptions,
) -> Result<(PathBuf, PathBuf), CaError> {
    let (cert_path, key_path) = (out.join(format!("{file_name}.crt")), out.join(format!("{file_name}.key")));
    refuse_existing(&[&cert_path, &key_path])?;
    let issued = authority.issue(options)?;
    write_pair(out, (&cert_path, &issued.cert_pem), (&key_path, &issued.key_pem))?;
    Ok((cert_path, key_path))
}

impl Authority {
    /// A new authority that exists in memory only, and its key as PEM.
    ///
    /// # Errors
    /// If name or lifetime are out of bounds.
    pub fn generate(name: &str, now: u64, lifetime: Duration) -> Result<(Self, zeroize::Zeroizing<String>), CaError> {
        if !(1..=64).contains(&name.chars().count()) || name.chars().any(char::is_control) {
            return Err(CaError::Name(name.into()));
        }
        check_lifetime(lifetime)?;
        let not_after = now.saturating_add(lifetime.as_secs());
        let mut params = params(name, now, not_after)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let key_pem = zeroize::Zeroizing::new(key.serialize_pem());
        let cert = params.self_signed(&key)?;
        let authority = Self {
            cert: cert.der().clone(),
            cert_pem: cert.pem(),
            issuer: Issuer::from_ca_cert_der(cert.der(), key)?,
            not_after,
        };
        Ok((authority, key_pem))
    }

    /// The authority whose files lie in `dir`. Where the certificate file holds several (rotation), the one that
    /// belongs to the key is used.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(dir: &Path) -> Result<Self, CaError> {
        let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
        let certs = keys::read_certificates(&cert_path)?;
        let key_der = keys::read_private_key(&key_path)?;
        let key = KeyPair::try_from(&key_der)
            .map_err(|error| keys::LoadError::new(&key_path, format!("not a usable PKCS #8 key: {error}")))?;
        for cert in certs {
            let facts = keys::facts(&cert).map_err(|problem| keys::LoadError::new(&cert_path, problem))?;
            if facts.public_key == key.public_key_raw() {
                let not_after = facts.window.not_after;
                let issuer = Issuer::from_ca_cert_der(&cert, key)?;
                return Ok(Self { cert_pem: pem_of(&cert), cert, issuer, not_after });
            }
        }
        Err(keys::LoadError::new(&key_path, format!("does not belong to any certificate in {}", cert_path.display()))
            .into())
    }

    /// The authority's certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.cert_pem
    }

    /// A certificate with a new P-256 key, as `options` say.
    ///
    /// # Errors
    /// If the options cannot be encoded.
    pub fn issue(&self, options: &IssueOptions) -> Result<Issued, CaError> {
        let mut params = params(&options.common_name, options.not_before, options.not_after)?;
        if let Some(uri) = &options.uri {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        for name in &options.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.key_usages = options.key_usages.clone();
        params.extended_key_usages = options.extended_key_usages.clone();
        if options.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem().into() })
    }
}

fn params(common_name: &str, not_before: u64, not_after: u64) -> Result<CertificateParams, CaError> {
    let time = |unix: u64| {
        // The last second of the year 9999 is the end of X.509's calendar (RFC 5280 section 4.1.2.5).
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(unix.min(253_402_300_799))
    };
    let mut serial = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut serial).map_err(|_| CaError::Random)?;
    // Positive and of constant length.
    serial[0] = serial[0] & 0x3f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = time(not_before);
    params.not_after = time(not_after);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn check_lifetime(lifetime: Duration) -> Result<(), CaError> {
    let in_bounds = lifetime >= Duration::from_secs(1) && lifetime <= LIFETIME_MAX;
    if in_bounds { Ok(()) } else { Err(CaError::Lifetime(lifetime.as_secs())) }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn pem_of(cert: &CertificateDer<'_>) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(cert);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

fn refuse_existing(paths: &[&Path]) -> Result<(), CaError> {
    // `symlink_metadata`, so that a dangling link counts as well.
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(CaError::Exists(path.to_path_buf())),
        None => Ok(()),
    }
}

fn write_pair(dir: &Path, cert: (&Path, &str), key: (&Path, &str)) -> Result<(), CaError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| CaError::Io {
        action: "create",
        path: dir.into(),
        source,
    })?;
    write_new(key.0, key.1)?;
    write_new(cert.0, cert.1).inspect_err(|_| {
        let _ = fs::remove_file(key.0);
    })
}

fn write_new(path: &Path, text: &str) -> Result<(), CaError> {
    let io = |action| move |source| CaError::Io { action, path: path.into(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|source| {
        if source.kind() == io::ErrorKind::AlreadyExists { CaError::Exists(path.into()) } else { io("create")(source) }
    })?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|source| {
        let _ = fs::remove_file(path);
        io("write")(source)
    })
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
