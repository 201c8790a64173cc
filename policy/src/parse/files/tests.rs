//! What is read piece by piece, after something else, against the same files read by YAML as a whole.

use std::cell::Cell;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

use super::*;

type Texts = Vec<(String, String)>;

/// The same without any short cut.
fn by_yaml(files: &Texts) -> Result<Vec<Arc<PolicyRule>>, PolicyErrors> {
    let (mut rules, mut errors) = (Vec::new(), Vec::new());
    for (file, text) in files {
        yaml::file(&file.as_str().into(), text, &mut rules, &mut errors);
    }
    let rules: Vec<_> = rules.into_iter().map(Arc::new).collect();
    clashes(&rules, &mut errors);
    PolicyErrors::new(errors).map_or(Ok(rules), Err)
}

fn parse(former: &ParsedFiles, files: &Texts) -> Result<ParsedFiles, PolicyErrors> {
    former.parse(files.iter().map(|(file, text)| (file.as_str(), text.as_str())))
}

/// Everything that can be seen of rules, one a line.
fn seen(rules: &[Arc<PolicyRule>]) -> String {
    rules.iter().map(|rule| format!("{rule:?}\n")).collect()
}

#[track_caller]
fn check(former: &ParsedFiles, files: &Texts) -> Option<ParsedFiles> {
    match (parse(former, files), by_yaml(files)) {
        (Ok(parsed), Ok(expected)) => {
            assert_eq!(seen(parsed.rules()), seen(&expected), "{files:#?}");
            // Two policies of equal heads have a head each, and the rules of one share it.
            let pairs = |rules: &[Arc<PolicyRule>]| -> Vec<bool> {
                rules.windows(2).map(|pair| Arc::ptr_eq(pair[0].head(), pair[1].head())).collect()
            };
            assert_eq!(pairs(parsed.rules()), pairs(&expected), "{files:#?}");
            Some(parsed)
        }
        (Err(errors), Err(expected)) => {
            assert_eq!(errors, expected, "{files:#?}");
            None
        }
        (parsed, expected) => {
            panic!("{files:#?}\nis {:?}, and to YAML {:?}", parsed.map(|p| seen(p.rules())), expected.map(|r| seen(&r)))
        }
    }
}

/// Entries of a list of rules in the first column, most of them right.
const ENTRIES: &[&str] = &[
    "- allow a=1 -> b=2 tcp/80",
    "- allow a -> b",
    "- allow app=web user=prod | app=admin -> app=db !old tcp/5432,6000-6010 udp log",
    "- deny k in (a,b) k2 not in (c) -> any ingress",
    "- allow a -> net 10.0.0.0/8,*.example.org except 10.1.0.0/16 tcp/443",
    "- allow a=pre* -> b until 2026-12-31T23:59:59Z observe",
    "- web: allow a -> b",
    "- web: allow a=2 -> b",
    "- db.1:   deny a -> b   ",
    "-   deny c -> d",
    "- \"quoted: allow a -> b\"",
    "- 'also: deny a=\"x y\" -> b'",
    "- 'it''s: deny a -> b'",
    "- \"escaped: allow a=\\\"x\\\" -> b\"",
    "- named-quoted: \"allow a -> b\"",
    "- \"key\": allow a -> b",
    "- allow a=\"x y\" -> b",
    "- allow a=\u{e9} -> b",
    "- caf\u{e9}: allow a -> b",
    "- allow a -> b # why",
    "- allow a=\"x #y\" -> b",
    "- 'allow a=\"x #y\" -> b'",
    "- allow a -> b#why",
    "- allow a -> b tcp/80,\n   81",
    "- allow a\n  -> b\n  tcp/80",
    "- >-\n  allow a ->\n  b",
    "- |\n  allow a -> b\n  # no comment\n\n",
    "- {name: flow, action: allow, from: a, to: b}",
    "- {action: deny, from: [a, b],\n  to: any}",
    "-\n  action: allow\n  from: a\n  to: b",
    "- name: long\n  action: allow\n  from: {tags: {app: web}}\n  to:\n    - app=db\n    - app=cache\n  ports: [tcp/1, udp/2]",
    "- action: allow\n  from: a\n\n# between\n  to: b",
    "- &anchor allow a -> b",
    "- allow a -> b\n# behind",
    "- allow a -> b\n    # deeper\n\n",
    "# a comment alone",
    "",
];

/// Those that are wrong, some only where they stand.
const WRONG: &[&str] = &[
    "- pass a -> b",
    "- allow a",
    "- allow a -> b tcp/x",
    "- null: allow a -> b",
    "- until: allow a -> b",
    "- name: allow a -> b",
    "- web: permit a -> b",
    "- web: x: allow a -> b",
    "- allow a -> b: c",
    "- web: allow a -> b: c",
    "- allow a -> b:",
    "- \"allow a",
    "- 'allow a -> b' log",
    "- *anchor",
    "- !tag allow a -> b",
    "- [allow a -> b",
    "-",
    "- ~",
    "- - allow a -> b",
    "-\tallow a -> b",
    "- \tallow a -> b",
    "\t- allow a -> b",
    " - allow a -> b",
    "-allow a -> b",
    "rules:",
    "name: again",
    "...",
    "---",
    "- allow a -> b\r",
    "- allow a -> b\u{0}",
    "- allow a -> b\u{85}",
    "- allow a -> b\u{feff}",
    "\u{feff}- allow a -> b",
];

const HEADS: &[&str] = &[
    "name: p\nrules:",
    "name: p\nnamespace: /acme/prod\nrules:",
    "name: q\nrules:",
    "# of the shop\nname: \"p\"\n\nnamespace: '/acme'\nrules: ",
    "name: p\ntier: admin\npriority: 10\nrules:",
    "tier: baseline\npriority: 10\nname: p\nrules:",
];

const ODD_HEADS: &[&str] = &[
    "name: p\nrules: []",
    "name: p\nrules: # none",
    "name: p # of all\nrules:",
    "rules:\n- allow a -> b\nname: p",
    "name: p\nrules:\n- allow a -> b\nnamespace: /x",
    "name: \"a\nrules:\n- b",
    "name: null\nrules:",
    "rules:",
    "name: p\nnamespace: a\nrules:",
    "name: p\npriority: 10\nrules:",
    "name: p\nkey: x\nrules:",
    "name:p\nrules:",
    "name: p\nname: p\nrules:",
    "{name: p, rules: [allow a -> b]}",
    "name: p",
    "",
    "---\nname: p\nrules:",
    "%YAML 1.2\n---\nname: p\nrules:",
    "--- # a document\nname: p\nrules:",
    "---\n---\nname: p\nrules:",
];

/// A policy: its head, the column of its rules, its rules.
#[derive(Clone, Debug)]
struct Written {
    head: &'static str,
    column: usize,
    entries: Vec<&'static str>,
}

/// A file: its policies, as one mapping or as a list of them.
#[derive(Clone, Debug)]
struct Draft {
    name: &'static str,
    is_list: bool,
    policies: Vec<Written>,
    ends: bool,
}

fn entry() -> impl Strategy<Value = &'static str> {
    prop_oneof![40 => select(ENTRIES), 1 => select(WRONG)]
}

fn written() -> impl Strategy<Value = Written> {
    let head = prop_oneof![12 => select(HEADS), 1 => select(ODD_HEADS)];
    (head, select(vec![0usize, 2, 2, 2, 4]), vec(entry(), 0..8)).prop_map(|(head, column, entries)| Written {
        head,
        column,
        entries,
    })
}

fn draft() -> impl Strategy<Value = Draft> {
    let name = select(vec!["a.yaml", "b.yaml", "c.yaml"]);
    let policies = prop_oneof![3 => vec(written(), 1..2), 1 => vec(written(), 0..4)];
    (name, any::<bool>(), policies, prop::bool::weighted(0.9)).prop_map(|(name, list, policies, ends)| Draft {
        name,
        // One file in two with one policy is a list of one.
        is_list: list || policies.len() > 1,
        policies,
        ends,
    })
}

impl Draft {
    fn text(&self) -> String {
        let indented = |text: &str, by: usize| -> String {
            let lines = text.split('\n').map(|line| match line.is_empty() {
                true => "\n".to_owned(),
                false => format!("{:by$}{line}\n", ""),
            });
            lines.collect()
        };
        let mut text = String::new();
        for policy in &self.policies {
            let mut own = indented(policy.head, 0);
            for entry in &policy.entries {
                own += &indented(entry, policy.column);
            }
            match self.is_list {
                true => text += &indented(own.trim_end_matches('\n'), 2).replacen("  ", "- ", 1),
                false => text += &own,
            }
        }
        match self.ends {
            true => text,
            false => text.trim_end_matches('\n').to_owned(),
        }
    }
}

#[derive(Clone, Debug)]
enum Edit {
    Insert(Index, Index, &'static str),
    Remove(Index, Index),
    Replace(Index, Index, &'static str),
    Move(Index, Index, Index),
    Head(Index, &'static str),
    Rename(Index, &'static str),
    RemoveFile(Index),
    AddFile(Draft),
    SwapPolicies(Index),
    /// Touches the text wherever it pleases.
    Byte(Index, char),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        6 => (at(), at(), entry()).prop_map(|(file, place, entry)| Edit::Insert(file, place, entry)),
        4 => (at(), at()).prop_map(|(file, place)| Edit::Remove(file, place)),
        4 => (at(), at(), entry()).prop_map(|(file, place, entry)| Edit::Replace(file, place, entry)),
        4 => (at(), at(), at()).prop_map(|(file, from, to)| Edit::Move(file, from, to)),
        2 => (at(), select(HEADS)).prop_map(|(file, head)| Edit::Head(file, head)),
        1 => (at(), select(vec!["a.yaml", "d.yaml"])).prop_map(|(file, name)| Edit::Rename(file, name)),
        1 => at().prop_map(Edit::RemoveFile),
        1 => draft().prop_map(Edit::AddFile),
        1 => at().prop_map(Edit::SwapPolicies),
        1 => (at(), select(vec![' ', '\n', '#', '"', ':', '-', 'x', '[', '\t'])).prop_map(|(at, c)| Edit::Byte(at, c)),
    ]
}

fn apply(drafts: &mut Vec<Draft>, edit: &Edit) {
    let count = drafts.len();
    let mut rules = |file: &Index, change: &mut dyn FnMut(&mut Vec<&'static str>)| {
        if let Some(policy) = drafts.get_mut(file.index(count.max(1))).and_then(|draft| draft.policies.first_mut()) {
            change(&mut policy.entries);
        }
    };
    match edit {
        Edit::Insert(file, place, entry) => {
            rules(file, &mut |entries| entries.insert(place.index(entries.len() + 1), entry))
        }
        Edit::Remove(file, place) => rules(file, &mut |entries| {
            if !entries.is_empty() {
                entries.remove(place.index(entries.len()));
            }
        }),
        Edit::Replace(file, place, entry) => rules(file, &mut |entries| {
            let count = entries.len();
            if let Some(old) = entries.get_mut(place.index(count.max(1))) {
                *old = entry;
            }
        }),
        Edit::Move(file, from, to) => rules(file, &mut |entries| {
            if !entries.is_empty() {
                let entry = entries.remove(from.index(entries.len()));
                entries.insert(to.index(entries.len() + 1), entry);
            }
        }),
        _ if count == 0 => drafts.extend(match edit {
            Edit::AddFile(draft) => Some(draft.clone()),
            _ => None,
        }),
        Edit::Head(file, head) => {
            if let Some(policy) = drafts[file.index(count)].policies.last_mut() {
                policy.head = head;
            }
        }
        Edit::Rename(file, name) => drafts[file.index(count)].name = name,
        Edit::RemoveFile(file) => drop(drafts.remove(file.index(count))),
        Edit::AddFile(draft) => drafts.push(draft.clone()),
        Edit::SwapPolicies(file) => drafts[file.index(count)].policies.reverse(),
        Edit::Byte(..) => {}
    }
}

fn texts(drafts: &[Draft], edit: Option<&Edit>) -> Texts {
    let mut texts: Texts = drafts.iter().map(|draft| (draft.name.to_owned(), draft.text())).collect();
    if let (Some(Edit::Byte(at, c)), Some((_, text))) = (edit, texts.first_mut()) {
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        text.insert(places[at.index(places.len())], *c);
    }
    texts
}

#[test]
fn reading_after_something_else_makes_no_difference() {
    let mut runner = TestRunner::new(Config { cases: 3_000, ..Config::default() });
    let (right, cut, kept, wrong) = (Cell::new(0), Cell::new(0), Cell::new(0), Cell::new(0));
    runner
        .run(&(vec(draft(), 1..3), vec(edit(), 0..6)), |(mut drafts, edits)| {
            let mut former = ParsedFiles::default();
            for edit in std::iter::once(None).chain(edits.iter().map(Some)) {
                if let Some(edit) = edit {
                    apply(&mut drafts, edit);
                }
                let Some(parsed) = check(&former, &texts(&drafts, edit)) else {
                    wrong.set(wrong.get() + 1);
                    continue;
                };
                right.set(right.get() + 1);
                cut.set(cut.get() + parsed.files.iter().filter(|file| file.entries.is_some()).count());
                let is_kept = |rule: &&Arc<PolicyRule>| {
                    former.rules().iter().any(|old| !Arc::ptr_eq(old, rule) && Arc::ptr_eq(old.text(), rule.text()))
                };
                kept.set(kept.get() + parsed.rules().iter().filter(is_kept).count());
                former = parsed;
            }
            Ok(())
        })
        .unwrap();
    let counts = (right.get(), cut.get(), kept.get(), wrong.get());
    // The test is only worth something where the short cuts were taken, and where they were refused.
    assert!(counts.0 > 1_000 && counts.1 > 1_000 && counts.2 > 1_000 && counts.3 > 1_000, "{counts:?}");
}
