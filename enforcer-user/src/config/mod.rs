//! The agent's configuration: one TOML file, unknown keys are errors, every key has a default.
//!
//! `docs/configuration.md` describes the same keys; a test keeps the two together.

mod check;
mod cloud;
mod containers;
mod error;
mod feed;
mod hardening;
mod host;
mod names;
mod oidc;
mod plugin;
mod pod_tokens;
mod policy_text;
mod records;
mod tags;
pub mod workload;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use cloud::{Cloud, Provider};
pub use containers::{ContainerdConfig, DockerConfig, POD_NAMESPACE};
pub use error::ConfigError;
pub(crate) use error::plain as error_text;
pub use feed::Feed;
pub use hardening::Hardening;
pub use host::{Exemption, Host};
pub use names::Names;
pub use oidc::Oidc;
pub use plugin::Plugin;
pub use pod_tokens::PodTokens;
pub use policy_text::{PolicyReadError, PolicyText};
pub use records::{Observe, Records, rotated};
pub use tags::Tags;
pub use workload::Workload;

/// Where the agent looks without `--config`.
pub const DEFAULT_FILE: &str = "/etc/enforcer/enforcer.toml";
/// Where the agent listens for the command line unless `paths.socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/enforcer/enforcer.sock";

/// The whole file.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of this enforcer, as its certificate has it. Default: the host's name.
    pub name: Option<String>,
    /// Namespace of PUs that name none. Default: `/default`.
    pub namespace: String,
    /// Who this enforcer is and whom it trusts.
    pub identity: Identity,
    /// Where the policy lies.
    pub policy: Policy,
    /// Which tags travel.
    pub tags: Tags,
    /// What becomes a PU by itself.
    pub workload: Vec<Workload>,
    /// This host.
    pub host: Host,
    /// Containers of a Docker engine.
    pub docker: DockerConfig,
    /// Pods of containerd, or of another runtime that speaks CRI.
    pub containerd: ContainerdConfig,
    /// Whether the cloud is asked what this host is.
    pub cloud: Cloud,
    /// Whose user tokens are believed.
    pub oidc: Oidc,
    /// Executables that know more about a PU.
    pub plugin: Vec<Plugin>,
    /// What is known of images and binaries to be vulnerable or hostile.
    pub feed: Feed,
    /// Peers that the policy means by DNS name.
    pub names: Names,
    /// What the kernel programs do and how large their maps are.
    pub datapath: Datapath,
    /// Places in the file system.
    pub paths: Paths,
    /// The Prometheus endpoint.
    pub metrics: Metrics,
    /// The agent's log.
    pub log: Log,
    /// The admin socket.
    pub admin: Admin,
    /// What is written of connections.
    pub records: Records,
    /// Observe mode.
    pub observe: Observe,
    /// What the agent gives up.
    pub hardening: Hardening,
}

/// `[identity]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// PEM file with the certificates of all trusted authorities.
    pub ca: PathBuf,
    /// PEM file with this enforcer's certificate.
    pub certificate: PathBuf,
    /// PEM file with its private key; nobody else may read it.
    pub key: PathBuf,
    /// How far a peer's clock may be off.
    #[serde(with = "humantime_serde")]
    pub clock_skew: Duration,
    /// How long a signed Trust Profile is valid; it is renewed at half of that.
    #[serde(with = "humantime_serde")]
    pub profile_lifetime: Duration,
    /// How often the X25519 prekey is replaced.
    #[serde(with = "humantime_serde")]
    pub prekey_rotation: Duration,
    /// Destinations to which identity is sent; it never leaves for others.
    pub networks: Vec<IpNet>,
}

/// `[policy]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Policy files, or directories of them; without any, nothing is allowed.
    pub paths: Vec<PathBuf>,
}

/// `[datapath]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Datapath {
    /// Interfaces to enforce on, or `["auto"]` for all of them, those that come later included.
    pub interfaces: Vec<String>,
    /// Where the XDP shield is used.
    pub xdp: Xdp,
    /// What processes that are no PU may do.
    pub unmanaged: Unmanaged,
    /// How connections toward a PU are refused that carry no identity, or one that proves nothing.
    pub strangers: Strangers,
    /// Entries of the flow table.
    pub max_flows: u32,
    /// Pairs of identities whose verdict is kept in the kernel.
    pub max_pairs: u32,
    /// Port intervals of all those pairs together.
    pub max_intervals: u32,
    /// Size of the ring that carries first contacts to the agent, bytes: a power of two, whole pages.
    pub handshake_ring_bytes: u32,
    /// Size of the ring that carries flow records to the agent, bytes: a power of two, whole pages.
    pub telemetry_ring_bytes: u32,
    /// First contacts a second of one address that reach the agent; 0 for no bound.
    pub hello_budget: u32,
    /// First contacts of one address that may come at once.
    pub hello_burst: u32,
    /// First contacts a second above which peers must prove their address first; 0 for never.
    pub hello_load: u32,
    /// Where first contacts go that a path refuses in band.
    pub fallback: Fallback,
    /// UDP port they go to, and are taken at.
    pub fallback_port: u16,
    /// After how long without a sign of life of the agent first contacts are refused.
    #[serde(with = "humantime_serde")]
    pub agent_timeout: Duration,
    /// Name of the TAP device through which verified packets go back into the kernel.
    pub tap: String,
}

/// `datapath.fallback`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// Nowhere; nor are any taken.
    #[default]
    Off,
    /// Over UDP to the peer's enforcer.
    Udp,
}

/// `datapath.xdp`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// Native on physical interfaces, nowhere else.
    #[default]
    Auto,
    /// Native on every enforced interface that can.
    Native,
    /// Generic on every enforced interface.
    Generic,
    /// Nowhere.
    Off,
}

/// `datapath.unmanaged`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmanaged {
    /// They communicate as if there were no enforcer.
    #[default]
    Allow,
    /// They may neither open nor accept connections.
    Deny,
}

/// `datapath.strangers`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strangers {
    /// Silence.
    #[default]
    Drop,
    /// A TCP reset.
    Reject,
}

/// `[paths]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paths {
    /// Directory on a BPF file system for pinned maps and links.
    pub bpffs: PathBuf,
    /// The admin socket.
    pub socket: PathBuf,
    /// Root of the cgroup v2 hierarchy. Default: where it is mounted.
    pub cgroup: Option<PathBuf>,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// `address:port` of the Prometheus endpoint; empty for none.
    pub listen: String,
    /// Most series of verdicts by rule; 0 for none.
    pub rule_series: usize,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,enforcer_user::handshake=debug`.
    pub level: String,
    /// How lines are written.
    pub format: LogFormat,
}

/// `log.format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[admin]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Group whose members may use the socket beside root. Default: none.
    pub group: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            namespace: "/default".into(),
            identity: Identity::default(),
            policy: Policy::default(),
            tags: Tags::default(),
            workload: Vec::new(),
            host: Host::default(),
            docker: DockerConfig::default(),
            containerd: ContainerdConfig::default(),
            cloud: Cloud::default(),
            oidc: Oidc::default(),
            plugin: Vec::new(),
            feed: Feed::default(),
            names: Names::default(),
            datapath: Datapath::default(),
            paths: Paths::default(),
            metrics: Metrics::default(),
            log: Log::default(),
            admin: Admin::default(),
            records: Records::default(),
            observe: Observe::default(),
            hardening: Hardening::default(),
        }
    }
}

impl Default for Identity {
    fn default() -> Self {
        let networks = policy::import::IDENTITY_NETWORKS;
        Self {
            ca: "/etc/enforcer/ca.crt".into(),
            certificate: "/etc/enforcer/enforcer.crt".into(),
            key: "/etc/enforcer/enforcer.key".into(),
            clock_skew: Duration::from_secs(30),
            profile_lifetime: Duration::from_secs(3600),
            prekey_rotation: Duration::from_secs(3600),
            networks: networks.iter().filter_map(|network| network.parse().ok()).collect(),
        }
    }
}

impl Default for Datapath {
    fn default() -> Self {
        Self {
            interfaces: vec![AUTO.into()],
            xdp: Xdp::default(),
            unmanaged: Unmanaged::default(),
            strangers: Strangers::default(),
            max_flows: 262_144,
            max_pairs: 1_048_576,
            max_intervals: common::abi::MAX_INTERVALS,
            handshake_ring_bytes: 4 << 20,
            telemetry_ring_bytes: 4 << 20,
            hello_budget: 1_000,
            hello_burst: 2_000,
            hello_load: 2_000,
            fallback: Fallback::default(),
            fallback_port: 23_124,
            agent_timeout: Duration::from_secs(2),
            tap: "enforcer0".into(),
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self { bpffs: "/sys/fs/bpf/enforcer".into(), socket: DEFAULT_SOCKET.into(), cgroup: None }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9464".into(), rule_series: 1000 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::default() }
    }
}

/// Directory below the cgroup root in which cgroups for `enforcer exec` are made.
pub const PU_CGROUPS: &str = "enforcer.pus";
/// In `datapath.interfaces`: every interface.
pub const AUTO: &str = "auto";

impl Config {
    /// Reads and checks a file; relative paths in it start at its directory.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let source = std::fs::read_to_string(file).map_err(|error| ConfigError::read(file, &error))?;
        let mut config = Self::parse(&source, file)?;
        config.resolve(file.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Parses and checks the text of a file; `file` is only named in errors.
    pub fn parse(source: &str, file: &Path) -> Result<Self, ConfigError> {
        let deserializer =
            toml::Deserializer::parse(source).map_err(|error| ConfigError::syntax(file, source, None, &error))?;
        let config: Self = serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path = error.path().to_string();
            ConfigError::syntax(file, source, Some(&path), error.inner())
        })?;
        check::check(&config).map_err(|(key, problem)| ConfigError::value(file, source, &key, problem))?;
        Ok(config)
    }

    /// The UDP port of out-of-band first contacts, if there are any.
    pub fn fallback_port(&self) -> Option<u16> {
        (self.datapath.fallback == Fallback::Udp).then_some(self.datapath.fallback_port)
    }

    /// The configured name, or the host's.
    ///
    /// # Errors
    /// If no name is configured and the host has none.
    pub fn enforcer_name(&self) -> std::io::Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let name = nix::unistd::gethostname()?;
        name.into_string().ok().filter(|name| !name.is_empty()).ok_or_else(|| {
            std::io::Error::other("the host's name is empty or not UTF-8; set `name` in the configuration")
        })
    }

    /// The configured root of the cgroup v2 hierarchy, or where `/proc/mounts` has it.
    ///
    /// # Errors
    /// If it is mounted nowhere.
    pub fn cgroup_root(&self) -> std::io::Result<PathBuf> {
        match &self.paths.cgroup {
            Some(path) => Ok(path.clone()),
            None => crate::probe::mounts::cgroup2()?.ok_or_else(|| {
                std::io::Error::other(
                    "no cgroup v2 hierarchy is mounted; `mount -t cgroup2 none /sys/fs/cgroup/unified`, or set `paths.cgroup`",
                )
            }),
        }
    }

    /// The directory in which cgroups for `enforcer exec` are made.
    ///
    /// # Errors
    /// As [`Self::cgroup_root`].
    pub fn pu_cgroups(&self) -> std::io::Result<PathBuf> {
        Ok(self.cgroup_root()?.join(PU_CGROUPS))
    }

    /// How many container engines are followed.
    pub fn engines(&self) -> usize {
        usize::from(self.docker.enabled) + usize::from(self.containerd.enabled)
    }

    /// The directory of this version's pins.
    pub fn pin_dir(&self) -> PathBuf {
        self.paths.bpffs.join(common::abi::PIN_DIR)
    }

    /// The address of the Prometheus endpoint, if there shall be one.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.listen.parse().ok()
    }

    fn resolve(&mut self, base: &Path) {
        let identity = &mut self.identity;
        let fixed = [&mut identity.ca, &mut identity.certificate, &mut identity.key];
        let paths = [
            &mut self.paths.bpffs,
            &mut self.paths.socket,
            &mut self.observe.state,
            &mut self.docker.socket,
            &mut self.containerd.socket,
            &mut self.containerd.kubelet,
        ];
        if self.records.is_file() {
            self.records.file = base.join(&self.records.file);
        }
        self.cloud.resolve(base);
        self.oidc.resolve(base);
        self.containerd.tokens.resolve(base);
        self.feed.resolve(base);
        for path in fixed.into_iter().chain(paths).chain(&mut self.policy.paths).chain(&mut self.paths.cgroup) {
            *path = base.join(&*path);
        }
    }
}

#[cfg(test)]
mod tests;
