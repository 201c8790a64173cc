//! Counters, summed over the CPUs.

use std::mem::size_of;
use std::path::Path;

use common::abi::{HANDSHAKE_STATS, LOSS_STATS, REASON_STATS};

use super::MapWriteError;
use super::table::Pinned;
use crate::sys;

/// The per-CPU counters of the kernel's side; they only grow.
#[derive(Debug)]
pub struct Stats {
    reasons: Pinned,
    handshakes: Pinned,
    losses: Pinned,
    cpus: usize,
}

impl Stats {
    pub(super) fn open(directory: &Path) -> Result<Self, MapWriteError> {
        let open = |name| Pinned::open(directory, name, size_of::<u32>(), size_of::<u64>());
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| MapWriteError::System {
            name: "REASON_STATS",
            operation: "count the CPUs",
            source,
        })?;
        Ok(Self {
            reasons: open("REASON_STATS")?,
            handshakes: open("HANDSHAKE_STATS")?,
            losses: open("LOSS_STATS")?,
            cpus,
        })
    }

    /// Verdicts, indexed by `common::abi::reason_stat`.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn reasons(&self) -> Result<Vec<u64>, MapWriteError> {
        self.sum(&self.reasons, REASON_STATS)
    }

    /// Handshake packets, indexed by `common::abi::handshake_stat`.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn handshakes(&self) -> Result<Vec<u64>, MapWriteError> {
        self.sum(&self.handshakes, HANDSHAKE_STATS)
    }

    /// Losses, indexed by `common::abi::LOSS_*` and `HELD`.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn losses(&self) -> Result<Vec<u64>, MapWriteError> {
        self.sum(&self.losses, LOSS_STATS)
    }

    fn sum(&self, map: &Pinned, entries: u32) -> Result<Vec<u64>, MapWriteError> {
        (0..entries.min(map.capacity))
            .map(|index| {
                let values = sys::map_lookup_per_cpu(map.fd(), index, self.cpus).map_err(map.failed("read"))?;
                Ok(values.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value)))
            })
            .collect()
    }
}
