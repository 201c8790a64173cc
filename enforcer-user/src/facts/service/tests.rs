use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::json;

use super::*;
use crate::{
    admin::PuTarget,
    config::Plugin,
    facts::{
        test_support::{Server, Signer},
        unix_now,
    },
    workload::{Seen, Stop, TagSet},
};

/// Keys and values.
type Pairs<'a> = &'a [(&'a str, &'a str)];

/// An agent that only remembers.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, KnownPu>>);

impl Memory {
    fn with(pus: &[(&str, TagSource, Pairs<'_>)]) -> Arc<Self> {
        let memory = Self::default();
        for (key, source, tags) in pus {
            let tags = TagSet::from_iter([(*source, set(tags))]);
            let pu = KnownPu {
                key: (*key).into(),
                id: (*key).into(),
                name: (*key).into(),
                namespace: "/".into(),
                target: PuTarget::Cgroup("/sys/fs/cgroup/x".into()),
                tags,
                complete: true,
            };
            memory.0.lock().expect("a lock").insert((*key).into(), pu);
        }
        Arc::new(memory)
    }

    fn flat(&self, key: &str, source: TagSource) -> Vec<String> {
        let pus = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tags = pus.get(key).and_then(|pu| pu.tags.get(source)).cloned().unwrap_or_default();
        tags.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}"))).collect()
    }

    /// Waits at most two seconds, as long as a change may take.
    fn expect(&self, key: &str, source: TagSource, expected: &[&str]) {
        let before = Instant::now();
        while self.flat(key, source) != expected {
            assert!(before.elapsed() < Duration::from_secs(2), "{:?} is not {expected:?}", self.flat(key, source));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl PuSink for Memory {
    fn appear(&self, _: &str, _: Seen) -> Result<(), SinkError> {
        Err(SinkError::Failed("not here".into()))
    }

    fn tags(&self, key: &str, source: TagSource, tags: Tags) -> Result<(), SinkError> {
        let mut pus = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pu = pus.get_mut(key).ok_or_else(|| SinkError::Unknown(key.into()))?;
        pu.tags.set(source, tags);
        Ok(())
    }

    fn complete(&self, _: &str) -> Result<(), SinkError> {
        Ok(())
    }

    fn gone(&self, _: &str) -> Result<(), SinkError> {
        Ok(())
    }

    fn known(&self, prefix: &str) -> Vec<KnownPu> {
        let pus = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pus.values().filter(|pu| pu.key.starts_with(prefix)).cloned().collect()
    }
}

fn set(pairs: Pairs<'_>) -> Tags {
    let mut tags = Tags::new();
    for (key, value) in pairs {
        tags.entry((*key).into()).or_default().insert((*value).into());
    }
    tags
}

/// Runs all sources while `check` looks.
fn running(config: &Config, memory: &Arc<Memory>, check: impl FnOnce(&Facts)) {
    let facts = Facts::new(config, &Arc::default()).expect("facts");
    let stop = Stop::default();
    let threads: Vec<_> = facts
        .sources()
        .into_iter()
        .map(|mut source| {
            let (sink, stop) = (memory.clone(), stop.clone());
            std::thread::spawn(move || source.run(sink, &stop).expect("a source runs"))
        })
        .collect();
    check(&facts);
    stop.set();
    threads.into_iter().for_each(|thread| thread.join().expect("a source ends"));
}

fn errors(facts: &Facts, kind: &str) -> Vec<String> {
    facts.board().view().into_iter().filter(|view| view.source == kind).filter_map(|view| view.error).collect()
}

#[test]
fn tags_of_a_user_go_when_the_token_ends() {
    let end = humantime::format_rfc3339_seconds(std::time::SystemTime::now() + Duration::from_secs(2)).to_string();
    let memory = Memory::with(&[
        ("a", TagSource::Token, &[("@user:sub", "ann"), ("@user:expires", &end)]),
        ("b", TagSource::Token, &[("@user:sub", "bob"), ("@user:expires", "9999-12-31T23:59:59Z")]),
        ("c", TagSource::Token, &[("@user:sub", "eve")]),
    ]);
    running(&Config::default(), &memory, |_| {
        memory.expect("c", TagSource::Token, &[]);
        assert_eq!(memory.flat("a", TagSource::Token).len(), 2);
        std::thread::sleep(Duration::from_secs(2));
        memory.expect("a", TagSource::Token, &[]);
        assert_eq!(memory.flat("b", TagSource::Token).len(), 2);
    });
}

#[test]
fn tags_of_sources_that_are_not_configured_any_more_go() {
    let memory = Memory::with(&[
        ("a", TagSource::Cloud, &[("@cloud:account", "1")]),
        ("b", TagSource::Plugin, &[("owner", "ops")]),
        ("c", TagSource::User, &[("app", "web")]),
    ]);
    running(&Config::default(), &memory, |_| {
        memory.expect("a", TagSource::Cloud, &[]);
        memory.expect("b", TagSource::Plugin, &[]);
        memory.expect("c", TagSource::User, &["app=web"]);
    });
}

#[test]
fn a_feed_is_laid_over_pus_that_run() {
    let directory = tempfile::tempdir().expect("directory");
    let digest = format!("sha256:{}", "ab".repeat(32));
    let document = |severity: &str| {
        let json = json!({"version": 1, "entries": [{"image": digest, "severity": severity}]});
        std::fs::write(directory.path().join("feed.json"), json.to_string()).expect("written");
    };
    document("low");
    let mut config = Config::default();
    config.feed.sources = vec![directory.path().to_str().expect("UTF-8").into()];
    let memory = Memory::with(&[("a", TagSource::Container, &[("@container:digest", &digest)])]);
    running(&config, &memory, |facts| {
        memory.expect("a", TagSource::Feed, &["@feed:severity=low"]);
        document("critical");
        memory.expect("a", TagSource::Feed, &["@feed:severity=critical"]);
        std::fs::write(directory.path().join("feed.json"), "{").expect("written");
        let before = Instant::now();
        while errors(facts, "feed").is_empty() {
            assert!(before.elapsed() < Duration::from_secs(2), "a broken feed is not told of");
            std::thread::sleep(Duration::from_millis(20));
        }
        memory.expect("a", TagSource::Feed, &["@feed:severity=critical"]);
        let extracted = facts.extractors()[0].extract(&memory.known("a")[0]).expect("tags");
        assert_eq!(extracted, set(&[("@feed:severity", "critical")]));
    });
}

#[test]
fn plugins_are_asked_about_complete_pus_and_bad_answers_give_no_tags() {
    let directory = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
    let plugin = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a mode");
        Plugin {
            name: name.into(),
            command: vec![path.to_str().expect("UTF-8").into()],
            user: "nobody".into(),
            timeout: Duration::from_secs(5),
            max_bytes: 1000,
            every: Duration::ZERO,
        }
    };
    let config = Config {
        plugin: vec![
            plugin(
                "good",
                "grep -q '\"app\":\\[\"web\"\\]' && echo '{\"tags\":{\"owner\":\"ops\",\"@user:sub\":\"root\"}}'",
            ),
            plugin("bad", "echo '{\"tags\":{\"team\":7}}'"),
        ],
        ..Config::default()
    };
    let memory = Memory::with(&[("a", TagSource::User, &[("app", "web")]), ("b", TagSource::User, &[("app", "web")])]);
    memory.0.lock().expect("a lock").get_mut("b").expect("b").complete = false;
    running(&config, &memory, |facts| {
        memory.expect("a", TagSource::Plugin, &["owner=ops"]);
        assert_eq!(
            errors(facts, "plugin").len(),
            2,
            "the reserved key and the bad answer: {:?}",
            errors(facts, "plugin")
        );
        std::thread::sleep(Duration::from_millis(600));
        memory.expect("b", TagSource::Plugin, &[]);
    });
}

#[test]
fn the_cloud_is_asked_in_the_background_and_forged_statements_take_its_tags_away() {
    let (google, forger) = (Arc::new(Signer::new()), Signer::new());
    let genuine = Arc::new(Mutex::new(true));
    let (signer, is_genuine) = (google.clone(), genuine.clone());
    let server = Server::start(move |_| {
        std::thread::sleep(Duration::from_millis(300));
        let claims = json!({
            "iss": "https://accounts.google.com", "aud": "enforcer", "exp": unix_now() + 600,
            "google": {"compute_engine": {"project_id": "acme", "instance_id": "7"}},
        });
        let signer = if *is_genuine.lock().expect("a lock") { &*signer } else { &forger };
        ("200 OK".into(), String::new(), signer.token(&claims).into())
    });
    let directory = tempfile::tempdir().expect("directory");
    let keys = directory.path().join("keys.json");
    std::fs::write(&keys, google.jwks().to_string()).expect("written");
    let mut config = Config::default();
    config.cloud.provider = crate::config::Provider::Gcp;
    config.cloud.endpoint = Some(server.url(""));
    config.cloud.jwks = keys.to_str().expect("UTF-8").into();
    config.cloud.renew = Duration::from_secs(1);
    let memory = Memory::with(&[("a", TagSource::User, &[("app", "web")])]);
    let expected = ["@cloud:account=acme", "@cloud:instance=7", "@cloud:provider=gcp"];
    running(&config, &memory, |facts| {
        assert!(memory.flat("a", TagSource::Cloud).is_empty(), "nobody waits for the cloud");
        memory.expect("a", TagSource::Cloud, &expected);
        assert!(errors(facts, "cloud").is_empty());
        *genuine.lock().expect("a lock") = false;
        std::thread::sleep(Duration::from_millis(1500));
        memory.expect("a", TagSource::Cloud, &[]);
        assert!(errors(facts, "cloud")[0].contains("wrong signature"), "{:?}", errors(facts, "cloud"));
        *genuine.lock().expect("a lock") = true;
        std::thread::sleep(Duration::from_millis(1500));
        memory.expect("a", TagSource::Cloud, &expected);
    });
}

#[test]
fn sessions_without_an_issuer_are_refused_with_what_to_configure() {
    let error = Facts::new(&Config::default(), &Arc::default())
        .expect("facts")
        .session("x.y.z", unix_now())
        .expect_err("no issuer");
    assert!(error.to_string().contains("oidc.issuer"), "{error}");
}
