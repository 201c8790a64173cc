//! Pods as a list of clauses on their tags.

use super::POD_NAMESPACE;
use super::labels::{LabelSelector, NAMESPACE_NAME};
use super::manifests::Manifests;
use super::peer::{Namespaces, Pods};
use super::place::{Place, Read};
use crate::model::{Clause, Operator};

/// Clauses that hold for the pods and for nothing else; `None` if there are no such pods.
pub(super) fn clauses(pods: &Pods, manifests: &Manifests) -> Read<Option<Vec<Clause>>> {
    let mut clauses = match &pods.namespaces {
        Namespaces::Named(name) => vec![of_namespace(Operator::Equals(name.clone()))],
        Namespaces::Selected(selector) => match selected(&pods.place, selector, manifests)? {
            Some(clauses) => clauses,
            None => return Ok(None),
        },
    };
    clauses.extend(pods.labels.0.iter().cloned());
    Ok(Some(clauses))
}

/// Clauses that hold for every pod.
pub(super) fn every_pod() -> Vec<Clause> {
    vec![of_namespace(Operator::Exists)]
}

/// What a selector of namespaces asks of a pod's one namespace.
fn selected(place: &Place, selector: &LabelSelector, manifests: &Manifests) -> Read<Option<Vec<Clause>>> {
    if selector.0.iter().any(|clause| clause.key != NAMESPACE_NAME) {
        let all = manifests.all_namespaces(place)?;
        let names: Vec<String> =
            all.iter().filter(|(_, labels)| selector.matches(labels)).map(|(name, _)| name.clone()).collect();
        return Ok((!names.is_empty()).then(|| vec![of_namespace(Operator::In(names))]));
    }
    // Every namespace has its name as a label, and every pod as a tag, so that nothing need be known of the rest. What
    // is no pod has no such tag and must not be taken for a pod of no forbidden namespace.
    let mut clauses = every_pod();
    for clause in &selector.0 {
        match &clause.operator {
            Operator::NotExists => return Ok(None),
            Operator::Exists => {}
            operator => clauses.push(of_namespace(operator.clone())),
        }
    }
    let demands = |clause: &Clause| matches!(clause.operator, Operator::Equals(_) | Operator::In(_));
    if clauses.iter().any(demands) {
        clauses.remove(0);
    }
    Ok(Some(clauses))
}

fn of_namespace(operator: Operator) -> Clause {
    Clause { key: POD_NAMESPACE.to_owned(), operator }
}
