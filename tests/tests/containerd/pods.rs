//! Pods as PUs: a real containerd, pods made through CRI.

mod cri;

use std::fs;

use anyhow::{Result, ensure};
use cri::{Cri, Pod, Sandbox};
use serde_json::Value;
use tests::{Containerd, Host, Lab, Outcome};

const POLICY: &str = "name: pods
rules:
  - call: allow app=client @k8s:namespace=shop -> app=server tcp/8000-8999
";

const SUBNET: &str = "10.98.0.0/24";
const SERVE: [&str; 4] = ["/bin/lab-tool", "serve", "--listen", "[::]:8020"];
const IDLE: [&str; 2] = ["/bin/sleep", "infinity"];

struct Stage {
    cri: Cri,
    containerd: Containerd,
    a: Host,
    _lab: Lab,
}

impl Stage {
    /// A host with a containerd and an enforcer that follows it.
    fn new(name: &str, config: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        lab.write_policy("pods.yaml", POLICY)?;
        let a = lab.host("a")?;
        let containerd = Containerd::start_for_pods(&a, SUBNET)?;
        let cri = Cri::connect(&a, &containerd)?;
        let kubelet = a.directory().join("kubelet");
        a.start_enforcer(&format!(
            "datapath.interfaces = [\"auto\"]\ncontainerd.enabled = true\ncontainerd.socket = {:?}\ncontainerd.kubelet = {kubelet:?}\n{config}",
            containerd.socket()
        ))?;
        Ok(Self { cri, containerd, a, _lab: lab })
    }

    /// A pod with one container that serves on port 8020, and its address.
    fn server(&self) -> Result<(Sandbox, String)> {
        let pod = self.cri.run_pod(&Pod::new("server", "shop", &[("app", "server")]))?;
        let container = self.cri.start_container(&pod, "main", &SERVE)?;
        self.cri.wait_for_listener(&container, 8020)?;
        let address = format!("{}:8020", self.cri.address(&pod)?);
        Ok((pod, address))
    }

    fn idle(&self, pod: &Pod) -> Result<(Sandbox, String)> {
        let pod = self.cri.run_pod(pod)?;
        let container = self.cri.start_container(&pod, "main", &IDLE)?;
        Ok((pod, container))
    }

    fn why(&self) -> String {
        let counters = self.a.counters().map(|counters| format!("{:?}", counters.refusals()));
        format!("{counters:?}\n{}", self.a.enforcer_log())
    }

    fn assert_outcome(&self, container: &str, to: &str, expected: Outcome) -> Result<()> {
        let attempt = self.cri.connect_from(container, to, &["--payload", "ping", "--timeout", "3000"])?;
        ensure!(attempt.outcome == expected, "to {to}: {attempt:?}, not {expected:?}\n{}", self.why());
        ensure!(attempt.total_micros < 900_000, "by the timer: {attempt:?}\n{}", self.why());
        Ok(())
    }
}

fn tags(pu: &Value, key: &str) -> Vec<String> {
    let values = pu["tags"][key].as_array().cloned().unwrap_or_default();
    values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

#[test]
fn a_pod_is_one_pu_for_all_its_containers() -> Result<()> {
    let stage = Stage::new("podbridge", "")?;
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
    let stage = Stage::new("podhost", "")?;
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
    let mut stage = Stage::new("podlast", "")?;
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
    let stage = Stage::new("podaccount", "containerd.namespace = \"/cluster/{namespace}\"\n")?;
    let pod = Pod::new("client", "shop", &[("app", "client"), ("@k8s:namespace", "kube-system")]);
    let volume = stage.a.directory().join("kubelet/pods").join(&pod.uid);
    let volume = volume.join("volumes/kubernetes.io~projected/kube-api-access-abcde");
    fs::create_dir_all(&volume)?;
    // {"sub":"system:serviceaccount:shop:seller"}
    fs::write(volume.join("token"), "e30.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6c2hvcDpzZWxsZXIifQ.c2ln")?;
    stage.idle(&pod)?;
    let pus = stage.a.wait_for_pus(&["shop/client"])?;
    assert_eq!(pus[0]["namespace"], "/cluster/shop");
    assert_eq!(tags(&pus[0], "@k8s:serviceaccount"), ["seller"]);
    assert_eq!(tags(&pus[0], "@k8s:namespace"), ["shop"]);
    let log = stage.a.enforcer_log();
    ensure!(log.contains("a label was left out") && log.contains("@k8s:namespace"), "{log}");
    Ok(())
}

fn ids(pus: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> = pus.iter().map(|pu| format!("{} {}", pu["id"], pu["name"])).collect();
    ids.sort();
    ids
}
