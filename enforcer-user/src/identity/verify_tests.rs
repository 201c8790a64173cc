use proptest::prelude::*;

use super::*;
use crate::identity::{
    PreparedCredential,
    ca::{Authority, ExtendedKeyUsagePurpose, IssueOptions, KeyUsagePurpose},
    credential::{HEADER_LEN, SIGNATURE_LEN, assemble_any, prepare},
    test_support::*,
};

struct Fixture {
    authority: Authority,
    credential: PreparedCredential,
    certificate_len: usize,
}

fn fixture() -> Fixture {
    let authority = authority("Test CA");
    let own = enforcer(&authority, &options("h1"));
    let credential = prepare(&own, &profile(own.id(), prekey())).unwrap();
    Fixture { certificate_len: own.certificate().len(), authority, credential }
}

fn reason(result: Result<Arc<VerifiedCredential>, CredentialError>) -> Reason {
    result.map_or_else(|error| error.reason(), |_| Reason::Allowed)
}

/// The reason for a credential of an otherwise good enforcer with this certificate.
fn reason_of(issuer: &Authority, options: &IssueOptions, verifier: &mut Verifier) -> Reason {
    let (certificate, key) = leaf(issuer, options);
    let id = EnforcerId::new("acme.example", "h1").unwrap();
    let json = profile(&id, prekey()).to_json().unwrap();
    reason(verifier.verify(&assemble_any(&certificate, json.as_bytes(), &key), NOW))
}

#[test]
fn a_good_credential_says_what_was_signed() {
    let Fixture { authority, credential, .. } = fixture();
    let mut verifier = verifier([&authority]);
    let verified = verifier.verify(credential.bytes(), NOW).unwrap();
    assert_eq!(verified.enforcer().as_str(), "spiffe://acme.example/enforcer/h1");
    assert_eq!(*verified.profile(), profile(verified.enforcer(), prekey()));
    assert_eq!((verified.prekey(), verified.valid_until()), (prekey(), NOW + 300));
    assert_eq!(verified.hash()[..4], credential.hash_index().to_be_bytes());
}

#[test]
fn signatures_are_checked_once() {
    let authority = authority("Test CA");
    let own = enforcer(&authority, &options("h1"));
    let prepared = |pu: &str| {
        let profile = TrustProfile { pu: pu.into(), ..profile(own.id(), prekey()) };
        prepare(&own, &profile).unwrap()
    };
    let (one, two) = (prepared("one"), prepared("two"));
    let mut verifier = verifier([&authority]);
    for credential in [&one, &two, &one, &two, &two] {
        verifier.verify(credential.bytes(), NOW).unwrap();
    }
    assert_eq!(verifier.stats(), VerifierStats { misses: 1, chain_hits: 1, credential_hits: 3 });
}

#[test]
fn every_flipped_bit_is_refused() {
    let Fixture { authority, credential, certificate_len } = fixture();
    let good = credential.bytes();
    let mut fresh = verifier([&authority]);
    let mut warm = verifier([&authority]);
    warm.verify(good, NOW).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let in_certificate = (HEADER_LEN..HEADER_LEN + certificate_len).contains(&(bit / 8));
        for verifier in [&mut fresh, &mut warm] {
            let reason = reason(verifier.verify(&bytes, NOW));
            let expected = match bit / 8 {
                ..HEADER_LEN => reason == Reason::HelloMalformed,
                _ if in_certificate => matches!(reason, Reason::HelloMalformed | Reason::CredentialSignature),
                _ => reason == Reason::CredentialSignature,
            };
            assert!(expected, "bit {bit}: {reason:?}");
            *counts.entry((in_certificate, reason)).or_insert(0) += 1;
        }
    }
    // Neither verifier was talked into remembering anything.
    assert_eq!((fresh.credentials.len(), fresh.chains.len()), (0, 0));
    assert_eq!((warm.credentials.len(), warm.chains.len()), (1, 1));
    let outside = (good.len() - certificate_len - HEADER_LEN) * 8 * 2;
    assert_eq!(counts[&(false, Reason::CredentialSignature)], outside);
    assert_eq!(counts[&(false, Reason::HelloMalformed)], HEADER_LEN * 8 * 2);
    assert!(counts[&(true, Reason::CredentialSignature)] > 0);
}

#[test]
fn a_hello_is_bound_to_its_option() {
    let Fixture { authority, credential, .. } = fixture();
    let mut verifier = verifier([&authority]);
    let option = |handle, index, mac| OptionBytes::new(common::wire::HELLO, 0, handle, index, mac);
    let (index, mac) = (credential.hash_index(), credential.hash_mac());
    let mut judge = |option| reason(verifier.verify_hello(&option, credential.bytes(), NOW));
    assert_eq!(judge(option(7, index, mac)), Reason::Allowed);
    assert_eq!(judge(option(8, index, mac)), Reason::ProfileMismatch);
    assert_eq!(judge(option(7, index ^ 1, mac)), Reason::HelloTampered);
    assert_eq!(judge(option(7, index, mac ^ 1 << 63)), Reason::HelloTampered);
}

#[test]
fn each_wrong_certificate_has_its_reason() {
    let (ours, theirs) = (authority("Test CA"), authority("Test CA"));
    let mut verifier = verifier([&ours]);
    let mut judge = |issuer, change: &dyn Fn(&mut IssueOptions)| {
        let mut options = options("h1");
        change(&mut options);
        reason_of(issuer, &options, &mut verifier)
    };
    assert_eq!(judge(&ours, &|_| {}), Reason::Allowed);
    assert_eq!(judge(&theirs, &|_| {}), Reason::ChainUntrusted);
    // Who is not trusted is not believed when it says that it has expired.
    assert_eq!(judge(&theirs, &|o| o.not_after = NOW - 100), Reason::ChainUntrusted);
    assert_eq!(judge(&ours, &|o| o.not_after = NOW - SKEW), Reason::Allowed);
    assert_eq!(judge(&ours, &|o| o.not_after = NOW - SKEW - 1), Reason::CertificateExpired);
    assert_eq!(judge(&ours, &|o| o.not_before = NOW + SKEW), Reason::Allowed);
    assert_eq!(judge(&ours, &|o| o.not_before = NOW + SKEW + 1), Reason::CertificateNotYetValid);
    let usages = [KeyUsagePurpose::KeyAgreement];
    assert_eq!(judge(&ours, &|o| o.key_usages = usages.to_vec()), Reason::CertificateUsage);
    assert_eq!(judge(&ours, &|o| o.key_usages.clear()), Reason::CertificateUsage);
    assert_eq!(judge(&ours, &|o| o.extended_key_usages.clear()), Reason::CertificateUsage);
    for only in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        assert_eq!(judge(&ours, &|o| o.extended_key_usages = vec![only.clone()]), Reason::CertificateUsage);
    }
    assert_eq!(judge(&ours, &|o| o.is_ca = true), Reason::CertificateUsage);
    assert_eq!(judge(&ours, &|o| o.uri = None), Reason::CertificateName);
    assert_eq!(judge(&ours, &|o| o.dns_names = vec!["h1.acme.example".into()]), Reason::Allowed);
    for uri in ["spiffe://acme.example/workload/h1", "https://acme.example", "spiffe://other.example/enforcer/h1"] {
        assert_eq!(judge(&ours, &|o| o.uri = Some(uri.into())), Reason::CertificateName, "{uri}");
    }
    assert_eq!(
        judge(&ours, &|o| o.uri = Some("spiffe://acme.example/enforcer/h2".into())),
        Reason::ProfileMismatch,
        "another enforcer's certificate under this profile"
    );
}

#[test]
fn a_certificate_of_another_key_is_a_wrong_signature() {
    let authority = authority("Test CA");
    let (certificate, _) = leaf(&authority, &options("h1"));
    let (_, key) = leaf(&authority, &options("h1"));
    let id = EnforcerId::new("acme.example", "h1").unwrap();
    let json = profile(&id, prekey()).to_json().unwrap();
    let stolen = assemble_any(&certificate, json.as_bytes(), &key);
    assert_eq!(reason(verifier([&authority]).verify(&stolen, NOW)), Reason::CredentialSignature);
}

#[test]
fn profiles_are_judged_by_the_clock_also_from_memory() {
    let Fixture { authority, credential, .. } = fixture();
    let (issued, expires) = (NOW - 10, NOW + 300);
    let mut warm = verifier([&authority]);
    warm.verify(credential.bytes(), NOW).unwrap();
    for warm in [Some(&mut warm), None] {
        let mut cold = verifier([&authority]);
        let verifier = warm.unwrap_or(&mut cold);
        let mut at = |now| reason(verifier.verify(credential.bytes(), now));
        assert_eq!(at(issued - SKEW - 1), Reason::CredentialNotYetValid);
        assert_eq!(at(expires + SKEW), Reason::CredentialExpired);
        assert_eq!(at(issued - SKEW), Reason::Allowed);
        assert_eq!(at(expires + SKEW - 1), Reason::Allowed);
        assert_eq!(at(NOW + DAY.as_secs() * 2), Reason::CertificateExpired);
        assert_eq!(at(0), Reason::CertificateNotYetValid);
        assert_eq!(at(u64::MAX), Reason::CertificateExpired);
    }
}

#[test]
fn a_dead_prekey_ends_a_profile() {
    let authority = authority("Test CA");
    let own = enforcer(&authority, &options("h1"));
    let dead = PublicPrekey { epoch: (NOW - SKEW) as u32, ..prekey() };
    let credential = prepare(&own, &profile(own.id(), dead)).unwrap();
    assert_eq!(reason(verifier([&authority]).verify(credential.bytes(), NOW)), Reason::CredentialExpired);
}

#[test]
fn unreadable_profiles_are_malformed_even_if_signed() {
    let authority = authority("Test CA");
    let (certificate, key) = leaf(&authority, &options("h1"));
    for json in ["", "{}", "[]", "\u{0}", "{\"iss\":1}"] {
        let bytes = assemble_any(&certificate, json.as_bytes(), &key);
        assert_eq!(reason(verifier([&authority]).verify(&bytes, NOW)), Reason::HelloMalformed, "{json}");
    }
}

#[test]
fn authorities_rotate() {
    let (old, new) = (authority("Old CA"), authority("New CA"));
    let credentials = [&old, &new].map(|issuer| {
        let own = enforcer(issuer, &options("h1"));
        prepare(&own, &profile(own.id(), prekey())).unwrap()
    });
    let mut verifier = verifier([&old, &new]);
    for credential in &credentials {
        assert_eq!(reason(verifier.verify(credential.bytes(), NOW)), Reason::Allowed);
    }
    verifier.set_anchors(Anchors::from_certificates([new.certificate().clone()]).unwrap());
    assert_eq!(reason(verifier.verify(credentials[0].bytes(), NOW)), Reason::ChainUntrusted);
    assert_eq!(reason(verifier.verify(credentials[1].bytes(), NOW)), Reason::Allowed);
}

#[test]
fn an_expired_authority_vouches_for_nobody() {
    let dead = Authority::generate("Dead CA", NOW - 1000, std::time::Duration::from_secs(900)).unwrap().0;
    let mut verifier = verifier([&dead]);
    assert_eq!(reason_of(&dead, &options("h1"), &mut verifier), Reason::CertificateExpired);
}

#[test]
fn only_authorities_are_trust_anchors() {
    let (certificate, _) = leaf(&authority("Test CA"), &options("h1"));
    let error = Anchors::from_certificates([certificate]).map(|_| ()).unwrap_err();
    assert!(error.contains("certificate 1 is not an authority's"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_judged_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..1400),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let Fixture { authority, credential, .. } = fixture();
        let mut verifier = verifier([&authority]);
        prop_assert_ne!(reason(verifier.verify(&bytes, NOW)), Reason::Allowed);
        let mut edited = credential.bytes().to_vec();
        for (index, byte) in &edits {
            let index = index.index(edited.len());
            edited[index] = *byte;
        }
        let untouched = edited == credential.bytes();
        prop_assert_eq!(reason(verifier.verify(&edited, NOW)) == Reason::Allowed, untouched);
        edited.truncate(cut.index(edited.len()));
        prop_assert_ne!(reason(verifier.verify(&edited, NOW)), Reason::Allowed);
    }
}

#[test]
fn truncated_and_extended_credentials_are_malformed() {
    let Fixture { authority, credential, .. } = fixture();
    let mut verifier = verifier([&authority]);
    for len in 0..credential.bytes().len() {
        assert_eq!(reason(verifier.verify(&credential.bytes()[..len], NOW)), Reason::HelloMalformed);
    }
    let extended = [credential.bytes(), &[0]].concat();
    assert_eq!(reason(verifier.verify(&extended, NOW)), Reason::HelloMalformed);
    assert!(credential.bytes().len() > HEADER_LEN + SIGNATURE_LEN);
}
