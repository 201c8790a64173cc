//! From text to rules: single lines and YAML files.

pub(crate) mod error;
mod lex;
mod line;
mod yaml;
pub(crate) mod yaml_tree;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub use error::{PolicyError, PolicyErrors};

use crate::model::{PolicyRule, Rule, Side};
use error::Fault;

/// Parses one rule line, such as `allow app=web -> app=db tcp/5432 log`.
pub fn parse_rule(text: &str) -> Result<Rule, PolicyError> {
    line::rule(text).map_err(|fault| in_text("<rule>", text, fault))
}

/// Parses one side of a rule: a selector, `any`, or `net …`.
pub fn parse_side(text: &str) -> Result<Side, PolicyError> {
    line::side(text).map_err(|fault| in_text("<selector>", text, fault))
}

/// Parses a policy file; `file` is only used to name it in errors. Reports every faulty rule.
pub fn parse_file(file: &str, text: &str) -> Result<Vec<Arc<PolicyRule>>, PolicyErrors> {
    parse_files([(file, text)])
}

/// Parses several policy files, given as (name, text). Rule names must be unique among them all.
pub fn parse_files<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Arc<PolicyRule>>, PolicyErrors> {
    let mut rules = Vec::new();
    let mut errors = Vec::new();
    for (file, text) in files {
        yaml::file(file, text, &mut rules, &mut errors);
    }
    let mut seen: HashMap<(&str, &str), &PolicyRule> = HashMap::new();
    for rule in &rules {
        let Some(name) = &rule.rule().name else {
            continue;
        };
        if let Some(first) = seen.insert((rule.policy(), name), rule) {
            errors.push(PolicyError::at(
                rule.location(),
                format!(
                    "rule name `{}` is already taken at {}: expected a name that is unique within the policy",
                    rule.full_name(),
                    first.location()
                ),
            ));
        }
    }
    let mut ordered: HashMap<(&str, &str), &PolicyRule> = HashMap::new();
    let mut told = HashSet::new();
    for rule in rules.iter().filter(|rule| rule.tier().is_ordered()) {
        let first = ordered.entry((rule.namespace().as_str(), rule.policy())).or_insert(rule);
        if !Arc::ptr_eq(first.head(), rule.head()) && told.insert(Arc::as_ptr(rule.head())) {
            errors.push(PolicyError::at(
                rule.location(),
                format!(
                    "policy `{}` of the tier {} is given twice, first at {}: expected another name, so that the order of its rules is clear",
                    rule.policy(),
                    rule.tier().name(),
                    first.location()
                ),
            ));
        }
    }
    match PolicyErrors::new(errors) {
        Some(errors) => Err(errors),
        None => Ok(rules.into_iter().map(Arc::new).collect()),
    }
}

fn in_text(file: &str, text: &str, fault: Fault) -> PolicyError {
    let (line, column) = fault.line_and_column(text);
    PolicyError { file: file.into(), line, column, message: fault.message }
}
