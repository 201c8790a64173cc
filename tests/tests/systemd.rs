//! Units of a real systemd: PID 1 of a container of its own, with a delegated part of the cgroups.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Host, Lab, Outcome, Output, Proc, Workload};

const POLICY: &str = "name: w\nrules:\n  - call: allow app=client -> app=web @sys:unit=nginx.service tcp/8080\n";

const RULE: &str =
    "[[workload]]\nunit = \"nginx.service\"\ntags = { app = \"web\" }\n[tags]\ncarry = [\"app\", \"@sys:unit\"]\n";

/// How long systemd may take for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// Lays out a root of the host's own /usr, and becomes systemd. `$0` is a directory, in which the units are.
const BECOME: &str = r#"
set -e
mount -t tmpfs root "$0/root"
cd "$0/root"
mkdir usr etc proc sys dev run tmp var root old
mount --bind /usr usr
for place in bin sbin lib lib64; do ln -s usr/$place $place; done
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs dev dev
for device in null zero full random urandom; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mount -t tmpfs run run
mkdir -p etc/systemd/system var/log/nginx var/lib/nginx
cp "$0"/units/* etc/systemd/system
cp "$0"/nginx.conf etc
ln -s ../usr/lib/os-release etc/os-release
echo 0123456789abcdef0123456789abcdef > etc/machine-id
echo 'root:x:0:0::/root:/bin/sh' > etc/passwd
echo 'root:x:0:' > etc/group
pivot_root . old
cd /
umount -l old
exec env -i container=lab PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd --system --unit=lab.target --log-target=console
"#;

/// A service that is nginx, with the configuration of the lab.
const SERVICE: &str = "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/sbin/nginx -c /etc/nginx.conf\n";

const NGINX: &str = "user root root;\ndaemon off;\npid /run/nginx.pid;\nerror_log stderr;\nevents {}\n\
http { access_log off; server { listen 8080; return 200 \"hello\\n\"; } }\n";

/// A running systemd.
struct Systemd {
    host: Host,
    cgroup: PathBuf,
    pid: u32,
    process: Proc,
}

impl Systemd {
    fn start(host: &Host) -> Result<Self> {
        for (program, package) in [("/usr/lib/systemd/systemd", "systemd"), ("/usr/sbin/nginx", "nginx-light")] {
            ensure!(fs::exists(program)?, "there is no {program}; `cargo xtask setup --tests` installs {package}");
        }
        let directory = host.directory().join("systemd");
        fs::create_dir_all(directory.join("root"))?;
        fs::create_dir_all(directory.join("units"))?;
        fs::write(directory.join("units/lab.target"), "[Unit]\nDefaultDependencies=no\n")?;
        for unit in ["nginx.service", "other.service"] {
            fs::write(directory.join("units").join(unit), SERVICE)?;
        }
        fs::write(directory.join("nginx.conf"), NGINX)?;
        // Slices above do not change what a unit is.
        let cgroup = host.cgroup().join("lab.slice");
        fs::create_dir_all(&cgroup)?;
        let own =
            ["--cgroup", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--propagation", "private"];
        let place = directory.to_string_lossy().into_owned();
        let line = [&["unshare"], own.as_slice(), &["sh", "-c", BECOME, &place]].concat();
        let process = host.in_cgroup(&cgroup).spawn(&line)?;
        let mut systemd = Self { host: host.clone(), cgroup, pid: 0, process };
        let deadline = Instant::now() + LIMIT;
        loop {
            // It moves there by itself.
            let scope = fs::read_to_string(systemd.cgroup.join("init.scope/cgroup.procs")).unwrap_or_default();
            systemd.pid = scope.lines().next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
            if systemd.pid != 0 && systemd.systemctl(&["is-system-running"])?.stdout.trim() == "running" {
                return Ok(systemd);
            }
            ensure!(Instant::now() < deadline, "systemd does not run: {}", systemd.process.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn systemctl(&self, args: &[&str]) -> Result<Output> {
        let pid = self.pid.to_string();
        let line = [&["nsenter", "--target", &pid, "--mount", "--pid", "systemctl"], args].concat();
        self.host.exec_within(&line, LIMIT)
    }

    /// `systemctl VERB UNIT`, and if it runs then, its port is open.
    fn order(&self, verb: &str, unit: &str) -> Result<()> {
        self.systemctl(&[verb, unit])?.ok().with_context(|| self.process.stderr())?;
        if verb != "stop" {
            self.host.wait_for_listener(8080, LIMIT)?;
        }
        Ok(())
    }
}

fn assert_outcome(systemd: &Systemd, client: &Workload, expected: Outcome, what: &str) -> Result<()> {
    let to = systemd.host.socket_v4(8080);
    let attempt = client.connect(&to, &["--http", "/", "--timeout", "3000"])?;
    let log = || format!("{}\n{}", systemd.host.enforcer_log(), systemd.process.stderr());
    ensure!(attempt.outcome == expected, "{what}: {attempt:?}\n{}", log());
    ensure!(expected != Outcome::Ok || attempt.reply.contains("hello"), "{what}: {attempt:?}");
    Ok(())
}

#[test]
fn units_of_a_real_systemd_are_pus() -> Result<()> {
    let lab = Lab::new("systemd")?;
    lab.write_policy("w.yaml", POLICY)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let systemd = Systemd::start(&a)?;
    systemd.order("start", "nginx.service")?;
    a.start_enforcer(RULE)?;
    b.start_enforcer("")?;
    let (client, other) = (b.workload("client", &["app=client"])?, b.workload("other", &["app=other"])?);

    let found = a.wait_for_pus(&["nginx.service"])?;
    let target = found[0]["target"].as_str().unwrap_or_default();
    ensure!(target.ends_with("/lab.slice/system.slice/nginx.service"), "{target}");
    assert_outcome(&systemd, &client, Outcome::Ok, "a unit older than the agent")?;
    assert_outcome(&systemd, &other, Outcome::Refused, "who may not call it")?;
    for round in 0..3 {
        systemd.order("restart", "nginx.service")?;
        assert_outcome(&systemd, &client, Outcome::Ok, &format!("restart {round}"))?;
    }
    systemd.order("stop", "nginx.service")?;
    a.wait_for_pus(&[])?;
    // The same program in a unit that no rule names is nobody.
    systemd.order("start", "other.service")?;
    ensure!(a.pus()?.is_empty(), "{:?}", a.pus()?);
    systemd.order("stop", "other.service")?;
    systemd.order("start", "nginx.service")?;
    assert_outcome(&systemd, &client, Outcome::Ok, "started again")?;
    a.wait_for_pus(&["nginx.service"])?;
    Ok(())
}
