//! PUs, sessions, peers and networks as the kernel knows them.

use crate::{
    Addr,
    wire::{CREDENTIAL_MAX, MacKey},
};

/// Value of `PUS`, indexed by PU; written by the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pu {
    /// Identity (namespace and tags), 0 while the slot is free.
    pub identity: u32,
    /// Slot of the signed credential in `CREDENTIALS`, 0 if none.
    pub credential: u32,
    /// End of the credential's validity, `CLOCK_MONOTONIC` nanoseconds.
    pub credential_until_ns: u64,
    /// Handle by which peers know this PU.
    pub handle: u16,
    /// `PU_*` bits.
    pub flags: u16,
    /// Zero.
    pub pad: [u16; 2],
}

/// The PU's namespace is in observe mode: what policy refuses is let through, and told of.
pub const PU_OBSERVED: u16 = 1;
/// Not all tags of the PU are known yet: it may not communicate, and its first SYNs wait.
pub const PU_INCOMPLETE: u16 = 2;

/// Value of `CREDENTIALS`: what is attached to first-contact packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// First twelve bytes of the SHA-256 of `bytes[..len]`, for the option's index and MAC.
    pub hash_index: u32,
    /// Length in bytes, 1 to [`CREDENTIAL_MAX`].
    pub len: u32,
    /// Second part of the hash.
    pub hash_mac: u64,
    /// One's-complement sum of `bytes[..len]`, not folded or inverted (RFC 1071), as `bpf_csum_diff` returns it.
    pub csum: u32,
    /// Zero.
    pub pad: u32,
    /// The encoded credential.
    pub bytes: [u8; CREDENTIAL_MAX + 4],
}

/// Value of `SESSIONS`, keyed by the index this enforcer chose.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Key of packets this enforcer sends.
    pub key_out: MacKey,
    /// Key of packets the peer sends.
    pub key_in: MacKey,
    /// End of the session, `CLOCK_MONOTONIC` nanoseconds.
    pub until_ns: u64,
    /// Index the peer chose, 0 until it is known.
    pub peer_index: u32,
    /// Peer enforcer, as numbered by the agent.
    pub peer: u32,
}

/// Key of `PEER_ADDRS`: where a session's enforcer was met.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerAddr {
    /// Destination address.
    pub addr: Addr,
    /// Destination port, host order; 0 for the address as a whole.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// Key of `PEER_PUS` and `KNOWN_TO_PEER`: a PU within a session.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SessionPu {
    /// Session, by the index this enforcer chose.
    pub session: u32,
    /// Handle.
    pub handle: u16,
    /// Zero.
    pub pad: u16,
}

/// Value of `PEER_PUS`: a verified PU of a peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerPu {
    /// End of its Trust Profile's validity, `CLOCK_MONOTONIC` nanoseconds.
    pub until_ns: u64,
    /// When its Trust Profile was issued, Unix milliseconds: an UPDATE with an older one is void.
    pub issued_ms: u64,
    /// Its identity.
    pub identity: u32,
    /// Zero.
    pub pad: u32,
}

/// Key of `NETWORKS`, a longest-prefix-match trie over mapped addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Identity of the external network, 0 if no rule names it.
    pub external: u32,
    /// `NETWORK_*` bits.
    pub flags: u32,
}
/// Identity is attached to connections into this network.
pub const NETWORK_IDENTITY: u32 = 1;

/// Key of `PU_LISTENERS`: a listening socket of a PU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Bound address; `::` for any, `0.0.0.0` (mapped) for any of IPv4.
    pub addr: Addr,
    /// Bound port, host order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}
