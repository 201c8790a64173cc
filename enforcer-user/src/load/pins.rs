//! The pin directory: where it may be, who may use it, and whether what lies in it fits.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::MapInfo;
use aya_obj::{EbpfSectionKind, Object};
use common::abi::PIN_DIR;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use super::{LoadError, layouts};

/// The usual mount point, the only one the enforcer mounts itself.
const USUAL: &str = "/sys/fs/bpf";
const RING_BUFFER: u32 = 27;

/// Directories of the pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// The configured directory.
    pub base: PathBuf,
    /// Everything of this version of the layouts.
    pub root: PathBuf,
    /// Maps.
    pub maps: PathBuf,
    /// Links.
    pub links: PathBuf,
    /// Programs.
    pub programs: PathBuf,
    /// Former kernel settings, as names of directories.
    pub settings: PathBuf,
    /// Interfaces whose clsact is ours, as names of directories.
    pub clsact: PathBuf,
}

impl Pins {
    /// The directories below `<bpffs>`; touches nothing.
    pub fn new(base: &Path) -> Self {
        let root = base.join(PIN_DIR);
        Self {
            base: base.to_owned(),
            maps: root.join("maps"),
            links: root.join("links"),
            programs: root.join("progs"),
            settings: root.join("settings"),
            clsact: root.join("clsact"),
            root,
        }
    }

    /// Makes the directories, readable by root alone.
    pub(super) fn create(&self) -> Result<(), LoadError> {
        for path in [&self.base, &self.root, &self.maps, &self.links, &self.programs, &self.settings, &self.clsact] {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| LoadError::Path {
                path: path.clone(),
                step: "create",
                source,
            })?;
        }
        Ok(())
    }

    /// As [`Pins::lock`], once whoever works there has ended.
    pub(super) fn lock_within(&self, patience: Duration) -> Result<Flock<File>, LoadError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lock() {
                Err(LoadError::Busy { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                other => return other,
            }
        }
    }

    /// Keeps every other enforcer off these pins until dropped; ends with the process, however that ends.
    pub(super) fn lock(&self) -> Result<Flock<File>, LoadError> {
        let failed = |source| LoadError::Path { path: self.root.clone(), step: "lock", source };
        let directory = File::open(&self.root).map_err(failed)?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => LoadError::Busy { path: self.root.clone() },
            other => failed(other.into()),
        })
    }
}

/// What is pinned in the place of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The same, with so many entries.
    Kept(u32),
    /// One whose values had another layout, with so many entries.
    Carried(u32),
    /// Nothing.
    Absent,
}

/// Sees to it that `path` is on a bpffs, mounting one at the usual place if that is where it should be.
///
/// # Errors
/// [`LoadError::NoBpffs`] elsewhere, [`LoadError::Mount`] if the kernel refuses.
pub fn require_bpffs(path: &Path) -> Result<(), LoadError> {
    if is_bpffs(nearest(path)) {
        return Ok(());
    }
    let usual = Path::new(USUAL);
    if !path.starts_with(usual) || is_bpffs(usual) {
        return Err(LoadError::NoBpffs { path: path.to_owned() });
    }
    mount(
        Some("bpf"),
        usual,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=700"),
    )
    .map_err(|error| LoadError::Mount { path: usual.to_owned(), source: error.into() })?;
    tracing::info!(path = USUAL, "mounted a bpffs");
    Ok(())
}

/// Opens a directory on a cgroup v2 file system.
pub(super) fn open_cgroup(path: &Path) -> Result<File, LoadError> {
    let failed = |source| LoadError::Cgroup { path: path.to_owned(), source, hint: cgroup_hint() };
    let directory = File::open(path).map_err(failed)?;
    let kind = nix::sys::statfs::fstatfs(&directory).map_err(|error| failed(error.into()))?.filesystem_type();
    if kind != CGROUP2_SUPER_MAGIC {
        return Err(failed(io::Error::other("not on a cgroup v2 file system")));
    }
    Ok(directory)
}

/// What is pinned for each map; an error if one does not fit the object, and is of no layout that can be carried over.
///
/// aya re-uses whatever is pinned under the name without looking.
pub(super) fn check(object: &Object, maps: &Path) -> Result<BTreeMap<String, Found>, LoadError> {
    let mut all = BTreeMap::new();
    for (name, map) in shared_maps(object) {
        let path = maps.join(name);
        if !path.exists() {
            all.insert(name.to_owned(), Found::Absent);
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(|error| LoadError::Path {
            path: path.clone(),
            step: "open",
            source: io::Error::other(error),
        })?;
        let kind = info.map_type().map_or(u32::MAX, |kind| kind as u32);
        let mut properties = vec![("type", kind, map.map_type()), ("flags", info.map_flags(), map.map_flags())];
        if map.map_type() != RING_BUFFER {
            properties.push(("a key size of", info.key_size(), map.key_size()));
            properties.push(("a value size of", info.value_size(), map.value_size()));
        }
        let mut differing = properties.into_iter().filter(|(_, pinned, expected)| pinned != expected);
        let found = match (differing.next(), differing.next()) {
            (None, _) => Found::Kept(info.max_entries()),
            (Some(("a value size of", former, present)), None) if layouts::find(name, former, present).is_some() => {
                Found::Carried(info.max_entries())
            }
            (Some((what, pinned, expected)), _) => return Err(LoadError::PinLayout { path, what, pinned, expected }),
        };
        all.insert(name.to_owned(), found);
    }
    Ok(all)
}

/// The object's maps that outlive its programs: not the sections of constants and variables that aya turns into maps, nor
/// the scratch pads of programs, whose layout is no contract.
pub(super) fn shared_maps(object: &Object) -> impl Iterator<Item = (&str, &aya_obj::Map)> {
    let shared = |map: &aya_obj::Map| matches!(map.section_kind(), EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps);
    object
        .maps
        .iter()
        .filter(move |(name, map)| shared(map) && !name.ends_with("_SCRATCH"))
        .map(|(name, map)| (name.as_str(), map))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"))
}

fn cgroup_hint() -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| point.to_owned())
    });
    match mounted.next() {
        Some(point) => format!("cgroup v2 is mounted at {point}: set `paths.cgroup` to a directory there"),
        None => "cgroup v2 is not mounted: `mount -t cgroup2 none /sys/fs/cgroup`".to_owned(),
    }
}
