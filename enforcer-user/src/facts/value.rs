//! From JSON values to tags.

use serde_json::Value;

use crate::{identity::Tags, workload::tags::check_form};

use super::FactError;

/// Puts a claim under `key`: a string, number or truth value as it is, an array of those as a set. `null`, empty strings and
/// empty arrays give no tag.
///
/// # Errors
/// If it is an object, or holds what no tag may hold. `what` names the document in the error.
pub(super) fn insert(tags: &mut Tags, what: &str, key: &str, value: &Value) -> Result<(), FactError> {
    match value {
        Value::Null => Ok(()),
        Value::Array(values) => values.iter().try_for_each(|value| match value {
            Value::Array(_) => Err(no_tag(what, key, "holds an array within an array")),
            value => insert(tags, what, key, value),
        }),
        Value::String(text) => insert_text(tags, what, key, text),
        Value::Number(number) => insert_text(tags, what, key, &number.to_string()),
        Value::Bool(truth) => insert_text(tags, what, key, &truth.to_string()),
        Value::Object(_) => Err(no_tag(what, key, "is an object; name one of its members, such as `outer.inner`")),
    }
}

fn insert_text(tags: &mut Tags, what: &str, key: &str, text: &str) -> Result<(), FactError> {
    if text.is_empty() {
        return Ok(());
    }
    check_form(key, text).map_err(|error| no_tag(what, key, &format!("cannot be a tag: {error}")))?;
    tags.entry(key.into()).or_default().insert(text.into());
    Ok(())
}

fn no_tag(what: &str, key: &str, problem: &str) -> FactError {
    FactError::malformed(what, format!("`{key}` {problem}"))
}
