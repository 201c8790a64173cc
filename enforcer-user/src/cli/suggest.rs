//! `enforcer policy suggest`

use std::{fs, process::ExitCode};

use policy::{Namespace, Observations, Suggestion};

use super::{Failure, Output, args::SuggestArgs, text};
use crate::{config::Config, records};

pub(super) fn run(args: SuggestArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let within = args.namespace.as_deref().map(str::parse::<Namespace>).transpose().map_err(Failure::failed)?;
    let files = if args.records.is_empty() { configured(&args)? } else { args.records };
    let mut observations = Observations::new(within);
    records::lines(&files, |line| observations.add_line(line)).map_err(Failure::failed)?;
    let suggestion = observations.suggest();
    if let Some(file) = &args.out {
        fs::write(file, suggestion.to_string())
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", file.display())))?;
    }
    if out.is_json() {
        out.json(&suggestion)?;
    } else if let Some(file) = &args.out {
        out.line(format!("{}: {}", file.display(), summary(&suggestion)))?;
    } else {
        out.line(suggestion.to_string().trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The files that this host's agent writes.
fn configured(args: &SuggestArgs) -> Result<Vec<std::path::PathBuf>, Failure> {
    let config = Config::load(&args.config)?;
    let files = config.records.files();
    if files.is_empty() {
        let file = config.records.file.display();
        let message = format!("no records yet in `records.file` ({file}); name files with --records");
        return Err(Failure::failed(message));
    }
    Ok(files)
}

fn summary(suggestion: &Suggestion) -> String {
    let newly: u64 = suggestion.rules.iter().map(|rule| rule.newly.pairs).sum();
    format!(
        "{} for {} connections of {} records; pairs newly allowed: {newly}",
        text::count(suggestion.rules.len(), "rule"),
        suggestion.seen.flows,
        suggestion.seen.records,
    )
}
