//! Running a child in a cgroup as if it had been run directly: signals in, exit code out.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, PipeWriter, Read, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask, raise, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid},
};

use crate::config::error_text;

/// Signals that are meant for the command. SIGTSTP and the like are not: they stop this process, which stops with its child.
const FORWARDED: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

/// What is to be run.
pub(super) struct Program {
    name: OsString,
    /// The command; without a name it cannot be run.
    pub command: Command,
    /// Whom it runs as, if not as whoever runs this.
    pub owner: Option<Owner>,
}

impl Program {
    /// A command and its arguments.
    pub fn new(line: &[OsString]) -> Self {
        let name = line.first().cloned().unwrap_or_default();
        let mut command = Command::new(&name);
        command.args(line.iter().skip(1));
        Self { name, command, owner: None }
    }
}

/// A user of this host.
pub(super) struct Owner {
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
    /// All groups.
    pub groups: Vec<Gid>,
}

/// Why the command did not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessError {
    #[error("cannot enter the PU's cgroup {}: {}; run as root", .cgroup.display(), error_text(.error))]
    Cgroup { cgroup: PathBuf, error: io::Error },
    #[error("cannot run {command:?}: {}", error_text(.error))]
    Execute { command: OsString, error: io::Error },
    #[error("cannot wait for the command: {}", error_text(.0))]
    Wait(io::Error),
}

impl ProcessError {
    /// The exit code by the convention of `env(1)`.
    pub fn code(&self) -> u8 {
        match self {
            Self::Cgroup { .. } | Self::Wait(_) => super::NOT_STARTED,
            Self::Execute { error, .. } if error.kind() == io::ErrorKind::NotFound => 127,
            Self::Execute { .. } => 126,
        }
    }
}

/// Runs the command in the cgroup until it ends; its exit code, or 128+n if signal n killed it.
///
/// Must be called from the only thread of the process: another one would catch the signals meant for the command.
pub(super) fn run(program: Program, cgroup: &Path) -> Result<u8, ProcessError> {
    let cgroup_error = |error| ProcessError::Cgroup { cgroup: cgroup.into(), error };
    let procs = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs")).map_err(cgroup_error)?;
    let (signals, before) = take_signals().map_err(ProcessError::Wait)?;
    let ended = spawn(program, &procs, before, cgroup_error).and_then(|child| wait(&child, &signals));
    // So that the next Ctrl-C ends this process again while it cleans up.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    ended
}

/// Blocks what is to be forwarded; gives the descriptor to read it from and the mask as it was.
fn take_signals() -> io::Result<(SignalFd, SigSet)> {
    // With SIGCHLD ignored (inherited from the parent), wait(2) would lose the exit code.
    // SAFETY: the default disposition runs no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigDfl) }?;
    let mut mask: SigSet = FORWARDED.iter().copied().collect();
    mask.add(Signal::SIGCHLD);
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&mask), Some(&mut before))?;
    Ok((SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?, before))
}

fn spawn(
    program: Program,
    procs: &File,
    mask: SigSet,
    cgroup_error: impl Fn(io::Error) -> ProcessError,
) -> Result<Child, ProcessError> {
    let Program { name, command: mut builder, owner } = program;
    if name.is_empty() {
        let error = io::Error::new(io::ErrorKind::NotFound, "no command given");
        return Err(ProcessError::Execute { command: name, error });
    }
    let (mut joined, join) = io::pipe().map_err(&cgroup_error)?;
    // SAFETY: between fork and exec the closure only makes system calls, which are async-signal-safe, on descriptors that
    // outlive the spawn; it allocates nothing.
    unsafe { builder.pre_exec(enter(procs.as_raw_fd(), mask, join, owner)) };
    let spawned = builder.spawn();
    // Drops the closure with this process's copy of the pipe's writing end: the read below ends when the child's is gone.
    drop(builder);
    spawned.map_err(|error| {
        let mut byte = [0];
        // The child says when it has entered the cgroup: an error after that is the command's.
        match joined.read(&mut byte) {
            Ok(1) => ProcessError::Execute { command: name, error },
            _ => cgroup_error(error),
        }
    })
}

/// What the child does before it becomes the command.
fn enter(procs: i32, mask: SigSet, mut joined: PipeWriter, owner: Option<Owner>) -> impl FnMut() -> io::Result<()> {
    move || {
        // SAFETY: the descriptor is open for the parent's whole spawn, and the buffer is static. "0" means the writer.
        if unsafe { libc::write(procs, b"0\n".as_ptr().cast(), 2) } != 2 {
            return Err(io::Error::last_os_error());
        }
        joined.write_all(&[1])?;
        if let Some(owner) = &owner {
            setgroups(&owner.groups)?;
            setresgid(owner.gid, owner.gid, owner.gid)?;
            setresuid(owner.uid, owner.uid, owner.uid)?;
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        Ok(())
    }
}

fn wait(child: &Child, signals: &SignalFd) -> Result<u8, ProcessError> {
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|error| ProcessError::Wait(io::Error::other(error)))?);
    loop {
        let signal = match signals.read_signal() {
            Ok(Some(signal)) => signal,
            Ok(None) | Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(ProcessError::Wait(error.into())),
        };
        if signal.ssi_signo == Signal::SIGCHLD as u32 {
            if let Some(code) = reap(pid)? {
                return Ok(code);
            }
        } else if signal.ssi_code != libc::SI_KERNEL {
            // What the terminal sends (SI_KERNEL) has gone to the whole foreground group, the command included.
            if let Ok(signal) = Signal::try_from(signal.ssi_signo as i32) {
                let _ = kill(pid, signal);
            }
        }
    }
}

/// The exit code once the child has ended. When it was stopped, this process stops with it, and continues it later.
fn reap(pid: Pid) -> Result<Option<u8>, ProcessError> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(code as u8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(128 + signal as i32 as u8)),
            Ok(WaitStatus::Stopped(..)) => {
                let _ = raise(Signal::SIGSTOP);
                let _ = kill(pid, Signal::SIGCONT);
            }
            Ok(_) => return Ok(None),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(ProcessError::Wait(error.into())),
        }
    }
}
