//! `enforcer exec`: a command as a PU.
//!
//! The agent makes a PU and an empty cgroup; the child moves itself there before it executes the command, so that every
//! socket it will ever make is attributed. When the command has ended, the agent is told to remove both once the cgroup
//! is empty: processes that went to the background stay enforced, and nothing is killed. Should this process be killed,
//! the agent finds the empty cgroup itself.

mod login;
mod process;
mod token;

use std::{path::Path, process::ExitCode};

use super::{Failure, args::ExecArgs};
use crate::admin::{Client, PuTarget, Request, Response};

use process::Program;

pub(super) use login::run as login;

/// The PU could not be made, as with `env` and `timeout`.
const NOT_STARTED: u8 = 125;

pub(super) fn run(socket: &Path, args: ExecArgs) -> Result<ExitCode, Failure> {
    let tags = args.pu.tag_set();
    let token = token::of(args.as_user, args.as_user_file.as_deref())?;
    let (name, namespace) = (args.pu.name, args.pu.namespace);
    let request = Request::PuAdd { target: PuTarget::Command, name, namespace, tags, token, incomplete: false };
    let mut program = Program::new(&args.command);
    program.command.env_remove(token::VARIABLE);
    in_pu(socket, &request, program)
}

/// Runs the program in the PU that this request makes.
fn in_pu(socket: &Path, request: &Request, program: Program) -> Result<ExitCode, Failure> {
    let added = Client::connect(socket).and_then(|mut client| client.ask(request));
    let (id, cgroup) = match added.map_err(|error| Failure::from(error).with_code(NOT_STARTED))? {
        Response::PuAdded { id, cgroup: Some(cgroup), .. } => (id, cgroup),
        other => return Err(super::show::unexpected(&other).with_code(NOT_STARTED)),
    };
    let ended = process::run(program, &cgroup);
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
