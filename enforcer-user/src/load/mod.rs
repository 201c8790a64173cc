//! The kernel side's life: load, pin, attach, take over, remove.
//!
//! Everything is pinned: whatever ends the agent, the programs go on with the maps they have. A restarted agent re-uses the
//! maps and puts its own programs into the pinned links, so there is no moment without one.

mod attach;
mod clsact;
mod error;
mod interface;
mod links;
mod offsets;
mod options;
mod pins;
mod scope;
mod unload;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSock, Program, ProgramError, RawTracePoint, SockOps};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use aya_obj::Object;
use nix::fcntl::Flock;

use crate::link_net::{self, sysctl};
use crate::sys;
use crate::tap::Tap;

pub use attach::{Apart, Attached, Considered};
pub use error::LoadError;
pub use interface::XdpState;
pub use links::{Placed, pinned as pinned_links};
pub use offsets::{OffsetsError, kernel_offsets};
pub use options::{Interfaces, LoadOptions, MapSizes, XdpMode};
pub use pins::{Pins, require_bpffs};
pub use scope::Role;
pub use unload::{UnloadOptions, Unloaded, unload};

use interface::{TAP_INGRESS, causes};
use links::Place;

/// Every program of the object. The kernel cuts names at fifteen bytes: those of TC programs are not longer.
pub(crate) const PROGRAMS: [&str; 16] = [
    "xdp_shield",
    "tc_ingress",
    "tc_egress",
    "tc_pu_ingress",
    "tc_pu_egress",
    "tc_port_ingress",
    "tc_port_egress",
    "tc_stack_egress",
    "tap_inject",
    "sock_create",
    "sock_ops",
    "sock_option",
    "sock_ingress",
    "process_exec",
    "process_fork",
    "cgroup_mkdir",
];

/// Programs at the kernel's tracepoints.
const TRACEPOINTS: [(&str, &str); 3] =
    [("process_exec", "sched_process_exec"), ("process_fork", "sched_process_fork"), ("cgroup_mkdir", "cgroup_mkdir")];

/// A map whose wanted size is not in force because the map exists already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSize {
    /// Map.
    pub map: String,
    /// Entries (bytes of a ring) in force.
    pub pinned: u32,
    /// Entries wanted.
    pub wanted: u32,
}

/// The loaded and attached kernel side. Dropping it leaves everything in force; [`unload()`] removes it.
#[derive(Debug)]
pub struct Kernel {
    pins: Pins,
    programs: Ebpf,
    wanted: Interfaces,
    xdp: XdpMode,
    clsact: bool,
    attached: BTreeMap<u32, Attached>,
    apart: BTreeMap<u32, Apart>,
    tap: Option<u32>,
    kept: Vec<KeptSize>,
    /// Keeps other agents off while this one lives.
    _lock: Flock<File>,
}

impl Kernel {
    /// Loads the programs, takes over or makes maps and links, and attaches to the cgroup and the interfaces.
    ///
    /// The TAP and the PUs' own interfaces are attached by [`Kernel::attach_tap`] and [`Kernel::attach_pu_interface`].
    ///
    /// # Errors
    /// [`LoadError`]; what was attached by then stays attached.
    pub fn open(options: &LoadOptions) -> Result<Self, LoadError> {
        let pins = Pins::new(&options.bpffs);
        pins::require_bpffs(&pins.root)?;
        let cgroup = pins::open_cgroup(&options.cgroup)?;
        pins.create()?;
        let lock = pins.lock()?;
        let (mut programs, kept) = load(options, &pins)?;
        for name in PROGRAMS {
            load_program(&mut programs, name)?;
            pin_program(&mut programs, name, &pins.programs)?;
        }
        let mut kernel = Self {
            pins,
            programs,
            wanted: options.interfaces.clone(),
            xdp: options.xdp,
            clsact: options.clsact || !has_tcx(),
            attached: BTreeMap::new(),
            apart: BTreeMap::new(),
            tap: None,
            kept,
            _lock: lock,
        };
        kernel.attach_cgroup(&cgroup, &options.cgroup)?;
        kernel.attach_tracepoints()?;
        kernel.attach_interfaces()?;
        sysctl::prepare_loopback(&kernel.pins.settings)?;
        Ok(kernel)
    }

    /// Where everything is pinned; `pins().maps` is what `map_write` and `ring` want.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Maps that keep another size than wanted.
    pub fn kept_sizes(&self) -> &[KeptSize] {
        &self.kept
    }

    /// Attaches the program that takes frames from the TAP, and nothing else there.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn attach_tap(&mut self, tap: &Tap) -> Result<(), LoadError> {
        self.detach_interface(tap.index())?;
        self.tap = Some(tap.index());
        let interface = link_net::by_index(tap.index())
            .map_err(LoadError::Interfaces)?
            .ok_or_else(|| LoadError::NoInterface(tap.name().to_owned()))?;
        self.place_tc(&TAP_INGRESS, &interface).map(drop)
    }

    fn attach_cgroup(&mut self, cgroup: &File, path: &Path) -> Result<(), LoadError> {
        let id =
            cgroup.metadata().map_err(|source| LoadError::Path { path: path.to_owned(), step: "read", source })?.ino();
        let place = Place { kind: sys::LINK_CGROUP, target: id };
        let links = self.pins.links.clone();
        macro_rules! attach {
            ($name:literal, $kind:ty) => {{
                let failed = |error: &dyn std::error::Error| LoadError::Attach {
                    program: $name,
                    place: path.display().to_string(),
                    reason: causes(error),
                };
                let program: &mut $kind = self.program($name)?;
                let fd = program
                    .fd()
                    .and_then(|fd| fd.try_clone().map_err(ProgramError::from))
                    .map_err(|error| failed(&error))?;
                links::place(&links.join($name), place, fd.as_fd(), || {
                    // Links are many to a cgroup anyway; another mode is refused where links exist.
                    program
                        .attach(cgroup, CgroupAttachMode::Single)
                        .and_then(|link| program.take_link(link))
                        .map_err(|error| failed(&error))
                        .and_then(|link| FdLink::try_from(link).map_err(|error| failed(&error)))
                })?;
            }};
        }
        attach!("sock_create", CgroupSock);
        attach!("sock_ops", SockOps);
        self.attach_unkept("sock_option", sys::BPF_CGROUP_SETSOCKOPT, cgroup, place, path)?;
        self.attach_unkept("sock_ingress", sys::BPF_CGROUP_INET_INGRESS, cgroup, place, path)
    }

    /// These links take no other program: the new one is there before the old one goes, and twice does no harm.
    fn attach_tracepoints(&mut self) -> Result<(), LoadError> {
        let links = self.pins.links.clone();
        for (name, tracepoint) in TRACEPOINTS {
            let failed = |error: &dyn std::error::Error| LoadError::Attach {
                program: name,
                place: format!("the tracepoint {tracepoint}"),
                reason: causes(error),
            };
            let program: &mut RawTracePoint = self.program(name)?;
            let link =
                program.attach(tracepoint).and_then(|link| program.take_link(link)).map_err(|error| failed(&error))?;
            links::replace(&links.join(name), link.into())?;
        }
        Ok(())
    }

    /// aya attaches these kinds, but keeps the link to itself.
    fn attach_unkept(
        &mut self,
        name: &'static str,
        attach_type: u32,
        cgroup: &File,
        place: Place,
        path: &Path,
    ) -> Result<(), LoadError> {
        let failed = |error: &dyn std::error::Error| LoadError::Attach {
            program: name,
            place: path.display().to_string(),
            reason: causes(error),
        };
        let pin = self.pins.links.join(name);
        let program = find(&mut self.programs, name)?.fd().map_err(|error| failed(&error))?.as_fd();
        links::place(&pin, place, program, || {
            sys::cgroup_link(program, cgroup.as_fd(), attach_type).map_err(|error| failed(&error))
        })
        .map(drop)
    }

    fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, LoadError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        find(&mut self.programs, name)?
            .try_into()
            .map_err(|source| LoadError::Program { program: name, source: Box::new(source) })
    }
}

/// Since Linux 6.6. A version that cannot be read is taken for a new one, whose refusal would be plain.
fn has_tcx() -> bool {
    KernelVersion::current().map_or(true, |version| version >= KernelVersion::new(6, 6, 0))
}

fn load(options: &LoadOptions, pins: &Pins) -> Result<(Ebpf, Vec<KeptSize>), LoadError> {
    let object = Object::parse(&options.object).map_err(|error| LoadError::Object(causes(&error)))?;
    if let Some(name) = PROGRAMS.iter().find(|name| !object.programs.contains_key(**name)) {
        return Err(LoadError::Object(format!("there is no program {name} in it")));
    }
    let pinned = pins::check(&object, &pins.maps)?;
    let mut loader = EbpfLoader::new();
    for (name, _) in pins::shared_maps(&object) {
        loader.map_pin_path(name, pins.maps.join(name));
    }
    let mut kept = Vec::new();
    for (name, wanted) in options.sizes.wanted() {
        match pinned.get(name) {
            Some(&pinned) if pinned != wanted => {
                tracing::warn!(
                    map = name,
                    pinned,
                    wanted,
                    "the map exists and keeps its size; `enforcer unload` first to change it"
                );
                kept.push(KeptSize { map: name.to_owned(), pinned, wanted });
            }
            Some(_) => {}
            None => drop(loader.map_max_entries(name, wanted)),
        }
    }
    // What exists is as large as it is; aya takes the object's word otherwise.
    for (name, entries) in &pinned {
        loader.map_max_entries(name, *entries);
    }
    let programs = loader
        .load(&options.object)
        .map_err(|source| LoadError::Maps { path: pins.maps.clone(), source: Box::new(source) })?;
    Ok((programs, kept))
}

fn load_program(programs: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    let result = match find(programs, name)? {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        _ => return Err(LoadError::Object(format!("program {name} is of an unexpected type"))),
    };
    result.map_err(|source| LoadError::Program { program: name, source: Box::new(source) })
}

/// Pins a program for `bpftool` and for test runs; links do not need it.
fn pin_program(programs: &mut Ebpf, name: &'static str, directory: &Path) -> Result<(), LoadError> {
    let (path, fresh) = (directory.join(name), directory.join(format!("{name}_new")));
    let failed = |step| {
        let path = path.clone();
        move |source| LoadError::Path { path, step, source }
    };
    let program = find(programs, name)?;
    let fd = program.fd().map_err(|error| failed("pin")(io::Error::other(error)))?;
    // Left by an agent that died between the two steps.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    sys::obj_pin(fd.as_fd(), &fresh).map_err(failed("pin"))?;
    fs::rename(&fresh, &path).map_err(failed("replace"))
}

fn find<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, LoadError> {
    programs.program_mut(name).ok_or_else(|| LoadError::Object(format!("there is no program {name} in it")))
}
