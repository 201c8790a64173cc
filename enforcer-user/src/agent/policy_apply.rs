//! Policy files handed to the agent: written into the watched directory and put in force, all of them or none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
};

use policy::{Capabilities, Moment, ParsedFiles};
use serde::{Deserialize, Serialize};

use super::{Shared, clock, policy as in_force, policy::Rules, views};
use crate::{
    admin::{AdminError, ErrorKind, PolicyFile, view::AppliedView},
    config::{PolicyText, error_text},
};

/// The directory says the whole of one policy only while nobody applies another. One agent runs in a process.
static WRITING: Mutex<()> = Mutex::new(());

/// Waits until no files are being replaced; none are while the answer is held.
pub(super) fn no_half_written_files() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same without waiting; none if files are being replaced or put in force.
pub(super) fn try_no_half_written_files() -> Option<MutexGuard<'static, ()>> {
    match WRITING.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Puts the files into the watched directory and in force. If any of them, or all together with the other files, cannot be
/// in force, or one cannot be written, files and policy are as before.
///
/// # Errors
/// What is wrong with the files, with place; or what kept them from being written.
pub(super) fn apply(
    shared: &Shared,
    files: Vec<PolicyFile>,
    prune: bool,
    dry_run: bool,
) -> Result<AppliedView, AdminError> {
    let _files = no_half_written_files();
    let directory = watched_directory(&shared.config.policy.paths)?;
    let mut plan = Plan::new(&shared.config.policy.paths, &directory, files, prune)?;
    let old = shared.state().rules.clone();
    let new = plan.check(&old)?;
    let mut view = plan.view(&directory);
    view.rules = new.len() as u64;
    view.dry_run = dry_run;
    if dry_run {
        let known = views::known(shared);
        let generation = shared.state().config.current().generation;
        let now = Moment::from_unix(clock::now());
        let diff = policy::diff_pairs(old.rules(), new.rules(), &known, Capabilities::default(), now);
        view.diff = Some(diff.map_err(invalid)?);
        view.generation = generation;
        return Ok(view);
    }
    plan.write(&directory)?;
    in_force::reload_files(shared, &new);
    let error = shared.state().policy_error.clone();
    if let Some(error) = error {
        // Somebody else changed another file meanwhile, or the kernel refused.
        plan.undo(&directory);
        in_force::reload_files(shared, &old);
        return Err(AdminError::internal(format!("{error}; the files are as they were before")));
    }
    view.generation = shared.state().config.current().generation;
    Ok(view)
}

fn watched_directory(paths: &[PathBuf]) -> Result<PathBuf, AdminError> {
    paths.iter().find(|path| path.is_dir()).cloned().ok_or_else(|| {
        AdminError::new(
            ErrorKind::Invalid,
            "no directory of policy files is watched: name one in `policy.paths` of the agent's configuration and restart it",
        )
    })
}

/// What the directory will hold.
struct Plan {
    /// Everything that will be read, in the order in which it will be.
    texts: Vec<PolicyText>,
    changes: Vec<Change>,
    unchanged: Vec<String>,
}

/// One file before and after.
struct Change {
    name: String,
    path: PathBuf,
    before: Option<String>,
    after: Option<String>,
}

impl Plan {
    fn new(paths: &[PathBuf], directory: &Path, files: Vec<PolicyFile>, prune: bool) -> Result<Self, AdminError> {
        let present = PolicyText::read_all(paths).map_err(AdminError::internal)?;
        let mut wanted = BTreeMap::new();
        for file in files {
            check_name(&file.name)?;
            let path = directory.join(&file.name);
            if wanted.insert(path, file.text).is_some() {
                let message = format!("two files are named {}: expected a name once", file.name);
                return Err(AdminError::new(ErrorKind::Invalid, message));
            }
        }
        let mut plan = Self { texts: Vec::new(), changes: Vec::new(), unchanged: Vec::new() };
        let mut before: BTreeMap<PathBuf, String> = BTreeMap::new();
        for text in present {
            let path = PathBuf::from(&text.file);
            match path.parent() == Some(directory) {
                true => drop(before.insert(path, text.text)),
                false => plan.texts.push(text),
            }
        }
        let names: BTreeSet<PathBuf> = before.keys().chain(wanted.keys()).cloned().collect();
        for path in names {
            let (old, new) = (before.remove(&path), wanted.remove(&path));
            let gone = new.is_none() && prune;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = if gone { None } else { new.or_else(|| old.clone()) };
            if let Some(text) = &text {
                plan.texts.push(PolicyText { file: path.display().to_string(), text: text.clone() });
            }
            match old == text {
                true => plan.unchanged.push(name),
                false => plan.changes.push(Change { name, path, before: old, after: text }),
            }
        }
        Ok(plan)
    }

    /// Whether the whole can be put in force; the texts are not needed afterwards.
    fn check(&mut self, former: &ParsedFiles) -> Result<ParsedFiles, AdminError> {
        let rules = Rules::parse(std::mem::take(&mut self.texts), former).map_err(invalid)?;
        policy::check_rules(rules.parsed.rules(), Capabilities::default()).map_err(invalid)?;
        Ok(rules.parsed)
    }

    fn view(&self, directory: &Path) -> AppliedView {
        let names = |wanted: fn(&Change) -> bool| {
            self.changes.iter().filter(|change| wanted(change)).map(|change| change.name.clone()).collect()
        };
        AppliedView {
            directory: directory.display().to_string(),
            added: names(|change| change.before.is_none()),
            replaced: names(|change| change.before.is_some() && change.after.is_some()),
            removed: names(|change| change.after.is_none()),
            unchanged: self.unchanged.clone(),
            ..AppliedView::default()
        }
    }

    /// Writes everything beside what it replaces, then what is to be done, and only then does it: whoever is killed in
    /// between leaves either all to be done or nothing.
    fn write(&self, directory: &Path) -> Result<(), AdminError> {
        let prepared = self.changes.iter().try_for_each(|change| match &change.after {
            Some(text) => prepare(&change.path, text),
            None => Ok(()),
        });
        let written = prepared.and_then(|()| Todo::of(&self.changes).save(directory)).and_then(|()| finish(directory));
        written.map_err(|error| {
            self.undo(directory);
            AdminError::internal(format!("cannot write policy files: {error}; they are as they were before"))
        })
    }

    fn undo(&self, directory: &Path) {
        let _ = fs::remove_file(directory.join(TODO));
        for change in &self.changes {
            let _ = fs::remove_file(fresh(&change.path));
            if fs::read_to_string(&change.path).ok() == change.before {
                continue;
            }
            let before = change.before.as_deref().map_or(Ok(()), |text| prepare(&change.path, text));
            if let Err(error) = before.and_then(|()| put(&change.path, change.before.is_some())) {
                tracing::error!(%error, "a policy file could not be put back");
            }
        }
    }
}

/// What is left to be done in a directory; hidden, so that it is not read as a policy.
const TODO: &str = ".apply.json";

/// Files to be replaced by what lies beside them, and files to be removed, by name.
#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Todo {
    put: Vec<String>,
    remove: Vec<String>,
}

impl Todo {
    fn of(changes: &[Change]) -> Self {
        let names = |put: bool| {
            let chosen = changes.iter().filter(|change| change.after.is_some() == put);
            chosen.map(|change| change.name.clone()).collect()
        };
        Self { put: names(true), remove: names(false) }
    }

    fn save(&self, directory: &Path) -> Result<(), String> {
        let path = directory.join(TODO);
        let text = serde_json::to_string(self).map_err(|error| error.to_string())?;
        prepare(&path, &text)?;
        put(&path, true)?;
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| format!("{}: {}", directory.display(), error_text(&error)))
    }
}

/// Ends what an agent that was killed had begun, in every directory; nobody may be writing there.
pub(super) fn finish_interrupted(paths: &[PathBuf]) {
    for directory in paths.iter().filter(|path| path.join(TODO).exists()) {
        match finish(directory) {
            Ok(()) => {
                tracing::warn!(directory = %directory.display(), "policy files that were being applied are in place")
            }
            Err(error) => tracing::error!(%error, "policy files that were being applied could not be put in place"),
        }
    }
}

/// Does what is left to be done. Doing it twice changes nothing.
fn finish(directory: &Path) -> Result<(), String> {
    let path = directory.join(TODO);
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = fs::read(&path).map_err(|error| at(&error_text(&error)))?;
    let todo: Todo = serde_json::from_slice(&text).map_err(|error| at(&error))?;
    for name in todo.put.iter().chain(&todo.remove) {
        check_name(name).map_err(|error| at(&error))?;
    }
    for name in &todo.put {
        let path = directory.join(name);
        if fresh(&path).exists() {
            put(&path, true)?;
        }
    }
    for name in &todo.remove {
        put(&directory.join(name), false)?;
    }
    fs::remove_file(&path).map_err(|error| at(&error_text(&error)))
}

/// The name of a file that is not in force yet: hidden files are not read.
fn fresh(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn prepare(path: &Path, text: &str) -> Result<(), String> {
    let fresh = fresh(path);
    let write = || -> io::Result<()> {
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        if let Ok(meta) = fs::metadata(path) {
            file.set_permissions(meta.permissions())?;
        }
        file.sync_all()
    };
    write().map_err(|error| format!("{}: {}", fresh.display(), error_text(&error)))
}

fn put(path: &Path, stays: bool) -> Result<(), String> {
    let done = match stays {
        true => fs::rename(fresh(path), path),
        false => match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        },
    };
    done.map_err(|error| format!("{}: {}", path.display(), error_text(&error)))
}

fn check_name(name: &str) -> Result<(), AdminError> {
    let plain = !name.starts_with('.') && !name.contains('/') && !name.chars().any(char::is_control);
    match plain && [".yaml", ".yml"].iter().any(|end| name.ends_with(end)) {
        true => Ok(()),
        false => Err(AdminError::new(
            ErrorKind::Invalid,
            format!("{name:?} is not a policy file's name: expected one that ends in .yaml or .yml and is not hidden"),
        )),
    }
}

fn invalid(error: impl std::fmt::Display) -> AdminError {
    AdminError::new(ErrorKind::Invalid, format!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> PolicyFile {
        PolicyFile { name: name.into(), text: text.into() }
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().to_owned();
        fs::write(path.join("a.yaml"), "name: a\nrules:\n  - allow any -> app=a\n").expect("written");
        fs::write(path.join("b.yaml"), "name: b\nrules:\n  - allow any -> app=b\n").expect("written");
        (dir, path)
    }

    fn listed(path: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(path)
            .expect("read")
            .map(|entry| entry.expect("entry").path())
            .map(|file| (file.display().to_string(), fs::read_to_string(&file).expect("text")))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn files_are_replaced_added_and_pruned() {
        let (_dir, path) = directory();
        let new = || vec![file("b.yaml", "name: b\nrules: []\n"), file("c.yml", "name: c\nrules: []\n")];
        let mut plan = Plan::new(std::slice::from_ref(&path), &path, new(), false).expect("plan");
        assert_eq!(plan.check(&ParsedFiles::default()).expect("fine").len(), 1);
        let view = plan.view(&path);
        let told = (view.added, view.replaced, view.removed, view.unchanged);
        assert_eq!(told, (vec!["c.yml".to_owned()], vec!["b.yaml".into()], vec![], vec!["a.yaml".into()]));
        plan.write(&path).expect("written");
        let names: Vec<String> =
            listed(&path).into_iter().map(|(name, _)| name.rsplit('/').next().expect("name").into()).collect();
        assert_eq!(names, ["a.yaml", "b.yaml", "c.yml"], "nothing is left beside them");
        let plan = Plan::new(std::slice::from_ref(&path), &path, new(), true).expect("plan");
        assert_eq!(plan.view(&path).removed, ["a.yaml"]);
        plan.write(&path).expect("written");
        assert!(!path.join("a.yaml").exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_all_as_they_were() {
        let (_dir, path) = directory();
        // A directory in the way of the second file.
        fs::create_dir(path.join(".c.yaml.new")).expect("directory");
        fs::write(path.join(".c.yaml.new/x"), "").expect("written");
        let before = fs::read_to_string(path.join("a.yaml")).expect("text");
        let new = vec![file("a.yaml", "name: a\nrules: []\n"), file("c.yaml", "name: c\nrules: []\n")];
        let plan = Plan::new(std::slice::from_ref(&path), &path, new, false).expect("plan");
        let error = plan.write(&path).expect_err("in the way");
        assert!(error.message.ends_with("they are as they were before"), "{error}");
        assert_eq!(fs::read_to_string(path.join("a.yaml")).expect("text"), before);
        assert!(!path.join("c.yaml").exists() && !path.join(".a.yaml.new").exists());
    }

    #[test]
    fn what_a_killed_agent_had_begun_is_ended() {
        let (_dir, path) = directory();
        let new = || vec![file("a.yaml", "name: a\nrules: []\n"), file("c.yaml", "name: c\nrules: []\n")];
        let plan = Plan::new(std::slice::from_ref(&path), &path, new(), true).expect("plan");
        for change in plan.changes.iter().filter(|change| change.after.is_some()) {
            prepare(&change.path, change.after.as_deref().expect("text")).expect("prepared");
        }
        // Killed before it was said what to do: nothing is done.
        finish_interrupted(std::slice::from_ref(&path));
        assert!(fs::read_to_string(path.join("a.yaml")).expect("text").contains("app=a"));
        // Killed after the first of three steps: the others follow.
        Todo::of(&plan.changes).save(&path).expect("saved");
        put(&path.join("a.yaml"), true).expect("put");
        finish_interrupted(std::slice::from_ref(&path));
        let names: Vec<String> =
            listed(&path).into_iter().map(|(name, _)| name.rsplit('/').next().expect("name").into()).collect();
        assert_eq!(names, ["a.yaml", "c.yaml"]);
        // What is to be done names no file elsewhere.
        fs::write(path.join(TODO), r#"{"put":[],"remove":["../x.yaml"]}"#).expect("written");
        assert!(finish(&path).expect_err("refused").contains("is not a policy file's name"));
    }

    #[test]
    fn the_whole_is_checked_before_anything_is_written() {
        let (_dir, path) = directory();
        let check = |text: &str| {
            let files = vec![file("c.yaml", text)];
            let mut plan = Plan::new(std::slice::from_ref(&path), &path, files, false).expect("plan");
            plan.check(&ParsedFiles::default()).map(|_| ()).expect_err("refused").message
        };
        assert_eq!(
            check("name: c\nrules:\n  - allow any\n"),
            format!(
                "{}/c.yaml:3:14: found the end of the text: expected another clause, `|`, or `->` and the object",
                path.display()
            )
        );
        assert!(check("name: c\nrules:\n  - allow any -> any encrypt\n").contains("encryption is not available"));
        for name in ["c", ".c.yaml", "../c.yaml", "a/c.yaml", "c.yaml\n.yaml"] {
            assert!(Plan::new(std::slice::from_ref(&path), &path, vec![file(name, "")], false).is_err(), "{name}");
        }
        let twice = vec![file("c.yaml", ""), file("c.yaml", "")];
        assert!(Plan::new(std::slice::from_ref(&path), &path, twice, false).is_err());
    }
}
