//! Google Compute Engine: the instance identity token (`format=full`), verified with Google's keys.

use serde_json::Value;

use super::{SKEW, Statement, required, tags};
use crate::facts::{
    FactError,
    http::Client,
    jwks::KeySet,
    jwt::{self, Expected},
    keys::Keys,
    value,
};

const WHAT: &str = "GCP instance identity token";

/// Members of `google.compute_engine` that become tags.
const MEMBERS: &[(&str, &str)] =
    &[("project_id", "account"), ("zone", "zone"), ("instance_id", "instance"), ("instance_name", "name")];

/// Fetches a token for `audience` and verifies it at `now`, Unix seconds.
///
/// # Errors
/// If it cannot be had or verified.
pub fn fetch(client: &Client, endpoint: &str, audience: &str, keys: &Keys, now: u64) -> Result<Statement, FactError> {
    let path = "computeMetadata/v1/instance/service-accounts/default/identity";
    let url = format!("{endpoint}/{path}?audience={audience}&format=full");
    let answer = client.get(&url, &[("metadata-flavor", "Google")])?;
    let token = std::str::from_utf8(&answer.body).map_err(|_| FactError::malformed(WHAT, "is no text"))?.trim();
    let keys = keys.for_key(jwt::claimed_key(token).as_deref())?;
    verify(token, audience, &keys, now)
}

/// Verifies a token at `now`, Unix seconds.
///
/// # Errors
/// If it is not Google's, not meant for `audience`, not of this time, or says nothing of an instance.
pub fn verify(token: &str, audience: &str, keys: &KeySet, now: u64) -> Result<Statement, FactError> {
    let issuers = &["https://accounts.google.com", "accounts.google.com"];
    let expected = Expected { what: WHAT, issuers, audience, kind: None, skew: SKEW };
    let verified = jwt::verify(token, keys, &expected, now)?;
    let instance = verified.claims.get("google").and_then(|google| google.get("compute_engine")).ok_or_else(|| {
        FactError::malformed(WHAT, "says nothing of an instance; it must be asked for with format=full")
    })?;
    required(WHAT, instance, "project_id")?;
    required(WHAT, instance, "instance_id")?;
    let mut tags = tags(WHAT, "gcp", instance, MEMBERS)?;
    // A zone is its region and a letter: europe-west1-b.
    if let Some((region, _)) = instance.get("zone").and_then(Value::as_str).and_then(|zone| zone.rsplit_once('-')) {
        value::insert(&mut tags, WHAT, "@cloud:region", &region.into())?;
    }
    if let Some(account) = verified.claims.get("email") {
        value::insert(&mut tags, WHAT, "@cloud:serviceaccount", account)?;
    }
    Ok(Statement { tags, expires: Some(verified.expires) })
}
