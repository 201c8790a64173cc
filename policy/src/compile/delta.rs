use std::collections::{HashMap, HashSet};

use super::{IdentityId, SideId};
use crate::model::RuleId;

/// What a change of rules touched.
///
/// Verdicts computed before the change stay true for every pair it does not affect.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Rules that are new, in the order of the new list.
    pub added: Vec<RuleId>,
    /// Rules that are gone, in the order of the old list.
    pub removed: Vec<RuleId>,
    /// Rules that only moved within their file; one without a name has another full name then.
    pub moved: Vec<RuleId>,
    /// The table of external prefixes changed: read [`super::Compiled::external_prefixes`] again.
    pub externals_changed: bool,
    /// Rules whose time is over, or not yet over again because the clock was set back.
    pub expired: Vec<RuleId>,
    pub(super) scope: Scope,
}

#[derive(Clone, Debug)]
pub(super) enum Scope {
    /// So much changed that telling pairs apart would cost more than computing them.
    All,
    /// Pairs of identities of which some changed rule matches both ends.
    Some {
        /// Sides of the changed rules.
        rules: HashSet<(SideId, SideId)>,
        /// Which of those sides an identity matches or matched; absent when none.
        sides: HashMap<IdentityId, Vec<SideId>>,
        /// PUs in namespaces that began or ceased to bound what is allowed there.
        bounded: HashSet<IdentityId>,
    },
}

impl Default for Scope {
    fn default() -> Self {
        Self::Some { rules: HashSet::new(), sides: HashMap::new(), bounded: HashSet::new() }
    }
}

impl Delta {
    /// True when no rule was added or removed, and none expired.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.expired.is_empty()
    }

    /// Whether the verdict of some pair with this identity may have changed: false means that none has, unless that of
    /// a pair whose other end is touched.
    pub fn touches(&self, identity: IdentityId) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Some { sides, bounded, .. } => bounded.contains(&identity) || sides.contains_key(&identity),
        }
    }

    /// Whether the verdict for connections from `subject` to `object` may have changed. May say
    /// yes where nothing changed, never no where something did.
    pub fn affects(&self, subject: IdentityId, object: IdentityId) -> bool {
        let Scope::Some { rules, sides, bounded } = &self.scope else {
            return true;
        };
        if bounded.contains(&subject) || bounded.contains(&object) {
            return true;
        }
        let (Some(subject), Some(object)) = (sides.get(&subject), sides.get(&object)) else {
            return false;
        };
        subject.iter().any(|s| object.iter().any(|o| rules.contains(&(*s, *o))))
    }
}
