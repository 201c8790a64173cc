//! A host with a containerd and an enforcer that follows it.

use std::path::Path;

use anyhow::{Result, ensure};
use tests::{Containerd, Host, Lab, Outcome};

use crate::cri::{Cri, Pod, Sandbox};

/// The pods' network.
pub const SUBNET: &str = "10.98.0.0/24";
/// A container that does nothing.
pub const IDLE: [&str; 2] = ["/bin/sleep", "infinity"];
const SERVE: [&str; 4] = ["/bin/lab-tool", "serve", "--listen", "[::]:8020"];

/// The host, and what runs there.
pub struct Stage {
    pub cri: Cri,
    pub containerd: Containerd,
    pub a: Host,
    pub lab: Lab,
}

impl Stage {
    /// A lab of that name with such a policy; `config` is more of the enforcer's configuration, from its section on containerd on.
    pub fn new(name: &str, policy: &str, config: &str) -> Result<Self> {
        let stage = Self::without_enforcer(name, "")?;
        stage.lab.write_policy("pods.yaml", policy)?;
        stage.follow(&stage.containerd.socket(), config)?;
        Ok(stage)
    }

    /// The same before the enforcer starts; `containerd` is more of the runtime's configuration.
    pub fn without_enforcer(name: &str, containerd: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let a = lab.host("a")?;
        let containerd = Containerd::start_for_pods(&a, SUBNET, containerd)?;
        let cri = Cri::connect(&a, &containerd)?;
        Ok(Self { cri, containerd, a, lab })
    }

    /// Starts an enforcer that follows the runtime at this socket.
    pub fn follow(&self, socket: &Path, config: &str) -> Result<()> {
        let kubelet = self.a.directory().join("kubelet");
        self.a.start_enforcer(&format!(
            "datapath.interfaces = [\"auto\"]\n[containerd]\nenabled = true\nsocket = {socket:?}\nkubelet = {kubelet:?}\n{config}"
        ))
    }

    /// A pod with one container that serves on port 8020, and its address.
    pub fn server(&self) -> Result<(Sandbox, String)> {
        let pod = self.cri.run_pod(&Pod::new("server", "shop", &[("app", "server")]))?;
        let container = self.cri.start_container(&pod, "main", &SERVE)?;
        self.cri.wait_for_listener(&container, 8020)?;
        let address = format!("{}:8020", self.cri.address(&pod)?);
        Ok((pod, address))
    }

    /// A pod with one container that does nothing, and that container.
    pub fn idle(&self, pod: &Pod) -> Result<(Sandbox, String)> {
        let pod = self.cri.run_pod(pod)?;
        let container = self.cri.start_container(&pod, "main", &IDLE)?;
        Ok((pod, container))
    }

    /// What the enforcer refused and said.
    pub fn why(&self) -> String {
        let counters = self.a.counters().map(|counters| format!("{:?}", counters.refusals()));
        format!("{counters:?}\n{}", self.a.enforcer_log())
    }

    /// A connection from within a container ends like this, and not by a timer.
    pub fn assert_outcome(&self, container: &str, to: &str, expected: Outcome) -> Result<()> {
        let attempt = self.cri.connect_from(container, to, &["--payload", "ping", "--timeout", "3000"])?;
        ensure!(attempt.outcome == expected, "to {to}: {attempt:?}, not {expected:?}\n{}", self.why());
        ensure!(attempt.total_micros < 900_000, "by the timer: {attempt:?}\n{}", self.why());
        Ok(())
    }
}
