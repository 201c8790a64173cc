//! `enforcer login`: a user's own shell in a session of a token.
//!
//! It runs as root, called by anybody through sudo. So it takes nothing from the caller but the token, which the agent
//! verifies, and who the caller is, which sudo says.

use std::{
    collections::BTreeSet,
    ffi::{CString, OsStr},
    os::unix::process::CommandExt,
    path::Path,
    process::ExitCode,
};

use nix::unistd::{Uid, User, getgrouplist};

use super::{Failure, NOT_STARTED, Program, in_pu, process::Owner, token};
use crate::admin::{PuTarget, Request};

/// Says in the shell's environment that it is in a session already.
const SESSION: &str = "ENFORCER_SESSION";

/// What sudo leaves of itself.
const SUDO: [&str; 5] = ["SUDO_COMMAND", "SUDO_USER", "SUDO_UID", "SUDO_GID", "MAIL"];

pub(in crate::cli) fn run(socket: &Path) -> Result<ExitCode, Failure> {
    let failed = |problem: &str| Failure::new(NOT_STARTED, problem);
    if !Uid::effective().is_root() {
        return Err(failed("`login` must run as root; call it by `sudo enforcer login`"));
    }
    let user = std::env::var("SUDO_UID")
        .ok()
        .and_then(|uid| uid.parse().ok())
        .and_then(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten())
        .ok_or_else(|| failed("`login` is called through sudo, by a user of this host: SUDO_UID names none"))?;
    let token = token::from_environment()?
        .ok_or_else(|| failed("there is no token in ENFORCER_USER_TOKEN; sudoers must keep that variable"))?;
    let request = Request::PuAdd {
        target: PuTarget::Command,
        name: None,
        namespace: None,
        tags: BTreeSet::new(),
        token: Some(token),
        incomplete: false,
    };
    in_pu(socket, &request, shell(&user).map_err(|error| failed(&error))?)
}

/// The user's log-in shell, as that user.
fn shell(user: &User) -> Result<Program, String> {
    let name = CString::new(user.name.as_str()).map_err(|_| "the user has no usable name".to_owned())?;
    let groups = getgrouplist(&name, user.gid).map_err(|error| format!("the groups of {}: {error}", user.name))?;
    let shell = if user.shell.as_os_str().is_empty() { Path::new("/bin/sh") } else { user.shell.as_path() };
    let mut program = Program::new(&[shell.as_os_str().to_owned()]);
    let base = shell.file_name().unwrap_or(OsStr::new("sh")).to_string_lossy();
    // A shell whose name begins with a hyphen is a log-in shell.
    program.command.arg0(format!("-{base}"));
    for name in SUDO.into_iter().chain([token::VARIABLE]) {
        program.command.env_remove(name);
    }
    program
        .command
        .env("HOME", &user.dir)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name)
        .env("SHELL", shell)
        .env(SESSION, "1");
    program.owner = Some(Owner { uid: user.uid, gid: user.gid, groups });
    Ok(program)
}
