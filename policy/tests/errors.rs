//! Every error says where, what was found and what was expected.

use policy::{parse_file, parse_files, parse_rule};

#[track_caller]
fn rule_error(text: &str, expected: &str) {
    let error = parse_rule(text).expect_err(text).to_string();
    assert!(error.starts_with(expected), "{text}\n     got: {error}\nexpected: {expected}");
    assert!(error.contains("expected"), "{error}");
}

#[track_caller]
fn file_error(text: &str, expected: &[&str]) {
    let errors = parse_file("p.yaml", text).expect_err(text);
    let got: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(got.len(), expected.len(), "{got:#?}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(got.starts_with(expected), "\n     got: {got}\nexpected: {expected}");
        assert!(got.contains("expected"), "{got}");
    }
}

#[test]
fn rule_lines() {
    rule_error("", "<rule>:1:1: found the end of the text: expected `allow`, `deny` or `pass`");
    rule_error("permit a -> b", "<rule>:1:1: found `permit`: expected `allow`, `deny` or `pass`");
    rule_error("allow -> b", "<rule>:1:7: found `->`: expected a clause");
    rule_error("allow a=b", "<rule>:1:10: found the end of the text: expected another clause, `|`, or `->`");
    rule_error("allow a= -> b", "<rule>:1:10: found `->`: expected a value after `=`");
    rule_error("allow a=* -> b", "<rule>:1:9: found `*`: expected a value; that a key exists");
    rule_error("allow a=b*c -> b", "<rule>:1:11: found `c`: expected a space");
    rule_error("allow a!=b* -> b", "<rule>:1:11: found `*`: expected a whole value");
    rule_error("allow a in (x*) -> b", "<rule>:1:14: found `*`: expected a whole value");
    rule_error("allow a in () -> b", "<rule>:1:13: found `)`: expected a value");
    rule_error("allow a in (x -> b", "<rule>:1:15: found `->`: expected `,` and another value, or `)`");
    rule_error("allow a not b -> b", "<rule>:1:13: found `b`: expected `in (…)` after `not`");
    rule_error("allow !a=b -> b", "<rule>:1:9: found `=`: expected nothing after `!key`");
    rule_error("allow any a=b -> b", "<rule>:1:11: found `a`: expected another clause");
    rule_error("allow a | -> b", "<rule>:1:11: found `->`: expected a clause");
    rule_error("allow a -> b tcp/80x", "<rule>:1:18: `80x` is not a port");
    rule_error("allow a -> b tcp/90-80", "<rule>:1:18: range `90-80` runs backwards");
    rule_error("allow a -> b tcp/65536", "<rule>:1:18: `65536` is not a port");
    rule_error("allow a -> b tcp/80,", "<rule>:1:21: found the end of the text: expected a port or range");
    rule_error("allow a -> b icmp/256", "<rule>:1:19: `256` is not an ICMP type");
    rule_error("allow a -> b tpc/80", "<rule>:1:14: `tpc/80` is neither a port list nor a tag key");
    rule_error("allow a -> b 80", "<rule>:1:14: `80` is neither a port list nor a tag key");
    rule_error("allow a -> b log c", "<rule>:1:18: found `c`: expected a port list, `egress`");
    rule_error("deny a -> b encrypt", "<rule>:1:13: `encrypt` has no meaning in a deny rule");
    rule_error(
        "allow a -> net 10.0.0.1/8",
        "<rule>:1:16: `10.0.0.1/8` has bits set beyond its prefix: expected 10.0.0.0/8",
    );
    rule_error("allow a -> net ten", "<rule>:1:16: `ten` is not a network");
    rule_error("allow a -> net 10.0.0.0/8 except 11.0.0.0/8", "<rule>:1:34: `11.0.0.0/8` excepts nothing");
    rule_error("allow net ::/0 -> net ::/0", "<rule>:1:19: both sides are external networks");
    rule_error("allow a -> net -ten.example", "<rule>:1:16: `-ten.example` is not a domain name");
    rule_error("allow a -> net *ten.example", "<rule>:1:16: `*ten.example` is not a domain name");
    rule_error("allow a -> net * .example", "<rule>:1:16: found `*`: expected a network");
    rule_error("allow a -> net 10.0.0.0/8 except example.org", "<rule>:1:34: `example.org` is not a network");
    rule_error("allow a -> b until tomorrow", "<rule>:1:20: `tomorrow` is not a moment");
    rule_error("allow a -> b until", "<rule>:1:19: found the end of the text: expected a moment such as");
    rule_error(
        "allow a -> b until 2026-12-31T23:59:59Z until 2026-12-31T23:59:59Z",
        "<rule>:1:47: `until` is given twice",
    );
    rule_error("allow a -> b egress ingress", "<rule>:1:21: both `egress` and `ingress`");
    rule_error("allow net ::/0 -> b egress", "<rule>:1:21: `egress` speaks for the end of a PU");
    rule_error("pass a -> b observe", "<rule>:1:13: `observe` has no meaning in a pass rule");
    rule_error("a/b: allow a -> b", "<rule>:1:1: name \"a/b\" is malformed");
    rule_error("allow log -> b", "<rule>:1:7: found `log`: expected a clause");
    rule_error("allow a=\"b -> c", "<rule>:1:9: quote is not closed");
    rule_error("allow a=\"\\x\" -> c", "<rule>:1:10: unknown escape");
    rule_error("allow é=ü -> b;", "<rule>:1:15: unexpected character ';'");
    rule_error("allow a\n  -> b tcp/x", "<rule>:2:12: `x` is not a port");
}

#[test]
fn files() {
    file_error("- rules: []\n", &["p.yaml:1:3: a policy without `name`"]);
    file_error("- name: p\n", &["p.yaml:1:3: a policy without `rules`"]);
    file_error(
        "- name: p\n  rule: []\n",
        &["p.yaml:2:3: unknown key `rule` in a policy: expected one of name, namespace, tier, priority, rules"],
    );
    file_error("- name: p\n  name: q\n", &["p.yaml:2:3: key `name` is given twice"]);
    file_error("- name: p\n  namespace: acme\n  rules: []\n", &["p.yaml:2:14: namespace \"acme\" is malformed"]);
    file_error(
        "name: p\ntier: high\nrules: []\n",
        &["p.yaml:2:7: found `high`: expected `admin`, `normal` or `baseline`"],
    );
    file_error("name: p\ntier: admin\nrules: []\n", &["p.yaml:1:1: a policy without `priority`"]);
    file_error("name: p\npriority: 1\nrules: []\n", &["p.yaml:2:11: `priority` in the normal tier"]);
    file_error("name: p\ntier: admin\npriority: -1\nrules: []\n", &["p.yaml:3:11: `-1` is not a priority"]);
    file_error("name: p\nrules:\n  - pass a -> b\n", &["p.yaml:3:5: `pass` in the normal tier"]);
    file_error(
        "- {name: p, tier: admin, priority: 1, rules: [deny a -> b]}\n- {name: p, tier: admin, priority: 2, rules: [pass a -> b]}\n",
        &["p.yaml:2:47: policy `p` of the tier admin is given twice"],
    );
    file_error("just text", &["p.yaml:1:1: found a scalar: expected a policy"]);
    file_error("- name: p\n  rules:\n   - &a allow a -> b\n   - *a\n", &["p.yaml:4:6: YAML aliases are not supported"]);
    file_error("name: p\nrules: [{action: allow, from: !k, to: any}]\n", &["p.yaml:2:31: YAML tags are not supported"]);
    file_error("name: [p\n", &["p.yaml:2:1: not YAML"]);
}

#[test]
fn every_faulty_rule_is_reported() {
    let text = "\
name: p
rules:
  - allow a -> b tcp/x
  - 'allow a -> b tcp/x'
  - good: allow a -> b
  - bad: allow a -> b tcp/x
  - {action: allow, from: a}
  - {action: permit, from: a, to: b}
  - {action: allow, from: a=b*c, to: b}
  - {action: allow, from: a, to: b, port: tcp/80}
  - {action: allow, from: a, to: b, ports: [tcp/80, tcp/x]}
  - {action: allow, from: a, to: b, log: yes}
  - {action: allow, from: {tags: {a: b*}}, to: b}
  - {action: allow, from: {any: true, net: 10.0.0.0/8}, to: b}
  - {action: allow, from: {net: [10.0.0.0/8, 10.0.0.1/8]}, to: b}
  - {action: deny, from: a, to: b, encrypt: true}
  - colour: blue
  - [allow, a]
  - {action: allow, from: a, to: b, until: soon}
  - {action: allow, from: a, to: b, ends: left}
  - {action: allow, from: a, to: {net: example.org}, ends: ingress}
  - >
    allow a -> b tcp/x
";
    file_error(
        text,
        &[
            "p.yaml:3:22: `x` is not a port",
            "p.yaml:4:23: `x` is not a port",
            "p.yaml:6:27: `x` is not a port",
            "p.yaml:7:5: a rule without `to`",
            "p.yaml:8:14: found `permit`: expected `allow`, `deny` or `pass`",
            "p.yaml:9:31: found `c`: expected a space",
            "p.yaml:10:37: unknown key `port` in a rule",
            "p.yaml:11:57: `x` is not a port",
            "p.yaml:12:42: `log` is neither true nor false",
            "p.yaml:13:38: `b*` ends in `*`",
            "p.yaml:14:27: expected exactly one of",
            "p.yaml:15:46: `10.0.0.1/8` has bits set",
            "p.yaml:16:45: `encrypt` has no meaning",
            "p.yaml:17:5: unknown key `colour` in a rule",
            "p.yaml:18:5: found a list: expected a rule line",
            "p.yaml:19:44: `soon` is not a moment",
            "p.yaml:20:43: found `left`: expected `egress`, `ingress` or `both`",
            "p.yaml:21:60: `ingress` speaks for the end of a PU",
            "p.yaml:23:5: `x` is not a port",
        ],
    );
}

#[test]
fn names_are_unique_across_files() {
    let text = "name: p\nrules:\n  - r: allow a -> b\n  - allow a -> b\n  - allow a -> b\n";
    let errors = parse_files([("one", text), ("two", text)]).unwrap_err().to_string();
    assert_eq!(
        errors,
        "two:3:5: rule name `p/r` is already taken at one:3:5: expected a name that is unique within the policy"
    );
}

/// The same rules in their different spellings.
#[test]
fn spellings() {
    let text = "\
- name: p
  namespace: /acme
  rules:
    - n: allow a=1 b in (x,y) -> net 10.0.0.0/8,*.a.org except 10.1.0.0/16 tcp/80,90-99 udp/53 egress until 2026-12-31T23:59:59Z log observe
    - name: m
      action: allow
      from: {tags: {a: 1, b: [x, y]}}
      to: {net: [10.0.0.0/8, '*.A.org'], except: 10.1.0.0/16}
      ports: [\"tcp/80,90-99\", udp/53]
      ends: egress
      until: 2027-01-01T00:59:59+01:00
      log: true
      observe: true
    - name: o
      action: allow
      from: a=1 and b in (x, y)
      to: net 10.0.0.0/8,*.a.org except 10.1.0.0/16
      ports: tcp/80,90-99 udp/53
      ends: egress
      until: 2026-12-31T23:59:59Z
      log: true
      observe: true
";
    let rules = parse_file("p", text).unwrap();
    let body = |n: usize| policy::Rule { name: None, ..rules[n].rule().clone() };
    assert_eq!(body(0), body(1));
    assert_eq!(body(0), body(2));
    assert_eq!(rules[1].full_name(), "p/m");
    assert_eq!(rules[1].namespace().as_str(), "/acme");
    assert_eq!(rules[1].location().line, 5);
    assert_eq!(
        parse_rule("allow a=1|b='x y' or !c->any icmp/8 icmp/3:4 icmp6 tcp").unwrap().to_string(),
        "allow a=1 | b=\"x y\" | !c -> any icmp/8,3:4 icmp6 tcp"
    );
    let listed = parse_file("p", "name: p\nrules: [{action: deny, from: [a=1 b, c], to: any}]").unwrap();
    assert_eq!(listed[0].rule().to_string(), "deny a=1 b | c -> any");
    assert_eq!(listed[0].full_name(), "p/#1");
    assert!(parse_file("p", "").unwrap().is_empty());
}

/// The language reference shows what the parser takes.
#[test]
fn the_documented_file_parses() {
    let docs = include_str!("../../docs/policy.md");
    let blocks: Vec<&str> = docs.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    for block in &blocks {
        parse_file("docs/policy.md", block).unwrap();
    }
    let shop = blocks.iter().find(|block| block.contains("name: shop")).unwrap();
    let rules = parse_file("docs/policy.md", shop).unwrap();
    assert_eq!(rules.len(), 4);
    assert_eq!(rules[2].rule().subject.to_string(), "user=guest | !user");
}
