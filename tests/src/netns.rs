//! Network namespaces, by name under `/run/netns` so that `ip netns` and `nsenter` can look into a lab that was kept.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace with a name. Removal is the run's business, not the handle's.
#[derive(Debug)]
pub(crate) struct Netns {
    pub(crate) name: String,
    handle: File,
}

impl Netns {
    /// Makes the namespace `name`.
    pub(crate) fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]), None)?;
        let path = path_of(name);
        let handle = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name: name.to_owned(), handle })
    }

    /// Runs `work` on a thread of its own that has entered the namespace.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.handle, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("cannot enter the network namespace {}", self.name))?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the work in {} panicked", self.name)))
        })
    }

    /// Runs a command inside and fails, with what it said, if it fails.
    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Result<()> {
        self.enter(|| run(Command::new(program).args(args), None))
    }

    /// Hands many `ip` commands, one a line, to a single `ip` inside.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        self.enter(|| run(Command::new("ip").args(["-batch", "-"]), Some(lines)))
    }

    /// Sets a sysctl of the namespace, named by its path below `/proc/sys`.
    pub(crate) fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.enter(|| {
            let path = format!("/proc/sys/{name}");
            std::fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Removes a namespace; what lives in it (links, qdiscs, TAPs) goes with it.
pub(crate) fn remove(name: &str) -> Result<()> {
    if path_of(name).exists() {
        run(Command::new("ip").args(["netns", "del", name]), None)?;
    }
    Ok(())
}

pub(crate) fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

fn run(command: &mut Command, input: Option<&str>) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.unwrap_or_default().as_bytes()).ok();
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {} {}", output.status, said.trim(), input.unwrap_or_default());
    }
    Ok(())
}
