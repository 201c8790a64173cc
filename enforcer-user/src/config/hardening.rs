//! `[hardening]`: what the agent gives up.

use serde::{Deserialize, Serialize};

/// `[hardening]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hardening {
    /// Keep only the capabilities that are needed.
    pub capabilities: bool,
    /// Nothing the agent executes can gain rights; seccomp needs it.
    pub no_new_privileges: bool,
    /// Refuse system calls that no agent makes.
    pub seccomp: bool,
    /// Confine the threads that read what strangers send.
    pub landlock: bool,
}

impl Default for Hardening {
    fn default() -> Self {
        Self { capabilities: true, no_new_privileges: true, seccomp: true, landlock: true }
    }
}
