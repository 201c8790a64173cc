//! Properties of suggested policies, checked against the evaluator; and what they look like.

use std::collections::{BTreeMap, BTreeSet};

use policy::{
    Action, FlowRecord, Identity, Moment, Namespace, Observations, PolicyRule, RECORD_VERSION, RecordEnd, RecordProto,
    Role, RuleId, Suggestion, evaluate, parse_file,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;

fn pu(name: &str, namespace: &str, tags: &[(&str, &str)]) -> RecordEnd {
    let Identity::Pu { namespace, tags } = Identity::pu(namespace.parse().unwrap(), tags.iter().copied()) else {
        unreachable!("a PU was made")
    };
    RecordEnd { pu: name.into(), namespace: Some(namespace), tags, ..RecordEnd::default() }
}

fn outside(address: &str) -> RecordEnd {
    RecordEnd { address: Some(address.parse().unwrap()), ..RecordEnd::default() }
}

fn named(address: &str, name: &str) -> RecordEnd {
    RecordEnd { fqdn: [name.to_owned()].into(), ..outside(address) }
}

fn record(from: &RecordEnd, to: &RecordEnd, proto: u8, port: u16, flows: u64) -> FlowRecord {
    FlowRecord {
        v: RECORD_VERSION,
        time: String::new(),
        since: String::new(),
        enforcer: "h".into(),
        role: Role::Server,
        from: from.clone(),
        to: to.clone(),
        from_port: None,
        proto: RecordProto(proto),
        port,
        verdict: Action::Allow,
        rule: String::new(),
        rule_namespace: String::new(),
        reason: "allowed".into(),
        peer_reason: false,
        observed: None,
        path: "resume".into(),
        flows,
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 0,
        packets_received: 0,
        rtt_us: None,
        rtt_max_us: None,
    }
}

fn refused(record: FlowRecord) -> FlowRecord {
    FlowRecord { verdict: Action::Deny, reason: "no_rule".into(), ..record }
}

fn suggest(records: &[FlowRecord], within: Option<&str>) -> Suggestion {
    let mut observations = Observations::new(within.map(|text| text.parse().unwrap()));
    records.iter().for_each(|record| observations.add(record));
    observations.suggest()
}

fn rules(suggestion: &Suggestion) -> Vec<std::sync::Arc<PolicyRule>> {
    let text = suggestion.to_string();
    parse_file("suggested.yaml", &text).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"))
}

fn allowed(rules: &[std::sync::Arc<PolicyRule>], from: &Identity, to: &Identity, proto: u8, port: u16) -> bool {
    let numbered = rules.iter().zip(1..).map(|(rule, number)| (RuleId(number), &**rule));
    evaluate(numbered, from, to, proto, port, Moment::START).action == Action::Allow
}

fn lines(suggestion: &Suggestion) -> Vec<String> {
    suggestion.rules.iter().map(|rule| format!("{}: {}", rule.name, rule.text)).collect()
}

#[test]
fn three_tiers_and_an_intruder() {
    let front = |n: u32| {
        let id = format!("{n:012x}9f");
        pu(&format!("h/web-{n}"), "/shop", &[("app", "web"), ("env", "prod"), ("@container:id", &id)])
    };
    let service = pu("h/api", "/shop", &[("app", "api"), ("env", "prod"), ("@container:id", "0123456789abcdef")]);
    let database = pu("h/db", "/shop", &[("app", "db"), ("env", "prod"), ("@container:image", "postgres:16")]);
    let intruder = pu("h/x", "/shop", &[("app", "miner"), ("env", "prod")]);
    let records = [
        record(&outside("192.0.2.7"), &front(1), 6, 443, 900),
        record(&front(1), &service, 6, 8080, 500),
        record(&front(2), &service, 6, 8080, 400),
        record(&service, &database, 6, 5432, 700),
        record(&service, &named("198.51.100.9", "api.pay.example"), 6, 443, 10),
        refused(record(&intruder, &database, 6, 5432, 3)),
    ];
    let suggestion = suggest(&records, None);
    assert_eq!(
        lines(&suggestion),
        [
            "web-to-api: allow app=web -> app=api tcp/8080",
            "api-to-db: allow app=api -> app=db tcp/5432",
            "api-to-api.pay.example: allow app=api -> net api.pay.example tcp/443",
            "outside-to-web: allow net 192.0.2.7/32 -> app=web tcp/443",
        ]
    );
    assert_eq!((suggestion.name.as_str(), suggestion.namespace.as_str()), ("suggested-shop", "/shop"));
    assert_eq!((suggestion.seen.pus, suggestion.seen.flows, suggestion.seen.refused), (5, 2510, 3));
    let flows: Vec<u64> = suggestion.rules.iter().map(|rule| rule.flows).collect();
    assert_eq!(flows, [900, 700, 10, 900]);
    let newly: Vec<u64> = suggestion.rules.iter().map(|rule| rule.newly.pairs).collect();
    assert_eq!(newly, [0, 0, 0, 1], "nobody outside called the second front end");
    assert_eq!(suggestion.rules[3].newly.examples, ["192.0.2.7 -> h/web-2 tcp/443"]);
    let text = suggestion.to_string();
    assert!(text.contains("  # 700 connections, 1 pairs; newly allows nothing\n  - api-to-db:"), "{text}");
    assert!(text.contains("# 3 refused attempts are not covered."), "{text}");
    let rules = rules(&suggestion);
    let end = |end: &RecordEnd| end.identity().unwrap();
    assert!(!allowed(&rules, &end(&intruder), &end(&database), 6, 5432));
    assert!(!allowed(&rules, &end(&front(1)), &end(&database), 6, 5432));
}

#[test]
fn what_is_common_is_named_before_lists_and_lists_before_exceptions() {
    let front = |app: &str| pu(app, "/", &[("app", app), ("tier", "front")]);
    let db = pu("db", "/", &[("app", "db"), ("tier", "back")]);
    let talk = |from: &RecordEnd| record(from, &db, 6, 5432, 1);
    // Five of the front tier: the tier; two of three: their names.
    let all: Vec<_> = ["a", "b", "c", "d", "e"].map(|app| talk(&front(app))).into();
    assert_eq!(lines(&suggest(&all, None)), ["front-to-db: allow tier=front -> app=db tcp/5432"]);
    let two = [talk(&front("a")), talk(&front("b")), refused(talk(&front("c")))];
    assert_eq!(lines(&suggest(&two, None)), ["a-and-b-to-db: allow app in (a,b) -> app=db tcp/5432"]);
    // Told apart only by what the other has beside.
    let plain = pu("plain", "/", &[("app", "web")]);
    let canary = pu("canary", "/", &[("app", "web"), ("track", "canary")]);
    let one = [talk(&plain), refused(talk(&canary))];
    assert_eq!(lines(&suggest(&one, None)), ["web-to-db: allow app=web track!=canary -> app=db tcp/5432"]);
    // Not told apart at all: said.
    let other = pu("other", "/elsewhere", &[("app", "web")]);
    let suggestion = suggest(&[talk(&plain), refused(talk(&other))], None);
    assert_eq!(lines(&suggestion), ["web-to-db: allow app=web -> app=db tcp/5432"]);
    assert_eq!(suggestion.rules[0].newly.examples, ["other -> db tcp/5432"]);
}

#[test]
fn many_addresses_and_many_ports_are_covered_and_said() {
    let web = pu("web", "/", &[("app", "web")]);
    let ftp = pu("ftp", "/", &[("app", "ftp")]);
    let mut records: Vec<_> =
        (0..200u32).map(|n| record(&outside(&format!("10.{n}.{}.9", n * 7 % 256)), &web, 6, 443, 1)).collect();
    records.extend((0..40u16).map(|n| record(&web, &ftp, 6, 30_000 + n * 10, 1)));
    let suggestion = suggest(&records, None);
    let [ports, addresses] = suggestion.rules.as_slice() else { panic!("{suggestion}") };
    assert_eq!(ports.text, "allow app=web -> app=ftp tcp/30000-30390");
    assert_eq!(ports.newly.ports, 391 - 40);
    assert!(addresses.newly.addresses > 200 && addresses.newly.addresses_seen == 200, "{suggestion}");
    let rules = rules(&suggestion);
    for record in &records {
        let (from, to) = (record.from.identity().unwrap(), record.to.identity().unwrap());
        assert!(allowed(&rules, &from, &to, 6, record.port));
    }
}

#[test]
fn what_cannot_be_used_is_said_and_lies_do_not_leave_their_comment() {
    let web = pu("h/web\n  - open: allow any -> any", "/", &[("app", "two: words #1")]);
    let db = pu("h/db", "/", &[("app", "it's")]);
    let mut old = record(&web, &db, 6, 1, 1);
    old.path = "none".into();
    let unknown = record(&RecordEnd::default(), &db, 6, 2, 1);
    let twin = pu("h/twin", "/twin", &[("app", "two: words #1")]);
    let suggestion = suggest(&[old, unknown, record(&web, &db, 6, 5, 1), refused(record(&twin, &db, 6, 5, 1))], None);
    assert_eq!(suggestion.seen.unusable, 2);
    let rules = rules(&suggestion);
    assert_eq!(rules.len(), 1, "{suggestion}");
    assert_eq!(rules[0].rule().to_string().split_once(": ").unwrap().1, suggestion.rules[0].text);
    let empty = suggest(&[refused(record(&web, &db, 6, 5, 1))], None);
    assert!(self::rules(&empty).is_empty() && !empty.notes.is_empty());
}

#[test]
fn a_namespace_is_suggested_for_alone() {
    let web = pu("web", "/shop/front", &[("app", "web")]);
    let db = pu("db", "/shop/back", &[("app", "db")]);
    let dns = pu("dns", "/infra", &[("app", "dns")]);
    let records = [
        record(&web, &db, 6, 5432, 1),
        record(&db, &dns, 6, 53, 1),
        record(&dns, &pu("up", "/infra", &[("app", "up")]), 6, 53, 1),
    ];
    let of =
        |within: Option<&str>| (suggest(&records, within).namespace.to_string(), suggest(&records, within).rules.len());
    assert_eq!(of(None), ("/".to_owned(), 3));
    assert_eq!(of(Some("/shop")), ("/shop".to_owned(), 2));
    assert_eq!(of(Some("/shop/front")), ("/shop/front".to_owned(), 1));
    assert_eq!(of(Some("/nobody")), ("/nobody".to_owned(), 0));
    assert_eq!(suggest(&records[..1], None).namespace.as_str(), "/shop");
}

/// Few tags of few values, accidents among them, so that PUs are often alike.
fn any_pu() -> impl Strategy<Value = RecordEnd> {
    let tags = btree_set(
        (
            select(vec!["app", "tier", "colour", "@container:id", "build"]),
            select(vec!["a", "b", "c", "0123456789abcdef"]),
        ),
        0..5,
    );
    (select(vec!["/", "/a", "/a", "/a/b", "/c"]), tags, 0..3u8).prop_map(|(namespace, tags, number)| {
        let tags: Vec<_> = tags.into_iter().collect();
        pu(&format!("h/pu{number}"), namespace, &tags)
    })
}

fn any_outside() -> impl Strategy<Value = RecordEnd> {
    (0..40u8, prop::option::of(select(vec!["a.example", "b.example"]))).prop_map(|(last, name)| {
        let address = format!("192.0.{}.{}", last % 3, last * 6);
        name.map_or_else(|| outside(&address), |name| named(&address, name))
    })
}

fn any_record() -> impl Strategy<Value = FlowRecord> {
    let ends = prop_oneof![
        6 => (any_pu(), any_pu()),
        1 => (any_outside(), any_pu()),
        1 => (any_pu(), any_outside()),
    ];
    let port = select(vec![(6, 80), (6, 81), (6, 5432), (17, 53), (1, 0x0800)]);
    (ends, port, 0..5u64, prop::bool::weighted(0.15), any::<bool>()).prop_map(
        |((from, to), port, flows, deny, client)| {
            let record = record(&from, &to, port.0, port.1, flows);
            let record = FlowRecord { role: if client { Role::Client } else { Role::Server }, ..record };
            if deny { refused(record) } else { record }
        },
    )
}

type Talked = BTreeSet<(Identity2, Identity2, u8, u16)>;
/// An identity that can be put in order.
type Identity2 = (String, Vec<(String, Vec<String>)>);

fn ordered(end: &RecordEnd) -> Option<Identity2> {
    let tags = end.tags.iter().map(|(key, values)| (key.clone(), values.iter().cloned().collect())).collect();
    Some((end.namespace.as_ref()?.to_string(), tags))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn everything_recorded_is_allowed_and_everything_else_is_said(
        records in vec(any_record(), 1..24),
        within in prop::option::of(select(vec!["/a", "/"])),
    ) {
        let suggestion = suggest(&records, within);
        let rules = rules(&suggestion);
        prop_assert_eq!(rules.len(), suggestion.rules.len());
        let scope: Namespace = suggestion.namespace.clone();
        let concerns = |end: &RecordEnd| end.namespace.as_ref().is_some_and(|namespace| scope.contains(namespace));
        let mut talked = Talked::new();
        let mut pus: BTreeMap<Identity2, RecordEnd> = BTreeMap::new();
        let mut ports = BTreeSet::new();
        for record in &records {
            for end in [&record.from, &record.to] {
                if let Some(key) = ordered(end) {
                    pus.insert(key, end.clone());
                }
            }
            if record.verdict == Action::Deny || (!concerns(&record.from) && !concerns(&record.to)) {
                continue;
            }
            let (from, to) = (record.from.identity().unwrap(), record.to.identity().unwrap());
            let (proto, port) = (record.proto.0, record.port);
            prop_assert!(allowed(&rules, &from, &to, proto, port), "{:?}\n{}", record, suggestion);
            if let (Some(from), Some(to)) = (ordered(&record.from), ordered(&record.to)) {
                talked.insert((from, to, proto, port));
                ports.insert((proto, port));
            }
        }
        // Rule by rule, what it lets recorded PUs newly do is what it says.
        for suggested in suggestion.rules.iter().filter(|rule| rule.newly.addresses == 0 && !rule.text.contains("net ")) {
            let mut newly = BTreeSet::new();
            for (a, from) in &pus {
                for (b, to) in &pus {
                    if !concerns(from) && !concerns(to) {
                        continue;
                    }
                    let (subject, object) = (from.identity().unwrap(), to.identity().unwrap());
                    let means = suggested.rule.subject.matches(&subject) && suggested.rule.object.matches(&object);
                    for (proto, port) in &ports {
                        let told = talked.contains(&(a.clone(), b.clone(), *proto, *port));
                        if means && suggested.rule.covers(*proto, *port) && !told {
                            newly.insert((a, b));
                        }
                    }
                }
            }
            prop_assert_eq!(newly.len() as u64, suggested.newly.pairs, "{}\n{}", suggested.text, suggestion);
        }
        // And together they let nobody do what none of them says.
        let silent = suggestion.rules.iter().all(|rule| rule.newly.pairs == 0);
        for (a, from) in &pus {
            for (b, to) in &pus {
                for (proto, port) in &ports {
                    let told = talked.contains(&(a.clone(), b.clone(), *proto, *port));
                    if silent && !told && (concerns(from) || concerns(to)) {
                        let (from, to) = (from.identity().unwrap(), to.identity().unwrap());
                        prop_assert!(!allowed(&rules, &from, &to, *proto, *port), "{}", suggestion);
                    }
                }
            }
        }
    }

    #[test]
    fn the_order_of_records_and_their_form_do_not_matter(
        (records, shuffled) in vec(any_record(), 1..30).prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
    ) {
        let mut by_line = Observations::new(None);
        for record in &shuffled {
            by_line.add_line(&serde_json::to_string(record).unwrap()).unwrap();
        }
        prop_assert_eq!(suggest(&records, None), by_line.suggest());
    }
}

#[test]
fn lines_that_are_no_records_change_nothing() {
    let mut observations = Observations::new(None);
    for line in ["", "{}", "null", "{\"v\":1}", "\u{0}", "[1,2]"] {
        assert!(observations.add_line(line).is_err(), "{line:?}");
    }
    let web = pu("web", "/", &[("app", "web")]);
    let line = serde_json::to_string(&record(&web, &web, 6, 1, 1)).unwrap();
    assert!(observations.add_line(&line.replace("\"v\":1", "\"v\":7")).unwrap_err().to_string().contains("version 7"));
    assert!(observations.add_line(&line.replace("[\"web\"]", "5")).is_err());
    assert_eq!(observations.suggest().seen.records, 0);
}
