//! `[[plugin]]`: executables that know more about a PU.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::check::{Problem, between, ensure};

/// One `[[plugin]]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    /// What logs, `status` and metrics call it.
    pub name: String,
    /// Absolute path of the executable, and its arguments.
    pub command: Vec<String>,
    /// Whom it runs as; not root.
    #[serde(default = "user")]
    pub user: String,
    /// After how long it is killed, with all it started.
    #[serde(default = "timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// Longest answer, bytes.
    #[serde(default = "max_bytes")]
    pub max_bytes: usize,
    /// How often each PU is asked about again; 0 for never.
    #[serde(default, with = "humantime_serde")]
    pub every: Duration,
}

fn user() -> String {
    "nobody".into()
}

fn timeout() -> Duration {
    Duration::from_secs(2)
}

fn max_bytes() -> usize {
    16 << 10
}

impl Plugin {
    /// The executable.
    pub fn program(&self) -> PathBuf {
        self.command.first().map(PathBuf::from).unwrap_or_default()
    }
}

pub(super) fn check(plugins: &[Plugin]) -> Result<(), Problem> {
    let mut names = BTreeSet::new();
    for plugin in plugins {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure(!plugin.name.is_empty() && plugin.name.len() <= 64 && plugin.name.chars().all(fits), "plugin", || {
            format!("`name` {:?} must be 1 to 64 letters, digits, dots, hyphens or underscores", plugin.name)
        })?;
        let name = &plugin.name;
        ensure(names.insert(name), "plugin", || format!("two plugins are named `{name}`"))?;
        ensure(plugin.program().is_absolute(), "plugin", || {
            format!("`command` of `{name}` must begin with the absolute path of an executable")
        })?;
        ensure(!matches!(plugin.user.as_str(), "" | "root" | "0"), "plugin", || {
            format!("`user` of `{name}` must be an unprivileged user")
        })?;
        let key = |key: &str| format!("plugin.{name}.{key}");
        between(&key("timeout"), plugin.timeout, Duration::from_millis(10), Duration::from_secs(60))?;
        ensure((64..=1 << 20).contains(&plugin.max_bytes), "plugin", || {
            format!("`max_bytes` of `{name}` must be between 64 and 1048576")
        })?;
        ensure(plugin.every.is_zero() || plugin.every >= Duration::from_secs(1), "plugin", || {
            format!("`every` of `{name}` must be 0 or at least a second")
        })?;
    }
    Ok(())
}
