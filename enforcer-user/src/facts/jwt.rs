//! JSON Web Tokens (RFC 7519), signed (RFC 7515, compact form), verified as RFC 8725 advises.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{FactError, jwks::KeySet};

/// Longest token, bytes.
pub const TOKEN_MAX: usize = 16 << 10;

/// Keys of one kind that are tried for a token that names none.
const TRIED_MAX: usize = 8;

/// What is asked of a token beside its signature.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// What errors call it: never the token itself.
    pub what: &'a str,
    /// Exact `iss`; any of these.
    pub issuers: &'a [&'a str],
    /// Must be (among) `aud`.
    pub audience: &'a str,
    /// `typ` of the header, without regard to case or the prefix `application/`.
    pub kind: Option<&'a str>,
    /// How far the issuer's clock may be off.
    pub skew: Duration,
}

/// A token whose signature and frame are right.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// Everything it says.
    pub claims: Map<String, Value>,
    /// When it ends, Unix seconds, without skew.
    pub expires: u64,
}

/// The header; repeated members are errors, and none that names a key (`jwk`, `jku`, `x5c`, `x5u`) is looked at.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

/// The key a token says it is signed with, before anybody looked whether it is: only good to decide whether newer keys are
/// to be fetched.
pub fn claimed_key(token: &str) -> Option<String> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
    serde_json::from_slice::<Header>(&header).ok()?.kid
}

/// Verifies a token at `now`, Unix seconds.
///
/// # Errors
/// Says which check failed; never quotes the token.
pub fn verify(token: &str, keys: &KeySet, expected: &Expected<'_>, now: u64) -> Result<Verified, FactError> {
    let what = expected.what;
    let malformed = |problem: &str| FactError::malformed(what, problem);
    if token.len() > TOKEN_MAX {
        return Err(malformed(&format!("is longer than {TOKEN_MAX} bytes")));
    }
    let mut parts = token.split('.');
    let (Some(head), Some(body), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("is no signed JSON Web Token: expected three parts, header.claims.signature"));
    };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed("has a part that is no base64url"));
    let header: Header = serde_json::from_slice(&decode(head)?).map_err(|_| malformed("has a malformed header"))?;
    check_signature(what, &header, &token[..head.len() + 1 + body.len()], &decode(signature)?, keys)?;
    check_kind(expected, &header)?;
    let claims: Map<String, Value> =
        serde_json::from_slice(&decode(body)?).map_err(|_| malformed("has claims that are no JSON object"))?;
    let expires = check_claims(expected, &claims, now)?;
    Ok(Verified { claims, expires })
}

fn check_signature(
    what: &str,
    header: &Header,
    signed: &str,
    signature: &[u8],
    keys: &KeySet,
) -> Result<(), FactError> {
    let untrusted = |problem: String| FactError::untrusted(what, problem);
    if !matches!(header.alg.as_str(), "RS256" | "ES256" | "EdDSA") {
        let named: String = header.alg.chars().filter(|c| c.is_ascii_alphanumeric()).take(16).collect();
        return Err(untrusted(format!("is signed with `{named}`; only RS256, ES256 and EdDSA are accepted")));
    }
    // RFC 7515, section 4.1.11: what is not understood must be refused.
    if header.crit.is_some() {
        return Err(untrusted("demands an extension (`crit`) that is not supported".into()));
    }
    let mut tried = 0;
    for key in keys.candidates(&header.alg, header.kid.as_deref()).take(TRIED_MAX) {
        tried += 1;
        if key.verifies(signed.as_bytes(), signature) {
            return Ok(());
        }
    }
    Err(untrusted(match (tried, &header.kid) {
        (0, Some(id)) if keys.knows(id) => "names an algorithm that its key is not for".into(),
        (0, Some(_)) => "names a key that its issuer does not publish".into(),
        (0, None) => format!("names no key, and its issuer publishes none for {}", header.alg),
        _ => "has a wrong signature".into(),
    }))
}

fn check_kind(expected: &Expected<'_>, header: &Header) -> Result<(), FactError> {
    let Some(wanted) = expected.kind else { return Ok(()) };
    // RFC 7515, section 4.1.9: the prefix may be left out where there is no other slash.
    let short = |kind: &str| kind.to_ascii_lowercase().trim_start_matches("application/").to_owned();
    if header.typ.as_deref().map(short) == Some(short(wanted)) {
        return Ok(());
    }
    Err(FactError::untrusted(expected.what, format!("is not of type `{wanted}` (`typ` of its header)")))
}

/// When the token ends.
fn check_claims(expected: &Expected<'_>, claims: &Map<String, Value>, now: u64) -> Result<u64, FactError> {
    let what = expected.what;
    let untrusted = |problem: String| FactError::untrusted(what, problem);
    let issuer = claims.get("iss").and_then(Value::as_str);
    if !issuer.is_some_and(|issuer| expected.issuers.contains(&issuer)) {
        return Err(untrusted(format!("is not of the issuer {}", expected.issuers.join(" or "))));
    }
    let meant = match claims.get("aud") {
        Some(Value::String(audience)) => audience == expected.audience,
        Some(Value::Array(audiences)) => audiences.iter().any(|audience| audience == expected.audience),
        _ => false,
    };
    if !meant {
        return Err(untrusted(format!("is not meant for `{}` (`aud`)", expected.audience)));
    }
    let skew = expected.skew.as_secs();
    let expires = time(what, claims, "exp")?
        .ok_or_else(|| FactError::malformed(what, "has no end (`exp`); such tokens are not accepted"))?;
    if now >= expires.saturating_add(skew) {
        return Err(FactError::expired(what, format!("expired {} s ago", now - expires)));
    }
    for name in ["nbf", "iat"] {
        if let Some(begins) = time(what, claims, name)?
            && begins > now.saturating_add(skew)
        {
            return Err(FactError::expired(what, format!("is not valid for {} s yet (`{name}`)", begins - now)));
        }
    }
    Ok(expires)
}

/// A NumericDate (RFC 7519, section 2): seconds, perhaps with a fraction.
fn time(what: &str, claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, FactError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = value.as_u64().or_else(|| {
        let seconds = value.as_f64()?;
        (0.0..=9e15).contains(&seconds).then_some(seconds as u64)
    });
    seconds.map(Some).ok_or_else(|| FactError::malformed(what, format!("has a malformed time (`{name}`)")))
}

#[cfg(test)]
mod tests;
