//! Identities to look at policies with: a list with names, as people and agents give it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::model::{Identity, Namespace};

/// An identity and what to call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// For people.
    pub name: String,
    /// What policy judges.
    pub identity: Identity,
}

/// An entry of the list; fields that say nothing of identity are passed over.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    name: String,
    namespace: Namespace,
    #[serde(default)]
    tags: BTreeMap<String, Values>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(BTreeSet<String>),
}

impl Known {
    /// Reads a JSON list of objects with `name`, `namespace` and `tags` (each key with a value or a list of values), such
    /// as `enforcer pus --json` prints.
    ///
    /// # Errors
    /// If it is something else; the error names line and column.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, serde_json::Error> {
        let entries: Vec<Entry> = serde_json::from_str(text)?;
        Ok(entries.into_iter().map(Self::from).collect())
    }

    /// Leaves one of each identity, with all its names.
    pub fn merge(list: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut merged: Vec<Self> = Vec::new();
        let mut at: BTreeMap<String, usize> = BTreeMap::new();
        for known in list {
            let Ok(key) = serde_json::to_string(&known.identity) else { continue };
            match at.get(&key) {
                Some(&index) => {
                    let name = &mut merged[index].name;
                    if !known.name.is_empty() && !name.split(", ").any(|own| own == known.name) {
                        let comma = if name.is_empty() { "" } else { ", " };
                        name.push_str(comma);
                        name.push_str(&known.name);
                    }
                }
                None => {
                    at.insert(key, merged.len());
                    merged.push(known);
                }
            }
        }
        merged
    }
}

impl From<Entry> for Known {
    fn from(entry: Entry) -> Self {
        let values = |values| match values {
            Values::One(value) => BTreeSet::from([value]),
            Values::Many(values) => values,
        };
        let tags = entry.tags.into_iter().map(|(key, list)| (key, values(list))).collect();
        Self { name: entry.name, identity: Identity::Pu { namespace: entry.namespace, tags } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_identities_are_one_with_all_their_names() {
        let text = r#"[
            {"name": "a", "namespace": "/x", "tags": {"app": "web"}, "index": 7},
            {"name": "b", "namespace": "/x", "tags": {"app": ["web"]}},
            {"namespace": "/y"}
        ]"#;
        let known = Known::merge(Known::parse_list(text).unwrap());
        assert_eq!(known.iter().map(|known| known.name.as_str()).collect::<Vec<_>>(), ["a, b", ""]);
        assert_eq!(known[0].identity, Identity::pu("/x".parse().unwrap(), [("app", "web")]));
        assert!(Known::parse_list(r#"[{"namespace": "x"}]"#).unwrap_err().to_string().contains("malformed"));
    }
}
