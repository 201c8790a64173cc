//! An issuer of tokens (RFC 7519), signed with Ed25519 (RFC 8037).

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

/// Name of its key.
const KEY: &str = "1";

/// An issuer with a key of its own.
pub struct Issuer(Ed25519KeyPair);

impl Issuer {
    /// One that nobody knows yet.
    pub fn new() -> Result<Self> {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).ok().context("a key")?;
        Ok(Self(Ed25519KeyPair::from_pkcs8(key.as_ref()).ok().context("a key")?))
    }

    /// Its key set (RFC 7517).
    pub fn keys(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": KEY, "use": "sig", "x": x}]}).to_string()
    }

    /// A token that claims this.
    pub fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": "EdDSA", "kid": KEY, "typ": "JWT"});
        let signed = [&header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}
