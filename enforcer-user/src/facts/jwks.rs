//! JSON Web Key Sets (RFC 7517): the public keys of an issuer.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

use super::FactError;

/// Most keys of a set that are looked at.
const KEYS_MAX: usize = 256;

/// Keys that may sign tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// One key.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    id: Option<String>,
    public: Public,
}

/// What kind of key it is. It decides the algorithm: what the token says must agree with it, never the other way round.
#[derive(Clone, Debug, PartialEq)]
enum Public {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<BTreeSet<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a key set. Keys of kinds that are not used here (symmetric ones above all), or for another purpose than
    /// signatures, are left out, as RFC 7517, section 5, asks.
    ///
    /// # Errors
    /// If it is no key set, or no key of it can be used. `what` names it in the error.
    pub fn parse(what: &str, json: &[u8]) -> Result<Self, FactError> {
        let document: Document = serde_json::from_slice(json)
            .map_err(|error| FactError::malformed(what, format!("is no JSON Web Key Set ({error})")))?;
        let keys: Vec<Key> = document
            .keys
            .into_iter()
            .take(KEYS_MAX)
            .filter_map(|value| Key::from_jwk(serde_json::from_value(value).ok()?))
            .collect();
        if keys.is_empty() {
            let problem = "holds no key to verify RS256, ES256 or EdDSA with";
            return Err(FactError::malformed(what, problem));
        }
        Ok(Self { keys })
    }

    /// The keys that may have signed a token of this algorithm: those of that id, or, if it names none, all of that kind.
    pub fn candidates<'a>(&'a self, algorithm: &'a str, id: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        let fits = move |key: &&Key| id.is_none() || key.id.as_deref() == id;
        self.keys.iter().filter(fits).filter(move |key| key.algorithm() == algorithm)
    }

    /// Whether there is a key of this id, of whatever kind.
    pub fn knows(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Key {
    fn from_jwk(jwk: Jwk) -> Option<Self> {
        let decode = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let public = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", None) => Public::Rsa { n: decode(jwk.n)?, e: decode(jwk.e)? },
            ("EC", Some("P-256")) => {
                let (x, y) = (decode(jwk.x)?, decode(jwk.y)?);
                // SEC 1, section 2.3.3: an uncompressed point.
                (x.len() == 32 && y.len() == 32).then(|| Public::P256([&[4][..], &x, &y].concat()))?
            }
            ("OKP", Some("Ed25519")) => Public::Ed25519(decode(jwk.x).filter(|x| x.len() == 32)?),
            _ => return None,
        };
        let key = Self { id: jwk.kid, public };
        let for_signatures = jwk.purpose.is_none_or(|purpose| purpose == "sig")
            && jwk.key_ops.is_none_or(|operations| operations.contains("verify"))
            && jwk.alg.is_none_or(|algorithm| algorithm == key.algorithm());
        for_signatures.then_some(key)
    }

    /// The one algorithm this key is for.
    pub fn algorithm(&self) -> &'static str {
        match self.public {
            Public::Rsa { .. } => "RS256",
            Public::P256(_) => "ES256",
            Public::Ed25519(_) => "EdDSA",
        }
    }

    /// Whether `signature` over `message` is this key's.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.public {
            Public::Rsa { n, e } => RsaPublicKeyComponents { n, e }
                .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            Public::P256(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            Public::Ed25519(point) => {
                UnparsedPublicKey::new(&signature::ED25519, point).verify(message, signature).is_ok()
            }
        }
    }
}
