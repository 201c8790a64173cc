use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::json;

use super::*;
use crate::{
    config,
    facts::{Fault, test_support::Server},
};

fn sha(byte: u8) -> String {
    format!("sha256:{}", format!("{byte:02x}").repeat(32))
}

fn tags(pairs: &[(&str, &str)]) -> Tags {
    let mut tags = Tags::new();
    for (key, value) in pairs {
        tags.entry((*key).into()).or_default().insert((*value).into());
    }
    tags
}

fn flat(tags: &Tags) -> Vec<String> {
    tags.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}"))).collect()
}

fn document(severity: &str) -> String {
    json!({"version": 1, "entries": [
        {"image": sha(1), "cve": ["CVE-2024-1", "CVE-2024-2"], "severity": severity, "score": 9.8},
        {"image": sha(1), "cve": ["CVE-2023-9"], "severity": "low", "score": 3.1},
        {"binary": sha(2), "threat": ["miner"], "severity": "high"},
    ]})
    .to_string()
}

#[test]
fn the_worst_of_image_and_binary_becomes_tags() {
    let feed = Feed::parse("feed", document("critical").as_bytes()).expect("a feed");
    let pu = tags(&[("@container:digest", &sha(1)), ("@sys:sha256", &sha(2)[7..]), ("app", "web")]);
    assert_eq!(
        flat(&feed.tags(&pu)),
        [
            "@feed:cve=CVE-2023-9",
            "@feed:cve=CVE-2024-1",
            "@feed:cve=CVE-2024-2",
            "@feed:score=9.8",
            "@feed:severity=critical",
            "@feed:threat=miner",
        ]
    );
    // An image's digest says nothing of a binary that happens to have it, nor does a label.
    assert!(feed.tags(&tags(&[("@sys:sha256", &sha(1)), ("digest", &sha(1))])).is_empty());
    assert!(feed.tags(&tags(&[("@container:digest", "sha256:short")])).is_empty());
}

#[test]
fn what_is_wrong_is_named_and_nothing_of_it_taken() {
    for (json, words) in [
        ("{", "is no feed"),
        (r#"{"version":2,"entries":[]}"#, "of version 2"),
        (r#"{"version":1}"#, "entries"),
        (r#"{"version":1,"entries":[],"more":1}"#, "more"),
        (r#"{"version":1,"entries":[{"severity":"low"}]}"#, "entry 1 must have either"),
        (
            &json!({"version": 1, "entries": [{"image": sha(1), "binary": sha(1)}]}).to_string(),
            "entry 1 must have either",
        ),
        (&json!({"version": 1, "entries": [{"image": sha(1)}, {"image": "md5:00"}]}).to_string(), "sha256:"),
        (&json!({"version": 1, "entries": [{"image": sha(1), "score": 11}]}).to_string(), "between 0 and 10"),
        (&json!({"version": 1, "entries": [{"image": sha(1), "severity": "bad"}]}).to_string(), "bad"),
        (&json!({"version": 1, "entries": [{"image": sha(1), "cve": ["a\nb"]}]}).to_string(), "cannot be a tag"),
        (
            &json!({"version": 1, "entries": [{"image": "sha256:+1".to_owned() + &"0".repeat(62)}]}).to_string(),
            "sha256:",
        ),
    ] {
        let error = Feed::parse("feed", json.as_bytes()).expect_err(words);
        assert_eq!(error.fault, Fault::Malformed);
        assert!(error.to_string().contains(words), "{error} lacks {words}");
    }
}

#[test]
fn the_schema_names_the_members_that_are_read() {
    let schema: serde_json::Value =
        serde_json::from_str(include_str!("../../../../docs/feed.schema.json")).expect("a schema");
    let names = |value: &serde_json::Value| -> Vec<String> {
        value["properties"].as_object().expect("properties").keys().cloned().collect()
    };
    assert_eq!(names(&schema), ["$schema", "entries", "version"]);
    let entry = &schema["properties"]["entries"]["items"];
    assert_eq!(names(entry), ["binary", "cve", "image", "score", "severity", "threat"]);
    for severity in entry["properties"]["severity"]["enum"].as_array().expect("severities") {
        let json = json!({"version": 1, "entries": [{"image": sha(1), "severity": severity}]}).to_string();
        Feed::parse("feed", json.as_bytes()).expect("a severity of the schema is read");
    }
}

fn reader(source: &str) -> Reader {
    Reader::new(&config::Feed {
        sources: vec![source.into()],
        refresh: Duration::from_millis(50),
        timeout: Duration::from_millis(500),
        ..config::Feed::default()
    })
}

fn severity(reader: &Reader) -> Option<String> {
    let found = reader.feed().tags(&tags(&[("@container:digest", &sha(1))]));
    found.get("@feed:severity").and_then(|values| values.iter().next().cloned())
}

/// Waits for a notice, for at most two seconds, far less than without one; whether the feed changed.
fn noticed(reader: &mut Reader) -> bool {
    let before = Instant::now();
    while before.elapsed() < Duration::from_secs(2) {
        reader.wait(Duration::from_millis(100));
        if reader.refresh().changed {
            return true;
        }
    }
    false
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).expect("written");
}

#[test]
fn a_directory_is_watched_and_a_broken_file_keeps_what_it_said() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("a.json");
    write(&file, &document("high"));
    let mut reader = reader(directory.path().to_str().expect("UTF-8"));
    assert!(reader.refresh().changed);
    assert_eq!(severity(&reader).as_deref(), Some("high"));
    assert!(!noticed(&mut reader), "nothing changed");
    write(&file, &document("critical"));
    assert!(noticed(&mut reader));
    assert_eq!(severity(&reader).as_deref(), Some("critical"));
    write(&file, "{\"version\":1,");
    assert!(!noticed(&mut reader));
    assert_eq!(severity(&reader).as_deref(), Some("critical"), "the former stays");
    let trouble = reader.state(0).trouble.expect("trouble");
    assert!(trouble.to_string().contains("a.json"), "{trouble}");
    // Another file is read all the same, and the first one's trouble is not forgotten.
    write(&directory.path().join("b.json"), &document("none").replace("CVE-2024-1", "CVE-2025-5"));
    write(&directory.path().join("not-a-feed.txt"), "no feed");
    assert!(noticed(&mut reader));
    assert!(reader.state(0).trouble.is_some());
    // Replaced by renaming, as an updater does.
    let new = directory.path().join("new");
    write(&new, &document("medium"));
    std::fs::rename(&new, &file).expect("renamed");
    assert!(noticed(&mut reader));
    assert_eq!(severity(&reader).as_deref(), Some("medium"));
    assert_eq!(reader.state(0).trouble, None);
    std::fs::remove_file(&file).expect("removed");
    assert!(noticed(&mut reader));
    assert_eq!(severity(&reader).as_deref(), Some("low"), "what the other file says remains");
    std::fs::remove_dir_all(directory.path()).expect("removed");
    let before = Instant::now();
    while reader.state(0).trouble.is_none() && before.elapsed() < Duration::from_secs(8) {
        reader.wait(Duration::from_millis(100));
        reader.refresh();
    }
    assert!(reader.state(0).trouble.is_some(), "a directory that is gone is told of");
    assert_eq!(severity(&reader).as_deref(), Some("low"), "and says nothing");
}

#[test]
fn an_address_is_asked_whether_anything_changed() {
    let now = Arc::new(Mutex::new(("1", document("high"))));
    let said = now.clone();
    let server = Server::start(move |asked| {
        let (tag, body) = said.lock().expect("a lock").clone();
        let etag = format!("etag: \"{tag}\"\r\n");
        if asked.headers.contains(&format!("if-none-match: \"{tag}\"")) {
            return ("304 Not Modified".into(), etag, Vec::new());
        }
        ("200 OK".into(), etag, body.into())
    });
    let mut reader = reader(&server.url("/feed.json"));
    let refresh = |reader: &mut Reader| {
        std::thread::sleep(Duration::from_millis(60));
        reader.refresh().changed
    };
    assert!(refresh(&mut reader));
    assert!(!refresh(&mut reader));
    assert_eq!(severity(&reader).as_deref(), Some("high"));
    *now.lock().expect("a lock") = ("2", document("critical"));
    assert!(refresh(&mut reader));
    assert_eq!(severity(&reader).as_deref(), Some("critical"));
    *now.lock().expect("a lock") = ("3", "broken".into());
    assert!(!refresh(&mut reader));
    assert_eq!(severity(&reader).as_deref(), Some("critical"));
    assert!(reader.state(0).trouble.is_some());
    *now.lock().expect("a lock") = ("4", document("low"));
    assert!(refresh(&mut reader));
    assert_eq!((severity(&reader).as_deref(), reader.state(0).trouble), (Some("low"), None));
    assert!(!reader.refresh().changed, "not asked more often than configured");
    assert_eq!(server.requests(), 5);
}
