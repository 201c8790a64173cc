//! From a peer's certificate to a trusted authority.

use std::{path::Path, time::Duration};

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter};

use super::{
    id::EnforcerId,
    keys::{self, LoadError},
    verify::CredentialError,
};

/// A span of validity, Unix seconds, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) not_before: u64,
    pub(super) not_after: u64,
}

impl Window {
    /// Judges `now`, granting `skew` seconds at either end.
    pub(super) fn check(&self, now: u64, skew: u64) -> Result<(), CredentialError> {
        if now.saturating_add(skew) < self.not_before {
            return Err(CredentialError::CertificateNotYetValid { not_before: self.not_before, now });
        }
        if now > self.not_after.saturating_add(skew) {
            return Err(CredentialError::CertificateExpired { not_after: self.not_after, now });
        }
        Ok(())
    }

    fn within(&self, other: &Window) -> Window {
        Window { not_before: self.not_before.max(other.not_before), not_after: self.not_after.min(other.not_after) }
    }
}

/// Names an authority by its subject and key (SHA-256 over both), so that a renewed certificate of it is the same.
pub type AuthorityId = [u8; 32];

fn authority_id(anchor: &TrustAnchor<'_>) -> AuthorityId {
    let subject = anchor.subject.as_ref();
    let length = (subject.len() as u64).to_be_bytes();
    super::credential::hash(&[&length, subject, anchor.subject_public_key_info.as_ref()].concat())
}

/// The authorities that are trusted.
pub struct Anchors {
    // Same length and order.
    anchors: Vec<TrustAnchor<'static>>,
    windows: Vec<Window>,
}

impl Anchors {
    /// Loads a PEM file of one or more authorities' certificates (several during a rotation).
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::from_certificates(keys::read_certificates(path)?).map_err(|problem| LoadError::new(path, problem))
    }

    /// Trusts these certificates.
    ///
    /// # Errors
    /// If one of them is not an authority's; says which and why.
    pub fn from_certificates(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, String> {
        let (mut anchors, mut windows) = (Vec::new(), Vec::new());
        for (number, cert) in (1..).zip(certificates) {
            let facts = keys::facts(&cert).map_err(|problem| format!("certificate {number} {problem}"))?;
            let anchor = webpki::anchor_from_trusted_cert(&cert)
                .map_err(|error| format!("certificate {number} cannot be trusted ({error})"))?;
            if !facts.is_ca {
                return Err(format!("certificate {number} is not an authority's (basicConstraints CA is missing)"));
            }
            anchors.push(anchor.to_owned());
            windows.push(facts.window);
        }
        Ok(Self { anchors, windows })
    }

    /// How many authorities are trusted.
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Whether this authority is among them.
    pub fn contains(&self, authority: &AuthorityId) -> bool {
        self.anchors.iter().any(|anchor| authority_id(anchor) == *authority)
    }

    fn window_of(&self, anchor: &TrustAnchor<'_>) -> Option<&Window> {
        // The path refers into our own list; a look at the contents could confuse a renewed certificate with its
        // predecessor, which has the same name and key.
        self.anchors.iter().position(|own| std::ptr::eq(own, anchor)).map(|index| &self.windows[index])
    }
}

/// A certificate's key before anybody vouched for it: only good to check that whoever sent it holds the key.
pub(super) struct UntrustedLeaf<'a> {
    end_entity: EndEntityCert<'a>,
    facts: keys::Facts,
}

/// What a certificate says once a chain to an authority was verified.
#[derive(Debug)]
pub(super) struct TrustedLeaf {
    pub(super) id: EnforcerId,
    /// Uncompressed P-256 point.
    pub(super) public_key: Vec<u8>,
    /// Common validity of certificate and authority.
    pub(super) window: Window,
    /// Who vouched for it.
    pub(super) authority: AuthorityId,
}

impl<'a> UntrustedLeaf<'a> {
    pub(super) fn parse(der: &'a CertificateDer<'a>) -> Result<Self, CredentialError> {
        let end_entity = EndEntityCert::try_from(der).map_err(|_| CredentialError::Malformed("certificate"))?;
        let facts = keys::facts(der).map_err(|_| CredentialError::Malformed("certificate"))?;
        Ok(Self { end_entity, facts })
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.facts.public_key
    }

    /// Chain, usage, validity, name, in this order.
    pub(super) fn trust(
        self,
        anchors: &Anchors,
        trust_domain: &str,
        now: u64,
        skew: u64,
    ) -> Result<TrustedLeaf, CredentialError> {
        let window = self.facts.window;
        // Times are ours to judge, with skew and after everything else; the library gets one it cannot object to.
        let unix = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let time = unix(window.not_before);
        let acceptable = |path: &webpki::VerifiedPath<'_>| {
            let anchor = anchors.window_of(path.anchor()).ok_or(Error::UnknownIssuer)?;
            anchor.check(now, skew).map_err(|error| match error {
                CredentialError::CertificateNotYetValid { .. } => {
                    Error::CertNotValidYet { time, not_before: unix(anchor.not_before) }
                }
                _ => Error::CertExpired { time, not_after: unix(anchor.not_after) },
            })
        };
        let path = self
            .end_entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors.anchors,
                &[],
                time,
                EnforcerUsage,
                None,
                Some(&acceptable),
            )
            .map_err(|error| chain_error(&error, now))?;
        let anchor = anchors.window_of(path.anchor()).ok_or(CredentialError::Untrusted("unknown issuer".into()))?;
        let authority = authority_id(path.anchor());
        if !self.facts.digital_signature {
            return Err(CredentialError::CertificateUsage("key usage digitalSignature is missing".into()));
        }
        let window = window.within(anchor);
        window.check(now, skew)?;
        let uri = self.facts.only_uri.as_deref().unwrap_or("(none, or several)");
        let id = EnforcerId::parse(uri).map_err(|error| CredentialError::CertificateName(error.to_string()))?;
        if id.trust_domain() != trust_domain {
            let problem = format!("`{id}` belongs to another trust domain than `{trust_domain}`");
            return Err(CredentialError::CertificateName(problem));
        }
        Ok(TrustedLeaf { id, public_key: self.facts.public_key, window, authority })
    }
}

fn chain_error(error: &Error, now: u64) -> CredentialError {
    match error {
        // Only an authority's times get here.
        Error::CertExpired { not_after, .. } => {
            CredentialError::CertificateExpired { not_after: not_after.as_secs(), now }
        }
        Error::CertNotValidYet { not_before, .. } => {
            CredentialError::CertificateNotYetValid { not_before: not_before.as_secs(), now }
        }
        Error::RequiredEkuNotFoundContext(_)
        | Error::EmptyEkuExtension
        | Error::CaUsedAsEndEntity
        | Error::UnsupportedCriticalExtension => CredentialError::CertificateUsage(error.to_string()),
        error => CredentialError::Untrusted(error.to_string()),
    }
}

/// Both client and server authentication: an enforcer is either end.
struct EnforcerUsage;

impl ExtendedKeyUsageValidator for EnforcerUsage {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        const SERVER: KeyPurposeId<'_> = KeyPurposeId::new(&[43, 6, 1, 5, 5, 7, 3, 1]);
        const CLIENT: KeyPurposeId<'_> = KeyPurposeId::new(&[43, 6, 1, 5, 5, 7, 3, 2]);
        let (mut server, mut client) = (false, false);
        for purpose in purposes {
            let purpose = purpose?;
            server |= purpose == SERVER;
            client |= purpose == CLIENT;
        }
        if server && client { Ok(()) } else { Err(Error::EmptyEkuExtension) }
    }
}
