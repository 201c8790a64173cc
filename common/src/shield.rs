//! What stands between a flood and the agent: how much one source may ask of it, cookies, and which RESUMEs were seen.

use crate::{
    Addr, is_v4,
    wire::{MacKey, siphash24_3},
};

/// The one entry of the map `SHIELD`; written by the agent only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shield {
    /// Nanoseconds for each first contact of one source in the long run; 0 for no bound.
    pub source_interval_ns: u64,
    /// The nanoseconds of as many as may come at once.
    pub source_burst_ns: u64,
    /// The same for first contacts of all sources that have not shown a cookie; 0 if none is ever asked for one.
    pub all_interval_ns: u64,
    /// The nanoseconds of as many of these as may come at once.
    pub all_burst_ns: u64,
    /// Key of the cookies that are given.
    pub secret: MacKey,
    /// The one before; its cookies still count.
    pub former_secret: MacKey,
}

/// Sources that are remembered, the least recently seen go.
pub const SOURCES: u32 = 16_384;

/// Key of `HELLO_SOURCES`: what counts as one source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// An IPv4 address, or the first 64 bits of an IPv6 address: all others under them may be one host's.
    pub network: Addr,
}

impl Source {
    /// The source that this address is of.
    #[inline(always)]
    pub const fn of(addr: &Addr) -> Self {
        Self { network: if is_v4(addr) { *addr } else { [addr[0], addr[1], 0, 0] } }
    }
}

/// When the account of a source, or of all, will be even again once something is taken from it at `now`; `None` if nothing is left.
/// Instead of tokens one moment is kept: each one taken moves it by `interval`, and it may lie ahead by `burst`.
#[inline(always)]
pub const fn taken(even_at: u64, now: u64, interval: u64, burst: u64) -> Option<u64> {
    let start = if even_at > now { even_at } else { now };
    let end = start + interval;
    if end - now > burst { None } else { Some(end) }
}

/// What a peer shows to prove that it hears what is sent to its address: nobody who does not know `secret` can make it for
/// another address, other ports or another initial sequence number.
#[inline(always)]
pub fn cookie(secret: &MacKey, from: &Addr, from_port: u16, to_port: u16, isn: u32) -> u64 {
    let low = from[0] as u64 | (from[1] as u64) << 32;
    let high = from[2] as u64 | (from[3] as u64) << 32;
    siphash24_3(secret, low, high, from_port as u64 | (to_port as u64) << 16 | (isn as u64) << 32)
}

/// Entries of the map `RESUMES`, a power of two.
pub const RESUME_BUCKETS: u32 = 1 << 14;
/// RESUMEs that an entry remembers, a power of two.
pub const RESUME_WAYS: u32 = 16;

/// Value of `RESUMES`: RESUMEs that were taken, by the upper halves of their MACs; the lower halves say in which entry. The
/// MAC of a RESUME is made for one initial sequence number of one session and handle, so it is good for one connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumes {
    /// How many were entered here; the next one takes the place of the oldest.
    pub entered: u64,
    /// Upper halves of MACs.
    pub macs: [u32; RESUME_WAYS as usize],
}

/// In which entry of `RESUMES` a MAC is remembered.
#[inline(always)]
pub const fn resume_bucket(mac: u64) -> u32 {
    mac as u32 & (RESUME_BUCKETS - 1)
}

/// As what it is remembered there.
#[inline(always)]
pub const fn resume_mark(mac: u64) -> u32 {
    (mac >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr_v4;

    #[test]
    fn a_burst_and_then_one_each_interval() {
        let (mut even_at, mut now) = (0, 1_000_000);
        let mut take = |now| match taken(even_at, now, 10, 30) {
            Some(end) => {
                even_at = end;
                true
            }
            None => false,
        };
        assert_eq!([0; 4].map(|_| take(now)), [true, true, true, false]);
        now += 9;
        assert!(!take(now));
        now += 1;
        assert_eq!([0; 2].map(|_| take(now)), [true, false]);
        // What was not used does not grow beyond the burst.
        now += 1_000_000;
        assert_eq!([0; 4].map(|_| take(now)), [true, true, true, false]);
    }

    #[test]
    fn hosts_of_one_network_of_ipv6_are_one_source() {
        let host = [1, 2, 3, 4];
        assert_eq!(Source::of(&host), Source::of(&[1, 2, 5, 6]));
        assert_ne!(Source::of(&host), Source::of(&[1, 3, 3, 4]));
        assert_ne!(Source::of(&addr_v4(1)), Source::of(&addr_v4(2)));
    }

    #[test]
    fn a_cookie_is_of_one_attempt() {
        let secret = MacKey { k0: 1, k1: 2 };
        let base = cookie(&secret, &[1, 2, 3, 4], 5, 6, 7);
        for word in 0..4 {
            let mut other = [1, 2, 3, 4];
            other[word] ^= 1 << 31;
            assert_ne!(base, cookie(&secret, &other, 5, 6, 7));
        }
        assert_ne!(base, cookie(&secret, &[1, 2, 3, 4], 4, 6, 7));
        assert_ne!(base, cookie(&secret, &[1, 2, 3, 4], 5, 7, 7));
        assert_ne!(base, cookie(&secret, &[1, 2, 3, 4], 5, 6, 8));
        assert_ne!(base, cookie(&MacKey { k0: 1, k1: 3 }, &[1, 2, 3, 4], 5, 6, 7));
    }
}
