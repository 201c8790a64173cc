//! Tag policies: who may open a connection to whom.
//!
//! Pure computation, no I/O: [`parse`] turns text into the [`model`], [`compile`] turns rules and
//! identities into port-interval verdicts for the kernel's maps, [`mod@evaluate`] is the slow and
//! obvious statement of the same semantics that the compiled form is tested against, and
//! [`mod@explain`] says which rule decided and why the others did not.
//!
//! The language and its order of evaluation are described in `docs/policy.md`.
#![forbid(unsafe_code)]

pub mod compile;
pub mod consent;
pub mod diff_pairs;
pub mod evaluate;
pub mod explain;
pub mod import;
pub mod known;
pub mod model;
pub mod parse;
pub mod record;
pub mod schema;
pub mod simulate;
pub mod suggest;
pub mod synthetic;

pub use compile::{
    Capabilities, CompileError, Compiled, Delta, IdentityId, Interval, KnownNames, PairVerdict, check_rules, port_key,
};
pub use diff_pairs::{Judged, PairChange, PairsDiff, PortsChange, diff_pairs};
pub use evaluate::{Decision, evaluate};
pub use explain::{Explanation, explain};
pub use known::Known;
pub use model::{
    Action, Clause, DomainPattern, Ends, Head, Identity, Location, Moment, Namespace, Networks, Operator, PolicyRule,
    PortRange, Rule, RuleId, Selector, Side, Tags, Tier, Verb,
};
pub use parse::{ParsedFiles, PolicyError, PolicyErrors, parse_file, parse_files, parse_rule, parse_side};
pub use record::{FlowRecord, ObservedBy, ObservedVerdict, RECORD_VERSION, RecordEnd, RecordError, RecordProto, Role};
pub use suggest::{Newly, Observations, SuggestedRule, Suggestion};
