//! The admin socket: how the command line talks to the agent.
//!
//! A unix socket that root and one configured group may use. One request a line, one answer a line, JSON both ways;
//! following the flow log turns the connection into a stream of answers until the client hangs up.

mod client;
mod protocol;
mod secret;
mod server;
pub mod view;

pub use client::{Client, ClientError};
pub use protocol::{AdminError, ErrorKind, PolicyFile, PuTarget, Request, Response};
pub use secret::Secret;
pub use server::{Answer, BindError, Caller, FollowItem, Handler, Limits, Server};
