//! How many labels and answers of plugins were no tags, or posed as the enforcer's own.

use std::sync::atomic::{AtomicU64, Ordering};

use super::TagSource;

/// The sources whose tags others choose, so that some are left out.
const SOURCES: [TagSource; 3] = [TagSource::Container, TagSource::Pod, TagSource::Plugin];

/// One agent runs in a process.
static COUNTS: [AtomicU64; SOURCES.len()] = [const { AtomicU64::new(0) }; SOURCES.len()];

/// Counts tags of a source that were left out. Of sources that are refused instead, nothing is counted.
pub fn note_left_out(source: TagSource, count: usize) {
    if let Some(index) = SOURCES.iter().position(|known| *known == source) {
        COUNTS[index].fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// How many tags were left out since the agent started, by source.
pub fn left_out() -> [(&'static str, u64); SOURCES.len()] {
    std::array::from_fn(|index| (SOURCES[index].as_str(), COUNTS[index].load(Ordering::Relaxed)))
}
