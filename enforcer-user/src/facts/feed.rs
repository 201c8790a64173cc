//! The vulnerability and reputation feed: what is known of images and binaries, by digest, becomes `@feed:*` tags.
//!
//! `docs/feed.schema.json` describes the files.

mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Deserializer, Serialize};

use super::{FactError, value};
use crate::identity::Tags;

pub use watch::{Reader, Refreshed, SourceState};

/// Version of the form that is read here.
const VERSION: u32 = 1;

/// Everything a feed says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Feed {
    images: HashMap<Sha256, Finding>,
    binaries: HashMap<Sha256, Finding>,
}

type Sha256 = [u8; 32];

/// What is known of one thing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finding {
    /// Ids of its vulnerabilities.
    pub cve: BTreeSet<String>,
    /// The worst severity.
    pub severity: Option<Severity>,
    /// The worst score, 0.0 to 10.0 (CVSS).
    pub score: Option<f64>,
    /// What it is suspected of.
    pub threat: BTreeSet<String>,
}

/// How bad; later is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Known to be none.
    None,
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
    /// Critical.
    Critical,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "$schema")]
    _schema: Option<String>,
    version: u32,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    image: Option<Digest>,
    binary: Option<Digest>,
    #[serde(default)]
    cve: BTreeSet<String>,
    severity: Option<Severity>,
    score: Option<f64>,
    #[serde(default)]
    threat: BTreeSet<String>,
}

/// `sha256:` and 64 hexadecimal digits.
struct Digest(Sha256);

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digest = text.starts_with("sha256:").then(|| digest(&text)).flatten();
        digest.map(Self).ok_or_else(|| serde::de::Error::custom("expected `sha256:` and 64 hexadecimal digits"))
    }
}

impl Feed {
    /// Reads one document.
    ///
    /// # Errors
    /// If it is malformed anywhere: nothing of it is taken then. `what` names it in the error.
    pub fn parse(what: &str, json: &[u8]) -> Result<Self, FactError> {
        let wrong = |problem: String| FactError::malformed(what, problem);
        let document: Document = serde_json::from_slice(json).map_err(|error| wrong(format!("is no feed: {error}")))?;
        if document.version != VERSION {
            return Err(wrong(format!("is of version {}; this enforcer reads version {VERSION}", document.version)));
        }
        let mut feed = Self::default();
        for (number, entry) in (1..).zip(document.entries) {
            let wrong = |problem: &str| wrong(format!("entry {number} {problem}"));
            let finding =
                Finding { cve: entry.cve, severity: entry.severity, score: entry.score, threat: entry.threat };
            if finding.score.is_some_and(|score| !(0.0..=10.0).contains(&score)) {
                return Err(wrong("has a score that is not between 0 and 10"));
            }
            // So that a tag that cannot be one is found here, and not when a PU meets it.
            finding.tags(what)?;
            let place = match (entry.image, entry.binary) {
                (Some(image), None) => feed.images.entry(image.0),
                (None, Some(binary)) => feed.binaries.entry(binary.0),
                _ => return Err(wrong("must have either `image` or `binary`")),
            };
            place.or_default().merge(&finding);
        }
        Ok(feed)
    }

    /// Adds what another document says: of one thing, the worst of both.
    pub fn merge(&mut self, other: &Self) {
        for (ours, theirs) in [(&mut self.images, &other.images), (&mut self.binaries, &other.binaries)] {
            for (digest, finding) in theirs {
                ours.entry(*digest).or_default().merge(finding);
            }
        }
    }

    /// Number of images and binaries it knows.
    pub fn len(&self) -> usize {
        self.images.len() + self.binaries.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it says of a PU with these tags: by its image's digest (`@container:digest`) and its executable's hash
    /// (`@sys:sha256`), together.
    pub fn tags(&self, pu: &Tags) -> Tags {
        let digests = |key: &str| pu.get(key).into_iter().flatten().filter_map(|value| digest(value));
        let found = digests("@container:digest")
            .filter_map(|digest| self.images.get(&digest))
            .chain(digests("@sys:sha256").filter_map(|digest| self.binaries.get(&digest)));
        let mut all = Finding::default();
        let mut known = false;
        for finding in found {
            known = true;
            all.merge(finding);
        }
        // Each finding was found to make tags when it was read.
        if known { all.tags("feed").unwrap_or_default() } else { Tags::new() }
    }
}

impl Finding {
    fn merge(&mut self, other: &Self) {
        self.cve.extend(other.cve.iter().cloned());
        self.threat.extend(other.threat.iter().cloned());
        self.severity = self.severity.max(other.severity);
        self.score = match (self.score, other.score) {
            (Some(ours), Some(theirs)) => Some(ours.max(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
    }

    fn tags(&self, what: &str) -> Result<Tags, FactError> {
        let mut tags = Tags::new();
        for cve in &self.cve {
            value::insert(&mut tags, what, "@feed:cve", &cve.as_str().into())?;
        }
        for threat in &self.threat {
            value::insert(&mut tags, what, "@feed:threat", &threat.as_str().into())?;
        }
        if let Some(severity) = self.severity {
            value::insert(&mut tags, what, "@feed:severity", &severity.name().into())?;
        }
        if let Some(score) = self.score {
            value::insert(&mut tags, what, "@feed:score", &format!("{score:.1}").into())?;
        }
        Ok(tags)
    }
}

/// A digest as tags have it, with `sha256:` before it or without.
fn digest(text: &str) -> Option<Sha256> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(digest)
}

/// By source, what it says; for [`Reader`].
type Documents = BTreeMap<String, Feed>;

#[cfg(test)]
mod tests;
