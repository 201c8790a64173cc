use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::error::{Fault, PolicyError};
use crate::model::Location;

/// A YAML node that knows where it was written.
pub(crate) struct Node {
    pub location: Location,
    pub content: Content,
}

pub(crate) enum Content {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

pub(crate) struct Scalar {
    pub text: String,
    /// Written without quotes or block marker.
    pub plain: bool,
    /// Where the text itself starts when it stands in the file as it is, in one piece.
    verbatim: Option<Location>,
}

impl Node {
    pub fn error(&self, message: impl Into<String>) -> PolicyError {
        PolicyError::at(&self.location, message.into())
    }

    /// What the node is, for errors.
    pub fn kind(&self) -> &'static str {
        match &self.content {
            Content::Scalar(scalar) if scalar.is_null() => "nothing",
            Content::Scalar(_) => "a scalar",
            Content::List(_) => "a list",
            Content::Map(_) => "a mapping",
        }
    }
}

impl Scalar {
    pub fn is_null(&self) -> bool {
        self.plain && matches!(self.text.as_str(), "" | "~" | "null")
    }

    /// Turns a mistake inside the scalar's text into one in the file.
    pub fn locate(&self, node: &Location, fault: Fault) -> PolicyError {
        let Some(start) = &self.verbatim else {
            return PolicyError::at(node, fault.message);
        };
        let (line, column) = fault.line_and_column(&self.text);
        PolicyError {
            file: start.file.clone(),
            line: start.line + line - 1,
            column: start.column + column - 1,
            message: fault.message,
        }
    }
}

/// Reads every document of a file.
pub(crate) fn documents(file: &Arc<str>, text: &str) -> Result<Vec<Node>, PolicyError> {
    Builder { file, lines: text.lines().collect(), open: Vec::new(), documents: Vec::new() }.run(text)
}

/// Deeper nesting than any policy has; without a bound, dropping the tree could exhaust the stack.
const MAX_DEPTH: usize = 32;

struct Builder<'a> {
    file: &'a Arc<str>,
    lines: Vec<&'a str>,
    open: Vec<Open>,
    documents: Vec<Node>,
}

/// A list or mapping whose end has not been seen.
struct Open {
    location: Location,
    is_map: bool,
    key: Option<Node>,
    items: Vec<Node>,
    entries: Vec<(Node, Node)>,
}

impl Builder<'_> {
    fn run(mut self, text: &str) -> Result<Vec<Node>, PolicyError> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| {
                PolicyError::at(
                    &self.location(error.marker()),
                    format!("not YAML: {}: expected a list of policies", error.info()),
                )
            })?;
            self.event(event, span)?;
        }
        Ok(self.documents)
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), PolicyError> {
        let location = self.location(&span.start);
        match event {
            Event::Alias(_) => Err(PolicyError::at(
                &location,
                "YAML aliases are not supported: expected the value itself (quote a text that starts with `*`)"
                    .to_owned(),
            )),
            Event::Scalar(_, _, _, Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                Err(PolicyError::at(
                    &location,
                    "YAML tags are not supported: expected a plain value (quote a text that starts with `!`)"
                        .to_owned(),
                ))
            }
            Event::Scalar(value, style, _, None) => {
                let scalar = Scalar {
                    verbatim: self.verbatim(&span.start, &value, style),
                    text: value.into_owned(),
                    plain: style == ScalarStyle::Plain,
                };
                self.push(Node { location, content: Content::Scalar(scalar) })
            }
            Event::SequenceStart(..) => self.open(location, false),
            Event::MappingStart(..) => self.open(location, true),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            _ => Ok(()),
        }
    }

    fn open(&mut self, location: Location, is_map: bool) -> Result<(), PolicyError> {
        if self.open.len() == MAX_DEPTH {
            return Err(PolicyError::at(
                &location,
                format!("nested more than {MAX_DEPTH} deep: expected a list of policies"),
            ));
        }
        self.open.push(Open { location, is_map, key: None, items: Vec::new(), entries: Vec::new() });
        Ok(())
    }

    fn close(&mut self) -> Result<(), PolicyError> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let content = match open.is_map {
            true => Content::Map(open.entries),
            false => Content::List(open.items),
        };
        self.push(Node { location: open.location, content })
    }

    fn push(&mut self, node: Node) -> Result<(), PolicyError> {
        let Some(parent) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        if !parent.is_map {
            parent.items.push(node);
        } else if let Some(key) = parent.key.take() {
            parent.entries.push((key, node));
        } else {
            parent.key = Some(node);
        }
        Ok(())
    }

    fn location(&self, marker: &Marker) -> Location {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Location { file: self.file.clone(), line: narrow(marker.line().max(1)), column: narrow(marker.col() + 1) }
    }

    /// Escapes, folding and indentation move text; only where the file holds the very text on one
    /// line can a column inside it be named.
    fn verbatim(&self, start: &Marker, value: &str, style: ScalarStyle) -> Option<Location> {
        let skip = match style {
            ScalarStyle::Plain => 0,
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => 1,
            ScalarStyle::Literal | ScalarStyle::Folded => return None,
        };
        let line = self.lines.get(start.line().checked_sub(1)?)?;
        let column = start.col() + skip;
        let (at, _) = line.char_indices().nth(column)?;
        let mut location = self.location(start);
        location.column += skip as u32;
        line[at..].starts_with(value).then_some(location)
    }
}
