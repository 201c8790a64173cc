//! Strict reading: every field is known, of the right type, and named in full when it is not.

use std::rc::Rc;

use crate::parse::PolicyError;
use crate::parse::yaml_tree::{Content, Node, Scalar};

pub(super) type Read<T> = Result<T, PolicyError>;

/// A value in a manifest, and how a person names it.
#[derive(Clone)]
pub(super) struct Place<'a> {
    /// `NetworkPolicy shop/web`.
    object: Rc<str>,
    /// `spec.ingress[0].from`; empty for the object itself.
    path: Rc<str>,
    node: &'a Node,
}

/// A mapping whose keys are all known.
pub(super) struct Fields<'a> {
    place: Place<'a>,
    entries: Vec<(&'a str, &'a Node)>,
}

/// A number, or a text that is not one.
pub(super) enum IntOrString<'a> {
    Int(i64),
    String(&'a str),
}

impl<'a> Place<'a> {
    pub fn of_object(object: &str, node: &'a Node) -> Self {
        Self { object: object.into(), path: "".into(), node }
    }

    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// `NetworkPolicy shop/web: spec.podSelector: …`, at the line and column of the value.
    pub fn error(&self, message: impl AsRef<str>) -> PolicyError {
        let path = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) };
        self.node.error(format!("{}: {path}{}", self.object, message.as_ref()))
    }

    /// The object's and the field's name, for notes.
    pub fn name(&self) -> String {
        format!("{} {}", self.object, self.path)
    }

    /// Line in the file, from 1.
    pub fn line(&self) -> u32 {
        self.node.location.line
    }

    /// Name of the file.
    pub fn file(&self) -> Rc<str> {
        Rc::from(&*self.node.location.file)
    }

    pub fn fields(&self, known: &[&str]) -> Read<Fields<'a>> {
        let fields = self.any_fields()?;
        for (key, node) in &fields.entries {
            if !known.contains(key) {
                let at = Self { node, ..self.step(key) };
                return Err(at.error(format!("unknown field: expected one of {}", known.join(", "))));
            }
        }
        Ok(fields)
    }

    /// Fields of an object of which only some matter.
    pub fn any_fields(&self) -> Read<Fields<'a>> {
        let Content::Map(pairs) = &self.node.content else {
            return Err(self.error(format!("found {}: expected a mapping", self.node.kind())));
        };
        let mut entries: Vec<(&str, &Node)> = Vec::new();
        for (key_node, value) in pairs {
            let key = match &key_node.content {
                Content::Scalar(scalar) if !scalar.plain || is_text(&scalar.text) => scalar.text.as_str(),
                _ => {
                    let key = Self { node: key_node, ..self.clone() };
                    return Err(key.error("found a key that is not a text: expected a name, in quotes if need be"));
                }
            };
            if entries.iter().any(|(seen, _)| *seen == key) {
                let at = Self { node: key_node, ..self.clone() };
                return Err(at.error(format!("`{key}` is given twice: expected each key once")));
            }
            entries.push((key, value));
        }
        Ok(Fields { place: self.clone(), entries })
    }

    pub fn list(&self) -> Read<Vec<Place<'a>>> {
        let Content::List(items) = &self.node.content else {
            return Err(self.error(format!("found {}: expected a list", self.node.kind())));
        };
        let item = |(index, node)| Self { path: format!("{}[{index}]", self.path).into(), node, ..self.clone() };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// A text. What YAML 1.1 takes for a number, a truth value or nothing is none, here as in an API server.
    pub fn string(&self) -> Read<&'a str> {
        let scalar = self.scalar()?;
        if scalar.plain && !is_text(&scalar.text) {
            return Err(self.error(format!("`{0}` is not a text: expected \"{0}\" in quotes", scalar.text)));
        }
        Ok(&scalar.text)
    }

    pub fn integer(&self) -> Read<i64> {
        match self.int_or_string()? {
            IntOrString::Int(number) => Ok(number),
            IntOrString::String(text) => Err(self.error(format!("found `{text}`: expected a number"))),
        }
    }

    pub fn int_or_string(&self) -> Read<IntOrString<'a>> {
        let scalar = self.scalar()?;
        match scalar.text.parse() {
            Ok(number) if scalar.plain && is_decimal(&scalar.text) => Ok(IntOrString::Int(number)),
            _ => self.string().map(IntOrString::String),
        }
    }

    /// A port number, 1 to 65535.
    pub fn port(&self) -> Read<u16> {
        let number = self.integer()?;
        self.as_port(number)
    }

    pub fn as_port(&self, number: i64) -> Read<u16> {
        match u16::try_from(number) {
            Ok(port @ 1..) => Ok(port),
            _ => Err(self.error(format!("found {number}: expected a port, 1 to 65535"))),
        }
    }

    /// True or false.
    pub fn flag(&self) -> Read<bool> {
        match self.scalar()? {
            Scalar { plain: true, text, .. } if text == "true" => Ok(true),
            Scalar { plain: true, text, .. } if text == "false" => Ok(false),
            scalar => Err(self.error(format!("found `{}`: expected true or false", scalar.text))),
        }
    }

    fn scalar(&self) -> Read<&'a Scalar> {
        match &self.node.content {
            Content::Scalar(scalar) if !scalar.is_null() => Ok(scalar),
            _ => Err(self.error(format!("found {}: expected a single value", self.node.kind()))),
        }
    }

    fn step(&self, key: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { path: format!("{}{dot}{key}", self.path).into(), ..self.clone() }
    }
}

impl<'a> Fields<'a> {
    /// The place itself.
    pub fn place(&self) -> &Place<'a> {
        &self.place
    }

    /// The value of a field; nothing if it is missing or null.
    pub fn get(&self, key: &str) -> Option<Place<'a>> {
        let (_, node) = self.entries.iter().find(|(found, _)| *found == key)?;
        match &node.content {
            Content::Scalar(scalar) if scalar.is_null() => None,
            _ => Some(Place { node, ..self.place.step(key) }),
        }
    }

    pub fn require(&self, key: &str) -> Read<Place<'a>> {
        self.get(key).ok_or_else(|| self.place.error(format!("without `{key}`: expected that field")))
    }

    /// The items of a list; none if the field is missing or null.
    pub fn items(&self, key: &str) -> Read<Vec<Place<'a>>> {
        self.get(key).map_or(Ok(Vec::new()), |list| list.list())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Place<'a>)> {
        self.entries.iter().map(|(key, node)| (*key, Place { node, ..self.place.step(key) }))
    }

    /// The one field of a union that is set.
    pub fn only(&self, known: &[&'static str]) -> Read<(&'static str, Place<'a>)> {
        let mut set = known.iter().filter_map(|key| Some((*key, self.get(key)?)));
        match (set.next(), set.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(self.place.error(format!("expected exactly one of {}", known.join(", ")))),
        }
    }
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits == "0" || (!digits.starts_with('0') && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// False for what YAML 1.1, as `kubectl` reads it, takes for something else than a text.
fn is_text(text: &str) -> bool {
    const WORDS: [&str; 11] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "~", ""];
    let lower = text.to_ascii_lowercase();
    let unsigned = lower.trim_start_matches(['-', '+']);
    let number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') && {
        let plain = unsigned.replace('_', "");
        plain.parse::<f64>().is_ok()
            || matches!(plain.as_str(), ".inf" | ".nan")
            || ["0x", "0o", "0b"].iter().any(|prefix| {
                plain
                    .strip_prefix(prefix)
                    .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_hexdigit()))
            })
    };
    !WORDS.contains(&lower.as_str()) && !number
}

#[cfg(test)]
mod tests {
    use super::is_text;

    #[test]
    fn only_texts_are_texts() {
        for text in ["web", "v1", "1.2.3", "10.0.0.0/8", "::/0", "a", "yess", "2001-01-01", "1a", "0xzz", "inf"] {
            assert!(is_text(text), "{text}");
        }
        for other in ["1", "-1", "1.5", ".5", "1e3", "0x1F", "0b10", "1_000", "yes", "No", "ON", "true", "~", "", "y"] {
            assert!(!is_text(other), "{other}");
        }
    }
}
