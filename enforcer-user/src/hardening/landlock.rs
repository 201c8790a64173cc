//! Files and the network, for single threads (landlock).
//!
//! Not for the whole agent: the kernel refuses whoever is confined so to look into any process outside (`/proc/PID/exe`,
//! `/proc/PID/fd`, pidfd_getfd), which is how the agent finds out what a PU is. So the threads that read what strangers
//! send are confined, those that look at processes are not; the unit's `ProtectSystem=` bounds what they can write.

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

/// What a thread keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// No file, no TCP port: it has open already what it works with.
    Nothing,
    /// It may read and connect, but neither write nor execute nor open a TCP port.
    Reading,
}

/// Newest version of what is handled; older kernels enforce what they know.
const FILES: ABI = ABI::V5;

/// Confines the calling thread and all it starts; what is in force.
pub(super) fn restrict(files: Files) -> io::Result<String> {
    let status = match files {
        Files::Nothing => confine(None),
        Files::Reading => confine(Some("/")),
    }
    .map_err(io::Error::other)?;
    let kept = match files {
        Files::Nothing => "no file, no TCP port",
        Files::Reading => "reads files, connects, writes nothing",
    };
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(kept.to_owned()),
        RulesetStatus::PartiallyEnforced => Ok(format!("{kept}, as far as this kernel can")),
        RulesetStatus::NotEnforced => Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel has no landlock")),
    }
}

fn confine(readable: Option<&str>) -> Result<RestrictionStatus, landlock::RulesetError> {
    let best = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let mut handled = best.handle_access(AccessFs::from_all(FILES))?.handle_access(AccessNet::BindTcp)?;
    if readable.is_none() {
        handled = handled.handle_access(AccessNet::ConnectTcp)?;
    }
    let mut made = handled.scope(Scope::from_all(ABI::V6))?.create()?;
    if let Some(path) = readable
        && let Ok(root) = PathFd::new(path)
    {
        made = made.add_rule(PathBeneath::new(root, AccessFs::ReadFile | AccessFs::ReadDir))?;
    }
    made.restrict_self()
}

/// The kernel's version of landlock, 0 if it has none.
pub fn version() -> i32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no pointer and only answers a number.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION) };
    i32::try_from(answer).unwrap_or(0).max(0)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{File, read, read_link, write},
        net::{TcpListener, TcpStream},
        process::Command,
        thread,
    };

    use super::*;

    fn confined<T: Send + 'static>(files: Files, work: impl FnOnce() -> T + Send + 'static) -> T {
        let work = move || {
            restrict(files).expect("this kernel has landlock");
            work()
        };
        thread::spawn(work).join().expect("the thread ends well")
    }

    #[test]
    fn a_thread_with_nothing_opens_nothing_and_others_do_as_before() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (opened, connected, listening) = confined(Files::Nothing, move || {
            (
                File::open("/etc/hosts").is_ok(),
                TcpStream::connect(address).is_ok(),
                TcpListener::bind("127.0.0.1:0").is_ok(),
            )
        });
        assert!(!opened && !connected && !listening, "{opened} {connected} {listening}");
        assert!(File::open("/etc/hosts").is_ok() && TcpStream::connect(address).is_ok());
    }

    #[test]
    fn a_reading_thread_reads_and_connects_and_does_no_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        write(&file, "text").expect("written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = confined(Files::Reading, move || {
            [
                read(&file).is_ok(),
                TcpStream::connect(address).is_ok(),
                write(&file, "other").is_ok(),
                write(file.with_extension("new"), "other").is_ok(),
                TcpListener::bind("127.0.0.1:0").is_ok(),
                Command::new("/bin/true").status().is_ok_and(|status| status.success()),
            ]
        });
        assert_eq!(seen, [true, true, false, false, false, false]);
    }

    /// The reason for which not all threads are confined. If this fails one day, they can be.
    #[test]
    fn a_confined_thread_cannot_look_into_processes() {
        let mut child = Command::new("sleep").arg("5").spawn().expect("a process");
        let link = format!("/proc/{}/exe", child.id());
        assert!(read_link(&link).is_ok());
        assert!(!confined(Files::Reading, move || read_link(&link).is_ok()));
        drop(child.kill());
        drop(child.wait());
    }
}
