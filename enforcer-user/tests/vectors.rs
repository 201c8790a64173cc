//! Published test vectors against the very functions that the enforcer calls.
//!
//! `wycheproof/` holds files of project Wycheproof (C2SP, Apache-2.0), as they are.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use enforcer_user::facts::jwks::KeySet;
use ring::hkdf;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};
use x25519_dalek::{PublicKey, StaticSecret};

/// Calls `check` with each group and test of a file; how many there were.
fn each(file: &str, mut check: impl FnMut(&Value, &Value)) -> usize {
    let document: Value = serde_json::from_str(file).expect("a file of vectors");
    let mut count = 0;
    for group in document["testGroups"].as_array().expect("groups") {
        for test in group["tests"].as_array().expect("tests") {
            check(group, test);
            count += 1;
        }
    }
    assert_eq!(Some(count as u64), document["numberOfTests"].as_u64());
    count
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn bytes(value: &Value, field: &str) -> Vec<u8> {
    let digits = text(value, field);
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal")).collect()
}

/// Signatures of credentials (`identity::verify`), and of tokens (`facts::jwks`).
#[test]
fn wycheproof_ecdsa_p256() {
    let count = each(include_str!("wycheproof/ecdsa_secp256r1_sha256_p1363_test.json"), |group, test| {
        let (message, signature) = (bytes(test, "msg"), bytes(test, "sig"));
        let valid = text(test, "result") == "valid";
        let point = bytes(&group["publicKey"], "uncompressed");
        let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(&message, &signature).is_ok();
        assert_eq!(verified, valid, "{test}");
        if group["publicKeyJwk"].is_object() {
            let set = json!({ "keys": [group["publicKeyJwk"]] }).to_string();
            let keys = KeySet::parse("keys", set.as_bytes()).expect("a key");
            let verified = keys.candidates("ES256", None).any(|key| key.verifies(&message, &signature));
            assert_eq!(verified, valid, "{test}");
        }
    });
    assert!(count > 250);
}

/// The agreement of prekeys (`Prekeys::agree`): what contributes nothing is refused there by `was_contributory`.
#[test]
fn wycheproof_x25519() {
    let mut refused = 0;
    let count = each(include_str!("wycheproof/x25519_test.json"), |_, test| {
        let key = |field| <[u8; 32]>::try_from(bytes(test, field)).expect("32 bytes");
        let shared = StaticSecret::from(key("private")).diffie_hellman(&PublicKey::from(key("public")));
        assert_eq!(shared.as_bytes(), &key("shared"), "{test}");
        let flags = test["flags"].as_array().expect("flags");
        let zero = flags.iter().any(|flag| flag == "ZeroSharedSecret");
        assert_eq!(!shared.was_contributory(), zero, "{test}");
        assert_eq!(!shared.was_contributory(), key("shared") == [0; 32], "{test}");
        refused += usize::from(zero);
    });
    assert!(count > 500 && refused > 10, "{count}, {refused}");
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Session keys (`session_keys::derive`).
#[test]
fn wycheproof_hkdf_sha256() {
    let count = each(include_str!("wycheproof/hkdf_sha256_test.json"), |_, test| {
        let (salt, secret, info) = (bytes(test, "salt"), bytes(test, "ikm"), bytes(test, "info"));
        let size = test["size"].as_u64().expect("a size") as usize;
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, &salt).extract(&secret);
        let mut derived = vec![0; size];
        let info = [&info[..]];
        let done = extracted.expand(&info, Length(size)).and_then(|expanded| expanded.fill(&mut derived)).is_ok();
        assert_eq!(done, text(test, "result") == "valid", "{test}");
        assert!(!done || derived == bytes(test, "okm"), "{test}");
    });
    assert!(count > 80);
}

/// Signed tokens: RFC 7515, appendix A.2 and A.3, and RFC 8037, appendix A.4. Every changed bit of the signature is noticed.
#[test]
fn rfc_7515_and_8037() {
    let rsa = json!({ "kty": "RSA", "e": "AQAB", "n": concat!(
        "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_",
        "YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZ",
        "lxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ") });
    let p256 = json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" });
    let ed25519 = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    let claims = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let vectors = [
        (
            rsa,
            "RS256",
            "eyJhbGciOiJSUzI1NiJ9",
            claims,
            concat!(
                "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQ",
                "jbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqt",
                "FZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
            ),
        ),
        (
            p256,
            "ES256",
            "eyJhbGciOiJFUzI1NiJ9",
            claims,
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            ed25519,
            "EdDSA",
            "eyJhbGciOiJFZERTQSJ9",
            "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    ];
    for (key, algorithm, header, payload, signature) in vectors {
        let keys = KeySet::parse("keys", json!({ "keys": [key] }).to_string().as_bytes()).expect("a key");
        let verifies = |message: &str, signature: &[u8]| {
            keys.candidates(algorithm, None).any(|key| key.verifies(message.as_bytes(), signature))
        };
        let message = format!("{header}.{payload}");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        assert!(verifies(&message, &signature), "{algorithm}");
        assert!(!verifies(&message[1..], &signature), "{algorithm}");
        for bit in 0..signature.len() * 8 {
            let mut changed = signature.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!verifies(&message, &changed), "{algorithm}, bit {bit}");
        }
    }
}
