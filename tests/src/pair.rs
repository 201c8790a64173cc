//! Two enforced hosts, a client here and a server there, and a policy that lets the one call the other.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::host::Host;
use crate::lab::Lab;
use crate::traffic::Outcome;
use crate::workload::Workload;

/// A client PU on host `a` that may call TCP ports 8000 to 8999 of a server PU on host `b`.
#[derive(Debug)]
pub struct Pair {
    /// The client, `app=client`.
    pub client: Workload,
    /// The server, `app=server`.
    pub server: Workload,
    /// The client's host.
    pub a: Host,
    /// The server's host.
    pub b: Host,
    /// Where they are.
    pub lab: Lab,
}

impl Pair {
    /// The policy in force at the start.
    pub const POLICY: &str = "name: pair\nrules:\n  - call: allow app=client -> app=server tcp/8000-8999\n";

    /// Both hosts with an enforcer in the lab's own configuration.
    pub fn new(name: &str) -> Result<Self> {
        Self::with(name, "")
    }

    /// Both hosts with an enforcer configured by these `overrides` (see [`Host::start_enforcer`]).
    pub fn with(name: &str, overrides: &str) -> Result<Self> {
        Self::with_each(name, overrides, overrides)
    }

    /// The same, with overrides for the client's and for the server's host.
    pub fn with_each(name: &str, at_client: &str, at_server: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("pair.yaml", Self::POLICY)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        a.start_enforcer(at_client)?;
        b.start_enforcer(at_server)?;
        let client = a.workload("client", &["app=client"])?;
        let server = b.workload("server", &["app=server"])?;
        Ok(Self { client, server, a, b, lab })
    }

    /// The server's port over IPv4 and over IPv6.
    pub fn addresses(&self, port: u16) -> [String; 2] {
        [self.b.socket_v4(port), self.b.socket_v6(port)]
    }

    /// Lets both ends meet on this port, where somebody must listen: every later connection resumes.
    pub fn introduce(&self, port: u16) -> Result<()> {
        for to in self.addresses(port) {
            for _ in 0..2 {
                let attempt = self.client.connect(&to, &["--payload", "introduction", "--timeout", "5000"])?;
                ensure!(attempt.outcome == Outcome::Ok, "no introduction: {attempt:?}\n{}", self.b.enforcer_log());
            }
        }
        self.settled()
    }

    /// Replaces the policy of both hosts.
    pub fn decree(&self, rules: &str) -> Result<()> {
        self.lab.write_policy("pair.yaml", &format!("name: pair\nrules:\n{rules}")).map(drop)
    }

    /// Waits until no flow is left on either host.
    pub fn settled(&self) -> Result<()> {
        self.settled_within(Duration::from_secs(5))
    }

    /// The same, with more or less patience.
    pub fn settled_within(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let left = (self.a.counters()?.flows(), self.b.counters()?.flows());
            if left == (0, 0) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let flows = |host: &Host| {
                    host.enforcer(&["flows"]).map(|output| output.stdout.chars().take(1500).collect::<String>())
                };
                anyhow::bail!("flows left: {left:?}\n{}\n{}", flows(&self.a)?, flows(&self.b)?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
