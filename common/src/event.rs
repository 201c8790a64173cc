//! What the kernel tells the agent: held frames and telemetry.

use crate::flow::FlowKey;

/// Longest frame that is held, bytes.
pub const FRAME_MAX: usize = 2048;

/// A SYN with HELLO toward a PU of this host.
pub const HELD_HELLO: u32 = 1;
/// A SYN-ACK with HELLO_REPLY toward a PU of this host.
pub const HELD_HELLO_REPLY: u32 = 2;
/// An authenticated packet whose pair of identities has not been judged yet; handed back unchanged once it is.
pub const HELD_JUDGE: u32 = 3;

/// A SYN of a local PU whose identity is not complete yet, or of a process or cgroup that is not sorted out yet
/// ([`PU_UNSORTED`](crate::abi::PU_UNSORTED)).
pub const HELD_OUTGOING: u32 = 5;
/// A SYN toward such a PU or listener of this host; handed back unchanged once it is what it will be.
pub const HELD_INCOMING: u32 = 6;
/// A peer's PU has new tags, or a peer has heard of those of ours.
pub const HELD_UPDATE: u32 = 7;
/// A part of a frame that a PU sends to a resolver without enforcer; the frame itself has gone on.
pub const HELD_QUESTION: u32 = 8;
/// A part of a frame that such a resolver sends to a PU; the agent hands it on once it has all parts and learned from it.
pub const HELD_ANSWER: u32 = 9;
/// A part of a datagram to a peer that was never met there: to be sent on once it has been. `subject` is the length of the
/// whole frame, `object` that of a segment where the stack left it to the device to cut it up (GSO), else 0.
pub const HELD_DATAGRAM: u32 = 10;
/// A datagram that bears HELLO. Of an out-of-band one the key is that of the TCP connection it is for, with the datagram's own port
/// for the peer's.
pub const HELD_DATAGRAM_HELLO: u32 = 11;
/// A datagram that bears HELLO_REPLY, RETRY, or a DENY without session: for whoever waits for it.
pub const HELD_DATAGRAM_ANSWER: u32 = 12;
/// An authenticated datagram whose pair of identities has not been judged yet; handed back unchanged once it is.
pub const HELD_DATAGRAM_JUDGE: u32 = 13;
/// A copy of a SYN of a local PU that has gone on: its first contact is to be made out of band, because nothing came back or
/// because the path to that address is known to refuse it in band.
pub const HELD_UNANSWERED: u32 = 14;
/// A part of several datagrams, some of which bear identity, that the receiving interface has merged: to be handed back one by one.
/// `subject` and `object` as of [`HELD_DATAGRAM`].
pub const HELD_DATAGRAM_MERGED: u32 = 15;
/// Parts of a datagram that are held at most: as many as make up the longest.
pub const DATAGRAM_PARTS_MAX: u32 = 33;
/// Parts of a frame that are shown at most.
pub const PARTS_MAX: u32 = 8;

/// Record of the ring `HANDSHAKES`: a frame taken out of the kernel's path.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub time_ns: u64,
    /// `HELD_*`.
    pub kind: u32,
    /// Bytes of `frame` in use.
    pub len: u32,
    /// Interface it came on.
    pub ifindex: u32,
    /// Nonzero if it was taken at the egress of a PU's own interface.
    pub at_pu_interface: u32,
    /// PU of this host it is for.
    pub pu: u32,
    /// Subject of the pair to judge. Of [`HELD_QUESTION`], [`HELD_ANSWER`] and [`HELD_DATAGRAM`]: bytes of the whole frame. Of
    /// [`HELD_OUTGOING`] from what is not sorted out: the lower half of the socket's cookie.
    pub subject: u32,
    /// Object of the pair to judge, or the upper half of that cookie.
    pub object: u32,
    /// Where in the frame `frame` begins; zero but for later parts.
    pub offset: u32,
    /// The connection, seen from this host.
    pub key: FlowKey,
    /// The frame from its link-layer header on.
    pub frame: [u8; FRAME_MAX],
}

/// A connection or packet was refused.
pub const EVENT_DENY: u8 = 1;
/// A flow started (rules that log).
pub const EVENT_START: u8 = 2;
/// A flow ended.
pub const EVENT_END: u8 = 3;
/// A live flow was cut.
pub const EVENT_CUT: u8 = 4;

/// The packet was on its way out of the PU.
pub const OUTBOUND: u8 = 0;
/// The packet was on its way to the PU.
pub const INBOUND: u8 = 1;

/// Record of the ring `TELEMETRY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub time_ns: u64,
    /// `EVENT_*`.
    pub kind: u8,
    /// `flow::CLIENT` or `flow::SERVER`.
    pub role: u8,
    /// `flow::PATH_*`.
    pub path: u8,
    /// `OUTBOUND` or `INBOUND`.
    pub direction: u8,
    /// Reason by this end, or the one the peer gave. Of a start or end: the one for which the flow would have been
    /// refused if its PU's namespace were not in observe mode, or 0.
    pub reason: u16,
    /// Nonzero if the peer gave the reason.
    pub peer_reason: u16,
    /// The connection, seen from this host.
    pub key: FlowKey,
    /// PU of this host.
    pub pu: u32,
    /// Its identity.
    pub local_identity: u32,
    /// Identity of the peer, 0 if unknown.
    pub peer_identity: u32,
    /// Session, 0 if none.
    pub session: u32,
    /// Rule that decided, 0 for none.
    pub rule: u32,
    /// Observe rule that would decide otherwise, 0 for none.
    pub observed_rule: u32,
    /// Smoothed round-trip time, microseconds; 0 if unknown.
    pub rtt_us: u32,
    /// Policy generation.
    pub generation: u32,
    /// Start of the flow, `CLOCK_MONOTONIC` nanoseconds; 0 if there is none.
    pub created_ns: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Packets received.
    pub packets_in: u64,
}
