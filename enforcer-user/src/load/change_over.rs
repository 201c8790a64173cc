//! From one agent's programs to the next one's, and back.
//!
//! Until the new agent is ready everything of the former one is kept beside its own, under names that end in `_former`; what is
//! not in force yet ends in `_next`. So whoever finds such names, the next agent or `enforcer upgrade`, can put everything
//! back, however the new agent ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::RawTracePoint;
use aya::programs::links::FdLink;

use super::carry::Carry;
use super::interface::{causes, split_pin_name};
use super::pins::Found;
use super::{LoadError, Pins, TRACEPOINTS, find, links, tail_calls};
use crate::sys;

const FORMER: &str = "_former";
const NEXT: &str = "_next";

/// Where a map or program is pinned that is not in force yet.
pub(super) fn next(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{NEXT}"))
}

fn former(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{FORMER}"))
}

/// Lets the programs that were loaded take the places of those in force, with the maps they were loaded with. No packet
/// meets neither.
pub(super) fn enter(
    pins: &Pins,
    programs: &mut aya::Ebpf,
    names: &[&'static str],
    maps: &BTreeMap<String, Found>,
) -> Result<(), LoadError> {
    let mut carries = Vec::new();
    for (name, _) in maps.iter().filter(|(_, found)| matches!(found, Found::Carried(_))) {
        let from = pins.maps.join(name);
        let mut carry = Carry::open(name, &from, &next(&pins.maps, name)).map_err(failed(&from, "carry over"))?;
        carry.copy().map_err(failed(&from, "carry over"))?;
        carries.push((from, carry));
    }
    for name in names {
        let fresh = next(&pins.programs, name);
        let fd = find(programs, name)?
            .fd()
            .map_err(|error| failed(&fresh, "pin")(io::Error::other(error)))?
            .try_clone()
            .map_err(failed(&fresh, "pin"))?;
        remove(&fresh)?;
        sys::obj_pin(fd.as_fd(), &fresh).map_err(failed(&fresh, "pin"))?;
    }
    for name in names {
        let path = pins.programs.join(name);
        if path.exists() {
            rename(&path, &former(&pins.programs, name))?;
        }
        rename(&next(&pins.programs, name), &path)?;
    }
    // Before any program that hands on to them.
    let kept = matches!(maps.get(tail_calls::MAP), Some(Found::Kept(_)));
    let place = if kept { pins.maps.join(tail_calls::MAP) } else { next(&pins.maps, tail_calls::MAP) };
    tail_calls::enter(programs, &place)?;
    for (name, link) in links::pinned(&pins.links)? {
        let pin = pins.links.join(&name);
        // A tracepoint's link takes no other program: `attach_tracepoints` puts another in its place.
        if link.kind != sys::LINK_RAW_TRACEPOINT
            && let Some(program) = names.iter().find(|program| **program == program_of(&name))
        {
            let fd = find(programs, program)?.fd().map_err(|error| failed(&pin, "open")(io::Error::other(error)))?;
            update(&pin, fd.as_fd())?;
        }
    }
    for (from, carry) in &mut carries {
        carry.settle().map_err(failed(from, "carry over"))?;
    }
    for (name, found) in maps {
        let path = pins.maps.join(name);
        match found {
            Found::Kept(_) => continue,
            Found::Carried(_) => rename(&path, &former(&pins.maps, name))?,
            Found::Absent => {}
        }
        rename(&next(&pins.maps, name), &path)?;
    }
    Ok(())
}

/// Puts everything of the former agent back that is still there; whether there was anything.
pub(super) fn back(pins: &Pins) -> Result<bool, LoadError> {
    let programs = names_with(&pins.programs, FORMER)?;
    if programs.is_empty() {
        forget_next(pins)?;
        return Ok(false);
    }
    let maps = names_with(&pins.maps, FORMER)?;
    let mut carries = Vec::new();
    for name in &maps {
        let from = pins.maps.join(name);
        let mut carry = Carry::open(name, &from, &former(&pins.maps, name)).map_err(failed(&from, "carry back"))?;
        carry.copy().map_err(failed(&from, "carry back"))?;
        carries.push((from, carry));
    }
    for (name, link) in links::pinned(&pins.links)? {
        let (pin, program) = (pins.links.join(&name), program_of(&name));
        let kept = former(&pins.programs, program);
        // One that the former version did not have.
        if !programs.contains(program) {
            links::remove(&pin)?;
        } else if link.kind == sys::LINK_RAW_TRACEPOINT {
            attach_again(&pin, program, &kept)?;
        } else {
            let fd: OwnedFd = sys::obj_get(&kept).map_err(failed(&kept, "open"))?;
            update(&pin, fd.as_fd())?;
        }
    }
    let place = pins.maps.join(tail_calls::MAP);
    if place.exists() {
        tail_calls::back(&place, |program| former(&pins.programs, program))?;
    }
    for (from, carry) in &mut carries {
        carry.settle().map_err(failed(from, "carry back"))?;
    }
    for name in entries(&pins.programs)?.iter().filter(|name| !name.ends_with(FORMER) && !name.ends_with(NEXT)) {
        if !programs.contains(name) {
            remove(&pins.programs.join(name))?;
        }
    }
    // Maps first: as long as a program's former name is there, all this can be done again.
    for (directory, names) in [(&pins.maps, &maps), (&pins.programs, &programs)] {
        for name in names {
            rename(&former(directory, name), &directory.join(name))?;
        }
    }
    forget_next(pins)?;
    Ok(true)
}

/// Nothing of the former agent is needed any more.
pub(super) fn settle(pins: &Pins) -> Result<(), LoadError> {
    for directory in [&pins.programs, &pins.maps] {
        for name in names_with(directory, FORMER)? {
            remove(&former(directory, &name))?;
        }
    }
    Ok(())
}

/// Removes what was prepared and never came into force.
pub(super) fn forget_next(pins: &Pins) -> Result<(), LoadError> {
    for directory in [&pins.programs, &pins.maps] {
        for name in names_with(directory, NEXT)? {
            remove(&next(directory, &name))?;
        }
    }
    Ok(())
}

/// The program that a link of this name runs.
fn program_of(link: &str) -> &str {
    match split_pin_name(link).map_or(link, |(program, _)| program) {
        "xdp_native" | "xdp_generic" => "xdp_shield",
        program => program,
    }
}

fn update(pin: &Path, program: std::os::fd::BorrowedFd<'_>) -> Result<(), LoadError> {
    let link = sys::obj_get(pin).map_err(failed(pin, "open"))?;
    match sys::link_update(link.as_fd(), program) {
        // Its interface or cgroup is gone.
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => {
            Err(failed(pin, "replace the program of the link")(error))
        }
        _ => Ok(()),
    }
}

fn attach_again(pin: &Path, name: &str, kept: &Path) -> Result<(), LoadError> {
    let Some((name, tracepoint)) = TRACEPOINTS.iter().find(|(program, _)| *program == name) else { return Ok(()) };
    let refused = |error: &dyn std::error::Error| LoadError::Attach {
        program: name,
        place: format!("the tracepoint {tracepoint}"),
        reason: causes(error),
    };
    let mut program = RawTracePoint::from_pin(kept).map_err(|error| refused(&error))?;
    let link = program.attach(tracepoint).and_then(|link| program.take_link(link)).map_err(|error| refused(&error))?;
    links::replace(pin, FdLink::from(link))
}

fn entries(directory: &Path) -> Result<BTreeSet<String>, LoadError> {
    let read = || -> io::Result<BTreeSet<String>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    read().map_err(failed(directory, "read"))
}

/// Names that end so, without their end.
fn names_with(directory: &Path, end: &str) -> Result<BTreeSet<String>, LoadError> {
    Ok(entries(directory)?.iter().filter_map(|name| name.strip_suffix(end).map(str::to_owned)).collect())
}

pub(super) fn remove(path: &Path) -> Result<(), LoadError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "remove")(error)),
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), LoadError> {
    fs::rename(from, to).map_err(failed(from, "rename"))
}

fn failed(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> LoadError + use<> {
    let path = path.to_owned();
    move |source| LoadError::Path { path, step, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_tells_its_program() {
        for (link, program) in [
            ("sock_ops", "sock_ops"),
            ("tc_pu_ingress_if17", "tc_pu_ingress"),
            ("xdp_native_if3", "xdp_shield"),
            ("xdp_generic_if3", "xdp_shield"),
        ] {
            assert_eq!(program_of(link), program);
        }
    }
}
