//! Ring buffers on a real kernel, filled by a program made here: records of known content, committed by the kernel.
//!
//! Needs root.

use std::fs;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::MapData;
use common::event::{Event, Held};
use enforcer_user::ring::{self, Handshakes, RingError, Telemetry};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const RING_BUFFER: u32 = 27;
const HELD_HEADER: usize = offset_of!(Held, frame);

/// A ring pinned under `name` in a bpffs of the test's own, and a way to put records into it.
struct Ring {
    maps: PathBuf,
    map: MapData,
}

impl Ring {
    fn new(name: &str, bytes: u32) -> Self {
        let maps = std::env::temp_dir().join(format!(
            "enforcer-ring-{}-{name}-{:?}",
            std::process::id(),
            thread::current().id()
        ));
        fs::create_dir_all(&maps).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("bpf"), &maps, Some("bpf"), MsFlags::empty(), none).unwrap();
        let object = aya_obj::Map::new_from_params(RING_BUFFER, 0, 0, bytes, 0);
        let map = MapData::create(object, "ring", None).unwrap();
        map.pin(maps.join(name)).unwrap();
        Self { maps, map }
    }

    /// Commits `times` equal records; `flags` as for `bpf_ringbuf_output`.
    fn put(&self, record: &[u8], flags: u32, times: u32) {
        let program = Program::new(self.map.fd().as_fd().as_raw_fd(), record, flags);
        program.run(times);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.maps, nix::mount::MntFlags::MNT_DETACH);
        drop(fs::remove_dir(&self.maps));
    }
}

/// Runs `test` on a thread whose mount namespace ends with it.
fn isolated(test: impl FnOnce() + Send + 'static) {
    if let Err(panic) = thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

fn held(kind: u32, len: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HELD_HEADER];
    bytes[offset_of!(Held, kind)..][..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[offset_of!(Held, len)..][..4].copy_from_slice(&len.to_ne_bytes());
    bytes.extend(frame);
    bytes
}

fn event(pu: u32) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<Event>()];
    bytes[offset_of!(Event, pu)..][..4].copy_from_slice(&pu.to_ne_bytes());
    bytes
}

#[test]
fn held_frames_come_at_once_and_in_order_and_malformed_ones_are_left_out() {
    isolated(|| {
        let ring = Ring::new("HANDSHAKES", 1 << 16);
        ring.put(&held(1, 3, b"old"), 0, 1);
        let (send, receive) = mpsc::channel();
        let handshakes = Handshakes::start(
            &ring.maps,
            || {},
            move |held| {
                let frame = held.frame[..held.len as usize].to_vec();
                send.send((held.kind, frame, Instant::now())).unwrap();
            },
        )
        .unwrap();
        let next = || receive.recv_timeout(Duration::from_secs(5)).unwrap();
        let (kind, frame, _) = next();
        assert_eq!((kind, frame.as_slice()), (1, b"old".as_slice()), "left by a former agent");
        let mut delays = Vec::new();
        for number in 0..200 {
            let before = Instant::now();
            ring.put(&held(number, 4, b"abcd"), 0, 1);
            let (kind, frame, when) = next();
            assert_eq!((kind, frame.as_slice()), (number, b"abcd".as_slice()));
            delays.push(when - before);
        }
        delays.sort();
        println!("from before the program is loaded to the callback: median {:?}", delays[100]);
        ring.put(&held(7, 5, b"abcd"), 0, 1);
        ring.put(&[0; HELD_HEADER - 8], 0, 1);
        ring.put(&held(8, 0, b""), 0, 1);
        assert_eq!(next().0, 8);
        assert!(handshakes.is_running());
        drop(handshakes);
        assert!(receive.recv().is_err(), "the thread has ended");
    });
}

#[test]
fn telemetry_is_drained_in_batches_and_peeked_without_consuming() {
    isolated(|| {
        const NO_WAKEUP: u32 = 1;
        let ring = Ring::new("TELEMETRY", 1 << 16);
        assert_eq!(ring::peek_events(&ring.maps).unwrap(), []);
        ring.put(&event(1), NO_WAKEUP, 1);
        ring.put(&event(2), NO_WAKEUP, 2);
        let pus = |events: &[Event]| events.iter().map(|event| event.pu).collect::<Vec<_>>();
        for _ in 0..2 {
            assert_eq!(pus(&ring::peek_events(&ring.maps).unwrap()), [1, 2, 2]);
        }
        let mut telemetry = Telemetry::open(&ring.maps).unwrap();
        let mut seen = Vec::new();
        assert_eq!(telemetry.drain(|events| seen.extend(pus(events))), 3);
        assert_eq!(seen, [1, 2, 2]);
        assert_eq!(telemetry.drain(|_| panic!("there is nothing")), 0);
        assert_eq!(ring::peek_events(&ring.maps).unwrap(), []);

        // Several times around, so that records cross the end of the ring.
        let room = (1 << 16) / (size_of::<Event>() + 8);
        for round in 0..5 {
            ring.put(&event(round), NO_WAKEUP, room as u32);
            assert_eq!(ring::peek_events(&ring.maps).unwrap().len(), room);
            let mut largest = 0;
            assert_eq!(
                telemetry.drain(|events| {
                    assert!(events.iter().all(|event| event.pu == round));
                    largest = largest.max(events.len());
                }),
                room
            );
            assert_eq!(largest, 256.min(room));
        }
    });
}

#[test]
fn what_is_no_ring_is_named() {
    isolated(|| {
        let ring = Ring::new("OTHER", 4096);
        let error = Telemetry::open(&ring.maps).unwrap_err().to_string();
        assert!(error.starts_with(&format!("ring buffer {}/TELEMETRY: ", ring.maps.display())), "{error}");
        let hash = aya::maps::HashMap::<_, u32, u32>::create(1, 0).unwrap();
        hash.pin(ring.maps.join("TELEMETRY")).unwrap();
        assert!(matches!(Telemetry::open(&ring.maps), Err(RingError::Map { .. })));
        assert!(matches!(ring::peek_events(&ring.maps), Err(RingError::Map { .. })));
    });
}

/// A socket filter that copies a record from its own code into the ring.
struct Program(OwnedFd);

impl Program {
    fn new(map: i32, record: &[u8], flags: u32) -> Self {
        assert!(record.len() <= 504);
        let instruction = |code: u8, registers: u8, offset: i16, immediate: i32| {
            let mut bytes = vec![code, registers];
            bytes.extend(offset.to_ne_bytes());
            bytes.extend(immediate.to_ne_bytes());
            bytes
        };
        let mut code = Vec::new();
        let size = record.len().next_multiple_of(8) as i16;
        for (index, chunk) in record.chunks(4).enumerate() {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            // *(u32 *)(r10 + offset) = word
            code.extend(instruction(0x62, 10, index as i16 * 4 - size, i32::from_ne_bytes(word)));
        }
        // r1 = map; r2 = r10 - size; r3 = length; r4 = flags; call bpf_ringbuf_output; r0 = 0; exit
        code.extend(instruction(0x18, 0x11, 0, map));
        code.extend(instruction(0, 0, 0, 0));
        code.extend(instruction(0xbf, 0xa2, 0, 0));
        code.extend(instruction(0x07, 0x02, 0, -i32::from(size)));
        code.extend(instruction(0xb7, 0x03, 0, record.len() as i32));
        code.extend(instruction(0xb7, 0x04, 0, flags as i32));
        code.extend(instruction(0x85, 0, 0, 130));
        code.extend(instruction(0xb7, 0, 0, 0));
        code.extend(instruction(0x95, 0, 0, 0));
        let license = c"GPL";
        let mut attributes = [0_u64; 16];
        // BPF_PROG_TYPE_SOCKET_FILTER, number of instructions; pointers to both.
        attributes[0] = 1 | ((code.len() / 8) as u64) << 32;
        attributes[1] = code.as_ptr() as u64;
        attributes[2] = license.as_ptr() as u64;
        let fd = bpf(5, &mut attributes);
        // SAFETY: the kernel has just made this descriptor for us.
        Self(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    fn run(&self, times: u32) {
        let packet = [0_u8; 14];
        let mut attributes = [0_u64; 16];
        attributes[0] = self.0.as_raw_fd() as u64;
        attributes[1] = packet.len() as u64;
        attributes[2] = packet.as_ptr() as u64;
        attributes[4] = u64::from(times);
        bpf(10, &mut attributes);
    }
}

fn bpf(command: i32, attributes: &mut [u64; 16]) -> libc::c_long {
    // SAFETY: the attributes outlive the call, as does what they point to in the callers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    assert!(result >= 0, "bpf command {command}: {}", std::io::Error::last_os_error());
    result
}
