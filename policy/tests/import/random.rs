//! Random clusters of policies against the same oracle.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::tables::{blocks, namespace_selectors, pod_selectors, ports};
use super::world::{
    ClusterPeer, ClusterPods, ClusterPolicy, ClusterRule, NetworkPolicy, Peer, PortNumber, Protocol, Rule, Selector,
    World, labels,
};
use super::{assert_same, cluster};

fn pod_selector() -> impl Strategy<Value = Selector> {
    select(pod_selectors())
}

fn peer() -> impl Strategy<Value = Peer> {
    let namespaces = || select(namespace_selectors());
    prop_oneof![
        2 => pod_selector().prop_map(|pods| Peer::Pods { namespaces: None, pods: Some(pods) }),
        2 => (namespaces(), option::of(pod_selector()))
            .prop_map(|(namespaces, pods)| Peer::Pods { namespaces: Some(namespaces), pods }),
        // A block of one family alone would tell families of pods apart; these clusters have pods of one.
        1 => select(blocks()),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    // Names have tables of their own: most random selections have no answer for them.
    let numbers: Vec<_> = ports().into_iter().filter(|port| !matches!(port.port, PortNumber::Name(_))).collect();
    (option::of(vec(peer(), 0..3)), option::of(vec(select(numbers), 0..3)))
        .prop_map(|(peers, ports)| Rule { peers, ports })
}

fn network_policy() -> impl Strategy<Value = NetworkPolicy> {
    let types = select(vec![None, Some(vec!["Ingress"]), Some(vec!["Egress"]), Some(vec!["Ingress", "Egress"])]);
    let rules = || option::of(vec(rule(), 0..3));
    (select(vec!["shop", "bank", "test"]), pod_selector(), types, rules(), rules())
        .prop_map(|(namespace, pods, types, ingress, egress)| NetworkPolicy { namespace, pods, types, ingress, egress })
}

fn cluster_pods() -> impl Strategy<Value = ClusterPods> {
    prop_oneof![
        select(namespace_selectors()).prop_map(ClusterPods::Namespaces),
        (select(namespace_selectors()), pod_selector()).prop_map(|(n, p)| ClusterPods::Pods(n, p)),
    ]
}

fn cluster_rule(egress: bool) -> impl Strategy<Value = ClusterRule> {
    let networks = vec![vec!["0.0.0.0/0"], vec!["10.0.0.0/8", "2001:db8::/32"], vec!["203.0.113.0/24", "10.1.0.0/16"]];
    let pods = || cluster_pods().prop_map(ClusterPeer::Pods);
    let peer = match egress {
        true => prop_oneof![3 => pods(), 1 => select(networks).prop_map(ClusterPeer::Networks)].boxed(),
        false => pods().boxed(),
    };
    let protocol =
        select(vec![Protocol::Number("TCP", 80), Protocol::Range("TCP", 80, 90), Protocol::Number("UDP", 53)]);
    (select(vec!["Accept", "Deny", "Pass"]), vec(peer, 1..3), option::of(vec(protocol, 1..3)))
        .prop_map(|(action, peers, protocols)| ClusterRule { action, peers, protocols })
}

fn cluster_policy() -> impl Strategy<Value = ClusterPolicy> {
    let rules = |egress| vec(cluster_rule(egress), 0..3);
    (select(vec!["Admin", "Baseline"]), cluster_pods(), rules(false), rules(true))
        .prop_map(|(tier, subject, ingress, egress)| ClusterPolicy { tier, priority: 0, subject, ingress, egress })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_connection_is_judged_as_kubernetes_does(
        policies in vec(network_policy(), 0..4),
        mut cluster_policies in vec(cluster_policy(), 0..4),
        priorities in Just([500, 0, 1000, 3]).prop_shuffle(),
    ) {
        // Of equal priorities Kubernetes may take either, so there are none.
        for (policy, priority) in cluster_policies.iter_mut().zip(priorities) {
            policy.priority = priority;
        }
        let mut world = World { policies, cluster_policies, ..cluster() };
        if world.policies.is_empty() && world.cluster_policies.is_empty() {
            world.policies.push(NetworkPolicy {
                namespace: "shop",
                pods: Selector { labels: labels(&[("app", "web")]), ..Selector::default() },
                ..NetworkPolicy::default()
            });
        }
        assert_same(&world);
    }
}
