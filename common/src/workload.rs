//! What finds processes and cgroups that are to become PUs, before they can send.
//!
//! Sorting a process out takes the agent a moment. Until then its sockets bear [`PU_UNSORTED`](crate::abi::PU_UNSORTED): nothing
//! of theirs passes.

/// Patterns of cgroups the kernel looks for.
pub const CGROUP_PATTERNS: u32 = 32;
/// Words of a path's beginning that a pattern compares.
pub const PREFIX_WORDS: usize = 16;
/// Words of a path's end that a pattern compares.
pub const SUFFIX_WORDS: usize = 8;
/// Words of the last name's beginning that a pattern compares.
pub const NAME_WORDS: usize = 8;
/// Longest path that is compared, bytes.
pub const PATH_MAX: usize = 512;

/// Processes are sorted out when they execute a program.
pub const WATCH_EXEC: u32 = 1;
/// Cgroups are sorted out when they are made.
pub const WATCH_CGROUPS: u32 = 2;
/// The agent is told when a process of a PU executes a program.
pub const WATCH_PUS: u32 = 4;
/// Cgroups that are named after a container are sorted out when they are made.
pub const WATCH_CONTAINERS: u32 = 8;

/// Hexadecimal digits of a container's id.
pub const CONTAINER_ID: usize = 64;
/// What may follow on the id in the name of a container's cgroup.
pub const CONTAINER_SCOPE: &[u8; 6] = b".scope";
/// What the bytes of eight digits `0-9a-f` have in common: the result of [`hex_digits`].
pub const ALL_HEX: u64 = u64::from_ne_bytes([0x80; 8]);

/// Which of eight bytes are digits `0-9a-f`: their highest bit is set, all others are clear. Without branches, of which the
/// verifier would walk every way.
pub const fn hex_digits(bytes: u64) -> u64 {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    const fn at_least(ascii: u64, first: u8) -> u64 {
        ascii.wrapping_add(each(0x80 - first))
    }
    // Bytes of ASCII do not carry into the next; from 128 on they are no digits whatever happens to them.
    let ascii = bytes & each(0x7f);
    let digit = at_least(ascii, b'0') & !at_least(ascii, b'9' + 1);
    let letter = at_least(ascii, b'a') & !at_least(ascii, b'f' + 1);
    (digit | letter) & !bytes & ALL_HEX
}

/// The one entry of the map `WATCH`; written by the agent only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// The cgroup below which this enforcer is in charge.
    pub root: u64,
    /// Its level.
    pub root_level: u32,
    /// `WATCH_*` bits.
    pub flags: u32,
    /// Patterns in use.
    pub patterns: u32,
    /// `FILE_*` bits of files the agent has not judged.
    pub unknown_file: u32,
    /// Where fields lie in this kernel's structures.
    pub offsets: Offsets,
}

/// Where fields lie in the running kernel's structures, bytes; as its BTF says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `kernfs_node.id`
    pub kernfs_node_id: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `linux_binprm.file`
    pub binprm_file: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// Seconds of the inode's last change.
    pub inode_ctime_sec: u32,
    /// `super_block.s_dev`
    pub sb_dev: u32,
    /// `kernfs_node.name`
    pub kernfs_node_name: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `cgroup_root.hierarchy_id`
    pub root_hierarchy: u32,
}

/// A pattern of the map `CGROUP_PATTERNS`: how a path begins, how its last name begins and how it ends, as words of which only
/// the bits of the mask count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupPattern {
    /// The path's first bytes.
    pub prefix: [u64; PREFIX_WORDS],
    /// Which of them count.
    pub prefix_mask: [u64; PREFIX_WORDS],
    /// The first bytes of the path's last name.
    pub name: [u64; NAME_WORDS],
    /// Which of them count.
    pub name_mask: [u64; NAME_WORDS],
    /// The path's last bytes.
    pub suffix: [u64; SUFFIX_WORDS],
    /// Which of them count.
    pub suffix_mask: [u64; SUFFIX_WORDS],
}

/// Key of the map `EXEC_FILES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Inode number.
    pub inode: u64,
    /// Device as the kernel numbers it inside (`MKDEV`).
    pub device: u32,
    /// Zero.
    pub pad: u32,
}

/// A rule may match whoever executes it.
pub const FILE_ANYBODY: u32 = 1;
/// A rule may match if a user of `EXEC_USERS` executes it.
pub const FILE_SOME_USERS: u32 = 2;

/// Value of the map `EXEC_FILES`: what the agent found of an executable file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileVerdict {
    /// Seconds of the inode's last change when it was judged; another one voids the verdict.
    pub ctime_sec: u64,
    /// `FILE_*` bits; none: no rule matches.
    pub bits: u32,
    /// Zero.
    pub pad: u32,
}

/// Value of the map `UNSORTED`, by process id: a process that the agent has yet to sort out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsorted {
    /// Since when, `CLOCK_MONOTONIC` nanoseconds.
    pub since_ns: u64,
    /// The process that executed the program; itself, or the one that forked it.
    pub root: u32,
    /// Zero.
    pub pad: u32,
}

/// A process executed a program and waits to be sorted out.
pub const WORKLOAD_EXEC: u32 = 1;
/// A process of a PU executed a program.
pub const WORKLOAD_EXEC_IN_PU: u32 = 2;
/// A cgroup was made and waits to be sorted out.
pub const WORKLOAD_CGROUP: u32 = 3;

/// Record of the ring `WORKLOADS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WorkloadEvent {
    /// The cgroup's id ([`WORKLOAD_CGROUP`]).
    pub cgroup: u64,
    /// The executed file ([`WORKLOAD_EXEC`]).
    pub file: FileKey,
    /// Seconds of its last change.
    pub ctime_sec: u64,
    /// `WORKLOAD_*`
    pub kind: u32,
    /// The process.
    pub process: u32,
    /// The process's PU ([`WORKLOAD_EXEC_IN_PU`]).
    pub pu: u32,
    /// Bytes of `path` in use.
    pub path_len: u32,
    /// The cgroup's path in the whole hierarchy ([`WORKLOAD_CGROUP`]).
    pub path: [u8; PATH_MAX],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_told_from_everything_else() {
        for byte in 0..=u8::MAX {
            let digit = matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            for other in [b'0', b'f', b'/', 0, 0xff] {
                for place in 0..8 {
                    let mut bytes = [other; 8];
                    bytes[place] = byte;
                    let said = hex_digits(u64::from_ne_bytes(bytes)).to_ne_bytes();
                    assert_eq!(said[place], if digit { 0x80 } else { 0 }, "{byte:#x} among {other:#x}");
                }
            }
        }
        assert_eq!(hex_digits(u64::from_ne_bytes(*b"09afbc12")), ALL_HEX);
    }
}
