//! Manifests that make pods: read for the names they give to ports.

use super::labels::{Labels, read_labels};
use super::object::Object;
use super::peer::{check_port_name, read_protocol};
use super::place::{Fields, Place, Read};

/// Pods made alike.
pub(super) struct Workload {
    /// `Deployment shop/web`.
    pub title: String,
    pub namespace: String,
    pub labels: Labels,
    pub ports: Vec<NamedPort>,
    /// The pods are in the network of their node.
    pub host_network: bool,
}

pub(super) struct NamedPort {
    pub name: String,
    pub protocol: u8,
    pub port: u16,
}

/// Where in an object its pods are described; `None` if objects of the kind make none.
fn template_path(api_version: &str, kind: &str) -> Option<&'static [&'static str]> {
    Some(match (api_version, kind) {
        ("v1", "Pod") => &[],
        ("v1", "ReplicationController") => &["spec", "template"],
        ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") => &["spec", "template"],
        ("batch/v1", "Job") => &["spec", "template"],
        ("batch/v1", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    })
}

impl Workload {
    /// The pods an object makes; `None` for objects that make none.
    pub fn read(object: &Object, default_namespace: &str) -> Read<Option<Self>> {
        let Some(path) = template_path(&object.api_version, &object.kind) else {
            return Ok(None);
        };
        let mut fields = object.place.any_fields()?;
        for step in path {
            fields = fields.require(step)?.any_fields()?;
        }
        let labels = match fields.get("metadata") {
            Some(metadata) => match metadata.any_fields()?.get("labels") {
                Some(labels) => read_labels(&labels)?,
                None => Labels::new(),
            },
            None => Labels::new(),
        };
        let spec = fields.require("spec")?.any_fields()?;
        let mut ports = Vec::new();
        read_ports(&spec, "containers", &mut ports)?;
        // Those that stay beside the containers; the others are gone when the pod serves.
        for container in spec.items("initContainers")? {
            let fields = container.any_fields()?;
            if let Some(policy) = fields.get("restartPolicy")
                && policy.string()? == "Always"
            {
                read_container(&fields, &mut ports)?;
            }
        }
        let namespace = object.namespace.as_deref().unwrap_or(default_namespace);
        Ok(Some(Self {
            title: format!("{} {namespace}/{}", object.kind, object.name),
            namespace: namespace.to_owned(),
            labels,
            ports,
            host_network: spec.get("hostNetwork").map_or(Ok(false), |flag| flag.flag())?,
        }))
    }
}

fn read_ports(spec: &Fields, key: &str, ports: &mut Vec<NamedPort>) -> Read<()> {
    for container in spec.items(key)? {
        read_container(&container.any_fields()?, ports)?;
    }
    Ok(())
}

fn read_container(container: &Fields, ports: &mut Vec<NamedPort>) -> Read<()> {
    for port in container.items("ports")? {
        let fields = port.fields(&["name", "containerPort", "protocol", "hostPort", "hostIP"])?;
        let Some(name_place) = fields.get("name") else {
            continue;
        };
        let name = name_place.string()?;
        check_port_name(&name_place, name)?;
        let protocol = match fields.get("protocol") {
            // It cannot be named by a policy, so it need not be understood.
            Some(place) if place.string()? == "SCTP" => continue,
            Some(place) => read_protocol(&place)?,
            None => crate::model::PortRange::TCP,
        };
        let number = fields.require("containerPort")?.port()?;
        check_unique(&name_place, name, ports)?;
        ports.push(NamedPort { name: name.to_owned(), protocol, port: number });
    }
    Ok(())
}

fn check_unique(place: &Place, name: &str, ports: &[NamedPort]) -> Read<()> {
    match ports.iter().any(|port| port.name == name) {
        false => Ok(()),
        true => Err(place.error(format!("`{name}` is another port's name in this pod too: expected each name once"))),
    }
}
