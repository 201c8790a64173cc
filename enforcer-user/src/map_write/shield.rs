//! The one entry of `SHIELD`.

use std::path::Path;
use std::time::Duration;

use common::shield::Shield;
use common::wire::MacKey;

use super::{MapWriteError, Table};

/// How many first contacts the kernel lets through to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// A second, of one source; 0 for no bound.
    pub source: u32,
    /// At once, of one source.
    pub burst: u32,
    /// A second, of all sources that have not proven their address; 0 if none ever must. So many may come at once, too.
    pub all: u32,
}

/// The single writer of `SHIELD`.
#[derive(Debug)]
pub struct ShieldWriter {
    table: Table<u32, Shield>,
    current: Shield,
}

impl ShieldWriter {
    /// Takes over what is in the map: cookies that were given before still count. Without secrets there, it makes them.
    ///
    /// # Errors
    /// As `Maps::open`.
    pub fn open(maps: &Path) -> Result<Self, MapWriteError> {
        let table = Table::open(maps, "SHIELD")?;
        let mut current: Shield = table.get(&0)?.unwrap_or_default();
        if current.secret == MacKey::default() {
            (current.secret, current.former_secret) = (secret(), secret());
        }
        Ok(Self { table, current })
    }

    /// Puts budgets in force.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn set_budgets(&mut self, budgets: Budgets) -> Result<(), MapWriteError> {
        let interval = |rate: u32| if rate == 0 { 0 } else { SECOND / u64::from(rate) };
        self.current.source_interval_ns = interval(budgets.source);
        self.current.source_burst_ns = interval(budgets.source) * u64::from(budgets.burst.max(1));
        self.current.all_interval_ns = interval(budgets.all);
        self.current.all_burst_ns = interval(budgets.all) * u64::from(budgets.all);
        self.write()
    }

    /// Gives cookies under a new secret; those of the one before go on counting until this is called again.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn rotate(&mut self) -> Result<(), MapWriteError> {
        self.current.former_secret = self.current.secret;
        self.current.secret = secret();
        self.write()
    }

    fn write(&self) -> Result<(), MapWriteError> {
        self.table.insert(&0, &self.current)
    }
}

const SECOND: u64 = Duration::from_secs(1).as_nanos() as u64;

fn secret() -> MacKey {
    MacKey { k0: rand::random(), k1: rand::random() }
}
