//! NetworkPolicy, networking.k8s.io/v1.

use super::labels::LabelSelector;
use super::object::Object;
use super::peer::{Block, Namespaces, Peer, Pods, Port, read_cidr, read_port};
use super::place::{Fields, Place, Read};

/// A NetworkPolicy as read.
pub(super) struct NetworkPolicy<'a> {
    pub namespace: String,
    pub name: String,
    pub place: Place<'a>,
    /// The pods it applies to.
    pub subject: Pods<'a>,
    /// Rules for connections to them; `None` if it says nothing of those.
    pub ingress: Option<Vec<Rule<'a>>>,
    /// Rules for connections they open.
    pub egress: Option<Vec<Rule<'a>>>,
}

/// What is allowed.
pub(super) struct Rule<'a> {
    pub place: Place<'a>,
    /// None means everybody.
    pub peers: Vec<Peer<'a>>,
    /// None means every protocol and port.
    pub ports: Vec<Port<'a>>,
}

impl<'a> NetworkPolicy<'a> {
    pub fn read(object: &Object<'a>, default_namespace: &str) -> Read<Self> {
        let namespace = object.namespace.as_deref().unwrap_or(default_namespace);
        let place = object.place.clone();
        let fields = object.fields(&["spec", "status"])?;
        let spec = fields.require("spec")?;
        let fields = spec.fields(&["podSelector", "ingress", "egress", "policyTypes"])?;
        let labels = fields.get("podSelector").map_or(Ok(LabelSelector::all()), |place| LabelSelector::read(&place))?;
        let subject = Pods { place: spec.clone(), namespaces: Namespaces::Named(namespace.to_owned()), labels };
        let rules = |key, peers| -> Read<Vec<Rule<'a>>> {
            fields.items(key)?.iter().map(|rule| read_rule(rule, peers, namespace)).collect()
        };
        let (ingress, egress) = (rules("ingress", "from")?, rules("egress", "to")?);
        let (is_ingress, is_egress) = policy_types(&fields, !egress.is_empty())?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: object.name.clone(),
            place,
            subject,
            ingress: is_ingress.then_some(ingress),
            egress: is_egress.then_some(egress),
        })
    }
}

/// Which ways the policy is about; left out, always ingress, and egress if there are rules for it.
fn policy_types(spec: &Fields, has_egress: bool) -> Read<(bool, bool)> {
    let types = spec.items("policyTypes")?;
    if types.is_empty() {
        return Ok((true, has_egress));
    }
    let (mut ingress, mut egress) = (false, false);
    for place in &types {
        let seen = match place.string()? {
            "Ingress" => &mut ingress,
            "Egress" => &mut egress,
            other => return Err(place.error(format!("found `{other}`: expected Ingress or Egress"))),
        };
        *seen = true;
    }
    Ok((ingress, egress))
}

fn read_rule<'a>(place: &Place<'a>, peers: &str, namespace: &str) -> Read<Rule<'a>> {
    let fields = place.fields(&["ports", peers])?;
    Ok(Rule {
        place: place.clone(),
        peers: fields.items(peers)?.iter().map(|peer| read_peer(peer, namespace)).collect::<Read<_>>()?,
        ports: fields.items("ports")?.iter().map(read_port).collect::<Read<_>>()?,
    })
}

fn read_peer<'a>(place: &Place<'a>, namespace: &str) -> Read<Peer<'a>> {
    let fields = place.fields(&["podSelector", "namespaceSelector", "ipBlock"])?;
    let (pods, namespaces) = (fields.get("podSelector"), fields.get("namespaceSelector"));
    if let Some(block) = fields.get("ipBlock") {
        if pods.is_some() || namespaces.is_some() {
            return Err(block.error("found beside a selector: expected `ipBlock` alone"));
        }
        return read_block(&block).map(Peer::Block);
    }
    if pods.is_none() && namespaces.is_none() {
        return Err(place.error("found no peer: expected `podSelector`, `namespaceSelector` or `ipBlock`"));
    }
    let read = |place: Place| LabelSelector::read(&place);
    Ok(Peer::Pods(Pods {
        place: place.clone(),
        namespaces: match namespaces {
            Some(place) => Namespaces::Selected(read(place)?),
            None => Namespaces::Named(namespace.to_owned()),
        },
        labels: pods.map_or(Ok(LabelSelector::all()), read)?,
    }))
}

fn read_block<'a>(place: &Place<'a>) -> Read<Block<'a>> {
    let fields = place.fields(&["cidr", "except"])?;
    let net = read_cidr(&fields.require("cidr")?)?;
    let mut except = Vec::new();
    for item in fields.items("except")? {
        let inner = read_cidr(&item)?;
        if !net.contains(&inner) || inner == net {
            return Err(item.error(format!("{inner} is not a part of {net}: expected a prefix inside it")));
        }
        except.push(inner);
    }
    Ok(Block { place: place.clone(), net, except })
}
