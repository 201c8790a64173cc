//! What this kernel and host can do.

pub mod mounts;
