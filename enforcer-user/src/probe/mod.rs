//! What this kernel and host can do, and what each lack costs: `enforcer doctor`.
//!
//! Nothing here changes anything; the largest liberty taken is loading programs of two instructions.

mod bpf;
mod host;
mod interfaces;
pub mod mounts;
mod setup;

use std::path::Path;

use serde::Serialize;

use crate::config::Config;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As wanted.
    Ok,
    /// It works, with less.
    Limited,
    /// The enforcer cannot work.
    Missing,
    /// It could not be found out, for lack of privileges.
    Unknown,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What the lack costs; empty if nothing lacks.
    pub cost: String,
    /// What to do about it; empty if nothing lacks.
    pub remedy: String,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing that is needed is missing or unknown.
    pub ok: bool,
    /// In order from the kernel to the configuration.
    pub checks: Vec<Check>,
}

/// Looks at everything; `file` is the configuration the agent would be started with.
pub fn examine(file: &Path) -> Report {
    let loaded = Config::load(file);
    // With a broken configuration the rest is still worth knowing, as it would be by default.
    let config = loaded.as_ref().cloned().unwrap_or_default();
    let mut checks = host::checks(&config);
    checks.extend(bpf::checks());
    checks.extend(interfaces::checks(&config));
    checks.extend(setup::checks(file, &loaded, &config));
    let ok = checks.iter().all(|check| matches!(check.state, State::Ok | State::Limited));
    Report { ok, checks }
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Ok, found: found.into(), cost: String::new(), remedy: String::new() }
    }

    fn limited(name: &str, found: impl Into<String>, cost: &str, remedy: &str) -> Self {
        Self { state: State::Limited, cost: cost.into(), remedy: remedy.into(), ..Self::ok(name, found) }
    }

    fn missing(name: &str, found: impl Into<String>, cost: &str, remedy: &str) -> Self {
        Self { state: State::Missing, cost: cost.into(), remedy: remedy.into(), ..Self::ok(name, found) }
    }

    fn unknown(name: &str, found: impl Into<String>, remedy: &str) -> Self {
        Self { state: State::Unknown, remedy: remedy.into(), ..Self::ok(name, found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_everything_once_and_costs_where_something_lacks() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("e.toml");
        std::fs::write(&file, "[datapath]\nxdp = 3\n").expect("written");
        let report = examine(&file);
        let mut names: Vec<_> = report.checks.iter().map(|check| check.name.as_str()).collect();
        for name in
            ["kernel", "BTF", "bpffs", "cgroup v2", "ring buffers", "TUN", "capabilities", "clock", "interface lo"]
        {
            assert!(names.contains(&name), "{name} is not looked at: {names:?}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), report.checks.len());
        for check in &report.checks {
            assert_eq!(check.state == State::Ok, check.remedy.is_empty(), "{check:?}");
            assert!(!check.found.is_empty(), "{check:?}");
        }
        let config = report.checks.iter().find(|check| check.name == "configuration").expect("looked at");
        assert_eq!(config.state, State::Missing);
        assert!(config.found.contains("e.toml:2:7: `datapath.xdp`"), "{config:?}");
        assert!(!report.ok);
    }
}
