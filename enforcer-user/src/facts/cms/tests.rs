use std::path::Path;

use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::*;
use crate::facts::{
    Fault,
    test_support::{openssl, self_signed},
};

const CONTENT: &[u8] = b"{\"region\":\"eu-test-1\"}\n";

struct Stage {
    directory: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        self_signed(directory.path(), "a", "2048");
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn der(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path().join(name)).expect("a certificate")
    }

    fn sign(&self, more: &[&str]) -> Vec<u8> {
        let args = ["cms", "-sign", "-binary", "-nodetach", "-signer", "a.pem", "-inkey", "a.key", "-outform", "DER"];
        openssl(self.path(), &[&args, more].concat(), CONTENT)
    }

    fn judge(&self, message: &[u8]) -> Result<Vec<u8>, FactError> {
        let der = self.der("a.pem");
        let certificate = parse_certificate(&der).expect("a certificate");
        let signed = SignedData::parse("message", message)?;
        assert!(signed.names(&certificate) || message.is_empty());
        signed.verify("message", &certificate).map(<[u8]>::to_vec)
    }
}

#[test]
fn what_openssl_signs_verifies_in_ber_and_der() {
    let stage = Stage::new();
    for more in [
        &["-md", "sha256"][..],
        &["-md", "sha256", "-stream"],
        &["-md", "sha256", "-stream", "-nocerts"],
        &["-md", "sha256", "-nocerts", "-nosmimecap"],
        &["-md", "sha256", "-noattr"],
        &["-md", "sha384"],
        &["-md", "sha512", "-stream"],
    ] {
        assert_eq!(stage.judge(&stage.sign(more)).as_deref(), Ok(CONTENT), "{more:?}");
    }
    let streamed = stage.sign(&["-md", "sha256", "-stream"]);
    assert_eq!(streamed[..2], [0x30, 0x80], "openssl streams with indefinite lengths, as AWS does");
}

#[test]
fn weak_digests_and_detached_content_are_refused() {
    let stage = Stage::new();
    assert_eq!(stage.judge(&stage.sign(&["-md", "sha1"])).expect_err("SHA-1").fault, Fault::Malformed);
    let args = ["cms", "-sign", "-binary", "-signer", "a.pem", "-inkey", "a.key", "-outform", "DER", "-md", "sha256"];
    let detached = openssl(stage.path(), &args, CONTENT);
    let error = stage.judge(&detached).expect_err("detached");
    assert!(error.to_string().contains("does not enclose"), "{error}");
    let two = stage.path().join("both");
    std::fs::create_dir(&two).expect("directory");
    self_signed(stage.path(), "b", "2048");
    let both = stage.sign(&["-md", "sha256", "-signer", "b.pem", "-inkey", "b.key"]);
    let error = stage.judge(&both).expect_err("two signers");
    assert!(error.to_string().contains("one signer"), "{error}");
}

#[test]
fn a_short_key_does_not_verify() {
    let stage = Stage::new();
    self_signed(stage.path(), "a", "1024");
    let error = stage.judge(&stage.sign(&["-md", "sha256"])).expect_err("1024 bits");
    assert_eq!(error.fault, Fault::Untrusted);
}

#[test]
fn every_changed_byte_of_content_attributes_and_signature_is_noticed() {
    let stage = Stage::new();
    for more in [&["-md", "sha256", "-nocerts"][..], &["-md", "sha256", "-nocerts", "-noattr"]] {
        let good = stage.sign(more);
        let der = stage.der("a.pem");
        let certificate = parse_certificate(&der).expect("a certificate");
        let mut unnoticed = Vec::new();
        for at in 0..good.len() {
            for flip in [0x01, 0x80] {
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                let Ok(signed) = SignedData::parse("message", &bytes) else { continue };
                if let Ok(content) = signed.verify("message", &certificate) {
                    assert_eq!(content, CONTENT, "other content was believed");
                    unnoticed.push(at);
                }
            }
        }
        unnoticed.dedup();
        // Versions, the list of digests, the signer's name (the caller's to compare) and the NULLs of algorithms are not signed.
        assert!(unnoticed.len() < 80, "{} of {} bytes do not matter", unnoticed.len(), good.len());
        let content = good.windows(CONTENT.len()).position(|window| window == CONTENT).expect("content");
        let signature = good.len() - 256;
        let matters = |at: &usize| (content..content + CONTENT.len()).contains(at) || *at >= signature;
        assert!(!unnoticed.iter().any(matters), "{unnoticed:?}");
    }
}

#[test]
fn content_of_another_message_is_not_taken_for_signed() {
    let stage = Stage::new();
    let other = b"{\"region\":\"eu-test-9\"}\n";
    for more in [&["-md", "sha256"][..], &["-md", "sha256", "-noattr"]] {
        let mut bytes = stage.sign(more);
        let at = bytes.windows(CONTENT.len()).position(|window| window == CONTENT).expect("content");
        bytes[at..at + CONTENT.len()].copy_from_slice(other);
        assert_eq!(stage.judge(&bytes).expect_err("other content").fault, Fault::Untrusted);
    }
}

#[test]
fn foreign_bytes_are_errors() {
    for bytes in [&b""[..], b"\x30", b"\x30\x80", b"\x30\x00", b"\x00\x00", &[0x30; 4000], &[0x24, 0x80].repeat(2000)] {
        assert_eq!(SignedData::parse("message", bytes).expect_err("no message").fault, Fault::Malformed);
    }
}
