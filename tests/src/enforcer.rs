//! A host's enforcer: configured, started, killed, asked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::Table;

use crate::host::Host;
use crate::process::Output;

/// The namespace every lab enforcer puts its PUs in.
pub const NAMESPACE: &str = "/demo";
/// `datapath.agent_timeout` of the enforcers in the lab.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(1);

/// One verdict, as `enforcer flows --json` records it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Record {
    /// `deny`, `start`, `end` or `cut`.
    pub event: String,
    /// `client` or `server`: this enforcer's end of the attempt.
    pub role: String,
    /// This end's address and port.
    pub local: String,
    /// The other end's address and port.
    pub remote: String,
    /// `tcp` or `udp`.
    pub proto: String,
    /// This end's PU.
    pub pu: String,
    /// The other end's PU, as far as known.
    pub peer: String,
    /// `allow` or `deny`.
    pub verdict: String,
    /// The rule that decided, as `policy/rule`; empty if none did.
    pub rule: String,
    /// The namespace that rule lives in.
    pub rule_namespace: String,
    /// The observed rule that would decide otherwise.
    pub observed_rule: String,
    /// A drop reason, or `allowed`.
    pub reason: String,
    /// `hello`, `resume`, `external`, `out_of_band` or `none`.
    pub path: String,
    /// Whether the reason is the other end's, told by its DENY.
    pub peer_reason: bool,
    /// Microseconds the verdict took.
    pub micros: u64,
}

#[derive(Deserialize)]
struct Flows {
    records: Vec<Record>,
}

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Names the `enforcer` to use from now on, before `ENFORCER_BIN` and any that was built. The first call holds.
pub fn use_enforcer(path: PathBuf) {
    CHOSEN.get_or_init(|| path);
}

/// The `enforcer` under test: the one chosen, or `ENFORCER_BIN`, or the one built beside the running program.
pub fn enforcer_binary() -> Result<PathBuf> {
    match CHOSEN.get() {
        Some(path) => Ok(path.clone()),
        None => built_binary("enforcer", "ENFORCER_BIN", "cargo xtask build"),
    }
}

/// A program of this workspace: from the environment, or from the target directory this process came from.
pub(crate) fn built_binary(name: &str, variable: &str, remedy: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{variable} names {}, which is not there", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    // Tests run from target/<profile>/deps, programs from target/<profile>.
    let near = own.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    let target = own.ancestors().find(|directory| directory.ends_with("target"));
    let other =
        target.into_iter().flat_map(|target| ["release", "debug"].map(|profile| target.join(profile).join(name)));
    near.chain(other)
        .find(|path| path.is_file())
        .with_context(|| format!("there is no {name} yet; build it with `{remedy}`, or set {variable}"))
}

impl Host {
    /// Starts the host's enforcer and waits until it is ready.
    ///
    /// `overrides` is TOML, laid over the lab's configuration: `datapath.xdp = "generic"`.
    pub fn start_enforcer(&self, overrides: &str) -> Result<()> {
        self.write_enforcer_config(overrides)?;
        self.restart_enforcer()
    }

    /// Starts the enforcer with the configuration it had; ends a running one first, gently.
    pub fn restart_enforcer(&self) -> Result<()> {
        self.run_enforcer(&[])
    }

    /// The same, with further arguments of `enforcer run`.
    pub fn run_enforcer(&self, args: &[&str]) -> Result<()> {
        self.stop_enforcer();
        let binary = self.binary()?;
        let config = text(self.enforcer_config());
        let mut process = self.spawn(&[&[binary.as_str(), "run", "--config", &config], args].concat())?;
        // The kernel verifies the programs meanwhile: a second here, half a minute where the processor is emulated.
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            let status = self.enforcer(&["status", "--json"])?;
            if serde_json::from_str::<serde_json::Value>(&status.stdout).is_ok_and(|answer| answer["ready"] == true) {
                break;
            }
            if let Some(ended) = process.wait(Duration::ZERO)? {
                bail!("the enforcer of {} ended ({ended}):\n{}", self.name(), process.stderr());
            }
            if Instant::now() > deadline {
                bail!("the enforcer of {} is not ready: {}{}", self.name(), status.stderr, process.stderr());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        *self.enforcer_slot() = Some(process);
        Ok(())
    }

    /// Ends the enforcer with SIGTERM; nothing happens if none runs.
    pub fn stop_enforcer(&self) {
        drop(self.enforcer_slot().take());
    }

    /// Ends the enforcer with SIGKILL, as a crash would.
    pub fn kill9_enforcer(&self) -> Result<()> {
        let mut process = self.enforcer_slot().take().with_context(|| format!("{} runs no enforcer", self.name()))?;
        process.kill9()
    }

    /// Sends the enforcer a signal.
    pub fn signal_enforcer(&self, signal: Signal) -> Result<()> {
        let slot = self.enforcer_slot();
        slot.as_ref().with_context(|| format!("{} runs no enforcer", self.name()))?.signal(signal)
    }

    /// Waits until the enforcer has ended by itself.
    pub fn wait_for_enforcer(&self, limit: Duration) -> Result<ExitStatus> {
        let mut slot = self.enforcer_slot();
        let process = slot.as_mut().with_context(|| format!("{} runs no enforcer", self.name()))?;
        let ended = process.wait(limit)?;
        ended.with_context(|| format!("the enforcer of {} still runs:\n{}", self.name(), process.stderr()))
    }

    /// The process id of the enforcer, if one runs.
    pub fn enforcer_pid(&self) -> Option<u32> {
        self.enforcer_slot().as_ref().map(crate::Proc::pid)
    }

    /// What the enforcer logged since it was last started.
    pub fn enforcer_log(&self) -> String {
        self.enforcer_slot().as_ref().map(crate::Proc::stderr).unwrap_or_default()
    }

    /// The process id of the agent that answers, whoever started it.
    pub fn agent_pid(&self) -> Result<u32> {
        let stream = std::os::unix::net::UnixStream::connect(self.enforcer_socket()).context("no agent answers")?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
        Ok(u32::try_from(peer.pid())?)
    }

    /// Runs `enforcer upgrade` of this binary on the host, with further arguments.
    pub fn upgrade_enforcer(&self, binary: &Path, args: &[&str]) -> Result<Output> {
        let (binary, config) = (text(binary.to_owned()), text(self.enforcer_config()));
        let own = self.binary()?;
        let line = [own.as_str(), "upgrade", "--binary", &binary, "--config", &config];
        self.exec_within(&[&line[..], args].concat(), Duration::from_secs(60))
    }

    /// Runs `enforcer ARGS --socket <the host's>` on the host.
    pub fn enforcer(&self, args: &[&str]) -> Result<Output> {
        let binary = self.binary()?;
        let socket = text(self.enforcer_socket());
        let after = usize::from(args.first().is_some_and(|first| ["pu", "policy"].contains(first))) + 1;
        let (command, rest) = args.split_at(after.min(args.len()));
        let line = [&[binary.as_str()], command, &["--socket", &socket], rest].concat();
        self.exec(&line)
    }

    /// The same, with `--json`, and the answer parsed.
    pub fn enforcer_json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        self.enforcer(&[args, &["--json"]].concat())?.json()
    }

    /// The recent verdicts, newest last; also while the enforcer is dead.
    pub fn records(&self) -> Result<Vec<Record>> {
        let flows: Flows = if self.enforcer_slot().is_some() {
            self.enforcer_json(&["flows"])?
        } else {
            let (binary, config) = (self.binary()?, text(self.enforcer_config()));
            self.exec(&[binary.as_str(), "flows", "--offline", "--config", &config, "--json"])?.json()?
        };
        Ok(flows.records)
    }

    /// The enforcer's admin socket.
    pub fn enforcer_socket(&self) -> PathBuf {
        self.directory().join("enforcer.sock")
    }

    /// The PUs, as `enforcer pus --json` shows them.
    pub fn pus(&self) -> Result<Vec<Value>> {
        let answer: Value = self.enforcer_json(&["pus"])?;
        Ok(answer["pus"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until exactly these are PUs, by name.
    pub fn wait_for_pus(&self, names: &[&str]) -> Result<Vec<Value>> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let pus = self.pus()?;
            let mut found: Vec<&str> = pus.iter().filter_map(|pu| pu["name"].as_str()).collect();
            let mut wanted = names.to_vec();
            found.sort_unstable();
            wanted.sort_unstable();
            if found == wanted {
                return Ok(pus);
            }
            if Instant::now() > deadline {
                bail!("the PUs are {found:?}, not {wanted:?}\n{}", self.enforcer_log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where the enforcer writes flow records.
    pub fn flow_records(&self) -> PathBuf {
        self.directory().join("flows.jsonl")
    }

    /// The enforcer's configuration file.
    pub fn enforcer_config(&self) -> PathBuf {
        self.directory().join("enforcer.toml")
    }

    /// Writes the configuration without starting anything.
    pub fn write_enforcer_config(&self, overrides: &str) -> Result<()> {
        let mut config: Table = toml::from_str(&self.default_config()?).context("the lab's own configuration")?;
        lay_over(&mut config, toml::from_str(overrides).with_context(|| format!("not TOML: {overrides}"))?);
        let path = self.enforcer_config();
        fs::write(&path, toml::to_string(&config)?).with_context(|| format!("cannot write {}", path.display()))
    }

    fn default_config(&self) -> Result<String> {
        let (name, keys) = (self.name(), self.directory());
        let ca = self.issue_certificate()?;
        Ok(format!(
            r#"
            name = "host-{name}"
            namespace = "{NAMESPACE}"
            [identity]
            ca = {ca:?}
            certificate = {certificate:?}
            key = {key:?}
            [policy]
            paths = [{policy:?}]
            [datapath]
            interfaces = ["eth0", "lo"]
            xdp = "auto"
            unmanaged = "allow"
            strangers = "drop"
            agent_timeout = "{agent_timeout}s"
            [paths]
            bpffs = {bpffs:?}
            socket = {socket:?}
            cgroup = {cgroup:?}
            [metrics]
            listen = "127.0.0.1:9464"
            [records]
            file = {records:?}
            interval = "1s"
            [observe]
            state = {observed:?}
            "#,
            agent_timeout = AGENT_TIMEOUT.as_secs(),
            certificate = keys.join(format!("host-{name}.crt")),
            key = keys.join(format!("host-{name}.key")),
            policy = self.shared().policy_directory()?,
            bpffs = self.bpffs(),
            socket = self.enforcer_socket(),
            records = self.flow_records(),
            observed = keys.join("observe.json"),
            cgroup = self.cgroup(),
        ))
    }

    /// Has the lab's CA (made on first use) certify this host once; the path of the CA's certificate.
    fn issue_certificate(&self) -> Result<PathBuf> {
        let ca = self.shared().directory.join("ca");
        let (directory, name) = (text(ca.clone()), format!("host-{}", self.name()));
        let out = text(self.directory().to_owned());
        if !ca.join("ca.crt").exists() {
            call_enforcer(&["ca", "init", "--dir", &directory])?;
        }
        if !self.directory().join(format!("{name}.crt")).exists() {
            call_enforcer(&["ca", "issue", "--dir", &directory, "--name", &name, "--out", &out])?;
        }
        Ok(ca.join("ca.crt"))
    }
}

fn call_enforcer(args: &[&str]) -> Result<()> {
    let output = Command::new(enforcer_binary()?).args(args).output().context("cannot run the enforcer")?;
    ensure!(output.status.success(), "enforcer {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn lay_over(base: &mut Table, overrides: Table) {
    for (key, value) in overrides {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => lay_over(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

pub(crate) fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_change_what_they_name_and_nothing_else() {
        let mut base: Table = toml::from_str("a = 1\n[t]\nx = 1\ny = 2").expect("base");
        lay_over(&mut base, toml::from_str("t.y = 3\nb = 4").expect("overrides"));
        let expected: Table = toml::from_str("a = 1\nb = 4\n[t]\nx = 1\ny = 3").expect("expected");
        assert_eq!(base, expected);
    }
}
