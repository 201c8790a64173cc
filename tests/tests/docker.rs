//! Docker containers as PUs: a real dockerd, real containers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{AGENT_TIMEOUT, Attempt, Container, Counters, Docker, Host, IMAGE, Lab, Outcome, Proc};

const POLICY: &str = "name: tiers
rules:
  - call: allow app=client -> app=server tcp/8000-8999
";

const ON_ONE: [&str; 2] = ["--network", "one"];

struct Stage {
    docker: Docker,
    a: Host,
    b: Host,
    lab: Lab,
}

impl Stage {
    /// Host `a` with a dockerd, an enforcer that follows it and the network `one`; host `b` with an enforcer.
    fn new(name: &str) -> Result<Self> {
        Self::with(name, "")
    }

    fn with(name: &str, config: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("tiers.yaml", POLICY)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let docker = Docker::start(&a)?;
        docker.network("one", "10.99.0.0/24", &[&b])?;
        a.start_enforcer(&format!("datapath.interfaces = [\"auto\"]\n{config}{}", docker.enforcer_config()))?;
        Ok(Self { docker, a, b, lab })
    }

    fn labelled(&self, name: &str, app: &str) -> Result<Container> {
        self.docker.idle(name, &[&ON_ONE[..], &["--label", &format!("app={app}")]].concat())
    }

    /// A server on port 8020, and its address.
    fn server(&self) -> Result<(Container, String)> {
        let options = [&ON_ONE[..], &["--label", "app=server"]].concat();
        let server = self.docker.serve("server", &options, &["--listen", "[::]:8020"])?;
        let address = format!("{}:8020", server.address(&self.docker, "one")?);
        Ok((server, address))
    }

    /// What a message needs to be understood.
    fn why(&self) -> String {
        let counters = self.a.counters().map(|counters| format!("{:?}", counters.refusals()));
        format!("{counters:?}\n{}", self.a.enforcer_log())
    }
}

fn assert_allowed(stage: &Stage, from: &Container, to: &str) -> Result<()> {
    let attempt = from.connect(to, &["--payload", "ping", "--timeout", "5000"])?;
    let said = (attempt.outcome, attempt.reply.as_str());
    ensure!(said == (Outcome::Ok, "ping"), "{} to {to}: {attempt:?}\n{}", from.name, stage.why());
    ensure!(attempt.total_micros < 900_000, "by the timer: {attempt:?}\n{}", stage.why());
    Ok(())
}

fn assert_refused(stage: &Stage, from: &Container, to: &str) -> Result<()> {
    let attempt = from.connect(to, &["--timeout", "3000"])?;
    ensure!(attempt.outcome == Outcome::Refused, "{} to {to}: {attempt:?}\n{}", from.name, stage.why());
    Ok(())
}

fn tags(pu: &Value, key: &str) -> Vec<String> {
    let values = pu["tags"][key].as_array().cloned().unwrap_or_default();
    values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

/// Every tag as `key=value source`.
fn all_tags(pu: &Value) -> Vec<String> {
    let all = pu["all_tags"].as_array().cloned().unwrap_or_default();
    let word = |tag: &Value, field: &str| tag[field].as_str().unwrap_or_default().to_owned();
    let sources = |tag: &Value| {
        tag["sources"]
            .as_array()
            .map_or_else(String::new, |all| all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("+"))
    };
    all.iter().map(|tag| format!("{}={} {}", word(tag, "key"), word(tag, "value"), sources(tag))).collect()
}

#[test]
fn labels_decide_between_containers_on_a_bridge() -> Result<()> {
    let stage = Stage::new("dkbridge")?;
    let (_server, to) = stage.server()?;
    let client = stage.labelled("client", "client")?;
    let other = stage.labelled("other", "other")?;
    for _ in 0..2 {
        assert_allowed(&stage, &client, &to)?;
        assert_refused(&stage, &other, &to)?;
    }
    let pus = stage.a.wait_for_pus(&["server", "client", "other"])?;
    let pu = pus.iter().find(|pu| pu["name"] == "client").expect("waited for it");
    assert_eq!(tags(pu, "app"), ["client"]);
    let refused = |record: &tests::Record| record.proto == "tcp" && record.pu == "other" && record.verdict == "deny";
    let reasons: Vec<String> = stage.a.records()?.into_iter().filter(refused).map(|record| record.reason).collect();
    ensure!(!reasons.is_empty() && reasons.iter().all(|reason| reason == "no_rule"), "{reasons:?}");
    Ok(())
}

#[test]
fn a_container_is_a_pu_before_its_first_packet() -> Result<()> {
    let stage = Stage::new("dkfirst")?;
    // Whoever is unmanaged reaches what is unmanaged: only a PU is refused there.
    let open = stage.b.serve(&["--listen", "[::]:8020"])?;
    let (server, allowed) = stage.server()?;
    let run = |name: &str, app: &str, to: &str| -> Result<tests::Attempt> {
        let label = format!("app={app}");
        let line = ["run", "--rm", "--name", name, "--network", "one", "--label", &label, IMAGE, "lab-tool", "connect"];
        let line = [&line[..], &[to, "--payload", "ping", "--timeout", "5000"]].concat();
        let said: Value = stage.docker.docker(&line)?.json()?;
        Ok(serde_json::from_value(said["attempts"][0].clone())?)
    };
    for round in 0..5 {
        let attempt = run(&format!("good{round}"), "client", &allowed)?;
        ensure!(attempt.outcome == Outcome::Ok, "round {round}: {attempt:?}\n{}", stage.why());
        let attempt = run(&format!("bad{round}"), "other", &allowed)?;
        ensure!(attempt.outcome == Outcome::Refused, "round {round}: {attempt:?}\n{}", stage.why());
        let attempt = run(&format!("out{round}"), "other", &stage.b.socket_v4(8020))?;
        ensure!(attempt.outcome != Outcome::Ok, "round {round}: {attempt:?}\n{}", stage.why());
    }
    assert_eq!(open.accepted()?, 0, "the first packet of a container was nobody's");
    let log = stage.docker.docker(&["logs", &server.name])?.stdout;
    assert_eq!(log.matches("\"accept\"").count(), 5);
    stage.a.wait_for_pus(&["server"])?;
    Ok(())
}

#[test]
fn attributes_are_tags_and_labels_cannot_pose_as_them() -> Result<()> {
    let stage = Stage::new("dktags")?;
    let label = ["--label", "app=web", "--label", "@container:image=bank:1", "--label", "empty="];
    let container = stage.docker.idle("web", &[&ON_ONE[..], &label].concat())?;
    let pus = stage.a.wait_for_pus(&["web"])?;
    let image = stage.docker.inspect(IMAGE)?["Id"].as_str().unwrap_or_default().to_owned();
    let all = all_tags(&pus[0]);
    for tag in [
        format!("@container:id={}", container.id),
        format!("@container:digest={image}"),
        format!("@container:image={IMAGE}"),
        "@container:name=web".into(),
        "@container:network=one".into(),
        "@container:runtime=docker".into(),
        "app=web".into(),
    ] {
        ensure!(all.contains(&format!("{tag} container")), "{tag} is not in {all:?}");
    }
    ensure!(!all.iter().any(|tag| tag.contains("bank:1")), "{all:?}");
    assert_eq!(tags(&pus[0], "app"), ["web"]);
    let log = stage.a.enforcer_log();
    ensure!(log.contains("a label was left out") && log.contains("@container:image"), "{log}");
    let left_out =
        || Ok::<_, anyhow::Error>(stage.a.counters()?.get(r#"enforcer_tags_left_out_total{source="container"}"#));
    assert_eq!(left_out()?, 1);

    stage.docker.docker(&["rename", "web", "shop"])?.ok()?;
    let renamed = stage.a.wait_for_pus(&["shop"])?;
    assert_eq!(renamed[0]["id"], pus[0]["id"], "the same PU under another name");
    let all = all_tags(&renamed[0]);
    let names: Vec<_> = all.iter().filter(|tag| tag.starts_with("@container:name=")).collect();
    assert_eq!(names, ["@container:name=shop container"]);
    Ok(())
}

#[test]
fn containers_on_the_hosts_network_are_pus_by_their_cgroup() -> Result<()> {
    let stage = Stage::new("dkhost")?;
    let open = stage.b.serve(&["--listen", "[::]:8020"])?;
    let (_server, to) = stage.server()?;
    let on_host =
        |name: &str, app: &str| stage.docker.idle(name, &["--network", "host", "--label", &format!("app={app}")]);
    let client = on_host("client", "client")?;
    let other = on_host("other", "other")?;
    for _ in 0..2 {
        assert_allowed(&stage, &client, &to)?;
        assert_refused(&stage, &other, &to)?;
    }
    // At its first instant, to where anything unmanaged gets.
    let unmanaged = stage.b.socket_v4(8020);
    for round in 0..3 {
        let line = ["run", "--rm", "--network", "host", "--label", "app=other", IMAGE, "lab-tool", "connect"];
        let said: Value = stage.docker.docker(&[&line[..], &[&unmanaged, "--timeout", "300"]].concat())?.json()?;
        ensure!(said["attempts"][0]["outcome"] != "ok", "round {round}: {said}\n{}", stage.why());
    }
    assert_eq!(open.accepted()?, 0);
    let shares = stage.docker.idle("shares", &["--network", "container:client", "--label", "app=other"])?;
    stage.a.wait_for_pus(&["server", "client", "other", "shares"])?;
    assert_refused(&stage, &shares, &to)?;
    Ok(())
}

/// An answer of `lab-tool connect` on a process's output.
fn attempt(stage: &Stage, process: &mut Proc) -> Result<Attempt> {
    let ended = process.wait(Duration::from_secs(30))?;
    ensure!(ended.is_some(), "it does not end: {}\n{}", process.stderr(), stage.why());
    let said: Value =
        serde_json::from_str(&process.stdout()).with_context(|| format!("{}\n{}", process.stderr(), stage.why()))?;
    Ok(serde_json::from_value(said["attempts"][0].clone())?)
}

/// Every refusal but those of multicast listeners, whose reports come and go with interfaces.
fn refusals(counters: &Counters) -> Vec<(&str, i64)> {
    counters.refusals().into_iter().filter(|(labels, _)| !labels.contains("extension_header")).collect()
}

#[test]
fn on_the_hosts_network_the_first_packet_is_the_pus_whatever_the_agent_does() -> Result<()> {
    let stage = Stage::with("dkstop", "datapath.agent_timeout = \"60s\"\ntags.wait = \"20s\"\n")?;
    let (a, b) = (&stage.a, &stage.b);
    let open = b.serve(&["--listen", "[::]:8020"])?;
    let (_server, to) = stage.server()?;
    let run = |app: &str, to: &str| {
        let label = format!("app={app}");
        let line = ["run", "--rm", "--network", "host", "--label", &label, IMAGE, "lab-tool", "connect", to];
        stage.docker.start_client(&[&line[..], &["--payload", "ping", "--timeout", "20000"]].concat())
    };
    // The agent hears of the container only after its program has called.
    let late = |app: &str, to: &str| -> Result<(Attempt, Counters)> {
        a.counters()?;
        let before = a.counters()?;
        a.signal_enforcer(Signal::SIGSTOP)?;
        let called = run(app, to).and_then(|process| {
            a.wait_for_syn(8020, Duration::from_secs(20))?;
            Ok(process)
        });
        a.signal_enforcer(Signal::SIGCONT)?;
        let attempt = attempt(&stage, &mut called?)?;
        Ok((attempt, &a.counters()? - &before))
    };
    let (allowed, counters) = late("client", &to)?;
    let said = (allowed.outcome, allowed.reply.as_str());
    ensure!(said == (Outcome::Ok, "ping"), "{allowed:?}\n{}", stage.why());
    ensure!(refusals(&counters).is_empty(), "{:?}", refusals(&counters));
    let (denied, counters) = late("other", &to)?;
    ensure!(denied.outcome == Outcome::Refused, "{denied:?}\n{}", stage.why());
    // Both ends are here.
    ensure!(counters.verdicts_in("no_rule") == 2 && refusals(&counters).len() == 1, "{:?}", refusals(&counters));
    // To where anything unmanaged gets.
    let (denied, _) = late("other", &b.socket_v4(8020))?;
    ensure!(denied.outcome != Outcome::Ok, "{denied:?}\n{}", stage.why());
    assert_eq!(open.accepted()?, 0);

    // A cgroup that is called like a container's, which dockerd does not know.
    let id = "5".repeat(64);
    let cgroup = a.cgroup().join(format!("other-engine/{id}"));
    a.counters()?;
    let before = a.counters()?;
    a.signal_enforcer(Signal::SIGSTOP)?;
    let called = std::fs::create_dir_all(&cgroup).map_err(anyhow::Error::from).and_then(|()| {
        let line = ["connect", &b.socket_v4(8020), "--payload", "ping", "--timeout", "20000"];
        let process = a.in_cgroup(&cgroup).spawn_tool(&line)?;
        a.wait_for_syn(8020, Duration::from_secs(20))?;
        Ok(process)
    });
    a.signal_enforcer(Signal::SIGCONT)?;
    let foreign = attempt(&stage, &mut called?)?;
    let said = (foreign.outcome, foreign.reply.as_str());
    ensure!(said == (Outcome::Ok, "ping"), "{foreign:?}\n{}", stage.why());
    let counters = &a.counters()? - &before;
    ensure!(refusals(&counters).is_empty(), "{:?}", refusals(&counters));
    assert_eq!(open.accepted()?, 1);
    Ok(())
}

#[test]
fn a_port_that_is_no_containers_yet_keeps_syns_waiting_both_ways() -> Result<()> {
    let stage = Stage::with("dkport", "tags.wait = \"300ms\"\n")?;
    let (a, b) = (&stage.a, &stage.b);
    let open = b.serve(&["--listen", "[::]:8020"])?;
    let guest = a.guest("late", &[])?;
    a.exec(&["ip", "link", "set", guest.interface(), "master", "br-one"])?.ok()?;
    guest.exec(&["ip", "address", "add", "10.99.0.77/24", "dev", "eth0"])?.ok()?;
    guest.exec(&["ip", "route", "replace", "default", "via", "10.99.0.1"])?.ok()?;
    let inside = guest.serve(&["--listen", "[::]:8021"])?;
    a.wait_for_pus(&[&format!("docker:?{}", guest.interface())])?;
    // It is listed a moment before its programs are at its interface.
    std::thread::sleep(Duration::from_millis(200));
    let to_it = b.connect("10.99.0.77:8021", &["--timeout", "8000"])?;
    ensure!((to_it.outcome, to_it.retransmissions) == (Outcome::Refused, 0), "{to_it:?}\n{}", stage.why());
    let from_it = guest.connect(&b.socket_v4(8020), &["--timeout", "8000"])?;
    ensure!((from_it.outcome, from_it.retransmissions) == (Outcome::Refused, 0), "{from_it:?}\n{}", stage.why());
    // The counters count what else interfaces say when they come, too.
    let records = a.records()?.into_iter().filter(|record| record.proto == "tcp" && record.verdict == "deny");
    let said: Vec<_> = records.map(|record| (record.role, record.reason, record.peer_reason)).collect();
    let refused = |role: &str| (role.to_owned(), "pu_incomplete".to_owned(), false);
    assert_eq!(said, [refused("server"), refused("client")]);
    assert_eq!((inside.accepted()?, open.accepted()?), (0, 0));
    Ok(())
}

#[test]
fn without_an_agent_what_starts_on_the_hosts_network_is_refused() -> Result<()> {
    let stage = Stage::new("dknone")?;
    let (a, b) = (&stage.a, &stage.b);
    let open = b.serve(&["--listen", "[::]:8020"])?;
    a.counters()?;
    let before = a.counters()?;
    a.signal_enforcer(Signal::SIGSTOP)?;
    let calls = |network: &str| -> Result<Attempt> {
        let line = ["run", "--rm", "--network", network, IMAGE, "lab-tool", "connect", &b.socket_v4(8020)];
        let mut process =
            stage.docker.start_client(&[&line[..], &["--payload", "ping", "--timeout", "8000"]].concat())?;
        attempt(&stage, &mut process)
    };
    let tried = (|| {
        std::thread::sleep(AGENT_TIMEOUT + Duration::from_millis(200));
        Ok::<_, anyhow::Error>((calls("host")?, calls("one")?))
    })();
    a.signal_enforcer(Signal::SIGCONT)?;
    let (refused, elsewhere) = tried?;
    ensure!((refused.outcome, refused.retransmissions) == (Outcome::Refused, 0), "{refused:?}\n{}", stage.why());
    // Its network namespace is its own: that its cgroup is stopped does not matter there.
    ensure!(elsewhere.outcome == Outcome::Ok, "{elsewhere:?}\n{}", stage.why());
    assert_eq!(open.accepted()?, 1);
    let counters = &a.counters()? - &before;
    ensure!(counters.verdicts_out("agent_down") == 1, "{:?}", refusals(&counters));
    Ok(())
}

#[test]
fn restarts_and_short_lives() -> Result<()> {
    let stage = Stage::new("dkrestart")?;
    let (_server, to) = stage.server()?;
    let client = stage.labelled("client", "client")?;
    assert_allowed(&stage, &client, &to)?;
    for _ in 0..2 {
        stage.docker.docker(&["restart", "--time", "0", "client"])?.ok()?;
        assert_allowed(&stage, &client, &to)?;
    }
    stage.a.wait_for_pus(&["server", "client"])?;
    for round in 0..3 {
        let name = format!("short{round}");
        stage.docker.docker(&["run", "--name", &name, "--network", "one", IMAGE, "true"])?.ok()?;
        stage.docker.docker(&["run", "--rm", "--network", "host", IMAGE, "true"])?.ok()?;
    }
    // One whose program is not there never starts.
    ensure!(stage.docker.docker(&["run", "--network", "one", IMAGE, "/nothing"])?.code() != 0);
    stage.a.wait_for_pus(&["server", "client"])?;
    stage.docker.docker(&["stop", "--time", "0", "client"])?.ok()?;
    stage.a.wait_for_pus(&["server"])?;
    stage.docker.docker(&["start", "client"])?.ok()?;
    assert_allowed(&stage, &client, &to)?;
    Ok(())
}

#[test]
fn further_networks_and_namespaces_that_are_shared() -> Result<()> {
    let stage = Stage::new("dknets")?;
    stage.docker.network("two", "10.97.0.0/24", &[])?;
    let (server, to) = stage.server()?;
    let client = stage.labelled("client", "client")?;
    assert_allowed(&stage, &client, &to)?;
    for container in [&server, &client] {
        stage.docker.docker(&["network", "connect", "two", &container.name])?.ok()?;
    }
    // A running container is in a network it joins at once; here is judged what happens once its interface is sorted out.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let pus = stage.a.pus()?;
        let sorted = |app| pus.iter().filter(|pu| tags(pu, "app") == [app] && pu["incomplete"] == false).count() == 2;
        if sorted("server") && sorted("client") {
            break;
        }
        ensure!(std::time::Instant::now() < deadline, "{pus:?}\n{}", stage.why());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let second = format!("{}:8020", server.address(&stage.docker, "two")?);
    assert_allowed(&stage, &client, &second)?;
    let other = stage.docker.idle("other", &["--network", "two", "--label", "app=other"])?;
    assert_refused(&stage, &other, &second)?;
    // Who joins a container's namespace is what that container is, whatever its own labels say.
    let joined = stage.docker.idle("joined", &["--network", "container:other", "--label", "app=client"])?;
    assert_refused(&stage, &joined, &second)?;
    stage.docker.docker(&["network", "disconnect", "two", "client"])?.ok()?;
    assert_allowed(&stage, &client, &to)?;
    let pus = stage.a.pus()?;
    assert_eq!(pus.iter().filter(|pu| tags(pu, "app") == ["client"]).count(), 1, "{pus:?}");
    Ok(())
}

#[test]
fn what_has_no_room_for_its_labels_is_denied() -> Result<()> {
    let stage = Stage::new("dklarge")?;
    let open = stage.b.serve(&["--listen", "[::]:8020"])?;
    let large = format!("text={}", "x".repeat(1000));
    for network in ["one", "host"] {
        let labels = ["--label", "app=client", "--label", &large, "--label", &large.replace("text", "more")];
        let container = stage.docker.idle(network, &[&["--network", network][..], &labels].concat())?;
        let attempt = container.connect(&stage.b.socket_v4(8020), &["--timeout", "500"])?;
        ensure!(attempt.outcome != Outcome::Ok, "{network}: {attempt:?}\n{}", stage.why());
    }
    assert_eq!(open.accepted()?, 0);
    let log = stage.a.enforcer_log();
    ensure!(log.matches("cannot be a PU; it is allowed nothing").count() == 2, "{log}");
    Ok(())
}

#[test]
fn three_tiers_serve_and_an_intruder_gets_nothing() -> Result<()> {
    let stage = Stage::new("dktiers")?;
    let rules = ["user -> app=web tcp/80", "web -> app=api tcp/8080", "api -> app=db tcp/6379"];
    let rules: Vec<String> = rules.iter().map(|rule| format!("  - allow app={rule}\n")).collect();
    stage.lab.write_policy("shop.yaml", &format!("name: shop\nrules:\n{}", rules.concat()))?;
    let tiers = stage.docker.three_tiers("one")?;
    let labelled = |name: &str| stage.docker.idle(name, &[&ON_ONE[..], &["--label", &format!("app={name}")]].concat());
    let (user, intruder) = (labelled("user")?, labelled("intruder")?);
    for visits in 1..=3 {
        let visited = tiers.visit(&user)?;
        ensure!(visited == Ok(visits), "visit {visits}: {visited:?}\n{}", stage.why());
    }
    ensure!(tiers.visit(&intruder)?.is_err());
    for (address, port) in tiers.addresses.iter().zip([80, 8080, 6379]) {
        assert_refused(&stage, &intruder, &format!("{address}:{port}"))?;
    }
    for (address, port) in tiers.addresses.iter().zip([80, 8080, 6379]).skip(1) {
        assert_refused(&stage, &user, &format!("{address}:{port}"))?;
    }
    Ok(())
}

#[test]
fn pus_outlive_dockerd_and_the_enforcer() -> Result<()> {
    let mut stage = Stage::new("dklast")?;
    let (_server, to) = stage.server()?;
    let client = stage.labelled("client", "client")?;
    let leaves = stage.labelled("leaves", "client")?;
    stage.labelled("stops", "client")?;
    let before = stage.a.wait_for_pus(&["server", "client", "leaves", "stops"])?;
    assert_allowed(&stage, &client, &to)?;

    let pid = leaves.pid(&stage.docker)?;
    stage.docker.stop_daemon()?;
    let attempts = stage.a.exec(&[
        "nsenter",
        &format!("--net=/proc/{pid}/ns/net"),
        &tests::lab_tool()?.to_string_lossy(),
        "connect",
        &to,
        "--payload",
        "ping",
    ])?;
    ensure!(attempts.ok()?.contains("\"ok\""), "without dockerd: {attempts:?}\n{}", stage.why());
    assert_eq!(ids(&before), ids(&stage.a.wait_for_pus(&["server", "client", "leaves", "stops"])?));
    stage.a.exec(&["kill", "-9", &pid.to_string()])?.ok()?;
    stage.docker.start_daemon()?;
    let after = stage.a.wait_for_pus(&["server", "client", "stops"])?;
    let kept: Vec<String> = ids(&before).into_iter().filter(|id| !id.contains("leaves")).collect();
    assert_eq!(ids(&after), kept, "the same PUs");
    // The new daemon is followed too.
    let new = stage.labelled("new", "client")?;
    assert_allowed(&stage, &new, &to)?;

    stage.a.stop_enforcer();
    stage.docker.docker(&["stop", "--time", "0", "stops"])?.ok()?;
    let newer = stage.labelled("newer", "client")?;
    stage.a.restart_enforcer()?;
    let after = stage.a.wait_for_pus(&["server", "client", "new", "newer"])?;
    for pu in ids(&before).iter().filter(|pu| pu.contains("server") || pu.contains("client")) {
        assert!(ids(&after).contains(pu), "{pu} is another PU now: {after:?}");
    }
    for container in [&client, &new, &newer] {
        assert_allowed(&stage, container, &to)?;
    }
    Ok(())
}

fn ids(pus: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> = pus.iter().map(|pu| format!("{} {}", pu["id"], pu["name"])).collect();
    ids.sort();
    ids
}
