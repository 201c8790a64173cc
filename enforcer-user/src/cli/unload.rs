//! `enforcer unload`

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::json;

use super::{Failure, Output, text};
use crate::{
    config::Config,
    load::{self, UnloadOptions},
};

/// Removes all that the agent of this configuration has put into the kernel and into /run. Repeating it is harmless.
pub(super) fn run(file: &Path, out: &mut Output) -> Result<ExitCode, Failure> {
    let config = Config::load(file)?;
    let options = UnloadOptions::from(&config);
    let unloaded = load::unload(&options).map_err(Failure::failed)?;
    remove_runtime_files(&config.paths.socket);
    if out.is_json() {
        out.json(&json!({
            "links": unloaded.links,
            "programs": unloaded.programs,
            "maps": unloaded.maps,
            "tap": unloaded.tap,
            "cgroups": unloaded.cgroups,
            "cgroups_in_use": unloaded.cgroups_in_use,
        }))?;
    } else {
        out.line(format!(
            "removed: {}, {}, {}, {}, {}",
            text::count(unloaded.links, "link"),
            text::count(unloaded.programs, "program"),
            text::count(unloaded.maps, "map"),
            text::count(usize::from(unloaded.tap), "TAP device"),
            text::count(unloaded.cgroups, "cgroup"),
        ))?;
        for cgroup in &unloaded.cgroups_in_use {
            out.line(format!("left: {} still has processes; end them, then repeat", cgroup.display()))?;
        }
    }
    Ok(ExitCode::from(u8::from(!unloaded.cgroups_in_use.is_empty())))
}

/// A dead agent's socket, what lies beside it under the same name, and the directory if it was ours alone.
fn remove_runtime_files(socket: &Path) {
    let mut beside = socket.as_os_str().to_owned();
    beside.push(".rules");
    let _ = fs::remove_file(socket);
    let _ = fs::remove_file(PathBuf::from(beside));
    if let Some(directory) = socket.parent().filter(|directory| directory.ends_with("enforcer")) {
        let _ = fs::remove_dir(directory);
    }
}
