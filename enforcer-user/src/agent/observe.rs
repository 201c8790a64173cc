//! Observe mode switched on and off: the kernel is told PU by PU, so that it holds while no agent runs.

use common::identity::{PU_INCOMPLETE, PU_OBSERVED};
use policy::Namespace;

use super::{
    Shared, policy as decree,
    state::{LocalPu, State},
};
use crate::admin::{AdminError, Caller, ErrorKind};
use crate::observe::ObserveError;

/// Switches, and returns what is observed then.
pub(super) fn switch(
    shared: &Shared,
    caller: Caller,
    namespace: Option<String>,
    on: bool,
) -> Result<Vec<String>, AdminError> {
    let invalid = |error: &dyn std::fmt::Display| AdminError::new(ErrorKind::Invalid, error.to_string());
    let parsed = namespace.map(|text| text.parse::<Namespace>()).transpose().map_err(|error| invalid(&error))?;
    let mut state = shared.state();
    let changed = match on {
        true => state.observed.switch_on(parsed.clone().unwrap_or_default()),
        false => state.observed.switch_off(parsed.as_ref()),
    };
    let changed = changed.map_err(|error| match error {
        ObserveError::Write { .. } => AdminError::internal(error),
        ObserveError::Enforced(_) => AdminError::new(ErrorKind::NotFound, error.to_string()),
        ObserveError::Around { .. } => invalid(&error),
    })?;
    let now: Vec<String> = state.observed.namespaces().map(ToString::to_string).collect();
    if !changed {
        return Ok(now);
    }
    let of = parsed.unwrap_or_default();
    if on {
        tracing::warn!(uid = caller.uid, "namespace {of} is NOT enforced from now on (observe mode)");
    } else {
        tracing::info!(uid = caller.uid, "namespace {of} is enforced from now on");
    }
    state.mark_all().map_err(AdminError::internal)?;
    drop(state);
    // What observe mode alone kept alive ends with it.
    decree::rejudge(shared);
    Ok(now)
}

/// Says at the start what is not enforced.
pub(super) fn announce(state: &State) {
    for namespace in state.observed.namespaces() {
        tracing::warn!("namespace {namespace} is NOT enforced (observe mode); `enforcer observe off` enforces it");
    }
}

impl State {
    /// Whether a PU's namespace is in observe mode.
    pub fn is_observed(&self, pu: u32) -> bool {
        self.pus.get(&pu).is_some_and(|pu| self.observes(pu))
    }

    /// Tells the kernel whether a PU is observed, and whether it is complete.
    pub fn mark(&mut self, pu: &LocalPu) -> anyhow::Result<()> {
        let flags = self.flags(pu);
        self.pu_slots.set_flags(pu.index, flags)?;
        Ok(())
    }

    fn flags(&self, pu: &LocalPu) -> u16 {
        let observed = if self.observes(pu) { PU_OBSERVED } else { 0 };
        observed | if pu.complete { 0 } else { PU_INCOMPLETE }
    }

    /// Tells the kernel of every PU, and to judge live flows again.
    fn mark_all(&mut self) -> anyhow::Result<()> {
        let marks: Vec<(u32, u16)> = self.pus.values().map(|pu| (pu.index, self.flags(pu))).collect();
        for (index, flags) in marks {
            self.pu_slots.set_flags(index, flags)?;
        }
        self.next_generation()
    }

    /// A namespace that cannot be read as one is enforced.
    fn observes(&self, pu: &LocalPu) -> bool {
        pu.namespace.parse::<Namespace>().is_ok_and(|namespace| self.observed.covers(&namespace))
    }
}
