//! What tells systemd of the agent: that it is ready, that its loops turn, that it ends (sd_notify(3)).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

use super::Shared;

/// The thread that answers for the loops; it ends when this is dropped.
pub(super) struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How often the loops are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Says that the agent is ready and, if the service manager wants to hear it, from now on that it lives. A loop that is
/// stuck silences it: then the service manager ends the agent and starts it again.
///
/// # Errors
/// If the thread cannot be made.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<Watchdog> {
    let stop = Arc::new(AtomicBool::new(false));
    let (shared, stopped) = (shared.clone(), stop.clone());
    // Half of what the manager waits for, as sd_watchdog_enabled(3) recommends.
    let every = sd_notify::watchdog_enabled().map(|usec| usec / 2);
    tell(&[NotifyState::Ready, NotifyState::Status("enforcing")]);
    let watch = move || {
        let (mut next, mut silent) = (Instant::now(), false);
        while !stopped.load(Ordering::Acquire) {
            let stuck = shared.pulse.stuck();
            if !stuck.is_empty() && !silent {
                let stuck: Vec<_> = stuck.iter().map(ToString::to_string).collect();
                tracing::error!(stuck = stuck.join(", "), "the agent hangs; enforcement goes on in the kernel");
            } else if stuck.is_empty() && silent {
                tracing::warn!("all loops turn again");
            }
            silent = !stuck.is_empty();
            if let Some(every) = every
                && !silent
                && Instant::now() >= next
            {
                next = Instant::now() + every;
                tell(&[NotifyState::Watchdog]);
            }
            thread::sleep(TICK);
        }
    };
    let thread = thread::Builder::new().name("watchdog".into()).spawn(watch)?;
    Ok(Watchdog { stop, thread: Some(thread) })
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        tell(&[NotifyState::Stopping]);
    }
}

/// Without a service manager there is nobody to tell.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager is not told how the agent fares");
    }
}
