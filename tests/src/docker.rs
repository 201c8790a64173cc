//! A real dockerd on a host of the lab, with networks, images and containers of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::containerd::{Containerd, answers, cgroup_parent, present};
use crate::enforcer::text;
use crate::host::Host;
use crate::process::{Output, Proc};
use crate::traffic::{Attempt, Attempts, lab_tool};

/// A running dockerd: no bridge but those a test makes, no iptables, its containers below the host's cgroup.
#[derive(Debug)]
pub struct Docker {
    host: Host,
    directory: PathBuf,
    daemon: Option<Proc>,
    containerd: Containerd,
}

/// A container.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// Its name when it was made.
    pub name: String,
    client: Vec<String>,
}

/// The image every [`Docker`] has: busybox and `lab-tool`, nothing else.
pub const IMAGE: &str = "lab:1";

impl Docker {
    /// Starts containerd and dockerd on `host` and makes [`IMAGE`].
    pub fn start(host: &Host) -> Result<Self> {
        present("dockerd", "docker.io")?;
        let containerd = Containerd::start(host, "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]")?;
        let directory = host.directory().join("docker");
        fs::create_dir_all(&directory)?;
        let mut docker = Self { host: host.clone(), directory, daemon: None, containerd };
        docker.start_daemon()?;
        let tool = text(lab_tool()?);
        docker.image(IMAGE, &["/bin/busybox", &tool], &[])?;
        Ok(docker)
    }

    /// Starts dockerd after [`Self::stop_daemon`].
    pub fn start_daemon(&mut self) -> Result<()> {
        let place = |name: &str| text(self.directory.join(name));
        let mounts = format!("--mount=/proc/{}/ns/mnt", self.containerd.pid());
        let (data, exec, pid) = (place("data"), place("exec"), place("pid"));
        let containerd = text(self.containerd.socket());
        let parent = format!("--cgroup-parent={}", cgroup_parent(&self.host, "docker")?);
        let listen = format!("unix://{}", self.socket().display());
        // A pid of a daemon that was killed would keep the next from starting.
        let _ = fs::remove_file(&pid);
        let _ = fs::remove_file(self.socket());
        let line = [
            "nsenter",
            &mounts,
            "dockerd",
            "--data-root",
            &data,
            "--exec-root",
            &exec,
            "--pidfile",
            &pid,
            "--host",
            &listen,
            "--containerd",
            &containerd,
            &parent,
            "--live-restore",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-masq=false",
            "--userland-proxy=false",
        ];
        let daemon = self.host.spawn(&line)?;
        let ready = answers(&self.socket(), &daemon);
        self.daemon = Some(daemon);
        ready?;
        self.docker(&["version"])?.ok().map(drop)
    }

    /// Ends dockerd; containers go on.
    pub fn stop_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no dockerd runs")?;
        daemon.signal(Signal::SIGTERM)?;
        ensure!(daemon.wait(Duration::from_secs(20))?.is_some(), "dockerd does not end");
        Ok(())
    }

    /// Its API.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("docker.sock")
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What dockerd logged since it was last started.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Proc::stderr).unwrap_or_default()
    }

    /// The configuration that makes an enforcer follow this dockerd.
    pub fn enforcer_config(&self) -> String {
        format!("docker.enabled = true\ndocker.socket = {:?}\n", self.socket())
    }

    /// Runs `docker ARGS`.
    pub fn docker(&self, args: &[&str]) -> Result<Output> {
        let client = self.client();
        let line: Vec<&str> = client.iter().map(String::as_str).chain(args.iter().copied()).collect();
        self.host.exec_within(&line, Duration::from_secs(60))
    }

    /// Starts `docker ARGS` and does not wait for its end.
    pub fn start_client(&self, args: &[&str]) -> Result<Proc> {
        let client = self.client();
        let line: Vec<&str> = client.iter().map(String::as_str).chain(args.iter().copied()).collect();
        self.host.spawn(&line)
    }

    /// Makes an image from scratch of programs and all the libraries they need; `extra` are files to copy as they are.
    pub fn image(&self, name: &str, programs: &[&str], extra: &[(&str, &str)]) -> Result<()> {
        let root = self.directory.join(format!("image-{}", name.replace([':', '/'], "-")));
        lay_out(&root, programs, extra)?;
        let client = self.client();
        let mut tar = Command::new("tar")
            .args(["-c", "-C"])
            .arg(&root)
            .arg(".")
            .stdout(Stdio::piped())
            .spawn()
            .context("images need tar")?;
        let archive = tar.stdout.take().context("tar without output")?;
        let import = Command::new(&client[0]).args(&client[1..]).args(["import", "-", name]).stdin(archive).output()?;
        ensure!(tar.wait()?.success(), "tar failed");
        ensure!(import.status.success(), "docker import: {}", String::from_utf8_lossy(&import.stderr));
        fs::remove_dir_all(&root)?;
        Ok(())
    }

    /// Makes a bridge network; `other` hosts get a route to it.
    pub fn network(&self, name: &str, subnet: &str, others: &[&Host]) -> Result<()> {
        let bridge = format!("com.docker.network.bridge.name=br-{name}");
        let line = ["network", "create", "--driver", "bridge", "--subnet", subnet, "--opt", &bridge, name];
        self.docker(&line)?.ok()?;
        for other in others {
            other.exec(&["ip", "route", "replace", subnet, "via", &self.host.v4().to_string()])?.ok()?;
        }
        Ok(())
    }

    /// Starts a container in the background: `docker run -d ARGS`.
    pub fn run(&self, name: &str, args: &[&str]) -> Result<Container> {
        let line = [&["run", "--detach", "--name", name], args].concat();
        let id = self.docker(&line)?.ok()?.trim().to_owned();
        Ok(Container { id, name: name.to_owned(), client: self.client() })
    }

    /// Starts a container in the background that serves `lab-tool serve ARGS`, and waits until it listens.
    pub fn serve(&self, name: &str, options: &[&str], args: &[&str]) -> Result<Container> {
        let container = self.run(name, &[options, &[IMAGE, "lab-tool", "serve"], args].concat())?;
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !self.docker(&["logs", name])?.stdout.contains("READY") {
            ensure!(std::time::Instant::now() < deadline, "{name} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(container)
    }

    /// Starts a container that waits for [`Container::exec`].
    pub fn idle(&self, name: &str, options: &[&str]) -> Result<Container> {
        self.run(name, &[options, &[IMAGE, "sleep", "infinity"]].concat())
    }

    /// `docker inspect` of anything.
    pub fn inspect(&self, what: &str) -> Result<Value> {
        let all: Vec<Value> = self.docker(&["inspect", what])?.json()?;
        all.into_iter().next().with_context(|| format!("docker inspect {what} says nothing"))
    }

    fn client(&self) -> Vec<String> {
        let config = text(self.directory.join("client"));
        let host = format!("unix://{}", self.socket().display());
        ["docker", "--config", &config, "--host", &host].map(str::to_owned).to_vec()
    }
}

impl Container {
    /// Runs a command in the container: `docker exec`.
    pub fn exec(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.client[0]);
        command.args(&self.client[1..]).args(["exec", &self.id]).args(args).stdin(Stdio::null());
        let output = command.output().context("cannot run docker")?;
        Ok(Output {
            command: format!("docker exec {} {}", self.name, args.join(" ")),
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// One attempt to connect, from within the container.
    pub fn connect(&self, to: &str, args: &[&str]) -> Result<Attempt> {
        let line = [&["lab-tool", "connect", to], args].concat();
        let answer: Attempts = self.exec(&line)?.json()?;
        answer.attempts.into_iter().next().context("lab-tool connect made no attempt")
    }

    /// Its address in a network.
    pub fn address(&self, docker: &Docker, network: &str) -> Result<String> {
        let seen = docker.inspect(&self.id)?;
        let address = seen["NetworkSettings"]["Networks"][network]["IPAddress"].as_str().unwrap_or_default();
        ensure!(!address.is_empty(), "{} has no address in {network}", self.name);
        Ok(address.to_owned())
    }

    /// The process id of its first process.
    pub fn pid(&self, docker: &Docker) -> Result<u32> {
        let pid = docker.inspect(&self.id)?["State"]["Pid"].as_u64().unwrap_or_default();
        ensure!(pid != 0, "{} does not run", self.name);
        Ok(u32::try_from(pid)?)
    }
}

/// A root file system of programs, their libraries, and busybox's applets if it is among them.
pub(crate) fn lay_out(root: &Path, programs: &[&str], extra: &[(&str, &str)]) -> Result<()> {
    for directory in ["bin", "tmp", "run", "etc", "var/log", "var/lib", "usr/sbin", "usr/bin"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for program in programs {
        let name = Path::new(program).file_name().context("a program without name")?;
        copy(Path::new(program), &root.join("bin").join(name))?;
        for library in libraries(program)? {
            copy(&library, &root.join(library.strip_prefix("/")?))?;
        }
        if name == "busybox" {
            for applet in
                ["sh", "sleep", "cat", "ls", "echo", "httpd", "wget", "nc", "ip", "true", "mkdir", "kill", "head"]
            {
                std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
            }
        }
    }
    for (from, to) in extra {
        copy(Path::new(from), &root.join(to.trim_start_matches('/')))?;
    }
    Ok(())
}

/// The libraries a program is linked with, the loader included; none for a static one.
fn libraries(program: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("images need ldd")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
