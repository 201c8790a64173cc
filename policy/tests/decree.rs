//! The security officer's decree as a truth table, judged by the evaluator and the compiled form.

use std::sync::Arc;

use policy::{
    Action, Capabilities, Compiled, Identity, IdentityId, Moment, Namespace, PolicyRule, PortRange, evaluate,
    parse_file,
};

const DECREE: &str = include_str!("data/decree.yaml");

type Tags = &'static [(&'static str, &'static str)];

const HADOOP: Tags = &[("app", "hadoop"), ("user", "prod")];
const MYAPP: Tags = &[("app", "myapp"), ("user", "prod")];
const HADOOP_DEV: Tags = &[("app", "hadoop"), ("user", "dev")];
const MYAPP_DEV: Tags = &[("app", "myapp"), ("user", "dev")];
const MYAPP_USER: Tags = &[("user", "alice"), ("group", "staff"), ("group", "myapp_users")];
const ADMIN: Tags = &[("user", "bob"), ("group", "hadoop_admins")];
const OTHER_APP: Tags = &[("app", "other"), ("user", "prod")];
const NOBODY: Tags = &[];

/// Subject, object, port, and the rule that allows it, if any.
const TABLE: &[(Tags, Tags, u16, Option<&str>)] = &[
    (HADOOP, HADOOP, 8020, Some("decree/hadoop-hadoop")),
    (HADOOP, HADOOP, 9005, Some("decree/hadoop-hadoop")),
    (HADOOP, HADOOP_DEV, 8020, None),
    (HADOOP_DEV, HADOOP, 8020, None),
    (HADOOP, HADOOP, 8080, None),
    (MYAPP, MYAPP, 8080, Some("decree/myapp-myapp")),
    (MYAPP_DEV, MYAPP, 8080, None),
    (MYAPP, MYAPP_DEV, 8080, None),
    (MYAPP, HADOOP, 8020, Some("decree/myapp-hadoop")),
    (MYAPP, HADOOP, 9000, Some("decree/myapp-hadoop")),
    (MYAPP, HADOOP, 9010, Some("decree/myapp-hadoop")),
    (MYAPP, HADOOP, 9011, None),
    (MYAPP, HADOOP, 8999, None),
    (MYAPP_DEV, HADOOP, 8020, None),
    (MYAPP, HADOOP_DEV, 8020, None),
    (OTHER_APP, HADOOP, 8020, None),
    (HADOOP, MYAPP, 8080, None),
    (MYAPP_USER, MYAPP, 8080, Some("decree/users-myapp")),
    (MYAPP_USER, MYAPP_DEV, 8080, Some("decree/users-myapp")),
    (MYAPP_USER, HADOOP, 8020, None),
    (MYAPP, MYAPP_USER, 8080, None),
    (ADMIN, HADOOP, 8020, Some("decree/admins-hadoop")),
    (ADMIN, HADOOP_DEV, 8020, None),
    (ADMIN, MYAPP, 8080, None),
    (NOBODY, HADOOP, 8020, None),
    (NOBODY, MYAPP, 8080, None),
    (HADOOP, NOBODY, 8020, None),
    (NOBODY, NOBODY, 8080, None),
];

#[test]
fn every_row_of_the_decree() {
    let rules = parse_file("decree.yaml", DECREE).unwrap();
    let mut compiled = Compiled::new(&rules, Capabilities::default()).unwrap();
    for (row, (subject, object, port, expected)) in TABLE.iter().enumerate() {
        let [subject, object] = [subject, object].map(|tags| Identity::pu(Namespace::root(), tags.iter().copied()));
        compiled.add_identity(IdentityId(1), &subject).unwrap();
        compiled.add_identity(IdentityId(2), &object).unwrap();
        let verdict = compiled.pair(IdentityId(1), IdentityId(2));

        let decision = verdict.decide(PortRange::TCP, *port);
        let named = decision.rule.map(|id| compiled.rule(id).unwrap().full_name());
        assert_eq!(named.as_deref(), *expected, "row {row}");
        let action = if expected.is_some() { Action::Allow } else { Action::Deny };
        assert_eq!(decision.action, action, "row {row}");
        assert_eq!(decision.log, *expected == Some("decree/myapp-hadoop"), "row {row}");
        let plain = evaluate(compiled.rules(), &subject, &object, PortRange::TCP, *port, Moment::START);
        assert_eq!(plain, decision, "row {row}");

        let udp = verdict.decide(PortRange::UDP, *port);
        assert_eq!(udp.action, Action::Deny, "row {row} over UDP");
    }
}

#[test]
fn an_address_without_identity_is_nobody() {
    let rules: Vec<Arc<PolicyRule>> = parse_file("decree.yaml", DECREE).unwrap();
    let compiled = Compiled::new(&rules, Capabilities::default()).unwrap();
    assert!(compiled.external_prefixes().is_empty());
    let outside = Identity::external("10.0.0.1".parse().unwrap());
    let hadoop = Identity::pu(Namespace::root(), HADOOP.iter().copied());
    let decision = evaluate(compiled.rules(), &outside, &hadoop, PortRange::TCP, 8020, Moment::START);
    assert_eq!((decision.action, decision.rule), (Action::Deny, None));
}
