//! A real containerd on a host of the lab: everything of its own, nothing of the machine's.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup::cgroup2_mount;
use crate::docker::lay_out;
use crate::enforcer::text;
use crate::host::Host;
use crate::process::Proc;
use crate::traffic::lab_tool;

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The image of pods: busybox and `lab-tool`, nothing else.
pub const POD_IMAGE: &str = "docker.io/library/lab:1";

/// A running containerd, in its host's network namespace and cgroup and in a mount namespace of its own: what it mounts
/// goes when it and its containers do.
#[derive(Debug)]
pub struct Containerd {
    host: Host,
    directory: PathBuf,
    process: Proc,
}

impl Containerd {
    /// Starts one whose data lie below `host`'s directory; `more` is TOML for its configuration.
    pub fn start(host: &Host, more: &str) -> Result<Self> {
        let directory = host.directory().join("containerd");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n{more}\n[grpc]\naddress = {:?}\n",
            directory.join("root"),
            directory.join("state"),
            directory.join("containerd.sock"),
        );
        fs::write(directory.join("config.toml"), config)?;
        let process = launch(host, &directory)?;
        let containerd = Self { host: host.clone(), directory, process };
        answers(&containerd.socket(), &containerd.process)?;
        Ok(containerd)
    }

    /// Starts one with the CRI plugin, a network for pods, and [`POD_IMAGE`]; `more` is TOML for its configuration, top level.
    pub fn start_for_pods(host: &Host, subnet: &str, more: &str) -> Result<Self> {
        present("ctr", "containerd")?;
        let plugins = Path::new("/usr/lib/cni/bridge");
        ensure!(plugins.exists(), "there is no {}; `cargo xtask setup` installs it", plugins.display());
        let directory = host.directory().join("containerd");
        fs::create_dir_all(&directory)?;
        let containerd = Self::start(host, &format!("{more}\n{}", cri_plugin(&directory, subnet)?))?;
        let (root, file) = (directory.join("image"), directory.join("image.tar"));
        lay_out(&root, &["/bin/busybox", &text(lab_tool()?)], &[])?;
        archive(&root, POD_IMAGE, &file)?;
        let (socket, file) = (text(containerd.socket()), text(file));
        let mounts = format!("--mount=/proc/{}/ns/mnt", containerd.pid());
        let import = ["nsenter", &mounts, "ctr", "-a", &socket, "-n", "k8s.io", "images", "import", &file];
        host.exec_within(&import, START_LIMIT)?.ok()?;
        Ok(containerd)
    }

    /// Ends it and starts it again; containers go on meanwhile.
    pub fn restart(&mut self) -> Result<()> {
        // Its mount namespace has to stay, for that is where the containers' root file systems are.
        let keeper = self.keep_mounts()?;
        self.process.signal(nix::sys::signal::Signal::SIGTERM)?;
        ensure!(self.process.wait(START_LIMIT)?.is_some(), "containerd does not end");
        let config = text(self.directory.join("config.toml"));
        let mounts = format!("--mount=/proc/{}/ns/mnt", keeper.pid());
        self.process = self.host.spawn(&["nsenter", &mounts, "containerd", "-c", &config])?;
        answers(&self.socket(), &self.process)
    }

    /// What it logged since it was last started.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    /// The process in whose mount namespace its containers' files are.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn keep_mounts(&self) -> Result<Proc> {
        let mounts = format!("--mount=/proc/{}/ns/mnt", self.pid());
        let keeper = self.host.spawn(&["nsenter", &mounts, "sleep", "600"])?;
        let own = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt"));
        let deadline = Instant::now() + START_LIMIT;
        while own(keeper.pid())? != own(self.pid())? {
            ensure!(Instant::now() < deadline, "nsenter does not enter");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(keeper)
    }
}

/// The configuration of the CRI plugin: pods on a bridge `cni0` of the host, their sandboxes' image the lab's own.
fn cri_plugin(directory: &Path, subnet: &str) -> Result<String> {
    let network = directory.join("cni");
    fs::create_dir_all(&network)?;
    let conf = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "dataDir": directory.join("ipam"),
                "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    fs::write(network.join("10-lab.conflist"), conf.to_string())?;
    Ok(format!(
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {POD_IMAGE:?}\nnetns_mounts_under_state_dir = true\nrestrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = {network:?}\n"
    ))
}

/// Writes an image as `docker save` does (image specification v1.2).
fn archive(root: &Path, name: &str, file: &Path) -> Result<()> {
    let parts = file.with_extension("parts");
    fs::create_dir_all(&parts)?;
    let layer = parts.join("layer.tar");
    run(Command::new("tar").arg("-cf").arg(&layer).arg("-C").arg(root).arg("."))?;
    let sum = run(Command::new("sha256sum").arg(&layer))?;
    let digest = sum.split_whitespace().next().unwrap_or_default();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep", "infinity"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    fs::write(parts.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(parts.join("manifest.json"), manifest.to_string())?;
    run(Command::new("tar").arg("-cf").arg(file).arg("-C").arg(&parts).arg("."))?;
    fs::remove_dir_all(&parts)?;
    Ok(())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A path of cgroups for a runtime's containers on this host, from the root of the hierarchy.
pub fn cgroup_parent(host: &Host, name: &str) -> Result<String> {
    let mount = cgroup2_mount()?;
    let own = host.cgroup().strip_prefix(&mount).context("the host's cgroup is outside of the hierarchy")?;
    Ok(format!("/{}/{name}", own.display()))
}

/// Waits until somebody answers at a socket.
pub(crate) fn answers(socket: &Path, process: &Proc) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while UnixStream::connect(socket).is_err() {
        if Instant::now() > deadline || !Path::new(&format!("/proc/{}/exe", process.pid())).exists() {
            bail!("nobody answers at {}:\n{}", socket.display(), process.stderr());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn launch(host: &Host, directory: &Path) -> Result<Proc> {
    for (program, package) in [("containerd", "containerd"), ("runc", "runc")] {
        present(program, package)?;
    }
    // Shims listen below /run/containerd whatever the configuration says; docker keeps a key below /etc/docker.
    // CNI keeps results below /var/lib/cni.
    let script = "for own in /run/containerd /etc/docker /var/lib/cni; do mkdir -p $own && mount -t tmpfs none $own || exit; done; exec containerd -c \"$0\"";
    let config = text(directory.join("config.toml"));
    host.spawn(&["unshare", "--mount", "--propagation", "private", "sh", "-c", script, &config])
}

/// Whether a program is installed; the error says how to have it.
pub(crate) fn present(program: &str, package: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|place| place.join(program).is_file());
    ensure!(found, "there is no {program}; `cargo xtask setup` installs it (`apt-get install {package}`)");
    Ok(())
}
