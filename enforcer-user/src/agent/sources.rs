//! The threads of what finds PUs and their tags.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::workload::{PuSink, Source, Stop};

/// Running sources; they end when this is dropped.
pub(super) struct Running {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

/// Before a source that failed runs again.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts a thread for each source.
///
/// # Errors
/// If a thread cannot be made.
pub(super) fn start(sink: &Arc<dyn PuSink>, sources: Vec<Box<dyn Source>>) -> std::io::Result<Running> {
    let mut running = Running { stop: Stop::default(), threads: Vec::new() };
    for mut source in sources {
        let (sink, stop, name) = (sink.clone(), running.stop.clone(), source.name());
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
