//! `enforcer policy import`

use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use ipnet::IpNet;
use policy::{
    Namespace,
    import::{Options, Unselected, import},
};
use serde_json::json;

use super::{Failure, Output, all, printable, text};
use crate::config::{PolicyText, error_text};

/// Arguments of `policy import`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ImportArgs {
    /// Manifests, or directories of them.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Namespace of the policies made: that of the pods, or one above it.
    #[arg(long, value_name = "PATH", default_value = "/k8s")]
    pub namespace: Namespace,
    /// Kubernetes namespace of objects that name none.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub default_namespace: String,
    /// What becomes of connections no policy speaks of.
    #[arg(long, value_enum, default_value_t = Open::Allow)]
    pub unselected: Open,
    /// Where peers have an identity, as in the agent's `identity.networks`; its default if left out. Tells which ipBlocks
    /// hold pods. May be given many times.
    #[arg(long = "identity-network", value_name = "CIDR")]
    pub identity_networks: Vec<IpNet>,
    /// Addresses of nodes, which may always open to pods. May be given many times.
    #[arg(long = "node", value_name = "CIDR")]
    pub nodes: Vec<IpNet>,
    /// Write the policy here instead of to standard output.
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(in crate::cli) enum Open {
    /// They are allowed, as by Kubernetes.
    Allow,
    /// They are denied.
    Deny,
}

pub(super) fn run(args: ImportArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let texts = PolicyText::read_all(&args.files).map_err(Failure::failed)?;
    let options = Options {
        namespace: args.namespace,
        default_namespace: args.default_namespace,
        unselected: match args.unselected {
            Open::Allow => Unselected::Allow,
            Open::Deny => Unselected::Deny,
        },
        identity_networks: args.identity_networks,
        nodes: args.nodes,
    };
    let imported = match import(texts.iter().map(|file| (file.file.as_str(), file.text.as_str())), &options) {
        Ok(imported) => imported,
        Err(errors) if out.is_json() => {
            out.json(&json!({ "ok": false, "errors": errors.iter().collect::<Vec<_>>() }))?;
            return Ok(ExitCode::FAILURE);
        }
        Err(errors) => return Err(all(&errors)),
    };
    // What was made must be what it claims to be, before anybody relies on it.
    policy::parse_file("import", &imported.text).map_err(|errors| all(&errors))?;
    if let Some(path) = &args.out {
        fs::write(path, &imported.text)
            .map_err(|error| Failure::failed(format!("{}: cannot write it: {}", path.display(), error_text(&error))))?;
    }
    if out.is_json() {
        out.json(&json!({
            "ok": true, "rules": imported.rules, "keys": imported.keys, "notes": imported.notes, "policy": imported.text,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut told = std::io::stderr();
    for note in &imported.notes {
        // With standard error closed, the policy is still what was asked for.
        let _ = writeln!(told, "note: {}", printable(note));
    }
    match &args.out {
        Some(path) => out.line(format!("{} in {}", text::count(imported.rules, "rule"), path.display()))?,
        None => out.line(imported.text.trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}
