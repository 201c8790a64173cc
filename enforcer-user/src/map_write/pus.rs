//! `PUS` and `CREDENTIALS`: the PUs of this host and what they show to peers.

use std::path::Path;

use common::identity::{Credential, Pu};

use super::{MapWriteError, Table};

/// The largest index of a PU: each has two slots for credentials, numbered from it.
pub const INDEX_MAX: u32 = u32::MAX / 2 - 1;

/// The writer of `PUS` and `CREDENTIALS`.
///
/// Each PU has two slots for credentials, used in turn: the kernel may be copying out of one while the next is written
/// into the other, and the PU's entry then points to the new one.
#[derive(Debug)]
pub struct Pus {
    pus: Table<u32, Pu>,
    credentials: Table<u32, Credential>,
}

impl Pus {
    /// Opens the maps.
    ///
    /// # Errors
    /// As `Maps::open`.
    pub fn open(maps: &Path) -> Result<Self, MapWriteError> {
        Ok(Self { pus: Table::open(maps, "PUS")?, credentials: Table::open(maps, "CREDENTIALS")? })
    }

    /// The PU under this index; `None` if there is none.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn get(&self, pu: u32) -> Result<Option<Pu>, MapWriteError> {
        Ok(self.pus.get(&pu)?.filter(|entry| entry.identity != 0))
    }

    /// All PUs with their indices.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn entries(&self) -> Result<Vec<(u32, Pu)>, MapWriteError> {
        let mut entries = Vec::new();
        self.pus.for_each(|index, pu| {
            if pu.identity != 0 {
                entries.push((*index, *pu));
            }
        })?;
        Ok(entries)
    }

    /// Sets identity and handle of a PU; its credential stays.
    ///
    /// # Errors
    /// [`MapWriteError::Index`] for 0 or beyond the map, or what the kernel reports.
    pub fn set_identity(&mut self, pu: u32, identity: u32, handle: u16) -> Result<(), MapWriteError> {
        let entry = self.slot(pu)?;
        self.pus.insert(&pu, &Pu { identity, handle, ..entry })
    }

    /// Sets identity, handle and credential of a PU with one change of its entry; `until_ns` is in `CLOCK_MONOTONIC`
    /// nanoseconds.
    ///
    /// # Errors
    /// [`MapWriteError::Index`], [`MapWriteError::Full`], or what the kernel reports; the
    /// former credential stays in force then.
    pub fn set_credential(
        &mut self,
        pu: u32,
        identity: u32,
        handle: u16,
        credential: &Credential,
        until_ns: u64,
    ) -> Result<(), MapWriteError> {
        let entry = self.slot(pu)?;
        let [first, second] = slots(pu);
        let slot = if entry.credential == first { second } else { first };
        self.credentials.insert(&slot, credential)?;
        let next = Pu { identity, credential: slot, credential_until_ns: until_ns, handle, ..entry };
        self.pus.insert(&pu, &next)
    }

    /// Sets the `PU_*` bits of a PU that is there; the rest stays.
    ///
    /// # Errors
    /// [`MapWriteError::Index`], or what the kernel reports.
    pub fn set_flags(&mut self, pu: u32, flags: u16) -> Result<(), MapWriteError> {
        let entry = self.slot(pu)?;
        if entry == Pu::default() || entry.flags == flags {
            return Ok(());
        }
        self.pus.insert(&pu, &Pu { flags, ..entry })
    }

    /// Removes the PU and its credentials.
    ///
    /// # Errors
    /// [`MapWriteError::Index`], or what the kernel reports.
    pub fn remove(&mut self, pu: u32) -> Result<(), MapWriteError> {
        self.slot(pu)?;
        self.pus.remove(&pu)?;
        for slot in slots(pu) {
            self.credentials.remove(&slot)?;
        }
        Ok(())
    }

    /// How many PUs fit at a time; their indices are any from 1 to [`INDEX_MAX`].
    pub fn capacity(&self) -> u32 {
        self.pus.capacity()
    }

    fn slot(&self, pu: u32) -> Result<Pu, MapWriteError> {
        if pu == 0 || pu > INDEX_MAX {
            return Err(MapWriteError::Index { name: "PUS", index: pu, max: INDEX_MAX });
        }
        Ok(self.pus.get(&pu)?.unwrap_or_default())
    }
}

/// The two slots of a PU; never 0, which means "none".
fn slots(pu: u32) -> [u32; 2] {
    [2 * pu, 2 * pu + 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pus_share_a_slot() {
        assert_eq!(slots(1), [2, 3]);
        assert_eq!(slots(2), [4, 5]);
        assert_eq!(slots(INDEX_MAX), [u32::MAX - 3, u32::MAX - 2]);
    }
}
