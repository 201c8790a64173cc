//! `enforcer pu add|rm`

use std::{path::Path, process::ExitCode};

use serde_json::json;

use super::{
    Failure, Output,
    args::{PuArgs, PuCommand, TargetArgs},
};
use crate::admin::{Client, PuTarget, Request, Response};

pub(super) fn run(socket: &Path, command: PuCommand, out: &mut Output) -> Result<ExitCode, Failure> {
    match command {
        PuCommand::Add { pu, target } => add(socket, pu, target, out),
        PuCommand::Rm { pu } => {
            Client::connect(socket)?.ask(&Request::PuRemove { pu: pu.clone() })?;
            if out.is_json() {
                out.json(&json!({ "removed": pu }))?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn add(socket: &Path, pu: PuArgs, target: TargetArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let target = match (target.cgroup, target.interface) {
        (Some(path), _) => PuTarget::Cgroup(std::path::absolute(&path).map_err(Failure::failed)?),
        (None, Some(name)) => PuTarget::Interface(name),
        (None, None) => return Err(Failure::failed("give --cgroup PATH or --interface NAME")),
    };
    let tags = pu.tag_set();
    let request = Request::PuAdd { target, name: pu.name, namespace: pu.namespace, tags, token: None };
    match Client::connect(socket)?.ask(&request)? {
        Response::PuAdded { id, name, .. } if out.is_json() => out.json(&json!({ "id": id, "name": name }))?,
        Response::PuAdded { id, name, .. } => out.line(format!("{id}  {name}"))?,
        other => return Err(super::show::unexpected(&other)),
    }
    Ok(ExitCode::SUCCESS)
}
