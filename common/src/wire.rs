//! The TCP option that carries identity, and the MAC over it.
//!
//! ```text
//! 254 | 20 | ExID (2) | version, type (1) | flags (1) | PU handle (2) | session index (4) | MAC (8)
//! ```
//!
//! An experimental option with a shared-use identifier (RFC 6994). It is written last, so it always ends the TCP
//! header: no walk over options is needed to find it. All integers travel in network byte order.

/// Length of the option, bytes.
pub const OPTION_LEN: usize = 20;
/// Option kind (RFC 4727).
pub const OPTION_KIND: u8 = 254;
/// Experiment identifier (RFC 6994).
pub const EXID: u16 = 0x5a54;
/// Version of the wire format, upper four bits of the type byte.
pub const VERSION: u8 = 1;

/// First contact: the sender's credential follows as payload; index and MAC hold the first twelve bytes of its SHA-256.
pub const HELLO: u8 = 1;
/// Flag of HELLO: the MAC is the one of a CHALLENGE (see [`crate::shield::cookie`]), and only the index holds a part of the
/// credential's hash.
pub const HELLO_COOKIE: u8 = 1;
/// Flag of RESUME: another one with the same MAC was taken before, by chance or by a replay; with the flag it is another MAC.
pub const RESUME_AGAIN: u8 = 1;
/// Answer to first contact: the sender's credential follows as payload.
pub const HELLO_REPLY: u8 = 2;
/// A further connection of a known session.
pub const RESUME: u8 = 3;
/// Answer to a further connection.
pub const RESUME_REPLY: u8 = 4;
/// The initiator's proof of liveness, on its ACK and on data until the peer is heard.
pub const CONFIRM: u8 = 5;
/// Session or handle unknown: start over. The segment repeats the options of the one it answers.
pub const RETRY: u8 = 6;
/// Prove your address before a signature is checked: the same HELLO again, with this MAC in it. The segment repeats the
/// options of the one it answers.
pub const CHALLENGE: u8 = 7;
/// Refused; `flags` holds the number of the [`crate::drop_reason::Reason`].
pub const DENY: u8 = 8;

/// On an established connection: the tags of the sender's PU changed. Its new credential follows as payload; with the flag
/// [`UPDATE_HEARD`] and without payload it is the answer. Never handed to the stack.
pub const UPDATE: u8 = 9;
/// Flag of UPDATE: the sender has put the credential of that MAC in force.
pub const UPDATE_HEARD: u8 = 1;

/// The option as it lies in the packet. Aligned so that the kernel side moves it by words, not byte by byte.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionBytes {
    /// [`OPTION_KIND`].
    pub kind: u8,
    /// [`OPTION_LEN`].
    pub len: u8,
    /// [`EXID`], network order.
    pub exid: [u8; 2],
    /// Version and type.
    pub version_type: u8,
    /// Type-specific; a reason in DENY and RETRY.
    pub flags: u8,
    /// PU handle of the sender, network order.
    pub handle: [u8; 2],
    /// Session index, network order.
    pub index: [u8; 4],
    /// MAC, or part of the credential's hash in HELLO.
    pub mac: [u8; 8],
}

impl OptionBytes {
    /// An option of this type.
    #[inline(always)]
    pub const fn new(packet_type: u8, flags: u8, handle: u16, index: u32, mac: u64) -> Self {
        Self {
            kind: OPTION_KIND,
            len: OPTION_LEN as u8,
            exid: EXID.to_be_bytes(),
            version_type: (VERSION << 4) | packet_type,
            flags,
            handle: handle.to_be_bytes(),
            index: index.to_be_bytes(),
            mac: mac.to_be_bytes(),
        }
    }

    /// Whether these bytes are our option, of any version.
    #[inline(always)]
    pub const fn is_ours(&self) -> bool {
        self.kind == OPTION_KIND
            && self.len == OPTION_LEN as u8
            && self.exid[0] == EXID.to_be_bytes()[0]
            && self.exid[1] == EXID.to_be_bytes()[1]
    }

    /// The type if the version is ours, else 0.
    #[inline(always)]
    pub const fn packet_type(&self) -> u8 {
        if self.version_type >> 4 == VERSION { self.version_type & 0x0f } else { 0 }
    }

    /// PU handle of the sender.
    #[inline(always)]
    pub const fn handle(&self) -> u16 {
        u16::from_be_bytes(self.handle)
    }

    /// Session index.
    #[inline(always)]
    pub const fn index(&self) -> u32 {
        u32::from_be_bytes(self.index)
    }

    /// MAC.
    #[inline(always)]
    pub const fn mac(&self) -> u64 {
        u64::from_be_bytes(self.mac)
    }
}

/// A 128-bit key of one direction of a session.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct MacKey {
    /// First half, as SipHash's `k0`.
    pub k0: u64,
    /// Second half, as SipHash's `k1`.
    pub k1: u64,
}

impl core::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("MacKey(..)")
    }
}

/// What a MAC covers besides the option's own fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// Initial sequence number of the sender of the option; 0 in DENY.
    pub sender_isn: u32,
    /// Initial sequence number of the receiver; 0 in RESUME.
    pub peer_isn: u32,
    /// PU handle of the receiver; 0 in RESUME and DENY.
    pub peer_handle: u16,
}

/// The MAC of an option of these fields.
#[inline(always)]
pub fn mac(key: &MacKey, packet_type: u8, flags: u8, handle: u16, index: u32, transcript: &Transcript) -> u64 {
    let head = packet_type as u64 | (flags as u64) << 8 | (handle as u64) << 16 | (index as u64) << 32;
    let isns = transcript.sender_isn as u64 | (transcript.peer_isn as u64) << 32;
    siphash24_3(key, head, isns, transcript.peer_handle as u64)
}

/// The MAC of an UPDATE: over its own fields, the initial sequence numbers of the connection it is about, and the credential it
/// brings or answers, by the second part of its hash.
pub fn update_mac(key: &MacKey, flags: u8, handle: u16, index: u32, transcript: &Transcript, credential: u64) -> u64 {
    let head = UPDATE as u64 | (flags as u64) << 8 | (handle as u64) << 16 | (index as u64) << 32;
    let isns = transcript.sender_isn as u64 | (transcript.peer_isn as u64) << 32;
    siphash24_3(key, head, isns, credential)
}

/// A complete option with its MAC.
#[inline(always)]
pub fn sealed(
    key: &MacKey,
    packet_type: u8,
    flags: u8,
    handle: u16,
    index: u32,
    transcript: &Transcript,
) -> OptionBytes {
    let mac = mac(key, packet_type, flags, handle, index, transcript);
    OptionBytes::new(packet_type, flags, handle, index, mac)
}

macro_rules! sip_round {
    ($v0:ident, $v1:ident, $v2:ident, $v3:ident) => {
        $v0 = $v0.wrapping_add($v1);
        $v1 = $v1.rotate_left(13) ^ $v0;
        $v0 = $v0.rotate_left(32);
        $v2 = $v2.wrapping_add($v3);
        $v3 = $v3.rotate_left(16) ^ $v2;
        $v0 = $v0.wrapping_add($v3);
        $v3 = $v3.rotate_left(21) ^ $v0;
        $v2 = $v2.wrapping_add($v1);
        $v1 = $v1.rotate_left(17) ^ $v2;
        $v2 = $v2.rotate_left(32);
    };
}

/// SipHash-2-4 (Aumasson, Bernstein 2012) of exactly so many bytes, given as their little-endian words. Unrolled: a loop costs the
/// verifier a path for each turn.
macro_rules! siphash24 {
    ($key:expr, $bytes:literal, $($word:expr),*) => {{
        let key: &MacKey = $key;
        let mut v0 = 0x736f_6d65_7073_6575 ^ key.k0;
        let mut v1 = 0x646f_7261_6e64_6f6d ^ key.k1;
        let mut v2 = 0x6c79_6765_6e65_7261 ^ key.k0;
        let mut v3 = 0x7465_6462_7974_6573 ^ key.k1;
        $(
            v3 ^= $word;
            sip_round!(v0, v1, v2, v3);
            sip_round!(v0, v1, v2, v3);
            v0 ^= $word;
        )*
        v3 ^= $bytes << 56;
        sip_round!(v0, v1, v2, v3);
        sip_round!(v0, v1, v2, v3);
        v0 ^= $bytes << 56;
        v2 ^= 0xff;
        sip_round!(v0, v1, v2, v3);
        sip_round!(v0, v1, v2, v3);
        sip_round!(v0, v1, v2, v3);
        sip_round!(v0, v1, v2, v3);
        v0 ^ v1 ^ v2 ^ v3
    }};
}

/// SipHash-2-4 of exactly 24 bytes, given as three little-endian words.
#[inline(always)]
pub fn siphash24_3(key: &MacKey, w0: u64, w1: u64, w2: u64) -> u64 {
    siphash24!(key, 24u64, w0, w1, w2)
}

/// SipHash-2-4 of exactly 64 bytes, given as eight little-endian words.
#[inline(always)]
pub fn siphash24_8(key: &MacKey, words: [u64; 8]) -> u64 {
    let [w0, w1, w2, w3, w4, w5, w6, w7] = words;
    siphash24!(key, 64u64, w0, w1, w2, w3, w4, w5, w6, w7)
}

/// Longest credential in bytes: an IPv6 SYN with a full TCP header fits a 1280-byte MTU (RFC 8200 section 5).
pub const CREDENTIAL_MAX: usize = 1280 - 40 - 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_agrees_with_the_reference() {
        use core::hash::Hasher;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state
        };
        for _ in 0..1000 {
            let (k0, k1, words) = (next(), next(), [next(), next(), next()]);
            let mut reference = siphasher::sip::SipHasher24::new_with_keys(k0, k1);
            words.iter().for_each(|word| reference.write(&word.to_le_bytes()));
            assert_eq!(siphash24_3(&MacKey { k0, k1 }, words[0], words[1], words[2]), reference.finish());
            let more = [words[0], words[1], words[2], next(), next(), next(), next(), next()];
            more[3..].iter().for_each(|word| reference.write(&word.to_le_bytes()));
            assert_eq!(siphash24_8(&MacKey { k0, k1 }, more), reference.finish());
        }
    }

    #[test]
    fn option_is_twenty_bytes_and_round_trips() {
        assert_eq!(size_of::<OptionBytes>(), OPTION_LEN);
        let option = OptionBytes::new(RESUME, 7, 0x1234, 0x89ab_cdef, 42);
        assert!(option.is_ours());
        assert_eq!(
            (option.packet_type(), option.handle(), option.index(), option.mac()),
            (RESUME, 0x1234, 0x89ab_cdef, 42)
        );
    }

    #[test]
    fn every_field_changes_the_mac() {
        let key = MacKey { k0: 1, k1: 2 };
        let t = Transcript { sender_isn: 3, peer_isn: 4, peer_handle: 5 };
        let base = mac(&key, RESUME, 0, 6, 7, &t);
        assert_ne!(base, mac(&key, CONFIRM, 0, 6, 7, &t));
        assert_ne!(base, mac(&key, RESUME, 1, 6, 7, &t));
        assert_ne!(base, mac(&key, RESUME, 0, 7, 7, &t));
        assert_ne!(base, mac(&key, RESUME, 0, 6, 8, &t));
        assert_ne!(base, mac(&key, RESUME, 0, 6, 7, &Transcript { sender_isn: 4, ..t }));
        assert_ne!(base, mac(&key, RESUME, 0, 6, 7, &Transcript { peer_isn: 5, ..t }));
        assert_ne!(base, mac(&key, RESUME, 0, 6, 7, &Transcript { peer_handle: 6, ..t }));
        assert_ne!(base, mac(&MacKey { k0: 2, k1: 2 }, RESUME, 0, 6, 7, &t));
        let base = update_mac(&key, 0, 6, 7, &t, 8);
        assert_ne!(base, update_mac(&key, UPDATE_HEARD, 6, 7, &t, 8));
        assert_ne!(base, update_mac(&key, 0, 5, 7, &t, 8));
        assert_ne!(base, update_mac(&key, 0, 6, 8, &t, 8));
        assert_ne!(base, update_mac(&key, 0, 6, 7, &Transcript { sender_isn: 4, ..t }, 8));
        assert_ne!(base, update_mac(&key, 0, 6, 7, &Transcript { peer_isn: 5, ..t }, 8));
        assert_ne!(base, update_mac(&key, 0, 6, 7, &t, 9));
        // The third word is another thing elsewhere, but so is the type.
        assert_ne!(update_mac(&key, 0, 6, 7, &t, 5), mac(&key, CONFIRM, 0, 6, 7, &t));
    }
}
