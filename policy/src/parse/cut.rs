//! Policy files of the usual shape, cut at their rules without reading them: a change of one rule need not cost the reading
//! of all others. What is not of that shape is left to YAML as a whole.

/// A policy: what stands before its rules, and the text of each rule.
#[derive(Debug)]
pub(super) struct Policy<'a> {
    /// The lines up to and with `rules:`.
    pub head: &'a str,
    pub rules: Vec<Chunk<'a>>,
}

/// The lines of one entry in a list of rules, and the comments and empty lines behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk<'a> {
    pub text: &'a str,
    /// Line of the file, from 1.
    pub line: u32,
    /// What is not comment stands on one line.
    pub single: bool,
}

/// Cuts a file that is one mapping, or a list of mappings, with simple keys first and block lists of rules last. Its rules then mean
/// in their place what they mean alone.
pub(super) fn cut(text: &str) -> Option<Vec<Policy<'_>>> {
    // Other line ends, and what YAML takes for the end of the text.
    if text.bytes().any(|byte| matches!(byte, b'\r' | 0)) || text.starts_with('\u{feff}') {
        return None;
    }
    let mut cutter = Cutter { text, policies: Vec::new(), open: None, is_list: false, marked: false };
    let mut start = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        cutter.line(Line::new(line, start, u32::try_from(index + 1).ok()?)?)?;
        start += line.len();
    }
    cutter.close(start)?;
    Some(cutter.policies)
}

/// A line, without its indentation and end.
struct Line<'a> {
    content: &'a str,
    indent: usize,
    start: usize,
    end: usize,
    number: u32,
}

impl<'a> Line<'a> {
    fn new(line: &'a str, start: usize, number: u32) -> Option<Self> {
        let content = line.trim_start_matches(' ');
        let indent = line.len() - content.len();
        let content = content.trim_end_matches(['\n', ' ']);
        let is_plain = !content.starts_with('\t');
        is_plain.then_some(Self { content, indent, start, end: start + line.len(), number })
    }

    fn says_nothing(&self) -> bool {
        self.content.is_empty() || self.content.starts_with('#')
    }

    fn begins_entry(&self) -> bool {
        self.content == "-" || self.content.starts_with("- ")
    }
}

struct Cutter<'a> {
    text: &'a str,
    policies: Vec<Policy<'a>>,
    open: Option<Open<'a>>,
    is_list: bool,
    /// The start of the document was said.
    marked: bool,
}

/// A policy whose end has not been seen.
struct Open<'a> {
    /// Column of its keys, from 0.
    base: usize,
    /// Where it begins.
    start: usize,
    /// Its lines up to `rules:`, once that was seen.
    head: Option<&'a str>,
    list: List,
    rules: Vec<Chunk<'a>>,
    /// Where the last rule begins.
    rule: usize,
}

/// The list of rules.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    /// Not seen yet, or empty.
    Open,
    /// Its entries stand in this column, from 0.
    At(usize),
    /// `[]`
    Empty,
}

impl<'a> Cutter<'a> {
    fn line(&mut self, line: Line<'a>) -> Option<()> {
        if line.says_nothing() {
            return Some(());
        }
        let Some(open) = &mut self.open else { return self.begin(&line) };
        if open.head.is_none() {
            return (line.indent == open.base).then_some(()).and_then(|()| open.key(self.text, line.content, line.end));
        }
        match open.list {
            List::At(column) if line.indent > column => {
                open.rules.last_mut()?.single = false;
                Some(())
            }
            List::At(column) if line.indent == column && line.begins_entry() => open.rule(self.text, &line),
            List::Open if line.indent >= open.base && line.begins_entry() => {
                open.list = List::At(line.indent);
                open.rule(self.text, &line)
            }
            _ if self.is_list && line.indent == 0 && line.begins_entry() => {
                self.close(line.start)?;
                self.begin(&line)
            }
            _ => None,
        }
    }

    fn begin(&mut self, line: &Line<'a>) -> Option<()> {
        let first = self.policies.is_empty();
        let entry = line.content.strip_prefix("- ");
        if line.indent != 0 || !first && !self.is_list {
            return None;
        }
        if line.content == "---" && first && !std::mem::replace(&mut self.marked, true) {
            return Some(());
        }
        self.is_list = entry.is_some();
        let base = if entry.is_some() { 2 } else { 0 };
        let mut open =
            Open { base, start: line.start, head: None, list: List::Open, rules: Vec::new(), rule: line.start };
        open.key(self.text, entry.unwrap_or(line.content), line.end)?;
        self.open = Some(open);
        Some(())
    }

    fn close(&mut self, end: usize) -> Option<()> {
        let Some(mut open) = self.open.take() else { return Some(()) };
        open.end_rule(self.text, end);
        self.policies.push(Policy { head: open.head?, rules: open.rules });
        Some(())
    }
}

impl<'a> Open<'a> {
    /// A line before the rules.
    fn key(&mut self, text: &'a str, content: &str, end: usize) -> Option<()> {
        let (key, value) = content.split_once(':')?;
        let value = value.trim_start_matches(' ');
        let empty = value == "[]";
        match key {
            "rules" if value.is_empty() || empty => {
                self.head = text.get(self.start..end);
                self.list = if empty { List::Empty } else { List::Open };
                Some(())
            }
            // Nothing that YAML could take for more than a word.
            "name" | "namespace" | "tier" | "priority" => {
                let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
                let word = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
                let spaced = content.as_bytes().get(key.len() + 1) == Some(&b' ');
                (spaced && !word.is_empty() && word.chars().all(plain)).then_some(())
            }
            _ => None,
        }
    }

    fn rule(&mut self, text: &'a str, line: &Line<'a>) -> Option<()> {
        self.end_rule(text, line.start);
        self.rule = line.start;
        self.rules.push(Chunk { text: "", line: line.number, single: true });
        Some(())
    }

    fn end_rule(&mut self, text: &'a str, end: usize) {
        if let Some(last) = self.rules.last_mut() {
            last.text = text.get(self.rule..end).unwrap_or_default();
        }
    }
}
