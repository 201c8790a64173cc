//! Docker containers as PUs: a real dockerd, real containers.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use tests::{Container, Docker, Host, IMAGE, Lab, Outcome};

const POLICY: &str = "name: tiers
rules:
  - call: allow app=client -> app=server tcp/8000-8999
";

const ON_ONE: [&str; 2] = ["--network", "one"];

struct Stage {
    docker: Docker,
    a: Host,
    b: Host,
    _lab: Lab,
}

impl Stage {
    /// Host `a` with a dockerd, an enforcer that follows it and the network `one`; host `b` with an enforcer.
    fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("tiers.yaml", POLICY)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let docker = Docker::start(&a)?;
        docker.network("one", "10.99.0.0/24", &[&b])?;
        a.start_enforcer(&format!("datapath.interfaces = [\"auto\"]\n{}", docker.enforcer_config()))?;
        Ok(Self { docker, a, b, _lab: lab })
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

    fn pus(&self) -> Result<Vec<Value>> {
        let answer: Value = self.a.enforcer_json(&["pus"])?;
        Ok(answer["pus"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until exactly these are PUs, by name.
    fn wait_for_pus(&self, names: &[&str]) -> Result<Vec<Value>> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let pus = self.pus()?;
            let mut found: Vec<&str> = pus.iter().filter_map(|pu| pu["name"].as_str()).collect();
            let mut wanted = names.to_vec();
            found.sort_unstable();
            wanted.sort_unstable();
            if found == wanted {
                return Ok(pus);
            }
            if Instant::now() > deadline {
                bail!("the PUs are {found:?}, not {wanted:?}\n{}", self.a.enforcer_log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
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
    let pus = stage.wait_for_pus(&["server", "client", "other"])?;
    let pu = pus.iter().find(|pu| pu["name"] == "client").expect("waited for it");
    assert_eq!(tags(pu, "app"), ["client"]);
    let denied = stage.a.records()?.into_iter().find(|record| record.pu == "other" && record.verdict == "deny");
    ensure!(denied.is_some_and(|record| record.reason == "no_rule"), "{:?}", stage.a.records()?);
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
    stage.wait_for_pus(&["server"])?;
    Ok(())
}
