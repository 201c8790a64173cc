//! What both sides must agree on to share pinned maps: version, names, limits, configuration.

/// Version of every layout in this crate; part of the pin directory's name.
pub const VERSION: u32 = 1;

/// Pin directory below the configured bpffs path.
pub const PIN_DIR: &str = "v1";

/// Upper bound of processing units on a host; the index 0 means "unmanaged".
pub const MAX_PUS: u32 = 16_384;
/// Upper bound of port intervals of all materialised pairs together.
pub const MAX_INTERVALS: u32 = 1 << 20;
/// Steps of the interval search: one more than log2 of [`MAX_INTERVALS`].
pub const INTERVAL_SEARCH_STEPS: u32 = 21;
/// How many ancestors of a cgroup are tried for a PU; deeper sockets are denied, not left unmanaged.
pub const MAX_CGROUP_DEPTH: u32 = 64;

/// The pseudo PU of a socket whose cgroup lies deeper than [`MAX_CGROUP_DEPTH`].
pub const PU_TOO_DEEP: u32 = u32::MAX;
/// The pseudo PU of a socket of a process or cgroup that the agent has yet to sort out.
pub const PU_UNSORTED: u32 = u32::MAX - 1;

/// Unmanaged sockets may not open or accept connections.
pub const CONFIG_UNMANAGED_DENY: u32 = 1;
/// Strangers (no identity carried) are answered with a reset instead of silence.
pub const CONFIG_STRANGERS_REJECT: u32 = 2;
/// At least one PU exists.
pub const CONFIG_HAS_PU: u32 = 4;
/// Processes or cgroups wait to be sorted out before they may communicate (`WATCH`).
pub const CONFIG_WATCHES: u32 = 8;
/// The policy names peers by DNS names: the agent is shown what PUs ask resolvers and what these answer.
pub const CONFIG_LEARN_NAMES: u32 = 16;
/// What is in no other PU belongs to the host PU (`HOST`).
pub const CONFIG_HOST: u32 = 32;
/// Some or all of the enforcement is on trial (`HOST`).
pub const CONFIG_TRIAL: u32 = 64;
/// Where in `Config::flags` the port of out-of-band HELLOs begins ([`Config::fallback_port`]).
pub const CONFIG_FALLBACK_SHIFT: u32 = 16;

/// The one entry of the map `CONFIG`; written by the agent only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Time of the agent's last sign of life, `CLOCK_MONOTONIC` nanoseconds.
    pub heartbeat_ns: u64,
    /// How old the heartbeat may be before first contacts are refused as `agent_down`, nanoseconds.
    pub agent_timeout_ns: u64,
    /// Network namespace of the agent, by its cookie: sockets of PUs elsewhere pass no program of this enforcer.
    pub netns_cookie: u64,
    /// Policy generation; a flow judged under another one is judged again at its next packet.
    pub generation: u32,
    /// Mark of packets made by the enforcer itself; random for each load.
    pub mark: u32,
    /// `CONFIG_*` bits, and in the upper half the port of out-of-band HELLOs.
    pub flags: u32,
    /// Session of this enforcer with itself, for PUs on one host.
    pub self_session: u32,
}

impl Config {
    /// UDP port on which HELLO goes out of band, and is taken; 0 if neither.
    #[inline(always)]
    pub const fn fallback_port(&self) -> u16 {
        (self.flags >> CONFIG_FALLBACK_SHIFT) as u16
    }
}

/// The trailer the agent puts behind a frame it hands to its TAP device; the TAP's program removes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// Always [`INJECTION_MAGIC`].
    pub magic: u32,
    /// Interface to hand the frame to.
    pub ifindex: u32,
    /// `INJECT_*` bits.
    pub flags: u32,
    /// Entry of `REASON_STATS` to count this frame under, 0 for none: what the agent decides is counted where the
    /// kernel's own verdicts are, and outlives the agent with them.
    pub count: u32,
}

/// First word of an [`Injection`].
pub const INJECTION_MAGIC: u32 = 0x454e_4a31;
/// Deliver to the interface's ingress; without it the frame leaves through the interface.
pub const INJECT_INGRESS: u32 = 1;
/// Already judged: the programs on `ifindex` let the frame pass unseen.
pub const INJECT_TRUSTED: u32 = 2;
/// As [`INJECT_TRUSTED`], but for the programs of the other end, where the PUs of both are behind the same interface.
pub const INJECT_ANSWER: u32 = 8;
/// Look the neighbour up, the frame's link-layer addresses mean nothing (egress only).
pub const INJECT_NEIGHBOUR: u32 = 4;

/// Differs in the mark of a packet that answers one: judged by the end that answers, not by the other yet. The lowest bit
/// of `Config::mark` is of no account therefore.
pub const MARK_ANSWER: u32 = 1;

/// Differs in the mark of a copy of a datagram that is to become bare: nothing but the identity of those that follow it. The
/// second-lowest bit of `Config::mark` is of no account therefore.
pub const MARK_BARE: u32 = 2;

/// Index into the per-CPU array `HANDSHAKE_STATS`: packets written or accepted by the kernel, by type and direction.
#[inline(always)]
pub const fn handshake_stat(packet_type: u8, inbound: bool) -> u32 {
    ((packet_type as u32) << 1) | inbound as u32
}
/// Entries of `HANDSHAKE_STATS`.
pub const HANDSHAKE_STATS: u32 = 32;

/// Index into the per-CPU array `REASON_STATS`: verdicts by reason and direction.
#[inline(always)]
pub const fn reason_stat(reason: u16, inbound: bool) -> u32 {
    ((reason as u32) << 1) | inbound as u32
}
/// Entries of `REASON_STATS`.
pub const REASON_STATS: u32 = 256;

/// Index into the per-CPU array `LOSS_STATS`.
pub const LOSS_HANDSHAKE_RING: u32 = 0;
/// Telemetry records lost because the ring was full.
pub const LOSS_TELEMETRY_RING: u32 = 1;
/// Frames handed to the agent.
pub const HELD: u32 = 2;
/// Flows that could not be entered because the table was full.
pub const LOSS_FLOW_TABLE: u32 = 3;
/// Records of refusals that were not made because a CPU had made [`RECORDS_A_TICK`] of them in the same tick.
pub const LOSS_RECORD_LIMIT: u32 = 4;
/// Processes and cgroups the agent was not told of; it looks for itself.
pub const LOSS_WORKLOADS: u32 = 5;
/// DNS messages of PUs the agent was not shown: too many of them in a tick, or no room.
pub const LOSS_NAMES: u32 = 6;
/// Entries of `LOSS_STATS`.
pub const LOSS_STATS: u32 = 8;

/// DNS messages a CPU shows the agent in one tick of the kernel's clock.
pub const NAMES_A_TICK: u64 = 16;
/// Merged datagrams each CPU hands to the agent in a tick of the kernel's clock (1 to 10 ms).
pub const MERGED_A_TICK: u64 = 16;

/// Refusals a CPU records in one tick of the kernel's clock; a flood is counted, not described packet by packet.
pub const RECORDS_A_TICK: u64 = 64;
