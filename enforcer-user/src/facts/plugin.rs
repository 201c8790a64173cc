//! Plugins: executables that are given a PU as JSON and answer tags as JSON.
//!
//! `docs/facts.md` says what goes in and out. A plugin is believed what it says of plain keys, and nothing else: it runs as
//! an unprivileged user, without network, for a bounded time ([`sandbox`]).

pub mod sandbox;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FactError, Fault};
use crate::{
    config::Plugin,
    identity::Tags,
    workload::tags::{Sifted, sift},
};

/// Most tags of one answer.
const TAGS_MAX: usize = 256;

/// What a plugin is given.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Question<'a> {
    /// Version of this form; members are added without raising it.
    pub version: u32,
    /// The PU.
    pub pu: Subject<'a>,
}

/// The PU in question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Subject<'a> {
    /// Its id on this host.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// What it is made of: `cgroup PATH`, `command PATH` or `interface NAME`.
    pub target: &'a str,
    /// Its tags, without those of plugins.
    pub tags: &'a Tags,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    tags: BTreeMap<String, Values>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// Runs a plugin and reads its answer.
///
/// # Errors
/// If it cannot be run, does not end in time, fails, or answers anything but tags.
pub async fn ask(plugin: &Plugin, question: &Question<'_>) -> Result<Sifted, FactError> {
    let input = serde_json::to_vec(question)
        .map_err(|error| FactError::new(Fault::Configuration, what(&plugin.name), error.to_string()))?;
    let output = sandbox::run(plugin, &input).await?;
    parse(&plugin.name, &output)
}

/// Reads an answer: `{"tags": {"key": "value", "other": ["several", "values"]}}`. Keys that a plugin may not set are left
/// out and told of in the result.
///
/// # Errors
/// If it is anything else.
pub fn parse(name: &str, json: &[u8]) -> Result<Sifted, FactError> {
    let wrong = |problem: String| FactError::malformed(what(name), problem);
    let answer: Answer = serde_json::from_slice(json)
        .map_err(|error| wrong(format!("answers no {{\"tags\": {{\"key\": \"value\"}}}} ({error})")))?;
    let found: Vec<(String, String)> = answer
        .tags
        .into_iter()
        .flat_map(|(key, values)| {
            let values = match values {
                Values::One(value) => vec![value],
                Values::Many(values) => values,
            };
            values.into_iter().map(move |value| (key.clone(), value))
        })
        .collect();
    if found.len() > TAGS_MAX {
        return Err(wrong(format!("answers {} tags; at most {TAGS_MAX} are taken", found.len())));
    }
    Ok(sift(found))
}

fn what(name: &str) -> String {
    format!("plugin {name}")
}

#[cfg(test)]
mod tests;
