//! An authority and enforcers for tests.

use std::time::Duration;

use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{
    Anchors, EnforcerId, OwnIdentity, PublicPrekey, Tags, TrustProfile, Verifier,
    ca::{Authority, IssueOptions},
};

pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const SKEW: u64 = 30;
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn authority(name: &str) -> Authority {
    Authority::generate(name, NOW - 1000, DAY * 10).unwrap().0
}

pub(crate) fn options(name: &str) -> IssueOptions {
    IssueOptions::for_enforcer(&EnforcerId::new("acme.example", name).unwrap(), NOW - 500, DAY)
}

pub(crate) fn enforcer(authority: &Authority, options: &IssueOptions) -> OwnIdentity {
    let issued = authority.issue(options).unwrap();
    OwnIdentity::from_pem(&issued.cert_pem, &issued.key_pem).unwrap()
}

/// A certificate that [`OwnIdentity`] would refuse, and its key.
pub(crate) fn leaf(authority: &Authority, options: &IssueOptions) -> (CertificateDer<'static>, EcdsaKeyPair) {
    let issued = authority.issue(options).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let random = ring::rand::SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der(), &random).unwrap();
    (CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap(), key)
}

pub(crate) fn verifier<'a>(authorities: impl IntoIterator<Item = &'a Authority>) -> Verifier {
    let certificates = authorities.into_iter().map(|authority| authority.certificate().clone());
    Verifier::new(Anchors::from_certificates(certificates).unwrap(), "acme.example", SKEW)
}

pub(crate) fn profile(enforcer: &EnforcerId, prekey: PublicPrekey) -> TrustProfile {
    let tags = [("app", "web"), ("user", "prod"), ("image", "registry.acme.example/web:1.2.3")];
    TrustProfile {
        enforcer: enforcer.clone(),
        pu: "web-1".into(),
        handle: 7,
        namespace: "/acme/prod".into(),
        tags: tags.into_iter().fold(Tags::new(), |mut tags, (key, value)| {
            tags.entry(key.into()).or_default().insert(value.into());
            tags
        }),
        issued: NOW - 10,
        issued_ms: 0,
        expires: NOW + 300,
        prekey,
    }
}

/// A public prekey nobody holds the secret of.
pub(crate) fn prekey() -> PublicPrekey {
    PublicPrekey { key: [9; 32], epoch: NOW as u32 + 4000 }
}
