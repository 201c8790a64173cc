//! What came of connections by rule, counted from the same events as the flow records: the kernel's programs pay nothing for it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use common::event::{EVENT_CUT, EVENT_DENY, EVENT_END, Event};
use prometheus::{IntCounter, IntCounterVec, Opts, core::Collector};

use crate::flow_log::{Names, RuleName};

/// What the labels of verdicts say that found no series of their own; no namespace, policy or rule is called so, since every
/// namespace begins with `/`.
const OTHER: &str = "other";

/// Counts connections when they end, and refusals as they are told of, by namespace, policy and rule.
pub struct RuleVerdicts {
    counters: IntCounterVec,
    most: usize,
    names: Arc<dyn Names>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names as of which the numbers below are right.
    version: u64,
    by_number: HashMap<(u32, &'static str), IntCounter>,
    series: HashSet<(RuleName, &'static str)>,
}

impl RuleVerdicts {
    /// At most `most` series, beside those of everything that found none; 0 for no counting at all.
    ///
    /// # Errors
    /// Never in practice: the metric's name is constant.
    pub fn new(most: usize, names: Arc<dyn Names>) -> prometheus::Result<Self> {
        let options = Opts::new(
            "enforcer_rule_verdicts_total",
            "Connections ended or refused, by the rule that decided, or would if it were not observed only (would_allow, would_deny).",
        );
        let counters = IntCounterVec::new(options, &["namespace", "policy", "rule", "verdict"])?;
        Ok(Self { counters, most, names, state: Mutex::default() })
    }

    /// The counters, for the metrics' registry.
    pub fn collector(&self) -> Box<dyn Collector> {
        Box::new(self.counters.clone())
    }

    /// Takes an event in.
    pub fn take(&self, event: &Event) {
        let refused = match event.kind {
            EVENT_DENY | EVENT_CUT => true,
            EVENT_END => false,
            // Its end is told of, too.
            _ => return,
        };
        if self.most == 0 {
            return;
        }
        let (verdict, would) = if refused { ("deny", "would_allow") } else { ("allow", "would_deny") };
        for (rule, verdict) in [(event.rule, verdict), (event.observed_rule, would)] {
            if rule != 0 {
                self.count(rule, verdict);
            }
        }
    }

    fn count(&self, rule: u32, verdict: &'static str) {
        // A panic elsewhere leaves at worst a counter that is looked for again.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.names.rules_version();
        if state.version != version {
            state.version = version;
            state.by_number.clear();
        }
        if let Some(counter) = state.by_number.get(&(rule, verdict)) {
            return counter.inc();
        }
        let counter = self.counter(&mut state, self.names.rule(rule), verdict);
        counter.inc();
        state.by_number.insert((rule, verdict), counter);
    }

    fn counter(&self, state: &mut State, name: RuleName, verdict: &'static str) -> IntCounter {
        let series = (name, verdict);
        let has_room = state.series.contains(&series) || state.series.len() < self.most;
        if !has_room || series.0.policy.is_empty() {
            return self.counters.with_label_values(&[OTHER, OTHER, OTHER, verdict]);
        }
        let counter =
            self.counters.with_label_values(&[&*series.0.namespace, &*series.0.policy, &*series.0.rule, verdict]);
        state.series.insert(series);
        counter
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use common::event::EVENT_START;
    use prometheus::{Registry, TextEncoder};

    use super::*;

    /// Rule `n` is called `r<n + shift>`; rule 99 is unknown.
    #[derive(Default)]
    struct Rules {
        version: AtomicU64,
    }

    impl Names for Rules {
        fn pu(&self, _: u32) -> String {
            String::new()
        }
        fn peer(&self, _: u32, _: u32) -> String {
            String::new()
        }
        fn rule(&self, rule: u32) -> RuleName {
            let rule = u64::from(rule) + self.version.load(Ordering::Relaxed);
            if rule == 99 {
                return RuleName::default();
            }
            RuleName { namespace: "/shop".into(), policy: "p".into(), rule: format!("r{rule}").into() }
        }
        fn rules_version(&self) -> u64 {
            self.version.load(Ordering::Relaxed)
        }
    }

    fn shown(verdicts: &RuleVerdicts) -> Vec<String> {
        let registry = Registry::new();
        registry.register(verdicts.collector()).expect("registered");
        let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        let lines = text.lines().filter_map(|line| line.strip_prefix("enforcer_rule_verdicts_total"));
        lines.map(str::to_owned).collect()
    }

    fn event(kind: u8, rule: u32, observed_rule: u32) -> Event {
        Event { kind, rule, observed_rule, ..Event::default() }
    }

    #[test]
    fn every_event_counts_for_the_rules_it_names() {
        let verdicts = RuleVerdicts::new(10, Arc::new(Rules::default())).expect("metric");
        for event in [
            event(EVENT_START, 1, 0),
            event(EVENT_END, 1, 0),
            event(EVENT_END, 1, 2),
            event(EVENT_DENY, 3, 0),
            event(EVENT_DENY, 0, 2),
            event(EVENT_CUT, 3, 0),
            event(EVENT_DENY, 0, 0),
            event(EVENT_END, 99, 0),
        ] {
            verdicts.take(&event);
        }
        assert_eq!(
            shown(&verdicts),
            [
                r#"{namespace="/shop",policy="p",rule="r1",verdict="allow"} 2"#,
                r#"{namespace="/shop",policy="p",rule="r2",verdict="would_allow"} 1"#,
                r#"{namespace="/shop",policy="p",rule="r2",verdict="would_deny"} 1"#,
                r#"{namespace="/shop",policy="p",rule="r3",verdict="deny"} 2"#,
                r#"{namespace="other",policy="other",rule="other",verdict="allow"} 1"#,
            ]
        );
    }

    #[test]
    fn beyond_the_most_there_is_one_series_for_all() {
        let verdicts = RuleVerdicts::new(2, Arc::new(Rules::default())).expect("metric");
        for _ in 0..2 {
            (1..=5).for_each(|rule| verdicts.take(&event(EVENT_END, rule, 0)));
        }
        assert_eq!(
            shown(&verdicts),
            [
                r#"{namespace="/shop",policy="p",rule="r1",verdict="allow"} 2"#,
                r#"{namespace="/shop",policy="p",rule="r2",verdict="allow"} 2"#,
                r#"{namespace="other",policy="other",rule="other",verdict="allow"} 6"#,
            ]
        );
        let none = RuleVerdicts::new(0, Arc::new(Rules::default())).expect("metric");
        none.take(&event(EVENT_END, 1, 0));
        assert_eq!(shown(&none), [""; 0]);
    }

    #[test]
    fn a_number_that_names_another_rule_counts_for_that() {
        let names = Arc::new(Rules::default());
        let verdicts = RuleVerdicts::new(10, names.clone()).expect("metric");
        verdicts.take(&event(EVENT_END, 1, 0));
        names.version.store(1, Ordering::Relaxed);
        verdicts.take(&event(EVENT_END, 1, 0));
        assert_eq!(
            shown(&verdicts),
            [
                r#"{namespace="/shop",policy="p",rule="r1",verdict="allow"} 1"#,
                r#"{namespace="/shop",policy="p",rule="r2",verdict="allow"} 1"#,
            ]
        );
    }
}
