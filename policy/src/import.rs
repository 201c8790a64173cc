//! Kubernetes' network policies, said in our language with the same meaning.
//!
//! NetworkPolicy (networking.k8s.io/v1) and ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) are read strictly,
//! with the Namespaces and workloads that give their selectors and named ports a meaning. What cannot be said in our
//! language is an error that names file, line, object and field. How each part is mapped: `docs/policy-import.md`.

mod cluster_policy;
mod labels;
mod manifests;
mod network_policy;
mod object;
mod outside;
mod peer;
mod place;
mod ports;
mod sides;
mod workload;
mod write;

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::model::{Location, Namespace};
use crate::parse::{PolicyError, PolicyErrors};
use manifests::Manifests;

/// The tag every pod has, with the name of its namespace in Kubernetes.
pub const POD_NAMESPACE: &str = "@k8s:namespace";

/// Where peers have an identity if nothing else is said; also the default of the agent's configuration.
pub const IDENTITY_NETWORKS: [&str; 9] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "fc00::/7",
    "fe80::/10",
    "::1/128",
];

/// What manifests do not say.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of the policies made: where pods live, or above.
    pub namespace: Namespace,
    /// Namespace, in Kubernetes, of objects that name none.
    pub default_namespace: String,
    /// What becomes of connections that no policy speaks of.
    pub unselected: Unselected,
    /// Where pods' addresses are, as in the agent's `identity.networks`; empty for [`IDENTITY_NETWORKS`], of which a
    /// part may hold pods.
    pub identity_networks: Vec<IpNet>,
    /// Addresses that may always open to pods: those of the nodes, which Kubernetes lets reach their own.
    pub nodes: Vec<IpNet>,
}

/// What becomes of connections from or to pods that no policy speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unselected {
    /// They are allowed, as by Kubernetes.
    #[default]
    Allow,
    /// They are denied, as by us.
    Deny,
}

/// What became of the manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// A policy file.
    pub text: String,
    /// Number of its rules.
    pub rules: usize,
    /// Keys of the tags it asks for: Trust Profiles must carry them.
    pub keys: BTreeSet<String>,
    /// What was left out, and why nothing is lost.
    pub notes: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: "/k8s".parse().unwrap_or_default(),
            default_namespace: "default".to_owned(),
            unselected: Unselected::default(),
            identity_networks: Vec::new(),
            nodes: Vec::new(),
        }
    }
}

/// Turns manifests, given as (name, text), into a policy file.
///
/// # Errors
/// Everything that is not as the API demands or cannot be said in our language, each with file, line, object and field.
pub fn import<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
    options: &Options,
) -> Result<Imported, PolicyErrors> {
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    let mut beginning = Location { line: 1, column: 1, ..Location::default() };
    for (file, text) in files {
        if beginning.file.is_empty() {
            beginning.file = file.into();
        }
        match crate::parse::yaml_tree::documents(&file.into(), text) {
            Ok(read) => documents.extend(read),
            Err(error) => errors.push(error),
        }
    }
    if !labels::is_dns_name(&options.default_namespace) {
        let name = &options.default_namespace;
        errors.push(PolicyError::at(&beginning, format!("`{name}` is no namespace for objects that name none")));
    }
    let manifests = Manifests::read(&documents, &options.default_namespace, &mut errors);
    if errors.is_empty() && manifests.is_empty() {
        let expected = "no NetworkPolicy and no ClusterNetworkPolicy in the files: expected at least one";
        errors.push(PolicyError::at(&beginning, expected.to_owned()));
    }
    let imported = write::write(&manifests, options, &mut errors);
    match PolicyErrors::new(errors) {
        Some(errors) => Err(errors),
        None => Ok(imported),
    }
}
