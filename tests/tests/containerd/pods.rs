//! Pods as PUs: what they are, and how long they stay it.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::Outcome;

use super::cri::Pod;
use super::issuer::Issuer;
use super::stage::{IDLE, Stage};

const POLICY: &str = "name: pods
rules:
  - call: allow app=client @k8s:namespace=shop -> app=server tcp/8000-8999
";

fn tags(pu: &Value, key: &str) -> Vec<String> {
    let values = pu["tags"][key].as_array().cloned().unwrap_or_default();
    values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

#[test]
fn a_pod_is_one_pu_for_all_its_containers() -> Result<()> {
    let stage = Stage::new("podbridge", POLICY, "")?;
    let (_server, to) = stage.server()?;
    let (pod, first) = stage.idle(&Pod::new("client", "shop", &[("app", "client")]))?;
    let second = stage.cri.start_container(&pod, "sidecar", &IDLE)?;
    let (_, elsewhere) = stage.idle(&Pod::new("client", "other", &[("app", "client")]))?;
    for _ in 0..2 {
        stage.assert_outcome(&first, &to, Outcome::Ok)?;
        stage.assert_outcome(&second, &to, Outcome::Ok)?;
        stage.assert_outcome(&elsewhere, &to, Outcome::Refused)?;
    }
    let pus = stage.a.wait_for_pus(&["shop/server", "shop/client", "other/client"])?;
    let pu = pus.iter().find(|pu| pu["name"] == "shop/client").expect("waited for it");
    assert_eq!((tags(pu, "app"), tags(pu, "@k8s:namespace")), (vec!["client".into()], vec!["shop".into()]));
    assert_eq!(tags(pu, "io.kubernetes.pod.name"), [""; 0], "kubelet's own labels are told by the enforcer's tags");
    stage.cri.remove_pod(&pod)?;
    stage.a.wait_for_pus(&["shop/server", "other/client"])?;
    Ok(())
}

#[test]
fn a_pod_on_the_hosts_network_is_one_pu() -> Result<()> {
    let stage = Stage::new("podhost", POLICY, "")?;
    let (_server, to) = stage.server()?;
    let (pod, client) = stage.idle(&Pod::new("agent", "shop", &[("app", "client")]).on_host_network())?;
    let (_, other) = stage.idle(&Pod::new("other", "shop", &[("app", "other")]).on_host_network())?;
    stage.assert_outcome(&client, &to, Outcome::Ok)?;
    stage.assert_outcome(&other, &to, Outcome::Refused)?;
    // A container that comes later calls at once: its cgroup is inside the pod's.
    let connect = ["/bin/lab-tool", "connect", &to, "--payload", "ping", "--timeout", "3000"];
    let late = stage.cri.start_container(&pod, "late", &IDLE)?;
    let said = stage.cri.exec(&late, &connect)?;
    ensure!(said.stdout.contains("\"ok\""), "{said:?}\n{}", stage.why());
    let pus = stage.a.wait_for_pus(&["shop/server", "shop/agent", "shop/other"])?;
    let pu = pus.iter().find(|pu| pu["name"] == "shop/agent").expect("waited for it");
    let target = pu["target"].as_str().unwrap_or_default();
    ensure!(target.starts_with("cgroup ") && target.contains("/besteffort/pod"), "{target}");
    stage.cri.remove_pod(&pod)?;
    stage.a.wait_for_pus(&["shop/server", "shop/other"])?;
    Ok(())
}

#[test]
fn pods_outlive_the_runtime_and_the_enforcer() -> Result<()> {
    let mut stage = Stage::new("podlast", POLICY, "")?;
    let (_server, to) = stage.server()?;
    let (_, client) = stage.idle(&Pod::new("client", "shop", &[("app", "client")]))?;
    let (leaves, _) = stage.idle(&Pod::new("leaves", "shop", &[("app", "client")]))?;
    stage.assert_outcome(&client, &to, Outcome::Ok)?;
    let before = stage.a.wait_for_pus(&["shop/server", "shop/client", "shop/leaves"])?;

    stage.containerd.restart()?;
    stage.cri.reconnect(&stage.containerd)?;
    let after = stage.a.wait_for_pus(&["shop/server", "shop/client", "shop/leaves"])?;
    assert_eq!(ids(&before), ids(&after), "the same PUs");
    stage.assert_outcome(&client, &to, Outcome::Ok)?;
    // The new runtime is followed too.
    let (_, new) = stage.idle(&Pod::new("new", "shop", &[("app", "client")]))?;
    stage.assert_outcome(&new, &to, Outcome::Ok)?;

    stage.a.stop_enforcer();
    stage.cri.remove_pod(&leaves)?;
    let (_, newer) = stage.idle(&Pod::new("newer", "shop", &[("app", "client")]))?;
    stage.a.restart_enforcer()?;
    let after = stage.a.wait_for_pus(&["shop/server", "shop/client", "shop/new", "shop/newer"])?;
    let same = |name: &str| {
        let id = |pus: &[Value]| pus.iter().find(|pu| pu["name"] == name).map(|pu| pu["id"].clone());
        id(&before) == id(&after)
    };
    assert!(same("shop/server") && same("shop/client"), "{before:?}\n{after:?}");
    stage.assert_outcome(&client, &to, Outcome::Ok)?;
    stage.assert_outcome(&newer, &to, Outcome::Ok)?;
    Ok(())
}

#[test]
fn namespace_and_service_account() -> Result<()> {
    let issuer = Issuer::new()?;
    let stage = Stage::without_enforcer("podaccount", "")?;
    let keys = stage.a.directory().join("keys.json");
    fs::write(&keys, issuer.keys())?;
    let config =
        format!("namespace = \"/cluster/{{namespace}}\"\ntokens = {{ issuer = {ISSUER:?}, jwks = {keys:?} }}\n");
    stage.follow(&stage.containerd.socket(), &config)?;
    let pod = Pod::new("client", "shop", &[("app", "client"), ("@k8s:namespace", "kube-system")]);
    let thief = Pod::new("thief", "shop", &[("app", "client"), ("io.kubernetes.pod.serviceaccount", "seller")]);
    let token = token(&issuer, &pod, "seller");
    for pod in [&pod, &thief] {
        let volume = stage.a.directory().join("kubelet/pods").join(&pod.uid);
        let volume = volume.join("volumes/kubernetes.io~projected/kube-api-access-abcde");
        fs::create_dir_all(&volume)?;
        fs::write(volume.join("token"), &token)?;
        stage.idle(pod)?;
    }
    // The keys may come a moment after the pods.
    let deadline = Instant::now() + Duration::from_secs(10);
    let find = |pus: &[Value], name: &str| pus.iter().find(|pu| pu["name"] == name).cloned().unwrap_or_default();
    let pus = loop {
        let pus = stage.a.wait_for_pus(&["shop/client", "shop/thief"])?;
        if tags(&find(&pus, "shop/client"), "@k8s:serviceaccount") == ["seller"] {
            break pus;
        }
        ensure!(Instant::now() < deadline, "{pus:?}\n{}", stage.why());
    };
    let (client, thief) = (find(&pus, "shop/client"), find(&pus, "shop/thief"));
    assert_eq!(client["namespace"], "/cluster/shop");
    assert_eq!(tags(&client, "@k8s:namespace"), ["shop"]);
    assert_eq!(tags(&thief, "@k8s:serviceaccount"), [""; 0]);
    let log = stage.a.enforcer_log();
    ensure!(log.contains("a label was left out") && log.contains("@k8s:namespace"), "{log}");
    ensure!(log.contains("is bound to another pod"), "{log}");
    let refused = "enforcer_fact_errors_total{fault=\"untrusted\",source=\"serviceaccount\"}";
    assert_eq!(stage.a.counters()?.get(refused), 1);
    Ok(())
}

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The token of a pod with this service account, as an API server signs it.
fn token(issuer: &Issuer, pod: &Pod, account: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    issuer.token(&json!({
        "iss": ISSUER, "aud": [ISSUER], "iat": now, "nbf": now, "exp": now + 3607,
        "sub": format!("system:serviceaccount:{}:{account}", pod.namespace),
        "kubernetes.io": {
            "namespace": pod.namespace, "pod": {"name": pod.name, "uid": pod.uid},
            "serviceaccount": {"name": account, "uid": "1"},
        },
    }))
}

fn ids(pus: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> = pus.iter().map(|pu| format!("{} {}", pu["id"], pu["name"])).collect();
    ids.sort();
    ids
}
