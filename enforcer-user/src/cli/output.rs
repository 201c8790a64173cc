//! Standard output: aligned tables, or JSON.

use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;

/// Where a command writes to; errors come back instead of panics, so that `| head` ends quietly.
pub(super) struct Output {
    out: BufWriter<StdoutLock<'static>>,
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { out: BufWriter::new(io::stdout().lock()), json }
    }

    /// Whether `--json` was given.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// One line.
    pub fn line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        writeln!(self.out, "{}", text.as_ref())?;
        self.out.flush()
    }

    /// A whole document.
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.out, value)?;
        self.line("")
    }

    /// One object of a stream, on one line.
    pub fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.line("")
    }

    /// A table.
    pub fn table(&mut self, table: &Table) -> io::Result<()> {
        self.out.write_all(table.render().as_bytes())?;
        self.out.flush()
    }
}

/// Rows under headings; columns of numbers are set flush right.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).into()] }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let width = |column| self.rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let is_number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
        let body = &self.rows[1..];
        let right: Vec<bool> =
            (0..columns).map(|c| !body.is_empty() && body.iter().all(|row| is_number(&cell(row, c)))).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for column in 0..columns {
                let (content, width) = (cell(row, column), widths[column]);
                if right[column] {
                    line.push_str(&format!("{content:>width$}  "));
                } else {
                    line.push_str(&format!("{content:<width$}  "));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names come from peers: what could steer a terminal is written as an escape. An empty cell shows as a dash.
pub(super) fn printable(text: &str) -> String {
    if text.is_empty() {
        return "-".into();
    }
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_numbers_right_and_nothing_trails() {
        let mut table = Table::new(["NAME", "N", "NOTE"]);
        table.row(["a".into(), "1".into(), "x".into()]);
        table.row(["long name".into(), "200".into(), String::new()]);
        assert_eq!(table.render(), "NAME         N  NOTE\na            1  x\nlong name  200  -\n");
        assert_eq!(Table::new(["A", "B"]).render(), "A  B\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("\u{1b}[2Jevil\n\u{9b}31m"), "\\u{1b}[2Jevil\\n\\u{9b}31m");
    }
}
