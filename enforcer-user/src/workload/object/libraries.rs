//! Shared libraries an executable asks for: `DT_NEEDED` of ELF.
//!
//! Not those that are mapped: at exec there are none yet, and what the process loads later it could choose.

use std::{collections::BTreeSet, fs::File};

use object::{
    Endianness, ReadCache,
    elf::{self, FileHeader32, FileHeader64},
    read::elf::{Dyn, ElfFile, FileHeader, ProgramHeader},
};

/// Names of libraries taken, at most.
const LIBRARIES_MAX: usize = 64;

/// The names as they stand in the file, such as `libc.so.6`; none for what is no dynamic ELF file.
pub(super) fn needed(file: &File) -> BTreeSet<String> {
    let cache = ReadCache::new(file);
    let found = match object::FileKind::parse(&cache) {
        Ok(object::FileKind::Elf64) => names::<FileHeader64<Endianness>>(&cache),
        Ok(object::FileKind::Elf32) => names::<FileHeader32<Endianness>>(&cache),
        _ => return BTreeSet::new(),
    };
    found.unwrap_or_default()
}

fn names<Elf: FileHeader<Endian = Endianness>>(cache: &ReadCache<&File>) -> object::read::Result<BTreeSet<String>> {
    let file = ElfFile::<Elf, _>::parse(cache)?;
    let endian = file.endian();
    let segments = file.elf_program_headers();
    let mut names = BTreeSet::new();
    for segment in segments {
        let Some(dynamic) = segment.dynamic(endian, cache)? else { continue };
        let value = |tag: i64| dynamic.iter().find(|entry| entry.tag(endian) == tag).map(|entry| entry.val(endian));
        let (Some(address), Some(size)) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) else { continue };
        let strings = segments.iter().find_map(|load| load.data_range(endian, cache, address, size).ok().flatten());
        let Some(strings) = strings else { continue };
        for entry in dynamic.iter().filter(|entry| entry.tag(endian) == elf::DT_NEEDED) {
            let offset = entry.val(endian);
            let from = usize::try_from(offset).ok().and_then(|offset| strings.get(offset..)).unwrap_or_default();
            let name = from.split(|byte| *byte == 0).next().and_then(|name| std::str::from_utf8(name).ok());
            names
                .extend(name.filter(|name| !name.is_empty() && !name.chars().any(char::is_control)).map(str::to_owned));
            if names.len() >= LIBRARIES_MAX {
                return Ok(names);
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::*;

    #[test]
    fn a_program_names_its_libraries_and_other_files_none() -> io::Result<()> {
        let own = File::open(std::env::current_exe()?)?;
        assert!(needed(&own).contains("libc.so.6"), "{:?}", needed(&own));
        assert_eq!(needed(&File::open("/etc/passwd")?), BTreeSet::new());
        Ok(())
    }

    #[test]
    fn damaged_files_are_no_harm() -> io::Result<()> {
        let bytes = std::fs::read("/bin/true")?;
        for at in (0..bytes.len().min(4096)).step_by(7) {
            let mut file = tempfile::tempfile()?;
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            damaged.truncate(bytes.len() - at);
            file.write_all(&damaged)?;
            let _ = needed(&file);
        }
        Ok(())
    }
}
