//! Kubernetes' own policies, imported, in force between pods.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Host, Outcome, Server, enforcer_binary};

use crate::cri::Pod;
use crate::stage::{SUBNET, Stage};

const MANIFESTS: &str = include_str!("cluster.yaml");

/// Pods by namespace and label `app`, which is also their name.
const PODS: [(&str, &str); 5] =
    [("shop", "api"), ("shop", "front"), ("shop", "other"), ("ops", "monitor"), ("ops", "db")];

/// Ports that every pod, and the world outside, serves.
const PORTS: [u16; 7] = [5432, 8080, 9000, 9001, 9002, 9003, 9100];

/// Addresses of a host without an enforcer.
const OUTSIDE: [&str; 3] = ["203.0.113.10", "203.0.113.20", "203.0.113.200"];

/// From whom, to whom, port, and the rule that decides: with `!` before it, against it.
const CASES: [(&str, &str, u16, &str); 18] = [
    // podSelector, a named port, and what is neither.
    ("shop/front", "shop/api", 8080, "k8s.shop.api/ingress-1"),
    ("shop/front", "shop/api", 9000, "!k8s-isolated/shop.default-deny.ingress_1"),
    ("shop/other", "shop/api", 8080, "!k8s-isolated/shop.default-deny.ingress_1"),
    // Default deny by policyTypes: everybody of the namespace, and one way only.
    ("shop/api", "shop/other", 8080, "!k8s-isolated/shop.default-deny.ingress_1"),
    ("shop/other", "203.0.113.20", 8080, "k8s-open/egress_2"),
    // namespaceSelector, port to endPort, and the port behind it.
    ("ops/db", "shop/api", 9000, "k8s.shop.api/ingress-2"),
    ("ops/db", "shop/api", 9001, "k8s.shop.api/ingress-2"),
    ("ops/db", "shop/api", 8080, "!k8s-isolated/shop.default-deny.ingress_1"),
    // The Admin tier before NetworkPolicies, whichever way; its own rules in their order.
    ("ops/db", "shop/api", 9002, "!k8s-admin.operations/ingress-2.closed"),
    ("ops/monitor", "shop/other", 9100, "k8s-admin.operations/ingress-1.monitor"),
    ("ops/db", "shop/other", 9100, "!k8s-admin.operations/ingress-2.closed"),
    // ipBlock with an exception, both ways.
    ("shop/front", "203.0.113.10", 8080, "k8s.shop.front/egress-2"),
    ("shop/front", "203.0.113.20", 8080, "!k8s-isolated/shop.front.egress_2"),
    ("203.0.113.10", "shop/api", 8080, "k8s.shop.api/ingress-3"),
    ("203.0.113.200", "shop/api", 8080, "!k8s-isolated/shop.default-deny.ingress_2"),
    // Closed on the way out: NetworkPolicy speaks for the caller too.
    ("shop/front", "ops/monitor", 5432, "!k8s-isolated/shop.front.egress_1"),
    // The Baseline tier, and what no policy speaks of.
    ("shop/other", "ops/db", 5432, "!k8s-baseline.apart/ingress-1.shop"),
    ("ops/monitor", "ops/db", 5432, "k8s-open/ingress_1"),
];

struct Cluster {
    stage: Stage,
    outside: Host,
    _server: Server,
    /// Name, container and address.
    pods: Vec<(String, String, String)>,
}

impl Cluster {
    fn new() -> Result<Self> {
        let stage = Stage::new("podpolicy", "name: none\nrules: []\n", "namespace = \"/k8s/{namespace}\"\n")?;
        let outside = stage.lab.host("b")?;
        for address in OUTSIDE {
            outside.exec(&["ip", "addr", "add", &format!("{address}/32"), "dev", "lo"])?.ok()?;
        }
        outside.exec(&["ip", "route", "add", SUBNET, "via", &stage.a.v4().to_string()])?.ok()?;
        stage.a.exec(&["ip", "route", "add", "203.0.113.0/24", "via", &outside.v4().to_string()])?.ok()?;
        let listen: Vec<String> = PORTS.iter().flat_map(|port| ["--listen".into(), format!("[::]:{port}")]).collect();
        let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
        let mut pods = Vec::new();
        for (namespace, app) in PODS {
            let pod = stage.cri.run_pod(&Pod::new(app, namespace, &[("app", app)]))?;
            let serve = [&["/bin/lab-tool", "serve", "--quiet"], listen.as_slice()].concat();
            let container = stage.cri.start_container(&pod, "main", &serve)?;
            pods.push((format!("{namespace}/{app}"), container, stage.cri.address(&pod)?));
        }
        for (_, container, _) in &pods {
            stage.cri.wait_for_listener(container, PORTS[PORTS.len() - 1])?;
        }
        let names: Vec<&str> = pods.iter().map(|(name, ..)| name.as_str()).collect();
        stage.a.wait_for_pus(&names)?;
        let server = outside.serve(&listen)?;
        Ok(Self { stage, outside, _server: server, pods })
    }

    /// Puts manifests in force as an operator does.
    fn apply(&self, manifests: &str) -> Result<Value> {
        let file = |name: &str| self.stage.lab.directory().join(name).to_string_lossy().into_owned();
        let (from, to) = (file("cluster.yaml"), file("imported.yaml"));
        std::fs::write(&from, manifests)?;
        let binary = enforcer_binary()?.to_string_lossy().into_owned();
        let import = [&binary, "policy", "import", &from, "--out", &to, "--json"];
        let told: Value = self.stage.a.exec(&import)?.json()?;
        self.stage.a.enforcer(&["policy", "apply", "--prune", &to])?.ok()?;
        Ok(told)
    }

    fn pod(&self, name: &str) -> Option<&(String, String, String)> {
        self.pods.iter().find(|pod| pod.0 == name)
    }

    fn connect(&self, from: &str, to: &str, port: u16) -> Result<Outcome> {
        let address = self.pod(to).map_or(to, |pod| pod.2.as_str());
        let to = format!("{address}:{port}");
        let talk = ["--payload", "ping", "--timeout", "3000"];
        Ok(match self.pod(from) {
            Some((_, container, _)) => self.stage.cri.connect_from(container, &to, &talk)?.outcome,
            None => self.outside.connect(&to, &[&["--from", &format!("{from}:0")], &talk[..]].concat())?.outcome,
        })
    }

    /// The enforcer's records of such a connection.
    fn records(&self, from: &str, to: &str, port: u16) -> Vec<Value> {
        let text = std::fs::read_to_string(self.stage.a.flow_records()).unwrap_or_default();
        let is = |name: &str, end: &Value| match self.pod(name) {
            Some(_) => end["pu"] == format!("host-a/{name}"),
            None => end["address"] == name,
        };
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of = |record: &Value| {
            record["port"] == port && record["proto"] == "tcp" && is(from, &record["from"]) && is(to, &record["to"])
        };
        records.filter(of).collect()
    }

    /// Waits for a record that names this rule and reason at the end that judged; it comes a moment after the fact.
    fn assert_recorded(&self, (from, to, port): (&str, &str, u16), expected: (&str, &str, &str)) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let records = self.records(from, to, port);
            let own = records.iter().filter(|record| record["peer_reason"] != true);
            let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
            let said: BTreeSet<_> =
                own.map(|record| ["verdict", "rule", "reason"].map(|key| text(record, key))).collect();
            let (verdict, rule, reason) = expected;
            if said == BTreeSet::from([[verdict, rule, reason].map(str::to_owned)]) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{said:?}, not {expected:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn imported_policies_hold_between_real_pods() -> Result<()> {
    let cluster = Cluster::new()?;
    let told = cluster.apply(MANIFESTS)?;
    ensure!(told["notes"] == serde_json::json!([]), "{told}");
    for (from, to, port, rule) in CASES {
        let denied = rule.starts_with('!');
        let context = || format!("{from} to {to}:{port}\n{}", told["policy"].as_str().unwrap_or_default());
        let outcome = cluster.connect(from, to, port).with_context(context)?;
        let expected = match (denied, cluster.pod(from)) {
            (false, _) => Outcome::Ok,
            (true, Some(_)) => Outcome::Refused,
            // `strangers = "drop"`
            (true, None) => Outcome::Timeout,
        };
        ensure!(outcome == expected, "{}: {outcome:?}\n{}", context(), cluster.stage.why());
    }
    for (from, to, port, rule) in CASES {
        let expected = rule.strip_prefix('!').map_or(("allow", rule, "allowed"), |rule| ("deny", rule, "deny_rule"));
        cluster.assert_recorded((from, to, port), expected).with_context(|| format!("{from} to {to}:{port}"))?;
    }
    Ok(())
}
