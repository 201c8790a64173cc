//! Before the network and before an agent: what is configured is denied. And the unit that sees to it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Host, Lab, Outcome, Place, enforcer_binary};

/// A cgroup of the host, made now.
fn cgroup(host: &Host, below: &str) -> Result<Place> {
    let path = host.cgroup().join(below);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(host.in_cgroup(&path))
}

fn boot(host: &Host) -> Result<serde_json::Value> {
    let binary = enforcer_binary()?.to_string_lossy().into_owned();
    let config = host.enforcer_config().to_string_lossy().into_owned();
    host.exec_within(&[&binary, "boot", "--config", &config, "--json"], Duration::from_secs(30))?.json()
}

/// What went over the wire to a port, in packets.
fn sent_while(host: &Host, port: u16, work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let capture = host.capture("eth0", &format!("tcp dst port {port}"))?;
    work()?;
    Ok(capture.finish()?.0.len())
}

#[test]
fn what_is_configured_sends_nothing_between_boot_and_an_agents_policy() -> Result<()> {
    let lab = Lab::new("boot")?;
    let policy = lab.write_policy("p.yaml", "name: p\nrules:\n  - [this is no policy\n")?;
    let (a, plain) = (lab.host("a")?, lab.host("plain")?);
    let _server = plain.serve(&["--listen", "[::]:8020"])?;
    a.write_enforcer_config("[[workload]]\nunit = \"web-*.service\"\nname = \"web\"\ntags = { app = \"web\" }")?;
    let to = plain.socket_v4(8020);
    let calls = |from: &Place| from.connect(&to, &["--payload", "ping", "--timeout", "400"]);
    assert_eq!(calls(&cgroup(&a, "system.slice/web-0.service")?)?.outcome, Outcome::Ok, "nothing is enforced yet");

    // The network comes after.
    a.exec(&["ip", "link", "set", "eth0", "down"])?.ok()?;
    let booted = boot(&a)?;
    assert_eq!(booted, serde_json::json!({ "state": "denying", "absent_interfaces": [] }));
    a.exec(&["ip", "link", "set", "eth0", "up"])?.ok()?;
    let other = cgroup(&a, "system.slice/other.service")?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while calls(&other)?.outcome != Outcome::Ok {
        ensure!(Instant::now() < deadline, "what is not configured has its network back");
    }
    let web = cgroup(&a, "system.slice/web-1.service")?;
    let denied = || -> Result<()> {
        let attempt = calls(&web)?;
        ensure!(attempt.outcome != Outcome::Ok, "{attempt:?}");
        Ok(())
    };
    assert_eq!(sent_while(&a, 8020, denied)?, 0, "a packet left before policy");

    // An agent that cannot start leaves it at that, and so does what runs before its next start.
    let binary = enforcer_binary()?.to_string_lossy().into_owned();
    let config = a.enforcer_config().to_string_lossy().into_owned();
    let key = a.directory().join("host-a.key");
    let aside = key.with_extension("aside");
    fs::rename(&key, &aside)?;
    let ended = a.exec_within(&[&binary, "run", "--config", &config], Duration::from_secs(20))?;
    assert_ne!(ended.code(), 0, "an agent without a key");
    assert_eq!(boot(&a)?["state"], "in_force");
    assert_eq!(sent_while(&a, 8020, denied)?, 0, "a packet left while no agent could start");

    // The agent finds what is there, and its policy says what may pass.
    fs::rename(&aside, &key)?;
    fs::write(&policy, format!("name: p\nrules:\n  - out: allow app=web -> net {}/32 tcp/8020\n", plain.v4()))?;
    a.restart_enforcer()?;
    assert_eq!(boot(&a)?["state"], "agent_runs");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let attempt = calls(&web)?;
        if attempt.outcome == Outcome::Ok {
            break;
        }
        ensure!(Instant::now() < deadline, "{attempt:?}\n{}", a.enforcer_log());
    }
    Ok(())
}

#[test]
fn an_interface_that_is_not_there_yet_is_named_and_attached_to_later() -> Result<()> {
    let lab = Lab::new("bootlate")?;
    let a = lab.host("a")?;
    a.write_enforcer_config("datapath.interfaces = [\"eth0\", \"late0\"]")?;
    assert_eq!(boot(&a)?, serde_json::json!({ "state": "denying", "absent_interfaces": ["late0"] }));
    a.exec(&["ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1"])?.ok()?;
    let attached = |name: &str| -> Result<bool> {
        let shown: serde_json::Value = a.exec(&["ip", "-j", "link", "show", name])?.json()?;
        let index = shown[0]["ifindex"].as_u64().context("an index")?;
        let pin = |program: &str| a.bpffs().join(format!("v1/links/{program}_if{index}"));
        Ok(pin("tc_ingress").exists() && pin("tc_egress").exists())
    };
    assert!(attached("eth0")? && !attached("late0")?);
    assert_eq!(boot(&a)?, serde_json::json!({ "state": "in_force", "absent_interfaces": [] }));
    assert!(attached("late0")?);
    Ok(())
}

/// The unit as shipped, with the enforcer under test in the place of an installed one.
fn unit() -> Result<(String, std::path::PathBuf)> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/enforcer.service");
    let text = fs::read_to_string(&shipped).with_context(|| shipped.display().to_string())?;
    let directory = std::env::temp_dir().join(format!("enforcer-unit-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let file = directory.join("enforcer.service");
    fs::write(&file, text.replace("/usr/local/bin/enforcer", &enforcer_binary()?.to_string_lossy()))?;
    Ok((text, file))
}

#[test]
fn the_unit_is_sound_tight_and_before_the_network() -> Result<()> {
    let (text, file) = unit()?;
    let analyze = |arguments: &[&str]| -> Result<(bool, String)> {
        let output = Command::new("systemd-analyze").args(arguments).arg(&file).output().context("systemd-analyze")?;
        Ok((
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        ))
    };
    let (sound, said) = analyze(&["verify"])?;
    assert!(sound && !said.contains("enforcer.service:"), "{said}");
    // In tenths; an ordinary service without any of it has 96.
    let (tight, said) = analyze(&["security", "--offline=true", "--no-pager", "--threshold=40"])?;
    assert!(tight, "{said}");
    let (tighter, said) = analyze(&["security", "--offline=true", "--no-pager", "--threshold=10"])?;
    assert!(!tighter, "the measure measures nothing: {said}");
    fs::remove_dir_all(file.parent().context("a directory")?)?;

    let lines: Vec<&str> = text.lines().collect();
    let key =
        |key: &str| lines.iter().filter_map(|line| line.strip_prefix(&format!("{key}="))).collect::<Vec<_>>().join(" ");
    assert!(key("Before").split(' ').any(|unit| unit == "network-pre.target"), "{}", key("Before"));
    assert_eq!(key("Wants"), "network-pre.target modprobe@tun.service");
    assert_eq!(key("DefaultDependencies"), "no");
    assert_eq!(key("Type"), "notify");
    assert_eq!(key("ExecStartPre"), "/usr/local/bin/enforcer boot");
    assert_eq!(key("ExecStart"), "/usr/local/bin/enforcer run");
    let mut bounding: Vec<_> = key("CapabilityBoundingSet").split(' ').map(str::to_owned).collect();
    bounding.sort();
    let mut needed: Vec<_> =
        enforcer_user::hardening::capabilities::NEEDED.iter().map(|(capability, _)| capability.to_string()).collect();
    needed.sort();
    assert_eq!(bounding, needed);
    Ok(())
}
