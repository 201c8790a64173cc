//! Removal of everything the enforcer put into the kernel, whether or not an agent ever ended properly.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::interface::{CHAINS, TAP_INGRESS};
use super::{LoadError, Pins, clsact, links, pins};
use crate::config::Config;
use crate::link_net::sysctl;
use crate::tap::Tap;

/// What to remove.
#[derive(Clone, Debug)]
pub struct UnloadOptions {
    /// The bpffs directory given when loading.
    pub bpffs: PathBuf,
    /// The TAP device.
    pub tap: String,
    /// The directory the enforcer made its PUs' cgroups in; what is empty there is removed.
    pub pu_cgroups: Option<PathBuf>,
}

impl From<&Config> for UnloadOptions {
    /// All that an agent of this configuration makes.
    fn from(config: &Config) -> Self {
        Self {
            bpffs: config.paths.bpffs.clone(),
            tap: config.datapath.tap.clone(),
            pu_cgroups: config.pu_cgroups().ok(),
        }
    }
}

/// What was there to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unloaded {
    /// Links, and with them attached programs.
    pub links: usize,
    /// Pinned programs.
    pub programs: usize,
    /// Pinned maps.
    pub maps: usize,
    /// Whether the TAP existed.
    pub tap: bool,
    /// Cgroups removed.
    pub cgroups: usize,
    /// Cgroups left because processes run in them.
    pub cgroups_in_use: Vec<PathBuf>,
}

/// Removes links, programs, maps, the TAP, settings, our clsact qdiscs, empty PU cgroups and the pin directories.
///
/// Links go first, so that no program runs with half of its maps. Nothing to remove is no error. It acts on the network
/// namespace it is called in.
///
/// # Errors
/// [`LoadError::Busy`] while an agent runs; else what could not be removed. Repeating it removes the rest.
pub fn unload(options: &UnloadOptions) -> Result<Unloaded, LoadError> {
    let pins = Pins::new(&options.bpffs);
    let mut unloaded = Unloaded::default();
    if pins.root.exists() {
        pins::require_bpffs(&pins.root)?;
        let _lock = pins.lock()?;
        unloaded.links = remove_files(&pins.links, |pin| links::remove(pin).map(drop))?;
        let filters: Vec<_> =
            CHAINS.into_iter().chain([&TAP_INGRESS]).map(|chain| (chain.direction, chain.priority)).collect();
        clsact::remove_all(&pins.clsact, &filters)?;
        sysctl::restore_loopback(&pins.settings)?;
        // A device of that name that is not ours must not keep the rest.
        let tap = Tap::remove(&options.tap);
        unloaded.programs = remove_files(&pins.programs, remove_file)?;
        unloaded.maps = remove_files(&pins.maps, remove_file)?;
        for directory in [&pins.links, &pins.programs, &pins.maps, &pins.settings, &pins.clsact, &pins.root] {
            remove_directory(directory)?;
        }
        // Ours only if nothing else is in it; a mount point stays.
        drop(fs::remove_dir(&pins.base));
        unloaded.tap = tap?;
    } else {
        unloaded.tap = Tap::remove(&options.tap)?;
    }
    if let Some(directory) = &options.pu_cgroups {
        remove_cgroups(directory, &mut unloaded);
    }
    Ok(unloaded)
}

fn remove_files(directory: &Path, remove: fn(&Path) -> Result<(), LoadError>) -> Result<usize, LoadError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(LoadError::Path { path: directory.to_owned(), step: "read", source }),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(|source| LoadError::Path { path: directory.to_owned(), step: "read", source })?.path();
        remove(&path)?;
        removed += 1;
    }
    Ok(removed)
}

fn remove_file(path: &Path) -> Result<(), LoadError> {
    fs::remove_file(path).map_err(|source| LoadError::Path { path: path.to_owned(), step: "remove", source })
}

fn remove_directory(directory: &Path) -> Result<(), LoadError> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(LoadError::Path { path: directory.to_owned(), step: "remove", source }),
    }
}

/// Children before parents; a cgroup with processes stays, as only their owner can know where to put them.
fn remove_cgroups(directory: &Path, unloaded: &mut Unloaded) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_cgroups(&entry.path(), unloaded);
    }
    match fs::remove_dir(directory) {
        Ok(()) => unloaded.cgroups += 1,
        Err(_) => unloaded.cgroups_in_use.push(directory.to_owned()),
    }
}
