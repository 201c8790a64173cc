//! Credentials: a Trust Profile, the certificate of the enforcer that states it, and its signature, as one packet's
//! payload.
//!
//! ```text
//! version (1) | certificate length (2) | profile length (2) | certificate, DER | profile, JSON | signature (64)
//! ```
//!
//! Lengths in network byte order; the three parts fill the credential exactly. The signature is ECDSA on P-256 with
//! SHA-256, fixed form, over a context string and everything before the signature.

use common::{identity::Credential, wire::CREDENTIAL_MAX};
use ring::{digest, rand::SystemRandom, signature::EcdsaKeyPair};

use super::{
    keys::OwnIdentity,
    profile::{ProfileError, Tags, TrustProfile},
    verify::CredentialError,
};

/// Version of the form.
pub const VERSION: u8 = 1;
/// Bytes before the certificate.
pub const HEADER_LEN: usize = 5;
/// Bytes of the signature.
pub const SIGNATURE_LEN: usize = 64;

const CONTEXT: &[u8] = b"enforcer trust profile v1\0";

/// A signed credential, ready to be attached to packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedCredential {
    bytes: Vec<u8>,
    hash: [u8; 32],
    expires: u64,
    epoch: u32,
}

/// Why a credential could not be prepared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The profile is malformed.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// It does not fit a packet.
    #[error(
        "the Trust Profile of `{pu}` is {over} bytes too large for one packet at MTU 1280; shorten or remove tags \
         (largest: {})",
        describe(largest)
    )]
    TooLarge {
        /// The PU.
        pu: String,
        /// By how many bytes.
        over: usize,
        /// The largest tags as `key=value` and what each takes in bytes, largest first.
        largest: Vec<(String, usize)>,
    },
    /// The profile is another enforcer's.
    #[error("the Trust Profile names the enforcer {0}, not this one")]
    OtherEnforcer(String),
    /// The signature failed.
    #[error("the signature could not be made")]
    Sign,
}

/// Signs `profile` as `own`.
///
/// # Errors
/// If the profile is malformed, another enforcer's, or too large; the size is judged with the longest handle, so that
/// a renewal cannot fail where the first one succeeded.
pub fn prepare(own: &OwnIdentity, profile: &TrustProfile) -> Result<PreparedCredential, PrepareError> {
    if profile.enforcer != *own.id() {
        return Err(PrepareError::OtherEnforcer(profile.enforcer.to_string()));
    }
    let json = profile.to_json()?;
    let certificate = own.certificate();
    let reserve = reserve(profile);
    let len = HEADER_LEN + certificate.len() + json.len() + SIGNATURE_LEN;
    let (Ok(certificate_len), Ok(json_len)) = (u16::try_from(certificate.len()), u16::try_from(json.len())) else {
        return Err(too_large(profile, len + reserve - CREDENTIAL_MAX));
    };
    if len + reserve > CREDENTIAL_MAX {
        return Err(too_large(profile, len + reserve - CREDENTIAL_MAX));
    }
    let bytes = assemble(certificate_len, certificate, json_len, json.as_bytes(), &own.key)?;
    Ok(PreparedCredential {
        hash: hash(&bytes),
        bytes,
        expires: profile.expires.min(own.not_after()),
        epoch: profile.prekey.epoch,
    })
}

/// Bytes that tags may take in the JSON of `profile`, whose own tags are not looked at.
///
/// # Errors
/// If the rest of the profile is malformed.
pub fn room_for_tags(own: &OwnIdentity, profile: &TrustProfile) -> Result<usize, PrepareError> {
    let bare = TrustProfile { tags: Tags::new(), ..profile.clone() }.to_json()?;
    let reserve = reserve(profile);
    let fixed = HEADER_LEN + own.certificate().len() + bare.len() + reserve + SIGNATURE_LEN;
    Ok(CREDENTIAL_MAX.saturating_sub(fixed))
}

/// Bytes by which a later profile of the same PU may be longer.
fn reserve(profile: &TrustProfile) -> usize {
    let longer = |longest: &str, now: u16| longest.len().saturating_sub(now.to_string().len());
    longer("65535", profile.handle) + longer("999", profile.issued_ms)
}

impl PreparedCredential {
    /// What is attached to packets.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its SHA-256.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// First four bytes of its SHA-256, for the option's index.
    pub fn hash_index(&self) -> u32 {
        hash_parts(&self.hash).0
    }

    /// The next eight bytes of its SHA-256, for the option's MAC.
    pub fn hash_mac(&self) -> u64 {
        hash_parts(&self.hash).1
    }

    /// End of its validity, Unix seconds.
    pub fn expires(&self) -> u64 {
        self.expires
    }

    /// Epoch of the prekey in it.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The value of the map `CREDENTIALS`.
    pub fn map_value(&self) -> Credential {
        let mut bytes = [0; CREDENTIAL_MAX + 4];
        // `prepare` keeps to the bound.
        bytes[..self.bytes.len()].copy_from_slice(&self.bytes);
        Credential {
            hash_index: self.hash_index(),
            len: self.bytes.len() as u32,
            hash_mac: self.hash_mac(),
            csum: checksum(&self.bytes),
            pad: 0,
            bytes,
        }
    }
}

/// One's-complement sum (RFC 1071) over native 32-bit words, as `bpf_csum_diff` returns it.
pub fn checksum(bytes: &[u8]) -> u32 {
    let sum: u64 = bytes
        .chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from(u32::from_ne_bytes(word))
        })
        .sum();
    let folded = (sum & 0xffff_ffff) + (sum >> 32);
    ((folded & 0xffff_ffff) + (folded >> 32)) as u32
}

/// The signed whole of parts whose lengths were judged.
fn assemble(
    certificate_len: u16,
    certificate: &[u8],
    profile_len: u16,
    profile: &[u8],
    key: &EcdsaKeyPair,
) -> Result<Vec<u8>, PrepareError> {
    let lengths = [certificate_len.to_be_bytes(), profile_len.to_be_bytes()].concat();
    let mut bytes = [&[VERSION], &lengths[..], certificate, profile].concat();
    let signature = key.sign(&SystemRandom::new(), &signed_part(&bytes)).map_err(|_| PrepareError::Sign)?;
    bytes.extend_from_slice(signature.as_ref());
    Ok(bytes)
}

/// A credential of any parts, for tests of the verifier.
#[cfg(test)]
pub(super) fn assemble_any(certificate: &[u8], profile: &[u8], key: &EcdsaKeyPair) -> Vec<u8> {
    assemble(certificate.len() as u16, certificate, profile.len() as u16, profile, key).unwrap()
}

/// The parts of a credential.
pub(super) struct Parts<'a> {
    pub(super) certificate: &'a [u8],
    pub(super) profile: &'a [u8],
    pub(super) signature: &'a [u8],
    /// What the signature covers, without the context.
    pub(super) covered: &'a [u8],
}

/// Takes a credential apart; any bytes are fine.
pub(super) fn split(bytes: &[u8]) -> Result<Parts<'_>, CredentialError> {
    let malformed = CredentialError::Malformed;
    if bytes.len() > CREDENTIAL_MAX {
        return Err(malformed("length of the credential"));
    }
    let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(malformed("header of the credential"))?;
    if header[0] != VERSION {
        return Err(malformed("version of the credential"));
    }
    let certificate_len = usize::from(u16::from_be_bytes([header[1], header[2]]));
    let profile_len = usize::from(u16::from_be_bytes([header[3], header[4]]));
    let (certificate, rest) = rest.split_at_checked(certificate_len).ok_or(malformed("length of the certificate"))?;
    let (profile, signature) = rest.split_at_checked(profile_len).ok_or(malformed("length of the Trust Profile"))?;
    if signature.len() != SIGNATURE_LEN {
        return Err(malformed("length of the signature"));
    }
    Ok(Parts { certificate, profile, signature, covered: &bytes[..bytes.len() - SIGNATURE_LEN] })
}

/// The bytes a signature is made of.
pub(super) fn signed_part(covered: &[u8]) -> Vec<u8> {
    [CONTEXT, covered].concat()
}

/// SHA-256.
pub(super) fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// The first twelve bytes of a hash as they stand in the option: index and MAC.
pub(super) fn hash_parts(hash: &[u8; 32]) -> (u32, u64) {
    let word = |range: std::ops::Range<usize>| hash[range].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    (word(0..4) as u32, word(4..12))
}

/// The second part of the hash of a credential.
pub(crate) fn hash_mac_of(bytes: &[u8]) -> u64 {
    hash_parts(&hash(bytes)).1
}

fn too_large(profile: &TrustProfile, over: usize) -> PrepareError {
    // In JSON a tag costs its quoted form and a comma.
    let cost = |tag: &String| serde_json::to_string(tag).map_or(tag.len(), |json| json.len() + 1);
    let mut largest: Vec<_> = profile.flat_tags().map(|tag| (cost(&tag), tag)).collect();
    largest.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    largest.truncate(3);
    let largest = largest.into_iter().map(|(bytes, tag)| (tag, bytes)).collect();
    PrepareError::TooLarge { pu: profile.pu.clone(), over, largest }
}

fn describe(largest: &[(String, usize)]) -> String {
    let shorten = |tag: &str| {
        let short: String = tag.chars().take(60).collect();
        if short.len() < tag.len() { short + "…" } else { short }
    };
    let tags: Vec<_> = largest.iter().map(|(tag, bytes)| format!("`{}` {bytes} bytes", shorten(tag))).collect();
    tags.join(", ")
}

#[cfg(test)]
#[path = "credential_tests.rs"]
mod tests;
