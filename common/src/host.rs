//! The host PU, and enforcement on trial.

/// The one entry of the map `HOST`; written by the agent only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Until when enforcement is on trial, `CLOCK_MONOTONIC` nanoseconds; from then on it is as if it had never begun,
    /// whether or not an agent lives. Read only with `CONFIG_TRIAL`.
    pub trial_until_ns: u64,
    /// PUs of this index and above are on trial, 0: everything is; the host PU is in any case.
    pub trial_from: u32,
    /// `CONFIG_*` bits that are on trial too.
    pub trial_flags: u32,
    /// Index of the PU that whatever is in no other PU belongs to, 0 if the host is not managed.
    pub pu: u32,
    /// The agent's process. Its own sockets are in no PU: what it needs to judge, policy must not take from it.
    pub agent: u32,
}
