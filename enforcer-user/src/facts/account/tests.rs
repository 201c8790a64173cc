use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::facts::{
    Fault,
    test_support::{Signer, token},
};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const NOW: u64 = 1_800_000_000;
const POD: Pod<'_> = Pod { namespace: "shop", uid: "1234-abcd" };

fn config() -> PodTokens {
    PodTokens { issuer: Some(ISSUER.into()), clock_skew: Duration::from_secs(30), ..PodTokens::default() }
}

/// What kubelet gets for a pod.
fn claims() -> Value {
    json!({
        "aud": [ISSUER], "iss": ISSUER, "iat": NOW, "nbf": NOW, "exp": NOW + 3607,
        "kubernetes.io": {
            "namespace": "shop",
            "node": {"name": "worker-1", "uid": "77"},
            "pod": {"name": "web-7", "uid": "1234-abcd"},
            "serviceaccount": {"name": "seller", "uid": "88"},
            "warnafter": NOW + 3607,
        },
        "sub": "system:serviceaccount:shop:seller",
    })
}

/// The claims, with this at that place.
fn with(pointer: &str, value: Value) -> Value {
    let mut claims = claims();
    *claims.pointer_mut(pointer).expect("a claim") = value;
    claims
}

#[test]
fn a_token_speaks_for_the_pod_it_is_bound_to_and_for_no_other() {
    let signer = Signer::new();
    let keys = KeySet::parse("keys", signer.jwks().to_string().as_bytes()).expect("keys");
    let ask = |claims: &Value, config: &PodTokens, pod| account(&signer.token(claims), &keys, config, pod, NOW + 60);
    let found = ask(&claims(), &config(), POD).expect("believed");
    assert_eq!(found, Account { name: "seller".into(), expires: NOW + 3637 });

    let vault = PodTokens { audience: Some("vault".into()), ..config() };
    ask(&with("/aud", json!(["vault"])), &vault, POD).expect("the audience asked for");
    let nobody = PodTokens::default();
    for (claims, config, pod, fault) in [
        (claims(), nobody, POD, Fault::Configuration),
        (claims(), vault, POD, Fault::Untrusted),
        (with("/iss", json!("https://elsewhere")), config(), POD, Fault::Untrusted),
        (with("/exp", json!(NOW)), config(), POD, Fault::Expired),
        (with("/nbf", json!(NOW + 3600)), config(), POD, Fault::Expired),
        // Another pod's token, copied into this one.
        (claims(), config(), Pod { uid: "5678", ..POD }, Fault::Untrusted),
        (claims(), config(), Pod { namespace: "other", ..POD }, Fault::Untrusted),
        // Not one that kubelet asked for.
        (
            with("/kubernetes.io", json!({"namespace": "shop", "serviceaccount": {"name": "seller"}})),
            config(),
            POD,
            Fault::Malformed,
        ),
        (with("/kubernetes.io", Value::Null), config(), POD, Fault::Malformed),
        (with("/kubernetes.io/serviceaccount/name", json!("admin")), config(), POD, Fault::Malformed),
        (with("/kubernetes.io/serviceaccount/name", json!("")), config(), POD, Fault::Malformed),
        (with("/sub", json!("system:serviceaccount:kube-system:seller")), config(), POD, Fault::Malformed),
        (with("/sub", json!(7)), config(), POD, Fault::Malformed),
    ] {
        let error = ask(&claims, &config, pod).expect_err(&claims.to_string());
        assert_eq!(error.fault, fault, "{error}: {claims}");
    }
    // Anybody's signature.
    let forged = token(&json!({"alg": "RS256", "kid": "rsa"}), &claims(), |message| Signer::new().rs256(message));
    let error = account(&forged, &keys, &config(), POD, NOW).expect_err("forged");
    assert_eq!(error.fault, Fault::Untrusted);
    assert!(!error.to_string().contains(&forged[..20]), "a token is never quoted");
}
