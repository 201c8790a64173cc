use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::model::Location;

/// Something in a policy text that is not as the language demands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct PolicyError {
    /// Name of the file.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What was found and what was expected.
    pub message: String,
}

/// All that is wrong with a set of policy files; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct PolicyErrors(Vec<PolicyError>);

/// A mistake at a byte offset of a rule's text, before it is known where that text stands.
#[derive(Debug)]
pub(crate) struct Fault {
    pub offset: usize,
    pub message: String,
}

impl PolicyError {
    pub(crate) fn at(location: &Location, message: String) -> Self {
        Self { file: location.file.clone(), line: location.line, column: location.column, message }
    }
}

impl PolicyErrors {
    /// `None` when there is nothing wrong.
    pub(crate) fn new(errors: Vec<PolicyError>) -> Option<Self> {
        (!errors.is_empty()).then_some(Self(errors))
    }

    /// The errors in the order of the files.
    pub fn iter(&self) -> impl Iterator<Item = &PolicyError> {
        self.0.iter()
    }
}

impl Fault {
    pub fn new(offset: usize, message: impl Into<String>) -> Self {
        Self { offset, message: message.into() }
    }

    /// Position in `text`, both from 1, the column in characters.
    pub fn line_and_column(&self, text: &str) -> (u32, u32) {
        let before = text.get(..self.offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before[start..].chars().count() + 1;
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (narrow(line), narrow(column))
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}
