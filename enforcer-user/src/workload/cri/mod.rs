//! Pods: a source of PUs that follows a runtime which speaks CRI, such as containerd.
//!
//! Events are only a reason to list again: which events a runtime tells differs (containerd before 1.7 has none of CRI's,
//! but its own), what it lists does not. A pod is listed once its sandbox runs, and its containers are created after
//! that, so its PU is there before anything of it can send.

mod client;
mod due;
mod map;
pub mod proto;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tonic::Streaming;

use super::container_common::{Engine, Site, Stopped, follow};
use super::{PuSink, Source, Stop};
use crate::config::ContainerdConfig;
use crate::facts::{Accounts, Claim, account};

pub use client::{Client, CriError};
use due::Due;
pub use map::{Status, containers_of, is_live, status, unit};
use proto::{
    ContainerEventResponse, Envelope, GetEventsRequest, ListContainersRequest, ListContainersResponse,
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxStatusRequest, PodSandboxStatusResponse,
    SubscribeRequest, VersionRequest, VersionResponse,
};

/// Keys of its PUs begin so.
pub const PREFIX: &str = "pod:";

/// A sandbox's cgroup is made so long before the sandbox is listed, at most.
const LISTED_WITHIN: Duration = Duration::from_millis(500);

/// The source.
pub struct Cri {
    config: ContainerdConfig,
    cgroup_root: PathBuf,
    cgroup_mount: PathBuf,
    accounts: Accounts,
    stopped: Stopped,
}

impl Cri {
    /// A source of this configuration; `cgroup_root` is where PUs may be, `cgroup_mount` what `/proc/PID/cgroup` is relative
    /// to; `accounts` judges the tokens of service accounts, and `stopped` are containers that wait for what it says.
    pub fn new(
        config: ContainerdConfig,
        cgroup_root: PathBuf,
        cgroup_mount: PathBuf,
        accounts: Accounts,
        stopped: Stopped,
    ) -> Self {
        Self { config, cgroup_root, cgroup_mount, accounts, stopped }
    }
}

impl Source for Cri {
    fn name(&self) -> &'static str {
        "pods"
    }

    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopped = self.stopped.clone();
        let mut site = Site::new(PREFIX, &self.cgroup_root, &self.cgroup_mount, &*sink, stopped)?;
        let mut following = Following { config: &self.config, accounts: &self.accounts, statuses: BTreeMap::new() };
        runtime.block_on(follow(&mut following, &mut site, stop));
        Ok(())
    }
}

/// What is known of the runtime while it comes and goes.
struct Following<'a> {
    config: &'a ContainerdConfig,
    accounts: &'a Accounts,
    /// By sandbox.
    statuses: BTreeMap<String, Status>,
}

/// What is asked is not known yet.
struct Pending;

/// Where a runtime tells that something happened.
enum Events {
    Containerd(Streaming<Envelope>),
    Cri(Streaming<ContainerEventResponse>),
    /// Nowhere.
    None,
}

impl Events {
    async fn subscribe(client: &mut Client) -> Result<Self, CriError> {
        let filters = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/create"];
        let filters = filters.iter().map(|topic| format!("topic==\"{topic}\"")).collect();
        let method = "/containerd.services.events.v1.Events/Subscribe";
        match client.stream(method, SubscribeRequest { filters }).await {
            Ok(events) => return Ok(Self::Containerd(events)),
            Err(error) if error.is_unimplemented() => {}
            Err(error) => return Err(error),
        }
        match client.stream("/runtime.v1.RuntimeService/GetContainerEvents", GetEventsRequest {}).await {
            Ok(events) => Ok(Self::Cri(events)),
            Err(error) if error.is_unimplemented() => Ok(Self::None),
            Err(error) => Err(error),
        }
    }

    fn announce(&self) {
        match self {
            Self::Containerd(_) => tracing::debug!("events are containerd's own"),
            Self::Cri(_) => tracing::info!("events are those of CRI"),
            Self::None => tracing::warn!("this runtime tells no events: pods are listed every second"),
        }
    }

    /// Waits until something happened; `false` if the runtime ends the stream.
    async fn next(&mut self) -> Result<bool, Box<tonic::Status>> {
        match self {
            Self::Containerd(events) => events.message().await.map(|event| event.is_some()).map_err(Box::new),
            Self::Cri(events) => events.message().await.map(|event| event.is_some()).map_err(Box::new),
            Self::None => std::future::pending().await,
        }
    }
}

impl Engine for Following<'_> {
    const NAME: &'static str = "the runtime";
    const UNITS: &'static str = "pods";

    async fn connected(&mut self, site: &mut Site<'_>, stop: &Stop) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.config.socket).await?;
        let version: VersionResponse =
            client.call("/runtime.v1.RuntimeService/Version", VersionRequest::default()).await?;
        let runtime = version.runtime_name.as_str();
        // A runtime may answer a subscription only with its first event: on a connection of its own nothing waits for it.
        let mut events = Events::None;
        let mut subscriber = Client::connect(&self.config.socket).await?;
        let mut subscribing = Box::pin(async move { Events::subscribe(&mut subscriber).await });
        let mut subscribed = false;
        let waits = self.list(site, &mut client, runtime).await?;
        tracing::info!(socket = %self.config.socket.display(), runtime, "following pods");
        let mut due = Due::new(Instant::now());
        if waits {
            due.hinted(Instant::now());
        }
        while !stop.is_set() {
            tokio::select! {
                result = &mut subscribing, if !subscribed => {
                    events = result?;
                    subscribed = true;
                    events.announce();
                    due.told(Instant::now());
                }
                event = events.next(), if subscribed => match event? {
                    true => due.told(Instant::now()),
                    false => return Ok(()),
                },
                // Without events, this is the first to tell of a new pod.
                () = site.changed() => match events {
                    Events::None => due.told(Instant::now()),
                    _ => due.hinted(Instant::now()),
                },
                () = sleep(due.pause(Instant::now())) => {}
            }
            if due.is_due(Instant::now(), matches!(events, Events::None)) {
                due.listed(Instant::now());
                if self.list(site, &mut client, runtime).await? {
                    due.hinted(Instant::now());
                }
            }
            site.settle();
        }
        Ok(())
    }
}

impl Following<'_> {
    /// Lists everything; whether to do so again soon, since an account is not known yet.
    async fn list(&mut self, site: &mut Site<'_>, client: &mut Client, runtime: &str) -> Result<bool, CriError> {
        let pods: ListPodSandboxResponse =
            client.call("/runtime.v1.RuntimeService/ListPodSandbox", ListPodSandboxRequest {}).await?;
        let containers: ListContainersResponse =
            client.call("/runtime.v1.RuntimeService/ListContainers", ListContainersRequest {}).await?;
        let (mut present, mut waits) = (BTreeSet::new(), false);
        for pod in pods.items.iter().filter(|pod| is_live(pod)) {
            let Some(status) = self.status(client, pod).await? else { continue };
            present.insert(pod.id.clone());
            let inside: Vec<_> = containers_of(pod, &containers.containers).collect();
            let account = self.service_account(pod);
            waits |= account.is_err();
            let account = account.unwrap_or_default();
            let namespace = self.config.namespace.as_deref();
            let unit = map::unit(pod, &inside, &status, runtime, account.as_deref(), namespace);
            let members = inside.iter().map(|container| container.id.clone()).chain([pod.id.clone()]);
            site.tracker.know(&pod.id, unit, members, site.sink);
            if let Some(pid) = status.pid {
                site.tracker.runs(&pod.id, pid);
            }
            find_cgroup(site, pod);
        }
        self.statuses.retain(|id, _| present.contains(id));
        site.settle();
        site.tracker.only(&present, site.sink);
        site.unknown(LISTED_WITHIN).iter().for_each(|container| site.disown(container));
        Ok(waits)
    }

    /// The service account that one of the pod's tokens proves; an error if the issuer's keys are not here yet.
    fn service_account(&self, pod: &PodSandbox) -> Result<Option<String>, Pending> {
        let metadata = pod.metadata.as_ref();
        let (namespace, uid) = metadata.map(|it| (it.namespace.as_str(), it.uid.as_str())).unwrap_or_default();
        let mut pending = Ok(None);
        for token in map::tokens(&self.config.kubelet, pod) {
            match self.accounts.claim(&token, account::Pod { namespace, uid }) {
                Claim::Account(name) => return Ok(Some(name)),
                Claim::Pending => pending = Err(Pending),
                Claim::Nothing => {}
            }
        }
        pending
    }

    /// What the status of a sandbox says does not change; `None` if there is no such sandbox any more.
    async fn status(&mut self, client: &mut Client, pod: &PodSandbox) -> Result<Option<Status>, CriError> {
        if let Some(status) = self.statuses.get(&pod.id) {
            return Ok(Some(status.clone()));
        }
        let question = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        let answer = client.call("/runtime.v1.RuntimeService/PodSandboxStatus", question).await;
        let response: PodSandboxStatusResponse = match answer {
            Ok(response) => response,
            Err(CriError::Call { status, .. }) if status.code() == tonic::Code::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let status = status(&response);
        self.statuses.insert(pod.id.clone(), status.clone());
        Ok(Some(status))
    }
}

/// Kubelet gives each pod a cgroup, named after its uid, and has the runtime put the pod's containers there.
fn find_cgroup(site: &mut Site<'_>, pod: &PodSandbox) {
    let uid = pod.metadata.as_ref().map(|metadata| metadata.uid.as_str()).unwrap_or_default();
    let Some(parent) = site.cgroups.of_container(&pod.id).and_then(|path| Some(path.parent()?.to_owned())) else {
        return;
    };
    let name = parent.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let own = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    if !uid.is_empty() && own.iter().any(|own| name == own || name.ends_with(&format!("-{own}"))) {
        site.tracker.lives_in(&pod.id, parent);
    }
}
