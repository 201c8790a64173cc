//! `[[workload]]`: what becomes a PU by itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::workload::{exec_match::ExecMatch, tags::check_plain, units::CgroupMatch};

/// One `[[workload]]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Name of the PUs. Default: that of the unit, cgroup or executable.
    pub name: Option<String>,
    /// Namespace of the PUs. Default: the configured one.
    pub namespace: Option<String>,
    /// Tags of the PUs.
    pub tags: BTreeMap<String, Values>,
    /// systemd unit by name or pattern.
    pub unit: Option<String>,
    /// Cgroup by path or pattern, below the root of the hierarchy.
    pub cgroup: Option<String>,
    /// Executable by path or pattern.
    pub exe: Option<String>,
    /// Executable by its SHA-256.
    pub sha256: Option<String>,
    /// User who executes it, by name or number.
    pub user: Option<String>,
    /// Command line by pattern, together with one of the three before.
    pub command: Option<String>,
}

/// One value or several.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Values {
    /// One.
    One(String),
    /// Several.
    Many(BTreeSet<String>),
}

/// Values by key as tags.
pub fn tags(of: &BTreeMap<String, Values>) -> crate::identity::Tags {
    let values = |values: &Values| match values {
        Values::One(value) => BTreeSet::from([value.clone()]),
        Values::Many(values) => values.clone(),
    };
    of.iter().map(|(key, of)| (key.clone(), values(of))).collect()
}

/// What a `[[workload]]` looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Cgroups.
    Cgroup(CgroupMatch),
    /// Processes when they execute a program.
    Exec(ExecMatch),
}

impl Workload {
    /// What it looks for.
    ///
    /// # Errors
    /// The key to blame, and what is wrong.
    pub fn find(&self) -> Result<Found, (&'static str, String)> {
        let exec = self.exe.is_some() || self.sha256.is_some() || self.user.is_some() || self.command.is_some();
        match (&self.unit, &self.cgroup, exec) {
            (Some(unit), None, false) => {
                CgroupMatch::unit(unit).map(Found::Cgroup).map_err(|error| ("unit", error.to_string()))
            }
            (None, Some(path), false) => {
                CgroupMatch::path(path).map(Found::Cgroup).map_err(|error| ("cgroup", error.to_string()))
            }
            (None, None, true) => {
                let rule = ExecMatch::new(
                    self.exe.as_deref(),
                    self.sha256.as_deref(),
                    self.user.as_deref(),
                    self.command.as_deref(),
                );
                rule.map(Found::Exec).map_err(|error| (error.key(), error.to_string()))
            }
            _ => {
                Err(("", "must have one of `unit`, `cgroup`, or `exe`, `sha256` and `user`, and only one kind".into()))
            }
        }
    }
}

type Problem = (String, String);

pub(super) fn check(workloads: &[Workload]) -> Result<(), Problem> {
    for (number, workload) in workloads.iter().enumerate() {
        let at =
            |key: &str| if key.is_empty() { format!("workload.{number}") } else { format!("workload.{number}.{key}") };
        workload.find().map_err(|(key, problem)| (at(key), problem))?;
        let name = workload.name.as_deref();
        if name.is_some_and(|name| name.is_empty() || name.len() > 128 || name.chars().any(char::is_control)) {
            return Err((at("name"), "must be 1 to 128 characters, none of them control characters".into()));
        }
        namespace(workload.namespace.as_deref()).map_err(|problem| (at("namespace"), problem))?;
        plain(&workload.tags).map_err(|(key, problem)| (at(&format!("tags.{key}")), problem))?;
    }
    Ok(())
}

fn namespace(namespace: Option<&str>) -> Result<(), String> {
    let good = namespace.is_none_or(|path| path.len() <= 255 && path.parse::<policy::Namespace>().is_ok());
    if good { Ok(()) } else { Err("must be an absolute path such as \"/acme/prod\", without empty segments".into()) }
}

/// Tags that people may give; else the key and what is wrong with it.
pub(super) fn plain(of: &BTreeMap<String, Values>) -> Result<(), (String, String)> {
    for (key, values) in tags(of) {
        if values.is_empty() {
            return Err((key, "has no value".into()));
        }
        for value in values {
            check_plain(&key, &value).map_err(|error| (key.clone(), error.to_string()))?;
        }
    }
    Ok(())
}
