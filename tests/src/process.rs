//! Processes inside a host: placed into its network namespace and cgroup before they run their program.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;

/// Where a process is to live: a network namespace and a cgroup.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) netns: Arc<Netns>,
    pub(crate) cgroup: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) keep: Arc<AtomicBool>,
}

/// What a finished process left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// A running process; ended (SIGTERM, then SIGKILL) when dropped, unless its lab is kept.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    command: String,
    stdout: PathBuf,
    stderr: PathBuf,
    keep: Arc<AtomicBool>,
}

impl Place {
    /// The same namespace, another cgroup.
    pub fn in_cgroup(&self, cgroup: &Path) -> Self {
        Self { cgroup: cgroup.to_owned(), ..self.clone() }
    }

    /// The cgroup that processes of this place are put into.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Waits until somebody listens on a TCP port of this place's network namespace.
    pub fn wait_for_listener(&self, port: u16, limit: Duration) -> Result<()> {
        self.wait_for_socket(&format!("listens on port {port}"), limit, |line| is_listener(line, port))
    }

    /// Waits until somebody here has sent a SYN to a port, and has no answer.
    pub fn wait_for_syn(&self, port: u16, limit: Duration) -> Result<()> {
        self.wait_for_socket(&format!("connects to port {port}"), limit, |line| is_connecting(line, port))
    }

    fn wait_for_socket(&self, what: &str, limit: Duration, is_it: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let tables = self.netns.enter(|| {
                let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
                Ok(read("tcp")? + &read("tcp6")?)
            })?;
            if tables.lines().any(&is_it) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "nobody {what} in {} after {limit:?}", self.netns.name);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A command that, once spawned, finds itself in this place before its program starts.
    pub fn command<S: AsRef<str>>(&self, args: &[S]) -> Result<Command> {
        let Some((program, rest)) = args.split_first() else { bail!("an empty command line") };
        let procs = self.cgroup.join("cgroup.procs");
        let procs =
            OpenOptions::new().write(true).open(&procs).with_context(|| format!("cannot open {}", procs.display()))?;
        let netns = self.netns.clone();
        let mut command = Command::new(program.as_ref());
        command.args(rest.iter().map(AsRef::as_ref));
        // SAFETY: setns(2) and write(2) are async-signal-safe; nothing allocates or locks between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(setns(&netns, CloneFlags::CLONE_NEWNET)?)
            });
        }
        Ok(command)
    }

    /// Runs a command to its end, at most 30 seconds.
    pub fn exec<S: AsRef<str>>(&self, args: &[S]) -> Result<Output> {
        self.exec_within(args, Duration::from_secs(30))
    }

    /// Runs a command to its end; one that takes longer than `limit` is killed and is an error.
    pub fn exec_within<S: AsRef<str>>(&self, args: &[S], limit: Duration) -> Result<Output> {
        let line = command_line(args);
        let mut command = self.command(args)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start: {line}"))?;
        let stdout = read_in_background(child.stdout.take());
        let stderr = read_in_background(child.stderr.take());
        let status = wait_within(&mut child, limit)?;
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // A grandchild may hold the pipe open for ever; what it writes later is not this command's output.
        let collect = |from: mpsc::Receiver<Vec<u8>>| {
            let mut bytes = Vec::new();
            let deadline = Instant::now() + Duration::from_secs(1);
            while let Ok(part) = from.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                bytes.extend(part);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (collect(stdout), collect(stderr));
        match status {
            Some(status) => Ok(Output { command: line, status, stdout, stderr }),
            None => bail!("still running after {limit:?}: {line}\n{stderr}{stdout}"),
        }
    }

    /// Starts a command and leaves it running; its output goes to files in the lab's directory.
    pub fn spawn<S: AsRef<str>>(&self, args: &[S]) -> Result<Proc> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let line = command_line(args);
        let program = args.first().map_or("", AsRef::as_ref).rsplit('/').next().unwrap_or_default();
        let base = self.logs.join(format!("{program}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let (stdout, stderr) = (base.with_extension("out"), base.with_extension("err"));
        let create = |path: &Path| File::create(path).with_context(|| format!("cannot make {}", path.display()));
        let mut command = self.command(args)?;
        command.stdin(Stdio::null()).stdout(create(&stdout)?).stderr(create(&stderr)?);
        let child = command.spawn().with_context(|| format!("cannot start: {line}"))?;
        Ok(Proc { child, command: line, stdout, stderr, keep: self.keep.clone() })
    }
}

impl Output {
    /// The exit code; 128 + signal for a process that was killed, as in a shell.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Standard output, if the process succeeded; otherwise an error with everything it said.
    pub fn ok(&self) -> Result<&str> {
        if !self.status.success() {
            bail!("{} failed with {}:\n{}{}", self.command, self.code(), self.stderr, self.stdout);
        }
        Ok(&self.stdout)
    }

    /// Standard output of a process that succeeded, as JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        let text = self.ok()?;
        serde_json::from_str(text)
            .with_context(|| format!("{} did not print the JSON expected: {text}{}", self.command, self.stderr))
    }
}

impl Proc {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its standard output so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// What it wrote to its standard error so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.command))
    }

    /// Waits for the end, at most `limit`; `None` if it still runs.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        wait_within(&mut self.child, limit)
    }

    /// Waits until a line of its standard output starts with `start`; an error if it ends or stays silent.
    pub fn wait_for_line(&mut self, start: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait()?;
            let stdout = self.stdout();
            if let Some(line) = stdout.lines().find(|line| line.starts_with(start)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}) before it printed {start}:\n{}{stdout}", self.command, self.stderr());
            }
            if Instant::now() > deadline {
                bail!("{} did not print {start} within {limit:?}:\n{}{stdout}", self.command, self.stderr());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGKILL, and reap.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().and_then(|()| self.child.wait()).with_context(|| format!("cannot kill {}", self.command))?;
        Ok(())
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Relaxed) || !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = self.signal(Signal::SIGTERM);
        if !matches!(self.wait(Duration::from_secs(1)), Ok(Some(_))) {
            let _ = self.kill9();
        }
    }
}

/// Whether a line of /proc/net/tcp (proc(5)) is a socket in state LISTEN (0A) on this port.
fn is_listener(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1));
    local.ends_with(&format!(":{port:04X}")) && state == Some("0A")
}

/// Whether it is a socket in state SYN_SENT (02) toward this port.
fn is_connecting(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(2);
    let (remote, state) = (fields.next().unwrap_or_default(), fields.next());
    remote.ends_with(&format!(":{port:04X}")) && state == Some("02")
}

fn wait_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn read_in_background(source: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (Some(mut source), mut buffer) = (source, [0; 8192]) else {
            return;
        };
        while let Ok(count @ 1..) = source.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn command_line<S: AsRef<str>>(args: &[S]) -> String {
    args.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ")
}
