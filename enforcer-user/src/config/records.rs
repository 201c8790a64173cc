//! `[records]` and `[observe]`: what is written of connections, and where the state of observe mode lies.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// `[records]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Records {
    /// File for flow records; `-` for standard output, empty for none.
    pub file: PathBuf,
    /// Over which time records are added up; zero for a line for every event.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Size at which the file is rotated, bytes.
    pub max_bytes: u64,
    /// Rotated files kept beside the present one.
    pub keep: u32,
    /// Most records of one interval.
    pub max_groups: usize,
}

/// `[observe]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Observe {
    /// File that keeps which namespaces are in observe mode.
    pub state: PathBuf,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            file: "/var/log/enforcer/flows.jsonl".into(),
            interval: Duration::from_secs(60),
            max_bytes: 16 << 20,
            keep: 8,
            max_groups: 16_384,
        }
    }
}

impl Records {
    /// In `file`: standard output.
    pub const STDOUT: &str = "-";

    /// Whether records go to a file.
    pub fn is_file(&self) -> bool {
        !self.file.as_os_str().is_empty() && self.file != Path::new(Self::STDOUT)
    }

    /// The present file and the rotated ones, oldest first; none if records go to no file.
    pub fn files(&self) -> Vec<PathBuf> {
        if !self.is_file() {
            return Vec::new();
        }
        (0..=self.keep).rev().map(|number| rotated(&self.file, number)).filter(|file| file.exists()).collect()
    }
}

/// The name of a rotated file; number 0 is the present one.
pub fn rotated(file: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return file.to_owned();
    }
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

impl Default for Observe {
    fn default() -> Self {
        Self { state: "/var/lib/enforcer/observe.json".into() }
    }
}
