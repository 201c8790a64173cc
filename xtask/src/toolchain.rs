//! Finds a Rust toolchain that can build for eBPF, and the linker that turns its bitcode into an object.
//!
//! No target for eBPF is shipped ready-made, so `core` is built from source (`-Zbuild-std`): the toolchain needs `rust-src`. Nothing
//! here goes through `cargo +name`: the toolchain's own cargo and rustc are called by path, so no link in rustup is needed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{step, workspace};

/// Names a rustup toolchain, or the path prefix of one (the directory that holds `bin/cargo`), and settles the search.
pub const OVERRIDE: &str = "ENFORCER_EBPF_TOOLCHAIN";
/// The linker's version: it must know the LLVM of the toolchain and emit the BTF that aya expects.
pub const LINKER_VERSION: &str = "0.13.0";

/// A cargo and rustc that can build `core` for eBPF.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// Where it was found, for people.
    pub origin: String,
    /// Its cargo.
    pub cargo: PathBuf,
    /// Its rustc.
    pub rustc: PathBuf,
    /// Major version of its LLVM: the linker's must not be older.
    pub llvm: u32,
}

/// An installed bpf-linker of the right version.
#[derive(Debug, Clone)]
pub struct Linker {
    /// The executable.
    pub path: PathBuf,
    /// Major version of the LLVM it loads; `None` if it carries its own.
    pub llvm: Option<u32>,
}

/// The toolchains that are here, best first.
///
/// # Errors
/// The override is set but does not lead to a usable toolchain: a wrong override is never passed over.
pub fn candidates() -> Result<Vec<Toolchain>> {
    if let Some(value) = env::var(OVERRIDE).ok().filter(|v| !v.is_empty()) {
        return Ok(vec![from_override(&value)?]);
    }
    let mut found: Vec<Toolchain> = rustup_toolchains().iter().filter_map(|name| from_rustup(name).ok()).collect();
    found.extend(from_prefix("Debian's rustc", Path::new("/usr")));
    Ok(found)
}

/// The first toolchain whose bitcode an installed linker can read, with that linker.
///
/// # Errors
/// There is none; the error says what to do.
pub fn find() -> Result<(Toolchain, Linker)> {
    let linker =
        linker().with_context(|| format!("no bpf-linker {LINKER_VERSION} is installed; run `cargo xtask setup`"))?;
    let candidates = candidates()?;
    let Some(toolchain) = candidates.iter().find(|t| linker.reads(t)) else {
        bail!(
            "no Rust toolchain here has rust-src and an LLVM that {} can read (found: {}); run `cargo xtask setup`",
            linker.path.display(),
            if candidates.is_empty() {
                "none".into()
            } else {
                candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            },
        );
    };
    Ok((toolchain.clone(), linker))
}

/// The installed bpf-linker, if its version is the right one.
pub fn linker() -> Option<Linker> {
    let candidates = [workspace::executable("bpf-linker"), Some(cargo_home_bin().join("bpf-linker"))];
    candidates
        .into_iter()
        .flatten()
        .find(|path| workspace::is_executable(path) && version_fits(path))
        .map(|path| Linker { llvm: linked_llvm(&path), path })
}

/// Where `cargo install` puts executables.
pub fn cargo_home_bin() -> PathBuf {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|h| Path::new(&h).join(".cargo")));
    home.unwrap_or_else(|| PathBuf::from("/root/.cargo")).join("bin")
}

impl Linker {
    /// Whether this linker understands what `toolchain` emits: LLVM reads older bitcode, never newer.
    pub fn reads(&self, toolchain: &Toolchain) -> bool {
        self.llvm.is_none_or(|own| own >= toolchain.llvm)
    }
}

impl Toolchain {
    /// This toolchain's cargo, set up to build eBPF with `linker`, in directory `dir`.
    ///
    /// `-Z` flags on a released compiler need `RUSTC_BOOTSTRAP`; a nightly ignores it.
    pub fn cargo_for_ebpf(&self, linker: &Linker, dir: &Path) -> Result<Command> {
        let mut command = self.cargo(dir);
        let mut path = vec![linker.path.parent().unwrap_or(Path::new("/")).to_path_buf()];
        path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        command
            .env("PATH", env::join_paths(path).context("PATH cannot be extended")?)
            .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\x1f-Clink-arg=--btf")
            .env_remove("CARGO_TARGET_DIR");
        Ok(command)
    }

    /// This toolchain's cargo in directory `dir`, free of every setting meant for the host's.
    pub fn cargo(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.cargo);
        workspace::clean(&mut command);
        for (key, _) in env::vars_os() {
            let host_only = key.to_str().is_some_and(|k| {
                k.starts_with("CARGO_BUILD_") || k.starts_with("CARGO_PROFILE_") || k.starts_with("CARGO_TARGET_")
            });
            if host_only {
                command.env_remove(&key);
            }
        }
        for key in ["RUSTUP_TOOLCHAIN", "RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
            command.env_remove(key);
        }
        command.current_dir(dir).env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

impl std::fmt::Display for Toolchain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (LLVM {})", self.origin, self.llvm)
    }
}

fn from_override(value: &str) -> Result<Toolchain> {
    if value.contains('/') {
        return from_prefix(&format!("{OVERRIDE}={value}"), Path::new(value))
            .with_context(|| format!("{OVERRIDE}={value}: no bin/cargo and bin/rustc with rust-src under that path"));
    }
    from_rustup(value).with_context(|| {
        format!("{OVERRIDE}={value}: not a usable rustup toolchain (`rustup toolchain list` shows those there are)")
    })
}

fn from_rustup(name: &str) -> Result<Toolchain> {
    let cargo = step::output(Command::new("rustup").args(["which", "--toolchain", name, "cargo"]))
        .context("rustup does not know it")?;
    let prefix =
        Path::new(&cargo).parent().and_then(Path::parent).context("rustup's answer has no parent directory")?;
    from_prefix(&format!("rustup's {name}"), prefix)
        .context("it has no rust-src (`rustup component add rust-src --toolchain NAME`)")
}

fn from_prefix(origin: &str, prefix: &Path) -> Option<Toolchain> {
    let (cargo, rustc) = (prefix.join("bin/cargo"), prefix.join("bin/rustc"));
    let has_source = prefix.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file();
    if !(has_source && workspace::is_executable(&cargo) && workspace::is_executable(&rustc)) {
        return None;
    }
    let mut command = Command::new(&rustc);
    workspace::clean(&mut command);
    let llvm = llvm_major(&step::output(command.arg("-vV"))?)?;
    Some(Toolchain { origin: origin.to_owned(), cargo, rustc, llvm })
}

/// Names of the installed toolchains, nightlies first: they are what eBPF in Rust is tried with elsewhere.
fn rustup_toolchains() -> Vec<String> {
    let list = step::output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let mut names: Vec<String> =
        list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    names.retain(|name| rustup_home().join("toolchains").join(name).join("lib/rustlib/src/rust/library/core").is_dir());
    names.sort_by_key(|name| !name.starts_with("nightly"));
    names
}

fn rustup_home() -> PathBuf {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|h| Path::new(&h).join(".rustup")));
    home.unwrap_or_else(|| PathBuf::from("/root/.rustup"))
}

fn llvm_major(rustc_version: &str) -> Option<u32> {
    let line = rustc_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

fn version_fits(linker: &Path) -> bool {
    step::output(Command::new(linker).arg("--version"))
        .is_some_and(|v| v.split_whitespace().any(|word| word == LINKER_VERSION))
}

fn linked_llvm(linker: &Path) -> Option<u32> {
    let libraries = step::output(Command::new("ldd").arg(linker))?;
    let (_, rest) = libraries.split_once("libLLVM")?;
    let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(llvm: u32) -> Toolchain {
        Toolchain { origin: "test".into(), cargo: "/bin/false".into(), rustc: "/bin/false".into(), llvm }
    }

    #[test]
    fn reads_the_llvm_version_out_of_rustc() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }

    #[test]
    fn a_linker_reads_older_bitcode_only() {
        let linker = |llvm| Linker { path: "/bin/false".into(), llvm };
        assert!(linker(Some(22)).reads(&toolchain(22)));
        assert!(linker(Some(23)).reads(&toolchain(22)));
        assert!(!linker(Some(22)).reads(&toolchain(23)));
        assert!(linker(None).reads(&toolchain(23)));
    }

    #[test]
    fn a_wrong_override_is_refused_by_name() {
        let error = format!("{:#}", from_override("/nowhere").unwrap_err());
        assert!(error.contains("/nowhere") && error.contains(OVERRIDE), "{error}");
        let error = format!("{:#}", from_override("no-such-toolchain").unwrap_err());
        assert!(error.contains("no-such-toolchain"), "{error}");
    }
}
