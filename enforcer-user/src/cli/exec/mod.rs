//! `enforcer exec`: a command as a PU.
//!
//! The agent makes a PU and an empty cgroup; the child moves itself there before it executes the command, so that every
//! socket it will ever make is attributed. When the command has ended, the agent is told to remove both once the cgroup
//! is empty: processes that went to the background stay enforced, and nothing is killed. Should this process be killed,
//! the agent finds the empty cgroup itself.

mod process;

use std::{path::Path, process::ExitCode};

use super::{Failure, args::ExecArgs};
use crate::admin::{Client, PuTarget, Request, Response};

/// The PU could not be made, as with `env` and `timeout`.
const NOT_STARTED: u8 = 125;

pub(super) fn run(socket: &Path, args: ExecArgs) -> Result<ExitCode, Failure> {
    let tags = args.pu.tag_set();
    let request = Request::PuAdd { target: PuTarget::Command, name: args.pu.name, namespace: args.pu.namespace, tags };
    let added = Client::connect(socket).and_then(|mut client| client.ask(&request));
    let (id, cgroup) = match added.map_err(|error| Failure::from(error).with_code(NOT_STARTED))? {
        Response::PuAdded { id, cgroup: Some(cgroup), .. } => (id, cgroup),
        other => return Err(super::show::unexpected(&other).with_code(NOT_STARTED)),
    };
    let ended = process::run(&args.command, &cgroup);
    release(socket, &id, &cgroup);
    match ended {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => Err(Failure::new(error.code(), error)),
    }
}

/// The command's own result is what counts: trouble here is reported, not returned.
fn release(socket: &Path, id: &str, cgroup: &Path) {
    let released = Client::connect(socket).and_then(|mut client| client.ask(&Request::PuRelease { pu: id.into() }));
    let Err(error) = released else { return };
    // Without an agent, an empty cgroup can still be removed here; the agent forgets its PU when it is back.
    if std::fs::remove_dir(cgroup).is_err() {
        let _ = Failure::failed(format!("the PU {id} remains: {error}")).report();
    }
}
