//! Where a plugin runs: as somebody unprivileged, with nothing but its three standard descriptors, an empty environment, no
//! sockets, and bounds on time, memory, files and processes. Whatever it leaves behind in its process group is killed.

use std::{
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Stdio,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{Signal, killpg},
    },
    unistd::{Gid, Pid, Uid, User},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::{FactError, what};
use crate::{config::Plugin, hardening::syscalls};

/// Of its complaints (standard error) that much is kept for the log, bytes.
const COMPLAINT_MAX: usize = 1024;
/// Address space, bytes.
const MEMORY_MAX: u64 = 1 << 30;
/// Largest file it may write, bytes: it has nowhere to write to, and its answer goes through a pipe.
const FILE_MAX: u64 = 1 << 20;
/// Open descriptors.
const FILES_MAX: u64 = 64;
/// Processes of its user, those of other plugins with the same user included.
const PROCESSES_MAX: u64 = 64;

/// Kills what is left of a plugin, its descendants in its process group included.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs the plugin with `input` on its standard input; its standard output once it has ended well.
///
/// # Errors
/// If it cannot be run, is not safe to run, fails, says too much, or does not end in time.
pub async fn run(plugin: &Plugin, input: &[u8]) -> Result<Vec<u8>, FactError> {
    check_program(plugin)?;
    let mut child = spawn(plugin)?;
    let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let timeout = plugin.timeout;
    let outcome = tokio::time::timeout(timeout, converse(plugin, &mut child, input)).await;
    drop(group);
    outcome.unwrap_or_else(|_| {
        let waited = humantime::format_duration(timeout);
        Err(FactError::unreachable(what(&plugin.name), format!("did not answer within {waited} and was killed")))
    })
}

async fn converse(plugin: &Plugin, child: &mut Child, input: &[u8]) -> Result<Vec<u8>, FactError> {
    let failed = |problem: String| FactError::unreachable(what(&plugin.name), problem);
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed("has no standard descriptors".into()));
    };
    let tell = async {
        // A plugin that does not read its question may still have an answer.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let limit = plugin.max_bytes;
    let answer = async {
        let answer = read(stdout, limit + 1).await?;
        if answer.len() > limit { Err(io::Error::other(TooLong)) } else { Ok(answer) }
    };
    let complaint = async { Ok(read(stderr, COMPLAINT_MAX).await.unwrap_or_default()) };
    let status = async { child.wait().await };
    let (answer, complaint, status, ()) = tokio::try_join!(answer, complaint, status, async {
        tell.await;
        Ok(())
    })
    .map_err(|error| match error.get_ref().is_some_and(|inner| inner.is::<TooLong>()) {
        true => FactError::malformed(what(&plugin.name), format!("answers more than {limit} bytes")),
        false => failed(error.to_string()),
    })?;
    if !status.success() {
        let complaint: String = String::from_utf8_lossy(&complaint).chars().filter(|c| !c.is_control()).collect();
        return Err(failed(format!("failed ({status}): {}", complaint.trim())));
    }
    Ok(answer)
}

#[derive(Debug, thiserror::Error)]
#[error("too long")]
struct TooLong;

async fn read(source: impl AsyncRead + Unpin, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limit as u64).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Whoever could change the executable could give any PU tags.
fn check_program(plugin: &Plugin) -> Result<(), FactError> {
    let unsafe_to_run = |problem: String| FactError::configuration(what(&plugin.name), problem);
    let path = plugin.program();
    let meta = std::fs::metadata(&path)
        .map_err(|error| unsafe_to_run(format!("{} cannot be run: {error}", path.display())))?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(unsafe_to_run(format!("{} is no executable file", path.display())));
    }
    if meta.uid() != 0 || meta.permissions().mode() & 0o022 != 0 {
        let problem = "may be changed by others than root: chown root, chmod go-w";
        return Err(unsafe_to_run(format!("{} {problem}", path.display())));
    }
    Ok(())
}

fn spawn(plugin: &Plugin) -> Result<Child, FactError> {
    let failed = |problem: String| FactError::configuration(what(&plugin.name), problem);
    let user = match plugin.user.parse::<u32>() {
        Ok(id) => User::from_uid(Uid::from_raw(id)),
        Err(_) => User::from_name(&plugin.user),
    };
    let user = user
        .ok()
        .flatten()
        .filter(|user| !user.uid.is_root())
        .ok_or_else(|| failed(format!("there is no unprivileged user `{}` on this host", plugin.user)))?;
    let mut command = Command::new(plugin.program());
    command
        .args(plugin.command.iter().skip(1))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .process_group(0);
    let seconds = plugin.timeout.as_secs() + 1;
    let no_sockets = syscalls::no_sockets().map_err(|error| failed(error.to_string()))?;
    let confined = move || {
        confine(user.uid, user.gid, seconds)?;
        syscalls::apply(&no_sockets)
    };
    // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(confined) };
    command.spawn().map_err(|error| failed(format!("{} cannot be run: {error}", plugin.program().display())))
}

/// In the child, before it becomes the plugin. The order matters: each step needs what the later ones give up.
fn confine(uid: Uid, gid: Gid, cpu_seconds: u64) -> io::Result<()> {
    // Its new network namespace has no interface but a loopback that is down. An agent that has given up what this needs
    // has it not; that a plugin opens no socket (below) holds in both.
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) | Err(nix::errno::Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    for (resource, limit) in [
        (Resource::RLIMIT_CPU, cpu_seconds),
        (Resource::RLIMIT_AS, MEMORY_MAX),
        (Resource::RLIMIT_FSIZE, FILE_MAX),
        (Resource::RLIMIT_NOFILE, FILES_MAX),
        (Resource::RLIMIT_NPROC, PROCESSES_MAX),
        (Resource::RLIMIT_CORE, 0),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    prctl::set_no_new_privs()?;
    // Cleared by the change of user, so set after it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    close_others()
}

/// Everything but the standard descriptors closes when the plugin is executed; until then the parent hears of failures.
fn close_others() -> io::Result<()> {
    // SAFETY: plain integers; the result is checked.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
