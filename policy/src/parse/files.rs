//! Many files, read again and again: what is as it was is not parsed again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::cut::{self, Chunk};
use super::error::{PolicyError, PolicyErrors};
use super::{entry, yaml};
use crate::model::{Head, Location, PolicyRule, Verb, sum};

/// Policy files as they were read. Of the next reading, only what differs is parsed.
///
/// What comes of it is always what [`crate::parse_files`] makes of the same files; rules that are the same in the same place are even
/// the same objects. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ParsedFiles {
    files: Arc<[Arc<File>]>,
    rules: Arc<[Arc<PolicyRule>]>,
}

#[derive(Debug)]
struct File {
    name: Arc<str>,
    /// Of its text.
    sum: u128,
    heads: Vec<Arc<Head>>,
    /// Of each rule in order, if the file was cut at them.
    entries: Option<Vec<Entry>>,
    /// The order of some of its rules counts.
    ordered: bool,
    rules: Vec<Arc<PolicyRule>>,
    /// Of the full name of each rule that has one.
    names: Vec<u128>,
}

/// What a rule was read from.
#[derive(Clone, Copy, Debug)]
struct Entry {
    sum: u128,
    line: u32,
}

impl ParsedFiles {
    /// Parses policy files, given as (name, text). Rule names must be unique among them all.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn parse<'a>(&self, files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, PolicyErrors> {
        // Each for one file: one that is named twice is two files.
        let mut former: HashMap<&str, &Arc<File>> = self.files.iter().map(|file| (&*file.name, file)).collect();
        let mut errors = Vec::new();
        let files: Vec<Arc<File>> =
            files.into_iter().map(|(name, text)| read(name, text, former.remove(name), &mut errors)).collect();
        let same = |(old, new): (&Arc<File>, &Arc<File>)| Arc::ptr_eq(old, new);
        if files.len() == self.files.len() && self.files.iter().zip(&files).all(same) {
            return Ok(self.clone());
        }
        let rules: Arc<[Arc<PolicyRule>]> = files.iter().flat_map(|file| &file.rules).cloned().collect();
        if !errors.is_empty() || files.iter().any(|file| file.ordered) || !all_differ(&files) {
            clashes(&rules, &mut errors);
        }
        match PolicyErrors::new(errors) {
            Some(errors) => Err(errors),
            None => Ok(Self { files: files.into(), rules }),
        }
    }

    /// True when this is the other, and not only equal to it.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.files, &other.files)
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// True without any rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Arc<PolicyRule>] {
        &self.rules
    }
}

fn read(name: &str, text: &str, former: Option<&Arc<File>>, errors: &mut Vec<PolicyError>) -> Arc<File> {
    let sum = sum(&text);
    if let Some(former) = former.filter(|former| former.sum == sum) {
        return former.clone();
    }
    let file: Arc<str> = former.map_or_else(|| name.into(), |former| former.name.clone());
    if let Some(file) = read_cut(&file, text, sum, former.map(|former| &**former)) {
        return Arc::new(file);
    }
    let mut rules = Vec::new();
    // One with errors is not kept.
    yaml::file(&file, text, &mut rules, errors);
    let rules: Vec<_> = rules.into_iter().map(Arc::new).collect();
    let names = rules.iter().filter_map(|rule| name_sum(rule)).collect();
    let ordered = rules.iter().any(|rule| rule.tier().is_ordered());
    Arc::new(File { name: file, sum, heads: Vec::new(), entries: None, ordered, rules, names })
}

/// A file of the usual shape, without what is wrong with it: that only the whole can tell.
fn read_cut(name: &Arc<str>, text: &str, sum: u128, former: Option<&File>) -> Option<File> {
    let policies = cut::cut(text)?;
    let chunks: Vec<(Chunk<'_>, u128)> = policies
        .iter()
        .flat_map(|policy| &policy.rules)
        .map(|chunk| (*chunk, crate::model::sum(&chunk.text)))
        .collect();
    let known = former.map(|former| known(former, &chunks));
    let mut heads: Vec<Option<&Arc<Head>>> =
        former.map_or_else(Vec::new, |former| former.heads.iter().map(Some).collect());
    let mut file = File {
        name: name.clone(),
        sum,
        heads: Vec::with_capacity(policies.len()),
        entries: None,
        ordered: false,
        rules: Vec::with_capacity(chunks.len()),
        names: Vec::with_capacity(chunks.len()),
    };
    let mut entries = Vec::with_capacity(chunks.len());
    let mut at = 0;
    for policy in &policies {
        let head = yaml::head(name, policy.head)?;
        // Two policies of equal heads have a head each.
        let kept = heads.iter_mut().find(|kept| kept.is_some_and(|kept| **kept == head)).and_then(Option::take);
        let head = kept.map_or_else(|| Arc::new(head), Arc::clone);
        file.ordered |= head.tier.is_ordered();
        for position in 1..=policy.rules.len() {
            let (chunk, sum) = chunks.get(at)?;
            let old = known.as_ref().and_then(|known| known.get(at).copied().flatten());
            let rule = read_rule(name, &head, u32::try_from(position).ok()?, chunk, old)?;
            file.names.extend(name_sum(&rule));
            file.rules.push(rule);
            entries.push(Entry { sum: *sum, line: chunk.line });
            at += 1;
        }
        file.heads.push(head);
    }
    file.entries = Some(entries);
    Some(file)
}

/// A rule of a former reading, and where it was read.
type Old<'a> = (&'a Arc<PolicyRule>, Entry);

fn read_rule(
    name: &Arc<str>,
    head: &Arc<Head>,
    position: u32,
    chunk: &Chunk<'_>,
    old: Option<Old<'_>>,
) -> Option<Arc<PolicyRule>> {
    let rule = match old {
        Some((rule, entry)) => {
            let was = rule.location();
            let line = was.line.checked_sub(entry.line)?.checked_add(chunk.line)?;
            let same_head = Arc::ptr_eq(rule.head(), head);
            if same_head && rule.position() == position && was.line == line {
                return Some(rule.clone());
            }
            rule.moved(head.clone(), position, Location { file: name.clone(), line, column: was.column })
        }
        None => {
            let (location, rule) = match chunk.single.then(|| entry::rule(chunk.text)).flatten() {
                Some((column, rule)) => (Location { file: name.clone(), line: chunk.line, column }, rule),
                None => {
                    let (within, rule) = yaml::entry(name, chunk.text)?;
                    (Location { line: within.line.checked_add(chunk.line)?.checked_sub(1)?, ..within }, rule)
                }
            };
            PolicyRule::new(head.clone(), position, location, rule)
        }
    };
    let misplaced = rule.rule().verb == Verb::Pass && !head.tier.is_ordered();
    (!misplaced).then(|| Arc::new(rule))
}

/// For each chunk, a rule of the former reading that was read from the same text.
fn known<'a>(former: &'a File, chunks: &[(Chunk<'_>, u128)]) -> Vec<Option<Old<'a>>> {
    let entries = former.entries.as_deref().unwrap_or_default();
    let old = |at: usize| Some((former.rules.get(at)?, *entries.get(at)?));
    let same = |(old, (_, sum)): &(&Entry, &(Chunk<'_>, u128))| old.sum == *sum;
    let head = entries.iter().zip(chunks).take_while(same).count();
    let (old_rest, new_rest) = (&entries[head..], &chunks[head..]);
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(same).count();
    let (old_middle, new_middle) = (head..entries.len() - tail, head..chunks.len() - tail);
    let by_sum: HashMap<u128, usize> = old_middle.clone().map(|at| (entries[at].sum, at)).collect();
    let middle = chunks[new_middle].iter().map(|(_, sum)| by_sum.get(sum).and_then(|at| old(*at)));
    (0..head).map(old).chain(middle).chain((old_middle.end..entries.len()).map(old)).collect()
}

fn name_sum(rule: &PolicyRule) -> Option<u128> {
    rule.rule().name.as_ref().map(|name| sum(&(rule.policy(), name)))
}

/// Whether no two rules bear one name.
fn all_differ(files: &[Arc<File>]) -> bool {
    let mut names: Vec<u128> = files.iter().flat_map(|file| &file.names).copied().collect();
    names.sort_unstable();
    names.windows(2).all(|pair| pair[0] != pair[1])
}

/// What is wrong with rules that are right by themselves.
fn clashes(rules: &[Arc<PolicyRule>], errors: &mut Vec<PolicyError>) {
    let mut seen: HashMap<(&str, &str), &PolicyRule> = HashMap::new();
    for rule in rules {
        let Some(name) = &rule.rule().name else {
            continue;
        };
        if let Some(first) = seen.insert((rule.policy(), name), rule) {
            errors.push(PolicyError::at(
                rule.location(),
                format!(
                    "rule name `{}` is already taken at {}: expected a name that is unique within the policy",
                    rule.full_name(),
                    first.location()
                ),
            ));
        }
    }
    let mut ordered: HashMap<(&str, &str), &PolicyRule> = HashMap::new();
    let mut told = HashSet::new();
    for rule in rules.iter().filter(|rule| rule.tier().is_ordered()) {
        let first = ordered.entry((rule.namespace().as_str(), rule.policy())).or_insert(rule);
        if !Arc::ptr_eq(first.head(), rule.head()) && told.insert(Arc::as_ptr(rule.head())) {
            errors.push(PolicyError::at(
                rule.location(),
                format!(
                    "policy `{}` of the tier {} is given twice, first at {}: expected another name, so that the order of its rules is clear",
                    rule.policy(),
                    rule.tier().name(),
                    first.location()
                ),
            ));
        }
    }
}

#[cfg(test)]
mod tests;
