//! What a test program said, as numbers.

use std::fmt;

use serde_json::Value;

use crate::step;

/// A row of the demo without one of these is incomplete.
const DEMO_KEYS: [&str; 10] =
    ["from", "to", "port", "family", "expected", "outcome", "rule", "reason", "path", "micros"];

/// How the harness ends the line of a test that failed.
const FAILED: &str = " ... FAILED";

/// Counts of one test program.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tests that ran and found nothing wrong.
    pub passed: usize,
    /// Tests that found something wrong.
    pub failed: usize,
    /// Tests that did not run.
    pub skipped: usize,
    /// What to know about those that did not pass: names, reasons.
    pub notes: Vec<String>,
}

/// Counts of the whole run.
#[derive(Debug, Default)]
pub struct Totals {
    parts: Vec<(String, Outcome)>,
}

impl Outcome {
    /// One failure, for a reason that no test program told.
    pub fn failure(note: &str) -> Self {
        Self { failed: 1, notes: vec![note.to_owned()], ..Self::default() }
    }

    /// Reads what Rust's test harness prints. A program that ends badly without telling of a failure counts as one, and so does one
    /// that tells nothing at all.
    pub fn parse(text: &str, success: bool) -> Self {
        let mut outcome = Self::default();
        let mut results = 0;
        let mut skipped_themselves = 0;
        for line in text.lines() {
            if let Some(result) = line.strip_prefix("test result: ") {
                results += 1;
                outcome.passed += number_before(result, " passed");
                outcome.failed += number_before(result, " failed");
                outcome.skipped += number_before(result, " ignored");
            } else if let Some(test) =
                line.strip_prefix("test ").filter(|l| l.ends_with(" FAILED") || l.contains(" ... ignored"))
            {
                outcome.notes.push(test.to_owned());
            } else if line.starts_with("SKIPPED") {
                skipped_themselves += 1;
                outcome.notes.push(line.to_owned());
            }
        }
        // To the harness they passed.
        outcome.passed = outcome.passed.saturating_sub(skipped_themselves);
        outcome.skipped += skipped_themselves;
        if (!success && outcome.failed == 0) || (success && results == 0) {
            outcome.failed += 1;
            outcome.notes.push("ended without a complete result".to_owned());
        }
        outcome
    }

    /// Names of the tests that failed.
    pub fn failures(&self) -> Vec<String> {
        self.notes.iter().filter_map(|note| note.strip_suffix(FAILED)).map(str::to_owned).collect()
    }

    /// Counts `test` as passed after all, and says at which attempt.
    pub fn forgive(&mut self, test: &str) {
        let Some(note) = self.notes.iter_mut().find(|note| note.strip_suffix(FAILED) == Some(test)) else { return };
        *note = format!("{test} ... passed only at the second attempt");
        self.failed -= 1;
        self.passed += 1;
    }

    /// How many tests there were.
    pub fn total(&self) -> usize {
        self.passed + self.failed + self.skipped
    }

    /// Whether every test ran and passed.
    pub fn good(&self) -> bool {
        self.failed == 0 && self.skipped == 0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Totals {
    /// Adds the counts of the program called `name`.
    pub fn add(&mut self, name: String, outcome: Outcome) {
        self.parts.push((name, outcome));
    }

    /// Number of tests, whatever became of them.
    pub fn count(&self) -> usize {
        self.parts.iter().map(|(_, outcome)| outcome.total()).sum()
    }

    /// Whether every test ran and passed.
    pub fn good(&self) -> bool {
        self.parts.iter().all(|(_, outcome)| outcome.good())
    }

    /// `N passed, N failed`; a skipped test is one that failed to run.
    pub fn line(&self) -> String {
        let passed: usize = self.parts.iter().map(|(_, o)| o.passed).sum();
        let failed: usize = self.parts.iter().map(|(_, o)| o.failed + o.skipped).sum();
        format!("{passed} passed, {failed} failed")
    }

    /// The closing summary: one line for each program, then what did not pass.
    pub fn print(&self) {
        step::say("summary");
        for (name, outcome) in self.parts.iter().filter(|(_, outcome)| outcome.total() > 0) {
            eprintln!("  {} {name:<40} {outcome}", if outcome.good() { "ok  " } else { "FAIL" });
            for note in &outcome.notes {
                eprintln!("         {note}");
            }
        }
        eprintln!("  {}", self.line());
    }
}

/// Judges the demo's document: the exit code, `ok`, and every row by itself.
pub fn of_demo(document: &[u8], success: bool) -> Outcome {
    let document: Value = match serde_json::from_slice(document) {
        Ok(document) => document,
        Err(error) => return Outcome::failure(&format!("standard output is not one JSON document: {error}")),
    };
    let mut outcome = Outcome::default();
    for (number, row) in document["attempts"].as_array().into_iter().flatten().enumerate() {
        let missing: Vec<&str> = DEMO_KEYS.into_iter().filter(|key| row.get(key).is_none()).collect();
        if missing.is_empty() && row["expected"] == row["outcome"] {
            outcome.passed += 1;
        } else {
            outcome.failed += 1;
            outcome.notes.push(format!(
                "row {number}: {row} (missing: {})",
                if missing.is_empty() { "nothing".to_owned() } else { missing.join(", ") }
            ));
        }
    }
    if outcome.total() == 0 {
        return Outcome::failure("no attempt was made");
    }
    if (document["ok"] != true || !success) && outcome.failed == 0 {
        outcome.failed += 1;
        outcome.notes.push(format!("every row is as expected, but ok={} and success={success}", document["ok"]));
    }
    outcome
}

/// Whether `line` tells of one test, and so is worth showing while the others run.
pub fn is_progress(line: &str) -> bool {
    line.starts_with("test ") && !line.starts_with("test result")
}

/// What to show of a failed program's output: from the harness's list of failures on, or all of it if there is none.
pub fn relevant(text: &str) -> &str {
    text.find("\nfailures:\n").map_or(text, |at| &text[at..])
}

fn number_before(text: &str, word: &str) -> usize {
    let Some((before, _)) = text.split_once(word) else { return 0 };
    before.rsplit([' ', ';']).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "test a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.11s\n";

    #[test]
    fn counts_what_the_harness_prints() {
        assert_eq!(Outcome::parse(GOOD, true), Outcome { passed: 1, ..Outcome::default() });
        let text = "test a ... FAILED\ntest b ... ignored, no root\ntest result: FAILED. 12 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n";
        let outcome = Outcome::parse(text, false);
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (12, 1, 1));
        assert_eq!(outcome.notes, ["a ... FAILED", "b ... ignored, no root"]);
        assert!(!outcome.good());
    }

    #[test]
    fn a_second_attempt_is_counted_once_and_named() {
        let text = "test a ... ok\ntest m::b ... FAILED\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let mut outcome = Outcome::parse(text, false);
        assert_eq!(outcome.failures(), ["m::b"]);
        outcome.forgive("a");
        assert_eq!((outcome.passed, outcome.failed), (1, 1), "only what failed is forgiven");
        outcome.forgive("m::b");
        outcome.forgive("m::b");
        assert_eq!((outcome.passed, outcome.failed), (2, 0));
        assert_eq!(outcome.notes, ["m::b ... passed only at the second attempt"]);
    }

    #[test]
    fn a_crash_is_a_failure_and_so_is_silence() {
        assert_eq!(Outcome::parse("test a ... ", false).failed, 1);
        assert_eq!(Outcome::parse("", true).failed, 1);
        assert_eq!(Outcome::parse(GOOD, false).failed, 1);
    }

    #[test]
    fn a_test_that_skips_itself_has_not_passed() {
        let outcome = Outcome::parse(&format!("{GOOD}SKIPPED: no second kernel\n"), true);
        assert_eq!((outcome.passed, outcome.skipped, outcome.good()), (0, 1, false));
    }

    #[test]
    fn the_line_counts_skipped_tests_as_failed() {
        let mut totals = Totals::default();
        totals.add("a".into(), Outcome { passed: 3, skipped: 1, ..Outcome::default() });
        totals.add("b".into(), Outcome::failure("lint"));
        assert_eq!(totals.line(), "3 passed, 2 failed");
        assert!(!totals.good());
    }

    #[test]
    fn the_demo_is_judged_row_by_row() {
        let row = |outcome: &str| {
            format!(
                r#"{{"from":"a","to":"b","port":80,"family":"ipv4","expected":"allow","outcome":"{outcome}","rule":"r","reason":"","path":"hello","micros":1}}"#
            )
        };
        let document = |ok: bool, rows: &[String]| format!(r#"{{"ok":{ok},"attempts":[{}]}}"#, rows.join(","));
        assert!(of_demo(document(true, &[row("allow")]).as_bytes(), true).good());
        assert_eq!(
            of_demo(document(true, &[row("allow"), row("deny")]).as_bytes(), true).failed,
            1,
            "a row that differs, whatever `ok` says"
        );
        assert_eq!(of_demo(document(false, &[row("allow")]).as_bytes(), true).failed, 1);
        assert_eq!(of_demo(document(true, &[row("allow")]).as_bytes(), false).failed, 1);
        assert_eq!(of_demo(document(true, &[]).as_bytes(), true).failed, 1);
        assert_eq!(of_demo(br#"{"ok":true,"attempts":[{"from":"a"}]}"#, true).failed, 1);
        assert_eq!(of_demo(b"", true).failed, 1);
    }
}
