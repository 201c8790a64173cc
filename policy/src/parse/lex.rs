use std::fmt;

use super::error::Fault;
use crate::model::is_word_char;

/// A token and the bytes it was read from.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Letters without quotes: a keyword, key, value or port list.
    Word(String),
    /// Letters in quotes: never a keyword.
    Quoted(String),
    Equal,
    NotEqual,
    Bang,
    Open,
    Close,
    Comma,
    Pipe,
    Star,
    Arrow,
}

/// Cuts a rule's text into tokens.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Fault> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let start = text.len() - rest.len();
        if first.is_whitespace() {
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (kind, length) = token(rest, first).map_err(|(at, message)| Fault { offset: start + at, message })?;
        tokens.push(Token { kind, start, end: start + length });
        rest = &rest[length..];
    }
    Ok(tokens)
}

/// The token at the head of `rest` and its length; errors are relative to `rest`.
fn token(rest: &str, first: char) -> Result<(Kind, usize), (usize, String)> {
    let fixed = [
        ("->", Kind::Arrow),
        ("!=", Kind::NotEqual),
        ("=", Kind::Equal),
        ("!", Kind::Bang),
        ("(", Kind::Open),
        (")", Kind::Close),
        (",", Kind::Comma),
        ("|", Kind::Pipe),
        ("*", Kind::Star),
    ];
    for (text, kind) in fixed {
        if rest.starts_with(text) {
            return Ok((kind, text.len()));
        }
    }
    match first {
        '"' | '\'' => quoted(rest, first),
        c if is_word_char(c) => {
            let length = word_length(rest);
            Ok((Kind::Word(rest[..length].to_owned()), length))
        }
        c => Err((0, format!("unexpected character {c:?}: expected a word, or quotes around a value that holds it"))),
    }
}

fn word_length(rest: &str) -> usize {
    rest.char_indices()
        .find(|&(at, c)| !is_word_char(c) || rest[at..].starts_with("->"))
        .map_or(rest.len(), |(at, _)| at)
}

/// Single quotes hold their content as it is; in double quotes `\` starts an escape.
fn quoted(rest: &str, quote: char) -> Result<(Kind, usize), (usize, String)> {
    let mut value = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Ok((Kind::Quoted(value), at + 1));
        }
        if c != '\\' || quote == '\'' {
            value.push(c);
            continue;
        }
        let bad = || {
            let expected = r#"unknown escape: expected \", \\, \n, \t or \u{hex}"#;
            (at, expected.to_owned())
        };
        match chars.next().map(|(_, c)| c) {
            Some(c @ ('"' | '\\')) => value.push(c),
            Some('n') => value.push('\n'),
            Some('t') => value.push('\t'),
            Some('u') => {
                let body = rest[at..].strip_prefix("\\u{").ok_or_else(bad)?;
                let (hex, _) = body.split_once('}').ok_or_else(bad)?;
                let code = u32::from_str_radix(hex, 16).map_err(|_| bad())?;
                value.push(char::from_u32(code).ok_or_else(bad)?);
                // The brace, the digits and the closing brace.
                for _ in 0..hex.chars().count() + 2 {
                    chars.next();
                }
            }
            _ => return Err(bad()),
        }
    }
    Err((0, format!("quote is not closed: expected another {quote}")))
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{word}`"),
            Self::Quoted(text) => write!(f, "{text:?}"),
            Self::Equal => f.write_str("`=`"),
            Self::NotEqual => f.write_str("`!=`"),
            Self::Bang => f.write_str("`!`"),
            Self::Open => f.write_str("`(`"),
            Self::Close => f.write_str("`)`"),
            Self::Comma => f.write_str("`,`"),
            Self::Pipe => f.write_str("`|`"),
            Self::Star => f.write_str("`*`"),
            Self::Arrow => f.write_str("`->`"),
        }
    }
}
