//! Trust Profiles: what a PU is, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{id::EnforcerId, prekey::PublicPrekey};

/// Tags of a PU: key to set of values.
pub type Tags = BTreeMap<String, BTreeSet<String>>;

/// What a PU is, as its enforcer states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustProfile {
    /// The enforcer that states it; equals the name in its certificate.
    pub enforcer: EnforcerId,
    /// The PU's id, unique on its enforcer.
    pub pu: String,
    /// Handle of the PU in packets.
    pub handle: u16,
    /// Namespace, such as `/acme/prod`.
    pub namespace: String,
    /// Tags.
    pub tags: Tags,
    /// When it was issued, Unix seconds.
    pub issued: u64,
    /// Milliseconds beyond that: no two profiles of a PU were issued at the same time.
    pub issued_ms: u16,
    /// When it ends, Unix seconds.
    pub expires: u64,
    /// The enforcer's prekey at that time.
    pub prekey: PublicPrekey,
}

/// Why a profile is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not the JSON that was expected.
    #[error("Trust Profile is no valid JSON: {0}")]
    Json(String),
    /// A tag without key, or not of the form `key=value`.
    #[error("tag `{0}`: expected key=value without control characters")]
    Tag(String),
    /// A namespace that is no path.
    #[error("namespace `{0}`: expected `/`, or a path such as `/acme/prod`")]
    Namespace(String),
    /// A prekey that is not 32 bytes of base64url.
    #[error("prekey: expected 32 bytes in base64url")]
    Prekey,
    /// It ends before it begins.
    #[error("expires at {expires}, before it was issued ({issued})")]
    Times {
        /// Issue, Unix seconds.
        issued: u64,
        /// End, Unix seconds.
        expires: u64,
    },
}

/// The JSON form: short names (those of RFC 7519 where it has one), fixed order, sorted tags, so that equal profiles
/// are equal bytes. Unknown members are skipped, so that later versions may add some; types are strict.
#[derive(Serialize, Deserialize)]
struct Json {
    iss: EnforcerId,
    sub: String,
    ns: String,
    handle: u16,
    iat: u64,
    #[serde(default)]
    ms: u16,
    exp: u64,
    prekey: String,
    epoch: u32,
    tags: Vec<String>,
}

impl TrustProfile {
    /// The JSON that is signed.
    ///
    /// # Errors
    /// If a tag, the namespace or the times are malformed.
    pub fn to_json(&self) -> Result<String, ProfileError> {
        self.validate()?;
        let json = Json {
            iss: self.enforcer.clone(),
            sub: self.pu.clone(),
            ns: self.namespace.clone(),
            handle: self.handle,
            iat: self.issued,
            ms: self.issued_ms,
            exp: self.expires,
            prekey: URL_SAFE_NO_PAD.encode(self.prekey.key),
            epoch: self.prekey.epoch,
            tags: self.flat_tags().collect(),
        };
        serde_json::to_string(&json).map_err(|error| ProfileError::Json(error.to_string()))
    }

    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// If anything is missing, of another type or malformed.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ProfileError> {
        let json: Json = serde_json::from_slice(bytes).map_err(|error| ProfileError::Json(error.to_string()))?;
        let mut tags = Tags::new();
        for tag in &json.tags {
            let (key, value) = tag.split_once('=').ok_or_else(|| ProfileError::Tag(tag.clone()))?;
            tags.entry(key.into()).or_default().insert(value.into());
        }
        let key = URL_SAFE_NO_PAD.decode(&json.prekey).ok().and_then(|key| key.try_into().ok());
        let profile = Self {
            enforcer: json.iss,
            pu: json.sub,
            handle: json.handle,
            namespace: json.ns,
            tags,
            issued: json.iat,
            issued_ms: json.ms,
            expires: json.exp,
            prekey: PublicPrekey { key: key.ok_or(ProfileError::Prekey)?, epoch: json.epoch },
        };
        profile.validate()?;
        Ok(profile)
    }

    /// When it was issued, Unix milliseconds: later profiles of a PU have a larger one.
    pub fn issued_at_ms(&self) -> u64 {
        self.issued.saturating_mul(1000).saturating_add(self.issued_ms.into())
    }

    /// Each tag as `key=value`, sorted.
    pub fn flat_tags(&self) -> impl Iterator<Item = String> + '_ {
        self.tags.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")))
    }

    fn validate(&self) -> Result<(), ProfileError> {
        for (key, values) in &self.tags {
            let bad_key = key.is_empty() || key.contains('=') || key.chars().any(char::is_control);
            let bad_value = values.iter().find(|value| value.chars().any(char::is_control));
            if bad_key || bad_value.is_some() {
                return Err(ProfileError::Tag(format!("{key}={}", bad_value.map_or("", String::as_str))));
            }
        }
        let path = self.namespace.strip_prefix('/');
        let good = path.is_some_and(|path| path.is_empty() || path.split('/').all(|part| !part.is_empty()));
        if !good || self.namespace.chars().any(char::is_control) {
            return Err(ProfileError::Namespace(self.namespace.clone()));
        }
        if self.expires <= self.issued {
            return Err(ProfileError::Times { issued: self.issued, expires: self.expires });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn profile() -> TrustProfile {
        TrustProfile {
            enforcer: EnforcerId::new("acme", "h1").unwrap(),
            pu: "web-1".into(),
            handle: 7,
            namespace: "/acme/prod".into(),
            tags: [("user", "prod"), ("app", "web"), ("app", "api=2")].into_iter().fold(
                Tags::new(),
                |mut tags, (k, v)| {
                    tags.entry(k.into()).or_default().insert(v.into());
                    tags
                },
            ),
            issued: 100,
            issued_ms: 0,
            expires: 200,
            prekey: PublicPrekey { key: [9; 32], epoch: 4000 },
        }
    }

    #[test]
    fn form_is_stable() {
        assert_eq!(
            profile().to_json().unwrap(),
            r#"{"iss":"spiffe://acme/enforcer/h1","sub":"web-1","ns":"/acme/prod","handle":7,"iat":100,"ms":0,"exp":200,"prekey":"CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk","epoch":4000,"tags":["app=api=2","app=web","user=prod"]}"#
        );
    }

    #[test]
    fn unknown_members_are_skipped_types_are_strict() {
        let json = profile().to_json().unwrap();
        let more = json.replacen('{', r#"{"later":{"a":[1]},"#, 1);
        assert_eq!(TrustProfile::from_json(more.as_bytes()), Ok(profile()));
        for (from, to) in [
            (r#""handle":7"#, r#""handle":"7""#),
            (r#""handle":7"#, r#""handle":65536"#),
            (r#""iat":100"#, r#""iat":-100"#),
            (r#""iat":100"#, r#""iat":100.5"#),
            (r#""sub":"web-1""#, r#""sub":null"#),
            (r#""sub":"web-1","#, ""),
            (r#""sub":"web-1""#, r#""sub":"web-1","sub":"web-2""#),
            (r#"["app=api=2","#, r#"[["app=api=2"],"#),
        ] {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json);
            assert!(matches!(TrustProfile::from_json(changed.as_bytes()), Err(ProfileError::Json(_))), "{changed}");
        }
    }

    #[test]
    fn malformed_contents_are_named() {
        let with = |change: &dyn Fn(&mut TrustProfile)| {
            let mut profile = profile();
            change(&mut profile);
            profile.to_json()
        };
        let tag = |key: &str, value: &str| {
            with(&|p| {
                p.tags.insert(key.into(), [value.to_owned()].into());
            })
        };
        assert!(matches!(tag("", "v"), Err(ProfileError::Tag(_))));
        assert!(matches!(tag("a=b", "v"), Err(ProfileError::Tag(_))));
        assert!(matches!(tag("a", "v\n"), Err(ProfileError::Tag(_))));
        for namespace in ["", "acme", "//", "/acme/", "/a//b"] {
            assert!(
                matches!(with(&|p| p.namespace = namespace.into()), Err(ProfileError::Namespace(_))),
                "{namespace}"
            );
        }
        assert!(matches!(with(&|p| p.expires = 100), Err(ProfileError::Times { .. })));
        let json = profile().to_json().unwrap();
        let short = json.replacen("CQk", "", 1);
        assert_eq!(TrustProfile::from_json(short.as_bytes()), Err(ProfileError::Prekey));
        let tagless = json.replacen("app=web", "app", 1);
        assert_eq!(TrustProfile::from_json(tagless.as_bytes()), Err(ProfileError::Tag("app".into())));
    }

    proptest! {
        #[test]
        fn any_profile_round_trips(
            pu in "\\PC{0,20}", handle: u16, issued in 0..u64::MAX / 2, life in 1..u64::MAX / 2, key: [u8; 32], epoch: u32,
            tags in proptest::collection::btree_map("[^=\\pC]{1,8}", proptest::collection::btree_set("\\PC{0,8}", 1..3), 0..5),
        ) {
            let profile = TrustProfile {
                pu, handle, issued, expires: issued + life, prekey: PublicPrekey { key, epoch }, tags, ..profile()
            };
            let json = profile.to_json().unwrap();
            prop_assert_eq!(TrustProfile::from_json(json.as_bytes()), Ok(profile));
        }

        #[test]
        fn any_bytes_are_judged_without_panic(bytes: Vec<u8>) {
            let _ = TrustProfile::from_json(&bytes);
        }
    }
}
