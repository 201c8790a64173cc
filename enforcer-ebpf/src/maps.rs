//! Every map. Sizes are defaults; the loader overrides those that are configurable.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SkStorage},
    macros::btf_map,
};
use common::{
    Addr,
    abi::{
        Config, HANDSHAKE_STATS as HANDSHAKE_STATS_LEN, LOSS_STATS as LOSS_STATS_LEN, MAX_PUS,
        REASON_STATS as REASON_STATS_LEN,
    },
    datagram::{Accepted, DatagramPeer},
    event::{Event, Held},
    flow::{Flow, FlowKey},
    host::Host,
    identity::{Credential, ListenerKey, Network, PeerAddr, PeerPu, Pu, Session, SessionPu},
    shield::{RESUME_BUCKETS, Resumes, SOURCES, Shield, Source},
    verdict::{Interval, Pair, Run},
    workload::{
        CGROUP_PATTERNS as CGROUP_PATTERNS_LEN, CgroupPattern, FileKey, FileVerdict, Unsorted, Watch, WorkloadEvent,
    },
};

use crate::{emit::Budget, hook_cgroup_mkdir::Path, other_protocols::FragmentKey, packet::Parsed};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Configuration, generation and heartbeat.
#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();
/// The host PU, and what is on trial.
#[btf_map]
pub static HOST: Array<Host, 1> = Array::new();
/// cgroup id to PU.
#[btf_map]
pub static PU_CGROUPS: HashMap<u64, u32, 16384, NO_PREALLOC> = HashMap::new();
/// Interface index to PU.
#[btf_map]
pub static PU_IFACES: HashMap<u32, u32, 16384, NO_PREALLOC> = HashMap::new();
/// Socket to PU: the one truth of attribution.
#[btf_map]
pub static PU_SOCKETS: SkStorage<u32> = SkStorage::new();
/// Listening sockets of PUs, for the XDP shield only.
#[btf_map]
pub static PU_LISTENERS: HashMap<ListenerKey, u32, 16384, NO_PREALLOC> = HashMap::new();
/// PU index to identity, handle and credential. Indices are never used again, so there are more of them than PUs.
#[btf_map]
pub static PUS: HashMap<u32, Pu, { MAX_PUS as usize }, NO_PREALLOC> = HashMap::new();
/// Signed credentials, attached to first-contact packets.
#[btf_map]
pub static CREDENTIALS: HashMap<u32, Credential, 32768, NO_PREALLOC> = HashMap::new();
/// Sessions by the index this enforcer chose.
#[btf_map]
pub static SESSIONS: HashMap<u32, Session, 65536, NO_PREALLOC> = HashMap::new();
/// Address to the session last met there.
#[btf_map]
pub static PEER_ADDRS: LruHashMap<PeerAddr, u32, 131072> = LruHashMap::new();
/// Addresses to which first contacts go out of band at once, and until when.
#[btf_map]
pub static FALLBACK_PATHS: LruHashMap<Addr, u64, 16384> = LruHashMap::new();
/// Verified PUs of peers.
#[btf_map]
pub static PEER_PUS: HashMap<SessionPu, PeerPu, 262144, NO_PREALLOC> = HashMap::new();
/// Until when a peer remembers one of our PUs.
#[btf_map]
pub static KNOWN_TO_PEER: HashMap<SessionPu, u64, 262144, NO_PREALLOC> = HashMap::new();
/// What one source and all together may ask of the agent, and the secrets of cookies.
#[btf_map]
pub static SHIELD: Array<Shield, 1> = Array::new();
/// Sources of first contacts, and when their accounts are even again.
#[btf_map]
pub static HELLO_SOURCES: LruHashMap<Source, u64, { SOURCES as usize }> = LruHashMap::new();
/// The account of all of them together.
#[btf_map]
pub static ALL_HELLOS_SCRATCH: Array<u64, 1> = Array::new();
/// RESUMEs that were taken.
#[btf_map]
pub static RESUMES: Array<Resumes, { RESUME_BUCKETS as usize }> = Array::new();
/// External and identity networks.
#[btf_map]
pub static NETWORKS: LpmTrie<Addr, Network, 262144> = LpmTrie::new();
/// Pair of identities to its intervals.
#[btf_map]
pub static PAIRS: HashMap<Pair, Run, 1048576, NO_PREALLOC> = HashMap::new();
/// Port intervals of all pairs.
#[btf_map]
pub static INTERVALS: Array<Interval, 1048576> = Array::new();
/// Live connections.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 262144, NO_PREALLOC> = HashMap::new();
/// Verdicts by reason and direction.
#[btf_map]
pub static REASON_STATS: PerCpuArray<u64, { REASON_STATS_LEN as usize }> = PerCpuArray::new();
/// Handshake packets by type and direction.
#[btf_map]
pub static HANDSHAKE_STATS: PerCpuArray<u64, { HANDSHAKE_STATS_LEN as usize }> = PerCpuArray::new();
/// Held frames and losses.
#[btf_map]
pub static LOSS_STATS: PerCpuArray<u64, { LOSS_STATS_LEN as usize }> = PerCpuArray::new();
/// Where a flow is put together before it is entered: larger than the stack likes.
#[btf_map]
pub static FLOW_SCRATCH: PerCpuArray<Flow, 1> = PerCpuArray::new();
/// The packet at hand, parsed: one place for the programs of every interface, one for those of a PU's, one for what runs
/// while they do.
#[btf_map]
pub static PACKET_SCRATCH: PerCpuArray<Parsed, 3> = PerCpuArray::new();
/// Packets of which PUs have sent the first fragment.
#[btf_map]
pub static FRAGMENTS_SCRATCH: LruHashMap<FragmentKey, u32, 4096> = LruHashMap::new();
/// Interfaces at which TC has judged what sockets other than TCP's are to hear. Entered anew before each such packet.
#[btf_map]
pub static JUDGED_SCRATCH: LruHashMap<u32, u32, 4096> = LruHashMap::new();
/// Records of refusals this CPU has made in the present tick.
#[btf_map]
pub static BUDGET_SCRATCH: PerCpuArray<Budget, 1> = PerCpuArray::new();
/// Which processes and cgroups are to be sorted out.
#[btf_map]
pub static WATCH: Array<Watch, 1> = Array::new();
/// Cgroups that are to be sorted out when they are made.
#[btf_map]
pub static CGROUP_PATTERNS: Array<CgroupPattern, { CGROUP_PATTERNS_LEN as usize }> = Array::new();
/// Executable files the agent has judged.
#[btf_map]
pub static EXEC_FILES: LruHashMap<FileKey, FileVerdict, 16384> = LruHashMap::new();
/// Users whose processes are to be sorted out.
#[btf_map]
pub static EXEC_USERS: HashMap<u32, u32, 1024, NO_PREALLOC> = HashMap::new();
/// Processes that wait to be sorted out.
#[btf_map]
pub static UNSORTED: HashMap<u32, Unsorted, 16384, NO_PREALLOC> = HashMap::new();
/// The path of the cgroup at hand.
#[btf_map]
pub static PATH_SCRATCH: PerCpuArray<Path, 1> = PerCpuArray::new();
/// Processes and cgroups for the agent to sort out.
#[btf_map]
pub static WORKLOADS: RingBuf<WorkloadEvent, 262144> = RingBuf::new();
/// DNS messages this CPU has shown the agent in the present tick.
#[btf_map]
pub static NAMES_SCRATCH: PerCpuArray<Budget, 1> = PerCpuArray::new();
/// Merged datagrams this CPU has handed to the agent in the present tick.
#[btf_map]
pub static MERGED_SCRATCH: PerCpuArray<Budget, 1> = PerCpuArray::new();
/// Frames for the agent.
#[btf_map]
pub static HANDSHAKES: RingBuf<Held, 4194304> = RingBuf::new();
/// Telemetry for the agent; separate, so that a flood of records cannot starve authentication.
#[btf_map]
pub static TELEMETRY: RingBuf<Event, 4194304> = RingBuf::new();
/// The agent's own memory, so that it survives the agent: identity documents.
#[btf_map]
pub static IDENTITY_DOCS: HashMap<u32, [u8; 2048], 65536, NO_PREALLOC> = HashMap::new();
/// The agent's own memory: PU documents.
#[btf_map]
pub static PU_DOCS: HashMap<u32, [u8; 2048], 16384, NO_PREALLOC> = HashMap::new();
/// The agent's own memory: session documents.
#[btf_map]
pub static SESSION_DOCS: HashMap<u32, [u8; 2048], 65536, NO_PREALLOC> = HashMap::new();
/// What goes on with datagrams.
#[btf_map]
pub static DATAGRAM_PROGRAMS: ProgramArray<5> = ProgramArray::new();
/// Which PU of a peer was met behind an address and port.
#[btf_map]
pub static DATAGRAM_PEERS: LruHashMap<DatagramPeer, SessionPu, 131072> = LruHashMap::new();
/// The latest time in a trailer of each PU of a peer: what is much older was there before.
#[btf_map]
pub static DATAGRAM_TIMES: HashMap<SessionPu, u64, 262144, NO_PREALLOC> = HashMap::new();
/// Trailers accepted lately; each is once.
#[btf_map]
pub static ACCEPTED_SCRATCH: LruHashMap<Accepted, u32, 65536> = LruHashMap::new();
