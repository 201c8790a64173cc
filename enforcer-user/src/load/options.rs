//! What to load and where to put it.

use std::borrow::Cow;
use std::path::PathBuf;

/// Where XDP is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native on physical interfaces, nowhere else: on virtual ones it costs more than it saves.
    #[default]
    Auto,
    /// Native wherever the driver can.
    Native,
    /// In the network stack, on any interface.
    Generic,
    /// Nowhere.
    Off,
}

/// Interfaces to enforce on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Interfaces {
    /// All there are, and those that come.
    #[default]
    All,
    /// These only.
    Named(Vec<String>),
}

impl Interfaces {
    /// Whether an interface of this name is meant.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|wanted| wanted == name),
        }
    }
}

/// Sizes of maps; `None` is the size in the object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapSizes {
    /// Connections.
    pub flows: Option<u32>,
    /// Judged pairs of identities.
    pub pairs: Option<u32>,
    /// Port intervals of all pairs together, at most `common::abi::MAX_INTERVALS`.
    pub intervals: Option<u32>,
    /// Sessions with other enforcers.
    pub sessions: Option<u32>,
    /// PUs of peers, and own PUs known to peers, an entry for each session.
    pub peer_pus: Option<u32>,
    /// Networks with a meaning.
    pub networks: Option<u32>,
    /// Ring of held frames, bytes; rounded up to a power of two.
    pub handshake_ring_bytes: Option<u32>,
    /// Ring of telemetry, bytes; rounded up to a power of two.
    pub telemetry_ring_bytes: Option<u32>,
}

impl MapSizes {
    /// Map and wanted entries, for those that are set.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let page = 4096;
        let ring = |bytes: Option<u32>| bytes.map(|bytes| bytes.clamp(page, 1 << 30).next_power_of_two());
        let intervals = self.intervals.map(|wanted| wanted.min(common::abi::MAX_INTERVALS));
        [
            ("FLOWS", self.flows),
            ("PAIRS", self.pairs),
            ("INTERVALS", intervals),
            ("SESSIONS", self.sessions),
            ("SESSION_DOCS", self.sessions),
            ("PEER_ADDRS", self.sessions.map(|sessions| sessions.saturating_mul(4))),
            ("PEER_PUS", self.peer_pus),
            ("KNOWN_TO_PEER", self.peer_pus),
            ("NETWORKS", self.networks),
            ("HANDSHAKES", ring(self.handshake_ring_bytes)),
            ("TELEMETRY", ring(self.telemetry_ring_bytes)),
        ]
        .into_iter()
        .filter_map(|(map, size)| size.map(|size| (map, size.max(1))))
    }
}

/// What to load and where to put it.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The eBPF object, as compiled.
    pub object: Cow<'static, [u8]>,
    /// Directory on a bpffs; the pins lie in `v1` below it.
    pub bpffs: PathBuf,
    /// Directory on a cgroup v2 file system: sockets made in it and below are seen.
    pub cgroup: PathBuf,
    /// Interfaces to enforce on.
    pub interfaces: Interfaces,
    /// Where XDP is used.
    pub xdp: XdpMode,
    /// Sizes of maps that do not exist yet.
    pub sizes: MapSizes,
    /// Attach by clsact even where the kernel has tcx (6.6).
    pub clsact: bool,
}
