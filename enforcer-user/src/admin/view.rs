//! What the agent shows of itself: the JSON of `--json`, stable for scripts. Fields are added, never changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `enforcer status`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct StatusView {
    /// Programs are attached, policy is loaded, credentials are signed.
    pub ready: bool,
    /// The enforcer's name.
    pub name: String,
    /// Version of the agent.
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// All interfaces, enforced or not, the enforcer's own TAP excepted.
    pub interfaces: Vec<InterfaceView>,
    /// Number of PUs.
    pub pus: u64,
    /// Number of sessions.
    pub sessions: u64,
    /// Number of live flows.
    pub flows: u64,
    /// The policy in force.
    pub policy: PolicyStatus,
    /// Namespaces in observe mode: nothing is enforced in them.
    #[serde(default)]
    pub observed: Vec<String>,
    /// Name of the PU that whatever is in no other PU belongs to.
    #[serde(default)]
    pub host_pu: Option<String>,
    /// What reaches the host PU whatever the policy says.
    #[serde(default)]
    pub management: Vec<String>,
    /// Seconds until what this agent put in force goes back, unless it is confirmed.
    #[serde(default)]
    pub trial_s: Option<u64>,
    /// How full the maps are.
    pub maps: Vec<MapView>,
    /// What was lost, by name.
    pub losses: BTreeMap<String, u64>,
    /// How sources of facts fare.
    #[serde(default)]
    pub facts: Vec<FactView>,
    /// What the agent has given up, so that whoever takes it over gains little.
    #[serde(default)]
    pub hardening: Vec<LayerView>,
}

/// A layer of hardening.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct LayerView {
    /// `capabilities`, `no_new_privileges`, `seccomp`, or `landlock: THREAD`.
    pub name: String,
    /// `on`; `off`: the configuration leaves it out; `missing`: the kernel or who started the agent does not allow it.
    pub state: String,
    /// What is in force, or why it is not.
    pub detail: String,
}

/// A source of facts: the cloud, a feed, an issuer of user tokens, a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct FactView {
    /// `cloud`, `feed`, `oidc`, `plugin` or `serviceaccount`.
    pub source: String,
    /// Which one.
    pub name: String,
    /// What it gave last.
    pub detail: String,
    /// Seconds since it was last right; none if it never was.
    pub age_s: Option<u64>,
    /// Why it gives nothing now, or nothing new.
    pub error: Option<String>,
}

/// An interface and what the enforcer does there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// `enforced`; `port`: of an interface that is enforced; `left`: not to be enforced; `failed`: to be enforced, but
    /// attaching failed and is tried again.
    #[serde(default)]
    pub state: String,
    /// Why so; empty if there is nothing to say.
    #[serde(default)]
    pub reason: String,
    /// What the TC programs look at; `off` if there are none.
    pub tc: String,
    /// How the XDP shield is attached: `native`, `generic` or `off`.
    pub xdp: String,
    /// Why so.
    pub xdp_reason: String,
}

/// The policy in force, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PolicyStatus {
    /// Counts up with every change.
    pub generation: u32,
    /// Number of rules.
    pub rules: u64,
    /// Number of files.
    pub files: u64,
    /// Why the files as they are now are not in force, if so.
    pub error: Option<String>,
}

/// A map and its fill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct MapView {
    /// Its name.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries there can be.
    pub max: u64,
}

/// `enforcer pus`: a PU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PuView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Values by key.
    pub tags: BTreeMap<String, Vec<String>>,
    /// `cgroup:PATH` or `interface:NAME`.
    pub target: String,
    /// Index in the kernel's maps.
    pub index: u32,
    /// Handle by which peers know it.
    pub handle: u16,
    /// Identity (namespace and tags) as numbered on this host.
    pub identity: u32,
    /// Size of its credential in bytes, 0 if it has none.
    pub credential_bytes: u64,
    /// Seconds until its Trust Profile expires.
    pub credential_expires_s: Option<i64>,
    /// Why it has no credential, if so.
    pub error: Option<String>,
    /// Its namespace is in observe mode.
    #[serde(default)]
    pub observed: bool,
    /// What its source calls it.
    #[serde(default)]
    pub key: String,
    /// Not all its tags are known yet; until then it may not communicate.
    #[serde(default)]
    pub incomplete: bool,
    /// Every tag, with where it comes from.
    #[serde(default)]
    pub all_tags: Vec<TagView>,
}

/// A tag of a PU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TagView {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// Who says so: `user`, `config`, `object`, `container`, …
    pub sources: Vec<String>,
    /// Whether the Trust Profile carries it, so that policy judges by it.
    pub carried: bool,
}

/// `enforcer peers`: an enforcer met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PeerView {
    /// Its id.
    pub enforcer: String,
    /// Where it was met, `ip` or `ip:port`.
    pub addresses: Vec<String>,
    /// Sessions with it.
    pub sessions: Vec<SessionView>,
    /// Its PUs that were verified.
    pub pus: Vec<PeerPuView>,
}

/// A session with a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct SessionView {
    /// Index this enforcer chose.
    pub index: u32,
    /// Index the peer chose, 0 until it is known.
    pub peer_index: u32,
    /// Seconds until it expires.
    pub expires_s: i64,
}

/// A verified PU of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PeerPuView {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Values by key.
    pub tags: BTreeMap<String, Vec<String>>,
    /// Its handle.
    pub handle: u16,
    /// Seconds until its Trust Profile expires.
    pub expires_s: i64,
}

/// `enforcer flows`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct FlowsView {
    /// Live flows.
    pub flows: Vec<FlowView>,
    /// Live flows there are, those beyond the limit included.
    pub total: u64,
    /// Recent records, newest last.
    pub records: Vec<RecordView>,
}

/// A live flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct FlowView {
    /// `client` or `server`: which end is here.
    pub role: String,
    /// Address and port of the PU's end.
    pub local: String,
    /// Address and port of the peer's end.
    pub remote: String,
    /// `tcp`, …
    pub proto: String,
    /// Name of the PU.
    pub pu: String,
    /// `enforcer/pu` of the peer, or the external network; empty if unknown.
    pub peer: String,
    /// Tags of the PU that policy judges by, `key=value`; empty while no agent runs.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The peer's.
    #[serde(default)]
    pub peer_tags: Vec<String>,
    /// `syn_sent`, `syn_received`, `confirming`, `established` or `cut`.
    pub state: String,
    /// Rule that allowed it, `policy/rule`.
    pub rule: String,
    /// Namespace that rule lives in, or empty.
    #[serde(default)]
    pub rule_namespace: String,
    /// Observed rule that would decide otherwise, or empty.
    pub observed_rule: String,
    /// Namespace of the observed rule, or empty.
    #[serde(default)]
    pub observed_rule_namespace: String,
    /// `hello`, `resume`, `external`, `out_of_band` or `none`.
    pub path: String,
    /// Why it was cut; `allowed` while it lives.
    pub reason: String,
    /// The reason for which observe mode alone lets it live, or empty.
    #[serde(default)]
    pub observed_reason: String,
    /// Policy generation it was judged under.
    pub generation: u32,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Packets received.
    pub packets_in: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Smoothed round-trip time in microseconds, 0 if unknown.
    pub rtt_us: u32,
    /// Microseconds since its first packet.
    pub age_us: u64,
    /// Microseconds since its last packet.
    pub idle_us: u64,
}

/// Something that happened to a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct RecordView {
    /// When, RFC 3339 with microseconds, UTC.
    pub time: String,
    /// `deny`, `start`, `end` or `cut`.
    pub event: String,
    /// `client` or `server`: which end is here.
    pub role: String,
    /// Address and port of the PU's end.
    pub local: String,
    /// Address and port of the peer's end.
    pub remote: String,
    /// `tcp`, …
    pub proto: String,
    /// Name of the PU.
    pub pu: String,
    /// `enforcer/pu` of the peer, or the external network; empty if unknown.
    pub peer: String,
    /// `allow` or `deny`.
    pub verdict: String,
    /// Rule that decided, `policy/rule`; empty for none.
    pub rule: String,
    /// Namespace that rule lives in; empty for none.
    #[serde(default)]
    pub rule_namespace: String,
    /// Observed rule that would decide otherwise, or empty.
    pub observed_rule: String,
    /// Namespace of the observed rule, or empty.
    #[serde(default)]
    pub observed_rule_namespace: String,
    /// Name of the reason (`enforcer reasons`).
    pub reason: String,
    /// The verdict there would be, where it differs; else empty.
    #[serde(default)]
    pub observed_verdict: String,
    /// The reason for which observe mode alone let it through, or empty.
    #[serde(default)]
    pub observed_reason: String,
    /// `hello`, `resume`, `external`, `out_of_band` or `none`.
    pub path: String,
    /// The peer gave the reason.
    pub peer_reason: bool,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Packets received.
    pub packets_in: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Smoothed round-trip time in microseconds, 0 if unknown.
    pub rtt_us: u32,
    /// Microseconds from the flow's first packet to this event, 0 if there was no flow.
    pub micros: u64,
}

/// `enforcer policy show`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PolicyView {
    /// Counts up with every change.
    pub generation: u32,
    /// The files in force.
    pub files: Vec<String>,
    /// Why the files as they are now are not in force, if so.
    pub error: Option<String>,
    /// The rules, in order.
    pub rules: Vec<RuleView>,
}

/// A rule in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct RuleView {
    /// `policy/rule`.
    pub name: String,
    /// Namespace it applies to.
    pub namespace: String,
    /// Tier of its policy, with the priority where it has one.
    #[serde(default)]
    pub tier: String,
    /// Its `until` is over.
    #[serde(default)]
    pub expired: bool,
    /// The rule as one line.
    pub text: String,
    /// `FILE:LINE` it stands at.
    pub source: String,
    /// It only reports.
    pub observe: bool,
}

/// An identity: what policy judges of PUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct IdentityView {
    /// Names of the PUs that have it, `enforcer/pu` for those of peers.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Values by key.
    pub tags: BTreeMap<String, Vec<String>>,
}

/// `enforcer policy apply`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct AppliedView {
    /// Nothing was changed.
    pub dry_run: bool,
    /// The watched directory.
    pub directory: String,
    /// Files that were not there before.
    pub added: Vec<String>,
    /// Files that said something else before.
    pub replaced: Vec<String>,
    /// Files that are gone.
    pub removed: Vec<String>,
    /// Files that are as they were.
    pub unchanged: Vec<String>,
    /// Policy generation now in force.
    pub generation: u32,
    /// Number of rules in force, or that would be.
    pub rules: u64,
    /// Which pairs of known identities are judged otherwise; of a dry run only.
    pub diff: Option<policy::PairsDiff>,
}

/// `enforcer policy explain`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ExplainView {
    /// For people.
    pub text: String,
    /// For programs: [`policy::Explanation`].
    pub explanation: serde_json::Value,
}

impl From<&policy::Explanation> for ExplainView {
    fn from(explanation: &policy::Explanation) -> Self {
        let value = serde_json::to_value(explanation).unwrap_or_default();
        Self { text: explanation.to_string(), explanation: value }
    }
}
