//! Flow records: what happened to connections, as written by an enforcer and read by `suggest` and `simulate`.
//!
//! `docs/flow-records.md` describes every field.

use std::{collections::BTreeMap, collections::BTreeSet, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Action, Identity, Namespace, PortRange, Tags};

/// The version of the schema this crate reads and writes.
pub const RECORD_VERSION: u32 = 1;

/// One line of a file of flow records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// [`RECORD_VERSION`].
    pub v: u32,
    /// When the last event happened, RFC 3339.
    #[serde(default)]
    pub time: String,
    /// When the first did, RFC 3339.
    #[serde(default)]
    pub since: String,
    /// Who recorded.
    #[serde(default)]
    pub enforcer: String,
    /// Which end is at that enforcer.
    pub role: Role,
    /// Who opened.
    pub from: RecordEnd,
    /// To whom.
    pub to: RecordEnd,
    /// The opener's port, if not aggregated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `icmp6` or a number.
    pub proto: RecordProto,
    /// Port connected to; of ICMP type × 256 + code.
    pub port: u16,
    /// What happened.
    pub verdict: Action,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// Namespace that rule lives in; empty in records of versions that did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule_namespace: String,
    /// Name of the reason.
    #[serde(default)]
    pub reason: String,
    /// The other end gave the reason.
    #[serde(default, skip_serializing_if = "is_false")]
    pub peer_reason: bool,
    /// The verdict there would be, where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<ObservedVerdict>,
    /// `hello`, `resume`, `external`, `out_of_band` or `none`.
    #[serde(default)]
    pub path: String,
    /// Connections counted for the first time.
    #[serde(default)]
    pub flows: u64,
    /// From `from` to `to`.
    #[serde(default)]
    pub bytes_sent: u64,
    /// From `to` to `from`.
    #[serde(default)]
    pub bytes_received: u64,
    /// From `from` to `to`.
    #[serde(default)]
    pub packets_sent: u64,
    /// From `to` to `from`.
    #[serde(default)]
    pub packets_received: u64,
    /// Mean smoothed round-trip time, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    /// Largest smoothed round-trip time, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_max_us: Option<u32>,
}

/// Which end of a connection recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The one that opened.
    Client,
    /// The one that accepted, or refused to.
    Server,
}

/// One end of a recorded connection: a PU if it has a namespace, else an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordEnd {
    /// `enforcer/name`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pu: String,
    /// Namespace of a PU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// Tags of a PU.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: Tags,
    /// Address of an end without identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Names by which the PU found the address.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fqdn: BTreeSet<String>,
    /// External network a rule names.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
}

/// The verdict there would be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObservedVerdict {
    /// What makes the difference.
    pub by: ObservedBy,
    /// That verdict.
    pub verdict: Action,
    /// The rule behind it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// Namespace that rule lives in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule_namespace: String,
    /// The reason behind it.
    #[serde(default)]
    pub reason: String,
}

/// Why something other than the policy's verdict, or beside it, is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObservedBy {
    /// An observe rule.
    Rule,
    /// The namespace is in observe mode.
    Mode,
}

/// An IP protocol's number, by name in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "std::borrow::Cow<str>", into = "String")]
pub struct RecordProto(pub u8);

/// A line that is no flow record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, or not of this shape.
    #[error("not a flow record: {0}; expected a line as in docs/flow-records.md")]
    Malformed(#[from] serde_json::Error),
    /// Written by a version with another schema.
    #[error(
        "a flow record of version {0}, but this enforcer reads version {RECORD_VERSION}: use the enforcer that wrote it"
    )]
    Version(u32),
}

impl FlowRecord {
    /// Reads one line.
    ///
    /// # Errors
    /// If it is no record, or one of another version.
    pub fn parse(line: &str) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_str(line)?;
        match record.v {
            RECORD_VERSION => Ok(record),
            other => Err(RecordError::Version(other)),
        }
    }
}

impl RecordEnd {
    /// The end as policy sees it; `None` if the record says neither what it is nor where.
    pub fn identity(&self) -> Option<Identity> {
        match (&self.namespace, self.address) {
            (Some(namespace), _) => Some(Identity::Pu { namespace: namespace.clone(), tags: self.tags.clone() }),
            (None, Some(address)) => {
                let names = self.fqdn.iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase()).collect();
                Some(Identity::External { networks: [IpNet::from(address.to_canonical())].into(), names })
            }
            (None, None) => None,
        }
    }
}

impl TryFrom<std::borrow::Cow<'_, str>> for RecordProto {
    type Error = String;

    fn try_from(text: std::borrow::Cow<'_, str>) -> Result<Self, String> {
        PortRange::protocol_by_name(&text)
            .or_else(|| text.parse().ok())
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no protocol: expected tcp, udp, icmp, icmp6 or a number below 256"))
    }
}

impl From<RecordProto> for String {
    fn from(proto: RecordProto) -> String {
        proto.to_string()
    }
}

impl fmt::Display for RecordProto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            PortRange::TCP => "tcp",
            PortRange::UDP => "udp",
            PortRange::ICMP => "icmp",
            PortRange::ICMP6 => "icmp6",
            other => return other.fmt(f),
        })
    }
}

// By reference, as serde's `skip_serializing_if` calls it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"v":1,"time":"2026-03-01T12:01:00Z","since":"2026-03-01T12:00:03Z","enforcer":"h2","role":"server",
        "from":{"pu":"h1/web","namespace":"/shop","tags":{"app":["web"]}},"to":{"address":"192.0.2.7","fqdn":["db.example"]},
        "proto":"tcp","port":5432,"verdict":"allow","reason":"allowed",
        "observed":{"by":"mode","verdict":"deny","reason":"no_rule"},"path":"resume","flows":12,"later":"unknown"}"#;

    #[test]
    fn a_record_is_read_and_written() {
        let record = FlowRecord::parse(LINE).expect("a record");
        assert_eq!(record.proto, RecordProto(6));
        assert_eq!(record.from.identity(), Some(Identity::pu("/shop".parse().expect("namespace"), [("app", "web")])));
        let networks = [IpNet::from(IpAddr::from([192, 0, 2, 7]))].into();
        let names = ["db.example".to_owned()].into();
        assert_eq!(record.to.identity(), Some(Identity::External { networks, names }));
        assert_eq!(record.observed.as_ref().map(|observed| observed.by), Some(ObservedBy::Mode));
        let text = serde_json::to_string(&record).expect("text");
        assert!(!text.contains("rtt") && !text.contains("peer_reason") && !text.contains('\n'), "{text}");
        assert_eq!(FlowRecord::parse(&text).expect("again"), record);
    }

    #[test]
    fn foreign_lines_are_refused_with_a_reason() {
        for (line, expected) in [
            ("", "not a flow record: EOF"),
            ("{}", "missing field `v`"),
            (&LINE.replace("\"v\":1", "\"v\":2"), "version 2"),
            (&LINE.replace("\"tcp\"", "\"tpc\""), "`tpc` is no protocol"),
            (&LINE.replace("\"/shop\"", "\"shop\""), "malformed"),
            (&LINE.replace("192.0.2.7", "192.0.2"), "IP address"),
        ] {
            let error = FlowRecord::parse(line).expect_err(line).to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
