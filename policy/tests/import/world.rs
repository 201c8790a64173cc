//! Clusters small enough to look at every connection, and what Kubernetes says of each: written from the API's
//! documentation alone, and sharing nothing with the importer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

pub type Labels = BTreeMap<&'static str, &'static str>;

#[derive(Clone, Debug, Default)]
pub struct World {
    pub namespaces: Vec<(&'static str, Labels)>,
    pub pods: Vec<Pod>,
    pub outside: Vec<IpAddr>,
    pub policies: Vec<NetworkPolicy>,
    pub cluster_policies: Vec<ClusterPolicy>,
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: &'static str,
    pub name: &'static str,
    pub labels: Labels,
    pub address: IpAddr,
    /// Name, protocol, number.
    pub ports: Vec<(&'static str, &'static str, u16)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    pub labels: Labels,
    /// Key, operator, values.
    pub expressions: Vec<(&'static str, &'static str, Vec<&'static str>)>,
}

#[derive(Clone, Debug, Default)]
pub struct NetworkPolicy {
    pub namespace: &'static str,
    pub pods: Selector,
    pub types: Option<Vec<&'static str>>,
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub peers: Option<Vec<Peer>>,
    pub ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug)]
pub enum Peer {
    Pods { namespaces: Option<Selector>, pods: Option<Selector> },
    Block { cidr: &'static str, except: Vec<&'static str> },
}

#[derive(Clone, Debug)]
pub struct Port {
    pub protocol: Option<&'static str>,
    pub port: PortNumber,
    pub end: Option<u16>,
}

#[derive(Clone, Debug)]
pub enum PortNumber {
    Any,
    Number(u16),
    Name(&'static str),
}

#[derive(Clone, Debug)]
pub struct ClusterPolicy {
    pub tier: &'static str,
    pub priority: u16,
    pub subject: ClusterPods,
    pub ingress: Vec<ClusterRule>,
    pub egress: Vec<ClusterRule>,
}

#[derive(Clone, Debug)]
pub enum ClusterPods {
    Namespaces(Selector),
    Pods(Selector, Selector),
}

#[derive(Clone, Debug)]
pub struct ClusterRule {
    pub action: &'static str,
    pub peers: Vec<ClusterPeer>,
    pub protocols: Option<Vec<Protocol>>,
}

#[derive(Clone, Debug)]
pub enum ClusterPeer {
    Pods(ClusterPods),
    Networks(Vec<&'static str>),
}

#[derive(Clone, Debug)]
pub enum Protocol {
    Number(&'static str, u16),
    Range(&'static str, u16, u16),
    Named(&'static str),
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Pod(usize),
    Outside(usize),
}

impl World {
    pub fn ends(&self) -> impl Iterator<Item = End> + '_ {
        (0..self.pods.len()).map(End::Pod).chain((0..self.outside.len()).map(End::Outside))
    }

    /// Whether a connection may be opened: its way out of a pod and its way into one must both be open.
    pub fn allows(&self, from: End, to: End, protocol: &str, port: u16) -> bool {
        let at = Attempt { from, to, protocol, port };
        let out = match from {
            End::Pod(pod) => self.way(&at, pod, "Egress"),
            End::Outside(_) => true,
        };
        let into = match to {
            End::Pod(pod) => self.way(&at, pod, "Ingress"),
            End::Outside(_) => true,
        };
        out && into
    }

    /// Tier after tier; what none decides is open.
    fn way(&self, at: &Attempt, pod: usize, direction: &str) -> bool {
        self.tier(at, pod, direction, "Admin")
            .or_else(|| self.namespaced(at, pod, direction))
            .or_else(|| self.tier(at, pod, direction, "Baseline"))
            .unwrap_or(true)
    }

    fn tier(&self, at: &Attempt, pod: usize, direction: &str, tier: &str) -> Option<bool> {
        let mut policies: Vec<&ClusterPolicy> =
            self.cluster_policies.iter().filter(|policy| policy.tier == tier).collect();
        policies.sort_by_key(|policy| policy.priority);
        for policy in policies {
            if !self.is_cluster_pod(&policy.subject, pod) {
                continue;
            }
            let rules = if direction == "Egress" { &policy.egress } else { &policy.ingress };
            let peer = if direction == "Egress" { at.to } else { at.from };
            for rule in rules {
                let who = rule.peers.iter().any(|wanted| match (wanted, peer) {
                    (ClusterPeer::Pods(pods), End::Pod(pod)) => self.is_cluster_pod(pods, pod),
                    (ClusterPeer::Pods(_), End::Outside(_)) => false,
                    (ClusterPeer::Networks(networks), peer) => {
                        networks.iter().any(|network| net(network).contains(&self.address(peer)))
                    }
                });
                let what = rule.protocols.as_ref().is_none_or(|protocols| {
                    protocols.iter().any(|protocol| match protocol {
                        Protocol::Number(name, port) => *name == at.protocol && *port == at.port,
                        Protocol::Range(name, low, high) => *name == at.protocol && (*low..=*high).contains(&at.port),
                        Protocol::Named(name) => {
                            self.named(at.to).any(|(n, p, number)| n == *name && p == at.protocol && number == at.port)
                        }
                    })
                });
                match rule.action {
                    _ if !who || !what => {}
                    "Accept" => return Some(true),
                    "Deny" => return Some(false),
                    _ => return None,
                }
            }
        }
        None
    }

    /// Nothing if no policy selects the pod for this direction.
    fn namespaced(&self, at: &Attempt, pod: usize, direction: &str) -> Option<bool> {
        let peer = if direction == "Egress" { at.to } else { at.from };
        let mut selected = false;
        for policy in &self.policies {
            let types = policy.types.clone().filter(|types| !types.is_empty()).unwrap_or_else(|| {
                let egress = policy.egress.as_ref().is_some_and(|rules| !rules.is_empty());
                if egress { vec!["Ingress", "Egress"] } else { vec!["Ingress"] }
            });
            let of = &self.pods[pod];
            if !types.contains(&direction) || policy.namespace != of.namespace || !policy.pods.selects(&of.labels) {
                continue;
            }
            selected = true;
            let rules = if direction == "Egress" { &policy.egress } else { &policy.ingress };
            for rule in rules.iter().flatten() {
                let peers = rule.peers.as_deref().unwrap_or_default();
                let ports = rule.ports.as_deref().unwrap_or_default();
                let who = peers.is_empty() || peers.iter().any(|wanted| self.is_peer(wanted, policy.namespace, peer));
                let what = ports.is_empty() || ports.iter().any(|port| self.is_port(port, at));
                if who && what {
                    return Some(true);
                }
            }
        }
        selected.then_some(false)
    }

    fn is_peer(&self, wanted: &Peer, own: &str, peer: End) -> bool {
        match wanted {
            Peer::Block { cidr, except } => {
                let address = self.address(peer);
                net(cidr).contains(&address) && !except.iter().any(|cut| net(cut).contains(&address))
            }
            Peer::Pods { namespaces, pods } => {
                let End::Pod(pod) = peer else { return false };
                let pod = &self.pods[pod];
                let there = match namespaces {
                    Some(selector) => selector.selects(&self.labels_of(pod.namespace)),
                    None => pod.namespace == own,
                };
                there && pods.as_ref().is_none_or(|selector| selector.selects(&pod.labels))
            }
        }
    }

    fn is_port(&self, port: &Port, at: &Attempt) -> bool {
        port.protocol.unwrap_or("TCP") == at.protocol
            && match port.port {
                PortNumber::Any => true,
                PortNumber::Number(low) => (low..=port.end.unwrap_or(low)).contains(&at.port),
                PortNumber::Name(name) => {
                    self.named(at.to).any(|(n, p, number)| n == name && p == at.protocol && number == at.port)
                }
            }
    }

    fn is_cluster_pod(&self, wanted: &ClusterPods, pod: usize) -> bool {
        let pod = &self.pods[pod];
        let labels = self.labels_of(pod.namespace);
        match wanted {
            ClusterPods::Namespaces(selector) => selector.selects(&labels),
            ClusterPods::Pods(namespaces, pods) => namespaces.selects(&labels) && pods.selects(&pod.labels),
        }
    }

    fn named(&self, end: End) -> impl Iterator<Item = (&'static str, &'static str, u16)> + '_ {
        let ports: &[_] = match end {
            End::Pod(pod) => &self.pods[pod].ports,
            End::Outside(_) => &[],
        };
        ports.iter().copied()
    }

    fn address(&self, end: End) -> IpAddr {
        match end {
            End::Pod(pod) => self.pods[pod].address,
            End::Outside(at) => self.outside[at],
        }
    }

    /// The API server labels every namespace with its name.
    fn labels_of(&self, namespace: &'static str) -> Labels {
        let own = self.namespaces.iter().find(|(name, _)| *name == namespace);
        let mut labels = own.map(|(_, labels)| labels.clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name", namespace);
        labels
    }

    /// The manifests; JSON is YAML.
    pub fn manifests(&self) -> String {
        let mut documents = Vec::new();
        for (name, labels) in &self.namespaces {
            documents
                .push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
        }
        for pod in &self.pods {
            let port = |(name, protocol, port): &(&str, &str, u16)| json!({"name": name, "protocol": protocol, "containerPort": port});
            let ports: Vec<Value> = pod.ports.iter().map(port).collect();
            documents.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
                "spec": {"containers": [{"name": "c", "image": "i", "ports": ports}]},
            }));
        }
        for (index, policy) in self.policies.iter().enumerate() {
            documents.push(policy.manifest(&format!("p{index}")));
        }
        for (index, policy) in self.cluster_policies.iter().enumerate() {
            documents.push(policy.manifest(&format!("c{index}")));
        }
        documents.iter().map(|document| format!("---\n{document}\n")).collect()
    }
}

struct Attempt<'a> {
    from: End,
    to: End,
    protocol: &'a str,
    port: u16,
}

impl Selector {
    pub fn selects(&self, labels: &Labels) -> bool {
        let equal = self.labels.iter().all(|(key, value)| labels.get(key) == Some(value));
        equal
            && self.expressions.iter().all(|(key, operator, values)| match (*operator, labels.get(key)) {
                ("In", found) => found.is_some_and(|value| values.contains(value)),
                ("NotIn", found) => !found.is_some_and(|value| values.contains(value)),
                ("Exists", found) => found.is_some(),
                (_, found) => found.is_none(),
            })
    }

    fn manifest(&self) -> Value {
        let mut selector = json!({});
        if !self.labels.is_empty() {
            selector["matchLabels"] = json!(self.labels);
        }
        if !self.expressions.is_empty() {
            let expression = |(key, operator, values): &(&str, &str, Vec<&str>)| match values.is_empty() {
                true => json!({"key": key, "operator": operator}),
                false => json!({"key": key, "operator": operator, "values": values}),
            };
            selector["matchExpressions"] = self.expressions.iter().map(expression).collect();
        }
        selector
    }
}

impl NetworkPolicy {
    fn manifest(&self, name: &str) -> Value {
        let mut spec = json!({"podSelector": self.pods.manifest()});
        if let Some(types) = &self.types {
            spec["policyTypes"] = json!(types);
        }
        for (key, peers, rules) in [("ingress", "from", &self.ingress), ("egress", "to", &self.egress)] {
            if let Some(rules) = rules {
                spec[key] = rules.iter().map(|rule| rule.manifest(peers)).collect();
            }
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
        })
    }
}

impl Rule {
    fn manifest(&self, key: &str) -> Value {
        let mut rule = json!({});
        if let Some(peers) = &self.peers {
            rule[key] = peers.iter().map(Peer::manifest).collect();
        }
        if let Some(ports) = &self.ports {
            rule["ports"] = ports.iter().map(Port::manifest).collect();
        }
        rule
    }
}

impl Peer {
    fn manifest(&self) -> Value {
        let mut peer = json!({});
        match self {
            Self::Block { cidr, except } if except.is_empty() => peer["ipBlock"] = json!({"cidr": cidr}),
            Self::Block { cidr, except } => peer["ipBlock"] = json!({"cidr": cidr, "except": except}),
            Self::Pods { namespaces, pods } => {
                if let Some(selector) = namespaces {
                    peer["namespaceSelector"] = selector.manifest();
                }
                if let Some(selector) = pods {
                    peer["podSelector"] = selector.manifest();
                }
            }
        }
        peer
    }
}

impl Port {
    fn manifest(&self) -> Value {
        let mut port = json!({});
        if let Some(protocol) = self.protocol {
            port["protocol"] = json!(protocol);
        }
        match self.port {
            PortNumber::Any => {}
            PortNumber::Number(number) => port["port"] = json!(number),
            PortNumber::Name(name) => port["port"] = json!(name),
        }
        if let Some(end) = self.end {
            port["endPort"] = json!(end);
        }
        port
    }
}

impl ClusterPolicy {
    fn manifest(&self, name: &str) -> Value {
        let rules = |rules: &[ClusterRule], key: &str| -> Value {
            let rule = |rule: &ClusterRule| {
                let mut value = json!({"action": rule.action});
                value[key] = rule.peers.iter().map(ClusterPeer::manifest).collect();
                if let Some(protocols) = &rule.protocols {
                    value["protocols"] = protocols.iter().map(Protocol::manifest).collect();
                }
                value
            };
            rules.iter().map(rule).collect()
        };
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": name},
            "spec": {
                "tier": self.tier, "priority": self.priority, "subject": self.subject.manifest(),
                "ingress": rules(&self.ingress, "from"), "egress": rules(&self.egress, "to"),
            },
        })
    }
}

impl ClusterPods {
    fn manifest(&self) -> Value {
        match self {
            Self::Namespaces(selector) => json!({"namespaces": selector.manifest()}),
            Self::Pods(namespaces, pods) => {
                json!({"pods": {"namespaceSelector": namespaces.manifest(), "podSelector": pods.manifest()}})
            }
        }
    }
}

impl ClusterPeer {
    fn manifest(&self) -> Value {
        match self {
            Self::Pods(pods) => pods.manifest(),
            Self::Networks(networks) => json!({"networks": networks}),
        }
    }
}

impl Protocol {
    fn manifest(&self) -> Value {
        match self {
            Self::Number(name, port) => json!({name.to_lowercase(): {"destinationPort": {"number": port}}}),
            Self::Range(name, low, high) => {
                json!({name.to_lowercase(): {"destinationPort": {"range": {"start": low, "end": high}}}})
            }
            Self::Named(name) => json!({"destinationNamedPort": name}),
        }
    }
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn labels(pairs: &[(&'static str, &'static str)]) -> Labels {
    pairs.iter().copied().collect()
}
