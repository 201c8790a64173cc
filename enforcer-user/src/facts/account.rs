//! Service accounts: what the API server's token, mounted into a pod by kubelet, says of that very pod.

use serde::Deserialize;

use super::{
    FactError,
    jwks::KeySet,
    jwt::{self, Expected},
};
use crate::config::PodTokens;

/// What errors call a token.
const WHAT: &str = "service account's token";

/// The pod that a token was found in, as the runtime tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its uid.
    pub uid: &'a str,
}

/// A service account that a token vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// When the token ends, Unix seconds, the configured skew included.
    pub expires: u64,
}

/// The claim of bound tokens (Kubernetes, `pkg/serviceaccount/claims.go`).
#[derive(Deserialize)]
struct Bound {
    namespace: String,
    pod: BoundPod,
    serviceaccount: BoundAccount,
}

#[derive(Deserialize)]
struct BoundPod {
    uid: String,
}

#[derive(Deserialize)]
struct BoundAccount {
    name: String,
}

/// Verifies a token with these keys at `now`, Unix seconds: it must be bound to this pod. One that was copied from another pod
/// proves nothing.
///
/// # Errors
/// Says which check failed; never quotes the token.
pub fn account(token: &str, keys: &KeySet, config: &PodTokens, pod: Pod<'_>, now: u64) -> Result<Account, FactError> {
    let issuer = config
        .issuer
        .as_deref()
        .ok_or_else(|| FactError::configuration(WHAT, "no issuer is trusted; configure `containerd.tokens.issuer`"))?;
    let audience = config.audience.as_deref().unwrap_or(issuer);
    let expected = Expected { what: WHAT, issuers: &[issuer], audience, kind: None, skew: config.clock_skew };
    let verified = jwt::verify(token.trim(), keys, &expected, now)?;
    let bound = verified.claims.get("kubernetes.io").cloned().unwrap_or_default();
    let bound: Bound = serde_json::from_value(bound)
        .map_err(|_| FactError::malformed(WHAT, "is bound to no pod (`kubernetes.io`)"))?;
    if (bound.namespace.as_str(), bound.pod.uid.as_str()) != (pod.namespace, pod.uid) {
        return Err(FactError::untrusted(WHAT, "is bound to another pod"));
    }
    let name = bound.serviceaccount.name;
    // A DNS subdomain, as the API server demands of it.
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(fits) {
        return Err(FactError::malformed(WHAT, "names no service account"));
    }
    let subject = format!("system:serviceaccount:{}:{name}", pod.namespace);
    if verified.claims.get("sub").and_then(serde_json::Value::as_str) != Some(subject.as_str()) {
        return Err(FactError::malformed(WHAT, "speaks for another than its subject (`sub`)"));
    }
    Ok(Account { name, expires: verified.expires.saturating_add(config.clock_skew.as_secs()) })
}

#[cfg(test)]
mod tests;
