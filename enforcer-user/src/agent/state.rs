//! What the agent knows: its keys, its PUs, the identities it has met, the compiled policy.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context;
use common::{
    abi,
    drop_reason::Reason,
    flow::Flow,
    identity::{PeerPu, SessionPu},
    verdict::Pair,
};
use ipnet::IpNet;
use policy::{Action, Capabilities, Compiled, Identity, IdentityId, Moment, Namespace, ParsedFiles, PolicyRule};

use super::{
    clock, learn,
    names::{IdentityDoc, NameTable, TargetDoc},
    updates::Announcing,
};
use crate::{
    config::{Config, Strangers, Unmanaged},
    flow_log::Tagged,
    handshake::{Own, Session, Sessions},
    identity::{Anchors, AuthorityId, OwnIdentity, Prekeys, PreparedCredential, Tags, Verifier},
    map_write::{
        Budgets, ConfigWriter, MapWriteError, Maps, Networks, Pairs, Pus, ShieldWriter, intervals, network_table,
    },
    observe::Observed,
    workload::tags::{Carry, TagSet},
};

/// Sessions with other enforcers, at most; the size of the map.
const SESSIONS_MAX: usize = 65_536;

/// A PU of this host.
#[derive(Clone)]
pub(super) struct LocalPu {
    pub index: u32,
    /// What its source calls it; `user:<id>` if a person made it.
    pub key: String,
    pub id: String,
    pub name: String,
    pub namespace: String,
    /// All that is known of it.
    pub set: TagSet,
    /// What of it travels, and so is its identity.
    pub tags: Tags,
    /// Keys that shall travel and do not fit.
    pub left_out: Vec<String>,
    /// Nothing else is to be found; until then it is allowed nothing.
    pub complete: bool,
    /// When its profile was issued, Unix milliseconds.
    pub issued_ms: u64,
    pub target: TargetDoc,
    pub handle: u16,
    pub identity: u32,
    pub credential: Option<PreparedCredential>,
    pub error: Option<String>,
    /// The command has ended; remove the PU when its cgroup is empty.
    pub released: bool,
    /// Processes were seen in its cgroup.
    pub populated: bool,
    /// Unix seconds.
    pub created: u64,
}

impl LocalPu {
    /// Whether it is the host itself.
    pub fn is_host(&self) -> bool {
        self.key == crate::workload::host::HOST_PU
    }
}

/// All that changes, behind one lock.
pub(super) struct State {
    pub own: OwnIdentity,
    pub prekeys: Prekeys,
    pub sessions: Sessions,
    pub pus: BTreeMap<u32, LocalPu>,
    pub identities: Identities,
    pub compiled: Compiled,
    /// Those of the policy files.
    pub rules: ParsedFiles,
    /// Those of the enforcer itself, before all others.
    pub builtin: Vec<Arc<PolicyRule>>,
    pub policy_files: Vec<PathBuf>,
    pub policy_error: Option<String>,
    /// The kernel could not be told all of the policy that was compiled last.
    pub unsettled: bool,
    /// What is known of names.
    pub learned: learn::Names,
    /// No policy could be read since the start: what the kernel has stays as the former agent left it.
    pub frozen: bool,
    pub pairs: Pairs,
    pub networks: Networks,
    pub pu_slots: Pus,
    pub config: ConfigWriter,
    pub shield: ShieldWriter,
    pub maps: Arc<Maps>,
    pub names: Arc<NameTable>,
    pub identity_networks: Vec<IpNet>,
    pub observed: Observed,
    pub next_pu: u32,
    pub next_handle: u16,
    /// Former handles of PUs whose tags changed, under which peers know connections that still live.
    pub retired: HashSet<u16>,
    /// Patterns of the tags that travel.
    pub carry: Carry,
    /// The same for PUs of processes that match a rule.
    pub carry_executed: Carry,
    /// Identities of live flows changed: they are to be judged again.
    pub moved: bool,
    /// What peers are being told of changed tags, by PU.
    pub announcing: HashMap<u32, Announcing>,
    pub profile_lifetime: u64,
}

/// Identities by content and by number.
#[derive(Default)]
pub(super) struct Identities {
    by_content: HashMap<(String, Tags), u32>,
    by_number: HashMap<u32, (String, Tags)>,
    last: u32,
}

impl Identities {
    pub fn get(&self, number: u32) -> Option<&(String, Tags)> {
        self.by_number.get(&number)
    }

    pub fn numbers(&self) -> Vec<u32> {
        self.by_number.keys().copied().collect()
    }

    pub fn insert(&mut self, number: u32, namespace: String, tags: Tags) {
        self.last = self.last.max(number);
        self.by_content.insert((namespace.clone(), tags.clone()), number);
        self.by_number.insert(number, (namespace, tags));
    }

    pub fn remove(&mut self, number: u32) {
        if let Some(content) = self.by_number.remove(&number) {
            self.by_content.remove(&content);
        }
    }
}

/// Key, certificate and trust anchors, checked against each other.
pub(super) fn own_identity(config: &Config) -> anyhow::Result<(OwnIdentity, Verifier)> {
    let identity = &config.identity;
    let own = OwnIdentity::load(&identity.certificate, &identity.key)?;
    let anchors = Anchors::load(&identity.ca)?;
    let mut verifier = Verifier::new(anchors, own.id().trust_domain(), identity.clock_skew.as_secs());
    own.check(&mut verifier, clock::now()).with_context(|| {
        format!("peers would refuse {}; issue a new one with `enforcer ca issue`", identity.certificate.display())
    })?;
    Ok((own, verifier))
}

impl State {
    pub fn new(config: &Config, own: OwnIdentity, maps: Arc<Maps>, names: Arc<NameTable>) -> anyhow::Result<Self> {
        let directory = maps.directory().to_owned();
        let mut compiled = Compiled::new(&[], Capabilities::default())?;
        compiled.advance(Moment::from_unix(clock::now()));
        let rotation = u32::try_from(config.identity.prekey_rotation.as_secs()).unwrap_or(u32::MAX / 4);
        let builtin = super::host_pu::rules(config, own.id().name());
        Ok(Self {
            own,
            // A peer that met this enforcer just before a rotation keeps its session for one more interval.
            prekeys: Prekeys::new(rotation, rotation, clock::now())?,
            sessions: Sessions::new(SESSIONS_MAX),
            pus: BTreeMap::new(),
            identities: Identities::default(),
            compiled,
            rules: ParsedFiles::default(),
            builtin,
            policy_files: Vec::new(),
            policy_error: None,
            unsettled: false,
            learned: learn::Names::default(),
            frozen: false,
            pairs: Pairs::open(&directory)?,
            networks: Networks::open(&directory)?,
            pu_slots: Pus::open(&directory)?,
            config: ConfigWriter::open(&directory)?,
            shield: ShieldWriter::open(&directory)?,
            maps,
            names,
            identity_networks: config.identity.networks.clone(),
            observed: Observed::load_or_enforce(&config.observe.state),
            next_pu: 1,
            next_handle: rand::random(),
            retired: HashSet::new(),
            carry: config.tags.carry(),
            carry_executed: config.tags.carry_executed(),
            moved: false,
            announcing: HashMap::new(),
            profile_lifetime: config.identity.profile_lifetime.as_secs(),
        })
    }

    /// Rules of the enforcer itself, then those of the policy files, in the order in which they were compiled.
    pub fn rules_in_force(&self) -> impl Iterator<Item = &Arc<PolicyRule>> {
        self.builtin.iter().chain(self.rules.rules())
    }

    /// Writes what the configuration says, and the session of this enforcer with itself.
    pub fn configure(&mut self, config: &Config) -> anyhow::Result<()> {
        let self_session = self.self_session()?;
        configure_datapath(config, &mut self.config)?;
        let datapath = &config.datapath;
        self.shield.set_budgets(Budgets {
            source: datapath.hello_budget,
            burst: datapath.hello_burst,
            all: datapath.hello_load,
        })?;
        self.config.update(|entry| entry.self_session = self_session)?;
        Ok(())
    }

    /// The session for PUs on this very host: random keys that never leave it.
    fn self_session(&mut self) -> anyhow::Result<u32> {
        let present = self.config.current().self_session;
        if present != 0 && self.maps.sessions.get(&present)?.is_some() {
            return Ok(present);
        }
        let index = rand::random::<u32>().max(1);
        let key = common::wire::MacKey { k0: rand::random(), k1: rand::random() };
        let session =
            common::identity::Session { key_out: key, key_in: key, until_ns: u64::MAX, peer_index: index, peer: 0 };
        self.maps.sessions.insert(&index, &session)?;
        Ok(index)
    }

    /// The number of an identity; a new one is entered everywhere it must be known.
    pub fn intern(&mut self, namespace: &str, tags: &Tags, name: &str) -> anyhow::Result<u32> {
        let content = (namespace.to_owned(), tags.clone());
        if let Some(number) = self.identities.by_content.get(&content) {
            return Ok(*number);
        }
        let number = self.free_identity();
        let doc = IdentityDoc { name: name.into(), namespace: namespace.into(), tags: flat(tags) };
        self.maps.identity_docs.insert(number, &serde_json::to_vec(&doc)?)?;
        self.know_identity(number, namespace, tags, name)?;
        Ok(number)
    }

    /// Enters an identity under a given number.
    pub fn know_identity(&mut self, number: u32, namespace: &str, tags: &Tags, name: &str) -> anyhow::Result<()> {
        let identity = Identity::Pu { namespace: namespace.parse::<Namespace>()?, tags: tags.clone() };
        self.compiled.add_identity(IdentityId(number), &identity)?;
        self.names.set_identity(number, name.into());
        self.names.set_tagged(number, Tagged { namespace: namespace.into(), tags: tags.clone() });
        self.identities.insert(number, namespace.into(), tags.clone());
        Ok(())
    }

    fn free_identity(&self) -> u32 {
        let mut number = self.identities.last;
        loop {
            number = number.wrapping_add(1) & 0x7fff_ffff;
            if number != 0 && self.identities.get(number).is_none() {
                return number;
            }
        }
    }

    /// Judges a pair and writes its verdicts, unless they are there.
    pub fn ensure_pair(&mut self, subject: u32, object: u32) -> Result<(), MapWriteError> {
        let pair = Pair { subject, object };
        if self.pairs.contains(&pair) { Ok(()) } else { self.judge_pair(pair) }
    }

    /// Judges a pair and writes its verdicts.
    pub fn judge_pair(&mut self, pair: Pair) -> Result<(), MapWriteError> {
        let verdict = self.compiled.pair(IdentityId(pair.subject), IdentityId(pair.object));
        self.pairs.write(pair, &intervals(&verdict)).map(drop)
    }

    /// The verdict as the policy gives it: allowed, rule, observe rule.
    pub fn verdict(&self, subject: u32, object: u32, proto: u8, port: u16) -> Verdict {
        let decision = self.compiled.pair(IdentityId(subject), IdentityId(object)).decide(proto, port);
        Verdict {
            allow: decision.action == Action::Allow,
            log: decision.log,
            rule: decision.rule.map_or(0, |rule| rule.0),
            observed_rule: decision.observed.map_or(0, |(_, rule)| rule.0),
            lifted: 0,
        }
    }

    /// External and identity networks as one table for the kernel.
    pub fn write_networks(&mut self) -> Result<(), MapWriteError> {
        let wanted = network_table(self.compiled.external_prefixes(), &self.identity_networks);
        self.networks.replace(&wanted).map(drop)
    }

    /// All verdicts between local identities and external networks: those are never asked for, so they must be there. Of a
    /// repeated call only what is missing costs.
    pub fn judge_externals(&mut self) -> Result<(), MapWriteError> {
        let externals: BTreeSet<u32> = self.compiled.external_prefixes().iter().map(|(_, id)| id.0).collect();
        let locals: BTreeSet<u32> = self.pus.values().map(|pu| pu.identity).collect();
        for local in locals {
            self.judge_externals_of(local, &externals)?;
        }
        Ok(())
    }

    /// As [`Self::judge_externals`], for an identity that a PU is about to have.
    pub fn judge_externals_for(&mut self, local: u32) -> Result<(), MapWriteError> {
        let externals: BTreeSet<u32> = self.compiled.external_prefixes().iter().map(|(_, id)| id.0).collect();
        self.judge_externals_of(local, &externals)
    }

    fn judge_externals_of(&mut self, local: u32, externals: &BTreeSet<u32>) -> Result<(), MapWriteError> {
        for external in externals {
            self.judge_pair(Pair { subject: local, object: *external })?;
            self.judge_pair(Pair { subject: *external, object: local })?;
        }
        Ok(())
    }

    /// Makes a verified PU of a peer known to the kernel; its identity. What is known from a later profile stands: a first
    /// contact can be repeated by anybody who heard it.
    pub fn know_peer(
        &mut self,
        key: SessionPu,
        identity: u32,
        until: u64,
        issued_ms: u64,
    ) -> Result<u32, MapWriteError> {
        let known = self.maps.peer_pus.get(&key)?.filter(|known| known.issued_ms > issued_ms);
        if let Some(known) = known.filter(|known| self.identities.get(known.identity).is_some()) {
            return Ok(known.identity);
        }
        let entry = PeerPu { until_ns: clock::monotonic(until), issued_ms, identity, pad: 0 };
        self.maps.peer_pus.insert(&key, &entry)?;
        Ok(identity)
    }

    /// What the ends of a flow are by now, local and peer: a flow's entry tells what they were when it was judged last. `peers`
    /// remembers what was looked up.
    pub fn parties(&self, flow: &Flow, peers: &mut HashMap<SessionPu, Option<u32>>) -> (u32, u32) {
        let local = self.pus.get(&flow.pu).map_or(flow.local_identity, |pu| pu.identity);
        if flow.session == 0 {
            return (local, flow.peer_identity);
        }
        let key = SessionPu { session: flow.session, handle: flow.peer_handle, pad: 0 };
        let known =
            peers.entry(key).or_insert_with(|| self.maps.peer_pus.get(&key).ok().flatten().map(|peer| peer.identity));
        (local, known.unwrap_or(flow.peer_identity))
    }

    /// Whether a session is one of this enforcer with itself.
    pub fn is_own_session(&self, session: u32) -> bool {
        session == self.config.current().self_session
            || self.sessions.get(session).is_some_and(|session| session.key.peer == *self.own.id())
    }

    /// Writes a session. Where the kernel has it already, and knows the peer by the same index, its entry stays untouched:
    /// the kernel may be learning that index from a CONFIRM this very moment.
    pub fn write_session(&mut self, session: &Session, authority: &AuthorityId) -> anyhow::Result<()> {
        self.maps.session_docs.insert(session.index, &serde_json::to_vec(&session.doc(authority))?)?;
        let entry = session.map_value(clock::monotonic(session.until), 0);
        let present = self.maps.sessions.get(&session.index)?;
        let known = present.is_some_and(|present| {
            let same_peer = entry.peer_index == 0 || entry.peer_index == present.peer_index;
            (present.key_out, present.key_in) == (entry.key_out, entry.key_in) && same_peer
        });
        if !known {
            self.maps.sessions.insert(&session.index, &entry)?;
        }
        Ok(())
    }

    /// Forgets sessions and all that is known in them; flows that were made in them stay.
    pub fn forget_sessions(&mut self, gone: &HashSet<u32>) -> Result<(), MapWriteError> {
        if gone.is_empty() {
            return Ok(());
        }
        for index in gone {
            self.sessions.remove(*index);
            self.maps.sessions.remove(index)?;
            self.maps.session_docs.remove(*index)?;
        }
        self.maps.peer_pus.retain(|key, _| !gone.contains(&key.session))?;
        self.maps.known_to_peer.retain(|key, _| !gone.contains(&key.session))?;
        self.maps.peer_addrs.retain(|_, session| !gone.contains(session))?;
        self.maps.datagram_peers.retain(|_, met| !gone.contains(&met.session))?;
        self.maps.datagram_times.retain(|key, _| !gone.contains(&key.session))?;
        Ok(())
    }

    /// This enforcer's share in a handshake, beside its verifier.
    pub fn handshake(&mut self) -> Own<'_> {
        Own { id: self.own.id(), prekeys: &mut self.prekeys, sessions: &mut self.sessions }
    }
}

/// Writes what the configuration says of the datapath.
pub(super) fn configure_datapath(config: &Config, writer: &mut ConfigWriter) -> anyhow::Result<()> {
    let mut flags = 0;
    if config.datapath.unmanaged == Unmanaged::Deny {
        flags |= abi::CONFIG_UNMANAGED_DENY;
    }
    if config.datapath.strangers == Strangers::Reject {
        flags |= abi::CONFIG_STRANGERS_REJECT;
    }
    if !config.workload.is_empty() || config.engines() > 0 {
        flags |= abi::CONFIG_WATCHES;
    }
    flags |= u32::from(config.fallback_port().unwrap_or(0)) << abi::CONFIG_FALLBACK_SHIFT;
    let namespace = crate::sys::netns_cookie().context("the cookie of this network namespace")?;
    let timeout = config.datapath.agent_timeout.as_nanos() as u64;
    writer.update(|entry| {
        entry.agent_timeout_ns = timeout;
        entry.netns_cookie = namespace;
        // Bits of other parts.
        entry.flags = flags | (entry.flags & (abi::CONFIG_HAS_PU | abi::CONFIG_HOST | abi::CONFIG_TRIAL));
        if entry.mark == 0 {
            // Neither the mark nor its variant for answers may be zero.
            entry.mark = rand::random::<u32>() | 1 << 31;
        }
    })?;
    Ok(())
}

/// A verdict, with numbers as the kernel has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    pub allow: bool,
    pub log: bool,
    pub rule: u32,
    pub observed_rule: u32,
    /// Number of the reason for which it would be refused outside observe mode, or 0.
    pub lifted: u16,
}

impl Verdict {
    /// In observe mode a refusal becomes a note, as in the kernel.
    pub fn lift(self, observed: bool) -> Self {
        if self.allow || !observed {
            return self;
        }
        Self { allow: true, rule: 0, observed_rule: self.rule, lifted: self.reason() as u16, ..self }
    }

    /// The reason of a refusal.
    pub fn reason(&self) -> Reason {
        if self.rule == 0 { Reason::NoRule } else { Reason::DenyRule }
    }
}

/// Each tag as `key=value`.
pub(super) fn flat(tags: &Tags) -> Vec<String> {
    tags.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}"))).collect()
}

/// The reverse of [`flat`]; what has no `=` is left out.
pub(super) fn unflat(tags: &[String]) -> Tags {
    let mut set = Tags::new();
    for (key, value) in tags.iter().filter_map(|tag| tag.split_once('=')) {
        set.entry(key.into()).or_default().insert(value.into());
    }
    set
}
