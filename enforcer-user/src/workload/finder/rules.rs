//! `[[workload]]` as rules, in the order of the file: the first that matches decides.

use std::collections::BTreeSet;

use anyhow::Context;
use common::workload::FILE_SOME_USERS;

use crate::{
    config::{
        Config,
        workload::{Found, tags},
    },
    identity::Tags,
    workload::{
        exec_match::{ExecMatch, Executed, Look},
        units::CgroupMatch,
    },
};

/// What a PU found by a rule is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub tags: Tags,
}

#[derive(Debug)]
struct ExecRule {
    rule: Rule,
    matches: ExecMatch,
    uid: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Rules {
    cgroups: Vec<(CgroupMatch, Rule)>,
    execs: Vec<ExecRule>,
}

impl Rules {
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let mut rules = Self { cgroups: Vec::new(), execs: Vec::new() };
        for workload in &config.workload {
            let rule =
                Rule { name: workload.name.clone(), namespace: workload.namespace.clone(), tags: tags(&workload.tags) };
            match workload.find().map_err(|(key, problem)| anyhow::anyhow!("`workload.{key}`: {problem}"))? {
                Found::Cgroup(matches) => rules.cgroups.push((matches, rule)),
                Found::Exec(matches) => {
                    let uid = matches.uid().with_context(|| format!("`[[workload]]` with {matches}"))?;
                    rules.execs.push(ExecRule { rule, matches, uid });
                }
            }
        }
        Ok(rules)
    }

    pub fn is_empty(&self) -> bool {
        self.cgroups.is_empty() && self.execs.is_empty()
    }

    pub fn has_execs(&self) -> bool {
        !self.execs.is_empty()
    }

    pub fn patterns(&self) -> impl Iterator<Item = &CgroupMatch> {
        self.cgroups.iter().map(|(pattern, _)| pattern)
    }

    pub fn users(&self) -> BTreeSet<u32> {
        self.execs.iter().filter_map(|rule| rule.uid).collect()
    }

    pub fn names_user(&self, uid: u32) -> bool {
        self.execs.iter().any(|rule| rule.uid == Some(uid))
    }

    pub fn wants_hash(&self) -> bool {
        self.execs.iter().any(|rule| rule.matches.wants_hash())
    }

    /// What the kernel does without an agent with a file nobody has looked at: rules that name no file hold for it.
    pub fn unknown_file(&self) -> u32 {
        if self.execs.iter().any(|rule| !rule.matches.wants_file()) { FILE_SOME_USERS } else { 0 }
    }

    /// The rule for a cgroup.
    pub fn of_cgroup(&self, below: &str) -> Option<&Rule> {
        self.cgroups.iter().find(|(pattern, _)| pattern.matches(below)).map(|(_, rule)| rule)
    }

    /// What the kernel is to know of a file.
    pub fn file_bits(&self, file: &Look) -> u32 {
        self.execs.iter().fold(0, |bits, rule| bits | rule.matches.file_bits(file))
    }

    /// The rule for a process, and its number.
    pub fn of_process(&self, file: &Look, process: &Executed) -> Option<(usize, &Rule)> {
        let matches = |rule: &&ExecRule| rule.matches.matches(file, process, rule.uid);
        self.execs.iter().enumerate().find(|(_, rule)| matches(rule)).map(|(number, rule)| (number, &rule.rule))
    }
}
