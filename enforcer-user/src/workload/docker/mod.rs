//! Docker containers: a source of PUs that follows the Engine API.
//!
//! What the daemon is asked before a container has started must not wait for the container's lock, which the daemon
//! holds while it starts: so containers are read from the list, and inspected only once they run.

mod api;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::container_common::{CgroupWatch, Tracker};
use super::{PuSink, Source, Stop};
use crate::config::DockerConfig;
use crate::link_net;

use api::{Api, ApiError};
pub use api::{EVENT_MAX, Lines};
pub use model::{Event, Image, Inspected, Listed, NetworkListed};

/// Keys of its PUs begin so.
pub const PREFIX: &str = "docker:";

/// Waiting time after the daemon could not be reached, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How often everything is listed again, in case an event was lost.
const RESYNC: Duration = Duration::from_secs(60);
/// How often a container that is about to start is looked for, should neither interfaces nor cgroups tell.
const LOOK: Duration = Duration::from_millis(100);
/// How soon it is noticed that the agent ends.
const STOP_LOOK: Duration = Duration::from_millis(500);

/// The source.
pub struct Docker {
    config: DockerConfig,
    cgroup_root: PathBuf,
    cgroup_mount: PathBuf,
}

impl Docker {
    /// A source of this configuration; `cgroup_root` is where PUs may be, `cgroup_mount` what `/proc/PID/cgroup` is relative
    /// to.
    pub fn new(config: DockerConfig, cgroup_root: PathBuf, cgroup_mount: PathBuf) -> Self {
        Self { config, cgroup_root, cgroup_mount }
    }
}

impl Source for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.follow(&*sink, stop))
    }
}

impl Docker {
    async fn follow(&self, sink: &dyn PuSink, stop: &Stop) -> anyhow::Result<()> {
        let host = Arc::new(Notify::new());
        let (links, made) = (host.clone(), host.clone());
        let _watch = link_net::watch(move |_| links.notify_one()).context("watching interfaces")?;
        let cgroups = CgroupWatch::start(&self.cgroup_root, move || made.notify_one())
            .with_context(|| format!("watching cgroups below {}", self.cgroup_root.display()))?;
        let mut following = Following {
            api: Api::new(&self.config.socket),
            namespace: self.config.namespace.clone(),
            tracker: Tracker::new(PREFIX, &self.cgroup_mount, sink)?,
            images: BTreeMap::new(),
            cgroups,
            host,
            sink,
        };
        let mut back_off = BACK_OFF.0;
        let mut said = false;
        while !stop.is_set() {
            let connected = Instant::now();
            match following.connected(stop).await {
                Ok(()) => tracing::info!("dockerd ended its events; its containers stay PUs"),
                Err(error) if !said => tracing::warn!(%error, "no events from dockerd; its containers stay PUs"),
                Err(error) => tracing::debug!(%error, "still no events from dockerd"),
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

/// What lasts while the daemon comes and goes.
struct Following<'a> {
    api: Api,
    namespace: Option<String>,
    tracker: Tracker,
    images: BTreeMap<String, Image>,
    cgroups: CgroupWatch,
    /// Interfaces or cgroups changed.
    host: Arc<Notify>,
    sink: &'a dyn PuSink,
}

impl Following<'_> {
    /// One connection to the daemon, from its beginning to its end.
    async fn connected(&mut self, stop: &Stop) -> anyhow::Result<()> {
        // Before the lists: what happens while they are read is told afterwards.
        let mut events = self.api.events().await?;
        self.list_networks().await?;
        self.list_containers().await?;
        let mut listed = Instant::now();
        tracing::info!(socket = %self.api.socket().display(), "following dockerd");
        while !stop.is_set() {
            let pause = if self.tracker.is_waiting() { LOOK } else { STOP_LOOK };
            tokio::select! {
                event = events.next() => match event? {
                    Some(line) => self.happened(&line).await?,
                    None => return Ok(()),
                },
                () = self.host.notified() => {}
                () = sleep(pause) => {}
            }
            self.settle();
            if listed.elapsed() > RESYNC {
                self.list_networks().await?;
                self.list_containers().await?;
                listed = Instant::now();
            }
        }
        Ok(())
    }

    /// Without the daemon: interfaces and cgroups still come and go.
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

    async fn happened(&mut self, line: &[u8]) -> Result<(), ApiError> {
        match Event::parse(line) {
            Ok(Event::Changed(id)) => self.look_at(&id).await,
            Ok(Event::Started(id)) => {
                self.look_at(&id).await?;
                self.find_process(&id).await
            }
            Ok(Event::Ended(id)) => {
                self.tracker.end(&id, self.sink);
                Ok(())
            }
            Ok(Event::Networks) => self.list_networks().await,
            Ok(Event::Other) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "an event of dockerd's was not understood");
                Ok(())
            }
        }
    }

    /// One container, which may be about to start, or to end.
    async fn look_at(&mut self, id: &str) -> Result<(), ApiError> {
        let filter = format!("/containers/json?all=1&filters=%7B%22id%22%3A%5B%22{id}%22%5D%7D");
        let listed: Vec<Listed> = self.api.get(&filter).await?;
        for container in listed.into_iter().filter(|container| container.id == id) {
            self.know(container).await;
        }
        Ok(())
    }

    /// The first process of a container that has started.
    async fn find_process(&mut self, id: &str) -> Result<(), ApiError> {
        match self.api.get::<Inspected>(&format!("/containers/{id}/json")).await {
            Ok(inspected) => inspected.pid().into_iter().for_each(|pid| self.tracker.runs(id, pid)),
            // It ended meanwhile; that event is on its way.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn list_networks(&mut self) -> Result<(), ApiError> {
        let networks: Vec<NetworkListed> = self.api.get("/networks").await?;
        let bridges: BTreeSet<String> = networks.iter().filter_map(NetworkListed::bridge).collect();
        self.tracker.set_bridges(bridges);
        Ok(())
    }

    async fn list_containers(&mut self) -> Result<(), ApiError> {
        let listed: Vec<Listed> = self.api.get("/containers/json?all=1").await?;
        let mut present = BTreeSet::new();
        for container in listed.into_iter().filter(Listed::is_sound) {
            let id = container.id.clone();
            let alive = container.is_alive();
            // One that was only made is known already if it was seen being made: it may be about to start.
            if alive || (container.is_new() && self.tracker.knows(&id)) {
                present.insert(id.clone());
                self.know(container).await;
            }
            if alive {
                self.find_process(&id).await?;
            }
        }
        self.settle();
        self.tracker.only(&present, self.sink);
        Ok(())
    }

    async fn know(&mut self, container: Listed) {
        let image = &container.image_id;
        if !image.is_empty() && !self.images.contains_key(image) && Image::is_id(image) {
            match self.api.get::<Image>(&format!("/images/{image}/json")).await {
                Ok(found) => drop(self.images.insert(image.clone(), found)),
                Err(error) => tracing::debug!(%error, "an image's digest is not known"),
            }
        }
        let unit = container.unit(self.images.get(image), self.namespace.as_deref());
        let id = container.id;
        self.tracker.know(&id, unit, [id.clone()], self.sink);
    }
}
