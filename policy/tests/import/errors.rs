//! What cannot be read or said: file, line, object and field.

use policy::import::{Options, import};

use super::options;

fn errors_with(text: &str, options: &Options) -> Vec<String> {
    match import([("f.yaml", text)], options) {
        Ok(imported) => panic!("taken:\n{text}\n{}", imported.text),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// A NetworkPolicy `shop/p` with this below `spec:`.
fn network_policy(spec: &str) -> String {
    let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n";
    format!("{head}{}", indented(spec))
}

/// A ClusterNetworkPolicy `c` with this below `spec:`, after a sound beginning.
fn cluster_policy(rest: &str) -> String {
    let head =
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec:\n";
    let subject = "tier: Admin\npriority: 5\nsubject: {namespaces: {}}\n";
    format!("{head}{}{}", indented(subject), indented(rest))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[test]
fn network_policies() {
    for (spec, expected) in [
        (
            "podselector: {}",
            "5:16: NetworkPolicy shop/p: spec.podselector: unknown field: expected one of podSelector, ingress, egress, policyTypes",
        ),
        ("ingress: {}", "5:12: NetworkPolicy shop/p: spec.ingress: found a mapping: expected a list"),
        (
            "policyTypes: [Ingres]",
            "5:17: NetworkPolicy shop/p: spec.policyTypes[0]: found `Ingres`: expected Ingress or Egress",
        ),
        (
            "ingress:\n- from: [{}]",
            "6:12: NetworkPolicy shop/p: spec.ingress[0].from[0]: found no peer: expected `podSelector`, `namespaceSelector` or `ipBlock`",
        ),
        (
            "ingress:\n- to: []",
            "6:9: NetworkPolicy shop/p: spec.ingress[0].to: unknown field: expected one of ports, from",
        ),
        (
            "egress:\n- to: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]",
            "6:20: NetworkPolicy shop/p: spec.egress[0].to[0].ipBlock: found beside a selector: expected `ipBlock` alone",
        ),
        (
            "egress:\n- to: [{ipBlock: {cidr: 10.0.0.0/33}}]",
            "6:27: NetworkPolicy shop/p: spec.egress[0].to[0].ipBlock.cidr: `10.0.0.0/33` is not a CIDR: expected such as 10.0.0.0/8 or 2001:db8::/32",
        ),
        (
            "egress:\n- to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]",
            "6:48: NetworkPolicy shop/p: spec.egress[0].to[0].ipBlock.except[0]: 11.0.0.0/16 is not a part of 10.0.0.0/8: expected a prefix inside it",
        ),
        (
            "egress:\n- to: [{ipBlock: {cidr: 10.244.3.0/24}}]",
            "6:20: NetworkPolicy shop/p: spec.egress[0].to[0].ipBlock: holds a part of where peers have an identity (10.244.0.0/16), and pods are judged by their labels, not their addresses: expected a block that holds all of it or nothing of it",
        ),
        (
            "egress:\n- ports: [{port: 0}]",
            "6:19: NetworkPolicy shop/p: spec.egress[0].ports[0].port: found 0: expected a port, 1 to 65535",
        ),
        (
            "egress:\n- ports: [{port: \"80\"}]",
            "6:19: NetworkPolicy shop/p: spec.egress[0].ports[0].port: `80` is not a port's name: expected a number without quotes, or at most 15 lower-case letters, digits and `-`",
        ),
        (
            "egress:\n- ports: [{endPort: 80}]",
            "6:22: NetworkPolicy shop/p: spec.egress[0].ports[0].endPort: found without `port`: expected `port` too",
        ),
        (
            "egress:\n- ports: [{port: http, endPort: 80}]",
            "6:34: NetworkPolicy shop/p: spec.egress[0].ports[0].endPort: found with a named `port`: expected `port` to be a number",
        ),
        (
            "egress:\n- ports: [{port: 81, endPort: 80}]",
            "6:32: NetworkPolicy shop/p: spec.egress[0].ports[0].endPort: found 80, below `port` 81: expected 81 or more",
        ),
        (
            "egress:\n- ports: [{port: 80, protocol: SCTP}]",
            "6:33: NetworkPolicy shop/p: spec.egress[0].ports[0].protocol: SCTP has no ports in the policy language: leave the entry out, or the rule without ports (which then allows every protocol)",
        ),
        (
            "egress:\n- ports: [{port: 80, protocol: tcp}]",
            "6:33: NetworkPolicy shop/p: spec.egress[0].ports[0].protocol: found `tcp`: expected TCP, UDP or SCTP",
        ),
        (
            "ingress:\n- ports: [{port: http}]",
            "6:19: NetworkPolicy shop/p: spec.ingress[0].ports[0].port: no manifest among the files names a port `http` of the pods meant: expected their Pods, Deployments or the like, or a number",
        ),
        (
            "podSelector: {matchLabels: {app: yes}}",
            "5:37: NetworkPolicy shop/p: spec.podSelector.matchLabels.app: `yes` is not a text: expected \"yes\" in quotes",
        ),
        (
            "podSelector: {matchLabels: {app: a b}}",
            "5:37: NetworkPolicy shop/p: spec.podSelector.matchLabels.app: `a b` is not a label's value: expected at most 63 letters, digits, `-`, `_` and `.`, the first and last a letter or digit",
        ),
        (
            "podSelector: {matchLabels: {\"@k8s:namespace\": a}}",
            "5:51: NetworkPolicy shop/p: spec.podSelector.matchLabels.@k8s:namespace: `@k8s:namespace` is not a label's key: expected such as app.kubernetes.io/name",
        ),
        (
            "podSelector: {matchExpressions: [{key: app, operator: in, values: [a]}]}",
            "5:58: NetworkPolicy shop/p: spec.podSelector.matchExpressions[0].operator: found `in`: expected In, NotIn, Exists or DoesNotExist",
        ),
        (
            "podSelector: {matchExpressions: [{key: app, operator: In}]}",
            "5:37: NetworkPolicy shop/p: spec.podSelector.matchExpressions[0]: without `values`: expected that field",
        ),
        (
            "podSelector: {matchExpressions: [{key: app, operator: NotIn, values: []}]}",
            "5:73: NetworkPolicy shop/p: spec.podSelector.matchExpressions[0].values: found an empty list: expected at least one value",
        ),
        (
            "podSelector: {matchExpressions: [{key: app, operator: Exists, values: [a]}]}",
            "5:74: NetworkPolicy shop/p: spec.podSelector.matchExpressions[0].values: found values: expected none with Exists and DoesNotExist",
        ),
        (
            "podSelector: {}\npodSelector: {}",
            "6:4: NetworkPolicy shop/p: spec: `podSelector` is given twice: expected each key once",
        ),
        (
            "ingress:\n- from: [{namespaceSelector: {matchLabels: {team: a}}}]",
            "6:13: NetworkPolicy shop/p: spec.ingress[0].from[0]: selects namespaces by label, but those of namespace shop (of NetworkPolicy p) are unknown: expected its Namespace object among the files",
        ),
    ] {
        let expected = format!("f.yaml:{expected}");
        let found = errors_with(&network_policy(spec), &options());
        let found: Vec<String> = found.into_iter().map(|error| without_column(&error)).collect();
        assert_eq!(found, [without_column(&expected)], "{spec}");
    }
}

/// Columns are those of the value; they are tested once, below.
fn without_column(error: &str) -> String {
    let mut parts: Vec<&str> = error.splitn(4, ':').collect();
    parts.remove(2);
    parts.join(":")
}

#[test]
fn line_and_column_are_those_of_the_value() {
    let found = errors_with(&network_policy("ingress:\n- from:\n  - podSelector:\n      matchLabels: 7\n"), &options());
    assert_eq!(
        found,
        [
            "f.yaml:8:22: NetworkPolicy shop/p: spec.ingress[0].from[0].podSelector.matchLabels: found a scalar: expected a mapping"
        ]
    );
}

#[test]
fn cluster_policies() {
    let many = |item: &str| vec![item; 26].join(",");
    for (rest, expected) in [
        ("ingress: [{action: Allow, from: [{namespaces: {}}]}]", "8: ClusterNetworkPolicy c: spec.ingress[0].action: found `Allow`: expected Accept, Deny or Pass".to_owned()),
        ("ingress: [{action: Deny}]", "8: ClusterNetworkPolicy c: spec.ingress[0]: without `from`: expected that field".into()),
        ("ingress: [{action: Deny, from: []}]", "8: ClusterNetworkPolicy c: spec.ingress[0].from: found an empty list: expected at least one peer".into()),
        ("ingress: [{action: Deny, from: [{networks: [10.0.0.0/8]}]}]", "8: ClusterNetworkPolicy c: spec.ingress[0].from[0].networks: unknown field: expected one of namespaces, pods".into()),
        ("egress: [{action: Deny, to: [{namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}]}]", "8: ClusterNetworkPolicy c: spec.egress[0].to[0]: expected exactly one of namespaces, pods, nodes, networks, domainNames".into()),
        ("egress: [{action: Deny, to: [{pods: {podSelector: {}}}]}]", "8: ClusterNetworkPolicy c: spec.egress[0].to[0].pods: without `namespaceSelector`: expected that field".into()),
        ("egress: [{action: Deny, to: [{nodes: {}}]}]", "8: ClusterNetworkPolicy c: spec.egress[0].to[0].nodes: nodes are not known by their labels here: name their addresses under `networks` instead".into()),
        ("egress: [{action: Deny, to: [{domainNames: [example.org]}]}]", "8: ClusterNetworkPolicy c: spec.egress[0].to[0].domainNames: domain names can only be accepted: expected `action: Accept`".into()),
        ("egress: [{action: Accept, to: [{domainNames: [\"a.*.org\"]}]}]", "8: ClusterNetworkPolicy c: spec.egress[0].to[0].domainNames[0]: `a.*.org` is not a domain name: expected such as example.org or *.example.org".into()),
        ("egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]}]", "8: ClusterNetworkPolicy c: spec.egress[0].protocols[0].destinationNamedPort: found beside networks or domainNames, which have no named ports: expected a number".into()),
        ("egress: [{action: Deny, to: [{namespaces: {}}], protocols: []}]", "8: ClusterNetworkPolicy c: spec.egress[0].protocols: found an empty list: expected at least one protocol, or leave it out".into()),
        ("egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {}}]}]", "8: ClusterNetworkPolicy c: spec.egress[0].protocols[0].tcp: without `destinationPort`: expected that field".into()),
        ("egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {number: 1}}}]}]", "8: ClusterNetworkPolicy c: spec.egress[0].protocols[0].sctp: SCTP has no ports in the policy language: leave the entry out, or the rule without `protocols` (which then matches every protocol)".into()),
        ("egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 9}}}}]}]", "8: ClusterNetworkPolicy c: spec.egress[0].protocols[0].tcp.destinationPort.range: start 9 is not below end 9: expected a lower start".into()),
        (&format!("egress: [{{action: Deny, to: [{}]}}]", many("{namespaces: {}}")), "8: ClusterNetworkPolicy c: spec.egress[0].to: found 26 items: expected at most 25".into()),
        (&format!("ingress: [{}]", many("{action: Deny, from: [{namespaces: {}}]}")), "8: ClusterNetworkPolicy c: spec.ingress: found 26 items: expected at most 25".into()),
        (&format!("egress: [{{name: {}, action: Deny, to: [{{namespaces: {{}}}}]}}]", "x".repeat(101)), "8: ClusterNetworkPolicy c: spec.egress[0].name: is longer than 100 characters: expected a shorter name".into()),
    ] {
        let found = errors_with(&cluster_policy(rest), &options());
        let found: Vec<String> = found.into_iter().map(|error| without_column(&error)).collect();
        assert_eq!(found, [format!("f.yaml:{expected}")], "{rest}");
    }
    let text =
        cluster_policy("").replace("priority: 5", "priority: 1001").replace("metadata: {", "metadata: {namespace: x, ");
    assert_eq!(
        errors_with(&text, &options()),
        ["f.yaml:1:1: ClusterNetworkPolicy x/c: is in namespace x: expected none, it is cluster-wide"]
    );
    let text = text.replace("namespace: x, ", "");
    assert_eq!(
        errors_with(&text, &options()),
        ["f.yaml:6:13: ClusterNetworkPolicy c: spec.priority: found 1001: expected 0 to 1000"]
    );
}

#[test]
fn other_objects() {
    let policy = network_policy("podSelector: {}");
    let with = |object: &str| errors_with(&format!("{policy}---\n{object}"), &options());
    let head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: x}\n";
    assert_eq!(
        with(head),
        [
            "f.yaml:7:1: CiliumNetworkPolicy x: cilium.io/v2 CiliumNetworkPolicy is not understood: expected networking.k8s.io/v1 NetworkPolicy, policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy, Namespaces and workloads"
        ]
    );
    assert!(
        with("apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: x}\n")[0]
            .contains("is not understood")
    );
    assert_eq!(
        with(&policy),
        ["f.yaml:7:1: NetworkPolicy shop/p: stands in the files twice: expected each object once"]
    );
    assert!(with("kind: [1")[0].starts_with("f.yaml:"));
    assert_eq!(
        with("kind: Pod\nmetadata: {name: x}\n"),
        ["f.yaml:7:1: object: without `apiVersion`: expected that field"]
    );
    assert_eq!(
        with("apiVersion: v1\nkind: Namespace\nmetadata: {name: x, label: {}}\n"),
        [
            "f.yaml:9:28: Namespace: metadata.label: unknown field: expected one of name, generateName, namespace, selfLink, uid, resourceVersion, generation, creationTimestamp, deletionTimestamp, deletionGracePeriodSeconds, labels, annotations, ownerReferences, finalizers, managedFields"
        ]
    );
    assert_eq!(
        errors_with("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n", &options()),
        ["f.yaml:1:1: no NetworkPolicy and no ClusterNetworkPolicy in the files: expected at least one"]
    );
    let named = |name: &str| policy.replace("{name: p,", &format!("{{name: \"{name}\","));
    assert_eq!(
        errors_with(&named("a:b"), &options()),
        [
            "f.yaml:1:1: NetworkPolicy shop/a:b: metadata.name: `a:b` is not a name: expected lower-case letters, digits, `-` and `.`"
        ]
    );
    // What says nothing of the network is left out, and said to be.
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: []}\n";
    let imported = import([("f.yaml", format!("{policy}---\n{service}").as_str())], &options()).expect("taken");
    assert_eq!(imported.notes, ["Service s: left out, it says nothing of who may connect"]);
}

/// In the second document of the second file, at every place where it may stand.
#[test]
fn what_cannot_be_said_is_named_wherever_it_stands() {
    let sound = network_policy("podSelector: {}");
    let first_lines = sound.lines().count() + 1;
    let fails = |text: &str, line: usize, expected: &str| {
        let second = format!("{sound}---\n{text}");
        let other = sound.replace("name: p,", "name: other,");
        let errors = import([("a.yaml", other.as_str()), ("b.yaml", second.as_str())], &options()).expect_err(text);
        let found: Vec<String> = errors.iter().map(|error| without_column(&error.to_string())).collect();
        let line = first_lines + line;
        assert_eq!(found, [format!("b.yaml:{line}: {expected}")], "{text}");
    };
    let sctp = "SCTP has no ports in the policy language: leave the entry out, or the rule without ports (which then allows every protocol)";
    for (ports, at) in [
        ("[{protocol: SCTP}]", "ports[0].protocol"),
        ("[{port: 1, protocol: SCTP}]", "ports[0].protocol"),
        ("[{port: a, protocol: SCTP}]", "ports[0].protocol"),
        ("[{port: 1}, {port: 1, endPort: 9, protocol: SCTP}]", "ports[1].protocol"),
    ] {
        for (way, peers) in [("ingress", "from"), ("egress", "to")] {
            let spec = format!("{way}:\n- {peers}: []\n- {peers}: [{{podSelector: {{}}}}]\n  ports: {ports}");
            let text = network_policy(&spec).replace("name: p,", "name: q,");
            fails(&text, 8, &format!("NetworkPolicy shop/q: spec.{way}[1].{at}: {sctp}"));
        }
    }
    let sctp = "SCTP has no ports in the policy language: leave the entry out, or the rule without `protocols` (which then matches every protocol)";
    let nodes = "nodes are not known by their labels here: name their addresses under `networks` instead";
    for tier in ["Admin", "Baseline"] {
        for action in ["Accept", "Deny", "Pass"] {
            let policy = |rule: &str| cluster_policy(rule).replace("tier: Admin", &format!("tier: {tier}"));
            for (way, peers) in [("ingress", "from"), ("egress", "to")] {
                let protocols = "[{tcp: {destinationPort: {number: 1}}}, {sctp: {destinationPort: {number: 1}}}]";
                let rule = format!(
                    "{way}:\n- {{action: {action}, {peers}: [{{namespaces: {{}}}}],\n   protocols: {protocols}}}"
                );
                fails(&policy(&rule), 10, &format!("ClusterNetworkPolicy c: spec.{way}[0].protocols[1].sctp: {sctp}"));
            }
            let rule = format!(
                "egress:\n- action: {action}\n  to: [{{namespaces: {{}}}}, {{nodes: {{matchLabels: {{a: b}}}}}}]"
            );
            fails(&policy(&rule), 10, &format!("ClusterNetworkPolicy c: spec.egress[0].to[1].nodes: {nodes}"));
        }
    }
}

#[test]
fn every_fault_of_every_file_is_told_at_once() {
    let (first, second) = (network_policy("a: 1"), cluster_policy("b: 1"));
    let errors = import([("1.yaml", first.as_str()), ("2.yaml", second.as_str())], &options()).expect_err("faulty");
    let places: Vec<String> = errors.iter().map(|error| format!("{}:{}", error.file, error.line)).collect();
    assert_eq!(places, ["1.yaml:5", "2.yaml:8"]);
}

#[test]
fn where_pods_are_must_be_known_if_it_matters() {
    let block = |cidr: &str| network_policy(&format!("ingress:\n- from: [{{ipBlock: {{cidr: {cidr}}}}}]"));
    let found = errors_with(&block("10.20.0.0/16"), &Options::default());
    assert_eq!(
        found,
        [
            "f.yaml:6:22: NetworkPolicy shop/p: spec.ingress[0].from[0].ipBlock: may hold addresses of pods, or not: say where pods' addresses are, with `--identity-network CIDR`"
        ]
    );
    for told in ["0.0.0.0/0", "203.0.113.0/24", "::/0"] {
        import([("f.yaml", block(told).as_str())], &Options::default()).expect("no matter");
    }
    let both = ["10.244.0.0/16", "fd00:10::/64"].map(|net| net.parse().expect("a network")).to_vec();
    let both = Options { identity_networks: both, ..Options::default() };
    let found = errors_with(&block("0.0.0.0/0"), &both);
    assert!(found[0].contains("holds the pods' addresses of one family only"), "{found:?}");
    let either = network_policy("ingress:\n- from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: ::/0}}]");
    import([("f.yaml", either.as_str())], &both).expect("both families");
}

#[test]
fn named_ports_must_be_told_apart() {
    let pod = |name: &str, labels: &str, ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {labels}}}\nspec: {{containers: [{{ports: {ports}}}]}}\n"
        )
    };
    let policy = network_policy("podSelector: {matchLabels: {app: web}}\ningress:\n- ports: [{port: http}]");
    let http = |port: u16| format!("[{{name: http, containerPort: {port}}}]");
    let like = policy.clone() + &pod("a", "{app: web}", &http(80)) + &pod("b", "{app: web, v: two}", &http(81));
    let found = errors_with(&like, &options());
    assert_eq!(
        found,
        [
            "f.yaml:7:20: NetworkPolicy shop/p: spec.ingress[0].ports[0].port: port `http` is not the same in Pod shop/a and Pod shop/b, and labels do not tell their pods apart: expected a number, or a label of their own"
        ]
    );
    let apart =
        policy.clone() + &pod("a", "{app: web, v: one}", &http(80)) + &pod("b", "{app: web, v: two}", &http(81));
    let text = import([("f.yaml", apart.as_str())], &options()).expect("told apart").text;
    assert!(text.contains("any -> @k8s:namespace=shop app=web v=one tcp/80 ingress"), "{text}");
    assert!(text.contains("any -> @k8s:namespace=shop app=web v=two tcp/81 ingress"), "{text}");
    // All alike need no narrowing, and other pods do not matter.
    let alike = policy.clone() + &pod("a", "{app: web, v: one}", &http(80)) + &pod("b", "{app: db}", &http(81));
    let text = import([("f.yaml", alike.as_str())], &options()).expect("alike").text;
    assert!(text.contains("any -> @k8s:namespace=shop app=web tcp/80 ingress"), "{text}");
    let deployment = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: shop}\nspec:\n  template:\n    metadata: {labels: {app: web}}\n    spec: {containers: [{ports: [{name: http, containerPort: 8080, protocol: UDP}, {name: h, containerPort: 1}]}]}\n";
    let found = errors_with(&(policy.clone() + deployment), &options());
    assert!(found[0].contains("no manifest among the files names a port `http`"), "UDP is not TCP: {found:?}");
    let text =
        import([("f.yaml", (policy + &deployment.replace("UDP", "TCP")).as_str())], &options()).expect("found").text;
    assert!(text.contains("tcp/8080 ingress"), "{text}");
}

#[test]
fn nodes_may_be_let_in() {
    let policy = network_policy("podSelector: {}");
    let nodes = Options { nodes: vec!["192.168.5.0/24".parse().expect("a network")], ..options() };
    let text = import([("f.yaml", policy.as_str())], &nodes).expect("taken").text;
    assert!(text.contains("- ingress: allow net 192.168.5.0/24 -> @k8s:namespace ingress"), "{text}");
}

#[test]
fn domain_names_are_external_networks() {
    let policy = cluster_policy(
        "egress: [{action: Accept, name: \"to the world!\", to: [{domainNames: [Example.org., \"*.example.net\"]}]}]",
    );
    let text = import([("f.yaml", policy.as_str())], &options()).expect("taken").text;
    assert!(text.contains("- egress-1.to-the-world-_1: allow @k8s:namespace -> net example.org egress"), "{text}");
    assert!(text.contains("_2: allow @k8s:namespace -> net *.example.net egress"), "{text}");
    policy::parse_file("p.yaml", &text).expect("our language");
}
