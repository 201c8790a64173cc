//! Pods: a source of PUs that follows a runtime which speaks CRI, such as containerd.
//!
//! Events are only a reason to list again: which events a runtime tells differs (containerd before 1.7 has none of CRI's,
//! but its own), what it lists does not. A pod is listed once its sandbox runs, and its containers are created after
//! that, so its PU is there before anything of it can send.

mod client;
mod map;
pub mod proto;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;

use super::container_common::{CgroupWatch, Tracker};
use super::{PuSink, Source, Stop};
use crate::config::ContainerdConfig;
use crate::link_net;

pub use client::{Client, CriError};
pub use map::{Status, account_of, containers_of, is_live, status, unit};
use proto::{
    ContainerEventResponse, Envelope, GetEventsRequest, ListContainersRequest, ListContainersResponse,
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxStatusRequest, PodSandboxStatusResponse,
    SubscribeRequest, VersionRequest, VersionResponse,
};

/// Keys of its PUs begin so.
pub const PREFIX: &str = "pod:";

/// Waiting time after the runtime could not be reached, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How often everything is listed again where events tell of changes, and where they do not.
const RESYNC: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1));
/// For so long after an event, everything is listed again every so often: a runtime tells of a sandbox's process a moment
/// before it lists the sandbox.
const ECHO: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(50));
/// How soon it is noticed that the agent ends.
const STOP_LOOK: Duration = Duration::from_millis(500);

/// The source.
pub struct Cri {
    config: ContainerdConfig,
    cgroup_root: PathBuf,
    cgroup_mount: PathBuf,
}

impl Cri {
    /// A source of this configuration; `cgroup_root` is where PUs may be, `cgroup_mount` what `/proc/PID/cgroup` is relative
    /// to.
    pub fn new(config: ContainerdConfig, cgroup_root: PathBuf, cgroup_mount: PathBuf) -> Self {
        Self { config, cgroup_root, cgroup_mount }
    }
}

impl Source for Cri {
    fn name(&self) -> &'static str {
        "pods"
    }

    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.follow(&*sink, stop))
    }
}

impl Cri {
    async fn follow(&self, sink: &dyn PuSink, stop: &Stop) -> anyhow::Result<()> {
        let host = Arc::new(Notify::new());
        let (links, made) = (host.clone(), host.clone());
        let _watch = link_net::watch(move |_| links.notify_one()).context("watching interfaces")?;
        let cgroups = CgroupWatch::start(&self.cgroup_root, move || made.notify_one())
            .with_context(|| format!("watching cgroups below {}", self.cgroup_root.display()))?;
        let tracker = Tracker::new(PREFIX, &self.cgroup_mount, sink)?;
        let statuses = BTreeMap::new();
        let mut following = Following { config: &self.config, tracker, statuses, cgroups, host, sink };
        let mut back_off = BACK_OFF.0;
        let mut said = false;
        while !stop.is_set() {
            let connected = Instant::now();
            match following.connected(stop).await {
                Ok(()) => tracing::info!("the runtime ended its events; its pods stay PUs"),
                Err(error) if !said => tracing::warn!(%error, "no events from the runtime; its pods stay PUs"),
                Err(error) => tracing::debug!(%error, "still no events from the runtime"),
            }
            if connected.elapsed() > BACK_OFF.1 {
                (back_off, said) = (BACK_OFF.0, false);
            } else {
                said = true;
            }
            following.meanwhile(stop, back_off).await;
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
        Ok(())
    }
}

/// What lasts while the runtime comes and goes.
struct Following<'a> {
    config: &'a ContainerdConfig,
    tracker: Tracker,
    /// By sandbox.
    statuses: BTreeMap<String, Status>,
    cgroups: CgroupWatch,
    host: Arc<Notify>,
    sink: &'a dyn PuSink,
}

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

    /// Waits until something happened; `false` if the runtime ends the stream.
    async fn next(&mut self) -> Result<bool, Box<tonic::Status>> {
        match self {
            Self::Containerd(events) => events.message().await.map(|event| event.is_some()).map_err(Box::new),
            Self::Cri(events) => events.message().await.map(|event| event.is_some()).map_err(Box::new),
            Self::None => std::future::pending().await,
        }
    }
}

impl Following<'_> {
    /// One connection to the runtime, from its beginning to its end.
    async fn connected(&mut self, stop: &Stop) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.config.socket).await?;
        let version: VersionResponse =
            client.call("/runtime.v1.RuntimeService/Version", VersionRequest::default()).await?;
        // A runtime may answer a subscription only with its first event: on a connection of its own nothing waits for it.
        let mut events = Events::None;
        let mut subscriber = Client::connect(&self.config.socket).await?;
        let mut subscribing = Box::pin(async move { Events::subscribe(&mut subscriber).await });
        let mut subscribed = false;
        self.list(&mut client, &version.runtime_name).await?;
        tracing::info!(socket = %self.config.socket.display(), runtime = %version.runtime_name, "following pods");
        let (mut listed, mut told) = (Instant::now(), Instant::now());
        while !stop.is_set() {
            let echo = told.elapsed() < ECHO.0;
            tokio::select! {
                result = &mut subscribing, if !subscribed => {
                    events = result?;
                    subscribed = true;
                    told = Instant::now();
                }
                event = events.next(), if subscribed => match event? {
                    true => told = Instant::now(),
                    false => return Ok(()),
                },
                () = self.host.notified() => {}
                () = sleep(if echo { ECHO.1 } else { STOP_LOOK }) => {}
            }
            let resync = if matches!(events, Events::None) { RESYNC.1 } else { RESYNC.0 };
            if told > listed || (echo && listed.elapsed() >= ECHO.1) || listed.elapsed() > resync {
                listed = Instant::now();
                self.list(&mut client, &version.runtime_name).await?;
            }
            self.settle();
        }
        Ok(())
    }

    /// Without the runtime: interfaces and cgroups still come and go.
    async fn meanwhile(&mut self, stop: &Stop, pause: Duration) {
        let until = Instant::now() + pause;
        while !stop.is_set() && Instant::now() < until {
            let pause = STOP_LOOK.min(until.saturating_duration_since(Instant::now()));
            let _ = timeout(pause, self.host.notified()).await;
            self.settle();
        }
    }

    fn settle(&mut self) {
        if let Err(error) = self.tracker.settle(Some(&self.cgroups), self.sink) {
            tracing::warn!(%error, "interfaces cannot be listed");
        }
    }

    async fn list(&mut self, client: &mut Client, runtime: &str) -> Result<(), CriError> {
        let pods: ListPodSandboxResponse =
            client.call("/runtime.v1.RuntimeService/ListPodSandbox", ListPodSandboxRequest {}).await?;
        let containers: ListContainersResponse =
            client.call("/runtime.v1.RuntimeService/ListContainers", ListContainersRequest {}).await?;
        let mut present = BTreeSet::new();
        for pod in pods.items.iter().filter(|pod| is_live(pod)) {
            let Some(status) = self.status(client, pod).await? else { continue };
            present.insert(pod.id.clone());
            let inside: Vec<_> = containers_of(pod, &containers.containers).collect();
            let account = map::service_account(&self.config.kubelet, pod);
            let namespace = self.config.namespace.as_deref();
            let unit = map::unit(pod, &inside, &status, runtime, account.as_deref(), namespace);
            let members = inside.iter().map(|container| container.id.clone()).chain([pod.id.clone()]);
            self.tracker.know(&pod.id, unit, members, self.sink);
            if let Some(pid) = status.pid {
                self.tracker.runs(&pod.id, pid);
            }
            self.find_cgroup(pod);
        }
        self.statuses.retain(|id, _| present.contains(id));
        self.settle();
        self.tracker.only(&present, self.sink);
        Ok(())
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

    /// Kubelet gives each pod a cgroup, named after its uid, and has the runtime put the pod's containers there.
    fn find_cgroup(&mut self, pod: &PodSandbox) {
        let uid = pod.metadata.as_ref().map(|metadata| metadata.uid.as_str()).unwrap_or_default();
        let Some(parent) = self.cgroups.of_container(&pod.id).and_then(|path| Some(path.parent()?.to_owned())) else {
            return;
        };
        let name = parent.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.strip_suffix(".slice").unwrap_or(name);
        let own = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
        if !uid.is_empty() && own.iter().any(|own| name == own || name.ends_with(&format!("-{own}"))) {
            self.tracker.lives_in(&pod.id, parent);
        }
    }
}
