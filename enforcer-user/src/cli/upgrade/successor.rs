//! An agent that this command starts, and what it says of itself until it is ready.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Failure, Running};

/// Everything is loaded: the agent before it may end.
pub(in crate::cli) const PREPARED: &str = "prepared";
/// It ends; why follows.
pub(in crate::cli) const FAILED: &str = "failed: ";

/// The successor's end: its standard input, which is a pipe to this command.
pub(in crate::cli) struct Teller(File);

impl Teller {
    pub fn open() -> Result<Self, Failure> {
        let opened = OpenOptions::new().write(true).open("/proc/self/fd/0");
        opened.map(Self).map_err(|error| Failure::failed(format!("--succeed is for `enforcer upgrade` only: {error}")))
    }

    /// Nobody may listen any more.
    pub fn tell(&self, what: &str) {
        drop(writeln!(&self.0, "{}", what.replace('\n', " ")));
    }
}

pub(super) struct Successor {
    child: Child,
    told: Receiver<String>,
}

impl Successor {
    /// Starts it in the place of the agent that runs.
    pub fn start(binary: &Path, arguments: &[OsString], running: &Running) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(binary);
        command.arg0("enforcer").args(arguments).current_dir("/").stdin(Stdio::from(writer));
        command.stdout(running.output(0)).stderr(running.output(1));
        // Signals of the terminal, and the end of its session, are not for the agent.
        command.process_group(0);
        let child = command.spawn()?;
        drop(command);
        running.adopt(child.id());
        let (teller, told) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(reader).lines();
            lines.map_while(Result::ok).take_while(|line| teller.send(line.clone()).is_ok()).for_each(drop);
        });
        Ok(Self { child, told })
    }

    pub fn wait_until_prepared(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            match self.told.recv_timeout(Duration::from_millis(20)) {
                Ok(line) if line == PREPARED => return Ok(()),
                Ok(line) => return Err(self.failed(&line)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.look(deadline)?,
            }
        }
    }

    /// Waits until `reached` gives something; an error if the process ends, or time runs out.
    pub fn wait_until<T>(&mut self, deadline: Instant, reached: impl Fn() -> Option<T>) -> Result<T, String> {
        loop {
            if let Some(reached) = reached() {
                return Ok(reached);
            }
            if let Ok(line) = self.told.recv_timeout(Duration::from_millis(20)) {
                return Err(self.failed(&line));
            }
            self.look(deadline)?;
        }
    }

    /// Ends it, however it is; one that can puts back what it has changed.
    pub fn end(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(2);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }

    fn look(&mut self, deadline: Instant) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
                Ok(())
            }
            Ok(None) => Err("the new agent is not ready in time".into()),
            Ok(Some(status)) => {
                let line = self.told.recv_timeout(Duration::from_millis(100)).unwrap_or_default();
                Err(match line.strip_prefix(FAILED) {
                    Some(why) => format!("the new agent ended: {why}"),
                    None => format!("the new agent ended before it was ready ({status})"),
                })
            }
            Err(error) => Err(format!("the new agent is lost: {error}")),
        }
    }

    fn failed(&self, line: &str) -> String {
        format!("the new agent does not start: {}", line.strip_prefix(FAILED).unwrap_or(line))
    }
}
