//! The enforcer agent as a library.

pub mod admin;
pub mod agent;
pub mod bundle;
pub mod cli;
pub mod config;
pub mod dns;
pub mod facts;
pub mod flow_log;
pub mod handshake;
pub mod hardening;
pub mod identity;
pub mod link_net;
pub mod load;
pub mod map_write;
pub mod metrics;
pub mod observe;
pub mod probe;
pub mod pulse;
pub mod records;
pub mod ring;
pub mod sys;
pub mod tap;
pub mod workload;
