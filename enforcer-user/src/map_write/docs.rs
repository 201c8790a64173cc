//! Descriptions the agent keeps in the kernel, so that the next agent knows what the numbers in other maps stand for.

use std::path::Path;

use super::{MapWriteError, Table};

const VALUE: usize = 2048;
const LENGTH: usize = 4;
/// Longest document, bytes.
pub const DOC_MAX: usize = VALUE - LENGTH;

/// Documents by number: a little-endian length, then as many bytes.
#[derive(Debug)]
pub struct Docs {
    table: Table<u32, [u8; VALUE]>,
    what: &'static str,
}

impl Docs {
    pub(super) fn open(directory: &Path, name: &'static str, what: &'static str) -> Result<Self, MapWriteError> {
        Ok(Self { table: Table::open(directory, name)?, what })
    }

    /// Writes a document.
    ///
    /// # Errors
    /// [`MapWriteError::TooLong`], [`MapWriteError::Full`], or what the kernel reports.
    pub fn insert(&self, key: u32, document: &[u8]) -> Result<(), MapWriteError> {
        let value = encode(document).ok_or(MapWriteError::TooLong {
            what: self.what,
            key,
            len: document.len(),
            max: DOC_MAX,
        })?;
        self.table.insert(&key, &value)
    }

    /// The document under this number; also `None` if its length is impossible.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn get(&self, key: u32) -> Result<Option<Vec<u8>>, MapWriteError> {
        Ok(self.table.get(&key)?.and_then(|value| decode(&value)))
    }

    /// Removes a document; whether there was one.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn remove(&self, key: u32) -> Result<bool, MapWriteError> {
        self.table.remove(&key)
    }

    /// All documents; an empty one stands for one whose length is impossible.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn entries(&self) -> Result<Vec<(u32, Vec<u8>)>, MapWriteError> {
        let mut entries = Vec::new();
        self.table.for_each(|key, value| entries.push((*key, decode(value).unwrap_or_default())))?;
        Ok(entries)
    }

    /// Name, entries and capacity.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn fill(&self) -> Result<(&'static str, u64, u32), MapWriteError> {
        self.table.fill()
    }
}

fn encode(document: &[u8]) -> Option<[u8; VALUE]> {
    let mut value = [0; VALUE];
    value.get_mut(LENGTH..LENGTH + document.len())?.copy_from_slice(document);
    value.first_chunk_mut::<LENGTH>()?.copy_from_slice(&(document.len() as u32).to_le_bytes());
    Some(value)
}

fn decode(value: &[u8; VALUE]) -> Option<Vec<u8>> {
    let length = u32::from_le_bytes(*value.first_chunk()?) as usize;
    value.get(LENGTH..LENGTH.checked_add(length)?).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_round_trip_up_to_the_limit() {
        for length in [0, 1, DOC_MAX] {
            let document = vec![b'x'; length];
            assert_eq!(decode(&encode(&document).unwrap()).unwrap(), document);
        }
        assert!(encode(&vec![0; DOC_MAX + 1]).is_none());
    }

    #[test]
    fn impossible_lengths_are_refused() {
        assert_eq!(decode(&[0xff; VALUE]), None);
        let mut value = [0; VALUE];
        value[..2].copy_from_slice(&(DOC_MAX as u16 + 1).to_le_bytes());
        assert_eq!(decode(&value), None);
    }
}
