//! ClusterNetworkPolicy, policy.networking.k8s.io/v1alpha2.

use super::object::Object;
use super::peer::{Block, Peer, Pods, Port, read_cidr, read_protocol_match};
use super::place::{Fields, Place, Read};

/// Most rules each way, and most peers, protocols and networks of a rule.
const MOST: usize = 25;
/// Highest priority number.
pub(super) const PRIORITY_MAX: u16 = 1000;

/// A ClusterNetworkPolicy as read.
pub(super) struct ClusterPolicy<'a> {
    pub name: String,
    pub place: Place<'a>,
    pub tier: Tier,
    pub priority: u16,
    /// The pods it applies to.
    pub subject: Pods<'a>,
    pub ingress: Vec<Rule<'a>>,
    pub egress: Vec<Rule<'a>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    Admin,
    Baseline,
}

/// What becomes of some connections; the first rule that matches decides.
pub(super) struct Rule<'a> {
    pub place: Place<'a>,
    pub name: Option<String>,
    /// `allow`, `deny` or `pass`.
    pub verb: &'static str,
    /// At least one.
    pub peers: Vec<Peer<'a>>,
    /// None means every protocol and port.
    pub ports: Vec<Port<'a>>,
}

impl<'a> ClusterPolicy<'a> {
    pub fn read(object: &Object<'a>) -> Read<Self> {
        if let Some(namespace) = &object.namespace {
            return Err(object.place.error(format!("is in namespace {namespace}: expected none, it is cluster-wide")));
        }
        let fields = object.fields(&["spec", "status"])?;
        let fields = fields.require("spec")?.fields(&["tier", "priority", "subject", "ingress", "egress"])?;
        let tier = fields.require("tier")?;
        let priority = fields.require("priority")?;
        let number = priority.integer()?;
        Ok(Self {
            name: object.name.clone(),
            place: object.place.clone(),
            tier: match tier.string()? {
                "Admin" => Tier::Admin,
                "Baseline" => Tier::Baseline,
                other => return Err(tier.error(format!("found `{other}`: expected Admin or Baseline"))),
            },
            priority: match u16::try_from(number) {
                Ok(number @ 0..=PRIORITY_MAX) => number,
                _ => return Err(priority.error(format!("found {number}: expected 0 to {PRIORITY_MAX}"))),
            },
            subject: read_pods(&fields.require("subject")?)?,
            ingress: read_rules(&fields, "ingress", "from")?,
            egress: read_rules(&fields, "egress", "to")?,
        })
    }
}

fn read_pods<'a>(place: &Place<'a>) -> Read<Pods<'a>> {
    const KINDS: [&str; 2] = ["namespaces", "pods"];
    match place.fields(&KINDS)?.only(&KINDS)? {
        ("namespaces", value) => Pods::read_namespaces(&value),
        (_, value) => Pods::read_namespaced(&value),
    }
}

fn read_rules<'a>(spec: &Fields<'a>, key: &str, peers: &str) -> Read<Vec<Rule<'a>>> {
    let rules = at_most(spec, key)?;
    rules.iter().map(|rule| read_rule(rule, peers)).collect()
}

fn read_rule<'a>(place: &Place<'a>, peers_key: &str) -> Read<Rule<'a>> {
    let fields = place.fields(&["name", "action", peers_key, "protocols"])?;
    let action = fields.require("action")?;
    let verb = match action.string()? {
        "Accept" => "allow",
        "Deny" => "deny",
        "Pass" => "pass",
        other => return Err(action.error(format!("found `{other}`: expected Accept, Deny or Pass"))),
    };
    let name = match fields.get("name") {
        Some(name) if name.string()?.chars().count() > 100 => {
            return Err(name.error("is longer than 100 characters: expected a shorter name"));
        }
        Some(name) => Some(name.string()?.to_owned()),
        None => None,
    };
    let list = fields.require(peers_key)?;
    let mut peers = Vec::new();
    for peer in at_most(&fields, peers_key)? {
        read_peer(&peer, peers_key == "to", verb, &mut peers)?;
    }
    if peers.is_empty() {
        return Err(list.error("found an empty list: expected at least one peer"));
    }
    let protocols = at_most(&fields, "protocols")?;
    if let (Some(place), true) = (fields.get("protocols"), protocols.is_empty()) {
        return Err(place.error("found an empty list: expected at least one protocol, or leave it out"));
    }
    let ports: Vec<Port> = protocols.iter().map(read_protocol_match).collect::<Read<_>>()?;
    let outside = peers.iter().any(|peer| !matches!(peer, Peer::Pods(_)));
    if let (true, Some(Port::Named { place, .. })) =
        (outside, ports.iter().find(|port| matches!(port, Port::Named { .. })))
    {
        return Err(place.error("found beside networks or domainNames, which have no named ports: expected a number"));
    }
    Ok(Rule { place: place.clone(), name, verb, peers, ports })
}

fn read_peer<'a>(place: &Place<'a>, egress: bool, verb: &str, peers: &mut Vec<Peer<'a>>) -> Read<()> {
    const INGRESS: &[&str] = &["namespaces", "pods"];
    const EGRESS: &[&str] = &["namespaces", "pods", "nodes", "networks", "domainNames"];
    let kinds = if egress { EGRESS } else { INGRESS };
    let fields = place.fields(kinds)?;
    let (kind, value) = fields.only(kinds)?;
    match kind {
        "namespaces" => peers.push(Peer::Pods(Pods::read_namespaces(&value)?)),
        "pods" => peers.push(Peer::Pods(Pods::read_namespaced(&value)?)),
        "nodes" => {
            return Err(
                value.error("nodes are not known by their labels here: name their addresses under `networks` instead")
            );
        }
        "networks" => {
            for item in at_least_one(&fields, kind)? {
                let net = read_cidr(&item)?;
                peers.push(Peer::Block(Block { place: item, net, except: Vec::new() }));
            }
        }
        _ => {
            if verb != "allow" {
                return Err(value.error("domain names can only be accepted: expected `action: Accept`"));
            }
            for item in at_least_one(&fields, kind)? {
                peers.push(Peer::Domain(read_domain(&item)?));
            }
        }
    }
    Ok(())
}

fn read_domain(place: &Place) -> Read<String> {
    let text = place.string()?;
    let name = text.strip_suffix('.').unwrap_or(text);
    let labels = name.strip_prefix("*.").unwrap_or(name);
    let label = |label: &str| {
        let ends = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        label.len() <= 63
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
            && ends(label.bytes().next())
            && ends(label.bytes().last())
    };
    match labels.contains('.') && labels.len() <= 253 && labels.split('.').all(label) {
        true => Ok(name.to_ascii_lowercase()),
        false => {
            Err(place.error(format!("`{text}` is not a domain name: expected such as example.org or *.example.org")))
        }
    }
}

fn at_most<'a>(fields: &Fields<'a>, key: &str) -> Read<Vec<Place<'a>>> {
    let items = fields.items(key)?;
    match (fields.get(key), items.len() > MOST) {
        (Some(list), true) => Err(list.error(format!("found {} items: expected at most {MOST}", items.len()))),
        _ => Ok(items),
    }
}

fn at_least_one<'a>(fields: &Fields<'a>, key: &str) -> Read<Vec<Place<'a>>> {
    let items = at_most(fields, key)?;
    match (fields.get(key), items.is_empty()) {
        (Some(list), true) => Err(list.error("found an empty list: expected at least one")),
        _ => Ok(items),
    }
}
