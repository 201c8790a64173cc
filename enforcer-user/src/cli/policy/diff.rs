//! `enforcer policy diff`

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use policy::{Capabilities, Judged, Known, PairsDiff};

use super::{Failure, Output, Table, now, read_rules, text};
use crate::{
    admin::{Client, Request, Response},
    config::error_text,
};

/// Arguments of `policy diff`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DiffArgs {
    /// Policy file, or directory of them, as it was.
    #[arg(value_name = "OLD")]
    pub old: PathBuf,
    /// As it is to be.
    #[arg(value_name = "NEW")]
    pub new: PathBuf,
    /// JSON list of identities (name, namespace, tags), such as `enforcer pus --json` prints, instead of those the running
    /// agent knows.
    #[arg(long, value_name = "FILE")]
    pub identities: Option<PathBuf>,
}

pub(super) fn run(socket: &Path, args: DiffArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let (old, new) = (read_rules(&[args.old])?, read_rules(&[args.new])?);
    let known = Known::merge(match &args.identities {
        Some(file) => from_file(file)?,
        None => from_agent(socket)?,
    });
    let diff = policy::diff_pairs(&old, &new, &known, Capabilities::default(), now()).map_err(Failure::failed)?;
    let changed = !diff.changes.is_empty();
    match out.is_json() {
        true => out.json(&diff)?,
        false => print(&diff, out)?,
    }
    Ok(ExitCode::from(u8::from(changed)))
}

/// The pairs as a table, after how many they are.
pub(super) fn print(diff: &PairsDiff, out: &mut Output) -> Result<(), Failure> {
    let looked_at = format!("of {} identities and networks", diff.ends);
    if diff.changes.is_empty() {
        return Ok(out.line(format!("no pair {looked_at} is judged otherwise"))?);
    }
    let pairs = text::count(diff.changes.len(), "pair");
    let pairs = if diff.truncated { format!("more than {pairs}") } else { pairs };
    out.line(format!("{pairs} {looked_at} judged otherwise"))?;
    out.line("")?;
    let mut table = Table::new(["FROM", "TO", "PORTS", "BEFORE", "AFTER"]);
    for pair in &diff.changes {
        for change in &pair.ports {
            table.row([
                pair.from.clone(),
                pair.to.clone(),
                change.ports.join(" "),
                judged(&change.before),
                judged(&change.after),
            ]);
        }
    }
    Ok(out.table(&table)?)
}

/// `deny (shop/no-guests)`; a namespace other than the root is said: `deny (shop/no-guests of /prod)`.
pub(super) fn judged(judged: &Judged) -> String {
    let rule = judged.rule.as_deref().unwrap_or("default");
    match judged.namespace.as_deref().filter(|namespace| *namespace != "/") {
        Some(namespace) => format!("{} ({rule} of {namespace})", judged.action),
        None => format!("{} ({rule})", judged.action),
    }
}

fn from_file(file: &Path) -> Result<Vec<Known>, Failure> {
    let text = fs::read_to_string(file)
        .map_err(|error| Failure::failed(format!("{}: cannot read it: {}", file.display(), error_text(&error))))?;
    Known::parse_list(&text).map_err(|error| {
        let expected =
            "expected a list of objects with `name`, `namespace` and `tags`, such as `enforcer pus --json` prints";
        Failure::failed(format!("{}: {error}: {expected}", file.display()))
    })
}

fn from_agent(socket: &Path) -> Result<Vec<Known>, Failure> {
    let identities = match Client::connect(socket)?.ask(&Request::Identities)? {
        Response::Identities(identities) => identities,
        other => return Err(super::super::show::unexpected(&other)),
    };
    let text = serde_json::to_string(&identities).map_err(Failure::failed)?;
    Known::parse_list(&text).map_err(Failure::failed)
}
