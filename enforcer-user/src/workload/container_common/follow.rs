//! Following an engine that comes and goes, on a host whose interfaces and cgroups do too.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::super::{PuSink, Stop};
use super::{CgroupWatch, Tracker};
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
    /// Where PUs are told.
    pub sink: &'a dyn PuSink,
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
    ) -> anyhow::Result<Self> {
        let changed = Arc::new(Notify::new());
        let (links, made) = (changed.clone(), changed.clone());
        let links = link_net::watch(move |_| links.notify_one()).context("watching interfaces")?;
        let cgroups = CgroupWatch::start(cgroup_root, move || made.notify_one())
            .with_context(|| format!("watching cgroups below {}", cgroup_root.display()))?;
        Ok(Self { tracker: Tracker::new(prefix, cgroup_mount, sink)?, cgroups, sink, changed, _links: links })
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
