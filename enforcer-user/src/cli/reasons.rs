//! `enforcer reasons`

use std::process::ExitCode;

use common::drop_reason::ALL;
use serde::Serialize;

use super::{Failure, Output, output::Table};

#[derive(Serialize)]
struct ReasonView {
    number: u16,
    name: &'static str,
    explanation: &'static str,
    remedy: &'static str,
}

pub(super) fn run(out: &mut Output) -> Result<ExitCode, Failure> {
    if out.is_json() {
        let reasons = ALL.iter().map(|reason| ReasonView {
            number: *reason as u16,
            name: reason.name(),
            explanation: reason.explanation(),
            remedy: reason.remedy(),
        });
        out.json(&reasons.collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["NO", "REASON", "WHAT HAPPENED", "WHAT TO DO"]);
    for reason in ALL {
        let texts = [reason.name(), reason.explanation(), reason.remedy()].map(str::to_owned);
        let [name, explanation, remedy] = texts;
        table.row([(*reason as u16).to_string(), name, explanation, remedy]);
    }
    out.table(&table)?;
    Ok(ExitCode::SUCCESS)
}

/// The text of `docs/reasons.md`.
pub fn as_markdown() -> String {
    let mut text = String::from(
        "# Reasons\n\n\
         Every packet or connection that is refused is refused for exactly one of these reasons. The kernel programs, the\n\
         metrics (`reason=\"…\"`), the flow log, the DENY that travels to the peer and `enforcer reasons` all use this table.\n\
         Numbers are never re-used.\n\n\
         | No | Reason | What happened | What to do |\n|---|---|---|---|\n",
    );
    for reason in ALL {
        let cell = |text: &str| text.replace('|', "\\|");
        text.push_str(&format!(
            "| {} | `{}` | {} | {} |\n",
            *reason as u16,
            reason.name(),
            cell(reason.explanation()),
            cell(reason.remedy())
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ENFORCER_WRITE_DOCS=1 cargo test reasons` writes the file anew.
    #[test]
    fn documentation_is_current() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");
        if std::env::var_os("ENFORCER_WRITE_DOCS").is_some() {
            std::fs::write(file, as_markdown()).expect("written");
        }
        let text = std::fs::read_to_string(file).expect("docs/reasons.md exists");
        assert!(
            text == as_markdown(),
            "docs/reasons.md is old; write it with `ENFORCER_WRITE_DOCS=1 cargo test -p enforcer-user reasons`"
        );
    }
}
