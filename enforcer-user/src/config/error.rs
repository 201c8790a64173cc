//! Configuration errors that name file, line, column and key.

use std::{fmt, ops::Range, path::Path, path::PathBuf};

use toml::de::{DeTable, DeValue};

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line and column, both from 1; `None` if the file could not be read at all.
    pub place: Option<(usize, usize)>,
    /// The key, such as `datapath.max_flows`, if one is to blame.
    pub key: Option<String>,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(": ")?;
        if let Some(key) = &self.key {
            write!(f, "`{key}`: ")?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    pub(super) fn read(file: &Path, error: &std::io::Error) -> Self {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "; name the file with `--config FILE`",
            std::io::ErrorKind::PermissionDenied => "; run as root, or make the file readable",
            _ => "",
        };
        Self { file: file.into(), place: None, key: None, problem: format!("cannot read it: {}{hint}", plain(error)) }
    }

    /// An error found while parsing; `path` is how far the deserialiser had come.
    pub(super) fn syntax(file: &Path, source: &str, path: Option<&str>, error: &toml::de::Error) -> Self {
        let message = error.message().trim().replace('\n', "; ");
        let key = path.filter(|path| !matches!(*path, "" | ".")).map(str::to_owned);
        Self { file: file.into(), place: error.span().map(|span| place(source, span.start)), key, problem: message }
    }

    /// A well-formed value that makes no sense.
    pub(super) fn value(file: &Path, source: &str, key: &str, problem: String) -> Self {
        let place = span(source, key).map(|span| place(source, span.start));
        Self { file: file.into(), place, key: Some(key.into()), problem }
    }
}

/// The system's own words for an error, without Rust's "(os error 2)".
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Where the value of `key` stands; `None` if the file leaves it to its default. Entries of an array are named by number.
fn span(source: &str, key: &str) -> Option<Range<usize>> {
    let document = DeTable::parse(source).ok()?;
    let mut parts = key.split('.');
    let mut value = document.get_ref().get(parts.next()?)?;
    for part in parts {
        let inner = match value.get_ref() {
            DeValue::Table(table) => table.get(part),
            DeValue::Array(array) => part.parse().ok().and_then(|number: usize| array.get(number)),
            _ => None,
        };
        let Some(inner) = inner else { return Some(value.span()) };
        value = inner;
    }
    Some(value.span())
}

fn place(source: &str, offset: usize) -> (usize, usize) {
    let before = source.get(..offset).unwrap_or(source);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
