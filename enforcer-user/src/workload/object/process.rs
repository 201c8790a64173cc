//! One process, as `/proc` describes it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    sync::OnceLock,
};

use nix::{
    sys::utsname,
    unistd::{Gid, Group, Uid, User},
};

use super::{hash::HashCache, libraries};
use crate::{identity::Tags, workload::tags::TAG_LEN_MAX};

/// The process that stands for a PU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MainProcess {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot: with the number it is unique.
    pub started: u64,
}

/// The oldest of these processes: whoever started the others.
pub fn main_process(processes: &[u32]) -> Option<MainProcess> {
    let started = |pid: &u32| Some(MainProcess { pid: *pid, started: start_time(*pid)? });
    processes.iter().filter_map(started).min_by_key(|process| (process.started, process.pid))
}

/// When a process started, in clock ticks since boot; `None` if it is gone (field 22 of proc_pid_stat(5)).
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X");
    let started = fields.nth(18)?.parse().ok()?;
    (!dead).then_some(started)
}

/// Bytes of a command line that are looked at.
const COMMAND_MAX: usize = 256;

pub(super) fn tags(pid: u32, hashes: &HashCache) -> io::Result<Tags> {
    let mut tags = Tags::new();
    let mut set = |key: &str, values: BTreeSet<String>| {
        let values: BTreeSet<_> = values.into_iter().map(printable).filter(|value| !value.is_empty()).collect();
        if !values.is_empty() {
            tags.insert(format!("@sys:{key}"), values);
        }
    };
    let one = |value: String| BTreeSet::from([value]);

    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let ids = |field: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.into_iter().flat_map(str::split_whitespace).filter_map(|id| id.parse().ok()).collect()
    };
    // Real, effective, saved, file system.
    if let Some(uid) = ids("Uid:").get(1) {
        set("uid", one(uid.to_string()));
        set("user", User::from_uid(Uid::from_raw(*uid)).ok().flatten().map(|user| user.name).into_iter().collect());
    }
    if let Some(gid) = ids("Gid:").get(1) {
        set("gid", one(gid.to_string()));
        let all = ids("Groups:").into_iter().chain([*gid]);
        let name = |gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name);
        set("group", all.filter_map(name).collect());
    }
    // Kernel threads have no executable.
    if let Ok(path) = fs::read_link(format!("/proc/{pid}/exe")) {
        set("exe", one(path.to_string_lossy().into_owned()));
        let file = File::open(format!("/proc/{pid}/exe"))?;
        set("sha256", one(hashes.sha256(&file)?));
        set("lib", libraries::needed(&file));
    }
    set("cmd", one(shortened(command_line(pid)?)));
    let netns = fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let netns = netns.as_ref().and_then(|link| link.to_str()?.strip_prefix("net:[")?.strip_suffix(']'));
    set("netns", netns.map(str::to_owned).into_iter().collect());
    let host = host();
    set("kernel", one(host.kernel.clone()));
    set("hostname", one(host_name()));
    set("arch", one(host.arch.clone()));
    Ok(tags)
}

/// The command line of a process, its arguments separated by spaces.
///
/// # Errors
/// If the process is gone.
pub(crate) fn command_line(pid: u32) -> io::Result<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    let arguments = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    let line = arguments.iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect::<Vec<_>>();
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Without what no tag may have; nothing if it is longer than one may be.
fn printable(value: String) -> String {
    if value.len() > TAG_LEN_MAX {
        return String::new();
    }
    value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The beginning of a text, cut between characters.
fn shortened(mut text: String) -> String {
    let fits = (0..=COMMAND_MAX).rev().find(|len| text.is_char_boundary((*len).min(text.len())));
    text.truncate(fits.unwrap_or_default());
    text
}

/// Whether a process runs the same program as this one.
pub(super) fn is_own_program(pid: u32) -> bool {
    let file = |of: &str| fs::metadata(format!("/proc/{of}/exe")).map(|meta| (meta.dev(), meta.ino()));
    match (file(&pid.to_string()), file("self")) {
        (Ok(theirs), Ok(own)) => theirs == own && pid != std::process::id(),
        _ => false,
    }
}

struct Host {
    kernel: String,
    arch: String,
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let kernel = utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        Host { kernel: kernel.unwrap_or_default(), arch: std::env::consts::ARCH.into() }
    })
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_chooses_cannot_break_a_tag() {
        assert_eq!(printable("a\nb\0c".into()), "a b c");
        let long = shortened(format!("x{}", "é".repeat(500)));
        assert!(long.len() == COMMAND_MAX - 1 && long.ends_with('é'), "{long}");
        assert_eq!(shortened("short".into()), "short");
        assert_eq!(printable("x".repeat(TAG_LEN_MAX + 1)), "");
    }

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_start() {
        let sleep = std::fs::read_link("/proc/self/exe").unwrap();
        assert!(sleep.exists());
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join("a) Z 1 (b");
        std::fs::copy("/bin/sleep", &odd).unwrap();
        let mut child = std::process::Command::new(&odd).arg("5").spawn().unwrap();
        let started = start_time(child.id());
        child.kill().unwrap();
        assert!(started > start_time(1));
        child.wait().unwrap();
        assert_eq!(start_time(child.id()), None);
    }
}
