//! PUs that appear by themselves: units and cgroups, processes by what they execute.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Attempt, Host, Lab, Outcome, Place, Server, Workload, lab_tool};

/// Milliseconds within which a first contact must be made, whatever else happens meanwhile.
const PATIENCE: &str = "5000";

/// A host whose enforcer finds workloads, and a server that accepts `app=client`, and a host without enforcer.
struct Stage {
    server: Server,
    at_plain: Server,
    _pu: Workload,
    a: Host,
    b: Host,
    plain: Host,
    _lab: Lab,
}

impl Stage {
    fn new(name: &str, config: impl FnOnce(&Host) -> String) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("w.yaml", "name: w\nrules:\n  - call: allow app=client -> app=server tcp/8020\n")?;
        let (a, b, plain) = (lab.host("a")?, lab.host("b")?, lab.host("plain")?);
        b.start_enforcer("")?;
        a.start_enforcer(&config(&a))?;
        let pu = b.workload("server", &["app=server"])?;
        let server = pu.serve(&["--listen", "[::]:8020"])?;
        let at_plain = plain.serve(&["--listen", "[::]:8020"])?;
        Ok(Self { server, at_plain, _pu: pu, a, b, plain, _lab: lab })
    }

    /// Calls the server from a place, and gets an answer.
    fn call(&self, from: &Place) -> Result<Attempt> {
        from.connect(&self.b.socket_v4(8020), &["--payload", "hello", "--timeout", PATIENCE])
    }

    fn assert_calls(&self, from: &Place, what: &str) -> Result<()> {
        let attempt = self.call(from)?;
        ensure!(attempt.outcome == Outcome::Ok, "{what}: {attempt:?}\n{}\n{}", self.a.enforcer_log(), self.said()?);
        Ok(())
    }

    /// What is no PU gets nothing from the server, and everything from a host without enforcer.
    fn assert_unmanaged(&self, from: &Place, what: &str) -> Result<()> {
        let attempt = from.connect(&self.b.socket_v4(8020), &["--timeout", "300"])?;
        ensure!(attempt.outcome == Outcome::Timeout, "{what}: {attempt:?}");
        let attempt = from.connect(&self.plain.socket_v4(8020), &["--payload", "hello", "--timeout", PATIENCE])?;
        ensure!(attempt.outcome == Outcome::Ok, "{what} to a plain host: {attempt:?}\n{}", self.said()?);
        Ok(())
    }

    /// Nothing leaves for anybody, and nobody is asked.
    fn assert_silenced(&self, from: &Place, what: &str) -> Result<()> {
        let before = self.at_plain.accepted()?;
        let attempt = from.connect(&self.plain.socket_v4(8020), &["--timeout", "300"])?;
        ensure!(attempt.outcome != Outcome::Ok, "{what}: {attempt:?}");
        ensure!(self.at_plain.accepted()? == before, "{what}: the plain host was reached");
        Ok(())
    }

    fn said(&self) -> Result<String> {
        Ok(format!("{}{}", self.a.enforcer(&["flows"])?.stdout, self.a.enforcer(&["pus"])?.stdout))
    }

    fn pus(&self) -> Result<Vec<Value>> {
        let pus: Value = self.a.enforcer_json(&["pus"])?;
        let listed = pus.as_array().or_else(|| pus["pus"].as_array());
        Ok(listed.with_context(|| format!("no list of PUs: {pus}"))?.clone())
    }

    fn pu(&self, name: &str) -> Result<Option<Value>> {
        Ok(self.pus()?.into_iter().find(|pu| pu["name"] == name))
    }

    fn wait_for(&self, what: &str, found: impl Fn(&[Value]) -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(8);
        while !found(&self.pus()?) {
            ensure!(Instant::now() < deadline, "{what}: {}\n{}", self.said()?, self.a.enforcer_log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn cgroup(host: &Host, below: &str) -> Result<Place> {
    let path = host.cgroup().join(below);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(host.in_cgroup(&path))
}

/// A program of its own that does what `lab-tool` does.
fn program(host: &Host, name: &str) -> Result<PathBuf> {
    let path = host.directory().join(name);
    fs::copy(lab_tool()?, &path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Runs a program as the lab's own would be run, and reads its answer.
fn run(place: &Place, program: &Path, to: &str, more: &[&str]) -> Result<Attempt> {
    let program = program.to_str().context("a path")?;
    let line = [&[program, "connect", to, "--timeout", PATIENCE], more].concat();
    first(&place.exec(&line)?.json()?)
}

fn first(answer: &Value) -> Result<Attempt> {
    let one = answer.get("attempts").and_then(|all| all.get(0)).unwrap_or(answer);
    serde_json::from_value(one.clone()).with_context(|| format!("not an attempt: {answer}"))
}

const UNITS: &str = r#"
[[workload]]
unit = "web-*.service"
tags = { app = "client", tier = ["front", "edge"] }
[[workload]]
cgroup = "/machines/*"
name = "machine"
tags = { app = "client" }
"#;

#[test]
fn units_and_cgroups_are_pus_whenever_they_start() -> Result<()> {
    let stage = Stage::new("units", |a| {
        fs::create_dir_all(a.cgroup().join("system.slice/web-0.service")).expect("a unit that runs already");
        UNITS.into()
    })?;
    let a = &stage.a;
    stage.assert_calls(&cgroup(a, "system.slice/web-0.service")?, "a unit older than the agent")?;
    stage.assert_calls(&cgroup(a, "system.slice/web-1.service")?, "a unit that starts later")?;
    stage.assert_calls(&cgroup(a, "machines/m1")?, "a cgroup that is made later")?;
    stage.assert_unmanaged(&cgroup(a, "system.slice/other.service")?, "a unit no rule names")?;
    stage.assert_unmanaged(&cgroup(a, "user.slice/user@1.service/web-9.service")?, "a user's own unit of that name")?;
    let unit = stage.pu("web-1.service")?.context("no PU of the unit")?;
    assert_eq!(unit["tags"]["tier"], serde_json::json!(["edge", "front"]));
    assert_eq!(unit["tags"]["app"], serde_json::json!(["client"]));
    Ok(())
}

#[test]
fn a_unit_that_restarts_is_the_same_pu_again() -> Result<()> {
    let stage = Stage::new("restarts", |_| UNITS.into())?;
    for round in 0..3 {
        let unit = cgroup(&stage.a, "system.slice/web-1.service")?;
        stage.assert_calls(&unit, &format!("start {round}"))?;
        fs::remove_dir(unit.cgroup())?;
        if round == 1 {
            stage.wait_for("it is gone", |pus| !pus.iter().any(|pu| pu["name"] == "web-1.service"))?;
        }
    }
    Ok(())
}

#[test]
fn without_agent_what_is_meant_is_refused_and_nothing_else() -> Result<()> {
    let stage = Stage::new("noagent", |_| UNITS.into())?;
    stage.a.kill9_enforcer()?;
    std::thread::sleep(Duration::from_millis(1200));
    let meant = cgroup(&stage.a, "system.slice/web-1.service")?;
    let other = cgroup(&stage.a, "system.slice/other.service")?;
    stage.assert_silenced(&meant, "a unit without agent")?;
    let attempt = other.connect(&stage.plain.socket_v4(8020), &["--payload", "hello"])?;
    assert_eq!(attempt.outcome, Outcome::Ok, "another unit without agent");
    stage.a.start_enforcer(UNITS)?;
    stage.assert_calls(&meant, "with an agent again")?;
    stage.assert_unmanaged(&other, "another unit with an agent again")?;
    Ok(())
}

#[test]
fn processes_become_pus_by_what_they_execute() -> Result<()> {
    let stage = Stage::new("execs", |a| {
        let (client, shell) = (program(a, "client").expect("a program"), a.directory().join("shell"));
        fs::copy("/bin/sh", &shell).expect("a shell");
        let hashed = program(a, "hashed").expect("a program");
        fs::OpenOptions::new()
            .append(true)
            .open(&hashed)
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"x"))
            .expect("another hash");
        let sum = std::process::Command::new("sha256sum").arg(&hashed).output().expect("sha256sum").stdout;
        let sum = String::from_utf8_lossy(&sum[..64]).into_owned();
        program(a, "nobodys").expect("a program");
        program(a, "arguments").expect("a program");
        let dir = a.directory().display();
        format!(
            "[[workload]]\nname = 'by-path'\nexe = {client:?}\ntags = {{ app = 'client' }}\n\
             [[workload]]\nname = 'by-shell'\nexe = {shell:?}\ntags = {{ app = 'client' }}\n\
             [[workload]]\nname = 'by-hash'\nsha256 = '{sum}'\ntags = {{ app = 'client' }}\n\
             [[workload]]\nname = 'by-user'\nexe = '{dir}/nobodys'\nuser = 'nobody'\ntags = {{ app = 'client' }}\n\
             [[workload]]\nname = 'by-command'\nexe = '{dir}/argum*'\ncommand = '* --pause 7*'\ntags = {{ app = 'client' }}\n"
        )
    })?;
    let (a, to) = (&stage.a, stage.b.socket_v4(8020));
    let at = |name: &str| a.directory().join(name);
    let assert_ok = |what: &str, attempt: Result<Attempt>| -> Result<()> {
        let attempt = attempt.with_context(|| what.to_owned())?;
        ensure!(attempt.outcome == Outcome::Ok, "{what}: {attempt:?}\n{}\n{}", stage.a.enforcer_log(), stage.said()?);
        Ok(())
    };
    let refused = |what: &str, attempt: Result<Attempt>| -> Result<()> {
        let attempt = attempt.with_context(|| what.to_owned())?;
        ensure!(attempt.outcome == Outcome::Timeout, "{what}: {attempt:?}\n{}", stage.said()?);
        Ok(())
    };
    let short = ["--timeout", "400"];
    for _ in 0..2 {
        assert_ok("by path", run(a, &at("client"), &to, &["--payload", "hello"]))?;
        assert_ok("by hash", run(a, &at("hashed"), &to, &["--payload", "hello"]))?;
        assert_ok("by command line", run(a, &at("arguments"), &to, &["--payload", "hello", "--pause", "7"]))?;
    }
    refused("another command line", a.connect(&to, &short))?;
    let shell = at("shell").display().to_string();
    let tool = lab_tool()?.display().to_string();
    let script = format!("{tool} connect {to} --payload hello --timeout {PATIENCE}; exit 0");
    assert_ok("a child", a.exec(&[shell.as_str(), "-c", &script])?.json().and_then(|answer| first(&answer)))?;
    let script = format!("( ( {tool} connect {to} --payload hello --timeout {PATIENCE} ) & wait ); exit 0");
    assert_ok("a grandchild", a.exec(&[shell.as_str(), "-c", &script])?.json().and_then(|answer| first(&answer)))?;
    let program = at("nobodys").display().to_string();
    fs::set_permissions(a.directory(), fs::Permissions::from_mode(0o755))?;
    let as_nobody = |program: &str| -> Result<Attempt> {
        let line = ["setpriv", "--reuid=nobody", "--clear-groups", program, "connect", &to, "--timeout", "1500"];
        a.exec(&line)?.json().and_then(|answer| first(&answer))
    };
    assert_ok("by user", as_nobody(&program))?;
    let line = [program.as_str(), "connect", &to, "--timeout", "400"];
    refused("another user", a.exec(&line)?.json().and_then(|answer| first(&answer)))?;
    for name in ["by-path", "by-shell", "by-hash", "by-user", "by-command"] {
        ensure!(stage.pu(name)?.is_some(), "no PU {name}: {}", stage.said()?);
    }
    // What they were found by travels.
    let exe = at("client").display().to_string();
    let sum = a.exec(&["sha256sum", &at("hashed").to_string_lossy()])?.ok()?[..64].to_owned();
    for (name, key, value) in
        [("by-path", "@sys:exe", exe.as_str()), ("by-hash", "@sys:sha256", &sum), ("by-user", "@sys:user", "nobody")]
    {
        let pu = stage.pu(name)?.context("there was one")?;
        assert_eq!(pu["tags"][key], serde_json::json!([value]), "{name}: {pu}");
    }
    assert_eq!(
        stage.pus()?.iter().filter(|pu| pu["name"].as_str().is_some_and(|name| name.starts_with("by-path"))).count(),
        1
    );
    assert_eq!(stage.server.accepted()?, stage.server.accepted()?);
    Ok(())
}

#[test]
fn every_tag_is_shown_with_its_source_and_reserved_keys_are_the_enforcers() -> Result<()> {
    let config = format!(
        "{UNITS}\n[host.tags]\nrack = 'r7'\n[tags]\ncarry = ['app', '@host:rack', '@sys:exe', '@sys:sha256', '@sys:unit']\n"
    );
    let stage = Stage::new("wide", |_| config)?;
    let unit = cgroup(&stage.a, "system.slice/web-1.service")?;
    let mut resident = unit.spawn(&["sleep", "60"])?;
    let sleep = fs::canonicalize("/bin/sleep")?.display().to_string();
    stage.wait_for("complete", |pus| {
        // What was forked into the unit is this very program for a moment, until it executes another.
        let executes = |pu: &Value| pu["tags"]["@sys:exe"] == serde_json::json!([sleep]);
        pus.iter().any(|pu| pu["name"] == "web-1.service" && pu["incomplete"] == false && executes(pu))
    })?;
    stage.assert_calls(&unit, "a unit with object attributes")?;
    let tags = stage.pu("web-1.service")?.context("no PU")?["all_tags"].clone();
    let find = |key: &str| tags.as_array().into_iter().flatten().find(|tag| tag["key"] == key).cloned();
    let uid = "0".to_owned();
    for (key, value, source, carried) in [
        ("app", "client", "config", true),
        ("@host:rack", "r7", "enforcer", true),
        ("@sys:exe", sleep.as_str(), "object", true),
        ("@sys:unit", "web-1.service", "object", true),
        ("@sys:uid", uid.as_str(), "object", false),
        ("@sys:cmd", "sleep 60", "object", false),
    ] {
        let tag = find(key).with_context(|| format!("no {key} in {tags}"))?;
        assert_eq!(
            (&tag["value"], &tag["sources"][0], &tag["carried"]),
            (&value.into(), &source.into(), &carried.into()),
            "{tag}"
        );
    }
    let sum = std::process::Command::new("sha256sum").arg(&sleep).output()?.stdout;
    assert_eq!(find("@sys:sha256").context("no hash")?["value"], String::from_utf8_lossy(&sum[..64]).as_ref());
    let table = stage.a.enforcer(&["pus", "-o", "wide"])?.stdout;
    let row = table.lines().find(|line| line.contains("@sys:uid=0")).with_context(|| table.clone())?;
    assert!(
        row.contains("object") && row.trim_end().ends_with("no") && row.contains("cgroup:/system.slice/web-1.service"),
        "{row}"
    );

    // What runs there becomes another program: its identity follows.
    resident.kill9()?;
    let _other = unit.spawn(&["tail", "-f", "/dev/null"])?;
    let tail = fs::canonicalize("/usr/bin/tail")?.display().to_string();
    stage
        .wait_for("another program", |pus| pus.iter().any(|pu| pu["tags"]["@sys:exe"] == serde_json::json!([tail])))?;

    let refused = stage.a.enforcer(&["exec", "--tag", "@sys:uid=0", "--", "true"])?;
    assert!(refused.code() != 0 && refused.stderr.contains("keys that begin with `@`"), "{refused:?}");
    Ok(())
}

#[test]
fn what_would_hold_the_agent_itself_is_an_error_at_the_start() -> Result<()> {
    let lab = Lab::new("ownwork")?;
    let host = lab.host("a")?;
    lab.write_policy("w.yaml", "name: w\nrules:\n  - call: allow app=client -> app=server tcp/8020\n")?;
    for (config, said) in [
        ("[[workload]]\ncgroup = '/'\n", "matches the root of the hierarchy"),
        ("[[workload]]\nunit = 'nginx'\n", "is no unit name with a suffix"),
        ("[[workload]]\nexe = '/bin/true'\nunit = 'a.service'\n", "only one kind"),
        ("[[workload]]\nunit = 'a.service'\ntags = { '@sys:uid' = '0' }\n", "keys that begin with `@`"),
        ("[[workload]]\nuser = 'no-such-user-here'\n", "there is no user `no-such-user-here`"),
    ] {
        let error = host.start_enforcer(config).expect_err(config);
        let error = format!("{error:#}");
        assert!(error.contains(said), "{config}: {error}");
        assert!(!host.bpffs().join("v1").exists(), "{config}");
    }
    let own = cgroup(&host, "agents.slice/enforcer.service")?;
    host.write_enforcer_config("[[workload]]\nunit = 'enf*.service'\n")?;
    let binary = tests::enforcer_binary()?.display().to_string();
    let config = host.enforcer_config().display().to_string();
    let started = own.exec(&[binary.as_str(), "run", "--config", &config])?;
    assert!(started.code() != 0 && started.stderr.contains("in which this agent runs"), "{}", started.stderr);
    Ok(())
}
