use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A DNS name, or all names beneath one: `example.org`, `*.example.org`. In lower case, without the final dot.
///
/// `*.example.org` means names at any depth beneath `example.org`, but not `example.org` itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainPattern {
    /// Without the `*.`.
    name: Arc<str>,
    beneath: bool,
}

/// A text that is no domain pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a domain name: expected a name such as example.org, or *.example.org for all names beneath it")]
pub struct DomainError(String);

impl DomainPattern {
    /// True when `name` is meant; it must be in lower case and without the final dot.
    pub fn matches(&self, name: &str) -> bool {
        if !self.beneath {
            return name == &*self.name;
        }
        name.strip_suffix(&*self.name).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl FromStr for DomainPattern {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let bad = || DomainError(text.to_owned());
        let (beneath, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let label = |label: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            (1..=63).contains(&label.len())
                && label.chars().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // A name of digits alone is a mistyped address.
        let numeric = name.split('.').next_back().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()));
        if name.len() > 253 || numeric || !name.split('.').all(label) {
            return Err(bad());
        }
        Ok(Self { name: name.into(), beneath })
    }
}

impl TryFrom<String> for DomainPattern {
    type Error = DomainError;

    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> String {
        pattern.to_string()
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One label alone is read as a name only with its dot.
        let dot = if self.beneath || self.name.contains('.') { "" } else { "." };
        write!(f, "{}{}{dot}", if self.beneath { "*." } else { "" }, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_means_whole_labels_beneath() {
        let pattern = |text: &str| text.parse::<DomainPattern>().unwrap();
        assert!(pattern("Example.org.").matches("example.org"));
        assert!(!pattern("example.org").matches("www.example.org"));
        for (name, expected) in [
            ("www.example.org", true),
            ("a.b.example.org", true),
            ("example.org", false),
            (".example.org", false),
            ("badexample.org", false),
            ("example.org.evil.net", false),
        ] {
            assert_eq!(pattern("*.example.org").matches(name), expected, "{name}");
        }
        for (text, printed) in
            [("*.Example.org", "*.example.org"), ("example.org.", "example.org"), ("intranet.", "intranet.")]
        {
            assert_eq!(pattern(text).to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a.".repeat(130);
        for text in [
            "",
            "*",
            "*.",
            "a..b",
            "-a.b",
            "a-.b",
            "10.0.0.1",
            "10.0.0.256",
            "a.*.b",
            "a b",
            "\u{e9}.fr",
            "1",
            long.as_str(),
        ] {
            assert!(text.parse::<DomainPattern>().is_err(), "{text:?}");
        }
    }
}
