//! Hands the compiled eBPF object to the crate as `OUT_DIR/enforcer.o`, so that `enforcer` is one file.
//!
//! Cargo cannot build the object itself: it needs another toolchain and another target. `cargo xtask build` does both in order.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Path of an object built elsewhere.
const OVERRIDE: &str = "ENFORCER_EBPF_OBJECT";
const DEFAULT: &str = "../enforcer-ebpf/target/bpfel-unknown-none/release/enforcer-ebpf";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let object = object();
    println!("cargo::rerun-if-changed={}", object.display());
    let Some(out) = env::var_os("OUT_DIR") else {
        println!("cargo::error=OUT_DIR is not set: this build script runs under cargo only");
        return ExitCode::FAILURE;
    };
    match fs::read(&object) {
        Ok(bytes) if bytes.starts_with(b"\x7fELF") => write(&Path::new(&out).join("enforcer.o"), &bytes),
        Ok(_) => {
            println!("cargo::error={} is no ELF object; run `cargo xtask build`", object.display());
            ExitCode::FAILURE
        }
        Err(error) => {
            println!(
                "cargo::error=no eBPF object to embed ({}: {error}); run `cargo xtask build`, or name one in {OVERRIDE}",
                object.display()
            );
            ExitCode::FAILURE
        }
    }
}

fn object() -> PathBuf {
    match env::var_os(OVERRIDE).filter(|value| !value.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(DEFAULT),
    }
}

fn write(to: &Path, bytes: &[u8]) -> ExitCode {
    match fs::write(to, bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error=cannot write {}: {error}", to.display());
            ExitCode::FAILURE
        }
    }
}
