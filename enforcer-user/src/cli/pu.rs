//! `enforcer pu add|tag|rm`

use std::{path::Path, process::ExitCode};

use serde_json::json;

use super::{
    Failure, Output,
    args::{PuArgs, PuCommand, TargetArgs},
};
use crate::admin::{Client, PuTarget, Request, Response};

pub(super) fn run(socket: &Path, command: PuCommand, out: &mut Output) -> Result<ExitCode, Failure> {
    match command {
        PuCommand::Add { pu, target, incomplete } => add(socket, pu, target, incomplete, out),
        PuCommand::Tag { pu, set, unset, complete } => {
            if set.is_empty() && unset.is_empty() && !complete {
                return Err(Failure::failed("give --set KEY=VALUE, --unset KEY or --complete"));
            }
            let set = set.iter().map(|tag| key_value(tag)).collect::<Result<_, _>>()?;
            let request = Request::PuTag { pu: pu.clone(), set, unset: unset.into_iter().collect(), complete };
            Client::connect(socket)?.ask(&request)?;
            if out.is_json() {
                out.json(&json!({ "tagged": pu }))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        PuCommand::Rm { pu } => {
            Client::connect(socket)?.ask(&Request::PuRemove { pu: pu.clone() })?;
            if out.is_json() {
                out.json(&json!({ "removed": pu }))?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn key_value(tag: &str) -> Result<(String, String), Failure> {
    let parts = tag.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = parts.ok_or_else(|| Failure::failed(format!("`{tag}`: expected KEY=VALUE")))?;
    Ok((key.into(), value.into()))
}

fn add(socket: &Path, pu: PuArgs, target: TargetArgs, incomplete: bool, out: &mut Output) -> Result<ExitCode, Failure> {
    let target = match (target.cgroup, target.interface) {
        (Some(path), _) => PuTarget::Cgroup(std::path::absolute(&path).map_err(Failure::failed)?),
        (None, Some(name)) => PuTarget::Interface(name),
        (None, None) => return Err(Failure::failed("give --cgroup PATH or --interface NAME")),
    };
    let tags = pu.tag_set();
    let request = Request::PuAdd { target, name: pu.name, namespace: pu.namespace, tags, token: None, incomplete };
    match Client::connect(socket)?.ask(&request)? {
        Response::PuAdded { id, name, .. } if out.is_json() => out.json(&json!({ "id": id, "name": name }))?,
        Response::PuAdded { id, name, .. } => out.line(format!("{id}  {name}"))?,
        other => return Err(super::show::unexpected(&other)),
    }
    Ok(ExitCode::SUCCESS)
}
