//! Between the time of day, in which credentials are valid, and `CLOCK_MONOTONIC`, in which the kernel compares.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::sys;

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A Unix time as the kernel's programs compare it: `CLOCK_MONOTONIC` nanoseconds, at least 1.
pub fn monotonic(unix: u64) -> u64 {
    let ahead = i128::from(unix) - i128::from(now());
    let ns = i128::from(sys::monotonic_ns()) + ahead * 1_000_000_000;
    ns.clamp(1, i128::from(u64::MAX)) as u64
}

/// Seconds until (negative: since) a `CLOCK_MONOTONIC` time.
pub fn seconds_until(ns: u64) -> i64 {
    let ahead = (i128::from(ns) - i128::from(sys::monotonic_ns())) / 1_000_000_000;
    ahead.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}
