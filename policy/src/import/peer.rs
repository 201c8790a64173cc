//! Peers and ports: who and where to, as both kinds of policy say it.

use ipnet::IpNet;

use super::labels::LabelSelector;
use super::place::{IntOrString, Place, Read};
use crate::model::PortRange;

/// One alternative of a rule's peers.
#[derive(Clone)]
pub(super) enum Peer<'a> {
    Pods(Pods<'a>),
    Block(Block<'a>),
    /// Names in the DNS, from outside only.
    Domain(String),
}

/// Pods by their labels and those of their namespace.
#[derive(Clone)]
pub(super) struct Pods<'a> {
    pub place: Place<'a>,
    pub namespaces: Namespaces,
    pub labels: LabelSelector,
}

#[derive(Clone)]
pub(super) enum Namespaces {
    Named(String),
    Selected(LabelSelector),
}

/// Addresses.
#[derive(Clone)]
pub(super) struct Block<'a> {
    pub place: Place<'a>,
    pub net: IpNet,
    pub except: Vec<IpNet>,
}

/// Destination ports of one protocol.
#[derive(Clone)]
pub(super) enum Port<'a> {
    Range(PortRange),
    /// Whatever port the destination pod gives this name; of any protocol if none is said.
    Named {
        place: Place<'a>,
        protocol: Option<u8>,
        name: String,
    },
}

impl<'a> Pods<'a> {
    /// `namespaces` and `pods` of a ClusterNetworkPolicy.
    pub fn read_namespaces(place: &Place<'a>) -> Read<Self> {
        let namespaces = Namespaces::Selected(LabelSelector::read(place)?);
        Ok(Self { place: place.clone(), namespaces, labels: LabelSelector::all() })
    }

    pub fn read_namespaced(place: &Place<'a>) -> Read<Self> {
        let fields = place.fields(&["namespaceSelector", "podSelector"])?;
        let namespaces = Namespaces::Selected(LabelSelector::read(&fields.require("namespaceSelector")?)?);
        let labels = LabelSelector::read(&fields.require("podSelector")?)?;
        Ok(Self { place: place.clone(), namespaces, labels })
    }
}

/// A CIDR; bits beyond the prefix say nothing.
pub(super) fn read_cidr(place: &Place) -> Read<IpNet> {
    let text = place.string()?;
    let net: IpNet = text
        .parse()
        .map_err(|_| place.error(format!("`{text}` is not a CIDR: expected such as 10.0.0.0/8 or 2001:db8::/32")))?;
    if let IpNet::V6(v6) = net
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(place.error(format!("`{text}` is an IPv4 address written as IPv6: expected it as IPv4")));
    }
    Ok(net.trunc())
}

/// The protocol's number; SCTP has none in the policy language.
pub(super) fn read_protocol(place: &Place) -> Read<u8> {
    match place.string()? {
        "TCP" => Ok(PortRange::TCP),
        "UDP" => Ok(PortRange::UDP),
        "SCTP" => Err(place.error("SCTP has no ports in the policy language: leave the entry out, or the rule without ports (which then allows every protocol)")),
        other => Err(place.error(format!("found `{other}`: expected TCP, UDP or SCTP"))),
    }
}

/// An item of `ports` of a NetworkPolicy.
pub(super) fn read_port<'a>(place: &Place<'a>) -> Read<Port<'a>> {
    let fields = place.fields(&["protocol", "port", "endPort"])?;
    let protocol = fields.get("protocol").map_or(Ok(PortRange::TCP), |place| read_protocol(&place))?;
    let end = fields.get("endPort");
    let Some(port) = fields.get("port") else {
        return match end {
            Some(end) => Err(end.error("found without `port`: expected `port` too")),
            None => Ok(Port::Range(PortRange::all(protocol))),
        };
    };
    let low = match port.int_or_string()? {
        IntOrString::Int(number) => port.as_port(number)?,
        IntOrString::String(name) => {
            check_port_name(&port, name)?;
            return match end {
                Some(end) => Err(end.error("found with a named `port`: expected `port` to be a number")),
                None => Ok(Port::Named { place: port, protocol: Some(protocol), name: name.to_owned() }),
            };
        }
    };
    let high = match end {
        None => low,
        Some(end) => match end.port()? {
            high if high >= low => high,
            high => return Err(end.error(format!("found {high}, below `port` {low}: expected {low} or more"))),
        },
    };
    Ok(Port::Range(PortRange { protocol, low, high }))
}

/// An item of `protocols` of a ClusterNetworkPolicy.
pub(super) fn read_protocol_match<'a>(place: &Place<'a>) -> Read<Port<'a>> {
    const KINDS: [&str; 4] = ["tcp", "udp", "sctp", "destinationNamedPort"];
    let (kind, value) = place.fields(&KINDS)?.only(&KINDS)?;
    let protocol = match kind {
        "tcp" => PortRange::TCP,
        "udp" => PortRange::UDP,
        "sctp" => {
            return Err(value.error(
                "SCTP has no ports in the policy language: leave the entry out, or the rule without `protocols` (which then matches every protocol)",
            ));
        }
        _ => {
            let name = value.string()?;
            check_port_name(&value, name)?;
            return Ok(Port::Named { protocol: None, name: name.to_owned(), place: value });
        }
    };
    let port = value.fields(&["destinationPort"])?.require("destinationPort")?;
    const FORMS: [&str; 2] = ["number", "range"];
    let (form, value) = port.fields(&FORMS)?.only(&FORMS)?;
    if form == "number" {
        let port = value.port()?;
        return Ok(Port::Range(PortRange { protocol, low: port, high: port }));
    }
    let range = value.fields(&["start", "end"])?;
    let (low, high) = (range.require("start")?.port()?, range.require("end")?.port()?);
    if low >= high {
        return Err(value.error(format!("start {low} is not below end {high}: expected a lower start")));
    }
    Ok(Port::Range(PortRange { protocol, low, high }))
}

/// At most 15 lower-case letters, digits and single `-`, with a letter.
pub(super) fn check_port_name(place: &Place, name: &str) -> Read<()> {
    let fine = (1..=15).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && name.bytes().any(|c| c.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-');
    match fine {
        true => Ok(()),
        false => Err(place.error(format!(
            "`{name}` is not a port's name: expected a number without quotes, or at most 15 lower-case letters, digits and `-`"
        ))),
    }
}
