//! From text to rules: single lines and YAML files.

mod cut;
mod entry;
pub(crate) mod error;
mod files;
mod lex;
mod line;
mod yaml;
pub(crate) mod yaml_tree;

use std::sync::Arc;

pub use error::{PolicyError, PolicyErrors};
pub use files::ParsedFiles;

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
    ParsedFiles::default().parse(files).map(|parsed| parsed.rules().to_vec())
}

fn in_text(file: &str, text: &str, fault: Fault) -> PolicyError {
    let (line, column) = fault.line_and_column(text);
    PolicyError { file: file.into(), line, column, message: fault.message }
}
