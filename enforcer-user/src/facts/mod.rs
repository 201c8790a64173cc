//! Facts about PUs that somebody else vouches for: the cloud, an issuer of user tokens, plugins, a feed of vulnerabilities.
//!
//! Each has a pure half, from foreign bytes to [`Tags`](crate::identity::Tags) or a [`FactError`], and a half that fetches.
//! What is signed is verified by ring before a single tag comes of it; what cannot be verified gives no tag at all.

pub mod account;
pub mod board;
pub mod cloud;
pub mod cms;
mod error;
pub mod feed;
pub mod http;
pub mod jwks;
pub mod jwt;
pub mod keys;
pub mod plugin;
pub mod service;
#[cfg(test)]
mod test_support;
pub mod token;
mod value;

pub use error::{FactError, Fault};
pub use service::{Accounts, Claim, Facts};

/// Unix seconds.
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Base64 as metadata servers send it: standard alphabet, lines broken anywhere, padding or none.
pub(crate) fn loose_base64(what: &str, text: &[u8]) -> Result<Vec<u8>, FactError> {
    use base64::{
        Engine, alphabet,
        engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let compact: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    GeneralPurpose::new(&alphabet::STANDARD, config)
        .decode(compact)
        .map_err(|error| FactError::malformed(what, format!("is no base64 ({error})")))
}
