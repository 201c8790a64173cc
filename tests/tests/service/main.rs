//! The unit as shipped, under a real systemd: at boot, when its agent is killed, stopped or replaced, and what workloads notice of it.
//!
//! systemd is the first process of a machine made of namespaces; `machine.sh` makes it.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Attempt, Host, Lab, NAMESPACE, Outcome, Output, Proc, Segment, Transferred, enforcer_binary, lab_tool};

const PORT: u16 = 8020;
/// Connections that carry data meanwhile: as many as may wait until it is known who begins them.
const LIVE: u64 = 60;
const POLICY: &str = "name: service\nrules:\n  - call: allow app=web -> app=server tcp/8020\n";

/// A host on which systemd is the first process.
struct Machine {
    host: Host,
    shared: PathBuf,
    /// systemd, as this machine's kernel numbers it.
    first: u32,
    _unshare: Proc,
}

impl Machine {
    /// Boots with the shipped unit, the enforcer under test in its place, and these further units, the first two wanted from the beginning.
    fn boot(host: &Host, units: &[(&str, String)]) -> Result<Self> {
        let directory = host.directory().join("machine");
        let (files, shared) = (directory.join("files"), directory.join("shared"));
        let of_units = files.join("etc/systemd/system");
        for made in [&of_units, &files.join("usr/local/bin"), &files.join("etc/enforcer/policy"), &shared] {
            fs::create_dir_all(made)?;
        }
        install(host, &files)?;
        let wanted: Vec<&str> = units.iter().take(2).map(|(name, _)| *name).collect();
        let target = format!("[Unit]\nWants=enforcer.service {}\n", wanted.join(" "));
        fs::write(of_units.join("lab.target"), target)?;
        for (name, text) in units {
            fs::write(of_units.join(name), text)?;
        }
        let script = format!("{}/tests/service/machine.sh", env!("CARGO_MANIFEST_DIR"));
        let unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup"];
        let place = directory.to_string_lossy();
        let line = [&unshare[..], &["sh", &script, &place]].concat();
        let unshare = host.spawn(&line)?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
        let first = eventually("a first process", || Ok(fs::read_to_string(&children)?.trim().parse().ok()))?;
        let machine = Self { host: host.clone(), shared, first, _unshare: unshare };
        let up = eventually("a system that is up", || {
            let said = machine.run(&["systemctl", "is-active", "lab.target"])?;
            Ok((said.stdout.trim() == "active").then_some(()))
        });
        up.with_context(|| machine._unshare.stderr())?;
        Ok(machine)
    }

    /// Runs a command on the machine.
    fn run(&self, line: &[&str]) -> Result<Output> {
        let first = self.first.to_string();
        let enter = ["nsenter", "--target", &first, "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--"];
        self.host.exec_within(&[&enter, line].concat(), Duration::from_secs(60))
    }

    /// A property of a unit.
    fn property(&self, unit: &str, name: &str) -> Result<String> {
        let shown = self.run(&["systemctl", "show", "--value", "--property", name, unit])?;
        Ok(shown.ok()?.trim().to_owned())
    }

    /// Waits until the enforcer is in force as another process than this.
    fn another_agent(&self, former: &str) -> Result<String> {
        eventually("another agent", || {
            let pid = self.property("enforcer", "MainPID")?;
            let active = self.property("enforcer", "ActiveState")? == "active";
            Ok((active && pid != former && pid != "0").then_some(pid))
        })
        .with_context(|| self.journal())
    }

    fn journal(&self) -> String {
        let shown = self.run(&["journalctl", "--no-pager", "--unit", "enforcer"]).map(|output| output.stdout);
        shown.unwrap_or_else(|error| format!("{error:#}"))
    }
}

/// What a package would bring, and what an administrator would write.
fn install(host: &Host, files: &Path) -> Result<()> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/enforcer.service");
    fs::copy(&unit, files.join("etc/systemd/system/enforcer.service")).context("the unit")?;
    fs::copy(enforcer_binary()?, files.join("usr/local/bin/enforcer")).context("the enforcer")?;
    fs::copy(lab_tool()?, files.join("usr/local/bin/lab-tool")).context("the traffic tool")?;
    host.write_enforcer_config("")?;
    let own: toml::Table = toml::from_str(&fs::read_to_string(host.enforcer_config())?)?;
    let configuration = files.join("etc/enforcer");
    for key in ["ca", "certificate", "key"] {
        let from = own["identity"][key].as_str().context("a path")?;
        let to = configuration.join(format!("{key}.pem"));
        fs::copy(from, &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
    }
    fs::write(configuration.join("policy/service.yaml"), POLICY)?;
    let text = format!(
        r#"
        namespace = "{NAMESPACE}"
        [identity]
        ca = "/etc/enforcer/ca.pem"
        certificate = "/etc/enforcer/certificate.pem"
        key = "/etc/enforcer/key.pem"
        [policy]
        paths = ["/etc/enforcer/policy"]
        [datapath]
        interfaces = ["eth0", "lo"]
        [[workload]]
        unit = "web-*.service"
        name = "web"
        tags = {{ app = "web" }}
        "#
    );
    let name = own["name"].as_str().context("a name")?;
    fs::write(configuration.join("enforcer.toml"), format!("name = {name:?}\n{text}"))?;
    Ok(())
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A workload that begins with the system and waits for nothing.
fn web(name: &str, line: &str) -> String {
    format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/local/bin/lab-tool {line}\nStandardOutput=file:/run/shared/{name}\n"
    )
}

/// What brings the network up where systemd-networkd or ifupdown would.
fn network() -> String {
    "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c \
     'ip link set lo up; ip link set eth0 up'\n"
        .into()
}

/// What a process wrote to its standard output, once it has.
fn written(machine: &Machine, name: &str) -> Result<String> {
    let path = machine.shared.join(name);
    eventually(name, || Ok(fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'))))
}

fn attempts(machine: &Machine, name: &str) -> Result<Vec<Attempt>> {
    let mut said: Value = serde_json::from_str(&written(machine, name)?)?;
    Ok(serde_json::from_value(said["attempts"].take())?)
}

fn units(to: Ipv4Addr) -> [(&'static str, String); 4] {
    let early = format!("connect {to}:{PORT} --count 100 --pause 50 --timeout 300 --payload ping");
    let live = format!("transfer {to}:{PORT} --count {LIVE}");
    let new = format!("connect {to}:{PORT} --count 3 --payload ping");
    [
        ("web-early.service", web("early", &early)),
        ("network.service", network()),
        ("web-live.service", web("live", &live)),
        ("web-new.service", web("new", &new)),
    ]
}

#[test]
fn a_service_from_boot_to_its_successor() -> Result<()> {
    let lab = Lab::new("service")?;
    lab.write_policy("service.yaml", POLICY)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    b.start_enforcer("")?;
    let server = b.workload("server", &["app=server"])?;
    let _server = server.serve(&["--quiet", "--listen", &format!("[::]:{PORT}")])?;

    // A workload calls from the very beginning; the first that is seen of it on the wire proves who it is.
    a.exec(&["ip", "link", "set", "eth0", "down"])?.ok()?;
    let capture = b.capture("eth0", &format!("tcp dst port {PORT}"))?;
    let machine = Machine::boot(&a, &units(b.v4()))?;
    let early = attempts(&machine, "early")?;
    let outcomes: Vec<Outcome> = early.iter().map(|attempt| attempt.outcome).collect();
    ensure!(outcomes.first() != Some(&Outcome::Ok), "it called before anything was in force: {outcomes:?}");
    ensure!(outcomes.last() == Some(&Outcome::Ok), "{outcomes:?}\n{}", machine.journal());
    let (frames, _) = capture.finish()?;
    let syns: Vec<Segment> = frames.iter().filter_map(|frame| Segment::parse(frame)).filter(Segment::is_syn).collect();
    ensure!(!syns.is_empty() && syns.iter().all(|syn| syn.identity().is_some()), "a SYN without identity left");
    let status: Value = machine.run(&["enforcer", "status", "--json"])?.json()?;
    ensure!(status["ready"] == true, "{status}");
    let doctor = machine.run(&["enforcer", "doctor"])?;
    ensure!(doctor.code() == 0, "{}{}", doctor.stdout, doctor.stderr);

    // Connections of a unit carry data while the agent is replaced in every way a service manager has.
    machine.run(&["systemctl", "start", "web-live"])?.ok()?;
    let open = written(&machine, "live")?;
    ensure!(open.contains(&format!("\"open\":{LIVE},")), "{open}\n{}", machine.run(&["enforcer", "flows"])?.stdout);

    let first = machine.property("enforcer", "MainPID")?;
    let refused = machine.run(&["enforcer", "upgrade"])?;
    ensure!(refused.code() == 1 && refused.stderr.contains("systemctl restart enforcer"), "{}", refused.stderr);
    // As a package does: another file in the place of the former, and the service restarted.
    machine.run(&["cp", "/usr/local/bin/enforcer", "/usr/local/bin/enforcer.new"])?.ok()?;
    machine.run(&["mv", "/usr/local/bin/enforcer.new", "/usr/local/bin/enforcer"])?.ok()?;
    machine.run(&["enforcer", "upgrade", "--check"])?.ok()?;
    machine.run(&["systemctl", "restart", "enforcer"])?.ok()?;
    let second = machine.another_agent(&first)?;

    machine.run(&["systemctl", "kill", "--signal", "KILL", "enforcer"])?.ok()?;
    let third = machine.another_agent(&second)?;
    assert_eq!(machine.property("enforcer", "NRestarts")?, "1", "systemd started it again");

    machine.run(&["systemctl", "stop", "enforcer"])?.ok()?;
    machine.run(&["systemctl", "start", "web-new"])?.ok()?;
    let new = attempts(&machine, "new")?;
    ensure!(new.iter().all(|attempt| attempt.outcome == Outcome::Refused), "nobody knows what it is: {new:?}");
    machine.run(&["systemctl", "start", "enforcer"])?.ok()?;
    machine.another_agent(&third)?;
    fs::remove_file(machine.shared.join("new"))?;
    machine.run(&["systemctl", "start", "web-new"])?.ok()?;
    let new = attempts(&machine, "new")?;
    ensure!(new.iter().all(|attempt| attempt.outcome == Outcome::Ok), "{new:?}");

    machine.run(&["systemctl", "stop", "web-live"])?.ok()?;
    let text = written(&machine, "live")?;
    let told = text.lines().find_map(|line| line.strip_prefix("DONE ")).unwrap_or_default();
    let told: Transferred = serde_json::from_str(told).with_context(|| text.clone())?;
    assert_eq!((told.open, told.lost, told.wrong), (LIVE, 0, 0), "{told:?}");
    assert_eq!(told.sent, told.echoed, "{told:?}");
    Ok(())
}
