//! Everything the files hold.

use std::collections::{BTreeMap, HashSet};

use super::cluster_policy::ClusterPolicy;
use super::labels::{Labels, NAMESPACE_NAME};
use super::network_policy::NetworkPolicy;
use super::object::Object;
use super::place::{Place, Read};
use super::workload::Workload;
use crate::parse::PolicyError;
use crate::parse::yaml_tree::Node;

/// Groups of which no kind but those read here says who may connect to whom.
const SILENT_GROUPS: [&str; 16] = [
    "",
    "apps",
    "batch",
    "autoscaling",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "certificates.k8s.io",
    "node.k8s.io",
    "events.k8s.io",
];

/// The objects that matter.
#[derive(Default)]
pub(super) struct Manifests<'a> {
    /// Labels of the namespaces there are manifests of.
    pub namespaces: BTreeMap<String, Labels>,
    /// Namespaces some object is in, and one such object.
    pub mentioned: BTreeMap<String, String>,
    pub policies: Vec<NetworkPolicy<'a>>,
    pub cluster_policies: Vec<ClusterPolicy<'a>>,
    pub workloads: Vec<Workload>,
    pub notes: Vec<String>,
}

impl<'a> Manifests<'a> {
    /// Reads what is well-formed, adding to `errors` what is not.
    pub fn read(documents: &'a [Node], default_namespace: &str, errors: &mut Vec<PolicyError>) -> Self {
        let mut manifests = Self::default();
        let mut seen = HashSet::new();
        for document in documents {
            Object::read_all(document, &mut |object| {
                let taken = object.and_then(|object| {
                    let key = (
                        object.api_version.clone(),
                        object.kind.clone(),
                        object.namespace.clone(),
                        object.name.clone(),
                    );
                    match seen.insert(key) {
                        true => manifests.take(&object, default_namespace),
                        false => Err(object.place.error("stands in the files twice: expected each object once")),
                    }
                });
                errors.extend(taken.err());
            });
        }
        manifests
    }

    /// No policy was read.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.cluster_policies.is_empty()
    }

    fn take(&mut self, object: &Object<'a>, default_namespace: &str) -> Read<()> {
        let checked = object.check_names();
        match (object.api_version.as_str(), object.kind.as_str()) {
            ("networking.k8s.io/v1", "NetworkPolicy") => {
                checked?;
                let policy = NetworkPolicy::read(object, default_namespace)?;
                self.mention(&policy.namespace, object);
                self.policies.push(policy);
            }
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
                checked?;
                self.cluster_policies.push(ClusterPolicy::read(object)?);
            }
            ("v1", "Namespace") => checked.and_then(|()| self.take_namespace(object))?,
            (version, kind) => match Workload::read(object, default_namespace)? {
                Some(workload) => {
                    checked?;
                    self.mention(&workload.namespace, object);
                    if workload.host_network {
                        self.notes.push(format!(
                            "{}: its pods share their node's network; they are judged like other pods",
                            workload.title
                        ));
                    }
                    self.workloads.push(workload);
                }
                // Names of roles, for one, may hold more; they say nothing here.
                None => self.leave_out(object, version, kind)?,
            },
        }
        Ok(())
    }

    fn take_namespace(&mut self, object: &Object<'a>) -> Read<()> {
        object.fields(&["spec", "status"])?;
        let mut labels = object.labels.clone();
        if let Some(other) = labels.insert(NAMESPACE_NAME.to_owned(), object.name.clone())
            && other != object.name
        {
            return Err(object.place.error(format!(
                "label {NAMESPACE_NAME} is `{other}`: expected the namespace's own name, as the API server sets it"
            )));
        }
        self.namespaces.insert(object.name.clone(), labels);
        Ok(())
    }

    fn leave_out(&mut self, object: &Object<'a>, version: &str, kind: &str) -> Read<()> {
        let group = version.split_once('/').map_or("", |(group, _)| group);
        if SILENT_GROUPS.contains(&group) && !kind.contains("NetworkPolicy") {
            self.notes.push(format!("{kind} {}: left out, it says nothing of who may connect", object.name));
            return Ok(());
        }
        Err(object.place.error(format!(
            "{version} {kind} is not understood: expected networking.k8s.io/v1 NetworkPolicy, policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy, Namespaces and workloads"
        )))
    }

    fn mention(&mut self, namespace: &str, object: &Object<'a>) {
        self.mentioned.entry(namespace.to_owned()).or_insert_with(|| format!("{} {}", object.kind, object.name));
    }

    /// Labels of every namespace, for a selector that asks for them.
    ///
    /// # Errors
    /// If a namespace is mentioned whose labels are not known: who is selected would be a guess.
    pub fn all_namespaces(&self, place: &Place) -> Read<&BTreeMap<String, Labels>> {
        let unknown = self.mentioned.iter().find(|(name, _)| !self.namespaces.contains_key(*name));
        if let Some((name, by)) = unknown {
            return Err(place.error(format!(
                "selects namespaces by label, but those of namespace {name} (of {by}) are unknown: expected its Namespace object among the files"
            )));
        }
        match self.namespaces.is_empty() {
            false => Ok(&self.namespaces),
            true => Err(place.error(
                "selects namespaces by label, but no labels are known: expected the Namespace objects among the files",
            )),
        }
    }
}
