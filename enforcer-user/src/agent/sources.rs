//! What finds PUs and their tags, as the configuration asks for it.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Shared, sink::Sink};
use crate::{
    probe::mounts,
    workload::{
        Extractor, Pipeline, PuSink, Source, Stop,
        container_common::Stopped,
        cri::Cri,
        docker::Docker,
        finder::Finder,
        host::{self, HostTags},
        object::Attributes,
    },
};

/// Running sources; they end when this is dropped.
pub(super) struct Running {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
    /// Looks at PUs for the sources, and at those that people make.
    pub pipeline: Arc<Pipeline>,
}

/// Before a source that failed runs again.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts everything that finds PUs. What runs already is found when this returns.
///
/// # Errors
/// What the configuration asks for and cannot be had.
pub(super) fn start(shared: &Arc<Shared>) -> anyhow::Result<Running> {
    let config = &shared.config;
    let root = config.cgroup_root()?;
    let own = shared.state().own.id().clone();
    let of_host = HostTags { tags: host::tags(config, own.as_str()), enforcer: own.name().into() };
    let mut extractors: Vec<Arc<dyn Extractor>> = vec![Arc::new(of_host), Arc::new(Attributes::new(&root))];
    extractors.extend(shared.facts.extractors());
    let pipeline = Arc::new(Pipeline::start(Arc::new(Sink(shared.clone())), extractors)?);
    let _ = shared.pipeline.set(Arc::downgrade(&pipeline));
    let stopped = Stopped::new(config.engines());
    let mut finder = Finder::new(config, shared.maps.clone(), pipeline.clone(), stopped.clone())?;
    finder.prepare()?;
    let mut sources: Vec<Box<dyn Source>> = vec![Box::new(finder)];
    let mount = mounts::cgroup2()?.unwrap_or_else(|| root.clone());
    if config.docker.enabled {
        sources.push(Box::new(Docker::new(config.docker.clone(), root.clone(), mount.clone(), stopped.clone())));
    }
    if config.containerd.enabled {
        let accounts = shared.facts.accounts();
        sources.push(Box::new(Cri::new(config.containerd.clone(), root, mount, accounts, stopped)));
    }
    sources.extend(shared.facts.sources());
    let mut running = Running { stop: Stop::default(), threads: Vec::new(), pipeline };
    for mut source in sources {
        let sink: Arc<dyn PuSink> = running.pipeline.clone();
        let (stop, name) = (running.stop.clone(), source.name());
        let work = move || {
            while !stop.is_set() {
                match source.run(sink.clone(), &stop) {
                    Ok(()) => tracing::debug!(source = source.name(), "the source has ended"),
                    Err(error) => {
                        tracing::warn!(source = source.name(), error = format!("{error:#}"), "the source begins again");
                    }
                }
                stop.wait(PAUSE);
            }
        };
        running.threads.push(thread::Builder::new().name(name.into()).spawn(work)?);
    }
    Ok(running)
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.set();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
