//! Verdicts as the kernel looks them up.
//!
//! A pair of identities leads to a run of disjoint, sorted intervals over `protocol << 16 | port`. What no interval
//! covers is denied by default. The cost of a verdict is one hash look-up and a binary search in the run, whatever
//! the number of rules.

/// Key of `PAIRS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pair {
    /// Identity that opens the connection.
    pub subject: u32,
    /// Identity that is connected to.
    pub object: u32,
}

/// Value of `PAIRS`: a run in `INTERVALS`. The kernel reads it as one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// First interval.
    pub start: u32,
    /// Number of intervals.
    pub len: u32,
}

/// Value of `INTERVALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// First `protocol << 16 | port`.
    pub low: u32,
    /// Last `protocol << 16 | port`, inclusive.
    pub high: u32,
    /// Rule that decides, 0 for none.
    pub rule: u32,
    /// Observe rule that would decide otherwise, 0 for none.
    pub observed_rule: u32,
    /// `VERDICT_*` bits.
    pub flags: u32,
}

/// Allowed; without it the interval is denied.
pub const VERDICT_ALLOW: u32 = 1;
/// Record the start of the flow.
pub const VERDICT_LOG: u32 = 2;

/// Position of a protocol and port in an [`Interval`].
#[inline(always)]
pub const fn position(proto: u8, port: u16) -> u32 {
    (proto as u32) << 16 | port as u32
}
