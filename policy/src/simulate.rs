//! What other rules would have said of connections that were recorded.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;

use crate::compile::{Capabilities, CompileError, Compiled, IdentityId};
use crate::diff_pairs::Judged;
use crate::evaluate::evaluate;
use crate::model::{Action, Identity, Moment, PolicyRule, PortRange, RuleId, Side};
use crate::record::{FlowRecord, ObservedBy, RecordEnd, Role};

/// Reasons of refusals that other rules can lift; any other stands whatever rules say.
const LIFTABLE: [&str; 7] = [
    "no_rule",
    "deny_rule",
    "revoked",
    "no_identity",
    "peer_no_identity",
    "outside_identity_networks",
    "unmanaged_denied",
];

/// Records judged by other rules than those of their time.
pub struct Simulation {
    compiled: Compiled,
    rules: Vec<(RuleId, Arc<PolicyRule>)>,
    /// Some rule speaks of names in the DNS.
    names: bool,
    now: Moment,
    identities: HashMap<Identity, IdentityId>,
    groups: HashMap<Key, Group>,
    records: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Simulated {
    /// The sums.
    pub summary: Summary,
    /// What would change first, then the rest; of each the most connections first.
    pub connections: Vec<Connection>,
}

/// Connections by what becomes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Records read.
    pub records: u64,
    /// Kinds of connection: who, to whom, where to, and what became of it.
    pub kinds: u64,
    /// Connections that stay allowed.
    pub stay_allowed: u64,
    /// Connections that stay refused.
    pub stay_denied: u64,
    /// Connections newly allowed.
    pub newly_allowed: u64,
    /// Connections newly refused.
    pub newly_denied: u64,
}

/// Connections of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// Who opened.
    pub from: RecordEnd,
    /// To whom.
    pub to: RecordEnd,
    /// Protocol and port, such as `tcp/443`.
    pub port: String,
    /// How many.
    pub flows: u64,
    /// What happened.
    pub before: Judged,
    /// The reason recorded.
    pub reason: String,
    /// It was allowed only because its namespace was in observe mode.
    pub observe_mode: bool,
    /// What the rules say.
    pub after: Judged,
    /// The verdict changes.
    pub changes: bool,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    from: Who,
    to: Who,
    protocol: u8,
    port: u16,
    verdict: Action,
    rule: String,
    rule_namespace: String,
    reason: String,
    observe_mode: bool,
}

/// An end without what changes from record to record of the same kind.
#[derive(PartialEq, Eq, Hash)]
enum Who {
    Known(Identity),
    Unknown,
}

struct Group {
    from: RecordEnd,
    to: RecordEnd,
    /// Both ends record: counted by role.
    flows: [u64; 2],
}

impl Simulation {
    /// Gets ready to judge by these rules.
    ///
    /// # Errors
    /// If they cannot be compiled.
    pub fn new(rules: &[Arc<PolicyRule>], capabilities: Capabilities, now: Moment) -> Result<Self, CompileError> {
        let mut compiled = Compiled::new(rules, capabilities)?;
        compiled.advance(now);
        let has_names = |side: &Side| matches!(side, Side::Net(networks) if !networks.names.is_empty());
        let names = rules.iter().any(|rule| has_names(&rule.rule().subject) || has_names(&rule.rule().object));
        let numbered = compiled.rules().map(|(id, _)| id).zip(rules.iter().cloned()).collect();
        Ok(Self {
            compiled,
            rules: numbered,
            names,
            now,
            identities: HashMap::new(),
            groups: HashMap::new(),
            records: 0,
        })
    }

    /// Takes a record.
    pub fn add(&mut self, record: FlowRecord) {
        self.records += 1;
        let who = |end: &RecordEnd| identity(end).map_or(Who::Unknown, Who::Known);
        let key = Key {
            from: who(&record.from),
            to: who(&record.to),
            protocol: record.proto.0,
            port: record.port,
            verdict: record.verdict,
            rule: record.rule,
            rule_namespace: record.rule_namespace,
            reason: record.reason,
            observe_mode: record.observed.is_some_and(|observed| observed.by == ObservedBy::Mode),
        };
        let group = self.groups.entry(key).or_insert_with(|| Group { from: record.from, to: record.to, flows: [0, 0] });
        let sum = &mut group.flows[usize::from(record.role == Role::Server)];
        *sum = sum.saturating_add(record.flows);
    }

    /// Judges what was taken.
    ///
    /// # Errors
    /// If there are more identities than numbers for them.
    pub fn finish(mut self) -> Result<Simulated, CompileError> {
        let mut summary = Summary { records: self.records, kinds: self.groups.len() as u64, ..Summary::default() };
        let mut connections = Vec::new();
        for (key, group) in std::mem::take(&mut self.groups) {
            let known = |name: &String| Some(name.clone()).filter(|name| !name.is_empty());
            let (rule, namespace) = (known(&key.rule), known(&key.rule_namespace));
            let before = Judged { action: key.verdict, rule, namespace };
            let after = self.judge(&key, &before)?;
            // A connection that lived on from before the records began is counted as one.
            let flows = group.flows[0].max(group.flows[1]).max(1);
            let sum = match (before.action, after.action) {
                (Action::Allow, Action::Allow) => &mut summary.stay_allowed,
                (Action::Deny, Action::Deny) => &mut summary.stay_denied,
                (Action::Deny, Action::Allow) => &mut summary.newly_allowed,
                (Action::Allow, Action::Deny) => &mut summary.newly_denied,
            };
            *sum = sum.saturating_add(flows);
            connections.push(Connection {
                from: group.from,
                to: group.to,
                port: PortRange { protocol: key.protocol, low: key.port, high: key.port }.to_string(),
                flows,
                changes: before.action != after.action,
                before,
                reason: key.reason,
                observe_mode: key.observe_mode,
                after,
            });
        }
        connections.sort_by_cached_key(|connection| {
            let denied = connection.after.action == Action::Deny;
            let (from, to) = (describe(&connection.from), describe(&connection.to));
            (!connection.changes, !denied, std::cmp::Reverse(connection.flows), from, to, connection.port.clone())
        });
        Ok(Simulated { summary, connections })
    }

    fn judge(&mut self, key: &Key, before: &Judged) -> Result<Judged, CompileError> {
        let liftable = key.verdict == Action::Allow || LIFTABLE.contains(&key.reason.as_str());
        let (true, Who::Known(from), Who::Known(to)) = (liftable, &key.from, &key.to) else {
            return Ok(before.clone());
        };
        let named = |identity: &Identity| matches!(identity, Identity::External { names, .. } if !names.is_empty());
        let decision = if self.names && (named(from) || named(to)) {
            let rules = self.rules.iter().map(|(id, rule)| (*id, &**rule));
            evaluate(rules, from, to, key.protocol, key.port, self.now)
        } else {
            let (Some(subject), Some(object)) = (self.number(from)?, self.number(to)?) else {
                return Ok(Judged::new(Action::Deny, None));
            };
            self.compiled.pair(subject, object).decide(key.protocol, key.port)
        };
        let rule = decision.rule.and_then(|id| self.compiled.rule(id));
        Ok(Judged::new(decision.action, rule.map(Arc::as_ref)))
    }

    /// Nothing for an address no rule names.
    fn number(&mut self, identity: &Identity) -> Result<Option<IdentityId>, CompileError> {
        if let Identity::External { networks, .. } = identity {
            return Ok(networks.first().and_then(|net| self.compiled.external_identity(net.addr())));
        }
        if let Some(id) = self.identities.get(identity) {
            return Ok(Some(*id));
        }
        let id = IdentityId(u32::try_from(self.identities.len() + 1).unwrap_or(u32::MAX));
        self.compiled.add_identity(id, identity)?;
        self.identities.insert(identity.clone(), id);
        Ok(Some(id))
    }
}

/// An end for people: the PU, or the address and the names it was found by.
pub fn describe(end: &RecordEnd) -> String {
    match (&end.namespace, end.address) {
        (Some(namespace), _) => {
            let tags: BTreeSet<String> = end
                .tags
                .iter()
                .flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")))
                .collect();
            let tags: Vec<String> = tags.into_iter().collect();
            let name = if end.pu.is_empty() { namespace.to_string() } else { end.pu.clone() };
            format!("{name} ({})", tags.join(" "))
        }
        (None, Some(address)) => match end.fqdn.iter().next() {
            Some(name) => format!("{address} ({name})"),
            None => address.to_string(),
        },
        (None, None) => "unknown".to_owned(),
    }
}

fn identity(end: &RecordEnd) -> Option<Identity> {
    let mut identity = end.identity()?;
    if let Identity::External { names, .. } = &mut identity {
        names.extend(end.fqdn.iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase()));
    }
    Some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse_file;

    const WEB: &str = r#"{"pu":"h1/web","namespace":"/s","tags":{"app":["web"]}}"#;
    const DB: &str = r#"{"pu":"h2/db","namespace":"/s","tags":{"app":["db"]}}"#;
    const OUT: &str = r#"{"address":"192.0.2.7","fqdn":["api.example.org"]}"#;

    fn record(role: &str, from: &str, to: &str, port: u16, verdict: &str, reason: &str, flows: u64) -> FlowRecord {
        let line = format!(
            r#"{{"v":1,"role":"{role}","from":{from},"to":{to},"proto":"tcp","port":{port},"verdict":"{verdict}","reason":"{reason}","flows":{flows}}}"#
        );
        FlowRecord::parse(&line).unwrap()
    }

    fn simulated(rules: &str, records: Vec<FlowRecord>) -> Simulated {
        let rules = parse_file("p", &format!("name: p\nrules:\n{rules}")).unwrap();
        let now = Moment::from_unix(1_800_000_000);
        let mut simulation = Simulation::new(&rules, Capabilities::default(), now).unwrap();
        records.into_iter().for_each(|record| simulation.add(record));
        simulation.finish().unwrap()
    }

    #[test]
    fn both_roles_are_one_and_changes_come_first() {
        let simulated = simulated(
            "  - call: allow app=web -> app=db tcp/5432\n",
            vec![
                record("client", WEB, DB, 80, "allow", "allowed", 4),
                record("client", WEB, DB, 5432, "deny", "no_rule", 2),
                record("server", WEB, DB, 5432, "deny", "no_rule", 2),
                record("client", WEB, DB, 22, "deny", "no_rule", 9),
                record("client", WEB, DB, 80, "allow", "allowed", 3),
            ],
        );
        let expected =
            Summary { records: 5, kinds: 3, stay_denied: 9, newly_allowed: 2, newly_denied: 7, ..Summary::default() };
        assert_eq!(simulated.summary, expected);
        let order: Vec<(&str, Option<&str>)> = simulated
            .connections
            .iter()
            .map(|connection| (connection.port.as_str(), connection.after.rule.as_deref()))
            .collect();
        assert_eq!(order, [("tcp/80", None), ("tcp/5432", Some("p/call")), ("tcp/22", None)]);
    }

    #[test]
    fn what_is_no_matter_of_rules_stays() {
        let simulated = simulated(
            "  - all: allow any -> any\n",
            vec![
                record("server", WEB, DB, 80, "deny", "credential_expired", 1),
                record("server", "{}", DB, 80, "deny", "no_identity", 1),
                record("server", WEB, DB, 80, "deny", "deny_rule", 1),
            ],
        );
        assert_eq!((simulated.summary.stay_denied, simulated.summary.newly_allowed), (2, 1));
    }

    #[test]
    fn outside_ends_are_judged_by_address_and_by_name() {
        for (rule, allowed) in [
            ("  - a: allow app=web -> net 192.0.2.0/24\n", true),
            ("  - a: allow app=web -> net 192.0.2.0/24 except 192.0.2.7/32\n", false),
            ("  - a: allow app=web -> net *.example.org\n", true),
            ("  - a: allow app=web -> net example.org\n", false),
            ("", false),
        ] {
            let record = record("client", WEB, OUT, 443, "allow", "allowed", 1);
            let simulated = simulated(rule, vec![record]);
            assert_eq!(simulated.summary.stay_allowed == 1, allowed, "{rule}");
        }
    }
}
