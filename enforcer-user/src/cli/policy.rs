//! `enforcer policy show|check|explain|diff|simulate|apply|import|schema|suggest`

mod apply;
mod diff;
mod import;
mod simulate;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

pub(super) use apply::ApplyArgs;
pub(super) use diff::DiffArgs;
pub(super) use import::ImportArgs;
pub(super) use simulate::SimulateArgs;

use policy::{DomainPattern, Identity, Moment, Namespace, PolicyErrors, PortRange, RuleId};
use serde_json::json;

use super::{
    Failure, Output,
    args::{ExplainArgs, PolicyCommand},
    output::{Table, printable},
    text,
};
use crate::{
    admin::{Client, Request, Response},
    config::PolicyText,
};

pub(super) fn run(socket: &Path, command: PolicyCommand, out: &mut Output) -> Result<ExitCode, Failure> {
    match command {
        PolicyCommand::Show => show(socket, out),
        PolicyCommand::Check { files } => check(&files, out),
        PolicyCommand::Explain(args) => explain(socket, args, out),
        PolicyCommand::Diff(args) => diff::run(socket, args, out),
        PolicyCommand::Simulate(args) => simulate::run(args, out),
        PolicyCommand::Apply(args) => apply::run(socket, args, out),
        PolicyCommand::Import(args) => import::run(args, out),
        PolicyCommand::Schema => {
            out.json(&policy::schema::schema())?;
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Suggest(args) => super::suggest::run(args, out),
    }
}

fn show(socket: &Path, out: &mut Output) -> Result<ExitCode, Failure> {
    let policy = match Client::connect(socket)?.ask(&Request::Policy)? {
        Response::Policy(policy) => policy,
        other => return Err(super::show::unexpected(&other)),
    };
    if out.is_json() {
        out.json(&policy)?;
        return Ok(ExitCode::SUCCESS);
    }
    out.line(format!("generation {}, files: {}", policy.generation, printable(&policy.files.join(" "))))?;
    if let Some(error) = &policy.error {
        out.line(format!("not in force: {}", printable(error)))?;
    }
    out.line("")?;
    let mut table = Table::new(["RULE", "NAMESPACE", "TIER", "TEXT", "SOURCE"]);
    for rule in policy.rules {
        let text = if rule.expired { format!("(expired) {}", rule.text) } else { rule.text };
        table.row([rule.name, rule.namespace, rule.tier, text, rule.source]);
    }
    out.table(&table)?;
    Ok(ExitCode::SUCCESS)
}

fn check(files: &[PathBuf], out: &mut Output) -> Result<ExitCode, Failure> {
    let texts = PolicyText::read_all(files).map_err(Failure::failed)?;
    let parsed = parse(&texts);
    if out.is_json() {
        let errors: Vec<_> = parsed.as_ref().err().iter().flat_map(|errors| errors.iter()).cloned().collect();
        let rules = parsed.as_ref().map_or(0, Vec::len);
        let warnings = parsed.as_ref().map(|rules| warnings(rules)).unwrap_or_default();
        out.json(&json!({
            "ok": parsed.is_ok(), "files": texts.len(), "rules": rules, "errors": errors, "warnings": warnings,
        }))?;
        return Ok(ExitCode::from(parsed.is_err() as u8));
    }
    match parsed {
        Ok(rules) => {
            for warning in warnings(&rules) {
                out.line(format!("warning: {}", printable(&warning)))?;
            }
            out.line(format!("{} in {}: fine", text::count(rules.len(), "rule"), text::count(texts.len(), "file")))?
        }
        Err(errors) => return Err(all(&errors)),
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(socket: &Path, args: ExplainArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let subject = identity("--from", &args.from, &args.from_namespace)?;
    let object = identity("--to", &args.to, &args.to_namespace)?;
    let protocol = args.proto.number();
    if args.files.is_empty() {
        let request = Request::Explain { subject, object, protocol, port: args.port };
        let explained = match Client::connect(socket)?.ask(&request)? {
            Response::Explained(explained) => explained,
            other => return Err(super::show::unexpected(&other)),
        };
        if out.is_json() {
            out.json(&explained.explanation)?;
        } else {
            out.line(explained.text.trim_end())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let texts = PolicyText::read_all(&args.files).map_err(Failure::failed)?;
    let rules = parse(&texts).map_err(|errors| all(&errors))?;
    let numbered = rules.iter().zip(1..).map(|(rule, number)| (RuleId(number), &**rule));
    let explanation = policy::explain(numbered, &subject, &object, protocol, args.port, now());
    if out.is_json() {
        out.json(&explanation)?;
    } else {
        out.line(explanation.to_string().trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The rules of policy files and directories.
fn read_rules(files: &[PathBuf]) -> Result<Vec<std::sync::Arc<policy::PolicyRule>>, Failure> {
    let texts = PolicyText::read_all(files).map_err(Failure::failed)?;
    parse(&texts).map_err(|errors| all(&errors))
}

fn parse(texts: &[PolicyText]) -> Result<Vec<std::sync::Arc<policy::PolicyRule>>, PolicyErrors> {
    policy::parse_files(texts.iter().map(|file| (file.file.as_str(), file.text.as_str())))
}

fn now() -> Moment {
    Moment::from_unix(std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()))
}

/// What is right as text, but not what its author can have meant.
fn warnings(rules: &[std::sync::Arc<policy::PolicyRule>]) -> Vec<String> {
    let now = now();
    let expired = rules.iter().filter(|rule| rule.rule().is_expired(now));
    expired
        .filter_map(|rule| {
            let until = rule.rule().until?;
            Some(format!("{}: rule `{}` expired at {until}: it changes nothing", rule.location(), rule.full_name()))
        })
        .collect()
}

/// Every error on a line of its own.
fn all(errors: &PolicyErrors) -> Failure {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Failure::failed(format!("{}\n{}", text::count(lines.len(), "error"), lines.join("\n")))
}

/// One end of a connection: `key=value …`, or an address without an enforcer.
fn identity(option: &str, text: &str, namespace: &str) -> Result<Identity, Failure> {
    let text = text.trim();
    if let Ok(address) = text.strip_prefix("net ").unwrap_or(text).trim().parse::<IpAddr>() {
        return Ok(Identity::external(address));
    }
    if let Some(name) = text.strip_prefix("net ") {
        let name: DomainPattern = name.trim().parse().map_err(|error| Failure::failed(format!("{option}: {error}")))?;
        return Ok(Identity::External { networks: BTreeSet::new(), names: BTreeSet::from([name.to_string()]) });
    }
    let namespace: Namespace = namespace.parse().map_err(|error| Failure::failed(format!("{option}: {error}")))?;
    let mut tags = Vec::new();
    for word in text.split_whitespace() {
        match super::args::tag(word) {
            Ok(tag) => tags.push(tag),
            Err(error) => {
                let message =
                    format!("{option}: {word:?}: {error}, or an address such as 192.0.2.1, or `net example.org`");
                return Err(Failure::failed(message));
            }
        }
    }
    Ok(Identity::pu(namespace, tags))
}

impl super::args::Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => PortRange::TCP,
            Self::Udp => PortRange::UDP,
            Self::Icmp => PortRange::ICMP,
            Self::Icmp6 => PortRange::ICMP6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_tags_or_addresses() {
        let end = |text| identity("--from", text, "/acme");
        let acme: Namespace = "/acme".parse().expect("namespace");
        assert_eq!(
            end("app=web  user=prod").expect("tags"),
            Identity::pu(acme.clone(), [("app", "web"), ("user", "prod")])
        );
        let none: [(&str, &str); 0] = [];
        assert_eq!(end("").expect("no tags"), Identity::pu(acme, none));
        assert_eq!(end("192.0.2.1").expect("address"), Identity::external([192, 0, 2, 1].into()));
        assert_eq!(end("net fd00::1").expect("address"), Identity::external("fd00::1".parse().expect("address")));
        let named = Identity::External { networks: BTreeSet::new(), names: BTreeSet::from(["www.a.org".into()]) };
        assert_eq!(end("net WWW.a.org").expect("name"), named);
        assert!(end("net a b").is_err());
        assert!(end("app").is_err());
        assert!(identity("--from", "a=b", "acme").is_err());
    }
}
