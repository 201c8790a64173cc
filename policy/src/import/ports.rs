//! Ports of a rule, those given by name looked up in the manifests of the destination pods.

use std::collections::BTreeSet;

use super::POD_NAMESPACE;
use super::manifests::Manifests;
use super::peer::Port;
use super::place::{Place, Read};
use super::workload::Workload;
use crate::model::{Clause, Operator, PortRange, Tags};

/// Some pods and the ports of theirs that are meant.
pub(super) struct Destination {
    pub clauses: Vec<Clause>,
    pub ports: Vec<PortRange>,
}

/// The ports that do not depend on who is connected to; `None` if every port of every protocol is meant.
pub(super) fn numbered(ports: &[Port]) -> Option<Vec<PortRange>> {
    let ranges = ports.iter().filter_map(|port| match port {
        Port::Range(range) => Some(*range),
        Port::Named { .. } => None,
    });
    (!ports.is_empty()).then(|| ranges.collect())
}

/// What named ports mean for pods that fulfil `clauses`.
///
/// # Errors
/// If no manifest names the port, or labels do not tell pods with different answers apart.
pub(super) fn named(ports: &[Port], clauses: &[Clause], manifests: &Manifests) -> Read<Vec<Destination>> {
    let mut destinations = Vec::new();
    for port in ports {
        if let Port::Named { place, protocol, name } = port {
            one(place, *protocol, name, clauses, manifests, &mut destinations)?;
        }
    }
    Ok(destinations)
}

fn one(
    place: &Place,
    protocol: Option<u8>,
    name: &str,
    clauses: &[Clause],
    manifests: &Manifests,
    destinations: &mut Vec<Destination>,
) -> Read<()> {
    let meant = |workload: &Workload| -> BTreeSet<PortRange> {
        let ports = workload.ports.iter().filter(|port| port.name == name);
        let ports = ports.filter(|port| protocol.is_none_or(|wanted| wanted == port.protocol));
        ports.map(|port| PortRange { protocol: port.protocol, low: port.port, high: port.port }).collect()
    };
    let matching = |clauses: &[Clause]| -> Vec<&Workload> {
        let fulfils = |workload: &&Workload| {
            let tags = tags(workload);
            clauses.iter().all(|clause| clause.matches(&tags))
        };
        manifests.workloads.iter().filter(fulfils).collect()
    };
    let workloads = matching(clauses);
    if workloads.iter().all(|workload| meant(workload).is_empty()) {
        return Err(place.error(format!(
            "no manifest among the files names a port `{name}` of the pods meant: expected their Pods, Deployments or the like, or a number"
        )));
    }
    let push = |destinations: &mut Vec<Destination>, clauses: Vec<Clause>, ports: BTreeSet<PortRange>| {
        let ports: Vec<PortRange> = ports.into_iter().collect();
        match destinations.iter_mut().find(|known| known.clauses == clauses) {
            Some(known) => {
                known.ports.extend(ports.into_iter().filter(|port| !known.ports.contains(port)).collect::<Vec<_>>())
            }
            None => destinations.push(Destination { clauses, ports }),
        }
    };
    let first = meant(workloads[0]);
    if workloads.iter().all(|workload| meant(workload) == first) {
        push(destinations, clauses.to_vec(), first);
        return Ok(());
    }
    for workload in workloads {
        let ports = meant(workload);
        if ports.is_empty() {
            continue;
        }
        let narrowed = narrowed(clauses, workload);
        if let Some(other) = matching(&narrowed).into_iter().find(|other| meant(other) != ports) {
            return Err(place.error(format!(
                "port `{name}` is not the same in {} and {}, and labels do not tell their pods apart: expected a number, or a label of their own",
                workload.title, other.title
            )));
        }
        push(destinations, narrowed, ports);
    }
    Ok(())
}

/// The clauses, and every label of the workload.
fn narrowed(clauses: &[Clause], workload: &Workload) -> Vec<Clause> {
    let equals =
        |(key, value): (&str, &str)| Clause { key: key.to_owned(), operator: Operator::Equals(value.to_owned()) };
    let labels = workload.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let all: Vec<Clause> =
        std::iter::once((POD_NAMESPACE, workload.namespace.as_str())).chain(labels).map(equals).collect();
    let kept = clauses
        .iter()
        .filter(|clause| !all.contains(clause) && !matches!(&clause.operator, Operator::Exists | Operator::In(_)));
    all.iter().chain(kept).cloned().collect()
}

fn tags(workload: &Workload) -> Tags {
    let labels = workload.labels.iter().map(|(key, value)| (key.clone(), BTreeSet::from([value.clone()])));
    let mut tags: Tags = labels.collect();
    tags.insert(POD_NAMESPACE.to_owned(), BTreeSet::from([workload.namespace.clone()]));
    tags
}
