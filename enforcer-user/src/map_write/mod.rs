//! The only writers of the pinned maps.
//!
//! [`Maps`] opens them by their pins, whether or not an agent runs: the agent writes, `status` and the like read. Every
//! method takes `&self` where the kernel itself serialises the change; what needs bookkeeping of its own (configuration,
//! PUs with their credentials, networks, pairs) is a type with `&mut self`, of which the agent has one each.

mod config;
mod docs;
mod flows;
mod networks;
mod pairs;
mod pus;
mod shield;
mod sockets;
mod sorted_out;
mod stats;
mod table;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::Addr;
use common::datagram::DatagramPeer;
use common::flow::{Flow, FlowKey};
use common::host::Host;
use common::identity::{ListenerKey, PeerAddr, PeerPu, Session, SessionPu};
use common::shield::Source;
use common::workload::{CgroupPattern, FileKey, FileVerdict, Unsorted, Watch};

pub use config::ConfigWriter;
pub use docs::{DOC_MAX, Docs};
pub use networks::{Networks, Prefix, network_table};
pub use pairs::{Pairs, PairsUse, intervals};
pub use pus::{INDEX_MAX, Pus};
pub use shield::{Budgets, ShieldWriter};
pub use sockets::Sockets;
pub use sorted_out::SortedOut;
pub use stats::Stats;
pub use table::Table;

/// A map that could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapWriteError {
    /// No such pin.
    #[error("map {name} is not pinned in {directory}; start the agent (`enforcer run`)")]
    Missing {
        /// Map.
        name: &'static str,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The pinned map is of another layout.
    #[error(
        "map {name} has {what} of {found} bytes instead of {expected}: it was made by another version; run `enforcer unload`, then start again"
    )]
    Layout {
        /// Map.
        name: &'static str,
        /// Keys or values.
        what: &'static str,
        /// Size in the kernel.
        found: u32,
        /// Size of this version.
        expected: u32,
    },
    /// No room.
    #[error(
        "map {name} is full ({capacity} entries); raise its size in `[datapath]`, then `enforcer unload` and start again"
    )]
    Full {
        /// Map.
        name: &'static str,
        /// Its capacity.
        capacity: u32,
    },
    /// The only room was in use until just now: a program may still be reading there.
    #[error("map {name} has no room that has rested long enough; try again within a second")]
    Resting {
        /// Map.
        name: &'static str,
        /// When some of it may be used again.
        until: Instant,
    },
    /// Too long for its place.
    #[error("{what} {key} is {len} bytes long, at most {max} fit; give it fewer or shorter tags")]
    TooLong {
        /// What kind of thing.
        what: &'static str,
        /// Its number.
        key: u32,
        /// Its length.
        len: usize,
        /// The longest that fits.
        max: usize,
    },
    /// An index no entry can have.
    #[error("{name}: index {index} is not between 1 and {max}")]
    Index {
        /// Map.
        name: &'static str,
        /// The index.
        index: u32,
        /// The largest.
        max: u32,
    },
    /// Intervals that the kernel's binary search could not use.
    #[error(
        "pair {subject} -> {object}: interval {index} is not behind its predecessor; this is a bug in the compiler of policies"
    )]
    Unsorted {
        /// Subject identity.
        subject: u32,
        /// Object identity.
        object: u32,
        /// Position of the offending interval.
        index: usize,
    },
    /// A system call failed.
    #[error("map {name}: {operation}: {source}")]
    System {
        /// Map.
        name: &'static str,
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Repeats `attempt` for as long as it fails for want of rested room, sleeping in between; what it locks must be given back
/// when it returns.
///
/// # Errors
/// What `attempt` returns, except [`MapWriteError::Resting`].
pub fn patiently<T>(mut attempt: impl FnMut() -> Result<T, MapWriteError>) -> Result<T, MapWriteError> {
    loop {
        match attempt() {
            Err(MapWriteError::Resting { until, .. }) => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
            }
            other => return other,
        }
    }
}

/// All maps that need no bookkeeping; share it as `Arc<Maps>`.
#[derive(Debug)]
pub struct Maps {
    directory: PathBuf,
    /// cgroup id → PU.
    pub pu_cgroups: Table<u64, u32>,
    /// The one entry of `HOST`.
    pub host: Table<u32, Host>,
    /// Interface → PU.
    pub pu_ifaces: Table<u32, u32>,
    /// Listening address → PU.
    pub pu_listeners: Table<ListenerKey, u32>,
    /// Socket → PU.
    pub pu_sockets: Sockets,
    /// Sessions by the index this enforcer chose.
    pub sessions: Table<u32, Session>,
    /// Where a session's enforcer was met.
    pub peer_addrs: Table<PeerAddr, u32>,
    /// Addresses to which first contacts go out of band at once, until when.
    pub fallback_paths: Table<Addr, u64>,
    /// Verified PUs of peers.
    pub peer_pus: Table<SessionPu, PeerPu>,
    /// Own PUs that a peer knows, until when.
    pub known_to_peer: Table<SessionPu, u64>,
    /// Sources of first contacts → when their account is even again.
    pub hello_sources: Table<Source, u64>,
    /// Which PU of a peer was met behind an address and port.
    pub datagram_peers: Table<DatagramPeer, SessionPu>,
    /// The latest time in a datagram's trailer of each PU of a peer.
    pub datagram_times: Table<SessionPu, u64>,
    /// Connections.
    pub flows: Table<FlowKey, Flow>,
    /// Identity → JSON.
    pub identity_docs: Docs,
    /// PU → JSON.
    pub pu_docs: Docs,
    /// Session → JSON.
    pub session_docs: Docs,
    /// Which processes and cgroups are to be sorted out.
    pub watch: Table<u32, Watch>,
    /// Cgroups to be sorted out when they are made.
    pub cgroup_patterns: Table<u32, CgroupPattern>,
    /// Executable files the agent has judged.
    pub exec_files: Table<FileKey, FileVerdict>,
    /// Users whose processes are to be sorted out.
    pub exec_users: Table<u32, u32>,
    /// Processes that wait to be sorted out.
    pub unsorted: Table<u32, Unsorted>,
    /// Counters.
    pub stats: Stats,
}

impl Maps {
    /// Opens the maps pinned in `directory` (`<bpffs>/v1/maps`) and checks their layouts.
    ///
    /// # Errors
    /// [`MapWriteError::Missing`], [`MapWriteError::Layout`], or what the kernel reports.
    pub fn open(directory: &Path) -> Result<Self, MapWriteError> {
        Ok(Self {
            pu_cgroups: Table::open(directory, "PU_CGROUPS")?,
            host: Table::open(directory, "HOST")?,
            pu_ifaces: Table::open(directory, "PU_IFACES")?,
            pu_listeners: Table::open(directory, "PU_LISTENERS")?,
            pu_sockets: Sockets::open(directory)?,
            sessions: Table::open(directory, "SESSIONS")?,
            peer_addrs: Table::open(directory, "PEER_ADDRS")?,
            fallback_paths: Table::open(directory, "FALLBACK_PATHS")?,
            peer_pus: Table::open(directory, "PEER_PUS")?,
            known_to_peer: Table::open(directory, "KNOWN_TO_PEER")?,
            hello_sources: Table::open(directory, "HELLO_SOURCES")?,
            datagram_peers: Table::open(directory, "DATAGRAM_PEERS")?,
            datagram_times: Table::open(directory, "DATAGRAM_TIMES")?,
            flows: Table::open(directory, "FLOWS")?,
            identity_docs: Docs::open(directory, "IDENTITY_DOCS", "the tag set of identity")?,
            pu_docs: Docs::open(directory, "PU_DOCS", "the description of PU")?,
            session_docs: Docs::open(directory, "SESSION_DOCS", "the description of session")?,
            watch: Table::open(directory, "WATCH")?,
            cgroup_patterns: Table::open(directory, "CGROUP_PATTERNS")?,
            exec_files: Table::open(directory, "EXEC_FILES")?,
            exec_users: Table::open(directory, "EXEC_USERS")?,
            unsorted: Table::open(directory, "UNSORTED")?,
            stats: Stats::open(directory)?,
            directory: directory.to_owned(),
        })
    }

    /// The PU that whatever is in no other PU belongs to, 0 if there is none.
    pub fn host_pu(&self) -> u32 {
        self.host.get(&0).ok().flatten().map_or(0, |host| host.pu)
    }

    /// Where the maps are pinned.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Name, entries and capacity of every map that can fill up.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn fill(&self) -> Result<Vec<(&'static str, u64, u32)>, MapWriteError> {
        Ok(vec![
            self.pu_cgroups.fill()?,
            self.pu_ifaces.fill()?,
            self.pu_listeners.fill()?,
            self.sessions.fill()?,
            self.peer_addrs.fill()?,
            self.fallback_paths.fill()?,
            self.peer_pus.fill()?,
            self.known_to_peer.fill()?,
            self.hello_sources.fill()?,
            self.datagram_peers.fill()?,
            self.datagram_times.fill()?,
            self.flows.fill()?,
            self.identity_docs.fill()?,
            self.pu_docs.fill()?,
            self.unsorted.fill()?,
            self.session_docs.fill()?,
        ])
    }
}
