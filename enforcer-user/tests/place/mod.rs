//! A place of its own for each test: network namespace, mount namespace, bpffs and cgroup.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use enforcer_user::agent::OBJECT;
use enforcer_user::load::{Interfaces, LoadOptions, MapSizes, UnloadOptions, XdpMode, pinned_links};
use enforcer_user::sys;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The TAP device in every place.
pub const TAP: &str = "enf-tap";

/// A place of its own for one test.
pub struct Place {
    /// Where the bpffs is mounted.
    pub base: PathBuf,
    /// Configured bpffs directory.
    pub bpffs: PathBuf,
    /// Configured cgroup.
    pub cgroup: PathBuf,
}

impl Place {
    pub fn options(&self) -> LoadOptions {
        LoadOptions {
            object: OBJECT.into(),
            bpffs: self.bpffs.clone(),
            cgroup: self.cgroup.clone(),
            interfaces: Interfaces::All,
            xdp: XdpMode::Auto,
            sizes: MapSizes { flows: Some(200_000), intervals: Some(1000), ..MapSizes::default() },
            clsact: false,
        }
    }

    pub fn unload(&self) -> UnloadOptions {
        UnloadOptions { bpffs: self.bpffs.clone(), tap: TAP.into(), pu_cgroups: Some(self.cgroup.join("pus")) }
    }

    pub fn maps(&self) -> PathBuf {
        self.bpffs.join("v1/maps")
    }

    pub fn links(&self) -> HashMap<String, sys::LinkInfo> {
        pinned_links(&self.bpffs.join("v1/links")).unwrap().into_iter().collect()
    }

    pub fn map_ids(&self) -> HashMap<String, u32> {
        let id = |path: &Path| aya::maps::MapInfo::from_pin(path).unwrap().id();
        let entries = fs::read_dir(self.maps()).unwrap().flatten();
        entries.map(|entry| (entry.file_name().into_string().unwrap(), id(&entry.path()))).collect()
    }
}

/// Runs `test` in fresh namespaces with a bpffs and a cgroup; all of it goes with the thread, except the cgroup.
pub fn isolated(test: impl FnOnce(&Place) + Send + 'static) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("enforcer-test-{}-{number}", std::process::id());
    let base = std::env::temp_dir().join(&name);
    let cgroup = cgroup_root().join(&name);
    let place = Place { bpffs: base.join("bpf/enforcer"), base: base.clone(), cgroup: cgroup.clone() };
    fs::create_dir_all(&cgroup).unwrap();
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("needs root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let bpf = place.base.join("bpf");
        fs::create_dir_all(&bpf).unwrap();
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), none).unwrap();
        ip("link set lo up");
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        ip("link set v1 up");
        test(&place);
    })
    .join();
    remove_tree(&cgroup);
    drop(fs::remove_dir(base.join("bpf")));
    drop(fs::remove_dir(&base));
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn remove_tree(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            remove_tree(&entry.path());
        }
    }
    drop(fs::remove_dir(cgroup));
}

fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("no cgroup v2");
    PathBuf::from(line.split(' ').nth(1).unwrap())
}

pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
