//! Enforcement on trial: `enforcer run --confirm`. What this start put in force goes back unless somebody confirms.
//!
//! Each PU that is made meanwhile, the host PU and new settings are on trial in the kernel, which lets go of them by itself when
//! the time is over: a killed agent locks nobody out. The agent then puts back what was before: the policy too, or, if nothing was
//! in force, it unloads everything.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use common::{abi, host::Host};

use super::{
    Shared, last_good,
    names::{AGENT_DOC, AgentDoc},
    policy::{self, Rules},
    pus,
    state::State,
};
use crate::{
    admin::{AdminError, ErrorKind},
    config::{Config, PolicyText, Unmanaged},
    map_write::{ConfigWriter, Table},
    sys,
};

/// The agent ended before it was confirmed, and what it put in force is withdrawn.
#[derive(Clone, Debug, thiserror::Error)]
#[error("not confirmed: {}", if *.all { "everything is unloaded" } else { "what was in force before is again" })]
pub struct NotConfirmed {
    /// Nothing was in force before.
    pub all: bool,
}

/// Whether this agent is on trial.
#[derive(Debug, Default)]
pub(super) struct Trial(Mutex<Option<Running>>);

/// A trial.
#[derive(Debug)]
pub(super) struct Running {
    length: Duration,
    until: Instant,
    /// Nothing was in force before.
    all: bool,
    /// PUs of this index and above are on trial.
    from: u32,
    /// `CONFIG_*` bits before.
    flags: u32,
    /// The policy in force, if it is another than before.
    policy: Option<Vec<PolicyText>>,
}

/// A start may take that long before its time begins to run.
const START: Duration = Duration::from_secs(60);
/// Settings that can be on trial.
const SETTINGS: u32 = abi::CONFIG_UNMANAGED_DENY | abi::CONFIG_STRANGERS_REJECT;

impl Trial {
    pub fn new(running: Option<Running>) -> Self {
        Self(Mutex::new(running))
    }

    /// Seconds left; none if nothing is on trial.
    pub fn left(&self) -> Option<u64> {
        self.lock().as_ref().map(|running| running.until.saturating_duration_since(Instant::now()).as_secs())
    }

    /// Waits until the time of a trial is over; for ever if there is none.
    pub async fn over(&self) {
        loop {
            if self.lock().as_ref().is_some_and(|running| Instant::now() >= running.until) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent is ready: the time begins.
pub(super) fn ready(shared: &Shared) -> anyhow::Result<()> {
    let mut trial = shared.trial.lock();
    let Some(running) = &mut *trial else { return Ok(()) };
    running.until = Instant::now() + running.length;
    let until = sys::monotonic_ns() + running.length.as_nanos() as u64;
    shared.state().change_host(|host| host.trial_until_ns = until)?;
    let length = humantime::format_duration(running.length).to_string();
    tracing::warn!(within = length, "on trial: goes back unless you run `enforcer confirm`");
    Ok(())
}

/// What is on trial stays.
pub(super) fn confirm(shared: &Shared) -> Result<(), AdminError> {
    let mut trial = shared.trial.lock();
    let Some(running) = trial.take() else {
        let message = "nothing is on trial; `enforcer run --confirm 60s` begins a trial";
        return Err(AdminError::new(ErrorKind::Invalid, message));
    };
    let mut state = shared.state();
    let settled = state.config.update(|config| config.flags &= !abi::CONFIG_TRIAL);
    if let Err(error) = settled.and_then(|()| state.change_host(end)) {
        *trial = Some(running);
        return Err(AdminError::internal(error));
    }
    if let Some(texts) = &running.policy {
        last_good::save(&shared.config.paths.socket, texts);
    }
    tracing::info!("confirmed");
    Ok(())
}

/// Keeps a copy of the policy now in force; of one on trial only once it is confirmed.
pub(super) fn keep_policy(shared: &Shared, texts: Vec<PolicyText>) {
    match &mut *shared.trial.lock() {
        Some(running) => running.policy = Some(texts),
        None => last_good::save(&shared.config.paths.socket, &texts),
    }
}

/// Puts back what was in force before, if this agent is on trial still; the caller unloads where that was nothing.
pub(super) fn withdraw(shared: &Shared) -> Option<NotConfirmed> {
    let running = shared.trial.lock().take()?;
    let all = running.all;
    tracing::error!(
        "not confirmed: {}",
        if all { "everything is unloaded" } else { "what was in force before is put back" }
    );
    if !all {
        put_back(shared, &running);
    }
    Some(NotConfirmed { all })
}

fn put_back(shared: &Shared, running: &Running) {
    let tried: Vec<u32> = shared.state().pus.range(running.from..).map(|(index, _)| *index).collect();
    tried.into_iter().for_each(|index| pus::let_go(shared, index));
    if running.policy.is_some() {
        let tried = shared.state().rules.clone();
        let before = last_good::read(&shared.config.paths.socket).and_then(|texts| Rules::parse(texts, &tried));
        if let Err(error) = before.and_then(|rules| policy::install(shared, rules)) {
            tracing::error!(error = format!("{error:#}"), "the policy on trial stays in force");
        }
    }
    let mut state = shared.state();
    let flags = running.flags & SETTINGS;
    let done = state.config.update(|config| config.flags = config.flags & !(SETTINGS | abi::CONFIG_TRIAL) | flags);
    if let Err(error) = done.and_then(|()| state.change_host(end)) {
        tracing::error!(%error, "the kernel was not told that the trial is over; it ends by itself");
    }
}

fn end(host: &mut Host) {
    (host.trial_until_ns, host.trial_from, host.trial_flags) = (0, 0, 0);
}

/// What an agent finds, for a start that fails before it is ready.
pub(super) struct Before {
    flags: u32,
    host: Host,
}

impl Before {
    /// Reads it; none if nothing is in force.
    pub fn read(maps: &Path) -> Option<Self> {
        let config = ConfigWriter::open(maps).ok()?;
        let host = Table::open(maps, "HOST").ok()?.get(&0).ok()??;
        Some(Self { flags: config.current().flags, host })
    }

    /// Puts it back.
    pub fn restore(&self, maps: &Path) {
        let restored = ConfigWriter::open(maps).and_then(|mut config| {
            let which = SETTINGS | abi::CONFIG_TRIAL;
            config.update(|config| config.flags = config.flags & !which | self.flags & which)?;
            Table::open(maps, "HOST")?.insert(&0, &self.host)
        });
        if let Err(error) = restored {
            tracing::error!(%error, "a failed start is not wholly undone");
        }
    }
}

impl State {
    /// Begins a trial, or makes an end of one that a former agent began; before anything else is changed.
    pub fn begin_trial(
        &mut self,
        config: &Config,
        length: Option<Duration>,
        first: bool,
    ) -> anyhow::Result<Option<Running>> {
        let former = *self.config.current();
        let host = self.maps.host.get(&0)?.unwrap_or_default();
        let unfinished = former.flags & abi::CONFIG_TRIAL != 0;
        let Some(length) = length else {
            if unfinished {
                tracing::warn!("a trial that nobody confirmed is over: this start puts in force what it says");
                self.config.update(|config| config.flags &= !abi::CONFIG_TRIAL)?;
                self.change_host(end)?;
            }
            return Ok(None);
        };
        let doc = self.maps.pu_docs.get(AGENT_DOC)?;
        let doc = doc.and_then(|bytes| serde_json::from_slice::<AgentDoc>(&bytes).ok());
        let next = doc.map_or(1, |doc| doc.next_pu.max(1));
        let all = first || unfinished && host.trial_from == 0;
        let from = match (all, unfinished) {
            (true, _) => 0,
            (false, true) => host.trial_from.min(next),
            (false, false) => next,
        };
        let flags = if unfinished { former.flags & !host.trial_flags } else { former.flags };
        let denies = config.datapath.unmanaged == Unmanaged::Deny && flags & abi::CONFIG_UNMANAGED_DENY == 0;
        let until = sys::monotonic_ns() + (START + length).as_nanos() as u64;
        self.change_host(|host| {
            host.trial_until_ns = until;
            host.trial_from = from;
            host.trial_flags = if denies { abi::CONFIG_UNMANAGED_DENY } else { 0 };
        })?;
        self.config.update(|config| config.flags |= abi::CONFIG_TRIAL)?;
        Ok(Some(Running { length, until: Instant::now() + START + length, all, from, flags, policy: None }))
    }
}
