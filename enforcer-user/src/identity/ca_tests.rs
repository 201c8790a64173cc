use std::{os::unix::fs::PermissionsExt, process::Command};

use super::*;
use crate::identity::{Anchors, OwnIdentity, Verifier};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn openssl(args: &[&str], dir: &Path) -> String {
    let output = Command::new("openssl").args(args).current_dir(dir).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn openssl_verifies_what_is_issued() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), "Acme CA", YEAR * 10).unwrap();
    let (cert, key) = issue(dir.path(), "host-1", dir.path(), YEAR, "acme.example").unwrap();
    assert_eq!((cert, key), (dir.path().join("host-1.crt"), dir.path().join("host-1.key")));
    for purpose in ["sslclient", "sslserver"] {
        let args = ["verify", "-purpose", purpose, "-CAfile", "ca.crt", "host-1.crt"];
        assert_eq!(openssl(&args, dir.path()), "host-1.crt: OK\n");
    }
    let ca = openssl(&["x509", "-in", "ca.crt", "-noout", "-text"], dir.path());
    for expected in ["CA:TRUE", "Certificate Sign, CRL Sign", "prime256v1", "CN = Acme CA"] {
        assert!(ca.contains(expected), "{expected} in {ca}");
    }
    let leaf = openssl(&["x509", "-in", "host-1.crt", "-noout", "-text"], dir.path());
    for expected in [
        "URI:spiffe://acme.example/enforcer/host-1",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Client Authentication, TLS Web Server Authentication",
        "prime256v1",
    ] {
        assert!(leaf.contains(expected), "{expected} in {leaf}");
    }
    for file in ["ca.crt", "ca.key", "host-1.crt", "host-1.key"] {
        let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn what_is_issued_loads_and_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), "Acme CA", YEAR).unwrap();
    let (cert, key) = issue(dir.path(), "h1", &dir.path().join("out"), YEAR / 2, "acme.example").unwrap();
    let own = OwnIdentity::load(&cert, &key).unwrap();
    assert_eq!(own.id().as_str(), "spiffe://acme.example/enforcer/h1");
    let mut verifier = Verifier::new(Anchors::load(&dir.path().join(CA_CERT)).unwrap(), "acme.example", 0);
    assert_eq!(own.check(&mut verifier, unix_now()), Ok(()));
    let serial = |name| {
        issue(dir.path(), name, dir.path(), YEAR / 2, "acme.example").unwrap();
        openssl(&["x509", "-in", &format!("{name}.crt"), "-noout", "-serial"], dir.path())
    };
    assert_ne!(serial("h2"), serial("h3"));
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CA_KEY), "mine").unwrap();
    let error = init(dir.path(), "CA", YEAR).unwrap_err();
    assert!(matches!(&error, CaError::Exists(path) if path.ends_with(CA_KEY)), "{error}");
    assert_eq!(fs::read_to_string(dir.path().join(CA_KEY)).unwrap(), "mine");
    assert!(!dir.path().join(CA_CERT).exists());
    fs::remove_file(dir.path().join(CA_KEY)).unwrap();
    init(dir.path(), "CA", YEAR).unwrap();
    assert!(matches!(init(dir.path(), "CA", YEAR), Err(CaError::Exists(_))));
    std::os::unix::fs::symlink("nowhere", dir.path().join("h1.crt")).unwrap();
    let error = issue(dir.path(), "h1", dir.path(), YEAR / 2, "acme.example").unwrap_err();
    assert!(matches!(&error, CaError::Exists(path) if path.ends_with("h1.crt")), "{error}");
    assert!(!dir.path().join("h1.key").exists());
}

#[test]
fn nothing_partial_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("no/such/h1.crt"), dir.path().join("h1.key"));
    let error = write_pair(dir.path(), (&cert, "cert"), (&key, "key")).unwrap_err();
    assert!(matches!(error, CaError::Io { action: "create", .. }), "{error}");
    assert!(!key.exists());
}

#[test]
fn bad_wishes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(init(dir.path(), "", YEAR), Err(CaError::Name(_))));
    assert!(matches!(init(dir.path(), "CA", Duration::ZERO), Err(CaError::Lifetime(0))));
    assert!(matches!(init(dir.path(), "CA", Duration::MAX), Err(CaError::Lifetime(_))));
    let missing = issue(dir.path(), "h1", dir.path(), YEAR, "acme.example").unwrap_err();
    assert!(missing.to_string().contains("ca.crt: cannot be read"), "{missing}");
    init(dir.path(), "CA", YEAR).unwrap();
    let issue = |name, lifetime, domain| issue(dir.path(), name, dir.path(), lifetime, domain).unwrap_err();
    assert!(matches!(issue("../h1", YEAR / 2, "acme.example"), CaError::Id(IdError::Name(_))));
    assert!(matches!(issue("h1", YEAR / 2, "Acme"), CaError::Id(IdError::TrustDomain(_))));
    assert!(matches!(issue("h1", YEAR * 2, "acme.example"), CaError::Outlives(_)));
    assert!(matches!(issue("h1", YEAR * 200, "acme.example"), CaError::Lifetime(_)));
    let other = tempfile::tempdir().unwrap();
    init(other.path(), "CA", YEAR).unwrap();
    fs::copy(other.path().join(CA_KEY), dir.path().join(CA_KEY)).unwrap();
    let error = issue("h1", YEAR / 2, "acme.example");
    assert!(error.to_string().contains("ca.key: does not belong to any certificate in"), "{error}");
}

#[test]
fn the_authority_that_has_the_key_issues() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    init(old.path(), "Old CA", YEAR).unwrap();
    init(new.path(), "New CA", YEAR).unwrap();
    let both = [old.path(), new.path()].map(|dir| fs::read_to_string(dir.join(CA_CERT)).unwrap()).concat();
    fs::write(new.path().join(CA_CERT), both).unwrap();
    assert_eq!(Anchors::load(&new.path().join(CA_CERT)).unwrap().len(), 2);
    issue(new.path(), "h1", new.path(), YEAR / 2, "acme.example").unwrap();
    let issuer = openssl(&["x509", "-in", "h1.crt", "-noout", "-issuer"], new.path());
    assert_eq!(issuer, "issuer=CN = New CA\n");
}

#[test]
fn odd_certificates_can_be_ordered() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), "CA", YEAR).unwrap();
    let authority = Authority::load(dir.path()).unwrap();
    let id = EnforcerId::new("acme.example", "h1").unwrap();
    let mut options = IssueOptions::for_enforcer(&id, 1_000_000_000, YEAR);
    options.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    let (cert, key) = issue_with(&authority, "h1", dir.path(), &options).unwrap();
    let own = OwnIdentity::load(&cert, &key).unwrap();
    assert_eq!(own.not_after(), 1_000_000_000 + YEAR.as_secs());
    let text = openssl(&["x509", "-in", "h1.crt", "-noout", "-text"], dir.path());
    assert!(text.contains("Key Agreement") && text.contains("Not Before: Sep  9 01:46:40 2001 GMT"), "{text}");
}
