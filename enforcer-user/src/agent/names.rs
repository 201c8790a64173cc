//! What the kernel's numbers are called: for records, views, and for the command line while no agent runs.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use policy::{Head, PolicyRule, RuleId};
use serde::{Deserialize, Serialize, Serializer as _};

use crate::{
    flow_log::{Names, RuleName, Tagged},
    identity::EnforcerId,
    map_write::Maps,
    workload::TagSet,
};

/// Names by number. Names of what has gone are kept: records outlive what they tell of.
#[derive(Debug, Default)]
pub struct NameTable(RwLock<Tables>);

#[derive(Debug, Default)]
struct Tables {
    pus: HashMap<u32, String>,
    // By session and identity.
    peers: HashMap<(u32, u32), String>,
    identities: HashMap<u32, String>,
    rules: HashMap<u32, RuleName>,
    rules_version: u64,
    tagged: HashMap<u32, Arc<Tagged>>,
    gone: Vec<u32>,
    heard: HashMap<IpAddr, BTreeSet<String>>,
}

/// Addresses whose names are kept for records; beyond it all are dropped and heard again.
const HEARD_MAX: usize = 65_536;
/// Names kept of one address.
const HEARD_EACH: usize = 8;
/// Names of peers kept; beyond it all are dropped and learned again.
const PEERS_MAX: usize = 100_000;

impl NameTable {
    /// Names a PU of this host.
    pub fn set_pu(&self, pu: u32, name: &str) {
        self.write(|tables| drop(tables.pus.insert(pu, name.into())));
    }

    /// Names a peer's PU, or an external network.
    pub fn set_peer(&self, session: u32, identity: u32, name: String) {
        self.write(|tables| {
            if tables.peers.len() >= PEERS_MAX {
                tables.peers.clear();
            }
            tables.identities.insert(identity, name.clone());
            tables.peers.insert((session, identity), name);
        });
    }

    /// Names an identity for when its session is not known.
    pub fn set_identity(&self, identity: u32, name: String) {
        self.write(|tables| drop(tables.identities.insert(identity, name)));
    }

    /// Says what an identity is made of.
    pub fn set_tagged(&self, identity: u32, tagged: Tagged) {
        self.write(|tables| drop(tables.tagged.insert(identity, Arc::new(tagged))));
    }

    /// These identities are gone. What they were made of is kept until this is called again: their last events may
    /// still be on their way.
    pub fn forget_tagged(&self, identities: Vec<u32>) {
        self.write(|tables| {
            for identity in std::mem::replace(&mut tables.gone, identities) {
                tables.tagged.remove(&identity);
            }
        });
    }

    /// Notes that a PU was told this address for a name.
    pub fn hear(&self, address: IpAddr, name: &str) {
        self.write(|tables| {
            if tables.heard.len() >= HEARD_MAX && !tables.heard.contains_key(&address) {
                tables.heard.clear();
            }
            let names = tables.heard.entry(address).or_default();
            if names.len() < HEARD_EACH {
                names.insert(name.to_owned());
            }
        });
    }

    /// Names rules.
    pub fn set_rules(&self, rules: impl Iterator<Item = (u32, RuleName)>) {
        self.write(|tables| {
            tables.rules.extend(rules);
            tables.rules_version += 1;
        });
    }

    /// Forgets names of what has gone once there are too many of them; `live` are the PUs, identities and rules that are there.
    pub fn prune(&self, live: &Live) {
        self.write(|tables| {
            shrink(&mut tables.pus, &live.pus);
            shrink(&mut tables.identities, &live.identities);
            shrink(&mut tables.rules, &live.rules);
        });
    }

    /// Forgets rules that have gone once there are too many of them beside the `count` that are there.
    pub fn prune_rules(&self, count: usize, is_there: impl Fn(u32) -> bool) {
        self.write(|tables| {
            if tables.rules.len() > count + GONE_MAX {
                tables.rules.retain(|number, _| is_there(*number));
            }
        });
    }

    fn write(&self, change: impl FnOnce(&mut Tables)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn read<T>(&self, look: impl FnOnce(&Tables) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rules' names as JSON, for [`rules_file`].
    ///
    /// # Errors
    /// Never in practice: numbers and text.
    pub fn rules_text(&self) -> serde_json::Result<Vec<u8>> {
        self.read(|tables| {
            let mut bytes = Vec::new();
            let mut out = serde_json::Serializer::new(&mut bytes);
            // As `SavedRule::Parts`, without a copy of each.
            out.collect_map(
                tables.rules.iter().map(|(number, name)| (number, (&*name.namespace, &*name.policy, &*name.rule))),
            )?;
            Ok(bytes)
        })
    }
}

/// A rule's name in [`rules_file`].
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum SavedRule {
    /// Namespace, policy, rule.
    Parts(String, String, String),
    /// `policy/rule`, as versions before wrote it.
    Full(String),
}

impl From<SavedRule> for RuleName {
    fn from(saved: SavedRule) -> Self {
        match saved {
            SavedRule::Parts(namespace, policy, rule) => {
                Self { namespace: namespace.into(), policy: policy.into(), rule: rule.into() }
            }
            SavedRule::Full(rule) => Self { rule: rule.into(), ..Self::default() },
        }
    }
}

/// Rules' names by number; rules of one policy share its name and namespace.
pub(super) fn named<'a>(
    rules: impl Iterator<Item = (RuleId, &'a PolicyRule)>,
) -> impl Iterator<Item = (u32, RuleName)> {
    let mut last: Option<(Arc<Head>, Arc<str>, Arc<str>)> = None;
    rules.map(move |(id, rule)| {
        let head = rule.head();
        if last.as_ref().is_none_or(|(known, ..)| !Arc::ptr_eq(known, head)) {
            last = Some((head.clone(), rule.namespace().to_string().into(), rule.policy().into()));
        }
        let (namespace, policy) =
            last.as_ref().map(|(_, namespace, policy)| (namespace.clone(), policy.clone())).unwrap_or_default();
        (id.0, RuleName { namespace, policy, rule: rule.own_name().into() })
    })
}

/// Numbers in use.
#[derive(Debug, Default)]
pub struct Live {
    /// PUs of this host.
    pub pus: HashSet<u32>,
    /// Identities.
    pub identities: HashSet<u32>,
    /// Rules.
    pub rules: HashSet<u32>,
}

/// Names of what has gone are kept for the records that tell of it, but only so many.
const GONE_MAX: usize = 20_000;

fn shrink<T>(names: &mut HashMap<u32, T>, live: &HashSet<u32>) {
    if names.len() > live.len() + GONE_MAX {
        names.retain(|number, _| live.contains(number));
    }
}

impl Names for NameTable {
    fn rules_version(&self) -> u64 {
        self.read(|tables| tables.rules_version)
    }

    fn pu(&self, pu: u32) -> String {
        self.read(|tables| tables.pus.get(&pu).cloned()).unwrap_or_default()
    }

    fn peer(&self, session: u32, identity: u32) -> String {
        self.read(|tables| tables.peers.get(&(session, identity)).or_else(|| tables.identities.get(&identity)).cloned())
            .unwrap_or_default()
    }

    fn identity(&self, identity: u32) -> Option<Arc<Tagged>> {
        self.read(|tables| tables.tagged.get(&identity).cloned())
    }

    fn fqdn(&self, _pu: u32, address: IpAddr) -> BTreeSet<String> {
        self.read(|tables| tables.heard.get(&address).cloned()).unwrap_or_default()
    }

    fn rule(&self, rule: u32) -> RuleName {
        let unknown = || RuleName { rule: format!("rule {rule}").into(), ..RuleName::default() };
        self.read(|tables| tables.rules.get(&rule).cloned()).unwrap_or_else(unknown)
    }
}

/// What is remembered of an identity, in `IDENTITY_DOCS`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct IdentityDoc {
    /// `enforcer/pu` that was met with it last.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// `key=value`.
    pub tags: Vec<String>,
}

/// What is remembered of the agent itself, in `PU_DOCS` under [`AGENT_DOC`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AgentDoc {
    /// The index of the next PU. An index is never given to another PU: sockets nobody can find may still bear it.
    pub next_pu: u32,
    /// Who the enforcer was.
    pub enforcer: EnforcerId,
}

/// No PU's index.
pub(super) const AGENT_DOC: u32 = 0;

/// What is remembered of a PU, in `PU_DOCS`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PuDoc {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// The tags of people, and those that travel, each under the first source it is from. The others are found again.
    pub tags: TagSet,
    /// What its source calls it.
    pub key: String,
    /// Whether its identity is complete.
    pub complete: bool,
    /// Handle.
    pub handle: u16,
    /// What it is.
    pub target: TargetDoc,
}

/// What a PU is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TargetDoc {
    /// A cgroup that somebody else made.
    Cgroup { path: PathBuf, id: u64 },
    /// An interface.
    Interface { name: String, index: u32 },
    /// A command, in a cgroup the agent made.
    Command { path: PathBuf, id: u64 },
}

impl TargetDoc {
    /// Its cgroup, if it is one.
    pub fn cgroup(&self) -> Option<&Path> {
        match self {
            Self::Cgroup { path, .. } | Self::Command { path, .. } => Some(path),
            Self::Interface { .. } => None,
        }
    }
}

/// Where the rules' names lie for the command line while no agent runs.
pub(super) fn rules_file(socket: &Path) -> PathBuf {
    let mut file = socket.as_os_str().to_owned();
    file.push(".rules");
    file.into()
}

/// The names as the maps and the rules file hold them; what cannot be read goes without a name.
pub(super) fn offline_names(maps: &Maps, socket: &Path) -> NameTable {
    let names = NameTable::default();
    for (pu, bytes) in maps.pu_docs.entries().unwrap_or_default() {
        if let Ok(doc) = serde_json::from_slice::<PuDoc>(&bytes) {
            names.set_pu(pu, &doc.name);
        }
    }
    for (identity, bytes) in maps.identity_docs.entries().unwrap_or_default() {
        if let Ok(doc) = serde_json::from_slice::<IdentityDoc>(&bytes) {
            names.set_identity(identity, doc.name);
        }
    }
    names.set_rules(saved_rules(socket).into_iter());
    names
}

/// The rules' names as the last agent left them; none if they cannot be read.
pub(super) fn saved_rules(socket: &Path) -> HashMap<u32, RuleName> {
    let bytes = std::fs::read(rules_file(socket)).unwrap_or_default();
    let saved: HashMap<u32, SavedRule> = serde_json::from_slice(&bytes).unwrap_or_default();
    saved.into_iter().map(|(number, name)| (number, name.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_what_has_gone_do_not_pile_up() {
        let names = NameTable::default();
        let live = Live { pus: [1].into(), identities: [2].into(), rules: [3].into() };
        for number in 0..GONE_MAX as u32 {
            names.set_pu(number, "pu");
            names.set_identity(number, "identity".into());
        }
        let rule = || RuleName { namespace: "/n".into(), policy: "p".into(), rule: "r".into() };
        names.set_rules((0..GONE_MAX as u32).map(|number| (number, rule())));
        names.prune(&live);
        assert_eq!((names.pu(9), names.peer(0, 9), names.rule(9)), ("pu".into(), "identity".into(), rule()));
        for number in 0..10 {
            names.set_pu(1_000_000 + number, "pu");
            names.set_identity(1_000_000 + number, "identity".into());
        }
        names.set_rules((0..10).map(|number| (1_000_000 + number, rule())));
        names.prune(&live);
        assert_eq!((names.pu(1), names.peer(0, 2), names.rule(3)), ("pu".into(), "identity".into(), rule()));
        let gone = (names.pu(9), names.peer(0, 9), names.rule(9).full());
        assert_eq!(gone, (String::new(), String::new(), "rule 9".into()));
    }

    #[test]
    fn rules_names_are_saved_and_those_of_versions_before_read() {
        let directory = tempfile::tempdir().expect("directory");
        let socket = directory.path().join("enforcer.sock");
        let name = RuleName { namespace: "/n".into(), policy: "p".into(), rule: "r".into() };
        let names = NameTable::default();
        names.set_rules([(7, name.clone())].into_iter());
        std::fs::write(rules_file(&socket), names.rules_text().expect("text")).expect("written");
        assert_eq!(saved_rules(&socket), [(7, name)].into());
        std::fs::write(rules_file(&socket), r#"{"7":"p/r"}"#).expect("written");
        let read = saved_rules(&socket).remove(&7).map(|name| (name.full(), name.namespace.to_string()));
        assert_eq!(read, Some(("p/r".into(), String::new())));
    }
}
