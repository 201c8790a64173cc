/// What kind of trouble it was: the label of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Nobody answered, or not in time.
    Unreachable,
    /// The answer is not what it should be.
    Malformed,
    /// Signature, key, issuer or audience are not those that are trusted.
    Untrusted,
    /// It is not valid at this time.
    Expired,
    /// This host's configuration does not allow it, or lacks what it needs.
    Configuration,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Unreachable, Self::Malformed, Self::Untrusted, Self::Expired, Self::Configuration];

    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
            Self::Untrusted => "untrusted",
            Self::Expired => "expired",
            Self::Configuration => "configuration",
        }
    }
}

/// Why there is no fact: what was looked at, what is wrong with it and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {problem}")]
pub struct FactError {
    /// What kind of trouble it was.
    pub fault: Fault,
    what: String,
    problem: String,
}

impl FactError {
    /// An error of this kind about `what`.
    pub fn new(fault: Fault, what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { fault, what: what.into(), problem: problem.into() }
    }

    pub(crate) fn unreachable(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Fault::Unreachable, what, problem)
    }

    pub(crate) fn malformed(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Fault::Malformed, what, problem)
    }

    pub(crate) fn untrusted(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Fault::Untrusted, what, problem)
    }

    pub(crate) fn expired(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Fault::Expired, what, problem)
    }

    pub(crate) fn configuration(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Fault::Configuration, what, problem)
    }
}
