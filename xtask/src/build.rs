//! Builds the eBPF object, then the `enforcer` binary that embeds it.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::{step, toolchain, workspace};

/// Which profile the `enforcer` binary gets. The eBPF object is always a release build: the verifier refuses the other.
#[derive(Args)]
pub struct Options {
    /// Optimised (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// With debug assertions, as the tests use it
    #[arg(long)]
    debug: bool,
}

/// Build profile of the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// `target/debug`
    Debug,
    /// `target/release`
    Release,
}

/// Builds both sides and says where they are.
///
/// # Errors
/// No toolchain for eBPF, or the compiler's own.
pub fn run(options: &Options) -> Result<ExitCode> {
    let profile = if options.debug { Profile::Debug } else { Profile::Release };
    step::say(format!("{}: {} KiB", ebpf()?.display(), size_kib(&workspace::ebpf_object())));
    let binary = enforcer(profile)?;
    step::say(format!("{}: {} KiB", binary.display(), size_kib(&binary)));
    Ok(ExitCode::SUCCESS)
}

/// Everything that the demo, the tests and the measurements start: the `enforcer` as it ships, and the laboratory's own programs.
///
/// If `ENFORCER_BIN` names an enforcer, that one is taken as it is.
///
/// # Errors
/// Something does not build, or `ENFORCER_BIN` names nothing.
pub fn for_running() -> Result<PathBuf> {
    let enforcer = match env::var_os("ENFORCER_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            if !path.is_file() {
                bail!("ENFORCER_BIN names {}, which is not there", path.display());
            }
            path
        }
        None => {
            ebpf()?;
            enforcer(Profile::Release)?
        }
    };
    step::run("build the laboratory", workspace::cargo().args(["build", "--locked", "--package", "tests"]))?;
    Ok(enforcer)
}

/// Builds the eBPF object.
///
/// # Errors
/// No toolchain for eBPF, or the compiler's own.
pub fn ebpf() -> Result<PathBuf> {
    let directory = workspace::ebpf_crate();
    if !directory.join("Cargo.toml").is_file() {
        bail!("{} has no Cargo.toml: this checkout has no eBPF programs", directory.display());
    }
    let (toolchain, linker) = toolchain::find()?;
    let mut cargo = toolchain.cargo_for_ebpf(&linker, &directory)?;
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--target",
        workspace::EBPF_TARGET,
        "-Zbuild-std=core",
        "--target-dir",
    ]);
    cargo.arg(directory.join("target"));
    step::say(format!("eBPF toolchain: {toolchain}"));
    step::run("build enforcer-ebpf", &mut cargo)?;
    let object = workspace::ebpf_object();
    if !object.is_file() {
        bail!("the build succeeded but left no {}", object.display());
    }
    Ok(object)
}

/// Builds the `enforcer` binary; the eBPF object must be there.
///
/// # Errors
/// The compiler's own.
pub fn enforcer(profile: Profile) -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--locked", "--package", "enforcer-user", "--bin", "enforcer"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    step::run(&format!("build enforcer ({})", profile.directory()), &mut cargo)?;
    Ok(workspace::target().join(profile.directory()).join("enforcer"))
}

impl Profile {
    /// The directory under `target/` that cargo uses for it.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

fn size_kib(file: &std::path::Path) -> u64 {
    file.metadata().map_or(0, |m| m.len() / 1024)
}
