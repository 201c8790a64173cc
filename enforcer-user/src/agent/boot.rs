//! Before the network: what denies, without an agent.
//!
//! After a reboot nothing is pinned. An agent needs keys, a policy and time; what the configuration means by `[[workload]]`
//! shall not communicate meanwhile, and not either if the agent cannot start at all. So the programs are put into place
//! with what they need to stop it: whatever they hold waits for an agent, and without one is refused.

use std::sync::Arc;

use super::{load_options, state};
use crate::{
    config::Config,
    load::{Interfaces, Kernel, LoadError, UnloadOptions, unload},
    map_write::{ConfigWriter, Maps},
    workload::finder,
};

/// What there is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Booted {
    /// An agent runs and sees to everything.
    AgentRuns,
    /// An agent has run since the host started: what it left is in force, and on interfaces that came since.
    InForce {
        /// Configured interfaces that are not there yet.
        absent: Vec<String>,
    },
    /// What is configured is denied until an agent runs.
    Denying {
        /// Configured interfaces that are not there yet.
        absent: Vec<String>,
        /// How many `[[workload]]` there are.
        workloads: usize,
    },
}

/// Puts the programs into place. Repeating it only attaches to interfaces that came since.
///
/// # Errors
/// What the kernel refused; a first call that fails leaves nothing.
pub fn boot(config: &Config) -> anyhow::Result<Booted> {
    let first = !config.pin_dir().exists();
    let booted = try_boot(config);
    if booted.is_err() && first {
        let made = UnloadOptions::from(config);
        if let Err(error) = unload(&made) {
            tracing::debug!(%error, "a failed boot is not wholly undone");
        }
    }
    booted
}

fn try_boot(config: &Config) -> anyhow::Result<Booted> {
    finder::check(config)?;
    let mut options = load_options(config)?;
    let mut absent = Vec::new();
    if let Interfaces::Named(names) = &mut options.interfaces {
        let present = crate::link_net::list()?;
        names.retain(|name| {
            let there = present.iter().any(|interface| interface.name == *name);
            if !there {
                absent.push(name.clone());
            }
            there
        });
    }
    let kernel = match Kernel::open(&options) {
        Ok(kernel) => kernel,
        Err(LoadError::Busy { .. }) => return Ok(Booted::AgentRuns),
        Err(error) => return Err(error.into()),
    };
    let mut writer = ConfigWriter::open(&kernel.pins().maps)?;
    if writer.current().agent_timeout_ns != 0 {
        return Ok(Booted::InForce { absent });
    }
    // First whom to stop, then that they are to be: nothing is stopped by half of a rule.
    finder::arm(config, &Arc::new(Maps::open(&kernel.pins().maps)?))?;
    state::configure_datapath(config, &mut writer)?;
    Ok(Booted::Denying { absent, workloads: config.workload.len() })
}
