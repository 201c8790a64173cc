//! Who an enforcer is and what it says of its PUs: authority, certificates, prekeys, Trust Profiles, session keys.
//!
//! Signing side: [`OwnIdentity`] (certificate and key), [`Prekeys`] and a [`TrustProfile`] become a
//! [`PreparedCredential`] by [`credential::prepare`]. Verifying side: [`Verifier::verify`] turns bytes from the
//! network into a [`VerifiedCredential`], which nothing else can make. Of both sides' prekeys
//! [`session_keys::derive`] makes the keys of a session.

mod cache;
mod chain;

pub mod ca;
pub mod credential;
pub mod id;
pub mod keys;
pub mod prekey;
pub mod profile;
pub mod session_keys;
pub mod verify;

pub use chain::{Anchors, AuthorityId};
pub use credential::PreparedCredential;
pub use id::EnforcerId;
pub use keys::OwnIdentity;
pub use prekey::{Prekeys, PublicPrekey};
pub use profile::{Tags, TrustProfile};
pub use session_keys::DirectionKeys;
pub use verify::{CredentialError, VerifiedCredential, Verifier};

#[cfg(test)]
pub(crate) mod test_support;
