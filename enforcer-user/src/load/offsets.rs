//! Where fields lie in the running kernel's structures, as its BTF says.
//!
//! Programs at tracepoints get the kernel's own structures, whose layout differs from kernel to kernel. Format of BTF:
//! Documentation/bpf/btf.rst.

use std::{collections::HashMap, fs, io, path::Path};

use common::workload::Offsets;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The layout of the kernel's structures is not known.
#[derive(Debug, thiserror::Error)]
pub enum OffsetsError {
    /// No BTF.
    #[error("{VMLINUX}: {0}; processes and cgroups are found late on a kernel without CONFIG_DEBUG_INFO_BTF")]
    Read(io::Error),
    /// Not what it should be.
    #[error("{VMLINUX} is malformed at byte {0}")]
    Malformed(usize),
    /// A structure is not as expected.
    #[error("this kernel has no {0}")]
    Missing(&'static str),
}

/// The fields that the programs look at, in the running kernel.
///
/// # Errors
/// [`OffsetsError`].
pub fn kernel_offsets() -> Result<Offsets, OffsetsError> {
    let bytes = fs::read(Path::new(VMLINUX)).map_err(OffsetsError::Read)?;
    let btf = Btf::read(&bytes)?;
    Ok(Offsets {
        cgroup_kn: btf.offset("cgroup", &["kn"], "cgroup.kn")?,
        kernfs_node_id: btf.offset("kernfs_node", &["id"], "kernfs_node.id")?,
        task_tgid: btf.offset("task_struct", &["tgid"], "task_struct.tgid")?,
        binprm_file: btf.offset("linux_binprm", &["file"], "linux_binprm.file")?,
        file_inode: btf.offset("file", &["f_inode"], "file.f_inode")?,
        inode_ino: btf.offset("inode", &["i_ino"], "inode.i_ino")?,
        inode_sb: btf.offset("inode", &["i_sb"], "inode.i_sb")?,
        // Since 6.11, since 6.6, before: the seconds come first in all of them.
        inode_ctime_sec: btf.offset("inode", &["i_ctime_sec", "__i_ctime", "i_ctime"], "inode.i_ctime_sec")?,
        sb_dev: btf.offset("super_block", &["s_dev"], "super_block.s_dev")?,
        kernfs_node_name: btf.offset("kernfs_node", &["name"], "kernfs_node.name")?,
        cgroup_root: btf.offset("cgroup", &["root"], "cgroup.root")?,
        root_hierarchy: btf.offset("cgroup_root", &["hierarchy_id"], "cgroup_root.hierarchy_id")?,
    })
}

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Deeper than any structure is nested.
const DEPTH: u32 = 16;

/// The types of a kernel, found by their names and numbers.
struct Btf<'a> {
    strings: &'a [u8],
    types: Vec<Type<'a>>,
    structs: HashMap<&'a [u8], usize>,
}

struct Type<'a> {
    kind: u32,
    /// Offsets of members are bits beside the width of a bit field.
    wide: bool,
    members: &'a [u8],
}

impl<'a> Btf<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, OffsetsError> {
        if bytes.get(..2) != Some(MAGIC.to_ne_bytes().as_slice()) {
            return Err(OffsetsError::Malformed(0));
        }
        let section = |at: usize| {
            let header = word(bytes, 4)? as usize;
            let (start, len) = (header + word(bytes, at)? as usize, word(bytes, at + 4)? as usize);
            start.checked_add(len).and_then(|end| bytes.get(start..end)).ok_or(OffsetsError::Malformed(at))
        };
        let (types, strings) = (section(8)?, section(16)?);
        // Type 0 is void.
        let mut btf =
            Self { strings, types: vec![Type { kind: 0, wide: false, members: &[] }], structs: HashMap::new() };
        let mut at = 0;
        while at < types.len() {
            let (name, info) = (word(types, at)?, word(types, at + 4)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let len = match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                STRUCT | UNION | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
            let members = types.get(at + 12..at + 12 + len).ok_or(OffsetsError::Malformed(at))?;
            if kind == STRUCT {
                btf.structs.entry(btf.string(name)).or_insert(btf.types.len());
            }
            btf.types.push(Type { kind, wide: info >> 31 == 1, members });
            at += 12 + len;
        }
        Ok(btf)
    }

    /// Offset in bytes of the first of these fields that the structure has.
    fn offset(&self, structure: &str, fields: &[&str], what: &'static str) -> Result<u32, OffsetsError> {
        let number = self.structs.get(structure.as_bytes()).copied();
        let found = number.and_then(|number| fields.iter().find_map(|field| self.member(number, field.as_bytes(), 0)));
        found.map(|bits| bits / 8).ok_or(OffsetsError::Missing(what))
    }

    fn member(&self, number: usize, field: &[u8], depth: u32) -> Option<u32> {
        let of = self.types.get(number).filter(|of| matches!(of.kind, STRUCT | UNION) && depth < DEPTH)?;
        of.members.chunks_exact(12).find_map(|member| {
            let (name, inner, offset) = (word(member, 0).ok()?, word(member, 4).ok()?, word(member, 8).ok()?);
            let offset = if of.wide { offset & 0xff_ffff } else { offset };
            if self.string(name) == field {
                return Some(offset);
            }
            // Members of a structure without name are members of the one around it.
            let nameless = name == 0 || self.string(name).is_empty();
            nameless.then(|| self.member(inner as usize, field, depth + 1)).flatten().map(|inner| offset + inner)
        })
    }

    fn string(&self, at: u32) -> &'a [u8] {
        let from = self.strings.get(at as usize..).unwrap_or_default();
        from.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, OffsetsError> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_ne_bytes).ok_or(OffsetsError::Malformed(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct outer { int a; struct { int b; } ; } as BTF.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0";
        let mut types = Vec::new();
        for words in [
            [0, 1 << 24, 4].as_slice(),
            &[32],
            &[0, 4 << 24 | 1, 4],
            &[9, 1, 0],
            &[1, 4 << 24 | 2, 8],
            &[7, 1, 0],
            &[0, 2, 32],
        ] {
            types.extend(words.iter().flat_map(|word: &u32| word.to_ne_bytes()));
        }
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_through_nameless_structures() {
        let bytes = sample();
        let btf = Btf::read(&bytes).unwrap();
        assert_eq!(btf.offset("outer", &["a"], "").unwrap(), 0);
        assert_eq!(btf.offset("outer", &["none", "b"], "").unwrap(), 4);
        assert!(matches!(btf.offset("outer", &["none"], "outer.none"), Err(OffsetsError::Missing("outer.none"))));
        assert!(matches!(btf.offset("inner", &["a"], "inner.a"), Err(OffsetsError::Missing(_))));
    }

    #[test]
    fn truncated_or_foreign_bytes_are_errors() {
        let bytes = sample();
        for len in 0..bytes.len() {
            assert!(Btf::read(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(Btf::read(b"\x7fELF").is_err());
    }

    #[test]
    fn this_kernel_has_them_all() {
        let offsets = kernel_offsets().unwrap();
        assert!(offsets.task_tgid > 0 && offsets.inode_ino > 0 && offsets.sb_dev > 0, "{offsets:?}");
    }
}
