//! The truth tables of the language reference, judged by the evaluator and by the compiled form.

use std::sync::Arc;

use policy::{
    Action, Capabilities, Compiled, Head, Identity, IdentityId, Location, Moment, Namespace, PolicyRule, PortRange,
    Tier, evaluate, explain, parse_files, parse_rule,
};

const DOCS: &str = include_str!("../../docs/policy.md");
const NOW: u64 = 100;

/// The rows of a table, cells without white space around them; the header first.
fn table(name: &str) -> Vec<Vec<&'static str>> {
    let after = DOCS.split(&format!("<!-- truth table: {name} -->\n")).nth(1).expect(name);
    let lines = after.lines().take_while(|line| line.starts_with('|')).filter(|line| !line.starts_with("|---"));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// What a cell stands for, where the connection is to port 80.
fn line(cell: &str) -> Option<&'static str> {
    Some(match cell {
        "no rules" => return None,
        "allow" => "allow any -> any tcp/80",
        "deny" => "deny any -> any tcp/80",
        "pass" => "pass any -> any tcp/80",
        "others" => "allow any -> any tcp/81",
        "deny others" => "deny any -> any tcp/81",
        "expired allow" => "allow any -> any tcp/80 until 1970-01-01T00:01:40Z",
        "expired deny" => "deny any -> any tcp/80 until 1970-01-01T00:01:40Z",
        "observed others" => "allow any -> any tcp/81 observe",
        "observed allow" => "allow any -> any tcp/80 observe",
        "observed deny" => "deny any -> any tcp/80 observe",
        other => panic!("no such cell: {other}"),
    })
}

/// One policy a cell, named after its column.
fn rules(columns: &[&str], cells: &[&str]) -> Vec<Arc<PolicyRule>> {
    let texts: Vec<(String, String)> = columns
        .iter()
        .zip(cells)
        .enumerate()
        .filter_map(|(at, (column, cell))| {
            let place = match column.trim_matches('`') {
                "normal" => "tier: normal".to_owned(),
                tier @ ("admin" | "baseline") => format!("tier: {tier}\npriority: 7"),
                namespace => format!("namespace: {namespace}"),
            };
            Some((column.to_string(), format!("name: c{at}\n{place}\nrules:\n  - {}\n", line(cell)?)))
        })
        .collect();
    parse_files(texts.iter().map(|(file, text)| (file.as_str(), text.as_str()))).unwrap()
}

fn check(name: &str, subject: &str, object: &str) {
    let rows = table(name);
    let (columns, rows) = rows.split_first().expect("a header");
    assert!(rows.len() > 5, "{name}");
    let (columns, _) = columns.split_at(columns.len() - 1);
    let now = Moment::from_unix(NOW);
    for row in rows {
        let (expected, cells) = row.split_last().expect("an outcome");
        let mut compiled = Compiled::new(&rules(columns, cells), Capabilities::default()).unwrap();
        compiled.advance(now);
        let [subject, object] =
            [subject, object].map(|namespace| Identity::pu(namespace.parse().unwrap(), [("a", "b")]));
        compiled.add_identity(IdentityId(1), &subject).unwrap();
        compiled.add_identity(IdentityId(2), &object).unwrap();
        let decision = compiled.pair(IdentityId(1), IdentityId(2)).decide(PortRange::TCP, 80);
        let plain = evaluate(compiled.rules(), &subject, &object, PortRange::TCP, 80, now);
        assert_eq!(decision, plain, "{name}: {row:?}");

        let decider = decision.rule.map(|id| {
            let policy = compiled.rule(id).unwrap().policy()[1..].parse::<usize>().unwrap();
            columns[policy].trim_matches('`').to_owned()
        });
        let outcome = match (decision.action, &decider) {
            (Action::Allow, _) => "allowed".to_owned(),
            (Action::Deny, None) => "denied by default".to_owned(),
            (Action::Deny, Some(by)) => format!("denied by `{by}`"),
        };
        let observed = decision.observed.map_or(String::new(), |(action, _)| format!(", observed {action}"));
        assert_eq!(format!("{outcome}{observed}"), *expected, "{name}: {row:?}");
    }
}

#[test]
fn children_narrow_and_never_widen() {
    check("namespaces", "/acme/prod", "/acme/prod");
}

#[test]
fn a_connection_between_namespaces_needs_both() {
    check("across", "/acme/web", "/other/db");
}

#[test]
fn tiers_are_asked_in_order() {
    check("tiers", "/", "/");
}

#[test]
fn what_the_enforcer_exempts_no_namespace_can_refuse_and_it_bounds_nothing() {
    let head = Arc::new(Head { name: "own".into(), namespace: Namespace::root(), tier: Tier::Exempt });
    let own = parse_rule("ssh: allow any -> app=b tcp/22").unwrap();
    let mut rules = vec![Arc::new(PolicyRule::new(head, 1, Location::default(), own))];
    let files = [
        ("root.yaml", "name: root\nrules:\n  - deny any -> app=b tcp/22\n"),
        (
            "child.yaml",
            "name: child\nnamespace: /acme\nrules:\n  - deny any -> any tcp/22\n  - allow any -> any tcp/80\n",
        ),
    ];
    rules.extend(parse_files(files).unwrap());
    let (a, b) = (("app", "a"), ("app", "b"));
    let (a, b) = (Identity::pu("/acme".parse().unwrap(), [a]), Identity::pu("/acme".parse().unwrap(), [b]));
    let mut compiled = Compiled::new(&rules, Capabilities::default()).unwrap();
    compiled.add_identity(IdentityId(1), &a).unwrap();
    compiled.add_identity(IdentityId(2), &b).unwrap();
    for (from, to, port, expected) in [
        ((1, &a), (2, &b), 22, (Action::Allow, Some(1))),
        ((2, &b), (1, &a), 22, (Action::Deny, Some(3))),
        ((1, &a), (2, &b), 80, (Action::Allow, Some(4))),
        ((1, &a), (2, &b), 81, (Action::Deny, None)),
    ] {
        let judged = evaluate(compiled.rules(), from.1, to.1, PortRange::TCP, port, Moment::START);
        assert_eq!((judged.action, judged.rule.map(|rule| rule.0)), expected, "{port}");
        assert_eq!(compiled.pair(IdentityId(from.0), IdentityId(to.0)).decide(PortRange::TCP, port), judged);
    }
    let text = explain(compiled.rules(), &a, &b, PortRange::TCP, 22, Moment::START).to_string();
    for line in [
        "allowed by rule 1 `own/ssh`, tier exempt",
        "rule 1 is asked before it",
        "rule 1 of the enforcer itself exempts this",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
