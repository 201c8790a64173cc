//! The one numbered, append-only table of reasons; used by kernel, metrics, logs and command line.

macro_rules! reasons {
    ($($variant:ident = $number:literal, $name:literal, $explain:literal, $remedy:literal;)*) => {
        /// Why a packet or connection was refused; `Allowed` is the absence of a refusal.
        #[repr(u16)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $(#[doc = $explain] $variant = $number,)* }

        /// Every reason in order of its number.
        pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

        impl Reason {
            /// The reason with this number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
            /// Stable snake_case name, as in metrics and logs.
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
            /// One sentence: what happened.
            pub const fn explanation(self) -> &'static str { match self { $(Self::$variant => $explain,)* } }
            /// One sentence: what to do about it.
            pub const fn remedy(self) -> &'static str { match self { $(Self::$variant => $remedy,)* } }
        }
    };
}

reasons! {
    Allowed = 0, "allowed", "A rule allows it.", "Nothing to do.";
    NoRule = 1, "no_rule", "No rule allows it.", "`enforcer policy explain` shows which rule comes nearest; add one if it should pass.";
    DenyRule = 2, "deny_rule", "A deny rule forbids it.", "`enforcer policy explain` names the rule.";
    NoIdentity = 3, "no_identity", "A connection toward a PU carries no identity.", "Install an enforcer on the peer, or write a rule for its network (`net CIDR -> ...`).";
    PeerNoIdentity = 4, "peer_no_identity", "The answering host proved no identity.", "Install an enforcer on the peer, or write an external-network rule; check the path for middleboxes that remove TCP options.";
    OutsideIdentityNetworks = 5, "outside_identity_networks", "The destination is outside the identity networks and no external-network rule covers it.", "Add the network to `identity.networks`, or write a rule `... -> net CIDR`.";
    HelloMalformed = 6, "hello_malformed", "A first-contact packet could not be parsed.", "Look for a middlebox that changes packets, or for an attack.";
    HelloTampered = 7, "hello_tampered", "Option and credential of a first-contact packet do not belong together.", "Look for a middlebox that changes packets, or for an attack.";
    CredentialSignature = 8, "credential_signature", "The signature over a Trust Profile is wrong.", "Look for an attack; re-issue the peer's certificate if its key was replaced.";
    CredentialExpired = 9, "credential_expired", "A Trust Profile has expired.", "Check the peer's clock and that its agent runs (it renews profiles).";
    CredentialNotYetValid = 10, "credential_not_yet_valid", "A Trust Profile is from the future, beyond the permitted skew.", "Synchronise the clocks or raise `identity.clock_skew`.";
    ChainUntrusted = 11, "chain_untrusted", "The peer's certificate was not issued by a trusted authority.", "Issue it from the common authority, or add that authority to `identity.ca`.";
    CertificateExpired = 12, "certificate_expired", "The peer's certificate has expired.", "`enforcer ca issue` a new one for the peer.";
    CertificateNotYetValid = 13, "certificate_not_yet_valid", "The peer's certificate is not valid yet.", "Synchronise the clocks.";
    CertificateUsage = 14, "certificate_usage", "The peer's certificate may not be used for this purpose.", "Issue enforcer certificates with `enforcer ca issue`.";
    CertificateName = 15, "certificate_name", "The peer's certificate names no enforcer.", "Issue enforcer certificates with `enforcer ca issue`.";
    ProfileMismatch = 16, "profile_mismatch", "A Trust Profile contradicts its certificate or its packet.", "Look for an attack.";
    ResumeMac = 17, "resume_mac", "A known session's connection attempt carries a wrong MAC.", "Look for forged packets, or for a middlebox that rewrites sequence numbers.";
    UnknownSession = 18, "unknown_session", "The peer named a session this host does not know; it was asked to start over.", "Nothing: the peer sends its credential at once.";
    UnknownHandle = 19, "unknown_handle", "The peer named a PU this host does not know; it was asked to start over.", "Nothing: the peer sends its credential at once.";
    ReplyMac = 20, "reply_mac", "The answer's MAC is wrong or belongs to another connection.", "Look for forged or replayed packets, or for a middlebox that rewrites sequence numbers.";
    ConfirmMac = 21, "confirm_mac", "The confirmation's MAC is wrong or belongs to another connection.", "Look for forged or replayed packets, or for a middlebox that rewrites sequence numbers.";
    Unconfirmed = 22, "unconfirmed", "A segment came before the connection was confirmed.", "Nothing if rare (reordering): TCP sends it again.";
    NoFlow = 23, "no_flow", "A segment, or what an error of ICMP quotes, belongs to no authenticated connection.", "Nothing if rare (late segments); connections older than their PU must be opened again.";
    ForgedByPu = 24, "forged_by_pu", "A PU tried to write identity itself.", "Look at that PU: it holds CAP_NET_RAW and forges packets.";
    IdentityMissing = 25, "identity_missing", "A packet of a known peer that must carry identity carries none.", "Look for a middlebox that removes TCP options, or for an attack.";
    OptionSpace = 26, "option_space", "The TCP header has no room left for identity.", "Switch off the option that takes the room (MD5, AO).";
    TableFull = 27, "table_full", "The flow table is full.", "Raise `datapath.max_flows`.";
    RingFull = 28, "ring_full", "More first contacts wait than the agent can take.", "Look for a flood; raise `datapath.handshake_ring_bytes`.";
    AgentDown = 29, "agent_down", "The agent is not running and this peer or PU was never met.", "Start the agent: `enforcer run`.";
    Undecided = 30, "undecided", "The pair is not judged yet.", "Nothing: it is being judged.";
    Revoked = 31, "revoked", "The connection is no longer allowed.", "`enforcer policy explain` names what changed.";
    ProtocolDenied = 32, "protocol_denied", "This protocol is not allowed for a PU here.", "Write an external-network rule for it.";
    UnmanagedDenied = 33, "unmanaged_denied", "Unmanaged processes may not communicate here.", "Make the process a PU, or set `datapath.unmanaged = \"allow\"`.";
    Malformed = 34, "malformed", "The packet is malformed.", "Look for an attack.";
    ExtensionHeader = 35, "extension_header", "The packet carries IPv6 extension headers or IPv4 options, which are not let through.", "Look for an attack.";
    Fragment = 36, "fragment", "A fragment whose connection is unknown.", "Check the path MTU.";
    PeerDenied = 37, "peer_denied", "The peer's enforcer refused without saying why.", "Look at the peer's log.";
    SessionExpired = 38, "session_expired", "The session has expired.", "Nothing: it is renewed by the next first contact.";
    SimultaneousOpen = 39, "simultaneous_open", "Both ends opened the same connection at once.", "Nothing: this is refused by design.";
    NoCredential = 40, "no_credential", "The PU has no signed credential.", "`enforcer pus` shows why; a profile may be too large.";
    RetryLoop = 41, "retry_loop", "The peer asked to start over more than once.", "Look for a load balancer that splits one connection.";
    TooDeep = 42, "cgroup_too_deep", "The process lives deeper in the cgroup tree than is looked.", "Move it up.";
    Internal = 43, "internal", "A kernel helper failed.", "Report it with `enforcer doctor --json`.";
    PairUnavailable = 44, "pair_unavailable", "The verdict table is full.", "Reduce identities or raise `datapath.max_pairs`.";
    OtherNamespace = 45, "other_namespace", "A process of a PU made a socket in another network namespace, where nothing is enforced.", "Make what lives in that namespace a PU by its interface: `enforcer pu add --interface IF`.";
    NoLinkHeader = 46, "no_link_header", "A PU's packet on an interface without link-layer header (tun, WireGuard, ppp), where identity is not carried yet.", "Reach the PU through an Ethernet interface.";
    PuIncomplete = 47, "pu_incomplete", "Not all tags of the PU are known yet.", "Look in the log for the source that is late; `tags.wait` is how long a first connection waits.";
    UpdateVoid = 48, "update_void", "A message about changed tags is forged, damaged, or older than what is known.", "Look for an attack; one that was only late comes again.";
    OtherListener = 49, "other_listener", "A program of sockets that share a port chose another one than the PU's that was judged.", "Share ports within one PU only, or take the program off the group (SO_DETACH_REUSEPORT_BPF).";
    ResumeReplayed = 50, "resume_replayed", "The connection attempt of a known session was seen before; its sender was asked to say it otherwise.", "Look for an attack: somebody records packets and sends them again. Rarely two attempts are the same by chance, which costs the second one a round trip.";
    HelloBudget = 51, "hello_budget", "One address has sent more first contacts than it may in this time.", "Look for a flood; raise `datapath.hello_budget` if many peers share one address.";
    Challenged = 52, "challenged", "There are too many first contacts at once; the peer was asked to prove its address before anything else.", "Nothing if short: the peer answers at once. If it lasts, look for a flood from forged addresses.";
    HelloUnanswered = 53, "hello_unanswered", "A first contact was sent three times and nothing came back. It goes on trying.", "See whether the peer is up. If it answers others, look for a middlebox that drops SYNs with data (`datapath.fallback` gets round it) or with options it does not know.";
    DatagramReplayed = 54, "datagram_replayed", "The identity of a datagram was used before, or is older than what came since.", "Nothing if rare (doubled or much delayed packets); look for an attack otherwise.";
    DatagramMerged = 55, "datagram_merged", "Datagrams that bear identity were merged into one on their way, and could not be taken apart: forged, too many at once, or no agent.", "Nothing if rare: later ones bear none. Otherwise start the agent, or switch off UDP aggregation at the receiving interface (`ethtool -K IF rx-udp-gro-forwarding off`).";
    FallbackOff = 56, "fallback_off", "A peer introduced itself out of band, which is not taken here, or not at that port.", "If the path between the two refuses first contacts, set `datapath.fallback = \"udp\"` and the same `datapath.fallback_port` at both ends.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_fit_the_option() {
        for (index, reason) in ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_number(index as u16), Some(*reason));
        }
        assert!(ALL.len() < 128);
    }
}
