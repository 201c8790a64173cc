//! What the agent gives up, so that whoever takes it over gains little: capabilities, new privileges, system calls, files.
//!
//! `docs/hardening.md` says what is given up when, and why not more. Each layer is in force on its own: a kernel without one
//! of them, or a configuration that leaves one out, keeps the others, and `enforcer status` says so.

pub mod capabilities;
mod landlock;
pub mod syscalls;

use std::sync::{Mutex, PoisonError};

use crate::{admin::view::LayerView, config::Config};

pub use landlock::{Files, version as landlock_version};

/// The layers of a running agent, and what became of them.
#[derive(Debug, Default)]
pub struct Hardening {
    landlock: bool,
    layers: Mutex<Vec<LayerView>>,
}

impl Hardening {
    /// Gives up capabilities and new privileges. To be called while there is one thread: later ones have what it has.
    ///
    /// Nothing that fails here keeps the agent from running: it would be no safer dead.
    pub fn begin(config: &Config) -> Self {
        let wanted = &config.hardening;
        let hardening = Self { landlock: wanted.landlock, layers: Mutex::default() };
        hardening.note("capabilities", wanted.capabilities, || capabilities::reduce(config));
        hardening.note("no_new_privileges", wanted.no_new_privileges, || {
            nix::sys::prctl::set_no_new_privs()
                .map(|()| "nothing it executes gains rights".to_owned())
                .map_err(Into::into)
        });
        hardening
    }

    /// Gives up system calls, in all threads there are and will be. To be called once the agent has what it needs.
    pub fn complete(&self, config: &Config) {
        let wanted = &config.hardening;
        // The kernel takes a filter from the unprivileged only if they can gain nothing any more.
        let allowed = wanted.seccomp && wanted.no_new_privileges;
        self.note("seccomp", allowed, || syscalls::restrict(!config.plugin.is_empty()));
    }

    /// Gives up files and the network in the calling thread, as far as `files` says.
    pub fn confine(&self, thread: &str, files: Files) {
        let name = format!("landlock: {thread}");
        self.note(&name, self.landlock, || landlock::restrict(files));
    }

    /// Every layer, and what the kernel says of it now.
    pub fn view(&self) -> Vec<LayerView> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, name: &str, wanted: bool, apply: impl FnOnce() -> std::io::Result<String>) {
        let (state, detail) = match wanted.then(apply) {
            None => ("off", "switched off in `[hardening]`".to_owned()),
            Some(Ok(detail)) => ("on", detail),
            Some(Err(error)) => ("missing", error.to_string()),
        };
        let view = LayerView { name: name.to_owned(), state: state.to_owned(), detail };
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if state == "missing" && !layers.contains(&view) {
            tracing::warn!(layer = name, error = view.detail, "not in force; the agent goes on without it");
        }
        match layers.iter_mut().find(|layer| layer.name == name) {
            Some(known) => *known = view,
            None => layers.push(view),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_or_fails_is_said() {
        let hardening = Hardening::default();
        hardening.note("a", false, || unreachable!());
        hardening.note("b", true, || Ok("fine".into()));
        hardening.note("c", true, || Err(std::io::Error::other("no such layer")));
        hardening.note("b", true, || Ok("better".into()));
        let states: Vec<_> =
            hardening.view().into_iter().map(|layer| (layer.name, layer.state, layer.detail)).collect();
        let expected =
            [("a", "off", "switched off in `[hardening]`"), ("b", "on", "better"), ("c", "missing", "no such layer")];
        assert_eq!(states, expected.map(|(name, state, detail)| (name.into(), state.into(), detail.into())));
    }
}
