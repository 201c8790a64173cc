//! These need root, as the agent does.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use super::*;
use crate::facts::Fault;

/// A directory that an unprivileged user can look into, with a script in it.
fn script(text: &str) -> (tempfile::TempDir, Plugin) {
    let directory = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
    let path = directory.path().join("plugin");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a mode");
    let plugin = Plugin {
        name: "test".into(),
        command: vec![path.to_str().expect("UTF-8").into(), "an argument".into()],
        user: "nobody".into(),
        timeout: Duration::from_secs(10),
        max_bytes: 4096,
        every: Duration::ZERO,
    };
    (directory, plugin)
}

fn run_plugin(plugin: &Plugin) -> Result<String, FactError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let output = runtime.block_on(run(plugin, b"{\"question\": true}"))?;
    Ok(String::from_utf8(output).expect("UTF-8"))
}

#[test]
fn it_gets_its_question_and_nothing_else() {
    // SAFETY: no other thread of this test reads the environment while it changes.
    unsafe { std::env::set_var("ENFORCER_TEST_SECRET", "secret") };
    let held = std::fs::File::open("/proc/self/status").expect("a descriptor to leak");
    let (_directory, plugin) = script(
        "cat; echo; echo \"$1\"; id -u; id -G; pwd; env; ls /proc/self/fd | tr '\\n' ' '; echo; ls /sys/class/net /proc/self/net \
         >/dev/null 2>&1; cat /proc/self/net/dev | tail -n +3 | cut -d: -f1; grep -E '^(NoNewPrivs|CapEff|CapBnd):' /proc/self/status; \
         ulimit -c; ulimit -n",
    );
    let output = run_plugin(&plugin).expect("an answer");
    drop(held);
    let nobody = User::from_name("nobody").expect("users").expect("nobody");
    for expected in [
        "{\"question\": true}\n".to_owned(),
        "an argument\n".into(),
        format!("\n{}\n", nobody.uid),
        format!("\n{}\n", nobody.gid),
        "\n/\n".into(),
        "\n0 1 2 ".into(),
        "\n    lo\n".into(),
        "NoNewPrivs:\t1".into(),
        "CapEff:\t0000000000000000".into(),
        "\n0\n64\n".into(),
    ] {
        assert!(output.contains(&expected), "{output:?} lacks {expected:?}");
    }
    assert!(!output.contains("secret") && !output.contains("eth0"), "{output}");
}

#[test]
fn it_has_no_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let text =
        format!("exec 2>&1; if bash -c 'echo > /dev/tcp/127.0.0.1/{port}'; then echo reached; else echo cut off; fi");
    let (_directory, plugin) = script(&text);
    let output = run_plugin(&plugin).expect("an answer");
    assert!(output.contains("cut off") && !output.contains("reached\n"), "{output}");
}

#[test]
fn it_is_killed_at_its_timeout_with_all_it_started() {
    let (directory, mut plugin) = script("sleep 4242 & echo $! > /dev/stderr; sleep 4242");
    plugin.timeout = Duration::from_millis(300);
    let before = Instant::now();
    let error = run_plugin(&plugin).expect_err("too slow");
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    assert_eq!(error.fault, Fault::Unreachable);
    assert!(error.to_string().contains("did not answer within 300ms"), "{error}");
    let sleeping = || {
        std::fs::read_dir("/proc")
            .expect("processes")
            .flatten()
            .any(|process| std::fs::read(process.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x004242\0"))
    };
    let patience = Instant::now();
    while sleeping() && patience.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!sleeping(), "something it started lives on");
    drop(directory);
}

#[test]
fn what_it_leaves_behind_ends_with_it() {
    let (_directory, plugin) = script("sleep 4343 >/dev/null 2>&1 </dev/null & echo '{\"tags\":{}}'");
    assert_eq!(run_plugin(&plugin).as_deref(), Ok("{\"tags\":{}}\n"));
    std::thread::sleep(Duration::from_millis(200));
    let left = std::fs::read_dir("/proc")
        .expect("processes")
        .flatten()
        .any(|process| std::fs::read(process.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x004343\0"));
    assert!(!left);
}

#[test]
fn failures_and_floods_are_errors() {
    let (_directory, plugin) = script("echo 'no such PU' >&2; exit 3");
    let error = run_plugin(&plugin).expect_err("a failure");
    assert_eq!(error.fault, Fault::Unreachable);
    assert!(error.to_string().contains("exit status: 3") && error.to_string().contains("no such PU"), "{error}");
    let (_directory, plugin) = script("yes");
    let before = Instant::now();
    let error = run_plugin(&plugin).expect_err("a flood");
    assert!(before.elapsed() < Duration::from_secs(5));
    assert_eq!(error.fault, Fault::Malformed);
    assert!(error.to_string().contains("more than 4096 bytes"), "{error}");
    let (_directory, plugin) = script("yes >&2");
    let mut plugin = plugin;
    plugin.timeout = Duration::from_secs(1);
    assert!(run_plugin(&plugin).is_err(), "a flood of complaints");
}

#[test]
fn whoever_others_could_change_is_not_run() {
    let (directory, plugin) = script("echo ran");
    let path = directory.path().join("plugin");
    let refused = |plugin: &Plugin, words: &str| {
        let error = run_plugin(plugin).expect_err(words);
        assert_eq!(error.fault, Fault::Configuration);
        assert!(error.to_string().contains(words), "{error}");
    };
    let mode = |mode: u32| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("a mode");
    mode(0o777);
    refused(&plugin, "chmod go-w");
    mode(0o644);
    refused(&plugin, "no executable file");
    mode(0o755);
    std::os::unix::fs::chown(&path, Some(65534), None).expect("an owner");
    refused(&plugin, "chown root");
    refused(&Plugin { command: vec!["/nonexistent/plugin".into()], ..plugin.clone() }, "cannot be run");
    std::os::unix::fs::chown(&path, Some(0), None).expect("an owner");
    refused(&Plugin { user: "nobody-at-all".into(), ..plugin.clone() }, "no unprivileged user");
    assert_eq!(run_plugin(&plugin).as_deref(), Ok("ran\n"));
    assert!(Path::new(&path).exists());
}
