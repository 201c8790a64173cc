use std::sync::LazyLock;

use serde_json::json;

use super::*;
use crate::facts::{
    Fault,
    test_support::{Signer, token},
};

const NOW: u64 = 1_800_000_000;

static SIGNER: LazyLock<Signer> = LazyLock::new(Signer::new);
static KEYS: LazyLock<KeySet> =
    LazyLock::new(|| KeySet::parse("keys", SIGNER.jwks().to_string().as_bytes()).expect("keys"));

const EXPECTED: Expected<'_> = Expected {
    what: "token",
    issuers: &["https://issuer.example"],
    audience: "enforcer",
    kind: None,
    skew: Duration::from_secs(30),
};

fn claims() -> Value {
    json!({"iss": "https://issuer.example", "aud": "enforcer", "sub": "ann", "exp": NOW + 60})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn judge(token: &str) -> Result<u64, (Fault, String)> {
    judge_as(token, &EXPECTED)
}

fn judge_as(token: &str, expected: &Expected<'_>) -> Result<u64, (Fault, String)> {
    verify(token, &KEYS, expected, NOW).map(|verified| verified.expires).map_err(|error| {
        assert!(token.len() < 20 || !error.to_string().contains(token), "the token is quoted");
        (error.fault, error.to_string())
    })
}

fn refused(token: &str, fault: Fault, words: &str) {
    let (found, text) = judge(token).expect_err(words);
    assert_eq!(found, fault, "{text}");
    assert!(text.contains(words), "{text:?} lacks {words:?}");
}

#[test]
fn every_accepted_algorithm_verifies_with_and_without_a_key_id() {
    type Sign = fn(&[u8]) -> Vec<u8>;
    let algorithms: [(&str, &str, Sign); 3] = [
        ("RS256", "rsa", |message| SIGNER.rs256(message)),
        ("ES256", "p256", |message| SIGNER.es256(message)),
        ("EdDSA", "ed", |message| SIGNER.eddsa(message)),
    ];
    for (algorithm, id, sign) in algorithms {
        assert_eq!(judge(&token(&json!({"alg": algorithm, "kid": id}), &claims(), sign)), Ok(NOW + 60));
        assert_eq!(judge(&token(&json!({"alg": algorithm}), &claims(), sign)), Ok(NOW + 60));
    }
}

#[test]
fn no_signature_and_symmetric_ones_are_refused() {
    for algorithm in ["none", "None", "HS256", "HS512", "RS512", "PS256", "ES384", "", "rs256"] {
        let header = json!({"alg": algorithm, "kid": "rsa"});
        refused(&token(&header, &claims(), |message| SIGNER.rs256(message)), Fault::Untrusted, "only RS256");
        refused(&token(&header, &claims(), |_| Vec::new()), Fault::Untrusted, "only RS256");
    }
}

#[test]
fn a_public_key_is_no_secret_of_hmac() {
    // The classic confusion: the public key's bytes as the secret of an HS256 token.
    let jwks = SIGNER.jwks().to_string();
    let hmac = |message: &[u8]| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, jwks.as_bytes());
        ring::hmac::sign(&key, message).as_ref().to_vec()
    };
    refused(&token(&json!({"alg": "HS256", "kid": "rsa"}), &claims(), hmac), Fault::Untrusted, "only RS256");
    refused(&token(&json!({"alg": "HS256", "kid": "secret"}), &claims(), hmac), Fault::Untrusted, "only RS256");
}

#[test]
fn the_key_decides_the_algorithm() {
    let crossed = token(&json!({"alg": "ES256", "kid": "rsa"}), &claims(), |message| SIGNER.es256(message));
    refused(&crossed, Fault::Untrusted, "that its key is not for");
    let crossed = token(&json!({"alg": "EdDSA", "kid": "p256"}), &claims(), |message| SIGNER.eddsa(message));
    refused(&crossed, Fault::Untrusted, "that its key is not for");
}

#[test]
fn foreign_signatures_unknown_keys_and_embedded_keys_are_refused() {
    let other = Signer::new();
    refused(&other.token(&claims()), Fault::Untrusted, "wrong signature");
    let unknown = token(&json!({"alg": "RS256", "kid": "next"}), &claims(), |message| other.rs256(message));
    refused(&unknown, Fault::Untrusted, "does not publish");
    assert_eq!(claimed_key(&unknown).as_deref(), Some("next"));
    let embedded = json!({"alg": "RS256", "jwk": other.jwks()["keys"][0], "jku": "https://evil.example/keys"});
    refused(&token(&embedded, &claims(), |message| other.rs256(message)), Fault::Untrusted, "wrong signature");
}

#[test]
fn any_changed_byte_is_noticed() {
    let good = SIGNER.token(&claims());
    assert_eq!(judge(&good), Ok(NOW + 60));
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).expect("text");
        assert!(judge(&changed).is_err(), "a change at {at} was not noticed");
    }
}

#[test]
fn issuer_and_audience_must_be_right() {
    refused(&SIGNER.token(&with("iss", json!("https://issuer.example/"))), Fault::Untrusted, "not of the issuer");
    refused(&SIGNER.token(&with("iss", Value::Null)), Fault::Untrusted, "not of the issuer");
    refused(&SIGNER.token(&with("aud", json!("other"))), Fault::Untrusted, "not meant for");
    refused(&SIGNER.token(&with("aud", json!([]))), Fault::Untrusted, "not meant for");
    refused(&SIGNER.token(&with("aud", json!({"enforcer": true}))), Fault::Untrusted, "not meant for");
    assert_eq!(judge(&SIGNER.token(&with("aud", json!(["other", "enforcer"])))), Ok(NOW + 60));
}

#[test]
fn times_are_judged_with_skew() {
    for (name, value, fault) in [
        ("exp", json!(NOW - 30), Some(Fault::Expired)),
        ("exp", json!(NOW - 29), None),
        ("exp", json!("tomorrow"), Some(Fault::Malformed)),
        ("exp", json!(-1), Some(Fault::Malformed)),
        ("exp", json!(1e300), Some(Fault::Malformed)),
        ("nbf", json!(NOW + 30), None),
        ("nbf", json!(NOW + 31), Some(Fault::Expired)),
        ("nbf", json!([NOW]), Some(Fault::Malformed)),
        ("iat", json!(NOW + 31), Some(Fault::Expired)),
    ] {
        let found = judge(&SIGNER.token(&with(name, value.clone()))).map(drop).map_err(|(fault, _)| fault);
        assert_eq!(found.err(), fault, "{name} {value}");
    }
    assert_eq!(judge(&SIGNER.token(&with("exp", json!((NOW + 60) as f64 + 0.5)))), Ok(NOW + 60));
    let mut endless = claims();
    endless.as_object_mut().expect("an object").remove("exp");
    refused(&SIGNER.token(&endless), Fault::Malformed, "no end");
}

#[test]
fn a_type_is_asked_for_where_it_is_configured() {
    let expected = Expected { kind: Some("at+jwt"), ..EXPECTED };
    let typed = |kind: Value| {
        token(&json!({"alg": "RS256", "kid": "rsa", "typ": kind}), &claims(), |message| SIGNER.rs256(message))
    };
    assert_eq!(judge_as(&typed(json!("at+jwt")), &expected), Ok(NOW + 60));
    assert_eq!(judge_as(&typed(json!("application/AT+JWT")), &expected), Ok(NOW + 60));
    for wrong in [json!("JWT"), Value::Null] {
        let (fault, text) = judge_as(&typed(wrong), &expected).expect_err("another type");
        assert_eq!(fault, Fault::Untrusted);
        assert!(text.contains("at+jwt"), "{text}");
    }
}

#[test]
fn malformed_tokens_are_named_so() {
    let good = SIGNER.token(&claims());
    for wrong in
        ["", ".", "..", "...", "a.b", "a.b.c.d", &format!("{good}."), &good.replace('.', " ."), &format!("{good}=")]
    {
        let (fault, _) = judge(wrong).expect_err("malformed");
        assert!(matches!(fault, Fault::Malformed | Fault::Untrusted), "{wrong:?}");
    }
    refused(&"a".repeat(TOKEN_MAX + 1), Fault::Malformed, "longer than");
    let doubled = "{\"alg\":\"RS256\",\"alg\":\"none\"}";
    let doubled = format!("{}.{}", URL_SAFE_NO_PAD.encode(doubled), good.split_once('.').expect("parts").1);
    refused(&doubled, Fault::Malformed, "malformed header");
    let critical = json!({"alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": false});
    refused(&token(&critical, &claims(), |message| SIGNER.rs256(message)), Fault::Untrusted, "crit");
}

#[test]
fn key_sets_without_a_usable_key_are_errors() {
    for wrong in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AA"}]}"#] {
        let error = KeySet::parse("keys", wrong.as_bytes()).expect_err(wrong);
        assert_eq!(error.fault, Fault::Malformed, "{wrong}");
    }
    let mut jwks = SIGNER.jwks();
    jwks["keys"][0]["use"] = json!("enc");
    jwks["keys"][1]["key_ops"] = json!(["sign"]);
    jwks["keys"][2]["alg"] = json!("RS256");
    assert!(KeySet::parse("keys", jwks.to_string().as_bytes()).is_err());
    assert_eq!(KEYS.len(), 3, "symmetric keys are left out");
}
