//! Which cgroups a rule means.

use std::path::Path;

use super::system_unit;

/// Cgroups by unit name or by path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupMatch {
    /// Units of the system by name, such as `web-*.service`.
    Unit(String),
    /// Paths below the root, such as `/machines/*/web`; a `*` stays within one component.
    Path(String),
}

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a unit's name.
    #[error("{0:?} is no unit name with a suffix; write for example \"nginx.service\" or \"web-*.service\"")]
    Unit(String),
    /// Not a path below the root.
    #[error("{0:?} is no path below the root of the hierarchy; write for example \"/machines/*\"")]
    Path(String),
    /// Everything.
    #[error("{0:?} matches the root of the hierarchy, with this agent and all else; name cgroups below it")]
    Root(String),
    /// Longer than the kernel compares.
    #[error("{0:?}: what stands before or behind its `*` is longer than {1} bytes")]
    TooLong(String, usize),
}

impl CgroupMatch {
    /// A unit's name or pattern.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn unit(pattern: &str) -> Result<Self, PatternError> {
        let suffixes = [".service", ".scope", ".socket", ".mount", ".swap", "*"];
        let named = suffixes.iter().any(|suffix| pattern.ends_with(suffix));
        let bare = pattern.trim_matches('*').is_empty();
        if !named || bare || pattern.contains('/') || pattern.chars().any(char::is_control) {
            return Err(PatternError::Unit(pattern.into()));
        }
        Self::checked(Self::Unit(pattern.into()))
    }

    /// A path or a pattern of paths.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn path(pattern: &str) -> Result<Self, PatternError> {
        if pattern.is_empty() || pattern.chars().all(|c| c == '/') {
            return Err(PatternError::Root(pattern.into()));
        }
        let fits = pattern.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|name| !matches!(name, "" | "." | "..") && !name.chars().any(char::is_control))
        });
        if !fits {
            return Err(PatternError::Path(pattern.into()));
        }
        Self::checked(Self::Path(pattern.into()))
    }

    fn checked(self) -> Result<Self, PatternError> {
        let (_, _, suffix) = self.ends();
        let limit = common::workload::SUFFIX_WORDS * 8;
        if suffix.len() > limit {
            return Err(PatternError::TooLong(self.text().into(), limit));
        }
        Ok(self)
    }

    /// The pattern as it was given.
    pub fn text(&self) -> &str {
        match self {
            Self::Unit(text) | Self::Path(text) => text,
        }
    }

    /// Whether it means the cgroup at `below`, a path below the root.
    pub fn matches(&self, below: &str) -> bool {
        match self {
            Self::Unit(pattern) => {
                // Only the unit's own cgroup: what is below it belongs to it anyway.
                let name = below.rsplit('/').next().unwrap_or_default();
                let outside =
                    below.split('/').rev().skip(1).all(|parent| parent.is_empty() || parent.ends_with(".slice"));
                outside && system_unit(Path::new(below)) == Some(name) && within(pattern, name)
            }
            Self::Path(pattern) => {
                let (patterns, names) = (pattern.split('/'), below.split('/'));
                patterns.clone().count() == names.clone().count()
                    && patterns
                        .zip(names)
                        .all(|(pattern, name)| pattern.is_empty() == name.is_empty() && within(pattern, name))
            }
        }
    }

    /// What every path that it means begins with, its last name begins with, and it ends with. A zero ends what is compared to
    /// its end.
    pub(super) fn ends(&self) -> (String, String, String) {
        let name = self.text().rsplit('/').next().unwrap_or_default();
        let name = name.split_once('*').map_or_else(|| format!("{name}\0"), |(prefix, _)| prefix.to_owned());
        let suffix = self.text().rsplit_once('*').map_or("", |(_, suffix)| suffix).to_owned();
        match self {
            Self::Unit(_) => ("/".into(), name, suffix),
            Self::Path(pattern) => {
                let prefix =
                    pattern.split_once('*').map_or_else(|| format!("{pattern}\0"), |(prefix, _)| prefix.to_owned());
                (prefix, name, suffix)
            }
        }
    }
}

fn within(pattern: &str, name: &str) -> bool {
    crate::workload::tags::glob(pattern.as_bytes(), name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_match_by_name_wherever_the_systems_slices_are() {
        let web = CgroupMatch::unit("web-*.service").unwrap();
        for (below, expected) in [
            ("/system.slice/web-1.service", true),
            ("/web-1.service", true),
            ("/a.slice/b.slice/web-.service", true),
            ("/system.slice/web-1.service/web-2.service", false),
            ("/system.slice/web-1.service/web-1.service", false),
            ("/system.slice/web-1.scope", false),
            ("/system.slice/api-1.service", false),
            ("/user.slice/user-1.slice/user@1.service/web-1.service", false),
            ("/machine/web-1.service", false),
        ] {
            assert_eq!(web.matches(below), expected, "{below}");
        }
    }

    #[test]
    fn paths_match_component_by_component() {
        let pattern = CgroupMatch::path("/machines/*/web").unwrap();
        for (below, expected) in [
            ("/machines/a/web", true),
            ("/machines/a/b/web", false),
            ("/machines/a/web/x", false),
            ("/machines/web", false),
            ("/other/a/web", false),
        ] {
            assert_eq!(pattern.matches(below), expected, "{below}");
        }
        assert!(CgroupMatch::path("/*").unwrap().matches("/a"));
        assert!(!CgroupMatch::path("/*").unwrap().matches("/"));
    }

    #[test]
    fn senseless_patterns_are_refused() {
        for pattern in ["", "/", "//"] {
            assert_eq!(CgroupMatch::path(pattern), Err(PatternError::Root(pattern.into())));
        }
        for pattern in ["a", "/a/", "/a//b", "/../a", "/a\n"] {
            assert_eq!(CgroupMatch::path(pattern), Err(PatternError::Path(pattern.into())));
        }
        for pattern in ["", "*", "**", "nginx", "a/b.service", "system.slice"] {
            assert_eq!(CgroupMatch::unit(pattern), Err(PatternError::Unit(pattern.into())));
        }
        let long = format!("/*/{}", "x".repeat(80));
        assert_eq!(CgroupMatch::path(&long), Err(PatternError::TooLong(long, 64)));
    }
}
