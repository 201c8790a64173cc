//! What an agent gives up, and how it is told that it hangs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Host, Lab, Outcome, Pair, enforcer_binary};

/// `CAP_DAC_OVERRIDE`, `CAP_NET_ADMIN`, `CAP_SYS_PTRACE`, `CAP_PERFMON`, `CAP_BPF` (capability.h).
const NEEDED: u64 = 1 << 1 | 1 << 12 | 1 << 19 | 1 << 38 | 1 << 39;

/// Name and id of every thread of a process.
fn threads(pid: u32) -> Result<Vec<(String, i32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        found.push((name.trim().to_owned(), entry.file_name().to_string_lossy().parse()?));
    }
    Ok(found)
}

/// What the kernel says of a thread, by key of `/proc/PID/status`.
fn status_of(thread: i32) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{thread}/status"))?;
    Ok(text.lines().filter_map(|line| line.split_once(":\t")).map(|(key, value)| (key.into(), value.into())).collect())
}

/// State of every layer, by name.
fn layers(host: &Host) -> Result<BTreeMap<String, String>> {
    let status: Value = host.enforcer_json(&["status"])?;
    let all = status["hardening"].as_array().with_context(|| format!("no layers: {status}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(all.iter().map(|layer| (text(&layer["name"]), text(&layer["state"]))).collect())
}

#[test]
fn an_agent_keeps_what_it_needs_in_every_thread_and_says_so() -> Result<()> {
    let open = "[hardening]\ncapabilities = false\nno_new_privileges = false\nseccomp = false\nlandlock = false";
    let pair = Pair::with_each("hardened", "", open)?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    pair.introduce(8020)?;

    let pid = pair.a.enforcer_pid().context("runs")?;
    let all = threads(pid)?;
    for name in ["handshakes", "heartbeat", "upkeep", "metrics", "watchdog", "workloads"] {
        assert!(all.iter().any(|(thread, _)| thread == name), "{name}: {all:?}");
    }
    for (name, thread) in &all {
        let status = status_of(*thread)?;
        let caps = |key: &str| u64::from_str_radix(&status[key], 16);
        for key in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(caps(key)?, NEEDED, "{name}: {key}");
        }
        assert_eq!((caps("CapInh")?, caps("CapAmb")?), (0, 0), "{name}");
        assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"), "{name}");
    }
    let on = ["capabilities", "landlock: handshakes", "landlock: metrics", "no_new_privileges", "seccomp"];
    assert_eq!(layers(&pair.a)?, on.map(|layer| (layer.to_owned(), "on".to_owned())).into());
    let shown = pair.a.enforcer(&["status"])?.stdout;
    assert!(shown.contains("hardening seccomp: ") && !shown.contains("NOT in force"), "{shown}");

    // The other end has none of it, and says that too.
    let pid = pair.b.enforcer_pid().context("runs")?;
    let status = status_of(i32::try_from(pid)?)?;
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("0", "0"));
    assert_ne!(u64::from_str_radix(&status["CapEff"], 16)?, NEEDED);
    assert_eq!(layers(&pair.b)?, on.map(|layer| (layer.to_owned(), "off".to_owned())).into());
    let shown = pair.b.enforcer(&["status"])?.stdout;
    assert!(shown.contains("hardening seccomp: NOT in force (off)"), "{shown}");
    Ok(())
}

/// Receives what an agent tells its service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn hear(&self, limit: Duration) -> Result<Option<String>> {
        self.0.set_read_timeout(Some(limit))?;
        let mut buffer = [0; 4096];
        match self.0.recv(&mut buffer) {
            Ok(len) => Ok(Some(String::from_utf8_lossy(&buffer[..len]).into_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn wait_for(&self, word: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if self.hear(Duration::from_millis(200))?.is_some_and(|heard| heard.contains(word)) {
                return Ok(());
            }
        }
        bail!("{word} was never said")
    }

    /// Whether nothing comes for that long, once all that was sent is heard.
    fn is_silent_for(&self, time: Duration) -> Result<bool> {
        while self.hear(Duration::from_millis(1))?.is_some() {}
        Ok(self.hear(time)?.is_none())
    }
}

/// One thread that is stopped while the others run, until this is dropped.
struct Hung(i32);

impl Hung {
    fn new(thread: i32) -> Result<Self> {
        // SAFETY: the requests take no pointer but null; the results are checked.
        unsafe {
            ensure!(libc::ptrace(libc::PTRACE_SEIZE, thread, 0, 0) == 0, "{}", std::io::Error::last_os_error());
            let hung = Self(thread);
            ensure!(libc::ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0) == 0, "{}", std::io::Error::last_os_error());
            ensure!(libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) == thread, "it does not stop");
            Ok(hung)
        }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // SAFETY: as above; a thread that has ended meanwhile needs nothing.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

/// Status and body of `/healthz`.
fn health(host: &Host) -> Result<String> {
    let answer = host.exec(&["curl", "-s", "-m", "5", "-w", " %{http_code}", "http://127.0.0.1:9464/healthz"])?;
    Ok(answer.ok()?.replace('\n', ""))
}

fn wait_for_health(host: &Host, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = health(host)?;
        if wanted(&found) {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "still {found}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_thread_that_hangs_silences_the_watchdog_and_is_named() -> Result<()> {
    let lab = Lab::new("watchdog")?;
    let host = lab.host("a")?;
    lab.write_policy("p.yaml", "name: p\nrules:\n  - allow app=client -> app=server tcp/8020\n")?;
    // A loop may be silent for five times as long.
    host.write_enforcer_config("datapath.agent_timeout = \"500ms\"")?;
    let socket = host.directory().join("notify.sock");
    let manager = Manager(UnixDatagram::bind(&socket)?);
    let binary = enforcer_binary()?.to_string_lossy().into_owned();
    let config = host.enforcer_config().to_string_lossy().into_owned();
    let socket = format!("NOTIFY_SOCKET={}", socket.display());
    // Pings come every half a second.
    let mut agent = host.spawn(&["env", &socket, "WATCHDOG_USEC=1000000", &binary, "run", "--config", &config])?;
    manager.wait_for("READY=1").with_context(|| agent.stderr())?;
    let status: Value = host.enforcer_json(&["status"])?;
    assert_eq!(status["ready"], true, "ready when it says so");
    manager.wait_for("WATCHDOG=1")?;
    assert_eq!(health(&host)?, "ok 200");

    // One thread of many.
    let heartbeat = threads(agent.pid())?.into_iter().find(|(name, _)| name == "heartbeat").context("no heartbeat")?.1;
    let hung = Hung::new(heartbeat)?;
    let said = wait_for_health(&host, |said| said.ends_with("503"))?;
    assert!(said.contains("`heartbeat` has not turned for"), "{said}");
    assert!(manager.is_silent_for(Duration::from_millis(1500))?, "it answers for a thread that hangs");
    assert!(agent.stderr().contains("the agent hangs"), "{}", agent.stderr());
    drop(hung);
    wait_for_health(&host, |said| said == "ok 200")?;
    manager.wait_for("WATCHDOG=1")?;

    // All of it.
    agent.signal(Signal::SIGSTOP)?;
    assert!(manager.is_silent_for(Duration::from_millis(1500))?);
    agent.signal(Signal::SIGCONT)?;
    manager.wait_for("WATCHDOG=1")?;

    agent.signal(Signal::SIGTERM)?;
    manager.wait_for("STOPPING=1")?;
    let ended = agent.wait(Duration::from_secs(10))?.context("it does not end")?;
    assert!(ended.success(), "{ended}");
    Ok(())
}

#[test]
fn without_what_it_would_give_up_an_agent_enforces_all_the_same() -> Result<()> {
    // As an ordinary unit has it: nothing but what is needed from the start, so that nothing can be taken from the bounding set.
    let pair = Pair::new("bounded")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    pair.a.stop_enforcer();
    let binary = enforcer_binary()?.to_string_lossy().into_owned();
    let config = pair.a.enforcer_config().to_string_lossy().into_owned();
    let bounds = "-all,+bpf,+net_admin,+perfmon,+sys_ptrace,+dac_override";
    let line = ["setpriv", "--bounding-set", bounds, "--inh-caps", "-all", &binary, "run", "--config", &config];
    let agent = pair.a.spawn(&line)?;
    let deadline = Instant::now() + Duration::from_secs(15);
    while pair.a.enforcer(&["status"])?.code() != 0 {
        ensure!(Instant::now() < deadline, "not ready: {}", agent.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
    let eff = status_of(i32::try_from(agent.pid())?)?["CapEff"].clone();
    assert_eq!(u64::from_str_radix(&eff, 16)?, NEEDED);
    for to in pair.addresses(8020) {
        assert_eq!(pair.client.connect(&to, &["--payload", "ping", "--timeout", "3000"])?.outcome, Outcome::Ok);
    }
    drop(agent);
    Ok(())
}
