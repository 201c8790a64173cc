//! Random rules and identities from a small vocabulary, so that they often meet.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::sync::Arc;

use policy::{
    Clause, Ends, Head, Identity, Location, Moment, Namespace, Networks, Operator, PolicyRule, PortRange, Rule,
    Selector, Side, Tags, Tier, Verb,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

pub const ADDRESSES: [&str; 7] =
    ["10.0.0.1", "10.1.0.1", "10.1.1.1", "192.168.0.1", "2001:db8::1", "2001:db8:1::1", "fd00::1"];

/// Ports at and around every bound the rules use.
pub const PROBES: [(u8, u16); 17] = [
    (6, 0),
    (6, 79),
    (6, 80),
    (6, 81),
    (6, 89),
    (6, 90),
    (6, 91),
    (6, 443),
    (6, 65535),
    (17, 80),
    (17, 53),
    (1, 0x0800),
    (1, 0x0801),
    (58, 0x8000),
    (0, 0),
    (47, 0),
    (255, 65535),
];

pub fn namespace() -> impl Strategy<Value = Namespace> {
    select(vec!["/", "/", "/", "/a", "/a/b", "/c"]).prop_map(|text| text.parse().unwrap())
}

pub fn pu() -> impl Strategy<Value = Identity> {
    let value = || select(vec!["a", "ab", "b", "c"]).prop_map(str::to_owned);
    let key = select(vec!["k", "l", "m"]).prop_map(str::to_owned);
    (namespace(), btree_map(key, btree_set(value(), 0..3), 0..4))
        .prop_map(|(namespace, tags): (_, Tags)| Identity::Pu { namespace, tags })
}

pub fn small_word() -> BoxedStrategy<String> {
    select(vec!["a", "ab", "b", "c"]).prop_map(str::to_owned).boxed()
}

pub fn small_key() -> BoxedStrategy<String> {
    select(vec!["k", "l", "m"]).prop_map(str::to_owned).boxed()
}

pub fn any_word() -> BoxedStrategy<String> {
    prop_oneof![
        any::<String>(),
        "[a-z*/:.\\-\"'\\\\ =!0-9]{0,8}",
        select(vec![
            "any", "net", "in", "not", "or", "and", "log", "observe", "encrypt", "tcp", "udp/53", "tcp/80", "allow",
            "deny", "except", "icmp", "icmp6", "80", "a:", "a-", "->", "pass", "until", "egress", "ingress",
        ])
        .prop_map(str::to_owned),
    ]
    .boxed()
}

fn clause(key: BoxedStrategy<String>, word: BoxedStrategy<String>) -> impl Strategy<Value = Clause> {
    let operator = prop_oneof![
        4 => word.clone().prop_map(Operator::Equals),
        1 => word.clone().prop_map(Operator::NotEquals),
        1 => vec(word.clone(), 1..4).prop_map(Operator::In),
        1 => vec(word.clone(), 1..4).prop_map(Operator::NotIn),
        1 => word.prop_map(Operator::Prefix),
        1 => Just(Operator::Exists),
        1 => Just(Operator::NotExists),
    ];
    (key, operator).prop_map(|(key, operator)| Clause { key, operator })
}

fn tags_side(key: BoxedStrategy<String>, word: BoxedStrategy<String>) -> BoxedStrategy<Side> {
    let selector =
        vec(vec(clause(key, word), 1..4), 1..3).prop_map(|alternatives| Side::Tags(Selector { alternatives }));
    prop_oneof![1 => Just(Side::any()), 6 => selector].boxed()
}

fn net_side() -> impl Strategy<Value = Side> {
    let prefixes = vec![
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.1.0/24",
        "192.168.0.1/32",
        "::/0",
        "2001:db8::/32",
        "2001:db8:1::/48",
    ];
    let names = vec!["a.org", "*.a.org", "b.a.org"];
    (subsequence(prefixes.clone(), 0..4), subsequence(names, 0..2), subsequence(prefixes, 0..3)).prop_map(
        |(include, names, except)| {
            let include = if include.is_empty() && names.is_empty() { vec!["10.0.0.0/8"] } else { include };
            let include: Vec<ipnet::IpNet> = include.iter().map(|net| net.parse().unwrap()).collect();
            let except = except
                .iter()
                .map(|net| net.parse().unwrap())
                .filter(|net| !names.is_empty() || include.iter().any(|within| within.contains(net)))
                .collect();
            let names = names.iter().map(|name| name.parse().unwrap()).collect();
            Side::Net(Networks { include, names, except })
        },
    )
}

fn port_range() -> impl Strategy<Value = PortRange> {
    let range = |protocol, low, high| PortRange { protocol, low, high };
    select(vec![
        range(6, 80, 80),
        range(6, 80, 90),
        range(6, 81, 89),
        range(6, 0, 79),
        range(6, 443, 65535),
        PortRange::all(6),
        PortRange::all(17),
        range(17, 53, 53),
        PortRange::all(1),
        range(1, 0x0800, 0x0800),
        range(1, 0x0800, 0x08ff),
        range(1, 0x0801, 0x0a03),
        range(58, 0x8000, 0x80ff),
        PortRange::all(58),
    ])
}

/// Moments at which rules end; those at which they are judged lie between.
pub fn moment() -> impl Strategy<Value = Moment> {
    (1u64..6).prop_map(|n| Moment::from_unix(n * 10))
}

/// `encrypt` appears on allow rules only, `observe` on none that pass, and no end speaks for a network, as the parser
/// demands.
pub fn rule(key: BoxedStrategy<String>, word: BoxedStrategy<String>) -> impl Strategy<Value = Rule> {
    let side = tags_side(key, word);
    let sides = prop_oneof![
        4 => (side.clone(), side.clone()),
        1 => (net_side(), side.clone()),
        1 => (side, net_side()),
    ];
    let verb = prop_oneof![4 => Just(Verb::Allow), 2 => Just(Verb::Deny), 1 => Just(Verb::Pass)];
    let ends = prop_oneof![3 => Just(Ends::Both), 1 => Just(Ends::Egress), 1 => Just(Ends::Ingress)];
    (
        proptest::option::of("[a-z][a-z0-9_.-]{0,6}"),
        verb,
        sides,
        vec(port_range(), 0..4),
        (ends, proptest::option::weighted(0.2, moment())),
        any::<[bool; 2]>(),
        proptest::bool::weighted(0.3),
    )
        .prop_map(|(name, verb, (subject, object), ports, (ends, until), [encrypt, log], observe)| {
            let ends = match (ends, &subject, &object) {
                (Ends::Egress, Side::Net(_), _) | (Ends::Ingress, _, Side::Net(_)) => Ends::Both,
                _ => ends,
            };
            Rule {
                name,
                ports,
                ends,
                until,
                encrypt: encrypt && verb == Verb::Allow,
                log,
                observe: observe && verb != Verb::Pass,
                ..Rule::new(verb, subject, object)
            }
        })
}

/// A rule in a policy; names are left out, so that equal rules may stand side by side.
pub fn policy_rule() -> impl Strategy<Value = Arc<PolicyRule>> {
    let tier = prop_oneof![
        6 => Just(Tier::Normal),
        1 => Just(Tier::Exempt),
        1 => (0u16..3).prop_map(Tier::Admin),
        1 => (0u16..3).prop_map(Tier::Baseline),
    ];
    let place = (namespace(), tier, 1u32..4, select(vec!["p", "q"]));
    (rule(small_key(), small_word()), place).prop_map(|(mut rule, (namespace, tier, position, policy))| {
        rule.name = None;
        if rule.verb == Verb::Pass && !tier.is_ordered() {
            rule.verb = Verb::Allow;
        }
        let head = Head { name: policy.into(), namespace, tier };
        Arc::new(PolicyRule::new(Arc::new(head), position, Location::default(), rule))
    })
}
