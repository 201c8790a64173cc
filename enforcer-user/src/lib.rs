//! The enforcer agent as a library.

pub mod admin;
pub mod cli;
pub mod config;
pub mod handshake;
pub mod identity;
pub mod probe;
