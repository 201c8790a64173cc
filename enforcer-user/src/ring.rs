//! Events in: held frames on a thread of their own, telemetry by polling, and a look into a ring without consuming it.

use std::io;
use std::mem::{offset_of, size_of};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use aya::maps::{Map, MapData, MapError, MapInfo, RingBuf};
use common::event::{Event, FRAME_MAX, Held};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::sys;

/// Bytes of a [`Held`] before its frame.
const HELD_HEADER: usize = offset_of!(Held, frame);
/// Marks in the length of a record (`BPF_RINGBUF_BUSY_BIT`, `BPF_RINGBUF_DISCARD_BIT`).
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// Telemetry records handed over at once.
const BATCH: usize = 256;

/// A ring that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The pinned map is missing or no ring buffer.
    #[error(
        "ring buffer {path}: {source}; start the agent once (`enforcer run`), or run `enforcer unload` if it is of another version"
    )]
    Map {
        /// Pin.
        path: String,
        /// What aya said.
        source: MapError,
    },
    /// A system call failed.
    #[error("ring buffer {path}: {step}: {source}")]
    System {
        /// Pin.
        path: String,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The thread that takes held frames; it ends when this is dropped.
#[derive(Debug)]
pub struct Handshakes {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Handshakes {
    /// Starts the thread; `on_held` is called for each held frame in order, as soon as it is there, and `on_turn` before each,
    /// and at least every second.
    ///
    /// Only the header and `frame[..len]` are meaningful. Records left by a former agent come first.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn start(
        maps: &Path,
        mut on_turn: impl FnMut() + Send + 'static,
        mut on_held: impl FnMut(&Held) + Send + 'static,
    ) -> Result<Self, RingError> {
        let path = maps.join("HANDSHAKES");
        let mut ring = open(&path)?;
        let failed = |step| move |source: io::Error| RingError::System { path: "HANDSHAKES".into(), step, source };
        let stop = EventFd::new().map_err(|error| failed("make an event")(error.into()))?;
        let stop_in_thread = stop.as_fd().try_clone_to_owned().map_err(failed("copy an event"))?;
        let thread = thread::Builder::new()
            .name("handshakes".into())
            .spawn(move || {
                let mut held = empty_held();
                loop {
                    on_turn();
                    while let Some(record) = ring.next() {
                        on_turn();
                        if copy_held(&record, &mut held) {
                            // The record is given back first: the kernel can use its room while the agent thinks.
                            drop(record);
                            on_held(&held);
                        } else {
                            tracing::error!(
                                bytes = record.len(),
                                "a held frame is malformed; is the eBPF object of this version?"
                            );
                        }
                    }
                    if !wait(&ring, &stop_in_thread) {
                        return;
                    }
                }
            })
            .map_err(failed("start a thread"))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Whether the thread still takes frames; it does not after a panic in the callback or a failed system call.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        let stopped = self.stop.write(1).is_ok();
        if let (true, Some(thread)) = (stopped, self.thread.take()) {
            // A panic in the callback was reported by the panic hook already.
            drop(thread.join());
        }
    }
}

/// Longest wait, milliseconds: whoever waits shows that often that it would not miss anything.
const WAIT_MS: u16 = 500;

/// Waits for a record, but not long (true), or the end (false).
fn wait(ring: &RingBuf<MapData>, stop: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(ring.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    match nix::poll::poll(&mut fds, PollTimeout::from(WAIT_MS)) {
        Ok(_) => !fds[1].any().unwrap_or(true),
        Err(nix::errno::Errno::EINTR) => true,
        Err(error) => {
            tracing::error!(%error, "held frames are no longer taken");
            false
        }
    }
}

/// The telemetry ring; the kernel does not wake anybody for it, so look from time to time.
pub struct Telemetry {
    ring: RingBuf<MapData>,
    batch: Vec<Event>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Opens the ring.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn open(maps: &Path) -> Result<Self, RingError> {
        Ok(Self { ring: open(&maps.join("TELEMETRY"))?, batch: Vec::with_capacity(BATCH) })
    }

    /// Hands all waiting events to `on_events`, in order and in batches; how many there were.
    pub fn drain(&mut self, mut on_events: impl FnMut(&[Event])) -> usize {
        let mut total = 0;
        loop {
            self.batch.clear();
            while self.batch.len() < BATCH {
                let Some(record) = self.ring.next() else { break };
                match event(&record) {
                    Some(event) => self.batch.push(event),
                    None => tracing::error!(
                        bytes = record.len(),
                        "an event is malformed; is the eBPF object of this version?"
                    ),
                }
            }
            if self.batch.is_empty() {
                return total;
            }
            total += self.batch.len();
            on_events(&self.batch);
        }
    }
}

/// The telemetry that nobody has consumed yet, oldest first; it stays in the ring.
///
/// # Errors
/// [`RingError`].
pub fn peek_events(maps: &Path) -> Result<Vec<Event>, RingError> {
    let mut events = Vec::new();
    peek(&maps.join("TELEMETRY"), |record| events.extend(event(record)))?;
    Ok(events)
}

/// Calls `each` with every record of the pinned ring that nobody has consumed yet; it stays in the ring.
///
/// # Errors
/// [`RingError`].
pub fn peek(path: &Path, mut each: impl FnMut(&[u8])) -> Result<(), RingError> {
    let system = |step| move |source: io::Error| RingError::System { path: path.display().to_string(), step, source };
    let info = MapInfo::from_pin(path).map_err(|source| RingError::Map { path: path.display().to_string(), source })?;
    if info.map_type().ok() != Some(aya::maps::MapType::RingBuf) {
        let source = MapError::InvalidMapType { map_type: info.map_type().map_or(0, |kind| kind as u32) };
        return Err(RingError::Map { path: path.display().to_string(), source });
    }
    let fd = sys::obj_get(path).map_err(system("open"))?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as usize;
    let size = info.max_entries() as usize;
    let consumer = Mapping::new(&fd, page, 0).map_err(system("map"))?;
    // One page with the producer's position, then the data twice in a row (kernel/bpf/ringbuf.c).
    let producer = Mapping::new(&fd, page + 2 * size, page).map_err(system("map"))?;
    let end = producer.position();
    let mut at = consumer.position();
    while at < end {
        let offset = page + (at as usize & (size - 1));
        let header = producer.word(offset);
        if header & BUSY != 0 {
            break;
        }
        let length = (header & !(BUSY | DISCARDED)) as usize;
        if header & DISCARDED == 0 {
            match producer.bytes(offset + 8, length) {
                Some(record) => each(&record),
                None => break,
            }
        }
        at += (8 + length).next_multiple_of(8) as u64;
    }
    Ok(())
}

fn open(path: &Path) -> Result<RingBuf<MapData>, RingError> {
    MapData::from_pin(path)
        .and_then(Map::from_map_data)
        .and_then(RingBuf::try_from)
        .map_err(|source| RingError::Map { path: path.display().to_string(), source })
}

fn empty_held() -> Box<Held> {
    Box::new(Held {
        time_ns: 0,
        kind: 0,
        len: 0,
        ifindex: 0,
        at_pu_interface: 0,
        pu: 0,
        subject: 0,
        object: 0,
        offset: 0,
        key: Default::default(),
        frame: [0; FRAME_MAX],
    })
}

/// Copies a record of any length into `held`; false if the lengths contradict each other.
fn copy_held(record: &[u8], held: &mut Held) -> bool {
    if record.len() < HELD_HEADER {
        return false;
    }
    let bytes = record.len().min(size_of::<Held>());
    // SAFETY: `held` has room for `bytes` bytes, all of its fields are integers, and the two do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(record.as_ptr(), (&raw mut *held).cast::<u8>(), bytes) };
    held.len as usize <= bytes - HELD_HEADER
}

fn event(record: &[u8]) -> Option<Event> {
    // The kernel rounds no length up, but a later version may append fields.
    if record.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: there are enough bytes, any are valid for `Event` (integers only), and the read does not need alignment.
    Some(unsafe { record.as_ptr().cast::<Event>().read_unaligned() })
}

/// A read-only view of a part of a ring.
struct Mapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

impl Mapping {
    fn new(fd: &OwnedFd, length: usize, offset: usize) -> io::Result<Self> {
        let Some(size) = NonZeroUsize::new(length) else { return Err(io::ErrorKind::InvalidInput.into()) };
        // SAFETY: a new mapping at a place of the kernel's choice; it is never written through.
        let start = unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, fd, offset as libc::off_t) }?;
        Ok(Self { start, length })
    }

    /// The position at the start of a position page.
    fn position(&self) -> u64 {
        // SAFETY: the mapping holds at least a page, is page-aligned, and the kernel writes the position atomically.
        unsafe { self.start.cast::<AtomicU64>().as_ref() }.load(Ordering::Acquire)
    }

    /// The aligned word at `offset`, or "busy" outside the mapping.
    fn word(&self, offset: usize) -> u32 {
        if !offset.is_multiple_of(4) || offset + 4 > self.length {
            return BUSY;
        }
        // SAFETY: within the mapping and aligned, as just checked; the kernel writes the word atomically.
        unsafe { self.start.byte_add(offset).cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire)
    }

    /// A copy of `length` bytes at `offset`.
    fn bytes(&self, offset: usize, length: usize) -> Option<Vec<u8>> {
        if offset.checked_add(length)? > self.length {
            return None;
        }
        let mut copy = vec![0; length];
        // SAFETY: within the mapping, as just checked; a committed record is not written until it is consumed, and should
        // somebody consume it meanwhile, the bytes are stale, not invalid.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.cast::<u8>().as_ptr().add(offset), copy.as_mut_ptr(), length)
        };
        Some(copy)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and nothing borrowed from it outlives it.
        if let Err(error) = unsafe { munmap(self.start, self.length) } {
            tracing::warn!(%error, "a ring stays mapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(len: u32, frame: usize) -> Vec<u8> {
        let mut bytes = vec![7_u8; HELD_HEADER + frame];
        bytes[offset_of!(Held, len)..offset_of!(Held, len) + 4].copy_from_slice(&len.to_ne_bytes());
        bytes
    }

    #[test]
    fn held_frames_are_checked_against_their_record() {
        let mut held = empty_held();
        assert!(copy_held(&record(60, 60), &mut held));
        assert_eq!((held.len, held.frame[59], held.frame[60]), (60, 7, 0));
        assert!(copy_held(&record(60, 64), &mut held), "the kernel may send more than it uses");
        assert!(!copy_held(&record(61, 60), &mut held), "more is claimed than there is");
        assert!(!copy_held(&record(0, 0)[1..], &mut held), "shorter than the header");
        assert!(copy_held(&record(FRAME_MAX as u32, FRAME_MAX + 8), &mut held), "longer than the struct is cut");
        assert!(!copy_held(&record(FRAME_MAX as u32 + 1, FRAME_MAX + 8), &mut held));
    }

    #[test]
    fn events_are_checked_for_length() {
        let bytes = vec![1_u8; size_of::<Event>()];
        assert_eq!(event(&bytes).unwrap().pu, 0x0101_0101);
        assert!(event(&bytes[1..]).is_none());
    }
}
