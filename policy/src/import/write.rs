//! From manifests to the text of a policy file.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::cluster_policy::{self, ClusterPolicy, PRIORITY_MAX};
use super::manifests::Manifests;
use super::network_policy::{self, NetworkPolicy};
use super::outside::Outside;
use super::peer::{Block, Peer, Port};
use super::place::Read;
use super::{Imported, Options, Unselected, ports, sides};
use crate::model::{Clause, PortRange, Selector};
use crate::parse::PolicyError;

/// Which end of a connection a rule is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Ingress,
    Egress,
}

/// A policy of ours in the making.
struct Policy {
    name: String,
    comment: String,
    /// `tier` and `priority`, if not the normal tier.
    tier: Option<(&'static str, u16)>,
    rules: Vec<(String, String)>,
}

struct Writer<'a> {
    manifests: &'a Manifests<'a>,
    outside: Outside,
    unselected: Unselected,
    keys: BTreeSet<String>,
    notes: Vec<String>,
}

/// Who a rule line is about, on one side.
enum Who {
    Pods(Vec<Vec<Clause>>),
    Anyone,
    Network(String),
}

pub(super) fn write(manifests: &Manifests, options: &Options, errors: &mut Vec<PolicyError>) -> Imported {
    let mut writer = Writer {
        manifests,
        outside: Outside::new(options),
        unselected: options.unselected,
        keys: BTreeSet::new(),
        notes: manifests.notes.clone(),
    };
    let mut policies = Vec::new();
    let mut take = |policy: Read<Policy>| match policy {
        Ok(policy) => policies.push(policy),
        Err(error) => errors.push(error),
    };
    for policy in &manifests.cluster_policies {
        take(writer.cluster_policy(policy));
    }
    for policy in &manifests.policies {
        take(writer.network_policy(policy));
    }
    take(writer.isolated());
    if !options.nodes.is_empty() {
        take(Ok(writer.nodes(options)));
    }
    if options.unselected == Unselected::Allow {
        take(Ok(writer.open()));
    }
    policies.retain(|policy| !policy.rules.is_empty());
    let rules = policies.iter().map(|policy| policy.rules.len()).sum();
    let text = text(&policies, options, &writer.keys);
    Imported { text, rules, keys: writer.keys, notes: writer.notes }
}

impl Writer<'_> {
    fn cluster_policy(&mut self, policy: &ClusterPolicy) -> Read<Policy> {
        // Priority 0 of the baseline is the isolation of NetworkPolicies, which is judged before any of these.
        let (tier, word, priority) = match policy.tier {
            cluster_policy::Tier::Admin => ("admin", "admin", policy.priority),
            cluster_policy::Tier::Baseline => ("baseline", "baseline", policy.priority + 1),
        };
        let mut made = Policy {
            name: format!("k8s-{word}.{}", policy.name),
            comment: comment(&policy.place),
            tier: Some((tier, priority)),
            rules: Vec::new(),
        };
        let Some(subject) = sides::clauses(&policy.subject, self.manifests)? else {
            self.note(&policy.place, "selects no pods");
            return Ok(made);
        };
        for (end, rules) in [(End::Ingress, &policy.ingress), (End::Egress, &policy.egress)] {
            for (index, rule) in rules.iter().enumerate() {
                let name = rule_name(end, index, rule.name.as_deref());
                let cluster_policy::Rule { place, verb, peers, ports, .. } = rule;
                // After the baseline comes what becomes of everything nobody speaks of.
                let passed = policy.tier == cluster_policy::Tier::Baseline && *verb == "pass";
                let verb = if passed && self.unselected == Unselected::Allow { "allow" } else { *verb };
                let lines = self.lines(&subject, end, verb, peers, ports)?;
                self.add(&mut made, &name, lines, place);
            }
        }
        Ok(made)
    }

    fn network_policy(&mut self, policy: &NetworkPolicy) -> Read<Policy> {
        let mut made = Policy {
            name: format!("k8s.{}.{}", policy.namespace, policy.name),
            comment: comment(&policy.place),
            tier: None,
            rules: Vec::new(),
        };
        let Some(subject) = sides::clauses(&policy.subject, self.manifests)? else { return Ok(made) };
        for (end, rules) in [(End::Ingress, &policy.ingress), (End::Egress, &policy.egress)] {
            for (index, rule) in rules.iter().flatten().enumerate() {
                let network_policy::Rule { place, peers, ports } = rule;
                let lines = self.lines(&subject, end, "allow", peers, ports)?;
                self.add(&mut made, &rule_name(end, index, None), lines, place);
            }
        }
        Ok(made)
    }

    /// Whatever their policies do not allow is denied to pods that some NetworkPolicy selects.
    fn isolated(&mut self) -> Read<Policy> {
        let mut made = Policy {
            name: "k8s-isolated".to_owned(),
            comment: "What NetworkPolicies do not allow is denied to the pods they select.".to_owned(),
            tier: Some(("baseline", 0)),
            rules: Vec::new(),
        };
        for policy in &self.manifests.policies {
            let Some(subject) = sides::clauses(&policy.subject, self.manifests)? else { continue };
            let ways = [(End::Ingress, policy.ingress.is_some()), (End::Egress, policy.egress.is_some())];
            for (end, _) in ways.into_iter().filter(|(_, isolated)| *isolated) {
                let name = format!("{}.{}.{}", policy.namespace, policy.name, end.word());
                let lines = self.lines(&subject, end, "deny", &[], &[])?;
                self.add(&mut made, &name, lines, &policy.place);
            }
        }
        Ok(made)
    }

    /// Kubernetes lets a pod's node reach it whatever policies say.
    fn nodes(&mut self, options: &Options) -> Policy {
        let nodes: Vec<String> = options.nodes.iter().map(|net| net.trunc().to_string()).collect();
        let subject = self.side(&Who::Network(format!("net {}", nodes.join(","))));
        let object = self.side(&Who::Pods(vec![sides::every_pod()]));
        Policy {
            name: "k8s-nodes".to_owned(),
            comment: "Nodes may always reach pods.".to_owned(),
            tier: None,
            rules: vec![("ingress".to_owned(), format!("allow {subject} -> {object} ingress"))],
        }
    }

    /// What no policy speaks of is allowed.
    fn open(&mut self) -> Policy {
        let mut made = Policy {
            name: "k8s-open".to_owned(),
            comment: "Pods that no policy selects are open, as Kubernetes has it.".to_owned(),
            tier: Some(("baseline", PRIORITY_MAX + 2)),
            rules: Vec::new(),
        };
        let pods = sides::every_pod();
        for end in [End::Ingress, End::Egress] {
            let everyone = self.everyone();
            let lines = everyone.iter().map(|who| self.line("allow", &pods, end, who, &None)).collect::<Vec<_>>();
            made.rules.extend(numbered(end.word(), lines));
        }
        made
    }

    /// The lines of one rule about pods that fulfil `subject`. Their order says nothing: all have one verb.
    fn lines(&mut self, subject: &[Clause], end: End, verb: &str, peers: &[Peer], ports: &[Port]) -> Read<Vec<String>> {
        let mut lines = Vec::new();
        let who = if peers.is_empty() { self.everyone() } else { self.peers(peers)? };
        let ranges = ports::numbered(ports);
        if ranges.as_ref().is_none_or(|ranges| !ranges.is_empty()) {
            lines.extend(who.iter().map(|who| self.line(verb, subject, end, who, &ranges)));
        }
        if ports.iter().all(|port| matches!(port, Port::Range(_))) {
            return Ok(lines);
        }
        // A named port is one of the pod connected to.
        if end == End::Ingress {
            for to in ports::named(ports, subject, self.manifests)? {
                lines.extend(who.iter().map(|who| self.line(verb, &to.clauses, end, who, &Some(to.ports.clone()))));
            }
            return Ok(lines);
        }
        for who in &who {
            let alternatives = match who {
                Who::Pods(alternatives) => alternatives.clone(),
                Who::Anyone => vec![sides::every_pod()],
                // What is no pod names no ports.
                Who::Network(_) => continue,
            };
            for alternative in alternatives {
                for to in ports::named(ports, &alternative, self.manifests)? {
                    let who = Who::Pods(vec![to.clauses]);
                    lines.push(self.line(verb, subject, end, &who, &Some(to.ports)));
                }
            }
        }
        Ok(lines)
    }

    fn peers(&self, peers: &[Peer]) -> Read<Vec<Who>> {
        let mut pods: Vec<Vec<Clause>> = Vec::new();
        let mut blocks: Vec<Block> = Vec::new();
        let mut who = Vec::new();
        for peer in peers {
            match peer {
                Peer::Pods(selected) => pods.extend(sides::clauses(selected, self.manifests)?),
                Peer::Block(block) => blocks.push(block.clone()),
                Peer::Domain(name) => who.push(Who::Network(format!("net {name}"))),
            }
        }
        let held = self.outside.held(&blocks)?;
        if held.pods {
            pods = vec![sides::every_pod()];
        }
        let (cut, whole): (Vec<String>, Vec<String>) =
            held.networks.into_iter().partition(|network| network.contains(" except "));
        let whole: Vec<&str> = whole.iter().filter_map(|network| network.strip_prefix("net ")).collect();
        if !whole.is_empty() {
            who.insert(0, Who::Network(format!("net {}", whole.join(","))));
        }
        who.extend(cut.into_iter().map(Who::Network));
        if !pods.is_empty() {
            who.insert(0, Who::Pods(pods));
        }
        Ok(who)
    }

    fn everyone(&self) -> Vec<Who> {
        std::iter::once(Who::Anyone).chain(self.outside.everywhere().into_iter().map(Who::Network)).collect()
    }

    fn line(&mut self, verb: &str, subject: &[Clause], end: End, peer: &Who, ports: &Option<Vec<PortRange>>) -> String {
        let own = self.side(&Who::Pods(vec![subject.to_vec()]));
        let other = self.side(peer);
        let (from, to) = if end == End::Egress { (own, other) } else { (other, own) };
        let mut line = format!("{verb} {from} -> {to}");
        if let Some(ports) = ports {
            line.extend(ports.iter().map(|range| format!(" {range}")));
        }
        line.push(' ');
        line.push_str(end.word());
        line
    }

    fn side(&mut self, who: &Who) -> String {
        match who {
            Who::Pods(alternatives) => {
                self.keys.extend(alternatives.iter().flatten().map(|clause| clause.key.clone()));
                Selector { alternatives: alternatives.clone() }.to_string()
            }
            Who::Anyone => "any".to_owned(),
            Who::Network(network) => network.clone(),
        }
    }

    fn add(&mut self, policy: &mut Policy, name: &str, lines: Vec<String>, place: &super::place::Place) {
        if lines.is_empty() {
            self.note(place, "matches nobody");
        }
        policy.rules.extend(numbered(name, lines));
    }

    fn note(&mut self, place: &super::place::Place, what: &str) {
        self.notes.push(format!("{}: {what}, so no rule is made of it", place.name().trim_end()));
    }
}

impl End {
    fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

fn comment(place: &super::place::Place) -> String {
    let text = format!("{}, {}:{}", place.name().trim_end(), place.file(), place.line());
    text.replace(char::is_control, " ")
}

/// `ingress-2`, and what the author calls it.
fn rule_name(end: End, index: usize, given: Option<&str>) -> String {
    let mut name = format!("{}-{}", end.word(), index + 1);
    if let Some(given) = given {
        name.push('.');
        name.extend(
            given.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '-' }),
        );
    }
    name
}

/// Several lines of one rule are told apart by a number after its name.
fn numbered(name: &str, lines: Vec<String>) -> Vec<(String, String)> {
    let many = lines.len() > 1;
    let named = |(index, line)| (if many { format!("{name}_{}", index + 1) } else { name.to_owned() }, line);
    lines.into_iter().enumerate().map(named).collect()
}

fn text(policies: &[Policy], options: &Options, keys: &BTreeSet<String>) -> String {
    let mut text =
        String::from("# Made from Kubernetes manifests by `enforcer policy import`; changes belong there.\n");
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let _ = writeln!(text, "# Trust Profiles must carry: {}", keys.join(" "));
    for policy in policies {
        let _ = write!(text, "\n# {}\n- name: {}\n  namespace: {}\n", policy.comment, policy.name, options.namespace);
        if let Some((tier, priority)) = policy.tier {
            let _ = write!(text, "  tier: {tier}\n  priority: {priority}\n");
        }
        text.push_str("  rules:\n");
        for (name, line) in &policy.rules {
            let _ = writeln!(text, "    - {name}: {line}");
        }
    }
    text
}
