//! Verification of credentials. What comes out can be made in no other way.

use std::sync::Arc;

use common::{
    drop_reason::Reason,
    wire::{HELLO_COOKIE, OptionBytes},
};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;

use super::{
    cache::Cache,
    chain::{Anchors, AuthorityId, TrustedLeaf, UntrustedLeaf},
    credential::{hash, hash_parts, signed_part, split},
    id::EnforcerId,
    prekey::PublicPrekey,
    profile::TrustProfile,
};

/// Chains that are remembered: one a peer.
const CHAINS_MAX: usize = 4096;
/// Credentials that are remembered: one a PU of a peer.
const CREDENTIALS_MAX: usize = 8192;

/// A credential whose chain, signature, contents and times were found right.
#[derive(Debug)]
pub struct VerifiedCredential {
    profile: TrustProfile,
    hash: [u8; 32],
    // Kept for its window; also proves that there was one.
    leaf: Arc<TrustedLeaf>,
}

/// Why a credential was refused. Each is one [`Reason`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// It could not be taken apart.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The option's hash is another credential's.
    #[error("option and credential do not belong together")]
    Tampered,
    /// The signature over it is not by its certificate's key.
    #[error("wrong signature")]
    Signature,
    /// No chain to a trusted authority.
    #[error("untrusted certificate: {0}")]
    Untrusted(String),
    /// The certificate, or its authority's, has expired.
    #[error("certificate expired at {not_after}, now is {now} (Unix seconds)")]
    CertificateExpired {
        /// End of validity, Unix seconds.
        not_after: u64,
        /// Unix seconds.
        now: u64,
    },
    /// The certificate is from the future.
    #[error("certificate is valid from {not_before}, now is {now} (Unix seconds)")]
    CertificateNotYetValid {
        /// Start of validity, Unix seconds.
        not_before: u64,
        /// Unix seconds.
        now: u64,
    },
    /// The certificate is meant for something else.
    #[error("certificate usage: {0}")]
    CertificateUsage(String),
    /// The certificate names no enforcer, or one of another trust domain.
    #[error("certificate name: {0}")]
    CertificateName(String),
    /// Profile and certificate, or profile and packet, contradict each other.
    #[error("contradiction: {0}")]
    Mismatch(&'static str),
    /// The profile has expired.
    #[error("Trust Profile expired at {expires}, now is {now} (Unix seconds)")]
    Expired {
        /// End of validity, Unix seconds.
        expires: u64,
        /// Unix seconds.
        now: u64,
    },
    /// The profile is from the future.
    #[error("Trust Profile was issued at {issued}, now is {now} (Unix seconds)")]
    NotYetValid {
        /// Issue, Unix seconds.
        issued: u64,
        /// Unix seconds.
        now: u64,
    },
}

impl CredentialError {
    /// The reason under which this is counted and reported.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::HelloMalformed,
            Self::Tampered => Reason::HelloTampered,
            Self::Signature => Reason::CredentialSignature,
            Self::Untrusted(_) => Reason::ChainUntrusted,
            Self::CertificateExpired { .. } => Reason::CertificateExpired,
            Self::CertificateNotYetValid { .. } => Reason::CertificateNotYetValid,
            Self::CertificateUsage(_) => Reason::CertificateUsage,
            Self::CertificateName(_) => Reason::CertificateName,
            Self::Mismatch(_) => Reason::ProfileMismatch,
            Self::Expired { .. } => Reason::CredentialExpired,
            Self::NotYetValid { .. } => Reason::CredentialNotYetValid,
        }
    }
}

/// How many credentials were answered from where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifierStats {
    /// Known as a whole: no signature was checked.
    pub credential_hits: u64,
    /// Known certificate: one signature was checked.
    pub chain_hits: u64,
    /// Unknown: two signatures were checked.
    pub misses: u64,
}

/// Verifies credentials and remembers those that were right.
pub struct Verifier {
    anchors: Anchors,
    trust_domain: String,
    skew: u64,
    chains: Cache<[u8; 32], Arc<TrustedLeaf>>,
    credentials: Cache<[u8; 32], Arc<VerifiedCredential>>,
    stats: VerifierStats,
}

impl Verifier {
    /// Trusts `anchors` for the enforcers of `trust_domain`, with clocks that differ by up to `skew` seconds.
    pub fn new(anchors: Anchors, trust_domain: &str, skew: u64) -> Self {
        Self {
            anchors,
            trust_domain: trust_domain.into(),
            skew,
            chains: Cache::new(CHAINS_MAX),
            credentials: Cache::new(CREDENTIALS_MAX),
            stats: VerifierStats::default(),
        }
    }

    /// Trusts others from now on; forgets all that was verified.
    pub fn set_anchors(&mut self, anchors: Anchors) {
        self.anchors = anchors;
        self.forget();
    }

    /// Forgets all that was verified.
    pub fn forget(&mut self) {
        self.chains.clear();
        self.credentials.clear();
    }

    /// Whether this authority is trusted.
    pub fn trusts(&self, authority: &AuthorityId) -> bool {
        self.anchors.contains(authority)
    }

    /// Permitted difference of clocks, seconds.
    pub fn skew(&self) -> u64 {
        self.skew
    }

    /// How often memory served.
    pub fn stats(&self) -> VerifierStats {
        self.stats
    }

    /// Verifies the credential of a HELLO: option and credential must belong together.
    ///
    /// # Errors
    /// As [`Self::verify`]; [`CredentialError::Tampered`] before any signature is checked.
    pub fn verify_hello(
        &mut self,
        option: &OptionBytes,
        bytes: &[u8],
        now: u64,
    ) -> Result<Arc<VerifiedCredential>, CredentialError> {
        let hash = hash(bytes);
        let (index, mac) = hash_parts(&hash);
        // In the place of the second part there may be a cookie: the kernel's matter.
        if index != option.index() || option.flags & HELLO_COOKIE == 0 && mac != option.mac() {
            return Err(CredentialError::Tampered);
        }
        let credential = self.verify_hashed(hash, bytes, now)?;
        credential.check_handle(option.handle())?;
        Ok(credential)
    }

    /// Verifies a credential at `now` (Unix seconds): form, signature, chain, contents, times, in this order, so that
    /// damage on the way shows as a wrong signature, whichever part it hit.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&mut self, bytes: &[u8], now: u64) -> Result<Arc<VerifiedCredential>, CredentialError> {
        self.verify_hashed(hash(bytes), bytes, now)
    }

    fn verify_hashed(
        &mut self,
        hash: [u8; 32],
        bytes: &[u8],
        now: u64,
    ) -> Result<Arc<VerifiedCredential>, CredentialError> {
        if let Some(known) = self.credentials.get(&hash) {
            // A certificate that ran out is looked at again: its authority may have been renewed.
            if known.leaf.window.check(now, self.skew).is_ok() {
                known.check_times(now, self.skew)?;
                self.stats.credential_hits += 1;
                return Ok(known.clone());
            }
        }
        let parts = split(bytes)?;
        let certificate = CertificateDer::from(parts.certificate);
        let signed_by = |public_key: &[u8]| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public_key)
                .verify(&signed_part(parts.covered), parts.signature)
                .map_err(|_| CredentialError::Signature)
        };
        let leaf_hash = self::hash(parts.certificate);
        let leaf = match self.known_leaf(&leaf_hash, now) {
            Some(leaf) => {
                signed_by(&leaf.public_key)?;
                self.stats.chain_hits += 1;
                leaf
            }
            None => {
                let leaf = UntrustedLeaf::parse(&certificate)?;
                signed_by(leaf.public_key())?;
                let leaf = Arc::new(leaf.trust(&self.anchors, &self.trust_domain, now, self.skew)?);
                self.chains.insert(leaf_hash, leaf.clone());
                self.stats.misses += 1;
                leaf
            }
        };
        let profile =
            TrustProfile::from_json(parts.profile).map_err(|_| CredentialError::Malformed("Trust Profile"))?;
        if profile.enforcer != leaf.id {
            return Err(CredentialError::Mismatch("the Trust Profile names another enforcer than the certificate"));
        }
        let credential = Arc::new(VerifiedCredential { profile, hash, leaf });
        credential.check_times(now, self.skew)?;
        self.credentials.insert(hash, credential.clone());
        Ok(credential)
    }

    /// Verifies a certificate alone; returns the enforcer it names.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify_certificate(&mut self, der: &[u8], now: u64) -> Result<EnforcerId, CredentialError> {
        let certificate = CertificateDer::from(der);
        let leaf = UntrustedLeaf::parse(&certificate)?;
        leaf.trust(&self.anchors, &self.trust_domain, now, self.skew).map(|leaf| leaf.id)
    }

    fn known_leaf(&self, hash: &[u8; 32], now: u64) -> Option<Arc<TrustedLeaf>> {
        self.chains.get(hash).filter(|leaf| leaf.window.check(now, self.skew).is_ok()).cloned()
    }
}

impl VerifiedCredential {
    /// The enforcer that signed it, as its certificate names it.
    pub fn enforcer(&self) -> &EnforcerId {
        &self.leaf.id
    }

    /// The authority that vouched for that enforcer.
    pub fn authority(&self) -> &AuthorityId {
        &self.leaf.authority
    }

    /// The Trust Profile.
    pub fn profile(&self) -> &TrustProfile {
        &self.profile
    }

    /// The enforcer's prekey.
    pub fn prekey(&self) -> PublicPrekey {
        self.profile.prekey
    }

    /// SHA-256 of the credential.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Until when its PU may be taken at its word, Unix seconds: end of profile, certificate, authority or prekey,
    /// whichever comes first.
    pub fn valid_until(&self) -> u64 {
        self.profile.expires.min(self.leaf.window.not_after).min(self.profile.prekey.epoch.into())
    }

    /// Whether a packet with this handle may carry it.
    ///
    /// # Errors
    /// [`CredentialError::Mismatch`] if not.
    pub fn check_handle(&self, handle: u16) -> Result<(), CredentialError> {
        if self.profile.handle == handle {
            return Ok(());
        }
        Err(CredentialError::Mismatch("the packet's handle is not the Trust Profile's"))
    }

    fn check_times(&self, now: u64, skew: u64) -> Result<(), CredentialError> {
        let issued = self.profile.issued;
        if now.saturating_add(skew) < issued {
            return Err(CredentialError::NotYetValid { issued, now });
        }
        let expires = self.profile.expires.min(self.profile.prekey.epoch.into());
        if now >= expires.saturating_add(skew) {
            return Err(CredentialError::Expired { expires, now });
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
