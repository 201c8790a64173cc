//! Prepares a machine that has only Rust: says what is there, installs what is not, and tells plainly what it cannot do.

mod older_kernel;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Once;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{step, toolchain, workspace};

/// Whether to change the machine.
#[derive(Args, Default)]
pub struct Options {
    /// Only report what is missing; fail if anything is
    #[arg(long)]
    pub check: bool,
    /// Also what only the tests run: container engines and servers
    #[arg(long)]
    pub tests: bool,
}

/// A program that tests, demo or measurements call, and the Debian package that brings it.
struct Tool {
    command: &'static str,
    package: &'static str,
    why: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { command: "ip", package: "iproute2", why: "hosts as network namespaces" },
    Tool { command: "ping", package: "iputils-ping", why: "reachability in tests" },
    Tool { command: "nft", package: "nftables", why: "the firewall we are measured against" },
    Tool { command: "iptables", package: "iptables", why: "packet loss in tests" },
    Tool { command: "bpftool", package: "bpftool", why: "maps and programs as others see them" },
    Tool { command: "tcpdump", package: "tcpdump", why: "packets as they are on the wire" },
    Tool { command: "ps", package: "procps", why: "workloads in tests" },
    Tool { command: "openssl", package: "openssl", why: "a second opinion on our certificates" },
    Tool { command: "promtool", package: "prometheus", why: "a second opinion on our metrics" },
    Tool { command: "hping3", package: "hping3", why: "forged segments" },
    Tool { command: "ethtool", package: "ethtool", why: "complete checksums in the laboratory" },
    Tool { command: "curl", package: "curl", why: "metrics by hand" },
    Tool { command: "setpriv", package: "util-linux", why: "an agent with no more than it needs" },
    Tool { command: "systemd-analyze", package: "systemd", why: "a second opinion on our unit" },
    Tool { command: "cc", package: "gcc", why: "the C parts of ring" },
    Tool { command: "c++", package: "g++", why: "the C++ library that bpf-linker is linked with" },
];

/// Programs that only the tests call.
const TEST_TOOLS: &[Tool] = &[
    Tool { command: "dockerd", package: "docker.io", why: "containers" },
    Tool { command: "containerd", package: "containerd", why: "pods" },
    Tool { command: "runc", package: "runc", why: "containers and pods" },
    Tool { command: "systemctl", package: "systemd", why: "units, by a systemd in a container" },
    Tool { command: "nginx", package: "nginx-light", why: "a real application" },
    Tool { command: "spin", package: "spin", why: "checks the model of the handshake" },
    Tool { command: "nebula", package: "nebula", why: "an overlay we are measured against" },
    Tool { command: "wireguard-go", package: "wireguard-go", why: "an overlay we are measured against" },
    Tool { command: "wg", package: "wireguard-tools", why: "sets up wireguard-go" },
    Tool { command: "redis-server", package: "redis-server", why: "a real application" },
    Tool { command: "faketime", package: "faketime", why: "a clock that jumps, for one process" },
    Tool { command: "nmap", package: "nmap", why: "scans" },
    Tool { command: "atk6-firewall6", package: "thc-ipv6", why: "attempts to get round filters of IPv6" },
    Tool { command: "qemu-system-x86_64", package: "qemu-system-x86", why: "an older kernel, emulated" },
    Tool { command: "depmod", package: "kmod", why: "the older kernel's modules" },
];

/// Applets that the demo's workloads are made of; Debian's plain `busybox` lacks some.
const BUSYBOX_APPLETS: [&str; 3] = ["httpd", "nc", "wget"];
const DEBIAN_PAIR: [&str; 3] = ["rustc-web", "rust-web-src", "cargo-web"];

/// Reports on the machine and, unless `--check`, installs what it lacks.
///
/// # Errors
/// Something is missing and cannot be installed; the error says what to run.
pub fn run(options: &Options) -> Result<ExitCode> {
    let tools = runtime_tools(options);
    let toolchain = match &tools {
        // Only a report goes on: what would be installed next may need what could not be installed now.
        Err(_) if !options.check => Ok(()),
        _ => ebpf_toolchain(options.check),
    };
    let older = match &tools {
        Ok(()) if options.tests => older_kernel::unpack(options.check),
        _ => Ok(()),
    };
    if let (Err(error), false) = (&older, options.check) {
        // One test needs it, and fails without.
        step::say(format!("no older kernel: {error:#}"));
    }
    report_kernel();
    match (tools, toolchain) {
        (Err(tools), Err(toolchain)) => bail!("{tools:#}\n{toolchain:#}"),
        (tools, toolchain) => tools.and(toolchain)?,
    }
    if options.check {
        older?;
    }
    step::say("this machine is ready: `cargo xtask demo` shows the product, `cargo xtask test` judges it");
    Ok(ExitCode::SUCCESS)
}

fn runtime_tools(options: &Options) -> Result<()> {
    let mut missing: BTreeSet<&str> = BTreeSet::new();
    let wanted: Vec<&Tool> = TOOLS.iter().chain(TEST_TOOLS.iter().filter(|_| options.tests)).collect();
    for tool in wanted.iter().filter(|tool| workspace::executable(tool.command).is_none()) {
        step::say(format!("missing: {} ({})", tool.command, tool.why));
        missing.insert(tool.package);
    }
    if !busybox_fits() {
        step::say(format!("missing: busybox with {} (the demo's workloads)", BUSYBOX_APPLETS.join(", ")));
        missing.insert("busybox-static");
    }
    if !Path::new("/usr/lib/python3/dist-packages/scapy").is_dir() {
        step::say("missing: scapy for /usr/bin/python3 (packets no honest stack would send)");
        missing.insert("python3-scapy");
    }
    if options.tests && !Path::new("/usr/lib/cni/bridge").exists() {
        step::say("missing: CNI plugins (the network of pods in tests)");
        missing.insert("containernetworking-plugins");
    }
    if missing.is_empty() {
        step::say(format!("runtime tools: all {} there", wanted.len() + 2 + usize::from(options.tests)));
        return Ok(());
    }
    install(options.check, "install runtime tools", &missing.into_iter().map(str::to_owned).collect::<Vec<_>>())
}

fn ebpf_toolchain(check: bool) -> Result<()> {
    if let Ok((toolchain, linker)) = toolchain::find() {
        step::say(format!("eBPF toolchain: {toolchain}, {}", linker.path.display()));
        return Ok(());
    }
    let toolchain = match toolchain::candidates()?.into_iter().find(linkable) {
        Some(toolchain) => toolchain,
        None => {
            step::say("missing: a Rust toolchain with rust-src whose LLVM can be had here");
            install_debian_pair(check)?
        }
    };
    step::say(format!("eBPF toolchain: {toolchain}"));
    if toolchain::linker().is_some_and(|linker| linker.reads(&toolchain)) {
        return Ok(());
    }
    install_linker(check, &toolchain)
}

/// Whether a linker for this toolchain exists or can be built: its LLVM's libraries are installed, or apt has them.
fn linkable(toolchain: &toolchain::Toolchain) -> bool {
    toolchain::linker().is_some_and(|linker| linker.reads(toolchain))
        || llvm_prefix(toolchain.llvm).is_some()
        || apt_has(&llvm_packages(toolchain.llvm)[0])
}

fn install_debian_pair(check: bool) -> Result<toolchain::Toolchain> {
    let by_hand = format!(
        "what helps: `rustup toolchain install nightly --component rust-src`, or any toolchain with rust-src named in {} (a rustup name, or the path that holds bin/cargo)",
        toolchain::OVERRIDE
    );
    if std::env::var_os(toolchain::OVERRIDE).is_some() {
        bail!("the toolchain in {} needs an LLVM that is neither installed nor in apt", toolchain::OVERRIDE);
    }
    if workspace::executable("apt-get").is_none() {
        bail!("no toolchain that can build eBPF, and no apt-get to install Debian's; {by_hand}");
    }
    install(check, "install Debian's rustc with sources", &DEBIAN_PAIR.map(str::to_owned)).context(by_hand.clone())?;
    toolchain::candidates()?
        .into_iter()
        .find(linkable)
        .with_context(|| format!("Debian's rustc is installed and still not usable; {by_hand}"))
}

fn install_linker(check: bool, toolchain: &toolchain::Toolchain) -> Result<()> {
    let version = toolchain::LINKER_VERSION;
    if check {
        bail!("missing: bpf-linker {version} for LLVM {}; run `cargo xtask setup`", toolchain.llvm);
    }
    if llvm_prefix(toolchain.llvm).is_none() {
        install(check, &format!("install LLVM {}", toolchain.llvm), &llvm_packages(toolchain.llvm))?;
    }
    let prefix = llvm_prefix(toolchain.llvm)
        .with_context(|| format!("LLVM {} is installed but /usr/lib/llvm-{0} has no llvm-config", toolchain.llvm))?;
    let mut cargo = workspace::cargo();
    // Out of the repository, so that its rust-toolchain and .cargo settings do not apply to a foreign crate.
    cargo.current_dir("/").env("LLVM_PREFIX", &prefix).env_remove("CARGO_TARGET_DIR");
    cargo.args([
        "install",
        "bpf-linker",
        "--version",
        version,
        "--locked",
        "--force",
        "--no-default-features",
        "--features",
    ]);
    cargo.arg(format!("llvm-{}", toolchain.llvm));
    step::run(&format!("build bpf-linker {version} (about two minutes)"), &mut cargo)?;
    match toolchain::linker() {
        Some(linker) if linker.reads(toolchain) => Ok(()),
        _ => bail!(
            "bpf-linker was installed into {} but another one comes first on PATH; remove that one",
            toolchain::cargo_home_bin().display()
        ),
    }
}

fn llvm_prefix(major: u32) -> Option<String> {
    let prefix = format!("/usr/lib/llvm-{major}");
    let complete =
        Path::new(&prefix).join("bin/llvm-config").exists() && Path::new(&prefix).join("lib/libPolly.a").exists();
    complete.then_some(prefix)
}

fn llvm_packages(major: u32) -> [String; 2] {
    // libpolly is only recommended by llvm-dev, but llvm-config names it among the libraries to link.
    [format!("llvm-{major}-dev"), format!("libpolly-{major}-dev")]
}

fn apt_has(package: &str) -> bool {
    step::output(Command::new("apt-cache").args(["policy", package]))
        .is_some_and(|text| text.lines().any(|line| line.contains("Candidate:") && !line.contains("(none)")))
}

/// Installs Debian packages, or says how to.
fn install(check: bool, label: &str, packages: &[String]) -> Result<()> {
    let list = packages.join(" ");
    if check {
        bail!("missing: {list}; run `cargo xtask setup`");
    }
    if workspace::executable("apt-get").is_none() {
        bail!(
            "this is no Debian: install what provides {list} by your system's own means, then run `cargo xtask setup` again"
        );
    }
    if !workspace::is_root() {
        bail!(
            "not root, so nothing can be installed; run\n    sudo apt-get update && sudo apt-get install -y --no-install-recommends {list}\nthen `cargo xtask setup` again"
        );
    }
    refresh_lists();
    let _quiet = NoServices::begin();
    step::run(&format!("{label}: {list}"), apt().args(["install", "-y", "--no-install-recommends"]).args(packages))
}

/// Fetches apt's lists, once a run.
fn refresh_lists() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = step::run("refresh apt's lists", apt().arg("update")) {
            // Lists of yesterday may still do; whether they do, the installation tells.
            let error = error.to_string();
            let first = error.lines().next().unwrap_or_default();
            step::say(format!("apt-get update failed, going on with the lists there are: {first}"));
        }
    });
}

/// What Debian asks before it starts a service that a package brings (invoke-rc.d(8)).
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// While it lives, installed packages start no service: tests start their own, and nobody asked for a web server on port 80.
struct NoServices;

impl NoServices {
    /// `None` if the machine has a policy of its own, which then holds, or none can be made.
    fn begin() -> Option<Self> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(SERVICE_POLICY).ok()?;
        let guard = Self;
        file.write_all(b"#!/bin/sh\nexit 101\n").ok()?;
        Some(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(SERVICE_POLICY) {
            step::say(format!(
                "{SERVICE_POLICY} stays and keeps new packages' services from starting; remove it: {error}"
            ));
        }
    }
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn busybox_fits() -> bool {
    let Some(list) = step::output(Command::new("busybox").arg("--list")) else {
        return false;
    };
    BUSYBOX_APPLETS.iter().all(|applet| list.lines().any(|line| line == *applet))
}

/// Tells what the kernel offers. Nothing here is mounted or changed: the enforcer and the tests do that where they need it.
fn report_kernel() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounted = |kind: &str| {
        mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|f| f.get(2) == Some(&kind))
            .and_then(|f| f.get(1).map(|p| (*p).to_owned()))
    };
    let or_not = |place: Option<String>, then: &str| place.unwrap_or_else(|| then.to_owned());
    step::say(format!(
        "kernel {}: BTF {}, cgroup2 {}, bpffs {}, securityfs {}, TUN {}",
        release.trim(),
        if Path::new("/sys/kernel/btf/vmlinux").exists() {
            "there"
        } else {
            "MISSING (the enforcer needs CONFIG_DEBUG_INFO_BTF)"
        },
        or_not(mounted("cgroup2"), "MISSING (mount -t cgroup2 none /sys/fs/cgroup/unified)"),
        or_not(mounted("bpf"), "not mounted (the enforcer mounts it)"),
        or_not(mounted("securityfs"), "not mounted (only LSM checks need it)"),
        if Path::new("/dev/net/tun").exists() { "there" } else { "MISSING (modprobe tun)" },
    ));
    if !workspace::is_root() {
        step::say(
            "not root: `cargo xtask build` and `lint` work; `demo`, `test` and `bench` make network namespaces and load eBPF, so run those as root",
        );
    }
}
