//! Kernel calls that no crate on the shelf offers: map elements by reference, batches, link updates, descriptors of others.
//!
//! Layouts follow `union bpf_attr` of `include/uapi/linux/bpf.h`; only fields up to the last one used are passed, which the
//! kernel accepts by design (it takes the missing rest as zero).

mod raw;

use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

pub(crate) use raw::RawMap;

const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_UPDATE_BATCH: u32 = 26;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_DETACH: u32 = 34;

/// `enum bpf_link_type`.
pub const LINK_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_RAW_TRACEPOINT`
pub const LINK_RAW_TRACEPOINT: u32 = 1;
/// `enum bpf_link_type`.
pub const LINK_XDP: u32 = 6;
/// `enum bpf_link_type`.
pub const LINK_TCX: u32 = 11;

/// Only create: an existing key is an error (`EEXIST`).
pub const BPF_NOEXIST: u64 = 1;
/// Only replace: a missing key is an error (`ENOENT`).
pub const BPF_EXIST: u64 = 2;

/// How much of a map is read with one call.
const BATCH_BYTES: usize = 512 << 10;

/// What the kernel answers where an operation exists for other map types only; not in libc.
const ENOTSUPP: i32 = 524;

/// What a link is and where it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// One of `LINK_*`, or another of `enum bpf_link_type`.
    pub kind: u32,
    /// The link's id.
    pub id: u32,
    /// Id of the program it runs.
    pub program: u32,
    /// Interface index (tcx, XDP; 0 once the interface is gone) or cgroup id (cgroup).
    pub target: u64,
}

/// Time of `CLOCK_MONOTONIC` in nanoseconds: the clock of `bpf_ktime_get_ns` and of every absolute time in maps.
pub fn monotonic_ns() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is to writable memory of the right type.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr()) };
    debug_assert_eq!(result, 0, "CLOCK_MONOTONIC always exists");
    // SAFETY: the call cannot fail for this clock and a valid pointer, so `time` is filled.
    let time = unsafe { time.assume_init() };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Cookie of this thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14), as `bpf_get_netns_cookie` gives it; 0 where the
/// kernel cannot tell.
///
/// # Errors
/// What making a socket reports.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    socket_netns_cookie(socket.as_fd())
}

/// Cookie of the network namespace a socket is in; 0 where the kernel cannot tell.
///
/// # Errors
/// `ENOTSOCK`, `EBADF`.
pub fn socket_netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    match cookie(socket, SO_NETNS_COOKIE) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(0),
        other => other,
    }
}

/// Cookie of a socket (`SO_COOKIE`), as `bpf_get_socket_cookie` gives it.
///
/// # Errors
/// `ENOTSOCK`, `EBADF`.
pub fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    cookie(socket, libc::SO_COOKIE)
}

fn cookie(socket: BorrowedFd<'_>, option: i32) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the pointers are to writable memory of the size given.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut cookie).cast(), &raw mut len)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// `asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Opens a pinned object.
///
/// # Errors
/// `ENOENT` if nothing is pinned there, `EPERM` without `CAP_BPF`, `EINVAL` for a path with a NUL byte.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjAttr { pathname: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object.
///
/// # Errors
/// `EEXIST` if the name is taken, `EPERM` outside a bpffs or if the name holds a dot.
pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjAttr { pathname: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 };
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

/// Describes a link.
///
/// # Errors
/// `EINVAL` if the descriptor is no link.
pub fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut raw = RawLinkInfo::default();
    let attr =
        InfoAttr { fd: fd.as_raw_fd() as u32, len: size_of::<RawLinkInfo>() as u32, info: (&raw mut raw) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    let target = match raw.kind {
        LINK_CGROUP => raw.union[0],
        // Both start with a 32-bit interface index.
        LINK_XDP | LINK_TCX => u64::from(raw.union[0] as u32),
        _ => 0,
    };
    Ok(LinkInfo { kind: raw.kind, id: raw.id, program: raw.program, target })
}

/// Makes a link run another program, atomically: every packet meets the old or the new one.
///
/// # Errors
/// `ENOLINK` if the link's interface or cgroup is gone, `EINVAL` if the program is of another type.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr =
        LinkUpdateAttr { link: link.as_raw_fd() as u32, program: program.as_raw_fd() as u32, flags: 0, old_program: 0 };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// `enum bpf_attach_type`: a program that is asked before a socket hears a packet.
pub const BPF_CGROUP_INET_INGRESS: u32 = 0;
/// `enum bpf_attach_type`: a program that is asked before every setsockopt(2).
pub const BPF_CGROUP_SETSOCKOPT: u32 = 22;

/// Attaches a program to a cgroup, beside whatever else is there; the link lasts as long as its descriptors and pins.
///
/// # Errors
/// What the kernel reports.
pub fn cgroup_link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let attr = LinkCreateAttr {
        program: program.as_raw_fd() as u32,
        target: cgroup.as_raw_fd() as u32,
        attach_type,
        flags: 0,
    };
    let fd = bpf(BPF_LINK_CREATE, &attr)?;
    // SAFETY: the kernel just made the descriptor for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Detaches a link now. Closing its last descriptor does so too, but at some later moment.
///
/// # Errors
/// `EOPNOTSUPP` for kinds that cannot, `ENOLINK` if it hangs nowhere any more.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &(link.as_raw_fd() as u32)).map(drop)
}

/// The value under `key`, or `None`.
///
/// The caller answers for `K` and `V` being of the map's sizes (per-CPU maps write more than one `V`).
pub(crate) fn map_lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let attr = ElemAttr::new(map, key, value.as_mut_ptr() as u64, 0);
    match bpf(BPF_MAP_LOOKUP_ELEM, &attr) {
        // SAFETY: the kernel filled the value; `V: Pod` has no invalid bit patterns.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The values under `key` of a per-CPU map of `u64`, one a possible CPU.
pub(crate) fn map_lookup_per_cpu(map: BorrowedFd<'_>, key: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; cpus];
    let attr = ElemAttr::new(map, &key, values.as_mut_ptr() as u64, 0);
    bpf(BPF_MAP_LOOKUP_ELEM, &attr)?;
    Ok(values)
}

/// Writes `value` under `key`; `flags` is 0, [`BPF_NOEXIST`] or [`BPF_EXIST`].
pub(crate) fn map_update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let attr = ElemAttr::new(map, key, (&raw const *value) as u64, flags);
    bpf(BPF_MAP_UPDATE_ELEM, &attr).map(drop)
}

/// Removes `key`; whether it was there.
pub(crate) fn map_delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    match bpf(BPF_MAP_DELETE_ELEM, &ElemAttr::new(map, key, 0, 0)) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes many entries with one call.
pub(crate) fn map_update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    debug_assert_eq!(keys.len(), values.len());
    let count = keys.len().min(values.len());
    if count == 0 {
        return Ok(());
    }
    let attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: count as u32,
        map: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    match bpf(BPF_MAP_UPDATE_BATCH, &attr) {
        Ok(_) => Ok(()),
        Err(error) if lacks_batches(&error) => {
            keys.iter().zip(values).try_for_each(|(key, value)| map_update(map, key, value, 0))
        }
        Err(error) => Err(error),
    }
}

/// Calls `each` with every entry, in pieces; entries that come or go meanwhile may or may not be among them.
pub(crate) fn map_for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(&[K], &[V])) -> io::Result<()> {
    // Keys of all maps are shorter; hash maps keep a bucket number here, others a key.
    let mut position = [0_u64; 32];
    let mut started = false;
    let mut keys = Vec::<K>::new();
    let mut values = Vec::<V>::new();
    // Few calls, but no bulge of memory for maps of large values.
    let mut room = (BATCH_BYTES / (size_of::<K>() + size_of::<V>()).max(1)).clamp(64, 4096);
    loop {
        keys.clear();
        values.clear();
        keys.reserve(room);
        values.reserve(room);
        let mut next = [0_u64; 32];
        let mut attr = BatchAttr {
            in_batch: if started { position.as_ptr() as u64 } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        let end = match bpf_mut(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket that holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 22 => {
                room *= 2;
                continue;
            }
            Err(error) if !started && lacks_batches(&error) => return map_for_each_singly(map, each),
            Err(error) => return Err(error),
        };
        let count = (attr.count as usize).min(room);
        // SAFETY: the kernel filled `count` keys and values, within the capacity; both are `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        if count > 0 {
            each(&keys, &values);
        }
        if end {
            return Ok(());
        }
        position = next;
        started = true;
    }
}

fn map_for_each_singly<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(&[K], &[V])) -> io::Result<()> {
    let mut last: Option<K> = None;
    loop {
        let mut key = MaybeUninit::<K>::uninit();
        let attr = ElemAttr {
            map: map.as_raw_fd() as u32,
            pad: 0,
            key: last.as_ref().map_or(0, |key| (&raw const *key) as u64),
            value: key.as_mut_ptr() as u64,
            flags: 0,
        };
        match bpf(BPF_MAP_GET_NEXT_KEY, &attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        // SAFETY: the kernel filled the key; `K: Pod` has no invalid bit patterns.
        let key = unsafe { key.assume_init() };
        if let Some(value) = map_lookup::<K, V>(map, &key)? {
            each(&[key], &[value]);
        }
        last = Some(key);
    }
}

/// A descriptor that stands for the process, safe against re-use of its number.
///
/// # Errors
/// `ESRCH` if there is no such process (any more).
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; the result is checked.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A duplicate of another process's descriptor.
///
/// # Errors
/// `EBADF` if it was closed meanwhile, `ESRCH` if the process is gone, `EPERM` without `CAP_SYS_PTRACE`.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; the result is checked.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// An integer option of a socket at level `SOL_SOCKET`.
///
/// # Errors
/// `ENOTSOCK`, or `ENOPROTOOPT` if this kind of socket lacks the option.
pub fn socket_option(socket: BorrowedFd<'_>, option: i32) -> io::Result<i32> {
    let mut value: i32 = 0;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: both pointers are to live memory, and `len` says how much the kernel may write.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

fn lacks_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

#[repr(C)]
struct ElemAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElemAttr {
    fn new<K: Pod>(map: BorrowedFd<'_>, key: &K, value: u64, flags: u64) -> Self {
        Self { map: map.as_raw_fd() as u32, pad: 0, key: (&raw const *key) as u64, value, flags }
    }
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
struct ObjAttr {
    pathname: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Gives what of the heap is free back to the system, where the C library can: after a large policy has come and gone, it would
/// otherwise stay for the next one.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0)
    };
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    union: [u64; 8],
}

fn bpf<T>(command: u32, attr: &T) -> io::Result<RawFd> {
    // SAFETY: `attr` is a live `repr(C)` prefix of `union bpf_attr` for this command; the pointers in it are to live memory.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// As [`bpf`], for commands that write into the attributes.
fn bpf_mut<T>(command: u32, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: as in `bpf`; the kernel writes only within `attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
