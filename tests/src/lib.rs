//! The laboratory: hosts as network namespaces on a bridge, each with a cgroup subtree and, when asked, an enforcer.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let lab = tests::Lab::new("hello")?;
//! let (a, b) = (lab.host("a")?, lab.host("b")?);
//! let server = b.serve(&["--listen", "[::]:8020"])?;
//! let attempt = a.connect(&b.socket_v4(8020), &[])?;
//! assert_eq!(attempt.outcome, tests::Outcome::Ok);
//! assert_eq!(server.accepted()?, 1);
//! # Ok(())
//! # }
//! ```
//!
//! Everything a [`Lab`] makes carries its run's name (`enf-<run>`), and goes when the lab is dropped, when the process
//! is interrupted, or, after a crash, when the next lab starts.

mod bridge;
mod cgroup;
mod containerd;
mod counters;
mod dice;
mod docker;
mod enforcer;
mod flood;
mod guest;
mod host;
mod lab;
mod mitm;
mod netns;
mod pair;
mod process;
mod run;
pub mod segment;
mod tiers;
pub mod tool;
mod traffic;
mod vm;
mod web;
mod workload;

pub use cgroup::cgroup2_mount;
pub use containerd::{Containerd, POD_IMAGE, cgroup_parent};
pub use counters::Counters;
pub use dice::Dice;
pub use docker::{Container, Docker, IMAGE};
pub use enforcer::{AGENT_TIMEOUT, NAMESPACE, Record, enforcer_binary, use_enforcer};
pub use flood::{Flood, Flooding, Recorded};
pub use guest::Guest;
pub use host::{Capture, Host};
pub use lab::{Lab, Options};
pub use mitm::{Fate, Mitm, Sighting, Way};
pub use pair::Pair;
pub use process::{Output, Place, Proc};
pub use segment::Segment;
pub use tiers::Tiers;
pub use traffic::{
    Attempt, Calls, Listener, Load, Outcome, Server, ServerEvent, Talk, Transferred, lab_tool, use_lab_tool,
};
pub use vm::{GuestKernel, GuestOutput};
pub use web::Web;
pub use workload::Workload;
