//! sched_process_exec, sched_process_fork: processes that are to become PUs are found before they can send.
//!
//! The program runs in the process that executes, after there is no way back and before its first instruction. What file
//! it is is looked up by inode: names lie. A file the agent has not judged yet is taken for one that matters as
//! long as there is an agent to judge it. Such a process is unsorted, and what it forks with it, until the agent has moved it
//! to its PU or let it go.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_RB_FORCE_WAKEUP,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_probe_read_kernel,
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use common::{
    abi::{LOSS_WORKLOADS, PU_UNSORTED},
    workload::{
        FILE_ANYBODY, FILE_SOME_USERS, FileKey, Offsets, Unsorted, WATCH_EXEC, WATCH_PUS, WORKLOAD_EXEC,
        WORKLOAD_EXEC_IN_PU, Watch,
    },
};

use crate::{
    attribute::UNMANAGED,
    emit::{config, count, now},
    hook_cgroup_sock::cgroup_pu,
    maps::{EXEC_FILES, EXEC_USERS, UNSORTED, WATCH, WORKLOADS},
};

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    let Some(watch) = WATCH.get(0) else { return 0 };
    if watch.flags & (WATCH_EXEC | WATCH_PUS) == 0 || !is_ours(watch) {
        return 0;
    }
    // SAFETY: a helper without arguments.
    let process = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    let pu = cgroup_pu();
    if pu != UNMANAGED && pu != PU_UNSORTED {
        let _ = UNSORTED.remove(process);
        tell(WORKLOAD_EXEC_IN_PU, process, pu, &File { key: FileKey { inode: 0, device: 0, pad: 0 }, ctime_sec: 0 });
        return 0;
    }
    if watch.flags & WATCH_EXEC == 0 {
        return 0;
    }
    // SAFETY: read-only copy.
    if unsafe { UNSORTED.get(process) }.is_some_and(|entry| entry.root != process) {
        // It belongs to what forked it, whatever it executes.
        return 0;
    }
    // SAFETY: the third argument of this tracepoint is the kernel's `struct linux_binprm *`.
    let file = File::of(watch, unsafe { argument(&ctx, 2) });
    if may_match(watch, &file) {
        let entry = Unsorted { since_ns: now(), root: process, pad: 0 };
        if UNSORTED.insert(process, entry, 0).is_err() {
            count(LOSS_WORKLOADS);
        }
        tell(WORKLOAD_EXEC, process, 0, &file);
    } else {
        let _ = UNSORTED.remove(process);
    }
    0
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    let Some(watch) = WATCH.get(0) else { return 0 };
    if watch.flags & WATCH_EXEC == 0 {
        return 0;
    }
    // SAFETY: a helper without arguments.
    let parent = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    // SAFETY: the second argument of this tracepoint is the kernel's `struct task_struct *` of the child.
    let child = read::<u32>(unsafe { argument(&ctx, 1) }, watch.offsets.task_tgid);
    if child == parent {
        return 0;
    }
    // SAFETY: read-only copy.
    match unsafe { UNSORTED.get(parent) }.copied() {
        Some(entry) => {
            if UNSORTED.insert(child, entry, 0).is_err() {
                count(LOSS_WORKLOADS);
            }
        }
        // A number that was another's.
        None => drop(UNSORTED.remove(child)),
    }
    0
}

/// Whether the current process is in this enforcer's part of the hierarchy.
#[inline(always)]
fn is_ours(watch: &Watch) -> bool {
    // SAFETY: a helper about the current task.
    unsafe { bpf_get_current_ancestor_cgroup_id(watch.root_level as i32) == watch.root }
}

/// An executable file.
struct File {
    key: FileKey,
    ctime_sec: u64,
}

impl File {
    /// What a `struct linux_binprm` executes.
    #[inline(always)]
    fn of(watch: &Watch, binprm: u64) -> Self {
        let Offsets { binprm_file, file_inode, inode_ino, inode_sb, inode_ctime_sec, sb_dev, .. } = watch.offsets;
        let inode = read::<u64>(read::<u64>(binprm, binprm_file), file_inode);
        let device = read(read::<u64>(inode, inode_sb), sb_dev);
        Self {
            key: FileKey { inode: read(inode, inode_ino), device, pad: 0 },
            ctime_sec: read::<u64>(inode, inode_ctime_sec),
        }
    }
}

#[inline(always)]
fn may_match(watch: &Watch, file: &File) -> bool {
    // SAFETY: read-only copy.
    let known = unsafe { EXEC_FILES.get(file.key) }.filter(|known| known.ctime_sec == file.ctime_sec);
    let bits = match known {
        Some(known) => known.bits,
        None if agent_lives() => FILE_ANYBODY,
        None => watch.unknown_file,
    };
    if bits & FILE_ANYBODY != 0 {
        return true;
    }
    // SAFETY: a helper without arguments; the map is only asked whether it has the key.
    bits & FILE_SOME_USERS != 0 && unsafe { EXEC_USERS.get(bpf_get_current_uid_gid() as u32) }.is_some()
}

#[inline(always)]
fn agent_lives() -> bool {
    let now = now();
    config().is_some_and(|config| {
        now.wrapping_sub(config.heartbeat_ns) <= config.agent_timeout_ns || now <= config.heartbeat_ns
    })
}

#[inline(always)]
fn tell(kind: u32, process: u32, pu: u32, file: &File) {
    let Some(mut entry) = WORKLOADS.reserve(0) else {
        count(LOSS_WORKLOADS);
        return;
    };
    // SAFETY: `event` is the reservation; the path is not read, as its length is zero.
    unsafe {
        let event = entry.as_mut_ptr();
        (*event).cgroup = 0;
        (*event).file = file.key;
        (*event).ctime_sec = file.ctime_sec;
        (*event).kind = kind;
        (*event).process = process;
        (*event).pu = pu;
        (*event).path_len = 0;
    }
    entry.submit(BPF_RB_FORCE_WAKEUP as u64);
}

/// An argument of the tracepoint as a plain number.
///
/// # Safety
/// The tracepoint must have that many.
#[inline(always)]
pub unsafe fn argument(ctx: &RawTracePointContext, number: usize) -> u64 {
    // SAFETY: the context of raw tracepoints is an array of words, of which the caller says that it is long enough.
    unsafe { *ctx.as_ptr().cast::<u64>().add(number) }
}

/// A field of a kernel's structure; zero if it cannot be read, which is no process, inode or cgroup.
#[inline(always)]
pub fn read<T: Copy + Default>(structure: u64, offset: u32) -> T {
    let mut value = T::default();
    // SAFETY: the helper checks the address itself, and writes no more than the value.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(&mut value).cast(),
            size_of::<T>() as u32,
            structure.wrapping_add(u64::from(offset)) as *const _,
        );
    }
    value
}
