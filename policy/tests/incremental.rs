//! What an agent has after many changes of its policy files, against the same files read and compiled afresh.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::{Capabilities, Compiled, IdentityId, Interval, ParsedFiles, PolicyRule, RuleId, parse_files};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use support::{policy_rule, pu};

const FILES: [&str; 3] = ["a.yaml", "b.yaml", "c.yaml"];
const HEADS: [&str; 4] = [
    "name: p\nrules:\n",
    "name: p\nnamespace: /a\nrules:\n",
    "name: q\nnamespace: /a/b\nrules:\n",
    "name: p\ntier: baseline\npriority: 7\nrules:\n",
];

#[derive(Clone, Debug)]
enum Edit {
    Insert(Index, Index, String),
    Replace(Index, Index, String),
    Remove(Index, Index),
    Move(Index, Index, Index),
    /// Lines of comments before a rule.
    Comment(Index, Index, usize),
    Head(Index, usize),
    Rename(Index, usize),
    RemoveFile(Index),
    AddFile(usize, Vec<String>),
}

/// A file: its name, its head, its rules as lines.
type Draft = (usize, usize, Vec<String>);

/// A rule as it is written in a file, on one line or as a mapping, with a name or without.
fn line() -> impl Strategy<Value = String> {
    (policy_rule(), 0..6u32, any::<u16>(), any::<bool>()).prop_map(|(rule, form, name, named)| {
        let mut rule = rule.rule().clone();
        rule.name = named.then(|| format!("r{name}"));
        rule.encrypt = false;
        if rule.verb == policy::Verb::Pass {
            rule.verb = policy::Verb::Deny;
        }
        let text = rule.to_string();
        let quoted = format!("'{}'", text.replace('\'', "''"));
        match (form, &rule.name) {
            (0..3, None) if !text.contains(['#', '"', ':']) => format!("  - {text}\n"),
            (3, Some(name)) => {
                let own = quoted.replacen(&format!("{name}: "), "", 1);
                format!("  - {name}: {own}\n")
            }
            (4, _) => format!("  - {quoted} # said\n\n"),
            (5, _) => format!("  -\n    {quoted}\n"),
            _ => format!("  - {quoted}\n"),
        }
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), at(), line()).prop_map(|(file, place, line)| Edit::Insert(file, place, line)),
        3 => (at(), at(), line()).prop_map(|(file, place, line)| Edit::Replace(file, place, line)),
        2 => (at(), at()).prop_map(|(file, place)| Edit::Remove(file, place)),
        2 => (at(), at(), at()).prop_map(|(file, from, to)| Edit::Move(file, from, to)),
        1 => (at(), at(), 1..4usize).prop_map(|(file, place, lines)| Edit::Comment(file, place, lines)),
        1 => (at(), 0..HEADS.len()).prop_map(|(file, head)| Edit::Head(file, head)),
        1 => (at(), 0..FILES.len()).prop_map(|(file, name)| Edit::Rename(file, name)),
        1 => at().prop_map(Edit::RemoveFile),
        1 => (0..FILES.len(), vec(line(), 0..40)).prop_map(|(name, lines)| Edit::AddFile(name, lines)),
    ]
}

fn apply(drafts: &mut Vec<Draft>, edit: Edit) {
    if let Edit::AddFile(name, lines) = edit {
        return drafts.push((name, name, lines));
    }
    let count = drafts.len();
    if count == 0 {
        return;
    }
    let place = |place: &Index, lines: &[String]| place.index(lines.len().max(1)).min(lines.len());
    match edit {
        Edit::Insert(file, at, line) => {
            let lines = &mut drafts[file.index(count)].2;
            lines.insert(place(&at, lines), line);
        }
        Edit::Replace(file, at, line) => {
            let lines = &mut drafts[file.index(count)].2;
            let at = place(&at, lines);
            lines.splice(at..(at + 1).min(lines.len()), [line]);
        }
        Edit::Remove(file, at) => {
            let lines = &mut drafts[file.index(count)].2;
            let at = place(&at, lines);
            lines.splice(at..(at + 1).min(lines.len()), []);
        }
        Edit::Move(file, from, to) => {
            let lines = &mut drafts[file.index(count)].2;
            if !lines.is_empty() {
                let line = lines.remove(place(&from, lines));
                lines.insert(place(&to, lines), line);
            }
        }
        Edit::Comment(file, at, number) => {
            let lines = &mut drafts[file.index(count)].2;
            lines.insert(place(&at, lines), "  # a comment\n".repeat(number));
        }
        Edit::Head(file, head) => drafts[file.index(count)].1 = head,
        Edit::Rename(file, name) => drafts[file.index(count)].0 = name,
        Edit::RemoveFile(file) => drop(drafts.remove(file.index(count))),
        Edit::AddFile(..) => {}
    }
}

/// Each rule by its number, as the agent's table of names and a person would have it.
fn shown(rule: &PolicyRule) -> String {
    format!("{} {} {}", rule.full_name(), rule.location(), rule.rule())
}

/// A verdict with rules by their place in the list: numbers are another's where other rules went before.
fn by_place(compiled: &Compiled, pair: (u32, u32)) -> Vec<(Interval, Option<usize>, Option<usize>)> {
    let places: BTreeMap<RuleId, usize> = compiled.rules().enumerate().map(|(at, (id, _))| (id, at)).collect();
    let verdict = compiled.pair(IdentityId(pair.0), IdentityId(pair.1));
    let place = |id: RuleId| places.get(&id).copied();
    let intervals = verdict.intervals.iter().map(|interval| {
        let (rule, observed) = (place(interval.rule), place(interval.observed_rule));
        (Interval { rule: RuleId::NONE, observed_rule: RuleId::NONE, ..*interval }, rule, observed)
    });
    intervals.collect()
}

/// The same but for which of several rules that say the same is named: that with the smaller number, so the older one.
fn without_rules(verdict: Vec<(Interval, Option<usize>, Option<usize>)>) -> Vec<(Interval, bool)> {
    let mut plain: Vec<(Interval, bool)> = Vec::new();
    for (interval, rule, _) in verdict {
        match plain.last_mut() {
            Some((last, named))
                if last.hi.checked_add(1) == Some(interval.lo)
                    && *named == rule.is_some()
                    && Interval { lo: interval.lo, hi: interval.hi, ..*last } == interval =>
            {
                last.hi = interval.hi;
            }
            _ => plain.push((interval, rule.is_some())),
        }
    }
    plain
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn many_changes_are_as_good_as_a_fresh_start(
        lines in vec(line(), 0..30),
        pus in vec(pu(), 2..5),
        edits in vec((edit(), select(vec![true, true, false])), 1..12),
    ) {
        let mut drafts: Vec<Draft> = vec![(0, 0, lines)];
        let mut parsed = ParsedFiles::default();
        let mut compiled = Compiled::default();
        for (id, identity) in pus.iter().enumerate() {
            compiled.add_identity(IdentityId(id as u32), identity).unwrap();
        }
        let ids = 0..pus.len() as u32;
        let pairs: Vec<(u32, u32)> = ids.clone().flat_map(|s| ids.clone().map(move |o| (s, o))).collect();
        let mut names: BTreeMap<RuleId, String> = BTreeMap::new();
        for (edit, looked_at) in edits {
            apply(&mut drafts, edit);
            // Several edits may come at once.
            if !looked_at {
                continue;
            }
            let texts: Vec<(&str, String)> = drafts
                .iter()
                .map(|(name, head, lines)| (FILES[*name], HEADS[*head].to_owned() + &lines.concat()))
                .collect();
            let files = || texts.iter().map(|(name, text)| (*name, text.as_str()));
            let fresh = match (parsed.parse(files()), parse_files(files())) {
                (Ok(now), Ok(fresh)) => {
                    parsed = now;
                    fresh
                }
                // A name twice; the policy stays as it was.
                (Err(errors), Err(expected)) => {
                    prop_assert_eq!(errors, expected);
                    continue;
                }
                (now, fresh) => panic!("{:?} and {fresh:?}", now.map(|now| now.len())),
            };
            let list = |rules: &[Arc<PolicyRule>]| rules.iter().map(|rule| shown(rule)).collect::<Vec<_>>();
            prop_assert_eq!(list(parsed.rules()), list(&fresh));

            let before: Vec<_> = pairs.iter().map(|(s, o)| compiled.pair(IdentityId(*s), IdentityId(*o))).collect();
            let delta = compiled.update_rules(parsed.rules()).unwrap();
            for (at, (s, o)) in pairs.iter().enumerate() {
                let (s, o) = (IdentityId(*s), IdentityId(*o));
                prop_assert!(delta.affects(s, o) || compiled.pair(s, o) == before[at]);
            }
            // What is told of the change is enough to follow every rule's name and place.
            delta.removed.iter().for_each(|id| drop(names.remove(id)));
            for id in delta.added.iter().chain(&delta.moved) {
                names.insert(*id, shown(compiled.rule(*id).unwrap()));
            }
            let all: BTreeMap<RuleId, String> = compiled.rules().map(|(id, rule)| (id, shown(rule))).collect();
            prop_assert_eq!(&names, &all);

            let mut other = Compiled::new(&fresh, Capabilities::default()).unwrap();
            for (id, identity) in pus.iter().enumerate() {
                other.add_identity(IdentityId(id as u32), identity).unwrap();
            }
            for pair in &pairs {
                prop_assert_eq!(without_rules(by_place(&compiled, *pair)), without_rules(by_place(&other, *pair)));
            }
            prop_assert_eq!(
                compiled.external_prefixes().iter().map(|(net, _)| *net).collect::<Vec<_>>(),
                other.external_prefixes().iter().map(|(net, _)| *net).collect::<Vec<_>>()
            );
        }
    }
}
