//! User tokens: what an issuer says of a person becomes `@user:*` tags of the session started with it.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::{
    FactError,
    http::Client,
    jwks::KeySet,
    jwt::{self, Expected, Verified},
    keys::{Keys, Origin},
    value,
};
use crate::{config::Oidc, identity::Tags};

/// What errors call a token.
const WHAT: &str = "user token";

/// The last second of the year 9999, the last that RFC 3339 can write.
const END_OF_TIME: u64 = 253_402_300_799;

/// Tag that tells when a session ends; a claim of this name is not one of the token's.
const EXPIRES: &str = "@user:expires";

/// The configured issuer, and its keys.
#[derive(Debug)]
pub struct Issuer {
    config: Oidc,
    keys: Keys,
}

/// A session that a token vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSession {
    /// `@user:CLAIM` for every configured claim the token has, and `@user:expires`.
    pub tags: Tags,
    /// When it ends, Unix seconds: with the token, and the configured skew.
    pub expires: u64,
}

impl Issuer {
    /// The issuer of the configuration; `None` if it names none.
    pub fn new(config: &Oidc) -> Option<Self> {
        let issuer = config.issuer.clone()?;
        let origin = Origin::new(issuer, config.jwks.as_deref());
        let client = Client { timeout: config.timeout, limit: 1 << 20, ca: config.ca.clone() };
        Some(Self { config: config.clone(), keys: Keys::new(origin, client, config.refresh) })
    }

    /// Verifies a token at `now`, Unix seconds; blocks while keys are fetched.
    ///
    /// # Errors
    /// Says which check failed; never quotes the token.
    pub fn session(&self, token: &str, now: u64) -> Result<UserSession, FactError> {
        let keys = self.keys.for_key(jwt::claimed_key(token).as_deref())?;
        session(token, &keys, &self.config, now)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.config.issuer.as_deref().unwrap_or_default()
    }

    /// Why the issuer's keys are not as fresh as they should be, if so.
    pub fn trouble(&self) -> Option<FactError> {
        self.keys.trouble()
    }
}

/// Verifies a token with these keys at `now`, Unix seconds.
///
/// # Errors
/// Says which check failed; never quotes the token.
pub fn session(token: &str, keys: &KeySet, config: &Oidc, now: u64) -> Result<UserSession, FactError> {
    let issuer = config.issuer.as_deref().ok_or_else(|| {
        FactError::configuration(WHAT, "no issuer is trusted; configure `oidc.issuer` and `oidc.audience`")
    })?;
    let expected = Expected {
        what: WHAT,
        issuers: &[issuer],
        audience: &config.audience,
        kind: config.typ.as_deref(),
        skew: config.clock_skew,
    };
    let Verified { claims, expires } = jwt::verify(token.trim(), keys, &expected, now)?;
    let mut tags = Tags::new();
    for name in &config.claims {
        if let Some(found) = claim(&claims, name) {
            value::insert(&mut tags, WHAT, &format!("@user:{name}"), found)?;
        }
    }
    if tags.is_empty() {
        let problem = format!("has none of the claims {} (`oidc.claims`)", config.claims.join(", "));
        return Err(FactError::malformed(WHAT, problem));
    }
    // Until the token is refused everywhere, the skew included.
    let expires = expires.saturating_add(config.clock_skew.as_secs()).min(END_OF_TIME);
    let end = UNIX_EPOCH.checked_add(Duration::from_secs(expires)).unwrap_or(UNIX_EPOCH);
    tags.insert(EXPIRES.into(), [humantime::format_rfc3339_seconds(end).to_string()].into());
    Ok(UserSession { tags, expires })
}

/// When the session of these `@user:*` tags ends, Unix seconds; `None` if they do not say so.
pub fn expires(tags: &Tags) -> Option<u64> {
    let mut ends = tags.get(EXPIRES)?.iter();
    let (Some(end), None) = (ends.next(), ends.next()) else { return None };
    let end = humantime::parse_rfc3339(end).ok()?;
    end.duration_since(UNIX_EPOCH).ok().map(|end| end.as_secs())
}

/// A claim by its name, or else by the path of a nested one, such as `realm_access.roles`.
fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).or_else(|| {
        let mut parts = name.split('.');
        let first = claims.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    })
}

#[cfg(test)]
mod tests;
