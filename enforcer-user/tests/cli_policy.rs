//! `enforcer policy` from outside: what needs no agent.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory of files, and `enforcer policy` run in it.
struct Place(TempDir);

impl Place {
    fn with(files: &[(&str, &str)]) -> Self {
        let place = Self(tempfile::tempdir().expect("directory"));
        for (name, text) in files {
            fs::write(place.file(name), text).expect("written");
        }
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Exit code, standard output, standard error.
    fn policy(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enforcer"));
        command.arg("policy").args(args).current_dir(&self.0).env_remove("ENFORCER_SOCKET").stdin(Stdio::null());
        let output = command.output().expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn policy_json(&self, args: &[&str]) -> (i32, Value) {
        let (code, out, err) = self.policy(&[args, &["--json"]].concat());
        (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
    }
}

const OLD: &str = "name: shop\nrules:\n  - call: allow app=web -> app=db tcp/5432\n";
const NEW: &str = "name: shop\nrules:\n  - call: allow app=web -> app=db tcp/5432-5433\n  - no-guests: deny user=guest -> any\n  - out: allow app=web -> net 192.0.2.0/24\n";
const IDENTITIES: &str = r#"[
    {"name": "web-1", "namespace": "/shop", "tags": {"app": "web"}},
    {"name": "web-2", "namespace": "/shop", "tags": {"app": ["web"]}},
    {"name": "guest", "namespace": "/shop", "tags": {"app": ["web"], "user": ["guest"]}},
    {"name": "db", "namespace": "/shop", "tags": {"app": ["db"]}, "handle": 7}
]"#;

#[test]
fn diff_names_pairs_ports_and_rules_and_exits_with_1() {
    let place = Place::with(&[("old.yaml", OLD), ("new.yaml", NEW), ("ids.json", IDENTITIES)]);
    let diff = |old, new| place.policy(&["diff", old, new, "--identities", "ids.json"]);
    let (code, out, err) = diff("old.yaml", "new.yaml");
    assert_eq!((code, err.as_str()), (1, ""));
    assert_eq!(
        out,
        "\
4 pairs of 4 identities and networks judged otherwise

FROM          TO                PORTS     BEFORE             AFTER
web-1, web-2  db                tcp/5433  deny (default)     allow (shop/call)
web-1, web-2  net 192.0.2.0/24  any       deny (default)     allow (shop/out)
guest         db                tcp/5432  allow (shop/call)  deny (shop/no-guests)
guest         net 192.0.2.0/24  any       deny (default)     allow (shop/out)
"
    );
    assert_eq!(
        diff("new.yaml", "new.yaml"),
        (0, "no pair of 4 identities and networks is judged otherwise\n".to_owned(), String::new())
    );
    let (code, json) = place.policy_json(&["diff", "old.yaml", "new.yaml", "--identities", "ids.json"]);
    assert_eq!((code, json["changes"].as_array().expect("list").len()), (1, 4));
    assert_eq!(
        json["changes"][2],
        json!({
            "from": "guest", "to": "db",
            "ports": [{
                "ports": ["tcp/5432"],
                "before": {"action": "allow", "rule": "shop/call", "namespace": "/"},
                "after": {"action": "deny", "rule": "shop/no-guests", "namespace": "/"},
            }],
        })
    );
}

#[test]
fn diff_says_what_is_wrong_with_its_files() {
    let bad = "name: shop\nrules:\n  - allow app=web\n";
    let place = Place::with(&[
        ("old.yaml", OLD),
        ("bad.yaml", bad),
        ("ids.json", "[{\"namespace\": \"x\"}]"),
        ("none.json", ""),
    ]);
    for (args, expected) in [
        (["old.yaml", "bad.yaml", "ids.json"], "enforcer: 1 error\nbad.yaml:3:18: "),
        (["none.yaml", "old.yaml", "ids.json"], "enforcer: none.yaml: cannot read it: no such file or directory"),
        (["old.yaml", "old.yaml", "ids.json"], "enforcer: ids.json: namespace \"x\" is malformed: "),
        (
            ["old.yaml", "old.yaml", "none.json"],
            "enforcer: none.json: EOF while parsing a value at line 1 column 0: expected a list",
        ),
    ] {
        let (code, out, err) = place.policy(&["diff", args[0], args[1], "--identities", args[2]]);
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}");
        assert!(err.starts_with(expected), "{args:?}: {err}");
    }
    for asks in [&["diff", "old.yaml", "old.yaml"][..], &["apply", "old.yaml"]] {
        let (code, _, err) = place.policy(&[asks, &["--socket", "/nonexistent/s"]].concat());
        assert_eq!(code, 3, "{err}");
    }
}

fn record(role: &str, from: &str, port: u16, verdict: &str, reason: &str, flows: u64) -> String {
    let end = |app: &str| json!({"pu": format!("h1/{app}"), "namespace": "/shop", "tags": {"app": [app]}});
    let record = json!({
        "v": 1, "time": "2026-03-01T12:01:00.000000Z", "since": "2026-03-01T12:00:00.000000Z", "enforcer": "h1",
        "role": role, "from": end(from), "to": end("db"), "proto": "tcp", "port": port, "verdict": verdict,
        "rule": if verdict == "allow" { "old/rule" } else { "" }, "reason": reason, "flows": flows, "new_field": 1,
    });
    record.to_string()
}

#[test]
fn simulate_puts_the_sums_first_and_then_what_changes() {
    let records = [
        record("client", "web", 5432, "allow", "allowed", 12),
        record("server", "web", 5432, "allow", "allowed", 12),
        record("server", "web", 22, "allow", "allowed", 2),
        record("server", "intruder", 5432, "deny", "no_rule", 5),
        record("server", "web", 5433, "deny", "no_rule", 3),
    ]
    .join("\n");
    let place = Place::with(&[("new.yaml", NEW), ("flows.jsonl", &format!("{records}\n{{\"v\":1,\"ti"))]);
    let (code, out, err) = place.policy(&["simulate", "new.yaml", "--records", "flows.jsonl"]);
    assert_eq!((code, err.as_str()), (0, ""), "a line that is still being written is left out");
    assert_eq!(
        out,
        "\
5 records of 4 kinds: 2 connections newly denied, 3 connections newly allowed, 12 connections stay allowed, 5 connections stay denied

FROM              TO              PORT      FLOWS  BEFORE            AFTER
h1/web (app=web)  h1/db (app=db)  tcp/22        2  allow (old/rule)  deny (default)
h1/web (app=web)  h1/db (app=db)  tcp/5433      3  deny (no_rule)    allow (shop/call)
"
    );
    let (_, all) = place.policy_json(&["simulate", "new.yaml", "--records", "flows.jsonl", "--all"]);
    assert_eq!(all["summary"]["stay_allowed"], 12);
    assert_eq!(all["connections"].as_array().expect("list").len(), 4);
    assert_eq!(all["connections"][0]["before"], json!({"action": "allow", "rule": "old/rule"}));
}

#[test]
fn simulate_refuses_what_are_no_records() {
    let place = Place::with(&[
        ("new.yaml", NEW),
        ("bad.jsonl", "\n{\"v\":1}\n"),
        ("next.jsonl", &record("client", "web", 1, "deny", "no_rule", 1).replace("\"v\":1", "\"v\":2")),
        ("e.toml", "[records]\nfile = \"none.jsonl\"\n"),
    ]);
    let (code, out, err) = place.policy(&["simulate", "new.yaml", "--records", "bad.jsonl"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("enforcer: bad.jsonl:2: not a flow record: missing field"), "{err}");
    fs::write(place.file("next.jsonl"), fs::read_to_string(place.file("next.jsonl")).expect("text") + "\n")
        .expect("written");
    let (_, _, err) = place.policy(&["simulate", "new.yaml", "--records", "next.jsonl"]);
    assert!(err.starts_with("enforcer: next.jsonl:1: a flow record of version 2"), "{err}");
    let (code, _, err) = place.policy(&["simulate", "new.yaml", "--config", "e.toml"]);
    assert_eq!(code, 1);
    assert!(err.contains("no flow records where e.toml says: name them with `--records FILE`"), "{err}");
}

const MANIFESTS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
";

#[test]
fn import_writes_a_policy_that_explains_itself() {
    let place = Place::with(&[("k8s.yaml", MANIFESTS)]);
    let (code, out, err) = place.policy(&["import", "k8s.yaml"]);
    assert_eq!((code, err.as_str()), (0, "note: Service db: left out, it says nothing of who may connect\n"));
    let (code, told, _) = place.policy(&["import", "k8s.yaml", "--out", "p.yaml", "--node", "192.168.0.0/24"]);
    assert_eq!((code, told.as_str()), (0, "11 rules in p.yaml\n"));
    let written = fs::read_to_string(place.file("p.yaml")).expect("written");
    assert!(
        written.contains("allow net 192.168.0.0/24 -> @k8s:namespace ingress") && !out.contains("192.168.0.0/24 ->")
    );
    assert_eq!(place.policy(&["check", "p.yaml"]).1, "11 rules in 1 file: fine\n");
    for (from, port, expected) in [
        ("app=web @k8s:namespace=shop", "5432", "tcp/5432: allowed by rule "),
        ("app=web @k8s:namespace=shop", "80", "tcp/80: denied by rule "),
        ("app=web @k8s:namespace=bank", "5432", "tcp/5432: denied by rule "),
    ] {
        let ends = ["--from", from, "--from-namespace", "/k8s/shop", "--to-namespace", "/k8s/shop"];
        let to = ["--to", "app=db @k8s:namespace=shop", "--port", port, "p.yaml"];
        let (_, out, err) = place.policy(&[&["explain"], &ends[..], &to].concat());
        assert!(out.starts_with(expected), "{from} {port}: {out}{err}");
    }
    let (_, json) = place.policy_json(&["import", "k8s.yaml"]);
    assert_eq!(
        (&json["ok"], &json["rules"], &json["keys"]),
        (&json!(true), &json!(10), &json!(["@k8s:namespace", "app"]))
    );
    assert!(json["policy"].as_str().expect("text").starts_with("# Made from Kubernetes manifests"));
    let closed = place.policy(&["import", "k8s.yaml", "--unselected", "deny", "--namespace", "/clusters/a"]).1;
    assert!(closed.contains("namespace: /clusters/a\n") && !closed.contains("k8s-open"), "{closed}");
}

#[test]
fn import_refuses_what_it_cannot_say() {
    let place = Place::with(&[("k8s.yaml", &MANIFESTS.replace("port: 5432", "port: 5432, protocol: SCTP"))]);
    let (code, out, err) = place.policy(&["import", "k8s.yaml", "--out", "p.yaml"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.starts_with(
            "enforcer: 1 error\nk8s.yaml:8:36: NetworkPolicy shop/db: spec.ingress[0].ports[0].protocol: SCTP "
        ),
        "{err}"
    );
    assert!(!place.file("p.yaml").exists());
    let (code, json) = place.policy_json(&["import", "k8s.yaml"]);
    assert_eq!((code, &json["ok"], &json["errors"][0]["line"]), (1, &json!(false), &json!(8)));
}

#[test]
fn the_schema_is_the_published_one() {
    let place = Place::with(&[]);
    let (code, out, _) = place.policy(&["schema"]);
    assert_eq!(code, 0);
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.schema.json");
    assert_eq!(out, fs::read_to_string(published).expect("published"));
}

#[test]
fn check_names_line_and_column_of_every_error() {
    let bad = "name: shop\nrules:\n  - allow app=web\n  - allow app= -> any\n";
    let place = Place::with(&[("bad.yaml", bad)]);
    let (code, out, err) = place.policy(&["check", "bad.yaml"]);
    assert_eq!((code, out.as_str()), (1, ""));
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(lines[0], "enforcer: 2 errors");
    assert!(lines[1].starts_with("bad.yaml:3:18: ") && lines[2].starts_with("bad.yaml:4:16: "), "{err}");
    let (code, json) = place.policy_json(&["check", "bad.yaml"]);
    assert_eq!((code, &json["errors"][1]["line"], &json["errors"][1]["column"]), (1, &json!(4), &json!(16)));
}
