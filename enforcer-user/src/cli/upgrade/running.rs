//! The agent that runs: what it is, and what its successor gets from it.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{probe::mounts, sys};

/// A process that may end at any time: everything needed of it is taken at the beginning.
pub(super) struct Running {
    pid: u32,
    process: OwnedFd,
    /// Keeps the file, though another has been put in its place.
    _file: File,
    executable: PathBuf,
    output: [Option<OwnedFd>; 2],
    cgroup: Option<PathBuf>,
}

/// The unit of the service manager that started an agent, if one did.
pub(super) fn unit_of(pid: u32) -> io::Result<Option<String>> {
    let environment = fs::read(format!("/proc/{pid}/environ"))?;
    if !environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(b"NOTIFY_SOCKET=")) {
        return Ok(None);
    }
    let cgroup = own_cgroup(pid)?;
    let name = cgroup.as_deref().and_then(|path| path.rsplit('/').next()).filter(|name| name.ends_with(".service"));
    Ok(Some(name.unwrap_or("enforcer").to_owned()))
}

/// Its cgroup, from the root of the hierarchy.
fn own_cgroup(pid: u32) -> io::Result<Option<String>> {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(cgroup.lines().find_map(|line| line.strip_prefix("0::/")).map(str::to_owned))
}

impl Running {
    pub fn find(pid: u32) -> io::Result<Self> {
        let process = sys::pidfd_open(pid)?;
        for namespace in ["net", "mnt"] {
            let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}"));
            if of(&pid.to_string())? != of("self")? {
                let message =
                    format!("it lives in another {namespace} namespace: enter that (nsenter --target {pid} --all)");
                return Err(io::Error::other(message));
            }
        }
        let file = File::open(format!("/proc/{pid}/exe"))?;
        let executable = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        let output = [1, 2].map(|number| sys::pidfd_getfd(process.as_fd(), number).ok());
        let cgroup = mounts::cgroup2()?.zip(own_cgroup(pid)?).map(|(root, below)| root.join(below));
        Ok(Self { pid, process, _file: file, executable, output, cgroup })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What can be executed, and is the file that runs.
    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// Where it writes: whoever reads its log reads on.
    pub fn output(&self, number: usize) -> Stdio {
        let open = self.output.get(number).and_then(Option::as_ref).and_then(|fd| fd.try_clone().ok());
        open.map_or_else(Stdio::null, Stdio::from)
    }

    /// Puts a process beside it: what belongs to a user's session ends with that.
    pub fn adopt(&self, pid: u32) {
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = fs::write(cgroup.join("cgroup.procs"), pid.to_string())
        {
            tracing::warn!(%error, "the new agent stays in this command's cgroup");
        }
    }

    pub fn lives(&self) -> bool {
        !self.wait_for_end(Instant::now())
    }

    /// Whether it has ended by then.
    pub fn wait_for_end(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(60));
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        poll(&mut [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)], left).is_ok_and(|ready| ready > 0)
    }

    pub fn signal(&self, signal: Signal) {
        // Its number cannot be another's before it was waited for, and whoever does that has seen it end.
        if self.lives()
            && let Ok(pid) = i32::try_from(self.pid)
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}
