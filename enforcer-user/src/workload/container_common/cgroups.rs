//! Cgroups of containers, from the moment the runtime makes them.
//!
//! Runtimes name a container's cgroup after its id, below a parent that is theirs or the caller's to choose. So the whole
//! tree is watched (inotify: runtimes make directories by mkdir(2), of which it tells), except what is inside containers.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::is_container_id;
use crate::config::PU_CGROUPS;

/// Directories watched, at most; what a host has beyond that is looked for when a container has started.
const WATCHES_MAX: usize = 8192;

/// Knows the cgroups of containers below a root. A thread of its own watches; it ends when this is dropped.
#[derive(Debug)]
pub struct CgroupWatch {
    containers: Arc<Mutex<HashMap<String, PathBuf>>>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl CgroupWatch {
    /// Watches everything below `root`, and calls `on_change` from its thread after each change.
    ///
    /// # Errors
    /// If the kernel has no inotify instance left, or the root cannot be watched.
    pub fn start(root: &Path, mut on_change: impl FnMut() + Send + 'static) -> io::Result<Self> {
        let mut tree = Tree::new(root)?;
        let (containers, stop) = (tree.containers.clone(), EventFd::new().map_err(io::Error::from)?);
        let stop_in_thread = stop.as_fd().try_clone_to_owned()?;
        let thread = thread::Builder::new().name("cgroups".into()).spawn(move || {
            if let Err(error) = tree.watch_until(&stop_in_thread, &mut on_change) {
                tracing::error!(%error, "cgroups are no longer watched");
            }
        })?;
        Ok(Self { containers, stop, thread: Some(thread) })
    }

    /// The cgroup of a container.
    pub fn of_container(&self, id: &str) -> Option<PathBuf> {
        lock(&self.containers).get(id).cloned()
    }
}

impl Drop for CgroupWatch {
    fn drop(&mut self) {
        let stopped = self.stop.write(1).is_ok();
        if let (true, Some(thread)) = (stopped, self.thread.take()) {
            // A panic was reported by the panic hook already.
            drop(thread.join());
        }
    }
}

#[derive(Debug)]
struct Tree {
    inotify: Inotify,
    root: PathBuf,
    owner: u32,
    directories: HashMap<WatchDescriptor, PathBuf>,
    containers: Arc<Mutex<HashMap<String, PathBuf>>>,
}

impl Tree {
    fn new(root: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let owner = fs::metadata(root)?.uid();
        let (directories, containers) = (HashMap::new(), Arc::default());
        let mut tree = Self { inotify, root: root.to_owned(), owner, directories, containers };
        tree.add(root)?;
        tree.descend(root);
        Ok(tree)
    }

    fn watch_until(&mut self, stop: &OwnedFd, on_change: &mut impl FnMut()) -> io::Result<()> {
        loop {
            let mut fds =
                [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            match nix::poll::poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
            if fds[1].any().unwrap_or(true) {
                return Ok(());
            }
            self.read()?;
            on_change();
        }
    }

    /// Takes in all that changed.
    fn read(&mut self) -> io::Result<()> {
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.descend(&self.root.clone());
                } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.directories.remove(&event.wd);
                } else if let (Some(directory), Some(name)) = (self.directories.get(&event.wd), event.name) {
                    let path = directory.join(name);
                    if event.mask.contains(AddWatchFlags::IN_CREATE) {
                        self.meet(&path);
                    } else {
                        lock(&self.containers).retain(|_, container| *container != path);
                    }
                }
            }
        }
    }

    fn descend(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.meet(&entry.path());
            }
        }
    }

    /// A directory that is there, or has just come.
    fn meet(&mut self, path: &Path) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == PU_CGROUPS {
            return;
        }
        if let Some(id) = container_of(name) {
            // Whoever a part of the tree was delegated to could make a cgroup of any name, to be taken for the container.
            if fs::metadata(path).is_ok_and(|directory| directory.uid() == self.owner) {
                lock(&self.containers).insert(id.to_owned(), path.to_owned());
            }
            return;
        }
        // Watched first: what is made inside meanwhile is seen once or twice, but not missed.
        match self.add(path) {
            Ok(()) => self.descend(path),
            Err(error) => tracing::debug!(cgroup = %path.display(), %error, "not watched"),
        }
    }

    fn add(&mut self, path: &Path) -> io::Result<()> {
        if self.directories.len() >= WATCHES_MAX {
            return Err(io::Error::other("too many cgroups are watched already"));
        }
        let what = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        let descriptor = self.inotify.add_watch(path, what)?;
        self.directories.insert(descriptor, path.to_owned());
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The container whose cgroup has this name: `ID`, or `RUNTIME-ID.scope` where systemd makes them.
pub fn container_of(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit('-').next()?;
    is_container_id(id).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cgroups() {
        let id = "595e1e531f5918a94cb8feb157f67916e9520b1435013ecb2f2ba32b8834a21a";
        for name in [id.to_owned(), format!("docker-{id}.scope"), format!("cri-containerd-{id}.scope")] {
            assert_eq!(container_of(&name), Some(id), "{name}");
        }
        for name in ["docker", "system.slice", "", ".scope", &id[1..], "kubepods-pod595e.slice"] {
            assert_eq!(container_of(name), None, "{name}");
        }
    }

    #[test]
    fn directories_are_met_before_and_after_the_start() {
        let root = tempfile::tempdir().unwrap();
        let id = |digit: &str| digit.repeat(64);
        let make = |path: &str| fs::create_dir_all(root.path().join(path)).unwrap();
        make(&format!("docker/{}", id("1")));
        let mut tree = Tree::new(root.path()).unwrap();
        let of_container = |tree: &Tree, id: String| lock(&tree.containers).get(&id).cloned();
        assert!(of_container(&tree, id("1")).is_some());
        make("kubepods/burstable");
        tree.read().unwrap();
        make(&format!("kubepods/burstable/pod7/{}", id("2")));
        make(&format!("docker/docker-{}.scope/nested/{}", id("3"), id("4")));
        tree.read().unwrap();
        assert!(of_container(&tree, id("2")).is_some_and(|path| path.ends_with(id("2"))));
        assert!(of_container(&tree, id("3")).is_some());
        assert_eq!(of_container(&tree, id("4")), None, "made inside of a container, by it");
        fs::remove_dir(root.path().join("docker").join(id("1"))).unwrap();
        tree.read().unwrap();
        assert_eq!(of_container(&tree, id("1")), None);
    }
}
