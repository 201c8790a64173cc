//! What the kernel tells of processes and cgroups.

use std::{io, os::fd::AsFd, path::Path, time::Duration};

use aya::maps::{Map, MapData, RingBuf};
use common::workload::{FileKey, PATH_MAX, WorkloadEvent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A [`WorkloadEvent`] as values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub kind: u32,
    pub cgroup: u64,
    pub process: u32,
    pub file: FileKey,
    pub ctime_sec: u64,
    /// Of a cgroup, in the whole hierarchy.
    pub path: String,
}

/// The ring `WORKLOADS`.
pub(super) struct Events(RingBuf<MapData>);

impl Events {
    pub fn open(maps: &Path) -> anyhow::Result<Self> {
        let map = MapData::from_pin(maps.join("WORKLOADS"))?;
        Ok(Self(RingBuf::try_from(Map::from_map_data(map)?)?))
    }

    /// All events that are there, or come within this time.
    pub fn wait(&mut self, at_most: Duration) -> io::Result<Vec<Event>> {
        let found = self.take();
        if !found.is_empty() {
            return Ok(found);
        }
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(self.take()),
            Err(error) => Err(error.into()),
        }
    }

    fn take(&mut self) -> Vec<Event> {
        let mut found = Vec::new();
        while let Some(record) = self.0.next() {
            match event(&record) {
                Some(event) => found.push(event),
                None => {
                    tracing::error!(bytes = record.len(), "an event is malformed; is the eBPF object of this version?")
                }
            }
        }
        found
    }
}

fn event(record: &[u8]) -> Option<Event> {
    use std::mem::offset_of;
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let long = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let file = offset_of!(WorkloadEvent, file);
    let len = (word(offset_of!(WorkloadEvent, path_len))? as usize).min(PATH_MAX);
    let path = record.get(offset_of!(WorkloadEvent, path)..)?.get(..len)?;
    Some(Event {
        kind: word(offset_of!(WorkloadEvent, kind))?,
        cgroup: long(offset_of!(WorkloadEvent, cgroup))?,
        process: word(offset_of!(WorkloadEvent, process))?,
        file: FileKey {
            inode: long(file + offset_of!(FileKey, inode))?,
            device: word(file + offset_of!(FileKey, device))?,
            pad: 0,
        },
        ctime_sec: long(offset_of!(WorkloadEvent, ctime_sec))?,
        path: String::from_utf8_lossy(path).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_short_ones_refused() {
        let mut record = vec![0_u8; size_of::<WorkloadEvent>()];
        record[0] = 7;
        record[8] = 9;
        record[32] = 3;
        record[44] = 4;
        record[48..52].copy_from_slice(b"/a/b");
        let read = event(&record).unwrap();
        assert_eq!((read.cgroup, read.file.inode, read.kind, read.path.as_str()), (7, 9, 3, "/a/b"));
        for len in 0..record.len().min(52) {
            assert_eq!(event(&record[..len]), None, "{len}");
        }
        record[44..48].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(event(&record).unwrap().path.len(), PATH_MAX);
    }
}
