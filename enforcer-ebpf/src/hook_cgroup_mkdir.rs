//! cgroup_mkdir: cgroups that are to become PUs are found before a process can enter them.
//!
//! A pattern is a beginning and an end here: what it takes too much the agent lets go as soon as it has looked. Cgroups of
//! containers are known by their names: `ID`, `ENGINE-ID`, and with `.scope` behind where systemd makes them.

use aya_ebpf::{
    bindings::BPF_RB_FORCE_WAKEUP, helpers::generated::bpf_probe_read_kernel_str, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use common::{
    abi::{LOSS_WORKLOADS, PU_UNSORTED},
    workload::{
        ALL_HEX, CGROUP_PATTERNS as PATTERNS, CONTAINER_ID, CONTAINER_SCOPE, CgroupPattern, FileKey, NAME_WORDS,
        PATH_MAX, PREFIX_WORDS, SUFFIX_WORDS, WATCH_CGROUPS, WATCH_CONTAINERS, WORKLOAD_CGROUP, hex_digits,
    },
};

use crate::{
    emit::count,
    hook_exec::{argument, read},
    maps::{CGROUP_PATTERNS, PATH_SCRATCH, PU_CGROUPS, WATCH, WORKLOADS},
};

/// Bytes of the longest end that is compared.
const TAIL: usize = SUFFIX_WORDS * 8;

/// A path, its last name, and its last bytes in words of their own.
#[repr(C, align(8))]
pub struct Path {
    tail: [u64; SUFFIX_WORDS],
    name: [u64; NAME_WORDS],
    /// Zeros, so that the end of a short path has something before it.
    before: [u64; SUFFIX_WORDS],
    path: [u8; PATH_MAX],
}

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    let Some(watch) = WATCH.get(0) else { return 0 };
    if watch.flags & (WATCH_CGROUPS | WATCH_CONTAINERS) == 0 {
        return 0;
    }
    // SAFETY: the arguments of this tracepoint are `struct cgroup *` and the path as text.
    let (cgroup, text) = unsafe { (argument(&ctx, 0), argument(&ctx, 1)) };
    let Some(path) = PATH_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slot, and interrupts are off while this tracepoint runs.
    let path = unsafe { &mut *path };
    // Version 2 has the number 0. The ids of other hierarchies are others' there.
    if read::<u32>(read::<u64>(cgroup, watch.offsets.cgroup_root), watch.offsets.root_hierarchy) != 0 {
        return 0;
    }
    let node = read::<u64>(cgroup, watch.offsets.cgroup_kn);
    let name = read::<u64>(node, watch.offsets.kernfs_node_name);
    let Some(len) = take(path, text, name) else { return 0 };
    let meant = watch.flags & WATCH_CGROUPS != 0 && matches_any(path, watch.patterns)
        || watch.flags & WATCH_CONTAINERS != 0 && is_containers(path, len as usize);
    if !meant {
        return 0;
    }
    let id = read::<u64>(node, watch.offsets.kernfs_node_id);
    if id == 0 || PU_CGROUPS.insert(id, PU_UNSORTED, 0).is_err() {
        count(LOSS_WORKLOADS);
    }
    tell(id, text, len);
    0
}

/// Copies the path and the name; the path's length without the zero at its end.
#[inline(always)]
fn take(path: &mut Path, text: u64, name: u64) -> Option<u32> {
    // What a longer path left behind would be taken for the end of the words compared.
    for word in 0..PREFIX_WORDS {
        // SAFETY: within the path.
        unsafe { path.path.as_mut_ptr().cast::<u64>().add(word).write_volatile(0) };
    }
    for word in 0..NAME_WORDS {
        // SAFETY: within the name.
        unsafe { path.name.as_mut_ptr().add(word).write_volatile(0) };
    }
    // SAFETY: the helper checks the address itself, and writes no more than the array.
    unsafe { bpf_probe_read_kernel_str(path.name.as_mut_ptr().cast(), (NAME_WORDS * 8) as u32, name as *const _) };
    // SAFETY: as above.
    let taken = unsafe { bpf_probe_read_kernel_str(path.path.as_mut_ptr().cast(), PATH_MAX as u32, text as *const _) };
    if taken <= 1 || taken > PATH_MAX as i64 {
        return None;
    }
    let len = (taken - 1) as usize;
    // SAFETY: the bytes before the path and the path are one array, of which `len + TAIL` bytes are there.
    let end = unsafe { path.before.as_ptr().cast::<u8>().add(len & (PATH_MAX - 1)) };
    for word in 0..SUFFIX_WORDS {
        // SAFETY: as above.
        path.tail[word] = unsafe { unaligned(end.add(word * 8)) };
    }
    const { assert!(TAIL == size_of::<[u64; SUFFIX_WORDS]>()) };
    Some(len as u32)
}

/// Eight bytes, wherever they lie.
///
/// # Safety
/// They must be there.
#[inline(always)]
unsafe fn unaligned(from: *const u8) -> u64 {
    let mut bytes = 0_u64;
    for byte in 0..8 {
        // SAFETY: the caller says that they are there.
        let value = unsafe { *from.add(byte) };
        bytes |= u64::from(value) << (if cfg!(target_endian = "little") { byte * 8 } else { 56 - byte * 8 });
    }
    bytes
}

/// Whether the path ends with the id of a container, as the agent will look for it.
#[inline(never)]
fn is_containers(path: &Path, len: usize) -> bool {
    const SCOPE: usize = CONTAINER_SCOPE.len();
    const { assert!(CONTAINER_ID == TAIL && SCOPE < SUFFIX_WORDS * 8) };
    // SAFETY: as in `take`; what is looked at further before is a part of the path's last name.
    let mut id = unsafe { path.before.as_ptr().cast::<u8>().add(len & (PATH_MAX - 1)) };
    let mut scope = true;
    for (at, byte) in CONTAINER_SCOPE.iter().enumerate() {
        // SAFETY: as above.
        scope &= unsafe { *id.add(TAIL - SCOPE + at) } == *byte;
    }
    if scope {
        // SAFETY: as above.
        id = unsafe { id.sub(SCOPE) };
    }
    let mut digits = ALL_HEX;
    for word in 0..CONTAINER_ID / 8 {
        // SAFETY: as above.
        digits &= hex_digits(unsafe { unaligned(id.add(word * 8)) });
    }
    // SAFETY: as above.
    digits == ALL_HEX && matches!(unsafe { *id.sub(1) }, b'/' | b'-')
}

#[inline(always)]
fn matches_any(path: &Path, patterns: u32) -> bool {
    for index in 0..PATTERNS {
        if index >= patterns {
            return false;
        }
        if CGROUP_PATTERNS.get(index).is_some_and(|pattern| matches(path, pattern)) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn matches(path: &Path, pattern: &CgroupPattern) -> bool {
    let mut differs = 0;
    for word in 0..PREFIX_WORDS {
        // SAFETY: within the path, whose beginning is aligned.
        let value = unsafe { *path.path.as_ptr().cast::<u64>().add(word) };
        differs |= (value & pattern.prefix_mask[word]) ^ pattern.prefix[word];
    }
    for word in 0..NAME_WORDS {
        differs |= (path.name[word] & pattern.name_mask[word]) ^ pattern.name[word];
    }
    for word in 0..SUFFIX_WORDS {
        differs |= (path.tail[word] & pattern.suffix_mask[word]) ^ pattern.suffix[word];
    }
    differs == 0
}

#[inline(always)]
fn tell(cgroup: u64, text: u64, len: u32) {
    let Some(mut entry) = WORKLOADS.reserve(0) else {
        count(LOSS_WORKLOADS);
        return;
    };
    // SAFETY: `event` is the reservation; the helper checks the address itself, and writes no more than the array.
    unsafe {
        let event = entry.as_mut_ptr();
        (*event).cgroup = cgroup;
        (*event).file = FileKey { inode: 0, device: 0, pad: 0 };
        (*event).ctime_sec = 0;
        (*event).kind = WORKLOAD_CGROUP;
        (*event).process = 0;
        (*event).pu = 0;
        (*event).path_len = len;
        bpf_probe_read_kernel_str((*event).path.as_mut_ptr().cast(), PATH_MAX as u32, text as *const _);
    }
    entry.submit(BPF_RB_FORCE_WAKEUP as u64);
}
