//! Random rules and identities from a small vocabulary, so that they often meet.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::sync::Arc;

use policy::{
    Action, Clause, Identity, Location, Namespace, Networks, Operator, PolicyRule, PortRange, Rule, Selector, Side,
    Tags,
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
            "deny", "except", "icmp", "icmp6", "80", "a:", "a-", "->",
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
    (subsequence(prefixes.clone(), 1..4), subsequence(prefixes, 0..3)).prop_map(|(include, except)| {
        let include: Vec<ipnet::IpNet> = include.iter().map(|net| net.parse().unwrap()).collect();
        let except = except
            .iter()
            .map(|net| net.parse().unwrap())
            .filter(|net| include.iter().any(|within| within.contains(net)))
            .collect();
        Side::Net(Networks { include, except })
    })
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

/// `encrypt` appears on allow rules only, as the parser demands.
pub fn rule(key: BoxedStrategy<String>, word: BoxedStrategy<String>) -> impl Strategy<Value = Rule> {
    let side = tags_side(key, word);
    let sides = prop_oneof![
        4 => (side.clone(), side.clone()),
        1 => (net_side(), side.clone()),
        1 => (side, net_side()),
    ];
    (
        proptest::option::of("[a-z][a-z0-9_.-]{0,6}"),
        proptest::bool::weighted(0.3),
        sides,
        vec(port_range(), 0..4),
        any::<[bool; 2]>(),
        proptest::bool::weighted(0.3),
    )
        .prop_map(|(name, deny, (subject, object), ports, [encrypt, log], observe)| Rule {
            name,
            action: if deny { Action::Deny } else { Action::Allow },
            subject,
            object,
            ports,
            encrypt: encrypt && !deny,
            log,
            observe,
        })
}

/// A rule in a policy; names are left out, so that equal rules may stand side by side.
pub fn policy_rule() -> impl Strategy<Value = Arc<PolicyRule>> {
    (rule(small_key(), small_word()), namespace()).prop_map(|(mut rule, namespace)| {
        rule.name = None;
        let location = Location::default();
        Arc::new(PolicyRule::new("p".into(), namespace, 1, location, rule))
    })
}
