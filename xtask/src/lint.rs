//! Everything that can be judged without running the product: format, lints, documentation, dependencies, the verifier's budget.
//!
//! Every check runs even if an earlier one failed, so that one run tells all there is to mend.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{step, toolchain, verifier, workspace};

/// Version that is installed where none is; any newer one on PATH does as well.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Which checks to run.
#[derive(Args, Default)]
pub struct Options {
    /// Only these; all of them if none is named
    #[arg(value_enum)]
    only: Vec<Check>,
}

/// One check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// rustfmt's defaults, on both sides
    Format,
    /// clippy without warnings, on both sides
    Clippy,
    /// rustdoc without warnings
    Doc,
    /// Crates that promise to have no unsafe code say so
    Unsafe,
    /// Licences, duplicates, sources, the one crypto provider, advisories
    Deny,
    /// Instructions and stack of each eBPF program against docs/verifier-budget.toml
    Verifier,
}

/// Runs the checks and says which failed.
///
/// # Errors
/// At least one check failed.
pub fn run(options: &Options) -> Result<ExitCode> {
    let failed = failures(options);
    if failed.is_empty() {
        step::say("lint: clean");
        return Ok(ExitCode::SUCCESS);
    }
    bail!("lint: {} failed", failed.join(", "))
}

/// Runs the checks; the names of those that failed, their errors already printed.
pub fn failures(options: &Options) -> Vec<String> {
    let mut failed = Vec::new();
    for check in Check::value_variants() {
        if !options.only.is_empty() && !options.only.contains(check) {
            continue;
        }
        if let Err(error) = check.run() {
            step::say(format!("{}: {error:#}", check.name()));
            failed.push(check.name());
        }
    }
    failed
}

impl Check {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn run(self) -> Result<()> {
        match self {
            Self::Format => format(),
            Self::Clippy => clippy(),
            Self::Doc => doc(),
            Self::Unsafe => no_unsafe(),
            Self::Deny => deny(),
            Self::Verifier => verifier::check(),
        }
    }
}

fn format() -> Result<()> {
    step::run("rustfmt", workspace::cargo().args(["fmt", "--all", "--check"]))?;
    if has_ebpf() {
        step::run(
            "rustfmt enforcer-ebpf",
            workspace::cargo().current_dir(workspace::ebpf_crate()).args(["fmt", "--check"]),
        )?;
    }
    Ok(())
}

fn clippy() -> Result<()> {
    let flags = ["--", "-D", "warnings"];
    step::run("clippy", workspace::cargo().args(["clippy", "--locked", "--workspace", "--all-targets"]).args(flags))?;
    if has_ebpf() {
        // For the host: clippy must come from the toolchain that compiles, and the one for eBPF often has none.
        let mut cargo = workspace::cargo();
        cargo
            .current_dir(workspace::ebpf_crate())
            .args(["clippy", "--locked", "--target-dir"])
            .arg(workspace::ebpf_crate().join("target/lint"));
        step::run("clippy enforcer-ebpf", cargo.args(flags))?;
    }
    Ok(())
}

fn doc() -> Result<()> {
    let mut cargo = workspace::cargo();
    // Our readers are the project's own: private items have pages, and links to them are welcome.
    step::run(
        "rustdoc",
        cargo.env("RUSTDOCFLAGS", "-Dwarnings -Arustdoc::private_intra_doc_links").args([
            "doc",
            "--locked",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ]),
    )
}

fn no_unsafe() -> Result<()> {
    const FREE_OF_UNSAFE: [&str; 2] = ["policy/src/lib.rs", "xtask/src/main.rs"];
    for file in FREE_OF_UNSAFE {
        let text = fs::read_to_string(workspace::root().join(file)).with_context(|| format!("cannot read {file}"))?;
        if !text.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]") {
            bail!("{file} must say #![forbid(unsafe_code)]");
        }
    }
    Ok(())
}

fn deny() -> Result<()> {
    let program = cargo_deny()?;
    let mut manifests = vec![workspace::root().join("Cargo.toml")];
    if has_ebpf() {
        manifests.push(workspace::ebpf_crate().join("Cargo.toml"));
    }
    for manifest in &manifests {
        let name = manifest.strip_prefix(workspace::root()).unwrap_or(manifest).display();
        let mut command = deny_command(&program, manifest);
        // A skip that only one of the two lock files needs is no mistake.
        command.args(["check", "--allow", "unmatched-skip", "licenses", "bans", "sources"]);
        step::run(&format!("cargo-deny {name}"), &mut command)?;
        advisories(&program, manifest)?;
    }
    Ok(())
}

/// Checks for known vulnerabilities. Without a network there is no database: that is said, and is no failure.
fn advisories(program: &Path, manifest: &Path) -> Result<()> {
    let (status, log) =
        step::run_logged("cargo-deny advisories", deny_command(program, manifest).args(["check", "advisories"]))?;
    if status.success() {
        return Ok(());
    }
    let output = step::tail(&log);
    if output.contains("failed to fetch advisory database") {
        step::say("advisories NOT CHECKED: no network to fetch the RustSec database; everything else was");
        return Ok(());
    }
    bail!("advisories:\n{output}")
}

fn deny_command(program: &Path, manifest: &Path) -> Command {
    let mut command = Command::new(program);
    workspace::clean(&mut command);
    command.current_dir(workspace::root()).arg("--manifest-path").arg(manifest);
    command.arg("--locked").arg("--config").arg(workspace::root().join("deny.toml"));
    command
}

/// cargo-deny from PATH or from `target/tools`; built there if there is none.
fn cargo_deny() -> Result<PathBuf> {
    let tools = workspace::target().join("tools");
    let own = tools.join("bin/cargo-deny");
    let cached = toolchain::cargo_home_bin().join("cargo-deny");
    if let Some(found) = workspace::executable("cargo-deny")
        .or_else(|| [cached, own.clone()].into_iter().find(|p| workspace::is_executable(p)))
    {
        return Ok(found);
    }
    let mut cargo = workspace::cargo();
    // Unoptimised: it runs for a second and compiles in a third of the time.
    cargo.current_dir("/").env("CARGO_PROFILE_DEV_DEBUG", "0").env_remove("CARGO_TARGET_DIR");
    cargo.args(["install", "cargo-deny", "--version", CARGO_DENY_VERSION, "--locked", "--debug", "--root"]).arg(&tools);
    step::run(&format!("build cargo-deny {CARGO_DENY_VERSION} (about a minute)"), &mut cargo)?;
    Ok(own)
}

fn has_ebpf() -> bool {
    workspace::ebpf_crate().join("Cargo.toml").is_file()
}
