//! Following an engine that comes and goes, on a host whose interfaces and cgroups do too.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::super::{PuSink, Stop};
use super::{CgroupWatch, Stopped, Tracker};
use crate::link_net;

/// Waiting time after an engine could not be reached, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How soon it is noticed that the agent ends.
pub const STOP_LOOK: Duration = Duration::from_millis(500);

/// An engine that tells of units as long as a connection to it lasts.
pub trait Engine {
    /// What logs call it.
    const NAME: &'static str;
    /// What logs call its units.
    const UNITS: &'static str;

    /// One connection, from its beginning to its end.
    fn connected(&mut self, site: &mut Site<'_>, stop: &Stop) -> impl Future<Output = anyhow::Result<()>>;
}

/// What lasts while an engine comes and goes: its units, and what of this host leads to them.
pub struct Site<'a> {
    /// The engine's units.
    pub tracker: Tracker,
    /// The cgroups of containers.
    pub cgroups: CgroupWatch,
    /// Containers that wait for what is said of them.
    pub stopped: Stopped,
    /// Where PUs are told.
    pub sink: &'a dyn PuSink,
    prefix: &'static str,
    changed: Arc<Notify>,
    _links: link_net::Watch,
}

impl<'a> Site<'a> {
    /// For units whose keys begin with `prefix`; `cgroup_root` is where they may be, `cgroup_mount` what `/proc/PID/cgroup` is
    /// relative to.
    ///
    /// # Errors
    /// If interfaces or cgroups cannot be watched.
    pub fn new(
        prefix: &'static str,
        cgroup_root: &Path,
        cgroup_mount: &Path,
        sink: &'a dyn PuSink,
        stopped: Stopped,
    ) -> anyhow::Result<Self> {
        let changed = Arc::new(Notify::new());
        stopped.wake(&changed);
        let (links, made) = (changed.clone(), changed.clone());
        let links = link_net::watch(move |_| links.notify_one()).context("watching interfaces")?;
        let cgroups = CgroupWatch::start(cgroup_root, move || made.notify_one())
            .with_context(|| format!("watching cgroups below {}", cgroup_root.display()))?;
        let tracker = Tracker::new(prefix, cgroup_mount, sink)?;
        Ok(Self { tracker, cgroups, stopped, sink, prefix, changed, _links: links })
    }

    /// Waits until interfaces or cgroups change.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Brings the agent up to date with interfaces and cgroups as they are now.
    pub fn settle(&mut self) {
        if let Err(error) = self.tracker.settle(Some(&self.cgroups), self.sink) {
            tracing::warn!(%error, "interfaces cannot be listed");
        }
        for (container, _) in self.stopped.open(self.prefix) {
            if let Some(by_cgroup) = self.tracker.is_by_cgroup(&container) {
                self.stopped.known(&container, by_cgroup);
            }
        }
    }

    /// Containers that are stopped for so long at least, and of which nothing is known here.
    pub fn unknown(&self, stopped_for: Duration) -> Vec<String> {
        let open = self.stopped.open(self.prefix).into_iter();
        let unknown = open.filter(|(container, since)| {
            since.elapsed() >= stopped_for && self.tracker.is_by_cgroup(container).is_none()
        });
        unknown.map(|(container, _)| container).collect()
    }

    /// The engine knows nothing of a container.
    pub fn disown(&self, container: &str) {
        if !self.tracker.has(container) {
            self.stopped.foreign(self.prefix, container);
        }
    }

    /// Without the engine: interfaces and cgroups still come and go.
    async fn meanwhile(&mut self, stop: &Stop, pause: Duration) {
        let until = Instant::now() + pause;
        while !stop.is_set() && Instant::now() < until {
            let pause = STOP_LOOK.min(until.saturating_duration_since(Instant::now()));
            let _ = timeout(pause, self.changed()).await;
            self.settle();
        }
    }
}

/// Connects to an engine again and again, until the agent ends.
pub async fn follow<E: Engine>(engine: &mut E, site: &mut Site<'_>, stop: &Stop) {
    let mut back_off = BACK_OFF.0;
    let mut said = false;
    while !stop.is_set() {
        let began = Instant::now();
        match engine.connected(site, stop).await {
            Ok(()) => tracing::info!("{} ended its events; its {} stay PUs", E::NAME, E::UNITS),
            Err(error) if !said => tracing::warn!(%error, "no events from {}; its {} stay PUs", E::NAME, E::UNITS),
            Err(error) => tracing::debug!(%error, "still no events from {}", E::NAME),
        }
        if began.elapsed() > BACK_OFF.1 {
            (back_off, said) = (BACK_OFF.0, false);
        } else {
            said = true;
        }
        site.meanwhile(stop, back_off).await;
        back_off = (back_off * 2).min(BACK_OFF.1);
    }
}
