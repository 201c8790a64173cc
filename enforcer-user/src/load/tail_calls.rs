//! Programs that others hand on to: those of datagrams, in `DATAGRAM_PROGRAMS`.
//!
//! The map's pin keeps them there when the agent ends. Each entry is replaced at once, so there is no moment without one.

use std::io;
use std::path::Path;

use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier};
use common::datagram;

use super::interface::causes;
use super::{LoadError, find};

/// The map.
pub(super) const MAP: &str = "DATAGRAM_PROGRAMS";

/// Enters the programs that were loaded into the map pinned at `path`.
pub(super) fn enter(programs: &mut aya::Ebpf, path: &Path) -> Result<(), LoadError> {
    let mut map = open(path)?;
    for (index, name) in (0..).zip(datagram::PROGRAMS) {
        let program = find(programs, name)?.fd().map_err(|error| failed(path, "fill", &error))?;
        set(&mut map, path, index, program)?;
    }
    Ok(())
}

/// Enters the former programs again, which `kept` finds the pins of; what the former version did not have stays.
pub(super) fn back(path: &Path, kept: impl Fn(&str) -> std::path::PathBuf) -> Result<(), LoadError> {
    let mut map = open(path)?;
    for (index, name) in (0..).zip(datagram::PROGRAMS) {
        let pin = kept(name);
        if pin.exists() {
            let program = SchedClassifier::from_pin(&pin).map_err(|error| failed(&pin, "open", &error))?;
            let fd = program.fd().map_err(|error| failed(&pin, "open", &error))?;
            set(&mut map, path, index, fd)?;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<ProgramArray<MapData>, LoadError> {
    let map = MapData::from_pin(path).map_err(|error| failed(path, "open", &error))?;
    ProgramArray::try_from(Map::ProgramArray(map)).map_err(|error| failed(path, "open", &error))
}

fn set(map: &mut ProgramArray<MapData>, path: &Path, index: u32, program: &ProgramFd) -> Result<(), LoadError> {
    map.set(index, program, 0).map_err(|error| failed(path, "fill", &error))
}

fn failed(path: &Path, step: &'static str, error: &dyn std::error::Error) -> LoadError {
    LoadError::Path { path: path.to_owned(), step, source: io::Error::other(causes(error)) }
}
