//! What comes before, after and beside: old listeners, restarts, renewal, leaving, and starts that cannot succeed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::{Host, Lab, Outcome, Pair, Proc, enforcer_binary};

const AT_ONCE: u64 = 100_000;

fn hold(pair: &Pair, to: &str, ping: &str) -> Result<Proc> {
    let mut process = pair.client.spawn_tool(&["hold", to, "--count", "2", "--ping", ping])?;
    let ready = process.wait_for_line("READY", Duration::from_secs(5))?;
    ensure!(ready == r#"READY {"open":2,"failed":0}"#, "{to}: {ready}");
    Ok(process)
}

fn assert_held(held: &mut [Proc], what: &str) -> Result<()> {
    for process in held {
        ensure!(process.wait(Duration::ZERO)?.is_none(), "{what}: {}", process.stdout());
        ensure!(!process.stdout().contains("ended"), "{what}: {}", process.stdout());
    }
    Ok(())
}

fn run_enforcer(host: &Host, arguments: &[&str]) -> Result<(i32, String)> {
    let binary = enforcer_binary()?.to_string_lossy().into_owned();
    let output = host.exec_within(&[&[binary.as_str()], arguments].concat(), Duration::from_secs(10))?;
    Ok((output.code(), output.stderr))
}

/// The list in an answer of `enforcer pus` or `enforcer peers`.
fn listed<'a>(answer: &'a serde_json::Value, name: &str) -> &'a [serde_json::Value] {
    answer.get(name).unwrap_or(answer).as_array().map_or(&[], Vec::as_slice)
}

/// Names and ids of everything below the host's pins.
fn pinned_ids(host: &Host) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(host.bpffs().join("v1/maps"))? {
        let path = entry?.path();
        let text = path.to_string_lossy().into_owned();
        let shown: serde_json::Value = host.exec(&["bpftool", "--json", "map", "show", "pinned", &text])?.json()?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.push((name, shown["id"].as_u64().with_context(|| format!("no id: {shown}"))?));
    }
    found.sort();
    Ok(found)
}

/// What a host looks like from outside: links, queueing disciplines, sysctls, attached programs, cgroups.
fn outward(host: &Host) -> Result<Vec<String>> {
    let cgroup = host.cgroup().to_string_lossy().into_owned();
    let commands: [&[&str]; 5] = [
        &["ip", "-o", "link"],
        &["tc", "qdisc", "show"],
        &["bpftool", "net", "show"],
        &["bpftool", "cgroup", "show", &cgroup],
        &["find", &cgroup, "-type", "d"],
    ];
    let mut seen = Vec::new();
    for command in commands {
        seen.push(host.exec(command)?.ok()?.to_owned());
    }
    let sysctls = host.exec(&["sysctl", "-a", "-r", "^net\\.(ipv4|ipv6|core)"])?;
    // These count, or belong to neighbours that come and go.
    let steady = |line: &&str| !["nr_", "avail", "mem ", "stable_secret"].iter().any(|word| line.contains(word));
    seen.push(sysctls.stdout.lines().filter(steady).collect::<Vec<_>>().join("\n"));
    Ok(seen)
}

#[test]
fn a_listener_older_than_its_enforcer_becomes_a_pu() -> Result<()> {
    let lab = Lab::new("older")?;
    lab.write_policy("pair.yaml", Pair::POLICY)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let old = b.plain_workload("old")?;
    let below = old.cgroup().join("below");
    fs::create_dir(&below)?;
    let server = old.serve(&["--listen", "[::]:8020"])?;
    let deep = old.in_cgroup(&below).serve(&["--listen", "[::]:8021"])?;
    a.start_enforcer("")?;
    b.start_enforcer("")?;
    let client = a.workload("client", &["app=client"])?;
    let addresses = [8020, 8021].map(|port| [b.socket_v4(port), b.socket_v6(port)]).concat();
    for to in &addresses {
        let attempt = client.connect(to, &["--timeout", "3000"])?;
        assert_eq!(attempt.outcome, Outcome::Refused, "nobody a PU may talk to yet: {attempt:?}");
    }
    b.enforcer(&["pu", "add", "--cgroup", &old.cgroup().to_string_lossy(), "--name", "old", "--tag", "app=server"])?
        .ok()?;
    for to in &addresses {
        let attempt = client.connect(to, &["--payload", "ping", "--timeout", "3000"])?;
        assert_eq!((attempt.outcome, attempt.reply.as_str()), (Outcome::Ok, "ping"), "{attempt:?}");
        let stranger = a.connect(to, &["--timeout", "300"])?;
        assert_eq!(stranger.outcome, Outcome::Timeout, "no longer for everyone: {stranger:?}");
    }
    assert_eq!((server.accepted()?, deep.accepted()?), (2, 2));
    Ok(())
}

#[test]
fn exec_lends_its_command_an_identity_and_passes_on_how_it_ends() -> Result<()> {
    let pair = Pair::new("exec")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let run = |command: &[&str]| -> Result<_> { pair.a.exec(&pair.a.as_pu("short", &["app=client"], command)?) };
    assert_eq!(run(&["sh", "-c", "exit 7"])?.code(), 7);
    assert_eq!(run(&["sh", "-c", "kill -USR1 $$"])?.code(), 128 + 10);
    assert_eq!(run(&["/nonexistent"])?.code(), 127);
    assert_eq!(run(&["/etc/passwd"])?.code(), 126);
    let tool = tests::lab_tool()?.to_string_lossy().into_owned();
    for to in pair.addresses(8020) {
        let answer = run(&[&tool, "connect", &to, "--payload", "ping"])?;
        assert!(answer.ok()?.contains("\"outcome\":\"ok\""), "{}", answer.stdout);
    }
    let line = pair.a.as_pu(
        "long",
        &["app=client"],
        &["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done"],
    )?;
    let mut long = pair.a.spawn(&line)?;
    long.wait_for_line("up", Duration::from_secs(5))?;
    long.signal(Signal::SIGTERM)?;
    let status = long.wait(Duration::from_secs(5))?.context("the signal was not passed on")?;
    assert_eq!(status.code(), Some(9));
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let pus: serde_json::Value = pair.a.enforcer_json(&["pus"])?;
        let directories = pair.a.exec(&[
            "find",
            &pair.a.cgroup().join("enforcer.pus").to_string_lossy(),
            "-mindepth",
            "1",
            "-type",
            "d",
        ])?;
        // Only the client of the pair is left.
        if listed(&pus, "pus").len() == 1 && directories.stdout.lines().count() == 1 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "left behind: {pus} {}", directories.stdout);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_restarted_agent_takes_over_without_touching_anything() -> Result<()> {
    let pair = Pair::new("restart")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let late = pair.b.workload("late", &["app=server"])?;
    let _late = late.serve(&["--listen", "[::]:8030"])?;
    pair.introduce(8020)?;
    let mut held = Vec::new();
    for to in pair.addresses(8020) {
        held.push(hold(&pair, &to, "0")?);
        held.push(hold(&pair, &to, "5")?);
    }
    let before = (pinned_ids(&pair.a)?, pinned_ids(&pair.b)?);
    assert!(before.0.len() > 15, "{:?}", before.0);
    for gently in [false, true] {
        let what = if gently { "SIGTERM" } else { "kill -9" };
        for host in [&pair.a, &pair.b] {
            if gently { host.stop_enforcer() } else { host.kill9_enforcer()? }
        }
        std::thread::sleep(tests::AGENT_TIMEOUT + Duration::from_millis(200));
        assert_held(&mut held, what)?;
        // While nobody is there: known pairs at full speed.
        for to in pair.addresses(8020) {
            let attempt = pair.client.connect(&to, &["--payload", "ping"])?;
            assert_eq!(attempt.outcome, Outcome::Ok, "{what}: {attempt:?}");
            assert!(attempt.micros < AT_ONCE, "{what}: {attempt:?}");
        }
        for host in [&pair.a, &pair.b] {
            host.restart_enforcer()?;
        }
        assert_eq!((pinned_ids(&pair.a)?, pinned_ids(&pair.b)?), before, "{what}: the same maps");
        assert_held(&mut held, what)?;
        // A PU that came later, and one nobody had met.
        let newcomer = pair.a.workload(if gently { "newcomer2" } else { "newcomer1" }, &["app=client"])?;
        for to in pair.addresses(8030) {
            let counted = pair.a.counters()?;
            let attempt = newcomer.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
            assert_eq!(attempt.outcome, Outcome::Ok, "{what}: {attempt:?}");
            assert!(attempt.micros < AT_ONCE, "{what}: {attempt:?}");
            drop(counted);
        }
        let refused = newcomer.connect(&pair.b.socket_v4(9999), &[])?;
        assert_eq!(refused.outcome, Outcome::Refused, "{what}: {refused:?}");
    }
    let flows = pair.b.counters()?.flows();
    assert!(flows >= 8, "{flows}");
    drop(held);
    pair.settled()
}

#[test]
fn nothing_suffers_from_renewal_and_rotation() -> Result<()> {
    let pair = Pair::with("renew", "identity.profile_lifetime = \"10s\"\nidentity.prekey_rotation = \"10s\"")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    pair.introduce(8020)?;
    let mut held = Vec::new();
    for to in pair.addresses(8020) {
        held.push(hold(&pair, &to, "0")?);
        held.push(hold(&pair, &to, "20")?);
    }
    let sessions = |host: &Host| -> Result<Vec<u64>> {
        let peers: serde_json::Value = host.enforcer_json(&["peers"])?;
        let all = listed(&peers, "peers").iter().flat_map(|peer| listed(&peer["sessions"], "sessions"));
        Ok(all.filter_map(|session| session["index"].as_u64()).collect())
    };
    let first = sessions(&pair.a)?;
    let begin = Instant::now();
    let mut made = 0;
    while begin.elapsed() < Duration::from_secs(25) {
        for to in pair.addresses(8020) {
            let attempt = pair.client.connect(&to, &["--payload", "ping", "--timeout", "5000"])?;
            let what = format!(
                "after {:?}: {attempt:?}\n{:?}\n{:?}",
                begin.elapsed(),
                pair.a.counters()?.refusals(),
                pair.b.counters()?.refusals()
            );
            assert_eq!(attempt.outcome, Outcome::Ok, "{what}");
            assert!(attempt.micros < 500_000, "by the timer: {what}");
            made += 1;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(made > 50, "{made}");
    assert_held(&mut held, "after renewals")?;
    let last = sessions(&pair.a)?;
    assert!(
        last.iter().any(|index| !first.contains(index)),
        "no prekey was ever rotated: {first:?} {last:?} {}",
        pair.a.enforcer(&["peers", "--json"])?.stdout
    );
    Ok(())
}

#[test]
fn a_profile_too_large_for_a_packet_is_refused_at_the_start() -> Result<()> {
    let pair = Pair::new("large")?;
    let cgroup = pair.a.plain_workload("large")?.cgroup().to_string_lossy().into_owned();
    let (big, bigger) = (format!("big={}", "x".repeat(300)), format!("bigger={}", "y".repeat(500)));
    let args =
        ["pu", "add", "--cgroup", &cgroup, "--name", "large", "--tag", "small=1", "--tag", &big, "--tag", &bigger];
    let output = pair.a.enforcer(&args)?;
    assert_ne!(output.code(), 0, "{}", output.stdout);
    let text = &output.stderr;
    assert!(text.contains("too large for one packet at MTU 1280"), "{text}");
    let at = |tag: &str| text.find(tag).with_context(|| format!("{tag} is not in: {text}"));
    assert!(
        at("`bigger=yyy")? < at("`big=xxx")? && at("`big=xxx")? < at("`small=1`")?,
        "the largest come first: {text}"
    );
    let pus: serde_json::Value = pair.a.enforcer_json(&["pus"])?;
    assert_eq!(listed(&pus, "pus").len(), 1, "{pus}");
    Ok(())
}

#[test]
fn unload_leaves_nothing() -> Result<()> {
    let lab = Lab::new("unload")?;
    lab.write_policy("pair.yaml", Pair::POLICY)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let before = outward(&b)?;
    for host in [&a, &b] {
        host.start_enforcer("")?;
    }
    let client = a.workload("client", &["app=client"])?;
    {
        let server = b.workload("server", &["app=server"])?;
        let _listener = server.serve(&["--listen", "[::]:8020"])?;
        for to in [b.socket_v4(8020), b.socket_v6(8020)] {
            assert_eq!(client.connect(&to, &["--payload", "ping"])?.outcome, Outcome::Ok);
        }
    }
    assert_ne!(outward(&b)?, before, "the enforcer must be seen while it is there");
    let config = b.enforcer_config().to_string_lossy().into_owned();
    let (code, said) = run_enforcer(&b, &["unload", "--config", &config])?;
    assert_ne!(code, 0, "not under a running agent");
    assert!(said.contains("in use by another enforcer"), "{said}");
    b.stop_enforcer();
    let (code, said) = run_enforcer(&b, &["unload", "--config", &config])?;
    assert_eq!(code, 0, "{said}");
    assert!(!b.bpffs().exists() || fs::read_dir(b.bpffs())?.next().is_none(), "pins are left");
    for (now, then) in outward(&b)?.iter().zip(&before) {
        assert_eq!(now, then);
    }
    // And the host talks as if there had never been an enforcer.
    let _plain = b.serve(&["--listen", "[::]:8021"])?;
    for to in [b.socket_v4(8021), b.socket_v6(8021)] {
        assert_eq!(a.connect(&to, &["--payload", "ping"])?.outcome, Outcome::Ok, "{to}");
    }
    Ok(())
}

#[test]
fn unmanaged_processes_are_let_alone_or_denied() -> Result<()> {
    for policy in ["allow", "deny"] {
        let pair = Pair::with_each("unmanaged", &format!("datapath.unmanaged = \"{policy}\""), "")?;
        let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
        let _plain = pair.b.serve(&["--listen", "[::]:22"])?;
        for (ip, port) in
            [(pair.b.socket_v4(22), pair.b.v4().to_string()), (pair.b.socket_v6(22), pair.b.v6().to_string())]
        {
            let attempt = pair.a.connect(&ip, &["--payload", "ping", "--timeout", "2000"])?;
            let ping = pair.a.exec(&["ping", "-c", "1", "-W", "1", &port])?;
            if policy == "allow" {
                assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
                assert_eq!(ping.code(), 0, "{}", ping.stdout);
            } else {
                assert!(matches!(attempt.outcome, Outcome::Refused | Outcome::Eperm), "{attempt:?}");
                assert!(attempt.micros < AT_ONCE, "{attempt:?}");
            }
        }
        for to in pair.addresses(8020) {
            let attempt = pair.client.connect(&to, &["--payload", "ping", "--timeout", "3000"])?;
            assert_eq!(attempt.outcome, Outcome::Ok, "a PU under {policy}: {attempt:?}");
        }
    }
    Ok(())
}

#[test]
fn maps_are_readable_by_others() -> Result<()> {
    let pair = Pair::new("readable")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let _held = hold(&pair, &pair.addresses(8020)[0], "0")?;
    let dump = |name: &str| -> Result<serde_json::Value> {
        let path = pair.a.bpffs().join("v1/maps").join(name).to_string_lossy().into_owned();
        pair.a.exec(&["bpftool", "--json", "map", "dump", "pinned", &path])?.json()
    };
    let flows = dump("FLOWS")?;
    let entry = &flows[0]["formatted"];
    assert_eq!(entry["key"]["remote_port"], 8020, "{flows}");
    assert_eq!(entry["value"]["role"], 0, "{flows}");
    assert!(entry["value"]["bytes_out"].as_u64() > Some(0), "{flows}");
    let sessions = dump("SESSIONS")?;
    assert!(sessions[0]["formatted"]["value"]["peer_index"].is_u64(), "{sessions}");
    Ok(())
}

/// A start that must fail: with this text, this code, and no trace.
fn assert_no_start(host: &Host, before: &[String], expected: i32, words: &[&str]) -> Result<()> {
    let config = host.enforcer_config().to_string_lossy().into_owned();
    let (code, said) = run_enforcer(host, &["run", "--config", &config])?;
    ensure!(code == expected, "exit code {code}: {said}");
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in: {said}");
    }
    ensure!(!host.bpffs().join("v1").exists(), "pins are left after: {said}");
    ensure!(!host.enforcer_socket().exists(), "the socket is left after: {said}");
    let now = outward(host)?;
    ensure!(now == before, "traces after: {said}\n{now:?}\n{before:?}");
    Ok(())
}

#[test]
fn starts_that_cannot_succeed_say_why_and_leave_nothing() -> Result<()> {
    let lab = Lab::new("badinput")?;
    let host = lab.host("a")?;
    host.write_enforcer_config("")?;
    let config = host.enforcer_config();
    let good = fs::read_to_string(&config)?;
    let before = outward(&host)?;

    // A truncated configuration: in the middle of a value, of a table's name, of a key.
    for (cut, word) in [
        (good.find("[datapath").context("datapath")? + 5, "unclosed table"),
        (good.find("= ").context("=")? + 2, "enforcer.toml:1"),
    ] {
        fs::write(&config, &good[..cut])?;
        assert_no_start(&host, &before, 4, &[word, "enforcer.toml"])?;
    }
    fs::write(&config, good.replace("agent_timeout", "agent_timeuot"))?;
    assert_no_start(&host, &before, 4, &["agent_timeuot", "unknown"])?;

    // The private key: missing, garbage, readable by all.
    fs::write(&config, &good)?;
    let key = host.directory().join("host-a.key");
    let pem = fs::read(&key)?;
    fs::write(&key, "not a key")?;
    assert_no_start(&host, &before, 1, &["host-a.key"])?;
    fs::write(&key, &pem)?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
    assert_no_start(&host, &before, 1, &["host-a.key", "chmod 600"])?;
    fs::remove_file(&key)?;
    assert_no_start(&host, &before, 1, &["host-a.key", "No such file"])?;
    fs::write(&key, &pem)?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;

    // A TAP device of somebody else's.
    host.exec(&["ip", "link", "add", "enforcer0", "type", "bridge"])?.ok()?;
    let with_bridge = outward(&host)?;
    assert_no_start(&host, &with_bridge, 1, &["enforcer0", "datapath.tap"])?;
    host.exec(&["ip", "link", "del", "enforcer0"])?.ok()?;

    // Pins where no BPF file system is, cgroups where no cgroup v2 is.
    host.write_enforcer_config(&format!("paths.bpffs = {:?}", host.directory().join("nobpf")))?;
    assert_no_start(&host, &before, 1, &["nobpf", "bpf"])?;
    host.write_enforcer_config(&format!("paths.cgroup = {:?}", host.directory()))?;
    assert_no_start(&host, &before, 1, &["cgroup"])?;
    host.write_enforcer_config("paths.cgroup = \"/sys/fs/cgroup/unified/not-there\"")?;
    assert_no_start(&host, &before, 1, &["not-there"])?;

    // Nobody may not. The keys are theirs, so that nothing else is in the way.
    fs::write(&config, &good)?;
    open_to_all(lab.directory())?;
    fs::set_permissions(lab.directory().join("ca/ca.crt"), fs::Permissions::from_mode(0o644))?;
    let own = |user: &str| host.exec(&["chown", "-R", user, &host.directory().to_string_lossy()])?.ok().map(drop);
    own("65534")?;
    let binary = host.directory().join("enforcer");
    fs::copy(enforcer_binary()?, &binary)?;
    let (binary, config) = (binary.to_string_lossy().into_owned(), config.to_string_lossy().into_owned());
    let output = host.exec(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        &binary,
        "run",
        "--config",
        &config,
    ])?;
    assert_eq!(output.code(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("CAP_") || output.stderr.contains("root"), "{}", output.stderr);
    assert_eq!(outward(&host)?, before);

    // After all that the right configuration starts.
    own("0")?;
    host.start_enforcer("")
}

fn open_to_all(directory: &Path) -> Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_to_all(&entry.path())?;
        }
    }
    Ok(())
}
