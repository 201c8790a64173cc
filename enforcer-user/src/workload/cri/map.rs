//! What the runtime says of pods, and what it means here: pure, but for the reading of tokens.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::super::TagSource;
use super::super::container_common::{Network, Unit, is_container_id, value};
use super::super::tags::sift;
use super::proto::{
    CONTAINER_CREATED, CONTAINER_RUNNING, Container, NAMESPACE_NODE, PodSandbox, PodSandboxStatusResponse,
    SANDBOX_READY,
};
use crate::config::POD_NAMESPACE;
use crate::facts::jwt::TOKEN_MAX;
use crate::identity::Tags;

/// What only the sandbox's status tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether the pod is in the host's network namespace.
    pub host_network: bool,
    /// A process in the pod's namespaces.
    pub pid: Option<u32>,
}

/// Reads the status of a sandbox.
pub fn status(response: &PodSandboxStatusResponse) -> Status {
    /// containerd and CRI-O both put JSON with this field there.
    #[derive(Default, Deserialize)]
    struct Info {
        #[serde(default)]
        pid: i64,
    }
    let options =
        response.status.as_ref().and_then(|status| status.linux.as_ref()?.namespaces.as_ref()?.options.as_ref());
    let info = response.info.get("info").and_then(|info| serde_json::from_str::<Info>(info).ok()).unwrap_or_default();
    Status {
        host_network: options.is_some_and(|options| options.network == NAMESPACE_NODE),
        pid: u32::try_from(info.pid).ok().filter(|pid| *pid != 0),
    }
}

/// Whether a sandbox is one to follow: it is ready, and its id can be a part of keys.
pub fn is_live(pod: &PodSandbox) -> bool {
    pod.state == SANDBOX_READY && is_container_id(&pod.id)
}

/// The containers of a pod that run or are about to.
pub fn containers_of<'a>(pod: &'a PodSandbox, all: &'a [Container]) -> impl Iterator<Item = &'a Container> {
    all.iter().filter(|container| {
        container.pod_sandbox_id == pod.id
            && matches!(container.state, CONTAINER_CREATED | CONTAINER_RUNNING)
            && is_container_id(&container.id)
    })
}

/// What a pod is.
pub fn unit(
    pod: &PodSandbox,
    containers: &[&Container],
    status: &Status,
    runtime: &str,
    service_account: Option<&str>,
    namespace: Option<&str>,
) -> Unit {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let mut own = Tags::new();
    value(&mut own, "@k8s:pod", &metadata.name);
    value(&mut own, "@k8s:namespace", &metadata.namespace);
    value(&mut own, "@k8s:serviceaccount", service_account.unwrap_or_default());
    // Kubelet's own labels say what the metadata say.
    let labels = pod.labels.iter().filter(|(key, _)| !key.starts_with("io.kubernetes."));
    let sifted = sift(labels);
    let pod_tags = super::super::container_common::join(own, sifted.tags);

    let mut inside = Tags::new();
    value(&mut inside, "@container:id", &pod.id);
    value(&mut inside, "@container:runtime", runtime);
    value(&mut inside, "@container:network", if status.host_network { "host" } else { "pod" });
    for container in containers {
        let image = container.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        value(&mut inside, "@container:image", image);
        let digest = container.image_ref.rsplit_once('@').map_or(container.image_ref.as_str(), |(_, digest)| digest);
        value(&mut inside, "@container:digest", digest);
        let name = container.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
        value(&mut inside, "@container:name", name);
    }
    let name = match (metadata.namespace.as_str(), metadata.name.as_str()) {
        (_, "") => pod.id.chars().take(12).collect(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    Unit {
        name,
        namespace: namespace.map(|pattern| pattern.replace(POD_NAMESPACE, segment(&metadata.namespace))),
        tags: vec![(TagSource::Pod, pod_tags), (TagSource::Container, inside)],
        refused: sifted.refused,
        network: if status.host_network { Network::Host } else { Network::Own },
    }
}

/// The name of a Kubernetes namespace (a DNS label), or what stands for something that is none.
fn segment(namespace: &str) -> &str {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !namespace.is_empty() && namespace.len() <= 63 && namespace.bytes().all(fits) { namespace } else { "invalid" }
}

/// The tokens of service accounts that kubelet mounts into a pod: the directory is kubelet's own. The runtime is not told of the
/// account, and labels and annotations are whatever the pod's author writes.
pub fn tokens(kubelet: &Path, pod: &PodSandbox) -> Vec<String> {
    let uid = pod.metadata.as_ref().map(|metadata| metadata.uid.as_str()).unwrap_or_default();
    if uid.is_empty() || !uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Vec::new();
    }
    let volumes = kubelet.join("pods").join(uid).join("volumes/kubernetes.io~projected");
    let volumes = std::fs::read_dir(volumes).into_iter().flatten().flatten().take(VOLUMES_MAX);
    let read = |volume: std::fs::DirEntry| {
        let mut token = String::new();
        let file = File::open(volume.path().join("token")).ok()?;
        file.take(TOKEN_MAX as u64 + 1).read_to_string(&mut token).ok()?;
        Some(token)
    };
    volumes.filter_map(read).collect()
}

/// Volumes of a pod that are looked at, at most.
const VOLUMES_MAX: usize = 64;

#[cfg(test)]
mod tests;
