//! The kernel side's life: load, pin, attach, take over, remove.
//!
//! Everything is pinned: whatever ends the agent, the programs go on with the maps they have. A restarted agent re-uses the
//! maps and puts its own programs into the pinned links, so there is no moment without one.

mod attach;
mod carry;
mod change_over;
mod clsact;
mod error;
mod interface;
mod layouts;
mod links;
mod offsets;
mod options;
mod pins;
mod scope;
mod tail_calls;
mod unload;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

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
use pins::Found;

/// Every program of the object. The kernel cuts names at fifteen bytes: those of TC programs are not longer.
pub(crate) const PROGRAMS: [&str; 21] = [
    "xdp_shield",
    "tc_ingress",
    "tc_egress",
    "tc_pu_ingress",
    "tc_pu_egress",
    "tc_port_ingress",
    "tc_port_egress",
    "tc_stack_egress",
    "dg_out",
    "dg_pu_out",
    "dg_in",
    "dg_pu_in",
    "dg_bare",
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

/// How an object fits what is pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Programs that load.
    pub programs: usize,
    /// Maps that stay as they are.
    pub kept: usize,
    /// Maps whose entries get another layout.
    pub carried: Vec<String>,
    /// Maps that are new.
    pub made: Vec<String>,
}

/// Puts back what was in force before the last start, if that has not come to its end ([`Kernel::settle`]); whether there
/// was anything to put back.
///
/// # Errors
/// [`LoadError::Busy`] while an agent runs; else what could not be put back. Repeating it puts back the rest.
pub fn roll_back(bpffs: &Path) -> Result<bool, LoadError> {
    let pins = Pins::new(bpffs);
    if !pins.root.exists() {
        return Ok(false);
    }
    // Threads of an agent that is ending may hold it for a moment longer.
    let _lock = pins.lock_within(Duration::from_secs(1))?;
    change_over::back(&pins)
}

/// How long a successor waits for the agent before it to end.
const PATIENCE: Duration = Duration::from_secs(30);

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
    /// [`LoadError`]; what was in force before is again. A first start leaves what was attached by then.
    pub fn open(options: &LoadOptions) -> Result<Self, LoadError> {
        let kernel = Self::begin(options, None)?;
        kernel.settle()?;
        Ok(kernel)
    }

    /// As [`Kernel::open`], but what was in force before can be put back by [`roll_back`] until [`Kernel::settle`].
    ///
    /// With `prepared` another agent may still work: that is called when everything is loaded, and this one goes on once
    /// the other has ended.
    ///
    /// # Errors
    /// As [`Kernel::open`].
    pub fn begin(options: &LoadOptions, prepared: Option<&dyn Fn()>) -> Result<Self, LoadError> {
        let pins = Pins::new(&options.bpffs);
        pins::require_bpffs(&pins.root)?;
        let cgroup = pins::open_cgroup(&options.cgroup)?;
        pins.create()?;
        let (lock, loaded) = match prepared {
            None => {
                let lock = pins.lock()?;
                // Of an agent that died before it was ready.
                change_over::back(&pins)?;
                (lock, load(options, &pins, true)?)
            }
            Some(prepared) => {
                let loaded = load(options, &pins, true)?;
                prepared();
                (pins.lock_within(PATIENCE)?, loaded)
            }
        };
        let mut kernel = Self {
            pins,
            programs: loaded.programs,
            wanted: options.interfaces.clone(),
            xdp: options.xdp,
            clsact: options.clsact || !has_tcx(),
            attached: BTreeMap::new(),
            apart: BTreeMap::new(),
            tap: None,
            kept: loaded.kept,
            _lock: lock,
        };
        match kernel.enter(options, &cgroup, &loaded.maps) {
            Ok(()) => Ok(kernel),
            Err(error) => {
                if let Err(error) = change_over::back(&kernel.pins) {
                    tracing::error!(%error, "what was in force before is not wholly put back");
                }
                Err(error)
            }
        }
    }

    /// Whether this object's programs load on this kernel and with what is pinned there; changes nothing.
    ///
    /// # Errors
    /// What would keep [`Kernel::open`] from it.
    pub fn check(options: &LoadOptions) -> Result<Fit, LoadError> {
        let pins = Pins::new(&options.bpffs);
        pins::require_bpffs(&pins.root)?;
        pins::open_cgroup(&options.cgroup)?;
        let loaded = load(options, &pins, false)?;
        let mut fit = Fit { programs: PROGRAMS.len(), ..Fit::default() };
        for (name, found) in loaded.maps {
            match found {
                Found::Kept(_) => fit.kept += 1,
                Found::Carried(_) => fit.carried.push(name),
                Found::Absent => fit.made.push(name),
            }
        }
        Ok(fit)
    }

    /// It goes well: what was in force before is not needed any more.
    ///
    /// # Errors
    /// If pins cannot be removed.
    pub fn settle(&self) -> Result<(), LoadError> {
        change_over::settle(&self.pins)
    }

    fn enter(&mut self, options: &LoadOptions, cgroup: &File, maps: &BTreeMap<String, Found>) -> Result<(), LoadError> {
        change_over::enter(&self.pins, &mut self.programs, &PROGRAMS, maps)?;
        self.attach_cgroup(cgroup, &options.cgroup)?;
        self.attach_tracepoints()?;
        self.attach_interfaces()?;
        sysctl::prepare_loopback(&self.pins.settings)?;
        Ok(())
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

/// Programs that are in the kernel and nowhere attached.
struct Loaded {
    programs: Ebpf,
    kept: Vec<KeptSize>,
    maps: BTreeMap<String, Found>,
}

/// With `pinning`, maps that are new are pinned, under names that say that they are not in force yet.
fn load(options: &LoadOptions, pins: &Pins, pinning: bool) -> Result<Loaded, LoadError> {
    let object = Object::parse(&options.object).map_err(|error| LoadError::Object(causes(&error)))?;
    if let Some(name) = PROGRAMS.iter().find(|name| !object.programs.contains_key(**name)) {
        return Err(LoadError::Object(format!("there is no program {name} in it")));
    }
    let maps = pins::check(&object, &pins.maps)?;
    let mut loader = EbpfLoader::new();
    for (name, found) in &maps {
        match found {
            Found::Kept(_) => drop(loader.map_pin_path(name, pins.maps.join(name))),
            _ if pinning => {
                let path = change_over::next(&pins.maps, name);
                change_over::remove(&path)?;
                loader.map_pin_path(name, path);
            }
            _ => {}
        }
    }
    let mut kept = Vec::new();
    for (name, wanted) in options.sizes.wanted() {
        match maps.get(name) {
            Some(Found::Kept(pinned) | Found::Carried(pinned)) if *pinned != wanted => {
                tracing::warn!(
                    map = name,
                    pinned,
                    wanted,
                    "the map exists and keeps its size; `enforcer unload` first to change it"
                );
                kept.push(KeptSize { map: name.to_owned(), pinned: *pinned, wanted });
            }
            Some(Found::Absent) => drop(loader.map_max_entries(name, wanted)),
            _ => {}
        }
    }
    // What exists is as large as it is; aya takes the object's word otherwise.
    for (name, found) in &maps {
        if let Found::Kept(entries) | Found::Carried(entries) = found {
            loader.map_max_entries(name, *entries);
        }
    }
    let mut load = || {
        let mut programs = loader
            .load(&options.object)
            .map_err(|source| LoadError::Maps { path: pins.maps.clone(), source: Box::new(source) })?;
        PROGRAMS.iter().try_for_each(|name| load_program(&mut programs, name))?;
        Ok(programs)
    };
    match load() {
        Ok(programs) => Ok(Loaded { programs, kept, maps }),
        Err(error) => {
            if pinning && let Err(error) = change_over::forget_next(pins) {
                tracing::warn!(%error, "maps that were prepared are left");
            }
            Err(error)
        }
    }
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

fn find<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, LoadError> {
    programs.program_mut(name).ok_or_else(|| LoadError::Object(format!("there is no program {name} in it")))
}
