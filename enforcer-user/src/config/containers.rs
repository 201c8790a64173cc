//! `[docker]` and `[containerd]`: containers and pods as PUs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{check::is_namespace, pod_tokens::PodTokens};

/// `[docker]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DockerConfig {
    /// Whether containers become PUs.
    pub enabled: bool,
    /// Where the engine listens.
    pub socket: PathBuf,
    /// Namespace of the PUs; the agent's own if left out.
    pub namespace: Option<String>,
}

/// `[containerd]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerdConfig {
    /// Whether pods become PUs.
    pub enabled: bool,
    /// Where the runtime listens.
    pub socket: PathBuf,
    /// Kubelet's directory, where the tokens of service accounts are.
    pub kubelet: PathBuf,
    /// Namespace of the PUs, in which `{namespace}` stands for that of the pod; the agent's own if left out.
    pub namespace: Option<String>,
    /// Whose tokens of service accounts are believed.
    pub tokens: PodTokens,
}

/// In `containerd.namespace`: the namespace of the pod.
pub const POD_NAMESPACE: &str = "{namespace}";

impl Default for DockerConfig {
    fn default() -> Self {
        Self { enabled: false, socket: "/run/docker.sock".into(), namespace: None }
    }
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            socket: "/run/containerd/containerd.sock".into(),
            kubelet: "/var/lib/kubelet".into(),
            namespace: None,
            tokens: PodTokens::default(),
        }
    }
}

impl DockerConfig {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        check("docker", &self.socket, self.namespace.as_deref())
    }
}

impl ContainerdConfig {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let namespace = self.namespace.as_ref().map(|namespace| namespace.replace(POD_NAMESPACE, "pod"));
        check("containerd", &self.socket, namespace.as_deref())?;
        self.tokens.check()
    }
}

fn check(section: &str, socket: &std::path::Path, namespace: Option<&str>) -> Result<(), (String, String)> {
    if socket.as_os_str().is_empty() {
        return Err((format!("{section}.socket"), "must be the path of a socket".into()));
    }
    if namespace.is_some_and(|namespace| !is_namespace(namespace)) {
        let problem = "must be an absolute path such as \"/acme/prod\", without empty segments";
        return Err((format!("{section}.namespace"), problem.into()));
    }
    Ok(())
}
