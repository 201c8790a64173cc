//! Where things lie, and how to start a cargo that is not confused by the cargo that started us.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Triple of the eBPF programs: little-endian, as every supported host is.
pub const EBPF_TARGET: &str = "bpfel-unknown-none";

/// The repository's top directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The eBPF crate: outside the workspace, with its own lock file and target directory.
pub fn ebpf_crate() -> PathBuf {
    root().join("enforcer-ebpf")
}

/// The eBPF object that `enforcer-user` embeds.
pub fn ebpf_object() -> PathBuf {
    ebpf_crate().join("target").join(EBPF_TARGET).join("release/enforcer-ebpf")
}

/// The host workspace's target directory.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The host's cargo, in the repository's top directory, free of what `cargo run` leaves in the environment.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root());
    clean(&mut command);
    command
}

/// Takes out of `command`'s environment what `cargo run` put there for us.
///
/// Build scripts (ring's, for one) watch `CARGO_PKG_*` and would be run again each time the values alternate between ours and
/// none; a toolchain other than ours must not load our libraries.
pub fn clean(command: &mut Command) {
    for (key, _) in env::vars_os() {
        if belongs_to_outer_cargo(&key) {
            command.env_remove(&key);
        }
    }
}

/// The first executable called `name` on PATH, or in the directories that a plain user's PATH lacks.
pub fn executable(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// This program's own file, to be started again. A build may have replaced it since; the replacement will do.
///
/// # Errors
/// `/proc` is not mounted.
pub fn own_program() -> Result<PathBuf> {
    let path = env::current_exe().context("cannot tell where this program is")?;
    Ok(match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(replaced) => PathBuf::from(replaced),
        None => path,
    })
}

/// Whether `file` is a regular file that somebody may execute.
pub fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Whether we run as root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|m| m.uid() == 0)
}

fn belongs_to_outer_cargo(key: &OsStr) -> bool {
    let Some(key) = key.to_str() else {
        return false;
    };
    const EXACT: [&str; 5] = ["CARGO", "CARGO_PRIMARY_PACKAGE", "CARGO_CRATE_NAME", "LD_LIBRARY_PATH", "OUT_DIR"];
    const PREFIX: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
    EXACT.contains(&key) || PREFIX.iter().any(|p| key.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_the_user_set_and_drops_what_cargo_set() {
        for dropped in ["CARGO", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "LD_LIBRARY_PATH"] {
            assert!(belongs_to_outer_cargo(OsStr::new(dropped)), "{dropped}");
        }
        for kept in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "RUSTUP_TOOLCHAIN", "PATH"] {
            assert!(!belongs_to_outer_cargo(OsStr::new(kept)), "{kept}");
        }
    }
}
