//! Rules and identities turned into verdicts whose cost does not depend on how many rules there are.
//!
//! The verdict for a pair of identities is a short list of port intervals. It is computed when the
//! pair is first needed and then looked up; a change of rules says which pairs it touches. Rules
//! are found through the distinct *sides* (selectors and networks) they are made of: each identity
//! keeps the sides it matches, found through an index on the rarest tag a selector demands.

mod delta;
mod diff;
mod external;
mod level;
mod pair;
mod side_index;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

pub use delta::Delta;
pub use pair::{Interval, PairVerdict, port_key};
pub use store::{Compiled, check_rules};

use crate::model::Location;

/// Number of an identity; the top bit tells external networks from PUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct IdentityId(pub u32);

impl IdentityId {
    /// The bit that is set in the numbers of external networks and in no other.
    pub const EXTERNAL: u32 = 1 << 31;

    /// True for an external network.
    pub fn is_external(self) -> bool {
        self.0 & Self::EXTERNAL != 0
    }
}

/// What the running build can enforce beyond allowing and denying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Payload can be encrypted, so rules may demand it.
    pub encrypt: bool,
}

/// Why rules or identities were not accepted; the compiled state is as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A rule demands encryption, which would silently not happen.
    #[error(
        "{location}: rule `{rule}`: encryption is not available in this build; remove `encrypt` from the rule, knowing that its payload is then sent as the application sends it"
    )]
    EncryptUnavailable {
        /// Full name of the rule.
        rule: String,
        /// Where it stands.
        location: Location,
    },
    /// More rules were ever loaded than there are numbers.
    #[error("rule numbers are used up: restart with a fresh policy")]
    TooManyRules,
    /// A PU was given a number with the top bit set.
    #[error("identity number {0:#x} is reserved for external networks: use one below 0x80000000")]
    ReservedIdentity(u32),
    /// External networks get their numbers from the rules, not from the caller.
    #[error("identity {0} is an external network: only PUs are added; external networks follow from the rules")]
    NotAPu(u32),
}

/// Number of a distinct side. Within one update a number never means two things.
type SideId = u32;

/// The names each address is known by, in lower case and without the final dot.
pub type KnownNames = BTreeMap<IpAddr, BTreeSet<String>>;

/// Longest-prefix table of external networks.
type Prefixes = HashMap<IpNet, IdentityId>;
