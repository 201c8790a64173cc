//! How every source of facts fares: for `status`, the metrics and the log.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use prometheus::{IntCounterVec, Opts, core::Collector};

use super::{FactError, Fault};
use crate::admin::view::FactView;

/// What is known of every source.
#[derive(Debug)]
pub struct Board {
    states: Mutex<BTreeMap<(&'static str, String), State>>,
    errors: IntCounterVec,
}

#[derive(Debug, Default)]
struct State {
    detail: String,
    error: Option<String>,
    // The last time it was right.
    right: Option<Instant>,
}

/// Kinds of sources: the label of the counter.
pub const KINDS: [&str; 5] = ["cloud", "feed", "oidc", "plugin", "serviceaccount"];

impl Board {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// Never in practice: the metric's name is constant.
    pub fn new() -> prometheus::Result<Self> {
        let errors = IntCounterVec::new(
            Opts::new(
                "enforcer_fact_errors_total",
                "Facts that could not be had or were not believed, by source (cloud, feed, oidc, plugin, serviceaccount) and fault.",
            ),
            &["source", "fault"],
        )?;
        // So that a rate can be computed from the first error on.
        for kind in KINDS {
            Fault::ALL.iter().for_each(|fault| errors.with_label_values(&[kind, fault.name()]).inc_by(0));
        }
        Ok(Self { states: Mutex::default(), errors })
    }

    /// The counters, for the metrics' registry.
    pub fn collector(&self) -> Box<dyn Collector> {
        Box::new(self.errors.clone())
    }

    /// There is such a source; nothing is known of it yet.
    pub fn expect(&self, kind: &'static str, name: &str) {
        self.update(kind, name, |_| {});
    }

    /// A source gave what it should.
    pub fn right(&self, kind: &'static str, name: &str, detail: String) {
        self.update(kind, name, |state| {
            if state.error.take().is_some() {
                tracing::info!(source = kind, name, "facts are right again");
            }
            state.detail = detail;
            state.right = Some(Instant::now());
        });
    }

    /// A source failed: counted always, logged when the error is another one than before.
    pub fn wrong(&self, kind: &'static str, name: &str, error: &FactError) {
        self.count(kind, error.fault);
        let text = error.to_string();
        self.update(kind, name, |state| {
            if state.error.as_ref() != Some(&text) {
                tracing::warn!(source = kind, name, error = text, "no facts");
            }
            state.error = Some(text.clone());
        });
    }

    /// Counts without a word in `status`: one that many may cause.
    pub fn count(&self, kind: &'static str, fault: Fault) {
        self.errors.with_label_values(&[kind, fault.name()]).inc();
    }

    /// Everything, by kind and name.
    pub fn view(&self) -> Vec<FactView> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let view = |((kind, name), state): (&(&'static str, String), &State)| FactView {
            source: (*kind).into(),
            name: name.clone(),
            detail: state.detail.clone(),
            age_s: state.right.map(|right| right.elapsed().as_secs()),
            error: state.error.clone(),
        };
        states.iter().map(view).collect()
    }

    fn update(&self, kind: &'static str, name: &str, change: impl FnOnce(&mut State)) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        change(states.entry((kind, name.to_owned())).or_default());
    }
}
