use std::{sync::LazyLock, time::Duration};

use serde_json::json;

use super::*;
use crate::facts::{
    Fault,
    test_support::{Server, Signer, token},
};

const NOW: u64 = 1_800_000_000;

static SIGNER: LazyLock<Signer> = LazyLock::new(Signer::new);

fn config(jwks: &str) -> Oidc {
    Oidc {
        issuer: Some("https://issuer.example".into()),
        jwks: Some(jwks.into()),
        claims: ["sub", "groups", "realm_access.roles", "https://acme.example/team", "level"]
            .map(String::from)
            .to_vec(),
        clock_skew: Duration::from_secs(10),
        ..Oidc::default()
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://issuer.example", "aud": "enforcer", "exp": NOW + 60, "sub": "ann",
        "groups": ["ops", "dev", "ops", ""], "realm_access": {"roles": ["admin"]}, "https://acme.example/team": "blue",
        "level": 3, "password": "never a tag",
    })
}

fn keys() -> KeySet {
    KeySet::parse("keys", SIGNER.jwks().to_string().as_bytes()).expect("keys")
}

#[test]
fn configured_claims_become_tags() {
    let session = session(&SIGNER.token(&claims()), &keys(), &config("-"), NOW).expect("a session");
    let flat: Vec<String> = session
        .tags
        .iter()
        .flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")))
        .collect();
    assert_eq!(
        flat,
        [
            "@user:expires=2027-01-15T08:01:10Z",
            "@user:groups=dev",
            "@user:groups=ops",
            "@user:https://acme.example/team=blue",
            "@user:level=3",
            "@user:realm_access.roles=admin",
            "@user:sub=ann",
        ]
    );
    assert_eq!(session.expires, NOW + 70);
    assert_eq!(expires(&session.tags), Some(NOW + 70));
}

#[test]
fn claims_that_cannot_be_tags_are_errors() {
    for (claim, value) in [
        ("sub", json!({"name": "ann"})),
        ("groups", json!([["ops"]])),
        ("sub", json!("line\nbreak")),
        ("sub", json!("x".repeat(2000))),
    ] {
        let mut claims = claims();
        claims[claim] = value;
        let error = session(&SIGNER.token(&claims), &keys(), &config("-"), NOW).expect_err(claim);
        assert_eq!(error.fault, Fault::Malformed);
        assert!(error.to_string().contains(claim), "{error}");
    }
    let bare = json!({"iss": "https://issuer.example", "aud": "enforcer", "exp": NOW + 60});
    let error = session(&SIGNER.token(&bare), &keys(), &config("-"), NOW).expect_err("no claims");
    assert!(error.to_string().contains("oidc.claims"), "{error}");
}

#[test]
fn a_far_end_is_written_down_all_the_same() {
    let mut claims = claims();
    claims["exp"] = json!(9_000_000_000_000_000_u64);
    let session = session(&SIGNER.token(&claims), &keys(), &config("-"), NOW).expect("a session");
    assert_eq!(expires(&session.tags), Some(END_OF_TIME));
}

#[test]
fn tags_that_do_not_say_when_they_end_have_no_end_to_rely_on() {
    let with = |values: &[&str]| -> Tags {
        [(EXPIRES.to_owned(), values.iter().map(|value| (*value).to_owned()).collect())].into()
    };
    for wrong in [Tags::new(), with(&["soon"]), with(&["2027-01-15T08:01:10Z", "2028-01-15T08:01:10Z"])] {
        assert_eq!(expires(&wrong), None);
    }
}

#[test]
fn an_unknown_key_makes_it_ask_once_and_not_again_at_once() {
    let server = Server::fixed(SIGNER.jwks().to_string());
    let issuer = Issuer::new(&config(&server.url("/keys"))).expect("an issuer");
    assert!(issuer.session(&SIGNER.token(&claims()), NOW).is_ok());
    assert!(issuer.session(&SIGNER.token(&claims()), NOW).is_ok());
    assert_eq!(server.requests(), 1, "keys are kept");
    let unknown = token(&json!({"alg": "RS256", "kid": "new"}), &claims(), |message| SIGNER.rs256(message));
    for _ in 0..20 {
        assert_eq!(issuer.session(&unknown, NOW).expect_err("unknown key").fault, Fault::Untrusted);
    }
    assert_eq!(server.requests(), 1, "whoever names an unknown key does not make this host ask again and again");
}

#[test]
fn a_key_file_is_read_again_and_a_broken_one_keeps_the_former() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("keys.json");
    std::fs::write(&file, SIGNER.jwks().to_string()).expect("written");
    let issuer = Issuer::new(&config(file.to_str().expect("UTF-8"))).expect("an issuer");
    let old = SIGNER.token(&claims());
    assert!(issuer.session(&old, NOW).is_ok());
    std::fs::write(&file, "{").expect("written");
    assert!(issuer.session(&old, NOW).is_ok(), "the former keys stay");
    assert!(issuer.trouble().is_some_and(|error| error.to_string().contains("keys.json")));
    let next = Signer::new();
    std::fs::write(&file, next.jwks().to_string()).expect("written");
    assert!(issuer.session(&next.token(&claims()), NOW).is_ok());
    assert_eq!(issuer.session(&old, NOW).expect_err("a withdrawn key").fault, Fault::Untrusted);
    assert_eq!(issuer.trouble(), None);
}

#[test]
fn no_keys_mean_no_session_and_the_reason_is_told() {
    let issuer = Issuer::new(&config("/nonexistent/keys.json")).expect("an issuer");
    let error = issuer.session(&SIGNER.token(&claims()), NOW).expect_err("no keys");
    assert_eq!(error.fault, Fault::Configuration);
    assert!(error.to_string().contains("/nonexistent/keys.json"), "{error}");
}

#[test]
fn discovery_is_for_the_very_issuer_and_names_a_protected_address() {
    use crate::facts::keys::discovered;
    let issuer = "https://issuer.example";
    let describe = |issuer: &str, uri: &str| json!({"issuer": issuer, "jwks_uri": uri, "more": 1}).to_string();
    let found = |json: String| discovered("description", issuer, json.as_bytes()).map_err(|error| error.fault);
    assert_eq!(found(describe(issuer, "https://keys.example/k")), Ok("https://keys.example/k".into()));
    assert_eq!(found(describe("https://other.example", "https://keys.example/k")), Err(Fault::Untrusted));
    assert_eq!(found(describe(issuer, "http://keys.example/k")), Err(Fault::Untrusted));
    assert_eq!(found("{}".into()), Err(Fault::Malformed));
}

#[test]
fn keys_are_found_by_discovery() {
    let keys = Server::fixed(SIGNER.jwks().to_string());
    let uri = keys.url("/keys");
    let issuer_url = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let described = issuer_url.clone();
    let issuer = Server::start(move |asked| {
        assert!(asked.line.starts_with("GET /.well-known/openid-configuration "), "{}", asked.line);
        let body = json!({"issuer": described.get(), "jwks_uri": uri}).to_string();
        ("200 OK".into(), String::new(), body.into())
    });
    issuer_url.set(issuer.url("")).expect("once");
    let config = Oidc { issuer: Some(issuer.url("")), jwks: None, ..config("-") };
    let mut claims = claims();
    claims["iss"] = json!(issuer.url(""));
    let session = Issuer::new(&config).expect("an issuer").session(&SIGNER.token(&claims), NOW);
    assert_eq!(session.map(|session| session.expires), Ok(NOW + 70));
    assert_eq!((issuer.requests(), keys.requests()), (1, 1));
}
