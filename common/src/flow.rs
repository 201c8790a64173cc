//! Flow table: one entry an end of an authenticated connection.

use crate::Addr;

/// A connection as seen by one end. Aligned so that the kernel side clears and copies it by words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Address of the PU's end.
    pub local: Addr,
    /// Address of the peer's end.
    pub remote: Addr,
    /// Port of the PU's end, host order.
    pub local_port: u16,
    /// Port of the peer's end, host order.
    pub remote_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// The client's SYN has left.
pub const SYN_SENT: u8 = 1;
/// The server's SYN was verified and judged.
pub const SYN_RECEIVED: u8 = 2;
/// The client verified the SYN-ACK; its ACK and data carry CONFIRM until the server is heard.
pub const CONFIRMING: u8 = 3;
/// Both ends are authenticated.
pub const ESTABLISHED: u8 = 4;
/// No longer allowed: every packet is answered with a reset.
pub const CUT: u8 = 5;

/// This end opened the connection.
pub const CLIENT: u8 = 0;
/// This end accepted the connection.
pub const SERVER: u8 = 1;

/// No handshake took place.
pub const PATH_NONE: u8 = 0;
/// First contact: credentials were exchanged.
pub const PATH_HELLO: u8 = 1;
/// Known session: judged in the kernel alone.
pub const PATH_RESUME: u8 = 2;
/// External network: judged by address.
pub const PATH_EXTERNAL: u8 = 3;
/// Of a client's connection: its path refused the first contact, which was made over UDP instead; then it was resumed.
pub const PATH_OUT_OF_BAND: u8 = 4;

/// The local end sent FIN.
pub const FLAG_FIN_OUT: u8 = 1;
/// The peer sent FIN.
pub const FLAG_FIN_IN: u8 = 2;
/// A reset passed.
pub const FLAG_RST: u8 = 4;
/// The rule asks for a record when the flow starts.
pub const FLAG_LOG: u8 = 8;
/// A RETRY was followed already.
pub const FLAG_RETRIED: u8 = 16;
/// This end sent its credential in the SYN-ACK.
pub const FLAG_CREDENTIAL_SENT: u8 = 32;
/// Of a client, which answers no SYN: a CHALLENGE to the SYN its stack sent last was followed already.
pub const FLAG_CHALLENGED: u8 = FLAG_CREDENTIAL_SENT;
/// The socket at this end is gone; only its reset may still leave.
pub const FLAG_CLOSED: u8 = 64;
/// A socket at this end holds the connection: sockops will tell its end.
pub const FLAG_SOCKET: u8 = 128;

/// Value of the map `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// One of `SYN_SENT` to `CUT`.
    pub state: u8,
    /// `CLIENT` or `SERVER`.
    pub role: u8,
    /// `PATH_*`.
    pub path: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// Number of the reason once the flow is cut; before that, of the one for which it would have been refused if its
    /// PU's namespace were not in observe mode, or 0.
    pub reason: u16,
    /// Handle of the PU at this end, as the peer knows it.
    pub local_handle: u16,
    /// Handle of the PU at the other end.
    pub peer_handle: u16,
    /// 1 once the connection was counted as `allowed`.
    pub counted: u16,
    /// Index of the PU at this end.
    pub pu: u32,
    /// Identity of the PU at this end.
    pub local_identity: u32,
    /// Identity of the peer; an external network's for external flows.
    pub peer_identity: u32,
    /// Session, by the index this enforcer chose.
    pub session: u32,
    /// Initial sequence number of this end.
    pub local_isn: u32,
    /// Initial sequence number of the peer.
    pub peer_isn: u32,
    /// Policy generation under which the flow was judged.
    pub generation: u32,
    /// Rule that allowed it.
    pub rule: u32,
    /// Rule that would judge otherwise (observe), or 0.
    pub observed_rule: u32,
    /// Interface the flow was first seen on.
    pub ifindex: u32,
    /// Interface of the PU if it is attributed by interface, or 0.
    pub pu_ifindex: u32,
    /// Sequence number after the last segment this end sent.
    pub next_out: u32,
    /// Last acknowledgement number this end sent.
    pub ack_out: u32,
    /// Smoothed round-trip time the socket reported when it was established, microseconds; 0 if there is none.
    pub rtt_us: u32,
    /// Slot of the credential whose prekey made the session, 0 for the PU's present one: a rotation between the SYN's
    /// verification and the SYN-ACK must not part the two.
    pub credential: u32,
    /// MAC of the CONFIRM, computed once.
    pub confirm_mac: u64,
    /// First packet, `CLOCK_MONOTONIC` nanoseconds.
    pub created_ns: u64,
    /// Bytes of IP packets this end sent.
    pub bytes_out: u64,
    /// Packets (as the stack hands them over, before segmentation) this end sent.
    pub packets_out: u64,
    /// Bytes of IP packets this end received.
    pub bytes_in: u64,
    /// Packets (after aggregation) this end received.
    pub packets_in: u64,
    /// Last packet, coarse `CLOCK_MONOTONIC` nanoseconds.
    pub seen_ns: u64,
}

impl Flow {
    /// Whether both ends have said that they are done, or one has broken off: the tuple may be used again.
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        const BOTH: u8 = FLAG_FIN_IN | FLAG_FIN_OUT;
        self.flags & FLAG_RST != 0 || self.flags & BOTH == BOTH
    }
}
