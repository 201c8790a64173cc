//! Which namespaces are in observe mode: everything allowed, everything recorded. Kept in a file, so that neither a
//! restart nor a new boot enforces what nobody has switched on.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use policy::Namespace;
use serde::{Deserialize, Serialize};

/// The namespaces in observe mode, each with all below it.
#[derive(Debug, Default)]
pub struct Observed {
    file: PathBuf,
    namespaces: BTreeSet<Namespace>,
}

/// Why a namespace's mode was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// One around it is in observe mode too.
    #[error(
        "{namespace} is observed as part of {around}; switch that off: `enforcer observe off --namespace {around}`, then observe the parts that shall stay so"
    )]
    Around {
        /// What was to be enforced.
        namespace: Namespace,
        /// What is observed.
        around: Namespace,
    },
    /// It is enforced already.
    #[error("{0} is not in observe mode; `enforcer status` lists what is")]
    Enforced(Namespace),
    /// The state could not be kept.
    #[error("cannot write {}: {source}; nothing was changed", file.display())]
    Write {
        /// Where.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    namespaces: BTreeSet<Namespace>,
}

impl Observed {
    /// What the file says; nothing is observed if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read or understood.
    pub fn load(file: &Path) -> io::Result<Self> {
        let namespaces = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice::<Document>(&bytes)?.namespaces,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { file: file.to_owned(), namespaces })
    }

    /// As [`Self::load`]; a file that cannot be read or understood is told of, and everything is enforced.
    pub fn load_or_enforce(file: &Path) -> Self {
        Self::load(file).unwrap_or_else(|error| {
            tracing::error!(
                file = %file.display(), %error,
                "what is in observe mode cannot be told: everything is enforced; remove the file, or switch observe mode on again"
            );
            Self { file: file.to_owned(), namespaces: BTreeSet::new() }
        })
    }

    /// Whether a namespace is in observe mode.
    pub fn covers(&self, namespace: &Namespace) -> bool {
        self.namespaces.iter().any(|observed| observed.contains(namespace))
    }

    /// The namespaces, without those that lie in another.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter()
    }

    /// Observes a namespace with all below it; whether that is new.
    ///
    /// # Errors
    /// [`ObserveError::Write`]; nothing has changed then.
    pub fn switch_on(&mut self, namespace: Namespace) -> Result<bool, ObserveError> {
        if self.covers(&namespace) {
            return Ok(false);
        }
        let mut next: BTreeSet<Namespace> =
            self.namespaces.iter().filter(|inner| !namespace.contains(inner)).cloned().collect();
        next.insert(namespace);
        self.keep(next).map(|()| true)
    }

    /// Enforces a namespace with all below it, or without one everything; whether anything was observed there.
    ///
    /// # Errors
    /// [`ObserveError`]; nothing has changed then.
    pub fn switch_off(&mut self, namespace: Option<&Namespace>) -> Result<bool, ObserveError> {
        let Some(namespace) = namespace else {
            let any = !self.namespaces.is_empty();
            return if any { self.keep(BTreeSet::new()).map(|()| true) } else { Ok(false) };
        };
        let next: BTreeSet<Namespace> =
            self.namespaces.iter().filter(|inner| !namespace.contains(inner)).cloned().collect();
        if let Some(around) = next.iter().find(|observed| observed.contains(namespace)) {
            return Err(ObserveError::Around { namespace: namespace.clone(), around: around.clone() });
        }
        if next.len() == self.namespaces.len() {
            return Err(ObserveError::Enforced(namespace.clone()));
        }
        self.keep(next).map(|()| true)
    }

    /// Written before it is in force: what a crash leaves behind is what was last in force, or about to be.
    fn keep(&mut self, namespaces: BTreeSet<Namespace>) -> Result<(), ObserveError> {
        let document = Document { namespaces };
        let written = serde_json::to_vec_pretty(&document).map_err(io::Error::from).and_then(|bytes| {
            if let Some(directory) = self.file.parent() {
                fs::create_dir_all(directory)?;
            }
            let fresh = self.file.with_extension("new");
            fs::write(&fresh, bytes)?;
            fs::rename(&fresh, &self.file)
        });
        written.map_err(|source| ObserveError::Write { file: self.file.clone(), source })?;
        self.namespaces = document.namespaces;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(text: &str) -> Namespace {
        text.parse().expect("namespace")
    }

    fn listed(observed: &Observed) -> Vec<&str> {
        observed.namespaces().map(Namespace::as_str).collect()
    }

    #[test]
    fn namespaces_are_switched_with_all_below_them_and_kept() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("deep/observe.json");
        let mut observed = Observed::load(&file).expect("no file");
        assert!(!observed.covers(&ns("/")) && listed(&observed).is_empty());
        assert!(observed.switch_on(ns("/shop/web")).expect("on"));
        assert!(observed.switch_on(ns("/dev")).expect("on"));
        assert!(observed.switch_on(ns("/shop")).expect("on"));
        assert!(!observed.switch_on(ns("/shop/db")).expect("on"), "part of /shop");
        assert_eq!(listed(&observed), ["/dev", "/shop"]);
        let again = Observed::load(&file).expect("kept");
        assert_eq!(listed(&again), ["/dev", "/shop"]);
        assert!(again.covers(&ns("/shop/db")) && !again.covers(&ns("/shopping")) && !again.covers(&ns("/")));
        let error = observed.switch_off(Some(&ns("/shop/web"))).expect_err("part of /shop").to_string();
        assert!(error.contains("as part of /shop; switch that off"), "{error}");
        let error = observed.switch_off(Some(&ns("/ops"))).expect_err("enforced").to_string();
        assert!(error.contains("/ops is not in observe mode"), "{error}");
        assert!(observed.switch_off(Some(&ns("/shop"))).expect("off"));
        assert_eq!(listed(&observed), ["/dev"]);
        assert!(observed.switch_off(None).expect("off"));
        assert!(!observed.switch_off(None).expect("nothing left"));
        assert!(listed(&Observed::load(&file).expect("kept")).is_empty());
    }

    #[test]
    fn the_root_holds_everything_and_swallows_its_parts() {
        let directory = tempfile::tempdir().expect("directory");
        let mut observed = Observed::load(&directory.path().join("o")).expect("no file");
        observed.switch_on(ns("/a/b")).expect("on");
        observed.switch_on(Namespace::root()).expect("on");
        assert_eq!(listed(&observed), ["/"]);
        assert!(observed.switch_off(Some(&Namespace::root())).expect("off"));
        assert!(!observed.covers(&ns("/a/b")));
    }

    #[test]
    fn a_file_that_makes_no_sense_enforces() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("observe.json");
        for text in ["", "[]", r#"{"namespaces":["shop"]}"#, r#"{"namespaces":["/"],"more":1}"#] {
            fs::write(&file, text).expect("written");
            assert!(Observed::load(&file).is_err(), "{text}");
            assert!(!Observed::load_or_enforce(&file).covers(&Namespace::root()), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_not_changed() {
        let directory = tempfile::tempdir().expect("directory");
        fs::write(directory.path().join("file"), "").expect("written");
        let mut observed = Observed::load_or_enforce(&directory.path().join("file/observe.json"));
        assert!(matches!(observed.switch_on(ns("/a")), Err(ObserveError::Write { .. })));
        assert!(!observed.covers(&ns("/a")));
    }
}
