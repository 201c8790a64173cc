//! Facts that others vouch for, end to end: what the cloud, an issuer, a plugin and a feed say is judged by policy, changes while
//! connections live, and is not believed from anybody else.

mod issuer;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use issuer::Issuer;
use serde_json::{Value, json};
use tests::{Host, Lab, Outcome, Proc, Workload};

/// How long a change of tags may take until it is judged at both ends.
const CHANGE: Duration = Duration::from_secs(2);

/// The changed tags of a fact may take so long until the agent has them.
const NOTICE: Duration = Duration::from_secs(3);

/// A user's token that ends after `lifetime`.
fn token(issuer: &Issuer, sub: &str, groups: &[&str], lifetime: Duration) -> Result<String> {
    let end = (UNIX_EPOCH.elapsed()? + lifetime).as_secs();
    Ok(issuer
        .token(&json!({"iss": "https://issuer.example", "aud": "enforcer", "sub": sub, "groups": groups, "exp": end})))
}

/// The tags of a PU, flat.
fn tags(host: &Host, pu: &str) -> Result<Vec<String>> {
    let answer: Value = host.enforcer_json(&["pus"])?;
    let pus = answer["pus"].as_array().context("no PUs")?;
    let found = pus.iter().find(|found| found["name"] == pu).with_context(|| format!("no PU {pu}: {answer}"))?;
    let tags: BTreeMap<String, Vec<String>> = serde_json::from_value(found["tags"].clone())?;
    Ok(tags.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}"))).collect())
}

/// Waits until a condition holds.
fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds()? {
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

/// Waits until a PU has all these tags and none whose beginning is in `not`.
fn expect_tags(host: &Host, pu: &str, has: &[&str], not: &[&str]) -> Result<()> {
    let mut last = Vec::new();
    let waited = within(NOTICE, "tags", || {
        last = tags(host, pu)?;
        let all = has.iter().all(|tag| last.iter().any(|found| found == tag));
        Ok(all && !last.iter().any(|found| not.iter().any(|start| found.starts_with(start))))
    });
    waited.with_context(|| format!("{pu} has {last:?}\n{}", host.enforcer_log()))
}

/// The sources of facts of this kind, as `status` tells of them.
fn facts(host: &Host, source: &str) -> Result<Vec<Value>> {
    let status: Value = host.enforcer_json(&["status"])?;
    let facts = status["facts"].as_array().context("no facts")?;
    Ok(facts.iter().filter(|fact| fact["source"] == source).cloned().collect())
}

fn expect_trouble(host: &Host, source: &str, words: &str) -> Result<()> {
    let mut last = Vec::new();
    let waited = within(NOTICE, "trouble in status", || {
        last = facts(host, source)?;
        Ok(last.iter().any(|fact| fact["error"].as_str().is_some_and(|error| error.contains(words))))
    });
    waited.with_context(|| format!("{last:?} lacks {words:?}"))
}

fn errors(host: &Host, source: &str, fault: &str) -> Result<i64> {
    let metric = format!("enforcer_fact_errors_total{{fault=\"{fault}\",source=\"{source}\"}}");
    Ok(host.counters()?.get(&metric))
}

/// Two hosts: a client's with this configuration, and a server's that listens on 8000.
struct Stage {
    server: tests::Server,
    a: Host,
    b: Host,
    _pu: Workload,
    _lab: Lab,
}

impl Stage {
    fn new(name: &str, policy: &str, prepare: impl FnOnce(&Host) -> Result<String>) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("facts.yaml", &format!("name: facts\nrules:\n{policy}"))?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        a.start_enforcer(&prepare(&a)?)?;
        b.start_enforcer("")?;
        let pu = b.workload("server", &["app=server"])?;
        let server = pu.serve(&["--listen", "[::]:8000"])?;
        Ok(Self { server, a, b, _pu: pu, _lab: lab })
    }

    /// Connections that stay open, silent and talking, over both families.
    fn hold(&self, client: &Workload) -> Result<Vec<Proc>> {
        let mut held = Vec::new();
        for to in [self.b.socket_v4(8000), self.b.socket_v6(8000)] {
            for ping in ["0", "10"] {
                let mut process = client.spawn_tool(&["hold", &to, "--count", "1", "--ping", ping])?;
                let ready = process.wait_for_line("READY", Duration::from_secs(5))?;
                ensure!(ready == r#"READY {"open":1,"failed":0}"#, "{to}: {ready}\n{}", self.a.enforcer_log());
                held.push(process);
            }
        }
        Ok(held)
    }

    /// All of them are reset at this end and at the other before `deadline`.
    fn expect_cut(&self, held: &mut [Proc], deadline: Instant) -> Result<()> {
        for process in &mut *held {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(process.wait(left)?.is_some(), "not cut in time: {}\n{}", process.stdout(), self.a.enforcer_log());
            ensure!(process.stdout().contains(r#""how":"reset""#), "{}", process.stdout());
        }
        within(
            deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(200),
            "cut at the server",
            || {
                let closed =
                    self.server.events()?.into_iter().filter(|event| event.event == "close" && event.how == "reset");
                Ok(closed.count() >= held.len())
            },
        )
    }

    /// What becomes of a new connection over each family.
    fn connect(&self, client: &Workload) -> Result<[Outcome; 2]> {
        let attempt = |to: String| Ok::<_, anyhow::Error>(client.connect(&to, &[])?.outcome);
        Ok([attempt(self.b.socket_v4(8000))?, attempt(self.b.socket_v6(8000))?])
    }
}

const ALLOWED: [Outcome; 2] = [Outcome::Ok; 2];
const DENIED: [Outcome; 2] = [Outcome::Refused; 2];

#[test]
fn a_session_has_what_its_token_proves_until_the_token_ends() -> Result<()> {
    let (issuer, forger) = (Issuer::new()?, Issuer::new()?);
    let stage = Stage::new("token", "  - ops: allow @user:groups=ops -> app=server tcp/8000\n", |a| {
        let web = a.web(8080)?;
        web.put("GET /keys", issuer.keys());
        let keys = web.url("/keys");
        Ok(format!("[oidc]\nissuer = 'https://issuer.example'\njwks = '{keys}'\nclock_skew = '0s'\n"))
    })?;
    let a = &stage.a;
    let file = a.directory().join("token");
    let session = |name: &str, token: &str| -> Result<Workload> {
        fs::write(&file, token)?;
        a.workload_with(name, &["--as-user-file", &file.to_string_lossy()])
    };
    let forever = Duration::from_secs(600);
    let ops = session("ops", &token(&issuer, "ann", &["ops", "dev"], forever)?)?;
    expect_tags(a, "ops", &["@user:sub=ann", "@user:groups=dev", "@user:groups=ops"], &[])?;
    assert_eq!(stage.connect(&ops)?, ALLOWED);
    let dev = session("dev", &token(&issuer, "bob", &["dev"], forever)?)?;
    assert_eq!(stage.connect(&dev)?, DENIED, "another group");

    // Whoever did not get it from the issuer gets no session.
    let refused = |args: &[&str], words: &str| -> Result<()> {
        let output = a.enforcer(&[&["exec"], args, &["--", "true"]].concat())?;
        ensure!(output.code() == 125, "{args:?}: exit code {}", output.code());
        ensure!(output.stderr.contains(words), "{:?} lacks {words:?}", output.stderr);
        Ok(())
    };
    let forged = token(&forger, "root", &["ops"], forever)?;
    refused(&["--as-user", &forged], "wrong signature")?;
    let old = token(&issuer, "ann", &["ops"], Duration::ZERO)?;
    refused(&["--as-user", &old], "expired")?;
    refused(&["--as-user", "no.token"], "no signed JSON Web Token")?;
    refused(&["--tag", "@user:groups=ops"], "@user:groups")?;
    refused(&["--as-user-file", "/nonexistent/token"], "/nonexistent/token")?;
    assert_eq!(errors(a, "oidc", "untrusted")?, 1);
    assert_eq!(errors(a, "oidc", "expired")?, 1);
    assert_eq!(errors(a, "oidc", "malformed")?, 1);

    // By the environment, of which the command does not see the token.
    let good = token(&issuer, "eve", &["ops"], forever)?;
    let script = format!(
        "ENFORCER_USER_TOKEN='{good}' exec {} exec --socket {} --name env -- sh -c 'env; sleep infinity'",
        tests::enforcer_binary()?.display(),
        a.enforcer_socket().display()
    );
    let inside = a.spawn(&["sh", "-c", &script])?;
    within(NOTICE, "a session by the environment", || Ok(inside.stdout().contains("PATH=")))?;
    expect_tags(a, "env", &["@user:sub=eve"], &[])?;
    ensure!(!inside.stdout().contains("ENFORCER_USER_TOKEN"), "{}", inside.stdout());

    // It ends with the token: live connections at both ends, and new ones.
    let lifetime = Duration::from_secs(8);
    let begun = Instant::now();
    let brief = session("brief", &token(&issuer, "ann", &["ops"], lifetime)?)?;
    let mut held = stage.hold(&brief)?;
    ensure!(begun.elapsed() < lifetime, "the machine was too slow to connect before the token ended");
    stage.expect_cut(&mut held, begun + lifetime + CHANGE)?;
    expect_tags(a, "brief", &[], &["@user:"])?;
    assert_eq!(stage.connect(&brief)?, DENIED, "after its end");
    assert_eq!(stage.connect(&ops)?, ALLOWED, "other sessions go on");

    // An agent that was away meanwhile takes them away when it is back.
    let begun = Instant::now();
    let away = session("away", &token(&issuer, "ann", &["ops"], Duration::from_secs(5))?)?;
    expect_tags(a, "away", &["@user:sub=ann"], &[])?;
    a.kill9_enforcer()?;
    std::thread::sleep(Duration::from_secs(5).saturating_sub(begun.elapsed()));
    a.restart_enforcer()?;
    expect_tags(a, "away", &[], &["@user:"])?;
    assert_eq!(stage.connect(&away)?, DENIED);
    expect_tags(a, "ops", &["@user:groups=ops"], &[])?;

    // Nobody kept a token.
    let said =
        [a.enforcer_log(), a.enforcer(&["pus", "--json"])?.stdout, a.enforcer(&["flows", "--json"])?.stdout].concat();
    for token in [&forged, &old, &good] {
        let signature = token.rsplit('.').next().unwrap_or_default();
        ensure!(!said.contains(signature), "a token was kept");
    }
    Ok(())
}

#[test]
fn a_log_in_shell_runs_as_its_user_in_a_session() -> Result<()> {
    let issuer = Issuer::new()?;
    let stage = Stage::new("login", "  - ops: allow @user:groups=ops -> app=server tcp/8000\n", |a| {
        let keys = a.directory().join("keys.json");
        fs::write(&keys, issuer.keys())?;
        Ok(format!("[oidc]\nissuer = 'https://issuer.example'\njwks = '{}'\n", keys.display()))
    })?;
    let a = &stage.a;
    let passwd = a.directory().join("passwd");
    fs::write(&passwd, "root:x:0:0::/root:/bin/sh\ntester:x:12345:12345::/tmp:/bin/sh\n")?;
    let token = token(&issuer, "ann", &["ops"], Duration::from_secs(600))?;
    // As sudo would call it, in a mount namespace in which that user exists.
    let login = |uid: &str, token: &str, says: &str| {
        let script = format!(
            "mount --bind {} /etc/passwd; echo '{says}' | SUDO_UID={uid} SUDO_USER=tester {token} {} login --socket {}",
            passwd.display(),
            tests::enforcer_binary().map(|binary| binary.display().to_string()).unwrap_or_default(),
            a.enforcer_socket().display()
        );
        a.exec(&["unshare", "-m", "sh", "-c", &script])
    };
    let lab_tool = tests::lab_tool()?;
    let connect = format!("{} connect {}", lab_tool.display(), stage.b.socket_v4(8000));
    let says = format!("id -u; id -G; echo $0 $HOME $USER session=$ENFORCER_SESSION; env; {connect}; exit 7");
    let output = login("12345", &format!("ENFORCER_USER_TOKEN={token}"), &says)?;
    assert_eq!(output.code(), 7, "the shell's own exit code: {}", output.stderr);
    for expected in ["12345\n12345\n-sh /tmp tester session=1\n", r#""outcome":"ok""#] {
        ensure!(output.stdout.contains(expected), "{:?} lacks {expected:?}", output.stdout);
    }
    for hidden in ["ENFORCER_USER_TOKEN", "SUDO_UID"] {
        ensure!(!output.stdout.contains(hidden), "{}", output.stdout);
    }
    for (uid, token, words) in [
        ("12345", String::new(), "ENFORCER_USER_TOKEN"),
        ("12345", "ENFORCER_USER_TOKEN=a.b.c".into(), "user token"),
        ("54321", format!("ENFORCER_USER_TOKEN={token}"), "SUDO_UID"),
    ] {
        let output = login(uid, &token, "echo inside")?;
        assert_eq!(output.code(), 125, "{words}");
        ensure!(output.stderr.contains(words) && !output.stdout.contains("inside"), "{}", output.stderr);
    }
    Ok(())
}

fn openssl(directory: &Path, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("openssl")
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("openssl (`cargo xtask setup` installs it)")?;
    child.stdin.take().context("stdin")?.write_all(input)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// What EC2's metadata service says, signed by the certificate of `signer` in `directory`, made if need be.
fn identity_document(directory: &Path, signer: &str, account: &str) -> Result<Vec<u8>> {
    let (pem, key) = (format!("{signer}.pem"), format!("{signer}.key"));
    if !directory.join(&pem).exists() {
        let new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=ec2"];
        openssl(directory, &[&new[..], &["-keyout", &key, "-out", &pem]].concat(), b"")?;
    }
    let document = json!({
        "accountId": account, "region": "eu-test-1", "availabilityZone": "eu-test-1a", "instanceId": "i-0123456789abcdef0",
        "instanceType": "t3.micro", "imageId": "ami-1", "architecture": "x86_64", "version": "2017-09-30",
    });
    let sign = ["cms", "-sign", "-binary", "-nodetach", "-stream", "-nocerts", "-md", "sha256", "-outform", "PEM"];
    let signed =
        openssl(directory, &[&sign[..], &["-signer", &pem, "-inkey", &key]].concat(), document.to_string().as_bytes())?;
    let text = String::from_utf8(signed)?;
    Ok(text.lines().filter(|line| !line.starts_with("-----")).collect::<Vec<_>>().join("\n").into_bytes())
}

#[test]
fn the_cloud_is_believed_only_by_its_signature() -> Result<()> {
    const DOCUMENT: &str = "GET /latest/dynamic/instance-identity/rsa2048";
    let mut made = None;
    let stage = Stage::new("cloud", "  - account: allow @cloud:account=111122223333 -> app=server tcp/8000\n", |a| {
        let certificates = a.directory().join("cloud");
        let keys = a.directory().join("keys");
        fs::create_dir(&certificates)?;
        fs::create_dir(&keys)?;
        let web = a.web(8080)?;
        web.put("PUT /latest/api/token", "TOKEN");
        web.put(DOCUMENT, identity_document(&keys, "eu-test-1", "111122223333")?);
        fs::copy(keys.join("eu-test-1.pem"), certificates.join("eu-test-1.pem"))?;
        let endpoint = web.url("");
        made = Some((web, keys));
        Ok(format!(
            "[tags]\ncarry = ['*', '@cloud:*']\n[cloud]\nprovider = 'aws'\nendpoint = '{endpoint}'\n\
             certificates = '{}'\nrenew = '1s'\ntimeout = '12s'\n",
            certificates.display()
        ))
    })?;
    let (web, keys) = made.context("not prepared")?;
    let a = &stage.a;
    let client = a.workload("client", &["app=client"])?;
    let genuine = ["@cloud:provider=aws", "@cloud:account=111122223333", "@cloud:instance=i-0123456789abcdef0"];
    expect_tags(a, "client", &genuine, &[])?;
    within(CHANGE, "allowed by its account", || Ok(stage.connect(&client)? == ALLOWED))?;
    let mut held = stage.hold(&client)?;

    // The same document, signed by somebody else: nothing is believed any more.
    let evil = identity_document(&keys, "evil", "111122223333")?;
    let before = errors(a, "cloud", "untrusted")?;
    web.put(DOCUMENT, evil);
    stage.expect_cut(&mut held, Instant::now() + NOTICE + CHANGE)?;
    expect_tags(a, "client", &[], &["@cloud:"])?;
    expect_trouble(a, "cloud", "signed by none of the configured certificates")?;
    assert!(errors(a, "cloud", "untrusted")? > before);
    assert_eq!(stage.connect(&client)?, DENIED);

    // And when it is right again, so are the tags. A PU that comes later has them too.
    web.put(DOCUMENT, identity_document(&keys, "eu-test-1", "111122223333")?);
    expect_tags(a, "client", &genuine, &[])?;
    let later = a.workload("later", &["app=client"])?;
    expect_tags(a, "later", &genuine, &[])?;
    within(CHANGE, "allowed again", || Ok(stage.connect(&later)? == ALLOWED))?;
    assert!(facts(a, "cloud")?.iter().all(|fact| fact["error"].is_null()));
    assert!(web.asked("PUT /latest/api/token") >= 3);

    // A metadata service that is silent delays nothing: neither the start nor a PU.
    let _silent = a.listen_on_loopback(8081)?;
    a.stop_enforcer();
    let config = fs::read_to_string(a.enforcer_config())?.replace("127.0.0.1:8080", "127.0.0.1:8081");
    fs::write(a.enforcer_config(), config)?;
    let begun = Instant::now();
    a.restart_enforcer()?;
    let start = begun.elapsed();
    a.workload("new", &["app=client"])?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(12), "start took {start:?}, start and PU {took:?}\n{}", a.enforcer_log());
    std::thread::sleep((start + Duration::from_secs(12)).saturating_sub(begun.elapsed()));
    expect_trouble(a, "cloud", "hop limit")?;
    expect_tags(a, "client", &["app=client"], &["@cloud:"])
}

#[test]
fn a_plugin_says_more_of_a_pu_in_plain_keys_only() -> Result<()> {
    let stage = Stage::new("plugin", "  - owner: allow owner=ops -> app=server tcp/8000\n", |a| {
        let directory = tempdir_for_all(a)?;
        let answer = |name: &str, script: &str| -> Result<String> {
            let path = directory.join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
            Ok(format!("[[plugin]]\nname = '{name}'\ncommand = ['{}']\ntimeout = '1s'\n", path.display()))
        };
        Ok([
            answer(
                "owner",
                "if grep -q '\"app\":\\[\"mine\"\\]'; then echo '{\"tags\":{\"owner\":\"ops\",\"@user:sub\":\"root\"}}'; \
                 else echo '{\"tags\":{}}'; fi",
            )?,
            answer("broken", "cat > /dev/null; echo '{\"tags\":{\"owner\":'")?,
            answer("slow", "sleep 4545")?,
        ]
        .concat())
    })?;
    let a = &stage.a;
    let mine = a.workload("mine", &["app=mine"])?;
    let other = a.workload("other", &["app=other"])?;
    expect_tags(a, "mine", &["owner=ops"], &["@user:"])?;
    within(CHANGE, "allowed by its owner", || Ok(stage.connect(&mine)? == ALLOWED))?;
    assert_eq!(stage.connect(&other)?, DENIED);
    for words in ["broken", "slow"] {
        expect_trouble(a, "plugin", words)?;
    }
    ensure!(a.enforcer_log().contains("tag `@user:sub`: keys that begin with `@`"), "{}", a.enforcer_log());
    assert!(a.counters()?.get(r#"enforcer_tags_left_out_total{source="plugin"}"#) >= 1);
    assert!(errors(a, "plugin", "untrusted")? >= 1 && errors(a, "plugin", "malformed")? >= 1);
    within(NOTICE, "the slow one is counted", || Ok(errors(a, "plugin", "unreachable")? >= 1))?;
    within(NOTICE, "nothing of it lives on", || {
        let lives = fs::read_dir("/proc")?
            .flatten()
            .any(|process| fs::read(process.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x004545\0"));
        Ok(!lives)
    })
}

/// A directory that an unprivileged plugin can be executed in.
fn tempdir_for_all(host: &Host) -> Result<std::path::PathBuf> {
    let directory = host.directory().join("plugins");
    fs::create_dir(&directory)?;
    for directory in directory.ancestors().take_while(|directory| *directory != Path::new("/")) {
        let mode = fs::metadata(directory)?.permissions().mode();
        if mode & 0o001 == 0 {
            fs::set_permissions(directory, PermissionsExt::from_mode(mode | 0o011))?;
        }
    }
    Ok(directory)
}

#[test]
fn a_feed_cuts_what_it_warns_of() -> Result<()> {
    let policy = "  - call: allow app=client -> app=server tcp/8000\n  - suspect: deny @feed:threat -> any\n";
    let mut made = None;
    let stage = Stage::new("feed", policy, |a| {
        let directory = a.directory().join("feed");
        fs::create_dir(&directory)?;
        fs::write(directory.join("a.json"), r#"{"version":1,"entries":[]}"#)?;
        let source =
            format!("[tags]\ncarry = ['*', '@feed:*', '@sys:sha256']\n[feed]\nsources = ['{}']\n", directory.display());
        made = Some(directory);
        Ok(source)
    })?;
    let directory = made.context("not prepared")?;
    let a = &stage.a;
    // A program of its own, so that the feed can tell it from others.
    let program = a.directory().join("program");
    fs::write(
        &program,
        [fs::read("/bin/sleep")?, SystemTime::now().elapsed()?.as_nanos().to_string().into()].concat(),
    )?;
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    let client = a.workload_running("client", &["app=client"], &[&program.to_string_lossy(), "infinity"])?;
    let hash = ring::digest::digest(&ring::digest::SHA256, &fs::read(&program)?);
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    expect_tags(a, "client", &[&format!("@sys:sha256={hash}")], &[])?;
    let digest = format!("sha256:{hash}");
    let mut held = stage.hold(&client)?;
    let write = |text: &str| -> Result<()> {
        let new = directory.join("new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, directory.join("a.json"))?)
    };
    let entry =
        json!({"binary": digest, "threat": ["miner"], "severity": "critical", "cve": ["CVE-2024-3094"], "score": 10});
    write(&json!({"version": 1, "entries": [entry]}).to_string())?;
    stage.expect_cut(&mut held, Instant::now() + CHANGE)?;
    let expected = ["@feed:threat=miner", "@feed:severity=critical", "@feed:cve=CVE-2024-3094", "@feed:score=10.0"];
    expect_tags(a, "client", &expected, &[])?;
    assert_eq!(stage.connect(&client)?, DENIED);
    // A broken file keeps what it said, and says so.
    write("{\"version\":1,")?;
    expect_trouble(a, "feed", "a.json")?;
    expect_tags(a, "client", &expected, &[])?;
    assert!(errors(a, "feed", "malformed")? >= 1);
    write(r#"{"version":1,"entries":[]}"#)?;
    expect_tags(a, "client", &["app=client"], &["@feed:"])?;
    within(CHANGE, "allowed again", || Ok(stage.connect(&client)? == ALLOWED))?;
    assert!(facts(a, "feed")?.iter().all(|fact| fact["error"].is_null()));
    Ok(())
}
