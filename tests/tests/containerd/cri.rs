//! What kubelet does, as far as the tests need it: pods and containers through CRI, with the enforcer's own client.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use enforcer_user::workload::cri::Client;
use enforcer_user::workload::cri::proto::{
    ContainerMetadata, ImageSpec, NAMESPACE_NODE, NamespaceOption, PodSandboxMetadata, PodSandboxStatusRequest,
    VersionRequest, VersionResponse,
};
use prost::Message;
use tests::{Attempt, Containerd, Host, POD_IMAGE, cgroup_parent};

/// A connection to a runtime.
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    client: Mutex<Client>,
    parent: String,
}

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub labels: Vec<(String, String)>,
    pub host_network: bool,
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: String,
    pub config: PodSandboxConfig,
}

/// What a command in a container said.
#[derive(Clone, Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Pod {
    pub fn new(name: &str, namespace: &str, labels: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let uid = format!("00000000-0000-4000-8000-{:012}", COUNT.fetch_add(1, Ordering::Relaxed));
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self { name: name.into(), namespace: namespace.into(), uid, labels, host_network: false }
    }

    pub fn on_host_network(self) -> Self {
        Self { host_network: true, ..self }
    }
}

impl Cri {
    pub fn connect(host: &Host, containerd: &Containerd) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(Client::connect(&containerd.socket()))?;
        Ok(Self { runtime, client: Mutex::new(client), parent: cgroup_parent(host, "kubepods")? })
    }

    /// Connects again after the runtime restarted.
    pub fn reconnect(&mut self, containerd: &Containerd) -> Result<()> {
        self.client = Mutex::new(self.runtime.block_on(Client::connect(&containerd.socket()))?);
        let deadline = Instant::now() + Duration::from_secs(20);
        // It listens before it serves.
        while let Err(error) =
            self.call::<_, VersionResponse>("/runtime.v1.RuntimeService/Version", VersionRequest::default())
        {
            ensure!(Instant::now() < deadline, "{error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Makes a pod's sandbox, labelled and placed as kubelet does.
    pub fn run_pod(&self, pod: &Pod) -> Result<Sandbox> {
        let own = [
            ("io.kubernetes.pod.name", &pod.name),
            ("io.kubernetes.pod.namespace", &pod.namespace),
            ("io.kubernetes.pod.uid", &pod.uid),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value.clone()));
        let network = if pod.host_network { NAMESPACE_NODE } else { 0 };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                namespace: pod.namespace.clone(),
                attempt: 0,
            }),
            hostname: if pod.host_network { String::new() } else { pod.name.clone() },
            labels: pod.labels.iter().cloned().chain(own).collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/besteffort/pod{}", self.parent, pod.uid),
                security_context: Some(SecurityContext { namespace_options: Some(options(network)) }),
            }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer: Id1 = self.call("/runtime.v1.RuntimeService/RunPodSandbox", request)?;
        Ok(Sandbox { id: answer.id, config })
    }

    /// Makes a container in a pod, without starting it.
    pub fn create_container(&self, pod: &Sandbox, name: &str, command: &[&str]) -> Result<String> {
        let network = pod.config.linux.as_ref().and_then(|linux| linux.security_context.clone());
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: POD_IMAGE.into() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            linux: network.map(|context| LinuxContainerConfig {
                security_context: Some(ContainerSecurityContext { namespace_options: context.namespace_options }),
            }),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer: Id1 = self.call("/runtime.v1.RuntimeService/CreateContainer", request)?;
        Ok(answer.id)
    }

    /// Makes and starts a container.
    pub fn start_container(&self, pod: &Sandbox, name: &str, command: &[&str]) -> Result<String> {
        let id = self.create_container(pod, name, command)?;
        self.start(&id)?;
        Ok(id)
    }

    pub fn start(&self, container: &str) -> Result<()> {
        let _: Nothing = self.call("/runtime.v1.RuntimeService/StartContainer", Id1 { id: container.into() })?;
        Ok(())
    }

    /// Ends a pod and removes it.
    pub fn remove_pod(&self, pod: &Sandbox) -> Result<()> {
        let _: Nothing = self.call("/runtime.v1.RuntimeService/StopPodSandbox", Id1 { id: pod.id.clone() })?;
        let _: Nothing = self.call("/runtime.v1.RuntimeService/RemovePodSandbox", Id1 { id: pod.id.clone() })?;
        Ok(())
    }

    /// A command in a container, to its end.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Said> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: container.into(), cmd, timeout: 20 };
        let answer: ExecSyncResponse = self.call("/runtime.v1.RuntimeService/ExecSync", request)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Said { code: answer.exit_code, stdout: text(answer.stdout), stderr: text(answer.stderr) })
    }

    /// One attempt to connect, from within a container.
    pub fn connect_from(&self, container: &str, to: &str, args: &[&str]) -> Result<Attempt> {
        #[derive(serde::Deserialize)]
        struct Attempts {
            attempts: Vec<Attempt>,
        }
        let said = self.exec(container, &[&["/bin/lab-tool", "connect", to], args].concat())?;
        ensure!(said.code == 0, "lab-tool connect: {}{}", said.stderr, said.stdout);
        serde_json::from_str::<Attempts>(&said.stdout)?.attempts.pop().context("no attempt")
    }

    /// The address of a pod.
    pub fn address(&self, pod: &Sandbox) -> Result<String> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        let answer: AddressResponse = self.call("/runtime.v1.RuntimeService/PodSandboxStatus", request)?;
        let address = answer.status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
        ensure!(!address.is_empty(), "the pod has no address");
        Ok(address)
    }

    /// Waits until a container's processes listen.
    pub fn wait_for_listener(&self, container: &str, port: u16) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let wanted = format!(":{port:04X} ");
        loop {
            let tables = self.exec(container, &["/bin/cat", "/proc/net/tcp", "/proc/net/tcp6"])?.stdout;
            if tables.lines().any(|line| line.contains(&wanted) && line.contains(" 0A ")) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("nobody listens on {port}: {tables}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn call<Q, A>(&self, method: &'static str, question: Q) -> Result<A>
    where
        Q: Message + Send + 'static,
        A: Message + Default + Send + 'static,
    {
        let mut client = self.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(self.runtime.block_on(client.call(method, question))?)
    }
}

fn options(network: i32) -> NamespaceOption {
    // `NamespaceMode.CONTAINER`: processes of each container see their own only.
    NamespaceOption { network, pid: 1, ipc: 0 }
}

/// Every message here whose first field is an id.
#[derive(Clone, PartialEq, Message)]
struct Id1 {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainerConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainerConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<ContainerSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurityContext {
    #[prost(message, optional, tag = "3")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct AddressResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<AddressStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct AddressStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<AddressNetwork>,
}

#[derive(Clone, PartialEq, Message)]
struct AddressNetwork {
    #[prost(string, tag = "1")]
    ip: String,
}
