use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::identity::{Anchors, test_support::*};

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        let issued = authority("Test CA").issue(&options("h1")).unwrap();
        files.write("h1.crt", &issued.cert_pem);
        files.write("h1.key", &issued.key_pem);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn error(&self, blamed: &str) -> String {
        let error = OwnIdentity::load(&self.path("h1.crt"), &self.path("h1.key")).unwrap_err();
        assert_eq!(error.path, self.path(blamed), "{error}");
        error.problem
    }
}

#[test]
fn good_files_load() {
    let files = Files::new();
    let own = OwnIdentity::load(&files.path("h1.crt"), &files.path("h1.key")).unwrap();
    assert_eq!((own.id().name(), own.not_after()), ("h1", NOW - 500 + DAY.as_secs()));
    assert_eq!(format!("{own:?}"), "OwnIdentity(spiffe://acme.example/enforcer/h1)");
}

#[test]
fn each_problem_names_its_file() {
    let files = Files::new();
    let (cert, key) = (files.read("h1.crt"), files.read("h1.key"));
    let restore = || {
        files.write("h1.crt", &cert);
        files.write("h1.key", &key);
    };

    files.write("h1.crt", &cert[..cert.len() / 2]);
    assert_eq!(files.error("h1.crt"), "is truncated: `-----END CERTIFICATE-----` is missing");
    files.write("h1.crt", "");
    assert_eq!(files.error("h1.crt"), "holds no certificate: expected PEM `-----BEGIN CERTIFICATE-----`");
    files.write("h1.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(files.error("h1.crt").starts_with("is no X.509 certificate ("));
    files.write("h1.crt", "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n");
    assert!(files.error("h1.crt").starts_with("is no valid PEM ("));
    files.write("h1.crt", &format!("{cert}{cert}"));
    assert!(files.error("h1.crt").starts_with("holds 2 certificates, expected the enforcer's alone"));
    let mut nameless = options("h1");
    nameless.uri = None;
    files.write("h1.crt", &authority("CA").issue(&nameless).unwrap().cert_pem);
    assert!(files.error("h1.crt").starts_with("names no enforcer"));
    restore();

    files.write("h1.key", &key[..key.len() / 2]);
    assert_eq!(files.error("h1.key"), "is truncated: `-----END PRIVATE KEY-----` is missing");
    files.write("h1.key", &cert);
    assert_eq!(files.error("h1.key"), "holds no private key: expected PEM `-----BEGIN PRIVATE KEY-----`");
    files.write("h1.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    assert!(files.error("h1.key").starts_with("is not a usable P-256 key ("));
    files.write("h1.key", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n");
    assert!(files.error("h1.key").starts_with("is not in PKCS #8 form: convert it"));
    files.write("h1.key", &authority("CA").issue(&options("h1")).unwrap().key_pem);
    assert_eq!(files.error("h1.key"), format!("is not the key of the certificate {}", files.path("h1.crt").display()));
    restore();

    fs::set_permissions(files.path("h1.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(files.error("h1.key"), "mode 644 lets everybody use the key: chmod 600");
    fs::remove_file(files.path("h1.key")).unwrap();
    assert!(files.error("h1.key").starts_with("cannot be read: No such file"));
}

#[test]
fn trust_anchors_load_with_clear_errors() {
    let files = Files::new();
    files.write("ca.crt", &[authority("A").certificate_pem(), authority("B").certificate_pem()].concat());
    assert_eq!(Anchors::load(&files.path("ca.crt")).unwrap().len(), 2);
    let error = Anchors::load(&files.path("h1.crt")).map(|_| ()).unwrap_err();
    assert!(
        error.to_string().ends_with("h1.crt: certificate 1 is not an authority's (basicConstraints CA is missing)")
    );
    let error = Anchors::load(&files.path("none.crt")).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("none.crt: cannot be read"), "{error}");
}

#[test]
fn an_enforcer_learns_what_peers_will_say() {
    let (ours, theirs) = (authority("A"), authority("B"));
    let own = enforcer(&ours, &options("h1"));
    assert_eq!(own.check(&mut verifier([&ours]), NOW), Ok(()));
    assert!(matches!(own.check(&mut verifier([&theirs]), NOW), Err(CredentialError::Untrusted(_))));
    let late = NOW + DAY.as_secs() * 2;
    assert!(matches!(own.check(&mut verifier([&ours]), late), Err(CredentialError::CertificateExpired { .. })));
}
