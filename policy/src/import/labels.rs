//! Labels, and selectors of them.

use std::collections::{BTreeMap, BTreeSet};

use super::place::{Fields, Place, Read};
use crate::model::{Clause, Operator};

/// Labels of an object.
pub(super) type Labels = BTreeMap<String, String>;

/// The label every namespace has with its own name.
pub(super) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Demands that must all hold; none holds for everything.
#[derive(Clone, Debug)]
pub(super) struct LabelSelector(pub Vec<Clause>);

impl LabelSelector {
    pub fn all() -> Self {
        Self(Vec::new())
    }

    /// `matchLabels` and `matchExpressions`, which add up.
    pub fn read(place: &Place) -> Read<Self> {
        let fields = place.fields(&["matchLabels", "matchExpressions"])?;
        let mut clauses = Vec::new();
        if let Some(labels) = fields.get("matchLabels") {
            for (key, value) in read_labels(&labels)? {
                clauses.push(Clause { key, operator: Operator::Equals(value) });
            }
        }
        for expression in fields.items("matchExpressions")? {
            clauses.push(read_expression(&expression)?);
        }
        Ok(Self(clauses))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        let tags = labels.iter().map(|(key, value)| (key.clone(), BTreeSet::from([value.clone()]))).collect();
        self.0.iter().all(|clause| clause.matches(&tags))
    }
}

pub(super) fn read_labels(place: &Place) -> Read<Labels> {
    let mut labels = Labels::new();
    for (key, value) in place.any_fields()?.iter() {
        check_key(&value, key)?;
        let text = value.string()?;
        check_value(&value, text)?;
        labels.insert(key.to_owned(), text.to_owned());
    }
    Ok(labels)
}

fn read_expression(place: &Place) -> Read<Clause> {
    let fields = place.fields(&["key", "operator", "values"])?;
    let key_place = fields.require("key")?;
    let key = key_place.string()?;
    check_key(&key_place, key)?;
    let operator = fields.require("operator")?;
    let operator = match operator.string()? {
        "In" => Operator::In(values(&fields)?),
        "NotIn" => Operator::NotIn(values(&fields)?),
        "Exists" => without_values(&fields, Operator::Exists)?,
        "DoesNotExist" => without_values(&fields, Operator::NotExists)?,
        other => {
            return Err(operator.error(format!("found `{other}`: expected In, NotIn, Exists or DoesNotExist")));
        }
    };
    Ok(Clause { key: key.to_owned(), operator })
}

fn values(fields: &Fields) -> Read<Vec<String>> {
    let place = fields.require("values")?;
    let values = place.list()?;
    if values.is_empty() {
        return Err(place.error("found an empty list: expected at least one value"));
    }
    let read = |value: &Place| {
        let text = value.string()?;
        check_value(value, text)?;
        Ok(text.to_owned())
    };
    values.iter().map(read).collect()
}

fn without_values(fields: &Fields, operator: Operator) -> Read<Operator> {
    match fields.get("values") {
        Some(values) if !values.list()?.is_empty() => {
            Err(values.error("found values: expected none with Exists and DoesNotExist"))
        }
        _ => Ok(operator),
    }
}

/// A qualified name: letters, digits, `-`, `_`, `.`, at most 63, after an optional DNS name and `/`.
fn check_key(place: &Place, key: &str) -> Read<()> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let fine = prefix.is_none_or(is_dns_name) && !name.is_empty() && is_label_value(name);
    match fine {
        true => Ok(()),
        false => Err(place.error(format!("`{key}` is not a label's key: expected such as app.kubernetes.io/name"))),
    }
}

fn check_value(place: &Place, value: &str) -> Read<()> {
    match is_label_value(value) {
        true => Ok(()),
        false => Err(place.error(format!(
            "`{value}` is not a label's value: expected at most 63 letters, digits, `-`, `_` and `.`, the first and last a letter or digit"
        ))),
    }
}

fn is_label_value(text: &str) -> bool {
    let ends = |c: Option<u8>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
        && ends(text.bytes().next())
        && ends(text.bytes().last())
}

/// Lower-case letters, digits, `-` and `.`, at most 253: a DNS subdomain.
pub(super) fn is_dns_name(text: &str) -> bool {
    let part = |part: &str| {
        let ends = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        part.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
            && ends(part.bytes().next())
            && ends(part.bytes().last())
    };
    text.len() <= 253 && text.split('.').all(part)
}
