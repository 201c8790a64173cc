//! Workloads: PUs into which a test can put one process after another.

use std::fs;
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cgroup;
use crate::enforcer::text;
use crate::host::Host;
use crate::process::{Place, Proc};

/// A PU that lasts, or on a host without enforcer a plain cgroup.
///
/// It dereferences to its [`Place`]: what is run there is the PU's, also while the enforcer is dead.
#[derive(Debug)]
pub struct Workload {
    /// Its name, as the enforcer knows it.
    pub name: String,
    /// The host it lives on.
    pub host: Host,
    place: Place,
    _resident: Option<Proc>,
}

impl Host {
    /// A PU made by `enforcer exec`: one process stays in it, and others can be put beside it.
    pub fn workload(&self, name: &str, tags: &[&str]) -> Result<Workload> {
        self.workload_running(name, tags, &["sleep", "infinity"])
    }

    /// A PU made by `enforcer exec` with these further arguments, such as `--as-user-file FILE`.
    pub fn workload_with(&self, name: &str, args: &[&str]) -> Result<Workload> {
        let (binary, socket) = (self.binary()?, text(self.enforcer_socket()));
        let start = [binary.as_str(), "exec", "--socket", &socket, "--name", name];
        let shell = ["--", "/bin/sh", "-c", "echo pid $$; exec sleep infinity"];
        self.resident(name, &[&start[..], args, &shell].concat())
    }

    /// A PU made by `enforcer exec` of this command, beside which others can be put.
    pub fn workload_running(&self, name: &str, tags: &[&str], command: &[&str]) -> Result<Workload> {
        let shell = ["/bin/sh", "-c", "echo pid $$; exec \"$@\"", "sh"];
        self.resident(name, &self.as_pu(name, tags, &[&shell, command].concat())?)
    }

    /// Runs a command line that says `pid N` from within a PU of its own.
    fn resident<S: AsRef<str>>(&self, name: &str, line: &[S]) -> Result<Workload> {
        let mut resident = self.spawn(line)?;
        let line = resident.wait_for_line("pid ", Duration::from_secs(10))?;
        let pid = line["pid ".len()..].trim().parse().with_context(|| format!("not a process id: {line}"))?;
        let cgroup = cgroup::of_process(pid)?;
        ensure!(cgroup != self.cgroup(), "`enforcer exec` left {name} in its host's own cgroup");
        let place = self.in_cgroup(&cgroup);
        Ok(Workload { name: name.to_owned(), host: self.clone(), place, _resident: Some(resident) })
    }

    /// A PU made of a cgroup that exists already, by `enforcer pu add --cgroup`.
    pub fn workload_by_cgroup(&self, name: &str, tags: &[&str]) -> Result<Workload> {
        let workload = self.plain_workload(name)?;
        let cgroup = text(workload.cgroup().to_owned());
        let tags = tags.iter().flat_map(|tag| ["--tag", tag]);
        let args: Vec<_> = ["pu", "add", "--cgroup", &cgroup, "--name", name].into_iter().chain(tags).collect();
        self.enforcer(&args)?.ok()?;
        Ok(workload)
    }

    /// A cgroup of its own, and nothing else: for hosts without an enforcer.
    pub fn plain_workload(&self, name: &str) -> Result<Workload> {
        let cgroup = self.cgroup().join(name);
        fs::create_dir(&cgroup).with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
        let place = self.in_cgroup(&cgroup);
        Ok(Workload { name: name.to_owned(), host: self.clone(), place, _resident: None })
    }

    /// The command line that runs `command` as a PU by `enforcer exec`.
    pub fn as_pu(&self, name: &str, tags: &[&str], command: &[&str]) -> Result<Vec<String>> {
        let (binary, socket) = (self.binary()?, text(self.enforcer_socket()));
        let tags = tags.iter().flat_map(|tag| ["--tag", tag]);
        let start = [binary.as_str(), "exec", "--socket", &socket, "--name", name];
        let line = start.into_iter().chain(tags).chain(["--"]).chain(command.iter().copied());
        Ok(line.map(str::to_owned).collect())
    }
}

impl Deref for Workload {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
