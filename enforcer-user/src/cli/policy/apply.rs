//! `enforcer policy apply`

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{Failure, Output, diff, printable, text};
use crate::{
    admin::{Client, PolicyFile, Request, Response, view::AppliedView},
    config::PolicyText,
};

/// Arguments of `policy apply`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ApplyArgs {
    /// The policy files, or directories of them. In the watched directory, files of the same names are replaced.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Remove every other policy file of the watched directory.
    #[arg(long)]
    pub prune: bool,
    /// Only show which pairs of known identities would be judged otherwise.
    #[arg(long)]
    pub dry_run: bool,
}

pub(super) fn run(socket: &Path, args: ApplyArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let texts = PolicyText::read_all(&args.files).map_err(Failure::failed)?;
    let files = texts.into_iter().map(named).collect::<Result<Vec<_>, Failure>>()?;
    let request = Request::PolicyApply { files, prune: args.prune, dry_run: args.dry_run };
    let applied = match Client::connect(socket)?.ask(&request) {
        Ok(Response::Applied(applied)) => applied,
        Ok(other) => return Err(super::super::show::unexpected(&other)),
        Err(crate::admin::ClientError::Refused(refused)) => {
            return Err(Failure::failed(format!("nothing is applied, the policy is as before: {refused}")));
        }
        Err(error) => return Err(error.into()),
    };
    match out.is_json() {
        true => out.json(&applied)?,
        false => print(&applied, out)?,
    }
    let changes = applied.diff.is_some_and(|diff| !diff.changes.is_empty());
    Ok(ExitCode::from(u8::from(changes)))
}

fn named(text: PolicyText) -> Result<PolicyFile, Failure> {
    let name = Path::new(&text.file).file_name().and_then(|name| name.to_str());
    match name {
        Some(name) => Ok(PolicyFile { name: name.to_owned(), text: text.text }),
        None => Err(Failure::failed(format!("{}: expected a file with a name in UTF-8", printable(&text.file)))),
    }
}

fn print(applied: &AppliedView, out: &mut Output) -> Result<(), Failure> {
    let would = if applied.dry_run { "would be " } else { "" };
    for (what, files) in [("added", &applied.added), ("replaced", &applied.replaced), ("removed", &applied.removed)] {
        if !files.is_empty() {
            let files = printable(&files.join(" "));
            out.line(format!("{would}{what} in {}: {files}", printable(&applied.directory)))?;
        }
    }
    if applied.added.is_empty() && applied.replaced.is_empty() && applied.removed.is_empty() {
        out.line("the files are as they were")?;
    }
    if let Some(diff) = &applied.diff {
        return diff::print(diff, out);
    }
    let rules = text::count(applied.rules as usize, "rule");
    Ok(out.line(format!("in force: {rules}, generation {}", applied.generation))?)
}
