//! Kubernetes manifests against what they become: the same answer for every connection of small clusters.

mod errors;
mod random;
mod tables;
mod world;

use policy::import::{Imported, Options, import};
use policy::{Action, Identity, Moment, PolicyRule, PortRange, RuleId, evaluate};
use std::net::IpAddr;
use std::sync::Arc;
use world::{End, Labels, Pod, World, labels};

/// Where pods' addresses are in these clusters.
pub(crate) const PODS: &str = "10.244.0.0/16";

/// Ports at and around every bound the policies use.
pub(crate) const PROBES: [(&str, u16); 8] =
    [("TCP", 79), ("TCP", 80), ("TCP", 85), ("TCP", 90), ("TCP", 91), ("TCP", 8080), ("UDP", 80), ("UDP", 53)];

pub(crate) fn options() -> Options {
    Options { identity_networks: vec![PODS.parse().unwrap()], ..Options::default() }
}

/// Three namespaces, six pods, four addresses outside.
pub(crate) fn cluster() -> World {
    let pod = |namespace, name, own: &[(&'static str, &'static str)], last: u8, ports: &[_]| Pod {
        namespace,
        name,
        labels: labels(own),
        address: IpAddr::from([10, 244, 0, last]),
        ports: ports.to_vec(),
    };
    World {
        namespaces: vec![
            ("shop", labels(&[("team", "a"), ("env", "prod")])),
            ("bank", labels(&[("team", "b")])),
            ("test", Labels::new()),
        ],
        pods: vec![
            pod("shop", "web", &[("app", "web"), ("tier", "front")], 1, &[("http", "TCP", 80)]),
            pod("shop", "db", &[("app", "db")], 2, &[("http", "TCP", 8080), ("dns", "UDP", 53)]),
            pod("shop", "bare", &[], 3, &[]),
            pod("bank", "web", &[("app", "web")], 4, &[("http", "TCP", 90)]),
            pod("bank", "odd", &[("app", "odd"), ("tier", "front")], 5, &[]),
            pod("test", "web", &[("app", "web"), ("tier", "back")], 6, &[("http", "TCP", 80)]),
        ],
        outside: ["203.0.113.7", "10.1.2.3", "10.9.9.9", "2001:db8::1"].map(|text| text.parse().unwrap()).to_vec(),
        ..World::default()
    }
}

/// The rules made of a cluster's manifests.
pub(crate) fn imported(world: &World, options: &Options) -> (Imported, Vec<Arc<PolicyRule>>) {
    let manifests = world.manifests();
    let imported =
        import([("k8s.yaml", manifests.as_str())], options).unwrap_or_else(|errors| panic!("{errors}\n{manifests}"));
    let rules = policy::parse_file("policy.yaml", &imported.text)
        .unwrap_or_else(|errors| panic!("{errors}\n{}", imported.text));
    assert_eq!(rules.len(), imported.rules, "{}", imported.text);
    (imported, rules)
}

/// Looks at every connection between all ends.
pub(crate) fn assert_same(world: &World) {
    let (imported, rules) = imported(world, &options());
    let numbered: Vec<(RuleId, &PolicyRule)> = rules.iter().zip(1..).map(|(rule, id)| (RuleId(id), &**rule)).collect();
    let identities: Vec<(End, Identity)> = world.ends().map(|end| (end, identity(world, end))).collect();
    for (from, subject) in &identities {
        for (to, object) in &identities {
            if let (End::Outside(_), End::Outside(_)) = (from, to) {
                continue;
            }
            for (protocol, port) in PROBES {
                let number = if protocol == "TCP" { PortRange::TCP } else { PortRange::UDP };
                let decision = evaluate(numbered.iter().copied(), subject, object, number, port, Moment::default());
                assert_eq!(
                    decision.action == Action::Allow,
                    world.allows(*from, *to, protocol, port),
                    "{from:?} -> {to:?} {protocol}/{port}, by {:?}\n{}\n{}",
                    decision.rule,
                    world.manifests(),
                    imported.text
                );
            }
        }
    }
}

fn identity(world: &World, end: End) -> Identity {
    match end {
        End::Pod(pod) => {
            let pod = &world.pods[pod];
            let own = pod.labels.iter().map(|(key, value)| (*key, *value));
            let tags = own.chain([("@k8s:namespace", pod.namespace), ("@k8s:pod", pod.name)]);
            Identity::pu(format!("/k8s/{}", pod.namespace).parse().unwrap(), tags)
        }
        End::Outside(at) => Identity::external(world.outside[at]),
    }
}
