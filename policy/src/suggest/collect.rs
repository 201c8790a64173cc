//! Records in, who talked to whom out; memory grows with what is different, not with what is written.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Seen, Suggestion, cover, write};
use crate::{
    model::{Action, DomainPattern, Namespace, Tags},
    record::{FlowRecord, RECORD_VERSION, RecordEnd, RecordError, RecordProto, Role},
};

/// Who talked to whom.
#[derive(Debug, Default)]
pub struct Observations {
    within: Option<Namespace>,
    pus: HashMap<(Namespace, Tags), u32>,
    pu_list: Vec<Pu>,
    others: HashMap<Other, u32>,
    other_list: Vec<Other>,
    edges: HashMap<Edge, [u64; 2]>,
    /// Ends by their text, those that opened and those opened to: most records repeat a few.
    known: [HashMap<Box<str>, Option<EndId>>; 2],
    seen: Seen,
}

/// A PU: identity is namespace and tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pu {
    pub namespace: Namespace,
    pub tags: Tags,
    /// The first of the names it was recorded under.
    pub name: String,
}

/// A peer without identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Other {
    Name(DomainPattern),
    Address(IpAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum EndId {
    Pu(u32),
    Other(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Edge {
    from: EndId,
    to: EndId,
    proto: u8,
    port: u16,
}

/// Everything recorded, in an order of its own: by content, not by arrival.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub within: Option<Namespace>,
    pub pus: Vec<Pu>,
    pub others: Vec<Other>,
    /// PU to PU.
    pub inside: BTreeMap<(u32, u32), Ports>,
    /// PU to other.
    pub out: BTreeMap<(u32, u32), Ports>,
    /// Other to PU.
    pub inward: BTreeMap<(u32, u32), Ports>,
    pub seen: Seen,
}

/// Connections by protocol and port.
pub(super) type Ports = BTreeMap<(u8, u16), u64>;

/// Texts of ends kept; beyond it all are dropped and learned again.
const KNOWN_MAX: usize = 100_000;

/// What is read of a line; ends are looked up by their text before they are parsed.
#[derive(Deserialize)]
struct Line<'a> {
    v: u32,
    role: Role,
    #[serde(borrow)]
    from: &'a RawValue,
    #[serde(borrow)]
    to: &'a RawValue,
    proto: RecordProto,
    port: u16,
    verdict: Action,
    #[serde(borrow, default)]
    path: Cow<'a, str>,
    #[serde(default)]
    flows: u64,
}

impl Observations {
    /// Nothing yet. `within`: only connections with an end in this namespace.
    pub fn new(within: Option<Namespace>) -> Self {
        Self { within, ..Self::default() }
    }

    /// Takes a line of a file of flow records.
    ///
    /// # Errors
    /// If it is none; nothing has changed then.
    pub fn add_line(&mut self, line: &str) -> Result<(), RecordError> {
        let line: Line<'_> = serde_json::from_str(line)?;
        if line.v != RECORD_VERSION {
            return Err(RecordError::Version(line.v));
        }
        let (from, to) = (self.end_of_text(line.from, false)?, self.end_of_text(line.to, true)?);
        self.add_edge(from, to, (line.proto.0, line.port), line.role, line.verdict, &line.path, line.flows);
        Ok(())
    }

    /// Takes a record.
    pub fn add(&mut self, record: &FlowRecord) {
        let (from, to) = (self.end(&record.from, false), self.end(&record.to, true));
        let service = (record.proto.0, record.port);
        self.add_edge(from, to, service, record.role, record.verdict, &record.path, record.flows);
    }

    /// The policy that allows what was recorded.
    pub fn suggest(self) -> Suggestion {
        write::suggestion(cover::cover(self.into_facts()))
    }

    fn end_of_text(&mut self, text: &RawValue, opened_to: bool) -> Result<Option<EndId>, RecordError> {
        if let Some(known) = self.known[usize::from(opened_to)].get(text.get()) {
            return Ok(*known);
        }
        let end = serde_json::from_str::<RecordEnd>(text.get())?;
        let end = self.end(&end, opened_to);
        let known = &mut self.known[usize::from(opened_to)];
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(text.get().into(), end);
        Ok(end)
    }

    /// The number of an end. Whom a PU opened to is known by the name it asked for, if it asked for one.
    fn end(&mut self, end: &RecordEnd, by_name: bool) -> Option<EndId> {
        if let Some(namespace) = &end.namespace {
            let content = (namespace.clone(), end.tags.clone());
            let id = match self.pus.get(&content) {
                Some(&id) => id,
                None => {
                    let id = u32::try_from(self.pu_list.len()).ok()?;
                    let (namespace, tags) = content.clone();
                    self.pu_list.push(Pu { namespace, tags, name: end.pu.clone() });
                    self.pus.insert(content, id);
                    id
                }
            };
            let name = &mut self.pu_list[id as usize].name;
            if !end.pu.is_empty() && (name.is_empty() || end.pu < *name) {
                name.clone_from(&end.pu);
            }
            return Some(EndId::Pu(id));
        }
        let name = end.fqdn.iter().filter(|_| by_name).find_map(|name| name.to_ascii_lowercase().parse().ok());
        let other = match name {
            Some(name) => Other::Name(name),
            None => Other::Address(end.address?.to_canonical()),
        };
        if let Some(&id) = self.others.get(&other) {
            return Some(EndId::Other(id));
        }
        let id = u32::try_from(self.other_list.len()).ok()?;
        self.other_list.push(other.clone());
        self.others.insert(other, id);
        Some(EndId::Other(id))
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a line")]
    fn add_edge(
        &mut self,
        from: Option<EndId>,
        to: Option<EndId>,
        (proto, port): (u8, u16),
        role: Role,
        verdict: Action,
        path: &str,
        flows: u64,
    ) {
        self.seen.records += 1;
        if verdict == Action::Deny {
            self.seen.refused = self.seen.refused.saturating_add(flows);
            return;
        }
        let (Some(from), Some(to)) = (from, to) else {
            self.seen.unusable += 1;
            return;
        };
        // Without a handshake nobody knows who opened, nor who the other end is.
        if path == "none" || matches!((from, to), (EndId::Other(_), EndId::Other(_))) {
            self.seen.unusable += 1;
            return;
        }
        let sums = self.edges.entry(Edge { from, to, proto, port }).or_default();
        let sum = &mut sums[usize::from(role == Role::Server)];
        *sum = sum.saturating_add(flows);
    }

    /// Renumbers everything by content.
    fn into_facts(self) -> Facts {
        let Self { within, pu_list, other_list, edges, mut seen, .. } = self;
        let (pus, pu_number) = sorted(pu_list, |pu| (pu.namespace.clone(), pu.tags.clone()));
        let (others, other_number) = sorted(other_list, Clone::clone);
        let mut facts = Facts { within, pus, others, ..Facts::default() };
        let inside = |facts: &Facts, number: u32| {
            let pu = &facts.pus[number as usize];
            facts.within.as_ref().is_none_or(|within| within.contains(&pu.namespace))
        };
        let mut met = BTreeSet::new();
        for (edge, sums) in edges {
            // Both ends told of the same connections.
            let flows = sums[0].max(sums[1]);
            let (table, key) = match (edge.from, edge.to) {
                (EndId::Pu(from), EndId::Pu(to)) => {
                    let (from, to) = (pu_number[from as usize], pu_number[to as usize]);
                    if !inside(&facts, from) && !inside(&facts, to) {
                        continue;
                    }
                    (&mut facts.inside, (from, to))
                }
                (EndId::Pu(from), EndId::Other(to)) => {
                    let key = (pu_number[from as usize], other_number[to as usize]);
                    if !inside(&facts, key.0) {
                        continue;
                    }
                    met.insert(key.1);
                    (&mut facts.out, key)
                }
                (EndId::Other(from), EndId::Pu(to)) => {
                    let key = (other_number[from as usize], pu_number[to as usize]);
                    if !inside(&facts, key.1) {
                        continue;
                    }
                    met.insert(key.0);
                    (&mut facts.inward, key)
                }
                (EndId::Other(_), EndId::Other(_)) => continue,
            };
            table.entry(key).or_default().insert((edge.proto, edge.port), flows);
            seen.flows = seen.flows.saturating_add(flows);
        }
        seen.pus = facts.pus.len() as u64;
        seen.addresses = met.len() as u64;
        facts.seen = seen;
        facts
    }
}

/// The list in order, and for each old place the new one.
fn sorted<T, K: Ord>(list: Vec<T>, key: impl Fn(&T) -> K) -> (Vec<T>, Vec<u32>) {
    let mut order: Vec<(usize, T)> = list.into_iter().enumerate().collect();
    order.sort_by_cached_key(|(_, item)| key(item));
    let mut number = vec![0; order.len()];
    for (new, (old, _)) in (0..).zip(&order) {
        number[*old] = new;
    }
    (order.into_iter().map(|(_, item)| item).collect(), number)
}
