//! The enforcer agent as a library.

pub mod admin;
pub mod cli;
pub mod config;
pub mod flow_log;
pub mod handshake;
pub mod identity;
pub mod metrics;
pub mod probe;
