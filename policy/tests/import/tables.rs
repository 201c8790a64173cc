//! Truth tables of everything the two kinds of policy can say, one thing at a time.

use policy::import::{Options, Unselected};

use super::world::{
    ClusterPeer, ClusterPods, ClusterPolicy, ClusterRule, NetworkPolicy, Peer, Port, PortNumber, Protocol, Rule,
    Selector, World, labels,
};
use super::{assert_same, cluster, imported, options};

/// Every operator, alone and together, on a label some pods have.
pub fn pod_selectors() -> Vec<Selector> {
    let expression = |operator, values: &[&'static str]| Selector {
        expressions: vec![("app", operator, values.to_vec())],
        ..Selector::default()
    };
    vec![
        Selector::default(),
        Selector { labels: labels(&[("app", "web")]), ..Selector::default() },
        Selector { labels: labels(&[("app", "web"), ("tier", "front")]), ..Selector::default() },
        expression("In", &["web"]),
        expression("In", &["web", "db"]),
        expression("NotIn", &["web"]),
        expression("NotIn", &["web", "odd"]),
        expression("Exists", &[]),
        expression("DoesNotExist", &[]),
        Selector {
            labels: labels(&[("app", "web")]),
            expressions: vec![("tier", "NotIn", vec!["front"]), ("app", "Exists", vec![])],
        },
        Selector {
            expressions: vec![("tier", "Exists", vec![]), ("tier", "In", vec!["back", "front"])],
            ..Selector::default()
        },
        Selector { labels: labels(&[("app", "nobody")]), ..Selector::default() },
    ]
}

/// The same on labels of namespaces, and on the name every namespace has as a label.
pub fn namespace_selectors() -> Vec<Selector> {
    let name = "kubernetes.io/metadata.name";
    let one = |key, operator, values: &[&'static str]| Selector {
        expressions: vec![(key, operator, values.to_vec())],
        ..Selector::default()
    };
    vec![
        Selector::default(),
        Selector { labels: labels(&[("team", "a")]), ..Selector::default() },
        Selector { labels: labels(&[(name, "bank")]), ..Selector::default() },
        one("team", "In", &["a", "b"]),
        one("team", "NotIn", &["a"]),
        one("team", "Exists", &[]),
        one("team", "DoesNotExist", &[]),
        one(name, "In", &["shop", "test"]),
        one(name, "NotIn", &["shop"]),
        one(name, "Exists", &[]),
        one(name, "DoesNotExist", &[]),
        Selector { labels: labels(&[(name, "shop")]), expressions: vec![("team", "NotIn", vec!["a"])] },
    ]
}

/// Blocks that hold all pods or none, and some addresses outside.
pub fn blocks() -> Vec<Peer> {
    let block = |cidr, except: &[&'static str]| Peer::Block { cidr, except: except.to_vec() };
    vec![
        block("0.0.0.0/0", &[]),
        block("0.0.0.0/0", &["10.0.0.0/8"]),
        block("0.0.0.0/0", &["10.244.0.0/16", "203.0.113.0/24"]),
        block("10.0.0.0/8", &[]),
        block("10.0.0.0/8", &["10.1.0.0/16"]),
        block("10.0.0.0/8", &["10.244.0.0/16"]),
        block("10.0.0.0/8", &["10.128.0.0/9", "10.1.2.3/32"]),
        block("10.244.0.0/16", &[]),
        block("10.1.2.3/32", &[]),
        block("203.0.113.0/24", &[]),
        block("2001:db8::/32", &[]),
        block("::/0", &["2001:db8::/64"]),
    ]
}

pub fn ports() -> Vec<Port> {
    let number = |protocol, port, end| Port { protocol, port: PortNumber::Number(port), end };
    let any = |protocol| Port { protocol, port: PortNumber::Any, end: None };
    let name = |protocol, name| Port { protocol, port: PortNumber::Name(name), end: None };
    vec![
        any(None),
        any(Some("TCP")),
        any(Some("UDP")),
        number(None, 80, None),
        number(Some("UDP"), 80, None),
        number(Some("TCP"), 80, Some(80)),
        number(Some("TCP"), 80, Some(90)),
        name(None, "http"),
        name(Some("UDP"), "dns"),
    ]
}

fn with(policies: Vec<NetworkPolicy>) -> World {
    World { policies, ..cluster() }
}

fn in_shop(pods: Selector) -> NetworkPolicy {
    NetworkPolicy { namespace: "shop", pods, ..NetworkPolicy::default() }
}

fn app(value: &'static str) -> Selector {
    Selector { labels: labels(&[("app", value)]), ..Selector::default() }
}

fn rule(peers: Vec<Peer>, ports: Vec<Port>) -> Rule {
    Rule { peers: Some(peers), ports: Some(ports) }
}

#[test]
fn who_is_selected_is_isolated_and_nobody_else() {
    for pods in pod_selectors() {
        for types in [vec!["Ingress"], vec!["Egress"], vec!["Ingress", "Egress"]] {
            assert_same(&with(vec![NetworkPolicy { types: Some(types), ..in_shop(pods.clone()) }]));
        }
    }
}

#[test]
fn peers_by_pods_and_namespaces() {
    let mut peers = Vec::new();
    for pods in pod_selectors() {
        peers.push(Peer::Pods { namespaces: None, pods: Some(pods.clone()) });
        peers.push(Peer::Pods { namespaces: Some(Selector::default()), pods: Some(pods) });
    }
    for namespaces in namespace_selectors() {
        peers.push(Peer::Pods { namespaces: Some(namespaces.clone()), pods: None });
        peers.push(Peer::Pods { namespaces: Some(namespaces), pods: Some(app("web")) });
    }
    for peer in peers {
        let rules = Some(vec![rule(vec![peer], vec![])]);
        assert_same(&with(vec![NetworkPolicy {
            types: Some(vec!["Ingress", "Egress"]),
            ingress: rules.clone(),
            egress: rules,
            ..in_shop(app("db"))
        }]));
    }
}

#[test]
fn blocks_with_exceptions() {
    for block in blocks() {
        let rules = Some(vec![rule(vec![block], vec![])]);
        assert_same(&with(vec![NetworkPolicy { ingress: rules.clone(), egress: rules, ..in_shop(app("db")) }]));
    }
    // Several blocks of one rule do not cut into each other, nor do the pods beside them.
    let all: Vec<Peer> = blocks();
    for (index, first) in all.iter().enumerate() {
        let second = all[(index + 4) % all.len()].clone();
        let peers = vec![first.clone(), Peer::Pods { namespaces: None, pods: Some(app("web")) }, second];
        assert_same(&with(vec![NetworkPolicy { ingress: Some(vec![rule(peers, vec![])]), ..in_shop(app("db")) }]));
    }
}

#[test]
fn ports_by_number_range_and_name() {
    let wanted: [Vec<Peer>; 3] = [
        vec![],
        vec![Peer::Pods { namespaces: Some(Selector::default()), pods: None }],
        vec![
            Peer::Block { cidr: "203.0.113.0/24", except: vec![] },
            Peer::Pods { namespaces: None, pods: Some(app("db")) },
        ],
    ];
    for port in ports() {
        for peers in &wanted {
            let named = matches!(port.port, PortNumber::Name(_));
            let udp = port.protocol == Some("UDP");
            // Of a name nothing is known, the importer says so; that is tested with the errors.
            let subject = if named && udp { app("db") } else { Selector::default() };
            let rules = Some(vec![rule(peers.clone(), vec![port.clone()])]);
            assert_same(&with(vec![NetworkPolicy { ingress: rules.clone(), ..in_shop(subject.clone()) }]));
            assert_same(&with(vec![NetworkPolicy { types: Some(vec!["Egress"]), egress: rules, ..in_shop(subject) }]));
        }
    }
}

#[test]
fn types_left_out_follow_the_rules() {
    let some = || Some(vec![rule(vec![Peer::Pods { namespaces: None, pods: Some(app("web")) }], vec![])]);
    for ingress in [None, Some(vec![]), some(), Some(vec![Rule::default()])] {
        for egress in [None, Some(vec![]), some(), Some(vec![Rule::default()])] {
            for types in [None, Some(vec![]), Some(vec!["Ingress"]), Some(vec!["Egress"])] {
                let (ingress, egress) = (ingress.clone(), egress.clone());
                assert_same(&with(vec![NetworkPolicy { types, ingress, egress, ..in_shop(app("db")) }]));
            }
        }
    }
}

#[test]
fn both_ends_must_agree_and_policies_add_up() {
    let to = |peers| NetworkPolicy {
        types: Some(vec!["Egress"]),
        egress: Some(vec![rule(peers, vec![])]),
        ..in_shop(app("web"))
    };
    let from = |peers, ports| NetworkPolicy { ingress: Some(vec![rule(peers, ports)]), ..in_shop(app("db")) };
    let pods = |name| vec![Peer::Pods { namespaces: None, pods: Some(app(name)) }];
    assert_same(&with(vec![to(pods("db")), from(pods("web"), vec![ports()[3].clone()])]));
    assert_same(&with(vec![to(pods("db")), from(pods("odd"), vec![])]));
    assert_same(&with(vec![to(pods("odd")), from(pods("web"), vec![])]));
    assert_same(&with(vec![
        to(pods("odd")),
        to(pods("db")),
        from(pods("web"), vec![]),
        from(vec![], vec![ports()[2].clone()]),
    ]));
}

fn cluster_policy(tier: &'static str, priority: u16, action: &'static str, peer: ClusterPeer) -> ClusterPolicy {
    let rules = vec![ClusterRule { action, peers: vec![peer], protocols: None }];
    ClusterPolicy {
        tier,
        priority,
        subject: ClusterPods::Pods(Selector::default(), app("db")),
        ingress: rules.clone(),
        egress: rules,
    }
}

#[test]
fn tiers_in_every_order() {
    let web = || ClusterPeer::Pods(ClusterPods::Pods(Selector::default(), app("web")));
    let everyone = || ClusterPeer::Pods(ClusterPods::Namespaces(Selector::default()));
    let isolating = NetworkPolicy { types: Some(vec!["Ingress", "Egress"]), ..in_shop(app("db")) };
    let allowing = NetworkPolicy {
        ingress: Some(vec![rule(vec![Peer::Pods { namespaces: None, pods: Some(app("web")) }], vec![])]),
        ..in_shop(app("db"))
    };
    for first in ["Accept", "Deny", "Pass"] {
        for second in ["Accept", "Deny", "Pass"] {
            for baseline in ["Accept", "Deny", "Pass"] {
                for policies in [vec![], vec![isolating.clone()], vec![allowing.clone()]] {
                    let cluster_policies = vec![
                        // The order of the files says nothing.
                        cluster_policy("Admin", 7, second, everyone()),
                        cluster_policy("Baseline", 0, baseline, everyone()),
                        cluster_policy("Admin", 3, first, web()),
                        cluster_policy("Baseline", 1000, "Deny", everyone()),
                    ];
                    assert_same(&World { policies, cluster_policies, ..cluster() });
                }
            }
        }
    }
}

#[test]
fn cluster_policies_by_namespaces_networks_and_protocols() {
    let mut peers: Vec<ClusterPeer> = Vec::new();
    for namespaces in namespace_selectors() {
        peers.push(ClusterPeer::Pods(ClusterPods::Namespaces(namespaces.clone())));
        peers.push(ClusterPeer::Pods(ClusterPods::Pods(namespaces, app("web"))));
    }
    for peer in &peers {
        let ClusterPeer::Pods(subject) = peer.clone() else { continue };
        let mut policy = cluster_policy("Admin", 1, "Deny", peer.clone());
        assert_same(&World { cluster_policies: vec![policy.clone()], ..cluster() });
        policy.subject = subject;
        assert_same(&World { cluster_policies: vec![policy], ..cluster() });
    }
    for networks in
        [vec!["0.0.0.0/0"], vec!["10.0.0.0/8"], vec!["203.0.113.0/24", "2001:db8::/32"], vec!["10.1.0.0/16"]]
    {
        for action in ["Accept", "Deny", "Pass"] {
            let mut policy = cluster_policy("Admin", 1, action, ClusterPeer::Networks(networks.clone()));
            policy.ingress.clear();
            let fallback = ClusterPeer::Networks(vec!["0.0.0.0/0", "::/0"]);
            let mut fallback = cluster_policy("Baseline", 1, "Deny", fallback);
            fallback.ingress.clear();
            assert_same(&World { cluster_policies: vec![policy, fallback], ..cluster() });
        }
    }
    for protocol in [
        Protocol::Number("TCP", 80),
        Protocol::Number("UDP", 53),
        Protocol::Range("TCP", 80, 90),
        Protocol::Named("http"),
        Protocol::Named("dns"),
    ] {
        let mut policy = cluster_policy("Admin", 1, "Deny", peers[0].clone());
        policy.ingress[0].protocols = Some(vec![protocol.clone()]);
        policy.egress[0].protocols = Some(vec![protocol]);
        assert_same(&World { cluster_policies: vec![policy], ..cluster() });
    }
}

#[test]
fn unselected_pods_are_closed_if_asked_for() {
    let world = with(vec![in_shop(app("db"))]);
    let closed = Options { unselected: Unselected::Deny, ..options() };
    let (open, closed) = (imported(&world, &options()).0.text, imported(&world, &closed).0.text);
    let rules = closed.split_once("\n\n").map(|(_, rules)| rules).unwrap_or_default();
    assert!(!rules.is_empty() && open.contains(rules), "{open}\n{closed}");
    assert!(open.contains("- name: k8s-open") && !closed.contains(": allow"), "{closed}");
}

#[test]
fn the_policy_reads_well() {
    let policy = NetworkPolicy {
        ingress: Some(vec![rule(
            vec![
                Peer::Pods { namespaces: None, pods: Some(app("web")) },
                Peer::Block { cidr: "10.0.0.0/8", except: vec!["10.9.0.0/16", "10.244.0.0/16"] },
            ],
            vec![ports()[6].clone(), ports()[4].clone()],
        )]),
        ..in_shop(app("db"))
    };
    let (imported, _) = imported(&with(vec![policy]), &options());
    let expected = "\
# Made from Kubernetes manifests by `enforcer policy import`; changes belong there.
# Trust Profiles must carry: @k8s:namespace app

# NetworkPolicy shop/p0, k8s.yaml:20
- name: k8s.shop.p0
  namespace: /k8s
  rules:
    - ingress-1_1: allow @k8s:namespace=shop app=web -> @k8s:namespace=shop app=db tcp/80-90 udp/80 ingress
    - ingress-1_2: allow net 10.0.0.0/8 except 10.9.0.0/16,10.244.0.0/16 -> @k8s:namespace=shop app=db tcp/80-90 udp/80 ingress

# What NetworkPolicies do not allow is denied to the pods they select.
- name: k8s-isolated
  namespace: /k8s
  tier: baseline
  priority: 0
  rules:
    - shop.p0.ingress_1: deny any -> @k8s:namespace=shop app=db ingress
    - shop.p0.ingress_2: deny net 0.0.0.0/0 except 10.244.0.0/16 -> @k8s:namespace=shop app=db ingress
    - shop.p0.ingress_3: deny net ::/0 -> @k8s:namespace=shop app=db ingress

# Pods that no policy selects are open, as Kubernetes has it.
- name: k8s-open
  namespace: /k8s
  tier: baseline
  priority: 1002
  rules:
    - ingress_1: allow any -> @k8s:namespace ingress
    - ingress_2: allow net 0.0.0.0/0 except 10.244.0.0/16 -> @k8s:namespace ingress
    - ingress_3: allow net ::/0 -> @k8s:namespace ingress
    - egress_1: allow @k8s:namespace -> any egress
    - egress_2: allow @k8s:namespace -> net 0.0.0.0/0 except 10.244.0.0/16 egress
    - egress_3: allow @k8s:namespace -> net ::/0 egress
";
    assert_eq!(imported.text, expected);
    assert_eq!(imported.keys.iter().map(String::as_str).collect::<Vec<_>>(), ["@k8s:namespace", "app"]);
}
