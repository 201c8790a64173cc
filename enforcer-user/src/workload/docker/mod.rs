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

use tokio::time::{Instant, sleep};

use super::container_common::{Engine, STOP_LOOK, Site, Stopped, follow};
use super::{PuSink, Source, Stop};
use crate::config::DockerConfig;

use api::{Api, ApiError};
pub use api::{EVENT_MAX, Lines};
pub use model::{Event, Image, Inspected, Listed, NetworkListed};

/// Keys of its PUs begin so.
pub const PREFIX: &str = "docker:";

/// How often everything is listed again, in case an event was lost.
const RESYNC: Duration = Duration::from_secs(60);
/// How often a container that is about to start is looked for, should neither interfaces nor cgroups tell.
const LOOK: Duration = Duration::from_millis(100);

/// The source.
pub struct Docker {
    config: DockerConfig,
    cgroup_root: PathBuf,
    cgroup_mount: PathBuf,
    stopped: Stopped,
}

impl Docker {
    /// A source of this configuration; `cgroup_root` is where PUs may be, `cgroup_mount` what `/proc/PID/cgroup` is relative
    /// to; `stopped` are containers that wait for what it says.
    pub fn new(config: DockerConfig, cgroup_root: PathBuf, cgroup_mount: PathBuf, stopped: Stopped) -> Self {
        Self { config, cgroup_root, cgroup_mount, stopped }
    }
}

impl Source for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn run(&mut self, sink: Arc<dyn PuSink>, stop: &Stop) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopped = self.stopped.clone();
        let mut site = Site::new(PREFIX, &self.cgroup_root, &self.cgroup_mount, &*sink, stopped)?;
        let api = Api::new(&self.config.socket);
        let mut following = Following { api, namespace: self.config.namespace.clone(), images: BTreeMap::new() };
        runtime.block_on(follow(&mut following, &mut site, stop));
        Ok(())
    }
}

/// What is known of the daemon while it comes and goes.
struct Following {
    api: Api,
    namespace: Option<String>,
    images: BTreeMap<String, Image>,
}

impl Engine for Following {
    const NAME: &'static str = "dockerd";
    const UNITS: &'static str = "containers";

    async fn connected(&mut self, site: &mut Site<'_>, stop: &Stop) -> anyhow::Result<()> {
        // Before the lists: what happens while they are read is told afterwards.
        let mut events = self.api.events().await?;
        self.list_networks(site).await?;
        self.list_containers(site).await?;
        let mut listed = Instant::now();
        tracing::info!(socket = %self.api.socket().display(), "following dockerd");
        while !stop.is_set() {
            let pause = if site.tracker.is_waiting() { LOOK } else { STOP_LOOK };
            tokio::select! {
                event = events.next() => match event? {
                    Some(line) => self.happened(&line, site).await?,
                    None => return Ok(()),
                },
                () = site.changed() => {}
                () = sleep(pause) => {}
            }
            site.settle();
            self.ask(site).await?;
            if listed.elapsed() > RESYNC {
                self.list_networks(site).await?;
                self.list_containers(site).await?;
                listed = Instant::now();
            }
        }
        Ok(())
    }
}

impl Following {
    async fn happened(&mut self, line: &[u8], site: &mut Site<'_>) -> Result<(), ApiError> {
        match Event::parse(line) {
            Ok(Event::Changed(id)) => self.look_at(&id, site).await,
            Ok(Event::Started(id)) => {
                self.look_at(&id, site).await?;
                self.find_process(&id, site).await
            }
            Ok(Event::Ended(id)) => {
                site.tracker.end(&id, site.sink);
                Ok(())
            }
            Ok(Event::Networks) => self.list_networks(site).await,
            Ok(Event::Other) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "an event of dockerd's was not understood");
                Ok(())
            }
        }
    }

    /// One container, which may be about to start, or to end.
    async fn look_at(&mut self, id: &str, site: &mut Site<'_>) -> Result<(), ApiError> {
        let filter = format!("/containers/json?all=1&filters=%7B%22id%22%3A%5B%22{id}%22%5D%7D");
        let listed: Vec<Listed> = self.api.get(&filter).await?;
        for container in listed.into_iter().filter(|container| container.id == id) {
            self.know(container, site).await;
        }
        Ok(())
    }

    /// Containers that are stopped, and of which no event has told yet.
    async fn ask(&mut self, site: &mut Site<'_>) -> Result<(), ApiError> {
        let unknown = site.unknown(Duration::ZERO);
        for container in &unknown {
            if !site.tracker.has(container) {
                self.look_at(container, site).await?;
                site.disown(container);
            }
        }
        if !unknown.is_empty() {
            site.settle();
        }
        Ok(())
    }

    /// The first process of a container that has started.
    async fn find_process(&mut self, id: &str, site: &mut Site<'_>) -> Result<(), ApiError> {
        match self.api.get::<Inspected>(&format!("/containers/{id}/json")).await {
            Ok(inspected) => inspected.pid().into_iter().for_each(|pid| site.tracker.runs(id, pid)),
            // It ended meanwhile; that event is on its way.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn list_networks(&mut self, site: &mut Site<'_>) -> Result<(), ApiError> {
        let networks: Vec<NetworkListed> = self.api.get("/networks").await?;
        let bridges: BTreeSet<String> = networks.iter().filter_map(NetworkListed::bridge).collect();
        site.tracker.set_bridges(bridges);
        Ok(())
    }

    async fn list_containers(&mut self, site: &mut Site<'_>) -> Result<(), ApiError> {
        let listed: Vec<Listed> = self.api.get("/containers/json?all=1").await?;
        let mut present = BTreeSet::new();
        for container in listed.into_iter().filter(Listed::is_sound) {
            let id = container.id.clone();
            let alive = container.is_alive();
            // One that was only made is known already if it was seen being made: it may be about to start.
            if alive || (container.is_new() && site.tracker.knows(&id)) {
                present.insert(id.clone());
                self.know(container, site).await;
            }
            if alive {
                self.find_process(&id, site).await?;
            }
        }
        site.settle();
        site.tracker.only(&present, site.sink);
        Ok(())
    }

    async fn know(&mut self, container: Listed, site: &mut Site<'_>) {
        let image = &container.image_id;
        if !image.is_empty() && !self.images.contains_key(image) && Image::is_id(image) {
            match self.api.get::<Image>(&format!("/images/{image}/json")).await {
                Ok(found) => drop(self.images.insert(image.clone(), found)),
                Err(error) => tracing::debug!(%error, "an image's digest is not known"),
            }
        }
        let unit = container.unit(self.images.get(image), self.namespace.as_deref());
        let id = container.id;
        site.tracker.know(&id, unit, [id.clone()], site.sink);
    }
}
