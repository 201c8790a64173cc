use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

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

impl Namespace {
    /// The root, `/`.
    pub fn root() -> Self {
        Self("/".into())
    }

    /// True when `other` is this namespace or lies beneath it.
    pub fn contains(&self, other: &Namespace) -> bool {
        self.is_root() || other.0.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The namespaces on the way from the root to this one, both included.
    pub fn path(&self) -> impl Iterator<Item = &str> {
        let deeper = self.0.match_indices('/').skip(1).map(|(at, _)| &self.0[..at]);
        let own = (!self.is_root()).then_some(&*self.0);
        std::iter::once("/").chain(deeper).chain(own)
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

impl Borrow<str> for Namespace {
    fn borrow(&self) -> &str {
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
    fn the_path_leads_from_the_root_down() {
        assert_eq!(ns("/").path().collect::<Vec<_>>(), ["/"]);
        assert_eq!(ns("/acme/prod/db").path().collect::<Vec<_>>(), ["/", "/acme", "/acme/prod", "/acme/prod/db"]);
    }

    #[test]
    fn malformed_namespaces_are_refused() {
        for text in ["", "acme", "/acme/", "//", "/a//b", "/a b"] {
            assert!(text.parse::<Namespace>().is_err(), "{text:?}");
        }
    }
}
