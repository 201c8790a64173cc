//! The one entry of `CONFIG`.

use std::path::Path;

use common::abi::Config;

use super::{MapWriteError, Table};
use crate::sys;

/// The single writer of `CONFIG`: what one part changes is not lost to another, as nobody reads it back to write it.
#[derive(Debug)]
pub struct ConfigWriter {
    table: Table<u32, Config>,
    current: Config,
}

impl ConfigWriter {
    /// Takes over what is in the map.
    ///
    /// # Errors
    /// As `Maps::open`.
    pub fn open(maps: &Path) -> Result<Self, MapWriteError> {
        let table = Table::open(maps, "CONFIG")?;
        let current = table.get(&0)?.unwrap_or_default();
        Ok(Self { table, current })
    }

    /// What is in force.
    pub fn current(&self) -> &Config {
        &self.current
    }

    /// Changes the configuration; written only if something changed.
    ///
    /// # Errors
    /// What the kernel reports; then the former configuration stays in force.
    pub fn update(&mut self, change: impl FnOnce(&mut Config)) -> Result<(), MapWriteError> {
        let mut next = self.current;
        change(&mut next);
        if next != self.current {
            self.table.insert(&0, &next)?;
            self.current = next;
        }
        Ok(())
    }

    /// Says that the agent lives.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn beat(&mut self) -> Result<(), MapWriteError> {
        self.update(|config| config.heartbeat_ns = sys::monotonic_ns())
    }

    /// Says that the agent is about to end, so that first contacts are refused at once and not after the timeout.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn leave(&mut self) -> Result<(), MapWriteError> {
        self.update(|config| config.heartbeat_ns = 0)
    }
}
