//! PUs by what a process executes: path, hash, user, command line.
//!
//! A process is looked at when it executes a program. The kernel knows files by inode, so this agent tells it of each
//! file once whether any rule may match it ([`ExecMatch::file_bits`]); the rest is looked at here.

mod process;

use std::{fmt, path::Path};

use common::workload::{FILE_ANYBODY, FILE_SOME_USERS};

pub(crate) use process::is_same;
pub use process::{Executed, Look};

use crate::workload::tags::glob;

/// Which processes a rule means. What is not given matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecMatch {
    exe: Option<String>,
    sha256: Option<String>,
    user: Option<User>,
    command: Option<String>,
}

/// A user as the configuration names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// By number.
    Id(u32),
    /// By name, looked up when the agent starts.
    Name(String),
}

/// A rule that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecMatchError {
    /// Not an absolute path.
    #[error("{0:?} is no absolute path; write for example \"/usr/sbin/nginx\" or \"/opt/app/*/bin/server\"")]
    Exe(String),
    /// Not a hash.
    #[error("{0:?} is no SHA-256 (64 hexadecimal digits); `sha256sum FILE` prints it")]
    Sha256(String),
    /// Not a user.
    #[error("must name a user, or a number")]
    User,
    /// An empty pattern.
    #[error("must not be empty")]
    Command,
    /// Only a command line.
    #[error("needs `exe`, `sha256` or `user` beside it: whoever starts a process chooses its command line")]
    CommandAlone,
}

impl ExecMatchError {
    /// The key to blame.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Exe(_) => "exe",
            Self::Sha256(_) => "sha256",
            Self::User => "user",
            Self::Command | Self::CommandAlone => "command",
        }
    }
}

impl ExecMatch {
    /// A rule from its parts.
    ///
    /// # Errors
    /// [`ExecMatchError`].
    pub fn new(
        exe: Option<&str>,
        sha256: Option<&str>,
        user: Option<&str>,
        command: Option<&str>,
    ) -> Result<Self, ExecMatchError> {
        if let Some(exe) = exe {
            let absolute =
                exe.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|name| !matches!(name, "" | "." | "..")));
            if !absolute || exe.chars().any(char::is_control) {
                return Err(ExecMatchError::Exe(exe.into()));
            }
        }
        if let Some(hash) = sha256
            && (hash.len() != 64 || !hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
        {
            return Err(ExecMatchError::Sha256(hash.into()));
        }
        if user.is_some_and(|user| user.is_empty() || user.chars().any(|c| c.is_whitespace() || c.is_control())) {
            return Err(ExecMatchError::User);
        }
        if command == Some("") {
            return Err(ExecMatchError::Command);
        }
        if exe.is_none() && sha256.is_none() && user.is_none() {
            return Err(ExecMatchError::CommandAlone);
        }
        Ok(Self {
            exe: exe.map(str::to_owned),
            sha256: sha256.map(str::to_ascii_lowercase),
            user: user.map(|user| user.parse().map_or_else(|_| User::Name(user.into()), User::Id)),
            command: command.map(str::to_owned),
        })
    }

    /// The number of the user it names, `None` if it names none.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn uid(&self) -> std::io::Result<Option<u32>> {
        match &self.user {
            None => Ok(None),
            Some(User::Id(id)) => Ok(Some(*id)),
            Some(User::Name(name)) => match nix::unistd::User::from_name(name)? {
                Some(user) => Ok(Some(user.uid.as_raw())),
                None => Err(std::io::Error::other(format!("there is no user `{name}`"))),
            },
        }
    }

    /// Whether the hash of an executable matters to it.
    pub fn wants_hash(&self) -> bool {
        self.sha256.is_some()
    }

    /// Whether it may match a file it knows nothing of.
    pub fn wants_file(&self) -> bool {
        self.exe.is_some() || self.sha256.is_some()
    }

    /// Whether it may match whatever executes this file, as `FILE_*` bits.
    pub fn file_bits(&self, file: &Look) -> u32 {
        let exe = self
            .exe
            .as_ref()
            .is_none_or(|pattern| file.path.as_deref().is_some_and(|path| path_matches(pattern, path)));
        let hash = self.sha256.as_ref().is_none_or(|hash| file.sha256.as_ref() == Some(hash));
        match (exe && hash, &self.user) {
            (false, _) => 0,
            (true, None) => FILE_ANYBODY,
            (true, Some(_)) => FILE_SOME_USERS,
        }
    }

    /// Whether it matches a process; `uid` is what [`Self::uid`] said.
    pub fn matches(&self, file: &Look, process: &Executed, uid: Option<u32>) -> bool {
        self.file_bits(file) != 0
            && uid.is_none_or(|uid| process.uid == uid)
            && self.command.as_ref().is_none_or(|pattern| glob(pattern.as_bytes(), process.command.as_bytes()))
    }
}

/// Component by component: a `*` stays within one.
fn path_matches(pattern: &str, path: &Path) -> bool {
    let Some(path) = path.to_str() else { return false };
    pattern.split('/').count() == path.split('/').count()
        && pattern.split('/').zip(path.split('/')).all(|(pattern, name)| glob(pattern.as_bytes(), name.as_bytes()))
}

impl fmt::Display for ExecMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| match user {
            User::Id(id) => id.to_string(),
            User::Name(name) => name.clone(),
        });
        let parts = [("exe", &self.exe), ("sha256", &self.sha256), ("user", &user), ("command", &self.command)];
        let given: Vec<_> =
            parts.iter().filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={value}"))).collect();
        f.write_str(&given.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(exe: Option<&str>, sha256: Option<&str>, user: Option<&str>, command: Option<&str>) -> ExecMatch {
        ExecMatch::new(exe, sha256, user, command).unwrap()
    }

    fn look(path: &str) -> Look {
        Look { path: Some(path.into()), sha256: Some("a".repeat(64)) }
    }

    #[test]
    fn a_rule_matches_all_of_its_parts() {
        let process = Executed { uid: 33, command: "server --port 80".into() };
        for (rule, path, expected) in [
            (rule(Some("/opt/*/server"), None, None, None), "/opt/a/server", true),
            (rule(Some("/opt/*/server"), None, None, None), "/opt/a/b/server", false),
            (rule(Some("/opt/a/server"), None, Some("34"), None), "/opt/a/server", false),
            (rule(None, None, Some("33"), None), "/anything", true),
            (rule(None, Some(&"A".repeat(64)), None, None), "/anything", true),
            (rule(None, Some(&"b".repeat(64)), None, None), "/anything", false),
            (rule(Some("/opt/a/server"), None, None, Some("* --port *")), "/opt/a/server", true),
            (rule(Some("/opt/a/server"), None, None, Some("server")), "/opt/a/server", false),
        ] {
            assert_eq!(rule.matches(&look(path), &process, rule.uid().unwrap()), expected, "{rule} on {path}");
        }
        let unseen = Look { path: None, sha256: None };
        assert!(!rule(Some("/opt/a/server"), None, None, None).matches(&unseen, &process, None));
        assert!(!rule(None, Some(&"a".repeat(64)), None, None).matches(&unseen, &process, None));
    }

    #[test]
    fn the_kernel_is_told_what_may_match() {
        assert_eq!(rule(Some("/a/b"), None, None, Some("*")).file_bits(&look("/a/b")), FILE_ANYBODY);
        assert_eq!(rule(Some("/a/b"), None, Some("1"), None).file_bits(&look("/a/b")), FILE_SOME_USERS);
        assert_eq!(rule(Some("/a/b"), None, None, None).file_bits(&look("/a/c")), 0);
    }

    #[test]
    fn senseless_rules_are_refused_by_key() {
        for (parts, key) in [
            ((Some("nginx"), None, None, None), "exe"),
            ((Some("/a/../b"), None, None, None), "exe"),
            ((None, Some("abc"), None, None), "sha256"),
            ((None, None, Some(""), None), "user"),
            ((Some("/a"), None, None, Some("")), "command"),
            ((None, None, None, Some("*")), "command"),
        ] {
            assert_eq!(ExecMatch::new(parts.0, parts.1, parts.2, parts.3).unwrap_err().key(), key, "{parts:?}");
        }
        assert!(rule(None, None, Some("no-such-user-here"), None).uid().is_err());
        assert_eq!(rule(None, None, Some("root"), None).uid().unwrap(), Some(0));
    }
}
