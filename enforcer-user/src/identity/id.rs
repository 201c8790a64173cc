//! Names of enforcers: `spiffe://TRUST-DOMAIN/enforcer/NAME`.

use std::{fmt, sync::Arc};

/// Longest trust domain and longest name, bytes; both together must leave room in a packet for tags.
pub const PART_MAX: usize = 100;

/// The SPIFFE id of an enforcer, as in the URI of its certificate. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnforcerId(Arc<str>);

/// Why a string is not the id of an enforcer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not of the form `spiffe://TRUST-DOMAIN/enforcer/NAME`.
    #[error("`{0}` is not of the form spiffe://TRUST-DOMAIN/enforcer/NAME")]
    Form(String),
    /// The trust domain has characters SPIFFE forbids, or a wrong length.
    #[error("trust domain `{0}`: use 1 to {PART_MAX} of a-z 0-9 . - _")]
    TrustDomain(String),
    /// The name has characters SPIFFE forbids, or a wrong length.
    #[error("enforcer name `{0}`: use 1 to {PART_MAX} of a-z A-Z 0-9 . - _, and not only dots")]
    Name(String),
}

impl EnforcerId {
    /// The id of enforcer `name` in `trust_domain`.
    ///
    /// # Errors
    /// If a part has characters that a SPIFFE id may not have, or a wrong length.
    pub fn new(trust_domain: &str, name: &str) -> Result<Self, IdError> {
        let common = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || b".-_".contains(&byte);
        if !(1..=PART_MAX).contains(&trust_domain.len()) || !trust_domain.bytes().all(common) {
            return Err(IdError::TrustDomain(trust_domain.into()));
        }
        let in_name = |byte: u8| common(byte) || byte.is_ascii_uppercase();
        let only_dots = name.bytes().all(|byte| byte == b'.');
        if !(1..=PART_MAX).contains(&name.len()) || only_dots || !name.bytes().all(in_name) {
            return Err(IdError::Name(name.into()));
        }
        Ok(Self(format!("spiffe://{trust_domain}/enforcer/{name}").into()))
    }

    /// The id written as `uri`.
    ///
    /// # Errors
    /// If it does not name an enforcer.
    pub fn parse(uri: &str) -> Result<Self, IdError> {
        let form = || IdError::Form(uri.chars().take(256).collect());
        let (trust_domain, name) = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
            .and_then(|(domain, path)| Some((domain, path.strip_prefix("enforcer/")?)))
            .ok_or_else(form)?;
        Self::new(trust_domain, name)
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        self.parts().0
    }

    /// The enforcer's name within its trust domain.
    pub fn name(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.strip_prefix("spiffe://").and_then(|rest| rest.split_once("/enforcer/")).unwrap_or((&self.0, &self.0))
    }
}

impl fmt::Display for EnforcerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EnforcerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for EnforcerId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for EnforcerId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_writes() {
        let id = EnforcerId::new("acme.example", "Host-1").unwrap();
        assert_eq!(id.as_str(), "spiffe://acme.example/enforcer/Host-1");
        assert_eq!((id.trust_domain(), id.name()), ("acme.example", "Host-1"));
        assert_eq!(EnforcerId::parse(id.as_str()), Ok(id));
    }

    #[test]
    fn refuses_other_names() {
        for uri in ["", "spiffe://", "https://a/enforcer/b", "spiffe://a/workload/b", "spiffe://a/x/enforcer/b"] {
            assert!(matches!(EnforcerId::parse(uri), Err(IdError::Form(_))), "{uri}");
        }
        for uri in
            ["spiffe://a/enforcer/", "spiffe://a/enforcer/b/c", "spiffe://a/enforcer/..", "spiffe://a/enforcer/ä"]
        {
            assert!(matches!(EnforcerId::parse(uri), Err(IdError::Name(_))), "{uri}");
        }
        assert!(matches!(EnforcerId::parse("spiffe:///enforcer/b"), Err(IdError::TrustDomain(_))));
        assert!(matches!(EnforcerId::parse("spiffe://A/enforcer/b"), Err(IdError::TrustDomain(_))));
        assert!(matches!(EnforcerId::new("a", &"b".repeat(PART_MAX + 1)), Err(IdError::Name(_))));
    }
}
