//! What can go wrong between an object file and programs that run, and what to do about it.

use std::io;
use std::path::PathBuf;

use aya::programs::ProgramError;

/// Why the kernel side could not be loaded, attached or removed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pin directory is not on a bpffs.
    #[error(
        "{path} is not on a bpffs; mount one there (`mount -t bpf bpf {path}`), or set `paths.bpffs` to a directory on one"
    )]
    NoBpffs {
        /// The configured directory.
        path: PathBuf,
    },
    /// A bpffs could not be mounted.
    #[error(
        "no bpffs at {path}, and mounting one failed: {source}; run as root, or mount it (`mount -t bpf bpf {path}`)"
    )]
    Mount {
        /// Mount point.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A directory or pin could not be made, read or removed.
    #[error("{path}: {step}: {source}; the enforcer needs root there")]
    Path {
        /// File or directory.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another agent, or another command, works on the same pins.
    #[error("{path} is in use by another enforcer; stop it first (`enforcer status` shows it)")]
    Busy {
        /// Pin directory.
        path: PathBuf,
    },
    /// No such cgroup.
    #[error("cgroup {path}: {source}; {hint}")]
    Cgroup {
        /// The configured directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
        /// Where cgroup v2 is.
        hint: String,
    },
    /// The eBPF object is damaged or holds something unexpected.
    #[error("eBPF object: {0}; rebuild with `cargo xtask build`")]
    Object(String),
    /// A pinned map is of another layout than this program's.
    #[error(
        "{path} is pinned with {what} {pinned}, this version has {expected}; run `enforcer unload`, then start again"
    )]
    PinLayout {
        /// The pin.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// As pinned.
        pinned: u32,
        /// As in the object.
        expected: u32,
    },
    /// Maps could not be made.
    #[error(
        "maps in {path}: {source}; the enforcer needs root (CAP_BPF, CAP_NET_ADMIN), and the sizes in `[datapath]` must fit into memory"
    )]
    Maps {
        /// Where they are pinned.
        path: PathBuf,
        /// What aya said.
        source: Box<aya::EbpfError>,
    },
    /// The kernel refused a program.
    #[error("eBPF program {program}: {source}; `enforcer doctor` shows what this kernel lacks")]
    Program {
        /// Name in the object.
        program: &'static str,
        /// What aya said, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("{program} at {place}: {reason}; `enforcer doctor` shows what this kernel lacks")]
    Attach {
        /// Name in the object.
        program: &'static str,
        /// Interface or cgroup.
        place: String,
        /// What was tried and what the kernel said.
        reason: String,
    },
    /// No such interface.
    #[error("no interface {0} in this network namespace; see `ip link` and `datapath.interfaces`")]
    NoInterface(String),
    /// A port was named.
    #[error(
        "`datapath.interfaces` names {port}, a port of {kind} {master}: its packets are judged at {master}; name {master} instead"
    )]
    Port {
        /// The interface named.
        port: String,
        /// What it is enslaved to.
        master: String,
        /// The kernel's name of the master's kind.
        kind: String,
    },
    /// Interfaces could not be listed.
    #[error("interfaces cannot be listed: {0}")]
    Interfaces(io::Error),
    /// The TAP could not be removed.
    #[error(transparent)]
    Tap(#[from] crate::tap::TapError),
    /// A kernel setting could not be written.
    #[error(transparent)]
    Sysctl(#[from] crate::link_net::sysctl::SysctlError),
}
