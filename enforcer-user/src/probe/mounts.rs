//! What is mounted where, from `/proc/mounts` (proc(5), fstab(5)).

use std::{ffi::OsString, io, os::unix::ffi::OsStringExt, path::PathBuf};

/// One line of `/proc/mounts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub point: PathBuf,
    /// Type of file system.
    pub kind: String,
}

/// Every mount this process sees, in order.
///
/// # Errors
/// If `/proc` is not mounted or not readable.
pub fn all() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/mounts")
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read /proc/mounts: {error}")))?;
    Ok(parse(&text))
}

/// Root of the cgroup v2 hierarchy; where it is mounted more than once, the first.
///
/// # Errors
/// As [`all`].
pub fn cgroup2() -> io::Result<Option<PathBuf>> {
    Ok(all()?.into_iter().find(|mount| mount.kind == "cgroup2").map(|mount| mount.point))
}

fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let (_source, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            let point = PathBuf::from(OsString::from_vec(unescape(point)));
            Some(Mount { point, kind: String::from_utf8_lossy(kind).into_owned() })
        })
        .collect()
}

/// Undoes the octal escapes (`\040` for a space) of fstab(5).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                plain.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_and_escapes_undone() {
        let text = b"none /sys/fs/cgroup/unified cgroup2 rw 0 0\nx /a\\040b\\134c tmpfs rw 0 0\n\nbroken\n";
        assert_eq!(
            parse(text),
            [
                Mount { point: "/sys/fs/cgroup/unified".into(), kind: "cgroup2".into() },
                Mount { point: "/a b\\c".into(), kind: "tmpfs".into() },
            ]
        );
    }
}
