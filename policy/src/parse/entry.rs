//! Rules written on one line of a file, read without YAML; whatever could mean anything else is left to that.

use super::line;
use super::yaml::RULE_KEYS;
use crate::model::Rule;

/// The rule of an entry such as `  - web: allow app=web -> app=db`, and its column, from 1. `None` does not say that it is wrong.
pub(super) fn rule(entry: &str) -> Option<(u32, Rule)> {
    let line = entry.split('\n').next()?;
    let body = line.trim_start_matches(' ').strip_prefix("- ")?.trim_start_matches(' ');
    let column = u32::try_from(line.len() - body.len() + 1).ok()?;
    let body = body.trim_end_matches(' ');
    if !body.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return None;
    }
    let named = if body.starts_with(['"', '\'']) { None } else { body.split_once(": ") };
    let rule = match named {
        None => line::rule(scalar(body)?).ok()?,
        Some((name, value)) => {
            let value = scalar(value.trim_start_matches(' '))?;
            if !is_name(name) || !matches!(value.split_whitespace().next()?, "allow" | "deny" | "pass") {
                return None;
            }
            Rule { name: Some(name.to_owned()), ..line::rule(value).ok()? }
        }
    };
    Some((column, rule))
}

/// What a scalar on one line says, if it says just that.
fn scalar(text: &str) -> Option<&str> {
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            let inner = rest.strip_suffix(quote)?;
            return (!inner.contains([quote, '\\'])).then_some(inner);
        }
    }
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.contains('#')
        && !text.contains(": ")
        && !text.ends_with(':');
    plain.then_some(text)
}

/// Whether a plain text is the name of a rule to YAML and to us.
fn is_name(name: &str) -> bool {
    // As keys, YAML takes no longer ones.
    const LONGEST: usize = 128;
    name.len() <= LONGEST
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        && name != "null"
        && !RULE_KEYS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_line_needs_no_yaml() {
        for (entry, column, expected) in [
            ("  - web: allow a -> b log\n", 5, "web: allow a -> b log"),
            ("- allow a=\"x y\" -> b  \n# why\n", 3, "allow a=\"x y\" -> b"),
            ("-   1.a:  deny a -> b", 5, "1.a: deny a -> b"),
            (" - 'web: allow a -> b'\n\n", 4, "web: allow a -> b"),
            ("- web: \"allow a -> b\"\n", 3, "web: allow a -> b"),
        ] {
            let read = rule(entry).map(|(column, rule)| (column, rule.to_string()));
            assert_eq!(read, Some((column, expected.to_owned())), "{entry}");
        }
        for entry in [
            "- allow a -> b # why",
            "- \"allow a=\\\"x\\\" -> b\"",
            "- name: allow a -> b",
            "- null: allow a -> b",
            "- web: net",
            "- allow a -> b: c",
            "- allow \u{e9} -> b",
            "- {action: allow}",
        ] {
            assert!(rule(entry).is_none(), "{entry}");
        }
    }
}
