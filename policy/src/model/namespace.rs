use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Identity;

/// A place in the hierarchy of namespaces, such as `/acme/prod`; the root is `/`.
///
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(Arc<str>);

/// A namespace that is not of the form `/` or `/a/b`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "namespace {0:?} is malformed: expected `/` or a path such as `/acme/prod`, without empty parts and without a trailing `/`"
)]
pub struct NamespaceError(String);

/// Whether a rule of namespace `rule` has a say in a connection from `subject` to `object`.
///
/// It does when its namespace is equal to, or an ancestor of, the namespace of at least one of
/// the PUs involved. External networks live in no namespace.
pub fn rule_applies(rule: &Namespace, subject: &Identity, object: &Identity) -> bool {
    [subject, object].into_iter().filter_map(Identity::namespace).any(|namespace| rule.contains(namespace))
}

impl Namespace {
    /// The root, `/`.
    pub fn root() -> Self {
        Self("/".into())
    }

    /// True when `other` is this namespace or lies beneath it.
    pub fn contains(&self, other: &Namespace) -> bool {
        self.is_root() || other.0.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// True for `/`.
    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// The namespace as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::root()
    }
}

impl FromStr for Namespace {
    type Err = NamespaceError;

    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        let well_formed = text == "/"
            || text.strip_prefix('/').is_some_and(|path| {
                path.split('/')
                    .all(|part| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control()))
            });
        if well_formed { Ok(Self(text.into())) } else { Err(NamespaceError(text.to_owned())) }
    }
}

impl TryFrom<String> for Namespace {
    type Error = NamespaceError;

    fn try_from(text: String) -> Result<Self, NamespaceError> {
        text.parse()
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> String {
        namespace.0.as_ref().to_owned()
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(text: &str) -> Namespace {
        text.parse().unwrap()
    }

    #[test]
    fn ancestors_contain_whole_components_only() {
        assert!(ns("/").contains(&ns("/acme")));
        assert!(ns("/acme").contains(&ns("/acme")));
        assert!(ns("/acme").contains(&ns("/acme/prod")));
        assert!(!ns("/acme").contains(&ns("/acme2")));
        assert!(!ns("/acme/prod").contains(&ns("/acme")));
    }

    #[test]
    fn malformed_namespaces_are_refused() {
        for text in ["", "acme", "/acme/", "//", "/a//b", "/a b"] {
            assert!(text.parse::<Namespace>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_rule_needs_one_pu_beneath_it() {
        let inside = Identity::pu(ns("/acme/prod"), [("a", "b")]);
        let outside = Identity::pu(ns("/other"), [("a", "b")]);
        assert!(rule_applies(&ns("/acme"), &inside, &outside));
        assert!(rule_applies(&ns("/acme"), &outside, &inside));
        assert!(!rule_applies(&ns("/acme"), &outside, &outside));
    }
}
