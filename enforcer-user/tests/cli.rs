//! The command line from outside: exact messages and exit codes on bad input, and `exec` against an agent that is played
//! by the test.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use enforcer_user::admin::{
    AdminError, Answer, Caller, ErrorKind, FollowItem, Handler, PuTarget, Request, Response, Server,
    view::{FlowsView, RecordView, StatusView},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

fn enforcer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enforcer"));
    command.args(args).env_remove("ENFORCER_SOCKET").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (i32, String, String) {
    told(enforcer(args).output().expect("runs"))
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A file whose directory lives as long as the test.
fn file(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("e.toml");
    fs::write(&file, text).expect("written");
    (dir, file)
}

#[test]
fn configuration_errors_name_the_place_and_exit_with_4() {
    for (text, expected) in [
        ("[datapath]\nmax_flow = 1\n", ":2:1: `datapath.max_flow`: unknown field `max_flow`, expected one of "),
        ("[identity]\nca = \"/etc/c", ":2:13: invalid basic string, expected `\"`"),
        ("[identity\n", ":1:"),
        ("[log]\nlevel = 7\n", ":2:9: `log.level`: invalid type: integer `7`, expected a string\n"),
        (
            "[datapath]\ntap = \"a/b\"\n",
            ":2:7: `datapath.tap`: must be an interface name (1 to 15 characters, no slash, no space)\n",
        ),
        (
            "[host]\nmanagement = [\"ssh\"]\n",
            ":2:14: `host.management`: \"ssh\": expected ports such as \"tcp/22\", or \"tcp/22 from 10.0.0.0/8,fd00::/8\"\n",
        ),
        (
            "[host]\nmanagement = [\"tcp/22 from 10.0.0.1/8\"]\n",
            ":2:14: `host.management`: 10.0.0.1/8 has host bits set; write 10.0.0.0/8\n",
        ),
        (
            "[host]\nmanaged = true\n[datapath]\nunmanaged = \"deny\"\n",
            ":2:11: `host.managed`: leaves nothing unmanaged but ",
        ),
    ] {
        let (_dir, file) = file(text);
        for command in ["run", "check-config", "unload"] {
            let (code, out, err) = run(&[command, "--config", path(&file)]);
            assert_eq!((code, out.as_str()), (4, ""), "{command} {text:?}: {err}");
            assert!(err.starts_with(&format!("enforcer: {}{expected}", file.display())), "{err}");
        }
    }
}

#[test]
fn a_missing_configuration_says_what_to_do() {
    let (code, _, err) = run(&["run", "--config", "/nonexistent/e.toml"]);
    assert_eq!(code, 4);
    assert_eq!(
        err,
        "enforcer: /nonexistent/e.toml: cannot read it: no such file or directory; name the file with `--config FILE`\n"
    );
}

#[test]
fn an_unreadable_configuration_says_what_to_do() {
    let (dir, file) = file("");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("mode");
    let Some(output) = as_nobody(&["check-config", "--config", path(&file)]) else { return };
    let (code, _, err) = told(output);
    assert_eq!(code, 4);
    let expected = "cannot read it: permission denied; run as root, or make the file readable";
    assert_eq!(err, format!("enforcer: {}: {expected}\n", file.display()));
}

#[test]
fn a_valid_configuration_is_fine_and_shown_whole() {
    let (_dir, file) = file("[datapath]\nmax_flows = 4096\n");
    assert_eq!(
        run(&["check-config", "--config", path(&file)]),
        (0, format!("{}: fine\n", file.display()), String::new())
    );
    let (code, out, _) = run(&["check-config", "--json", "--config", path(&file)]);
    let shown: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (code, &shown["datapath"]["max_flows"], &shown["paths"]["tap"]),
        (0, &4096.into(), &serde_json::Value::Null)
    );
    assert_eq!(shown["identity"]["clock_skew"], "30s");
}

#[test]
fn without_an_agent_every_question_says_so_and_exits_with_3() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("s.sock");
    for args in [
        &["status"][..],
        &["pus"],
        &["peers"],
        &["peers", "--forget"],
        &["flows"],
        &["flows", "--follow"],
        &["policy", "show"],
        &["policy", "explain", "--from", "a=b", "--to", "c=d", "--port", "1"],
        &["pu", "rm", "x"],
        &["confirm"],
        &["pu", "add", "--interface", "lo", "--tag", "a=b"],
    ] {
        let (code, out, err) = run(&[&["--socket", path(&socket)], args].concat());
        assert_eq!((code, out.as_str()), (3, ""), "{args:?}");
        assert_eq!(
            err,
            format!(
                "enforcer: cannot reach the agent at {}: no such file or directory; is it running? start it with `enforcer run`, or name its socket with `--socket PATH`\n",
                socket.display()
            )
        );
    }
    fs::write(&socket, "").expect("a file that is no socket");
    let (code, _, err) = run(&["status", "--socket", path(&socket)]);
    assert_eq!(code, 3);
    assert!(err.contains("connection refused; is it running?"), "{err}");
}

#[test]
fn offline_flows_need_something_pinned() {
    let (_dir, file) = file("[paths]\nbpffs = \"/sys/fs/bpf/enforcer-nothing-here\"\n");
    let (code, out, err) = run(&["flows", "--offline", "--config", path(&file)]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("is not pinned in /sys/fs/bpf/enforcer-nothing-here/v1/maps; start the agent"), "{err}");
}

#[test]
fn unloading_nothing_is_no_error() {
    let (_dir, file) = file(
        "[datapath]\ntap = \"enfcnothing0\"\n[paths]\nbpffs = \"/sys/fs/bpf/enforcer-nothing-here\"\ncgroup = \"/nonexistent\"\nsocket = \"/nonexistent/enforcer/s.sock\"\n",
    );
    for _ in 0..2 {
        let (code, out, err) = run(&["unload", "--config", path(&file)]);
        assert_eq!(
            (code, out.as_str(), err.as_str()),
            (0, "removed: 0 links, 0 programs, 0 maps, 0 TAP devices, 0 cgroups\n", "")
        );
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [
        &["frobnicate"][..],
        &[],
        &["exec"],
        &["exec", "--tag", "novalue", "--", "true"],
        &["pu", "add", "--tag", "a=b"],
        &["pu", "add", "--cgroup", "/x", "--interface", "y"],
        &["policy", "explain", "--from", "a=b", "--to", "c=d", "--port", "70000"],
        &["ca", "issue"],
        &["ca", "init", "--lifetime", "soon"],
        &["run", "--confirm"],
        &["run", "--confirm", "soon"],
        &["run", "--confirm", "0s"],
        &["run", "--confirm", "2days"],
        &["confirm", "now"],
    ] {
        assert_eq!(run(args).0, 2, "{args:?}");
    }
}

#[test]
fn an_authority_and_a_certificate_are_made_once() {
    let dir = tempfile::tempdir().expect("directory");
    let ca = dir.path().join("ca");
    assert_eq!(run(&["ca", "init", "--dir", path(&ca)]).0, 0);
    assert_eq!(run(&["ca", "issue", "--dir", path(&ca), "--name", "h1", "--out", path(dir.path())]).0, 0);
    for file in [ca.join("ca.key"), dir.path().join("h1.key")] {
        assert_eq!(fs::metadata(&file).expect("made").permissions().mode() & 0o777, 0o600);
    }
    let (code, _, err) = run(&["ca", "init", "--dir", path(&ca)]);
    assert_eq!(code, 1);
    let expected = "exists and is not overwritten: choose another directory, or move it away";
    assert_eq!(err, format!("enforcer: {} {expected}\n", ca.join("ca.crt").display()));
    let (code, _, err) = run(&["ca", "issue", "--dir", path(dir.path()), "--name", "h2"]);
    assert_eq!(code, 1);
    assert!(err.contains("ca.crt"), "{err}");
}

#[test]
fn policies_are_checked_and_explained_without_an_agent() {
    let dir = tempfile::tempdir().expect("directory");
    fs::write(dir.path().join("p.yaml"), "name: p\nrules:\n  - web: allow app=a -> app=b tcp/80\n").expect("written");
    let good = path(dir.path());
    assert_eq!(run(&["policy", "check", good]), (0, "1 rule in 1 file: fine\n".into(), String::new()));
    let ask =
        |port: &str| run(&["policy", "explain", "--json", "--from", "app=a", "--to", "app=b", "--port", port, good]);
    let (code, out, _) = ask("80");
    let explained: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &explained["action"], &explained["rule"]["name"]), (0, &"allow".into(), &"p/web".into()));
    let explained: serde_json::Value = serde_json::from_str(&ask("81").1).expect("JSON");
    assert_eq!(explained["action"], "deny");

    fs::write(dir.path().join("q.yaml"), "name: q\nrules:\n  - allow app=a => app=b\n").expect("written");
    let (code, out, err) = run(&["policy", "check", good]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("enforcer: 1 error\n") && err.contains("/q.yaml:3:"), "{err}");
    let (code, _, err) = run(&["policy", "check", "/nonexistent.yaml"]);
    assert_eq!((code, err.as_str()), (1, "enforcer: /nonexistent.yaml: cannot read it: no such file or directory\n"));
}

#[test]
fn a_reader_that_hangs_up_ends_the_output_quietly() {
    let mut child = enforcer(&["reasons"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    drop(child.stdout.take());
    let (code, _, err) = told(child.wait_with_output().expect("ends"));
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn doctor_exits_with_1_while_something_needed_is_missing() {
    let (code, out, _) = run(&["doctor", "--json", "--config", "/nonexistent/e.toml"]);
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &report["ok"]), (1, &false.into()));
    let (code, out, _) = run(&["doctor", "--config", "/nonexistent/e.toml"]);
    assert_eq!(code, 1);
    assert!(out.contains("configuration           MISSING  /nonexistent/e.toml: cannot read it"), "{out}");
    assert!(out.contains("\n  to do: correct it; see docs/configuration.md\n"), "{out}");
}

/// An agent that gives every command a directory with a plain `cgroup.procs` for a cgroup, and remembers what it was asked.
#[derive(Default)]
struct Agent {
    cgroup: PathBuf,
    asked: Mutex<Vec<Request>>,
}

impl Handler for Agent {
    fn handle(&self, _: Caller, request: Request) -> Answer<'_> {
        self.asked.lock().expect("lock").push(request.clone());
        let answer = match request {
            Request::Status => Ok(Response::Status(StatusView { name: "h1\u{1b}[2J".into(), ..Default::default() })),
            Request::Flows { .. } => Ok(Response::Flows(FlowsView {
                records: vec![RecordView { reason: "no_rule".into(), ..Default::default() }],
                ..Default::default()
            })),
            Request::Forget { .. } => Ok(Response::Forgotten(2)),
            Request::PuAdd { tags, .. } if tags.contains(&("huge".into(), "yes".into())) => Err(AdminError::new(
                ErrorKind::Invalid,
                "the profile is too large for one packet; its largest tag is `huge`",
            )),
            Request::PuAdd { .. } => {
                Ok(Response::PuAdded { id: "pu-7".into(), name: "seven".into(), cgroup: Some(self.cgroup.clone()) })
            }
            Request::PuRelease { .. } | Request::PuRemove { .. } => Ok(Response::Done),
            other => Err(AdminError::internal(format!("{other:?}"))),
        };
        Box::pin(std::future::ready(answer))
    }

    fn follow(&self) -> mpsc::Receiver<FollowItem> {
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let record = RecordView { verdict: "deny".into(), reason: "no_rule".into(), ..Default::default() };
            while sender.send(FollowItem::Record(Box::new(record.clone()))).await.is_ok() {}
        });
        receiver
    }
}

struct Played {
    dir: TempDir,
    socket: PathBuf,
    agent: Arc<Agent>,
    _runtime: tokio::runtime::Runtime,
}

fn play() -> Played {
    let dir = tempfile::tempdir().expect("directory");
    let (socket, cgroup) = (dir.path().join("s.sock"), dir.path().join("cgroup"));
    fs::create_dir(&cgroup).expect("directory");
    fs::write(cgroup.join("cgroup.procs"), "").expect("written");
    let agent = Arc::new(Agent { cgroup, ..Default::default() });
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let server = {
        let _inside = runtime.enter();
        Server::bind(&socket, None).expect("binds")
    };
    runtime.spawn(server.serve(agent.clone()));
    Played { dir, socket, agent, _runtime: runtime }
}

impl Played {
    fn exec(&self, options: &[&str], command: &[&str]) -> Command {
        enforcer(&[&["exec", "--socket", path(&self.socket)], options, &["--"], command].concat())
    }

    /// Starts the command and waits until it has said "ready". Signals have their default meaning, whatever the tests were
    /// started by: a shell cannot trap one that was ignored (as `nohup` does) when it began.
    fn start(&self, command: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
        let mut exec = self.exec(&[], command);
        let forget = || {
            for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
                // SAFETY: the default disposition runs no handler.
                unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only signal(2) is called, which is async-signal-safe.
        unsafe { exec.pre_exec(forget) };
        let mut child = exec.stdout(Stdio::piped()).spawn().expect("runs");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("says something");
        assert_eq!(line, "ready\n");
        (child, out)
    }
}

#[test]
fn exec_joins_the_cgroup_and_exits_with_the_commands_code() {
    let played = play();
    let (code, out, err) = told(
        played
            .exec(
                &["--tag", "app=web", "--tag", "app=api", "--name", "w"],
                &["sh", "-c", "echo $0 $1; exit 7", "a", "-b"],
            )
            .output()
            .expect("runs"),
    );
    assert_eq!((code, out.as_str(), err.as_str()), (7, "a -b\n", ""));
    // "0" stands for the writer (cgroup(7)).
    assert_eq!(fs::read_to_string(played.dir.path().join("cgroup/cgroup.procs")).expect("readable"), "0\n");
    let tags = [("app", "api"), ("app", "web")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let asked = played.agent.asked.lock().expect("lock");
    let add = Request::PuAdd {
        target: PuTarget::Command,
        name: Some("w".into()),
        namespace: None,
        tags,
        token: None,
        incomplete: false,
    };
    assert_eq!(*asked, [add, Request::PuRelease { pu: "pu-7".into() }]);
}

#[test]
fn exec_passes_standard_input_and_leaves_signals_as_they_were() {
    let played = play();
    let script = "cat; grep -E '^Sig(Blk|Ign)' /proc/self/status";
    let mut child = played.exec(&[], &["sh", "-c", script]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(b"hello\n").expect("written");
    let (code, out, _) = told(child.wait_with_output().expect("ends"));
    let direct = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).output().expect("runs");
    assert_eq!((code, out), (0, format!("hello\n{}", String::from_utf8_lossy(&direct.stdout))));
}

#[test]
fn exec_reports_death_by_signal_and_commands_that_cannot_run() {
    let played = play();
    let code = |command: &[&str]| told(played.exec(&[], command).output().expect("runs"));
    assert_eq!(code(&["sh", "-c", "kill -KILL $$"]).0, 137);
    assert_eq!(code(&["sh", "-c", "kill -TERM $$"]).0, 143);
    let (missing, _, err) = code(&["/nonexistent/command"]);
    assert_eq!(missing, 127);
    assert_eq!(err, "enforcer: cannot run \"/nonexistent/command\": no such file or directory\n");
    let (denied, _, err) = code(&["/etc/passwd"]);
    assert_eq!((denied, err.as_str()), (126, "enforcer: cannot run \"/etc/passwd\": permission denied\n"));
    let releases =
        played.agent.asked.lock().expect("lock").iter().filter(|r| matches!(r, Request::PuRelease { .. })).count();
    assert_eq!(releases, 4, "the PU is released whatever became of the command");
}

#[test]
fn exec_without_a_pu_exits_with_125_and_runs_nothing() {
    let played = play();
    let mark = played.dir.path().join("mark");
    let touch = ["touch", path(&mark)];
    let (code, _, err) = told(played.exec(&["--tag", "huge=yes"], &touch).output().expect("runs"));
    let expected = "enforcer: the profile is too large for one packet; its largest tag is `huge`\n";
    assert_eq!((code, err.as_str()), (125, expected));
    fs::remove_file(played.dir.path().join("cgroup/cgroup.procs")).expect("removed");
    let (code, _, err) = told(played.exec(&[], &touch).output().expect("runs"));
    assert_eq!(code, 125);
    assert!(err.starts_with("enforcer: cannot enter the PU's cgroup ") && err.contains("no such file"), "{err}");
    let (code, _, err) = run(&["exec", "--socket", "/nonexistent/s.sock", "--", "touch", path(&mark)]);
    assert_eq!(code, 125);
    assert!(err.starts_with("enforcer: cannot reach the agent at /nonexistent/s.sock: "), "{err}");
    assert!(!mark.exists());
}

#[test]
fn exec_forwards_signals_sent_to_it() {
    let played = play();
    let script = "for s in HUP INT QUIT TERM USR1 USR2 WINCH; do trap \"echo $s\" $s; done; trap 'exit 3' ALRM; echo ready; while :; do sleep 0.02; done";
    let (mut child, mut out) = played.start(&["sh", "-c", script]);
    let pid = Pid::from_raw(child.id() as i32);
    for (signal, name) in [
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGWINCH, "WINCH"),
    ] {
        kill(pid, signal).expect("sent");
        let mut line = String::new();
        out.read_line(&mut line).expect("answers");
        assert_eq!(line.trim(), name);
    }
    kill(pid, Signal::SIGALRM).expect("sent");
    assert_eq!(child.wait().expect("ends").code(), Some(3));
}

/// What Ctrl-C sends reaches the whole foreground group (tty(4)): a command in it has it already when `exec` gets its own,
/// and one that has left the group would not have got it without `exec` either.
#[test]
fn exec_passes_on_nothing_that_comes_from_the_terminal() {
    for (group, times) in [("", 1), ("setpgrp(0,0);", 0)] {
        let played = play();
        let program = played.dir.path().join("count.pl");
        let script = "$|=1; $SIG{INT}=sub{print qq(INT\\n)}; print qq(ready\\n); $end=time+2; sleep 1 while time<$end; print qq(done\\n)";
        fs::write(&program, format!("{group} {script}")).expect("written");
        let exec = format!("{} exec --socket {}", env!("CARGO_BIN_EXE_enforcer"), path(&played.socket));
        let line = format!("{exec} -- perl {}", path(&program));
        let mut terminal = Command::new("script");
        terminal.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = terminal.spawn().expect("script(1) of util-linux runs");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut said = String::new();
        while !said.contains("ready") {
            assert_ne!(out.read_line(&mut said).expect("says something"), 0, "{said}");
        }
        let mut keyboard = child.stdin.take().expect("piped");
        keyboard.write_all(b"\x03").expect("typed");
        while !said.contains("done") && out.read_line(&mut said).is_ok_and(|read| read > 0) {}
        drop(keyboard);
        child.wait().expect("ends");
        assert_eq!((said.matches("INT").count(), said.contains("done")), (times, true), "{said}");
    }
}

#[test]
fn exec_stops_and_continues_with_its_command() {
    let played = play();
    let (mut child, mut out) = played.start(&["sh", "-c", "echo ready; kill -STOP $$; echo again"]);
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("lives");
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while state() != Some('T') {
        assert!(Instant::now() < deadline, "does not stop with its command");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGCONT).expect("sent");
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("goes on");
    assert_eq!((rest.as_str(), child.wait().expect("ends").code()), ("again\n", Some(0)));
}

#[test]
fn answers_are_shown_without_what_steers_terminals() {
    let played = play();
    let socket = path(&played.socket);
    // Not ready is exit code 1, so that scripts can wait.
    let (code, out, _) = run(&["status", "--socket", socket]);
    assert_eq!(code, 1);
    assert!(out.starts_with("enforcer  h1\\u{1b}[2J "), "{out}");
    let (_, out, _) = run(&["flows", "--json", "--socket", socket]);
    let flows: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(flows["records"][0]["reason"], "no_rule");
    assert_eq!(
        run(&["peers", "--forget", "--socket", socket]).1,
        "2 sessions forgotten; the next contact is a first contact\n"
    );
    let (code, _, err) = run(&["policy", "show", "--socket", socket]);
    assert_eq!((code, err.as_str()), (1, "enforcer: the agent failed: Policy\n"));
}

#[test]
fn following_ends_quietly_when_its_reader_does() {
    let played = play();
    let mut child = enforcer(&["flows", "--follow", "--json", "--socket", path(&played.socket)]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a record");
    let record: serde_json::Value = serde_json::from_str(&line).expect("one object a line");
    assert_eq!(record["verdict"], "deny");
    drop(out);
    let (code, _, err) = told(child.wait_with_output().expect("ends"));
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn a_user_without_permission_is_told_whom_to_ask() {
    let played = play();
    fs::set_permissions(played.dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let ask = || as_nobody(&["status", "--socket", path(&played.socket)]);
    let Some(output) = ask() else { return };
    let (code, _, err) = told(output);
    let who = "only root and the group in `admin.group` may use it: run as root or join the group";
    assert_eq!(code, 3);
    assert_eq!(
        err,
        format!("enforcer: cannot reach the agent at {}: permission denied; {who}\n", played.socket.display())
    );
    // Even with the socket's mode spoilt, the kernel's word on who asks decides.
    fs::set_permissions(&played.socket, fs::Permissions::from_mode(0o666)).expect("mode");
    let (code, _, err) = told(ask().expect("root"));
    assert_eq!(code, 1);
    assert_eq!(err, "enforcer: user 65534 may not use this socket; run as root, or join the group in `admin.group`\n");
}

/// Runs the command as nobody; `None` where the test itself is not root.
fn as_nobody(args: &[&str]) -> Option<Output> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    // The target directory may be closed to others: a copy in a place of its own is not.
    let dir = tempfile::tempdir().expect("directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let copy = dir.path().join("enforcer");
    // By a process of its own: what another test forks meanwhile would keep the copy open for writing, and busy.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_enforcer")).arg(&copy).status().expect("cp runs");
    assert!(copied.success());
    Some(Command::new(copy).args(args).stdin(Stdio::null()).uid(65534).gid(65534).output().expect("runs"))
}
