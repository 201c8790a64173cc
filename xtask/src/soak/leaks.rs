//! What is left when everything has ended.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use tests::Host;

use crate::step;

/// An agent's memory may settle by so much: caches fill, allocators keep what they had.
const MEMORY_MIB: f64 = 24.0;
/// Descriptors in use by chance at the moment they are counted: a metrics request, an admin connection.
const DESCRIPTORS: usize = 4;

/// Size of an agent.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Size {
    pub descriptors: usize,
    pub memory_mib: f64,
}

/// What each host has left, and how its agent has grown since it was started.
#[derive(Debug, Default, Serialize)]
pub struct Leaks {
    pub flows: BTreeMap<String, i64>,
    pub descriptors: BTreeMap<String, i64>,
    pub memory_mib: BTreeMap<String, f64>,
}

impl Leaks {
    /// Whether nothing leaked.
    pub fn none(&self) -> bool {
        self.flows.values().all(|left| *left == 0)
            && self.descriptors.values().all(|more| *more <= DESCRIPTORS as i64)
            && self.memory_mib.values().all(|more| *more <= MEMORY_MIB)
    }

    /// Adds what a host has left; `before` is its agent's size when it had just come to rest.
    pub fn add(&mut self, host: &Host, before: Size) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut left = flows(host)?;
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
            left = flows(host)?;
        }
        if !left.is_empty() {
            step::say(format!("left on {}: {}", host.name(), serde_json::to_string(&left)?));
        }
        let now = size(host)?;
        let name = || host.name().to_owned();
        self.flows.insert(name(), left.len() as i64);
        self.descriptors.insert(name(), now.descriptors as i64 - before.descriptors as i64);
        self.memory_mib.insert(name(), now.memory_mib - before.memory_mib);
        Ok(())
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "flows left: {:?}", self.flows)?;
        writeln!(f, "descriptors more: {:?} (up to {DESCRIPTORS})", self.descriptors)?;
        writeln!(f, "MiB more: {:.1?} (up to {MEMORY_MIB})", self.memory_mib)
    }
}

/// Flows that are left, but for those cut a moment ago: they stay for a minute, to answer who has not heard.
fn flows(host: &Host) -> Result<Vec<Value>> {
    const REMEMBERED_US: u64 = 70_000_000;
    let all: Value = host.enforcer_json(&["flows"])?;
    let mut flows = all["flows"].as_array().cloned().unwrap_or_default();
    flows.retain(|flow| flow["state"] != "cut" || flow["idle_us"].as_u64().is_none_or(|idle| idle > REMEMBERED_US));
    Ok(flows)
}

/// The size of a host's agent.
pub fn size(host: &Host) -> Result<Size> {
    let pid = host.enforcer_pid().with_context(|| format!("{} runs no enforcer", host.name()))?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kib: f64 = kib.context("no VmRSS")?.trim().parse()?;
    Ok(Size { descriptors, memory_mib: kib / 1024.0 })
}
