//! Kernel settings that re-injected packets need on the loopback, and their way back.
//!
//! A packet that took the way through the agent comes to `lo` without the route it had been given when it was sent, so the
//! kernel routes it as if it came from outside, where sources of this host are martians. The settings touch `lo` alone,
//! which nothing outside can reach.

use std::fs;
use std::io;
use std::path::Path;

/// `/proc/sys/net` shows the namespace of the process that reads it.
const ROOT: &str = "/proc/sys/net/ipv4/conf";

/// A setting that could not be read, written or remembered.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; re-injected packets on the loopback need it, see that /proc/sys is writable")]
pub struct SysctlError {
    path: String,
    source: io::Error,
}

/// Makes the loopback accept re-injected packets.
///
/// Previous values are kept as names of directories under `state` (a place in the bpffs, which holds no plain files but
/// survives the agent), once: a second call does not overwrite them.
///
/// # Errors
/// If a setting cannot be read, written or remembered.
pub fn prepare_loopback(state: &Path) -> Result<(), SysctlError> {
    set(state, "route_localnet", "1")?;
    set(state, "accept_local", "1")?;
    // The kernel takes the greater of `all` and `lo`: only 2 (loose) can soften a strict `all`.
    if read("all", "rp_filter")? == "1" || read("lo", "rp_filter")? == "1" {
        set(state, "rp_filter", "2")?;
    }
    Ok(())
}

/// Puts back what [`prepare_loopback`] found.
///
/// # Errors
/// If a setting cannot be written; the remaining ones are restored all the same.
pub fn restore_loopback(state: &Path) -> Result<(), SysctlError> {
    let Ok(entries) = fs::read_dir(state) else { return Ok(()) };
    let mut result = Ok(());
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((setting, value)) = name.to_str().and_then(|name| name.split_once('=')) else { continue };
        let path = format!("{ROOT}/lo/{setting}");
        match fs::write(&path, value).and_then(|()| fs::remove_dir(entry.path())) {
            Ok(()) => {}
            Err(source) => result = Err(SysctlError { path, source }),
        }
    }
    result
}

fn set(state: &Path, setting: &str, value: &str) -> Result<(), SysctlError> {
    let before = read("lo", setting)?;
    if before == value {
        return Ok(());
    }
    let path = format!("{ROOT}/lo/{setting}");
    if !remembered(state, setting) {
        let keep = state.join(format!("{setting}={before}"));
        fs::create_dir_all(&keep).map_err(|source| SysctlError { path: keep.display().to_string(), source })?;
    }
    fs::write(&path, value).map_err(|source| SysctlError { path, source })
}

fn remembered(state: &Path, setting: &str) -> bool {
    fs::read_dir(state).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry.file_name().to_str().and_then(|name| name.split_once('=')).is_some_and(|(s, _)| s == setting)
        })
    })
}

fn read(interface: &str, setting: &str) -> Result<String, SysctlError> {
    let path = format!("{ROOT}/{interface}/{setting}");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(SysctlError { path, source }),
    }
}
