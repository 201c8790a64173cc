//! Who there is, with what tags, under which policy; and what the evaluator makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use policy::{Action, Identity, Moment, Namespace, PolicyRule, PortRange, RuleId, evaluate, parse_file};
use tests::Dice;

const APPS: [&str; 3] = ["web", "api", "db"];
const STAGES: [&str; 2] = ["prod", "dev"];
const PORTS: std::ops::Range<u16> = 8001..8007;

/// Tags of one PU.
pub type Tags = BTreeMap<&'static str, &'static str>;

/// Everything a verdict depends on.
#[derive(Clone)]
pub struct World {
    rules: Arc<Vec<Arc<PolicyRule>>>,
    /// Tags and port of each PU, by name.
    pus: BTreeMap<String, (Tags, u16)>,
}

impl World {
    /// A world without PUs under this policy.
    pub fn new(text: &str) -> Result<Self> {
        Ok(Self { rules: Arc::new(read(text)?), pus: BTreeMap::new() })
    }

    /// Puts another policy in force.
    pub fn decree(&mut self, text: &str) -> Result<()> {
        self.rules = Arc::new(read(text)?);
        Ok(())
    }

    /// Enters a PU, or gives it other tags.
    pub fn enter(&mut self, name: &str, tags: Tags, port: u16) {
        self.pus.insert(name.to_owned(), (tags, port));
    }

    /// The tags of a PU.
    pub fn tags(&self, name: &str) -> Option<&Tags> {
        self.pus.get(name).map(|(tags, _)| tags)
    }

    /// Whether `from` may open to the port of `to`.
    pub fn allows(&self, from: &str, to: &str) -> bool {
        let (Some((subject, _)), Some((object, port))) = (self.pus.get(from), self.pus.get(to)) else { return false };
        let identity = |tags: &Tags| Identity::pu(namespace(), tags.iter().map(|(key, value)| (*key, *value)));
        let rules = (1..).map(RuleId).zip(self.rules.iter().map(AsRef::as_ref));
        let verdict = evaluate(rules, &identity(subject), &identity(object), PortRange::TCP, *port, Moment::START);
        verdict.action == Action::Allow
    }
}

/// The namespace of every PU in the laboratory.
fn namespace() -> Namespace {
    tests::NAMESPACE.parse().unwrap_or_else(|_| Namespace::root())
}

fn read(text: &str) -> Result<Vec<Arc<PolicyRule>>> {
    parse_file("soak.yaml", text).map_err(|errors| anyhow!("{errors}"))
}

/// Tags by chance.
pub fn tags(dice: &mut Dice) -> Tags {
    let mut tags = Tags::from([("app", *dice.choose(&APPS)), ("stage", *dice.choose(&STAGES))]);
    if dice.one_in(3) {
        tags.insert("canary", "yes");
    }
    tags
}

/// A policy by chance, whose name tells it from all others.
pub fn policy(dice: &mut Dice, name: &str) -> String {
    let mut text = format!("name: {name}\nrules:\n");
    for number in 0..6 + dice.below(6) {
        let verb = if dice.one_in(8) { "deny" } else { "allow" };
        let mut side = || {
            let mut clauses = vec![format!("app={}", dice.choose(&APPS))];
            match dice.below(6) {
                0 => clauses.push(format!("stage={}", dice.choose(&STAGES))),
                1 => clauses.push("canary".into()),
                2 => clauses.push(format!("stage!={}", dice.choose(&STAGES))),
                _ => {}
            }
            clauses.join(" ")
        };
        let (from, to) = (side(), side());
        let low = PORTS.start + dice.below(PORTS.len()) as u16;
        let ports = if dice.one_in(4) { low.to_string() } else { "8001-8006".to_owned() };
        text += &format!("  - r{number}: {verb} {from} -> {to} tcp/{ports}\n");
    }
    text
}
