//! The JSON Schema against the parser: what the one takes the other takes, and no key is unknown to either.

use std::path::Path;

use policy::schema::schema;
use regex_lite::Regex;
use serde_json::{Map, Value, json};

/// The part of JSON Schema that our schema uses; a keyword it does not know is a failure of the test, not a pass.
fn fits(root: &Value, schema: &Value, value: &Value) -> bool {
    let schema = match schema {
        Value::Bool(all) => return *all,
        Value::Object(schema) => schema,
        other => panic!("no schema: {other}"),
    };
    let all = |list: &Value| list.as_array().expect("a list").clone();
    let entries = || value.as_object().cloned().unwrap_or_default();
    let count = |value: &Value| value.as_u64().expect("a number") as usize;
    schema.iter().all(|(keyword, says)| match keyword.as_str() {
        "$schema" | "$defs" | "title" | "description" | "default" | "format" | "then" | "else" => true,
        "$ref" => fits(root, root.pointer(&says.as_str().expect("a text")[1..]).expect("there"), value),
        "type" => match says {
            Value::Array(types) => types.iter().any(|wanted| is_type(wanted, value)),
            wanted => is_type(wanted, value),
        },
        "enum" => all(says).contains(value),
        "const" => says == value,
        "anyOf" => all(says).iter().any(|schema| fits(root, schema, value)),
        "oneOf" => all(says).iter().filter(|schema| fits(root, schema, value)).count() == 1,
        "allOf" => all(says).iter().all(|schema| fits(root, schema, value)),
        "not" => !fits(root, says, value),
        "if" => {
            let branch = if fits(root, says, value) { "then" } else { "else" };
            schema.get(branch).is_none_or(|schema| fits(root, schema, value))
        }
        "pattern" => value
            .as_str()
            .is_none_or(|text| Regex::new(says.as_str().expect("a text")).expect("a pattern").is_match(text)),
        "minLength" => value.as_str().is_none_or(|text| text.chars().count() >= count(says)),
        "minimum" => value.as_f64().is_none_or(|number| number >= says.as_f64().expect("a number")),
        "maximum" => value.as_f64().is_none_or(|number| number <= says.as_f64().expect("a number")),
        "minItems" => value.as_array().is_none_or(|items| items.len() >= count(says)),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| fits(root, says, item))),
        "minProperties" => !value.is_object() || entries().len() >= count(says),
        "maxProperties" => !value.is_object() || entries().len() <= count(says),
        "propertyNames" => entries().keys().all(|key| fits(root, says, &json!(key))),
        "required" => {
            !value.is_object() || all(says).iter().all(|key| entries().contains_key(key.as_str().expect("a key")))
        }
        "properties" => {
            let known: &Map<String, Value> = says.as_object().expect("a mapping");
            entries().iter().all(|(key, value)| known.get(key).is_none_or(|schema| fits(root, schema, value)))
        }
        "additionalProperties" => {
            let known = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
            entries().iter().all(|(key, value)| known.contains_key(key) || fits(root, says, value))
        }
        other => panic!("{other} is not known to this test"),
    })
}

fn is_type(wanted: &Value, value: &Value) -> bool {
    match wanted.as_str().expect("a text") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        other => panic!("{other} is not known to this test"),
    }
}

fn taken_by_schema(value: &Value) -> bool {
    let schema = schema();
    fits(&schema, &schema, value)
}

/// JSON is YAML, so the parser takes the very same document.
fn taken_by_parser(value: &Value) -> bool {
    policy::parse_file("p.yaml", &value.to_string()).is_ok()
}

fn policy(rule: Value) -> Value {
    json!({"name": "p", "rules": [rule]})
}

fn rule(key: &str, value: Value) -> Value {
    let mut rule = json!({"action": "allow", "from": "app=web", "to": "app=db"});
    rule[key] = value;
    policy(rule)
}

#[test]
fn takes_what_the_parser_takes() {
    for value in [
        json!(null),
        json!([]),
        json!({"name": "p", "rules": null}),
        json!([{"name": "p", "rules": []}, {"name": "q.1_x-y", "namespace": "/a/b", "rules": []}]),
        json!({"name": "p", "namespace": "/", "tier": "normal", "rules": []}),
        json!({"name": "p", "tier": "admin", "priority": 0, "rules": ["pass any -> app=db"]}),
        json!({"name": "p", "tier": "baseline", "priority": 65535, "rules": []}),
        policy(json!("allow app=web -> app=db tcp/5432 log")),
        policy(json!("w: deny any -> net 10.0.0.0/8 egress until 2030-01-01T00:00:00Z")),
        policy(json!({"web": "allow app=web -> app=db\n  tcp/5432"})),
        rule("name", json!("n")),
        rule("ports", json!("tcp/443")),
        rule("ports", json!(["tcp/443,80", "udp"])),
        rule("ends", json!("egress")),
        rule("until", json!("2030-01-01T00:00:00Z")),
        rule("encrypt", json!(true)),
        rule("log", json!(false)),
        rule("observe", json!(true)),
        rule("from", json!(["app=web", "app=worker env=prod"])),
        rule("from", json!({"any": true})),
        rule("from", json!({"tags": {"app": "web", "tier": ["a", "b"], "n": 1, "x": true}})),
        rule("from", json!({"tags": "app=web | app=x"})),
        rule("to", json!({"net": "10.0.0.0/8"})),
        rule("to", json!({"net": ["10.0.0.0/8", "*.example.org"], "except": ["10.1.0.0/16"]})),
    ] {
        assert!(taken_by_parser(&value), "{value}: {:?}", policy::parse_file("p", &value.to_string()));
        assert!(taken_by_schema(&value), "{value}");
    }
}

#[test]
fn refuses_what_the_parser_refuses_for_its_shape() {
    let mut wrong = vec![
        json!("p"),
        json!(7),
        json!({"rules": []}),
        json!({"name": "p"}),
        json!({"name": "a b", "rules": []}),
        json!({"name": "p", "rules": {}}),
        json!({"name": "p", "namespace": "x", "rules": []}),
        json!({"name": "p", "namespace": "/x/", "rules": []}),
        json!({"name": "p", "tier": "top", "priority": 1, "rules": []}),
        json!({"name": "p", "tier": "admin", "rules": []}),
        json!({"name": "p", "tier": "normal", "priority": 1, "rules": []}),
        json!({"name": "p", "priority": 1, "rules": []}),
        json!({"name": "p", "tier": "admin", "priority": 65536, "rules": []}),
        json!({"name": "p", "tier": "admin", "priority": -1, "rules": []}),
        json!({"name": "p", "rule": [], "rules": []}),
        policy(json!("permit any -> any")),
        policy(json!([])),
        policy(json!({"web": "permit any -> any"})),
        policy(json!({"a": "allow any -> any", "b": "allow any -> any"})),
        policy(json!({"action": "allow", "from": "any"})),
        policy(json!({"from": "any", "to": "any"})),
        rule("action", json!("permit")),
        rule("ends", json!("middle")),
        rule("ports", json!([])),
        rule("ports", json!("")),
        rule("port", json!("tcp/443")),
        rule("log", json!("yes")),
        rule("from", json!([])),
        rule("from", json!({})),
        rule("from", json!({"any": false})),
        rule("from", json!({"any": true, "tags": {"a": "b"}})),
        rule("from", json!({"tags": {}})),
        rule("from", json!({"tags": {"a": []}})),
        rule("from", json!({"tags": {"a": "b*"}})),
        rule("from", json!({"tags": {"a": "b"}, "except": ["10.0.0.0/8"]})),
        rule("to", json!({"net": []})),
        rule("to", json!({"except": ["10.0.0.0/8"]})),
    ];
    // No key anywhere but the known ones: a misspelt `ports` must not open every port.
    for (key, value) in [("prots", json!("tcp/443")), ("From", json!("any")), ("x", json!(null))] {
        wrong.push(rule(key, value.clone()));
        wrong.push(json!({"name": "p", "rules": [], key: value}));
        wrong.push(rule("to", json!({"net": "10.0.0.0/8", key: value})));
    }
    for value in wrong {
        assert!(!taken_by_parser(&value), "the parser takes {value}");
        assert!(!taken_by_schema(&value), "the schema takes {value}");
    }
}

/// Editors read it from the repository. `ENFORCER_WRITE_DOCS=1` writes it anew.
#[test]
fn the_published_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.schema.json");
    let text = format!("{:#}\n", schema());
    if std::env::var_os("ENFORCER_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(published, text, "run `ENFORCER_WRITE_DOCS=1 cargo test -p policy --test schema`");
}
