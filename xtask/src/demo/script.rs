//! What is tried, in which order, and what must come of it.

use std::time::Duration;

use anyhow::Result;

use super::cast::Cast;

/// Attempts that belong together, after a change on stage.
pub struct Scene {
    /// Heading of the table's section.
    pub title: &'static str,
    /// What happens before.
    pub change: Change,
    /// The attempts, each made over IPv4 and IPv6.
    pub attempts: Vec<Try>,
}

/// What happens on stage before a scene.
#[derive(Clone, Copy)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// Every enforcer is killed with SIGKILL.
    KillEnforcers,
    /// The kernel has noticed that no agent gives a sign of life.
    AgentsCountAsDown,
    /// Every enforcer is started again.
    RestartEnforcers,
    /// Hosts b and c exchange their addresses.
    SwapAddresses,
}

/// One attempt.
#[derive(Clone, Copy)]
pub struct Try {
    /// Who calls.
    pub from: &'static str,
    /// Who is called.
    pub to: &'static str,
    /// On which port.
    pub port: u16,
    /// By the loopback address instead of the host's own.
    pub loopback: bool,
    /// What must come of it.
    pub expected: Expected,
}

/// What must come of an attempt.
#[derive(Clone, Copy)]
pub enum Expected {
    /// The page arrives, by this rule and, where only one is possible, on this path.
    Allowed { rule: &'static str, path: Option<Path> },
    /// ECONNREFUSED or EPERM, at once.
    Refused,
    /// No answer at all: whoever has no identity learns nothing.
    TimedOut,
    /// Refused or timed out: nobody is there to tell which.
    Denied,
}

/// How identity came over.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Path {
    /// With a credential, judged in userspace. Over IPv4 only: IPv6 comes second, and may resume.
    HelloFirst,
    /// Within a known session, judged in the kernel.
    Resume,
    /// Not at all: an external-network rule.
    External,
}

/// The whole play.
pub fn scenes() -> Vec<Scene> {
    let decree = || {
        let mut attempts = with_path(Some(Path::HelloFirst), permitted());
        // By then each of the two PUs has been introduced to the other's enforcer by another pair.
        for attempt in attempts.iter_mut().filter(|attempt| (attempt.from, attempt.to) == ("myapp-a", "hadoop-b")) {
            attempt.expected = Expected::Allowed { rule: "decree/myapp-to-hadoop", path: Some(Path::Resume) };
        }
        attempts
    };
    let again = || with_path(Some(Path::Resume), permitted());
    let everything_else = || [one_tag_wrong(), not_named(), strangers(), same_host()].concat();
    vec![
        Scene { title: "what the decree permits", change: Change::Nothing, attempts: decree() },
        Scene { title: "one tag wrong", change: Change::Nothing, attempts: one_tag_wrong() },
        Scene { title: "what the decree does not name", change: Change::Nothing, attempts: not_named() },
        Scene { title: "hosts without an enforcer", change: Change::Nothing, attempts: strangers() },
        Scene { title: "two PUs on one host", change: Change::Nothing, attempts: same_host() },
        Scene { title: "a second connection", change: Change::Nothing, attempts: again() },
        Scene {
            title: "kill -9 of every enforcer: known pairs go on",
            change: Change::KillEnforcers,
            attempts: again(),
        },
        Scene {
            title: "kill -9 of every enforcer: the rest is still refused",
            change: Change::AgentsCountAsDown,
            attempts: everything_else(),
        },
        Scene {
            title: "kill -9 of every enforcer: a pair that never met",
            change: Change::Nothing,
            attempts: vec![attempt("newcomer-a", "hadoop-b", 8020, Expected::Denied)],
        },
        Scene {
            title: "the enforcers are back",
            change: Change::RestartEnforcers,
            attempts: [
                with_path(None, permitted()),
                vec![attempt("newcomer-a", "hadoop-b", 8020, by("decree/hadoop-to-hadoop"))],
                one_tag_wrong(),
            ]
            .concat(),
        },
        Scene {
            title: "hosts b and c swap their addresses: the verdict follows identity",
            change: Change::SwapAddresses,
            attempts: vec![
                attempt("hadoop-a", "hadoop-b", 8020, by("decree/hadoop-to-hadoop")),
                attempt("hadoop-a", "hadoop-test-c", 8020, Expected::Refused),
                attempt("myapp-a", "hadoop-b", 8020, by("decree/myapp-to-hadoop")),
                attempt("myapp-a", "hadoop-test-c", 8020, Expected::Refused),
                attempt("alice-c", "myapp-b", 8080, by("decree/users-to-myapp")),
                attempt("bob-c", "myapp-b", 8080, Expected::Refused),
            ],
        },
    ]
}

impl Change {
    /// Makes it so.
    pub fn make(self, cast: &Cast) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::KillEnforcers => cast.enforced().try_for_each(tests::Host::kill9_enforcer),
            Self::AgentsCountAsDown => {
                std::thread::sleep(tests::AGENT_TIMEOUT + Duration::from_millis(500));
                Ok(())
            }
            Self::RestartEnforcers => cast.enforced().try_for_each(tests::Host::restart_enforcer),
            Self::SwapAddresses => cast.host("b")?.swap_ips(cast.host("c")?),
        }
    }
}

impl Try {
    /// How long to wait for an answer: long enough for a retransmitted SYN only where an answer is due.
    pub fn patience(&self) -> Duration {
        match self.expected {
            Expected::Allowed { .. } | Expected::Refused => Duration::from_secs(3),
            Expected::TimedOut | Expected::Denied => Duration::from_secs(1),
        }
    }
}

impl Expected {
    /// As the table and the document say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allowed { .. } => "allowed",
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Denied => "denied",
        }
    }
}

fn permitted() -> Vec<Try> {
    vec![
        attempt("hadoop-a", "hadoop-b", 8020, by("decree/hadoop-to-hadoop")),
        attempt("myapp-a", "myapp-b", 8080, by("decree/myapp-to-myapp")),
        attempt("myapp-a", "hadoop-b", 8020, by("decree/myapp-to-hadoop")),
        attempt("alice-c", "myapp-b", 8080, by("decree/users-to-myapp")),
        attempt("carol-c", "hadoop-b", 8020, by("decree/admins-to-hadoop")),
    ]
}

fn one_tag_wrong() -> Vec<Try> {
    vec![
        attempt("hadoop-test-c", "hadoop-b", 8020, Expected::Refused),
        attempt("hadoop-a", "hadoop-test-b", 9000, Expected::Refused),
        attempt("myapp-test-a", "myapp-b", 8080, Expected::Refused),
        attempt("myapp-test-a", "hadoop-b", 8020, Expected::Refused),
        attempt("myapp-a", "hadoop-test-b", 9000, Expected::Refused),
        attempt("bob-c", "myapp-b", 8080, Expected::Refused),
        attempt("bob-c", "hadoop-b", 8020, Expected::Refused),
        attempt("carol-c", "hadoop-test-b", 9000, Expected::Refused),
    ]
}

fn not_named() -> Vec<Try> {
    vec![
        // The reverse directions of rules 3, 4 and of the last row's.
        attempt("hadoop-b", "myapp-a", 8080, Expected::Refused),
        attempt("myapp-b", "alice-c", 8080, Expected::Refused),
        // A port that no rule names.
        attempt("hadoop-a", "hadoop-b", 9999, Expected::Refused),
        attempt("myapp-a", "hadoop-b", 9999, Expected::Refused),
        attempt("untagged-a", "hadoop-b", 8020, Expected::Refused),
        attempt("untagged-a", "myapp-b", 8080, Expected::Refused),
    ]
}

fn strangers() -> Vec<Try> {
    let archive = Expected::Allowed { rule: "decree/myapp-to-archive", path: Some(Path::External) };
    vec![
        attempt("plain", "hadoop-b", 8020, Expected::TimedOut),
        attempt("myapp-a", "plain", 8088, archive),
        attempt("myapp-a", "plain", 80, Expected::Refused),
        attempt("hadoop-a", "plain", 8088, Expected::Refused),
    ]
}

fn same_host() -> Vec<Try> {
    let pairs = [
        attempt("myapp-b", "hadoop-b", 8020, by("decree/myapp-to-hadoop")),
        attempt("hadoop-b", "myapp-b", 8080, Expected::Refused),
    ];
    pairs.into_iter().flat_map(|pair| [Try { loopback: true, ..pair }, pair]).collect()
}

fn attempt(from: &'static str, to: &'static str, port: u16, expected: Expected) -> Try {
    Try { from, to, port, loopback: false, expected }
}

fn by(rule: &'static str) -> Expected {
    Expected::Allowed { rule, path: None }
}

fn with_path(path: Option<Path>, attempts: Vec<Try>) -> Vec<Try> {
    let with = |expected| match expected {
        Expected::Allowed { rule, .. } => Expected::Allowed { rule, path },
        other => other,
    };
    attempts.into_iter().map(|attempt| Try { expected: with(attempt.expected), ..attempt }).collect()
}
