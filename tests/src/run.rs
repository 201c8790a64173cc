//! A run's marks on the machine, and their removal: at the end, on Ctrl-C, and after a crash.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, Once};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::{cgroup, netns};

const PREFIX: &str = "enf-";
const OWNER: &str = "owner";
static COUNT: AtomicU32 = AtomicU32::new(0);
static LIVE: LazyLock<Mutex<Vec<String>>> = LazyLock::new(Mutex::default);

/// Takes a name no other living run has: `<name>-<pid>-<n>`, after sweeping away what dead runs left.
pub(crate) fn begin(name: &str) -> Result<String> {
    ensure!(
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "a lab's name is letters and digits only, not {name:?}"
    );
    ensure!(nix::unistd::geteuid().is_root(), "a lab makes network namespaces and cgroups: run it as root");
    clean_up_when_interrupted();
    let run = format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    lock(&LIVE).push(run.clone());
    sweep_dead_runs();
    let directory = directory(&run);
    // It will hold private keys and a socket that gives identities away.
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    // Whole at once: a lab that starts at the same time would take an owner without name for dead.
    let unnamed = directory.join("owner-to-be");
    fs::write(&unnamed, own_mark()?)?;
    fs::rename(&unnamed, directory.join(OWNER))?;
    Ok(run)
}

/// Removes everything that carries the run's name. Goes on past a failure and reports the first.
pub(crate) fn end(run: &str) -> Result<()> {
    let mut result = cgroup_root(run).and_then(|root| cgroup::remove(&root));
    for name in names_in("/run/netns", run) {
        result = result.and(netns::remove(&name));
    }
    for name in names_in("/sys/fs/bpf", run) {
        let path = Path::new("/sys/fs/bpf").join(name);
        result = result.and(fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display())));
    }
    let directory = directory(run);
    if directory.exists() {
        result = result
            .and(fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display())));
    }
    forget(run);
    result
}

/// Leaves the run standing when this process ends; the next lab on the machine sweeps it.
pub(crate) fn forget(run: &str) {
    lock(&LIVE).retain(|live| live != run);
}

/// The run's directory of configurations, keys, sockets and logs.
pub(crate) fn directory(run: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{run}"))
}

/// The run's cgroup, parent of its hosts'.
pub(crate) fn cgroup_root(run: &str) -> Result<PathBuf> {
    Ok(cgroup::cgroup2_mount()?.join(format!("{PREFIX}{run}")))
}

/// A host's network namespace in the run.
pub(crate) fn netns_name(run: &str, host: &str) -> String {
    format!("{PREFIX}{run}-{host}")
}

/// The directory of a host's pinned maps and links. No dots: bpffs refuses them.
pub(crate) fn bpffs(run: &str, host: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/enforcer-{run}-{host}"))
}

fn names_in(directory: &str, run: &str) -> Vec<String> {
    let ours = [format!("{PREFIX}{run}-"), format!("enforcer-{run}-")];
    entries(directory).filter(|name| ours.iter().any(|start| name.starts_with(start))).collect()
}

fn entries(directory: impl AsRef<Path>) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn sweep_dead_runs() {
    for name in entries(std::env::temp_dir()) {
        let Some(run) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let Ok(owner) = fs::read_to_string(directory(run).join(OWNER)) else {
            continue;
        };
        if !is_alive(&owner) {
            if let Err(error) = end(run) {
                eprintln!("lab: leftovers of the dead run {run} resist: {error:#}");
            }
        }
    }
}

/// Process id and start time: ids alone come back.
fn own_mark() -> Result<String> {
    let pid = std::process::id();
    Ok(format!("{pid} {}", start_time(pid).context("cannot read this process's start time")?))
}

fn is_alive(mark: &str) -> bool {
    let mut fields = mark.split_whitespace();
    let Some(pid) = fields.next().and_then(|pid| pid.parse().ok()) else {
        return false;
    };
    start_time(pid).as_deref() == fields.next()
}

fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in brackets, may hold spaces; the start time is field 22 of proc(5), the 20th behind it.
    stat.rsplit(')').next()?.split_whitespace().nth(19).map(str::to_owned)
}

fn clean_up_when_interrupted() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let Ok((reader, writer)) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC) else {
            return;
        };
        WAKE.store(std::os::fd::IntoRawFd::into_raw_fd(writer), Ordering::Relaxed);
        for interrupt in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: the handler only loads an atomic and calls write(2), both async-signal-safe.
            let _ = unsafe { signal(interrupt, SigHandler::Handler(wake)) };
        }
        std::thread::spawn(move || {
            let mut byte = [0_u8];
            if nix::unistd::read(&reader, &mut byte) == Ok(1) {
                let runs = lock(&LIVE).clone();
                for run in runs {
                    let _ = end(&run);
                }
                std::process::exit(128 + i32::from(byte[0]));
            }
        });
    });
}

static WAKE: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(-1);

extern "C" fn wake(number: libc::c_int) {
    let byte = number.to_le_bytes();
    // SAFETY: one byte is read from a live array; a closed descriptor only makes write fail.
    unsafe { libc::write(WAKE.load(Ordering::Relaxed), byte.as_ptr().cast(), 1) };
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_alive_only_with_its_own_start_time() {
        let mark = own_mark().expect("own mark");
        assert!(is_alive(&mark));
        assert!(!is_alive(&format!("{} 1", std::process::id())));
        assert!(!is_alive("nonsense"));
        assert!(!is_alive(""));
    }
}
