//! Requests and responses.

use std::{collections::BTreeSet, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::Secret;
use super::view::{
    AppliedView, ExplainView, FlowsView, IdentityView, PeerView, PolicyView, PuView, RecordView, StatusView,
};

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How the agent fares.
    Status,
    /// Every PU.
    Pus,
    /// Every peer met.
    Peers,
    /// Live flows and recent records.
    Flows {
        /// Most live flows to return.
        limit: usize,
    },
    /// Every record from now on, until the client hangs up.
    Follow,
    /// The policy in force.
    Policy,
    /// Which of the rules in force decides a connection, and why the others do not.
    Explain {
        /// Who connects.
        subject: policy::Identity,
        /// To whom.
        object: policy::Identity,
        /// IP protocol.
        protocol: u8,
        /// Port.
        port: u16,
    },
    /// Every identity policy judges here: of the host's PUs and of those met.
    Identities,
    /// Put policy files into the watched directory and in force, all of them or none.
    PolicyApply {
        /// The files; those of equal names are replaced.
        files: Vec<PolicyFile>,
        /// Remove every other policy file of the directory.
        prune: bool,
        /// Only say what would change.
        dry_run: bool,
    },
    /// What is on trial stays.
    Confirm,
    /// End, because a successor is about to go on (root only).
    HandOver,
    /// Forget sessions and caches, so that the next contact is a first contact.
    Forget {
        /// The enforcer to forget; every one if left out.
        peer: Option<String>,
        /// Remember the credentials that were checked; only sessions go.
        #[serde(default)]
        keep_checked: bool,
    },
    /// Make something a PU.
    PuAdd {
        /// What.
        target: PuTarget,
        /// Name for people and records; the agent chooses one if left out.
        name: Option<String>,
        /// Namespace; the configured one if left out.
        namespace: Option<String>,
        /// `key=value`; a key may have several values.
        tags: BTreeSet<(String, String)>,
        /// A user's token, whose claims become tags of the PU until it ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<Secret>,
        /// More tags follow: until the PU is complete it may not communicate.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        incomplete: bool,
    },
    /// Switch observe mode on or off.
    Observe {
        /// For this namespace with all below it; the root, or for `off` all that are observed, if left out.
        namespace: Option<String>,
        /// Allow and record everything, or enforce.
        on: bool,
    },
    /// Change the tags that people gave a PU.
    PuTag {
        /// Its id or its name.
        pu: String,
        /// `key=value`; the key has these values afterwards, and no other.
        set: BTreeSet<(String, String)>,
        /// Keys it has no more.
        unset: BTreeSet<String>,
        /// All tags are there.
        #[serde(default)]
        complete: bool,
    },
    /// A PU is no longer one; its processes become unmanaged.
    PuRemove {
        /// Its id or its name.
        pu: String,
    },
    /// The command of a PU made for [`PuTarget::Command`] has ended: remove the PU and its cgroup once no process is left.
    PuRelease {
        /// Its id.
        pu: String,
    },
}

/// A policy file to apply.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// Its name in the watched directory.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// What becomes a PU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PuTarget {
    /// An existing cgroup with all below it; an absolute path in the mounted hierarchy.
    Cgroup(PathBuf),
    /// Whatever is behind this interface (the host's end of a veth).
    Interface(String),
    /// A command about to be run: the agent makes an empty cgroup for it.
    Command,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(StatusView),
    /// To [`Request::Pus`].
    Pus(Vec<PuView>),
    /// To [`Request::Peers`].
    Peers(Vec<PeerView>),
    /// To [`Request::Flows`].
    Flows(FlowsView),
    /// To [`Request::Follow`], again and again.
    Record(Box<RecordView>),
    /// To [`Request::Follow`]: the client was too slow for this many records.
    Missed(u64),
    /// To [`Request::Policy`].
    Policy(PolicyView),
    /// To [`Request::Explain`].
    Explained(ExplainView),
    /// To [`Request::Identities`].
    Identities(Vec<IdentityView>),
    /// To [`Request::PolicyApply`].
    Applied(AppliedView),
    /// To [`Request::Forget`]: number of sessions forgotten.
    Forgotten(u64),
    /// To [`Request::PuAdd`].
    PuAdded {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// The cgroup made for it, for [`PuTarget::Command`].
        cgroup: Option<PathBuf>,
    },
    /// To [`Request::Observe`]: the namespaces now in observe mode.
    Observed(Vec<String>),
    /// To [`Request::Confirm`], [`Request::HandOver`], [`Request::PuRemove`] and [`Request::PuRelease`].
    Done,
}

/// Whose fault a refused request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request makes no sense.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// What it would make exists already.
    Exists,
    /// The caller may not do that.
    Denied,
    /// Too many connections or requests.
    Busy,
    /// The agent failed.
    Internal,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// Whose fault it is.
    pub kind: ErrorKind,
    /// What is wrong and what to do next.
    pub message: String,
}

impl AdminError {
    /// A refusal of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The agent failed.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, format!("the agent failed: {error}"))
    }
}

/// One line from the agent.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    Ok(Box<Response>),
    Error(AdminError),
}
