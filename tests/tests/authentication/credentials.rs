//! Credentials no enforcer would start with, and sessions that are not there: sent by hand from a host without enforcer.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use common::drop_reason::Reason::{self, *};
use common::wire::{DENY, HELLO, HELLO_REPLY, OptionBytes, RESUME, RESUME_REPLY, RETRY, Transcript, sealed};
use enforcer_user::identity::ca::{Authority, ExtendedKeyUsagePurpose, IssueOptions, KeyUsagePurpose};
use enforcer_user::identity::{EnforcerId, PublicPrekey, Tags, TrustProfile};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tests::Host;
use tests::segment::option_bytes;

use crate::stage::{Report, Stage, for_both_families, hex, raw, server};

const SKEW: u64 = 30;
const DOMAIN: &str = "enforcer";
/// Initial sequence number of RESUMEs made by hand.
const ISN: u32 = 1_000_000;

/// What an attacker makes a credential of.
struct Forgery {
    authority: Authority,
    certificate: IssueOptions,
    profile: TrustProfile,
    /// Handle in the option; the profile's if none.
    handle: Option<u16>,
    /// Signs with a key that is not the certificate's.
    other_key: bool,
}

type Change = fn(&mut Forgery);

const REFUSED: &[(&str, Reason, Change)] = &[
    ("an expired profile", CredentialExpired, |f| f.profile.expires = now() - SKEW - 1),
    ("a profile whose prekey ended", CredentialExpired, |f| f.profile.prekey.epoch = (now() - SKEW - 1) as u32),
    ("a profile from the future", CredentialNotYetValid, |f| f.profile.issued = now() + SKEW + 60),
    ("a foreign authority's certificate", ChainUntrusted, |f| {
        f.authority = Authority::generate("lab", now() - 100, Duration::from_secs(86_400)).expect("an authority").0;
    }),
    ("an expired certificate", CertificateExpired, |f| f.certificate.not_after = now() - SKEW - 2),
    ("a certificate from the future", CertificateNotYetValid, |f| f.certificate.not_before = now() + SKEW + 60),
    ("a certificate without key usage", CertificateUsage, |f| {
        f.certificate.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    }),
    ("a server's certificate", CertificateUsage, |f| {
        f.certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }),
    ("a client's certificate", CertificateUsage, |f| {
        f.certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    }),
    ("an authority's certificate", CertificateUsage, |f| f.certificate.is_ca = true),
    ("a certificate without SPIFFE id", CertificateName, |f| f.certificate.uri = None),
    ("a certificate with a DNS name alone", CertificateName, |f| {
        f.certificate.uri = None;
        f.certificate.dns_names = vec!["host-a".into()];
    }),
    ("a certificate of another trust domain", CertificateName, |f| {
        f.certificate.uri = Some("spiffe://elsewhere/enforcer/mallory".into());
    }),
    ("a profile of another enforcer", ProfileMismatch, |f| {
        f.profile.enforcer = EnforcerId::new(DOMAIN, "host-a").expect("an id");
    }),
    ("another PU's handle", ProfileMismatch, |f| f.handle = Some(8)),
    ("a prekey of small order", ProfileMismatch, |f| f.profile.prekey.key = [0; 32]),
    ("another key's signature", CredentialSignature, |f| f.other_key = true),
    ("a PU that nothing is allowed", NoRule, |f| f.profile.tags.clear()),
];

const ACCEPTED: &[(&str, Change)] = &[
    ("a right credential", |_| {}),
    ("a profile from the near future", |f| f.profile.issued = now() + SKEW - 10),
    ("a profile just expired", |f| {
        f.profile.expires = now() - SKEW + 10;
        f.profile.issued = now() - 100;
    }),
    ("a certificate from the near future", |f| f.certificate.not_before = now() + SKEW - 10),
];

#[test]
fn wrong_credentials_are_refused_each_for_its_reason() -> Result<()> {
    for_both_families("credentials", |stage| {
        let host = stage.plain_host("mallory")?;
        let heard = stage.heard()?;
        let mut port = 20_000;
        for (what, change) in ACCEPTED {
            port += 1;
            let before = stage.refusals()?;
            let report = send_hello(stage, &host, port, *change).with_context(|| (*what).to_owned())?;
            let option = report.answers.first().with_context(|| (*what).to_owned())?.identity()?;
            ensure!(report.flags() == ["SA"] && option.packet_type() == HELLO_REPLY, "{what}: {report:?}");
            stage.settle(what, &before, &[])?;
        }
        for (what, reason, change) in REFUSED {
            port += 1;
            let before = stage.refusals()?;
            let report = send_hello(stage, &host, port, *change).with_context(|| (*what).to_owned())?;
            if matches!(reason, ChainUntrusted | CredentialSignature) {
                ensure!(report.answers.is_empty(), "{what} proves nothing and was answered: {report:?}");
            } else {
                let option = report.answers.first().with_context(|| (*what).to_owned())?.identity()?;
                ensure!(report.flags() == ["RA"] && option.packet_type() == DENY, "{what}: {report:?}");
                let told = Reason::from_number(option.flags.into());
                ensure!(told == Some(*reason), "{what} was refused as {told:?}, not {reason:?}");
            }
            stage.settle(what, &before, &[server(*reason)])?;
            stage.expect_records(&[server(*reason)], &stage.from(&host, port).to_string());
        }
        // What is no credential at all.
        let before = stage.refusals()?;
        let report = send(stage, &host, 20_900, 7, b"{\"I am\":\"root\"}")?;
        ensure!(report.answers.is_empty(), "{report:?}");
        stage.settle("no credential", &before, &[server(HelloMalformed)])?;
        ensure!(stage.heard()? == heard, "the listener heard of it: {:?}", stage.server.events()?);
        Ok(())
    })
}

#[test]
fn resumptions_without_a_session_are_refused() -> Result<()> {
    for_both_families("nosession", |stage| {
        stage.good("first contact")?;
        let host = stage.plain_host("mallory")?;
        let heard = stage.heard()?;
        let sessions = stage.at_a.sessions.entries()?;
        let (_, session) = sessions
            .into_iter()
            .find(|(index, session)| ![0, *index].contains(&session.peer_index))
            .context("the client's enforcer has no session with the server's")?;
        let syns = stage.good("resumption")?;
        let handle = syns[0].original.identity().context("a RESUME")?.handle();
        let transcript = Transcript { sender_isn: ISN, ..Transcript::default() };
        let made = |handle, index| sealed(&session.key_out, RESUME, 0, handle, index, &transcript);
        let right = made(handle, session.peer_index);
        let heard = (heard.0 + 1, heard.1 + 4);

        let ask = |port: u16, option: &OptionBytes, counts: &[crate::stage::Count]| -> Result<Report> {
            let before = stage.refusals()?;
            let options = hex(&option_bytes(option));
            let isn = ISN.to_string();
            let args = ["--options", &options, "--seq", &isn, "--wait", "100"];
            let report = raw(&host, stage.to, stage.from(&host, port), &args)?;
            stage.settle(&format!("{option:?}"), &before, counts)?;
            Ok(report)
        };
        // Whoever has the key may come from anywhere: what follows fails for its own reason.
        let report = ask(21_001, &right, &[])?;
        ensure!(report.answers.first().context("no answer")?.identity()?.packet_type() == RESUME_REPLY, "{report:?}");

        let unknown = made(handle, session.peer_index ^ 1);
        let report = ask(21_002, &unknown, &[server(UnknownSession)])?;
        let option = report.only()?.identity()?;
        ensure!((option.packet_type(), option.flags) == (RETRY, UnknownSession as u8), "{report:?}");

        let report = ask(21_003, &made(handle ^ 0x4000, session.peer_index), &[server(UnknownHandle)])?;
        let option = report.only()?.identity()?;
        ensure!((option.packet_type(), option.flags) == (RETRY, UnknownHandle as u8), "{report:?}");

        let wrong = [
            OptionBytes::new(RESUME, 0, handle, session.peer_index, right.mac() ^ 1),
            sealed(&session.key_out, RESUME, 0, handle, session.peer_index, &Transcript::default()),
            sealed(&session.key_in, RESUME, 0, handle, session.peer_index, &transcript),
        ];
        for (port, option) in (21_004..).zip(wrong) {
            let report = ask(port, &option, &[server(ResumeMac)])?;
            ensure!(report.answers.is_empty(), "a wrong MAC is answered: {report:?}");
            stage.expect_records(&[server(ResumeMac)], &stage.from(&host, port).to_string());
        }
        ensure!(stage.heard()? == heard, "the listener heard of it: {:?}", stage.server.events()?);
        Ok(())
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn send_hello(stage: &Stage, host: &Host, port: u16, change: Change) -> Result<Report> {
    let id = EnforcerId::new(DOMAIN, "mallory")?;
    let mut forgery = Forgery {
        authority: Authority::load(&stage.lab.directory().join("ca"))?,
        certificate: IssueOptions::for_enforcer(&id, now() - 600, Duration::from_secs(3600)),
        profile: TrustProfile {
            enforcer: id,
            pu: "client".into(),
            handle: 7,
            namespace: "/demo".into(),
            tags: Tags::from([("app".into(), ["client".into()].into())]),
            issued: now() - 300,
            issued_ms: 0,
            expires: now() + 300,
            prekey: PublicPrekey { key: [9; 32], epoch: (now() + 4000) as u32 },
        },
        handle: None,
        other_key: false,
    };
    change(&mut forgery);
    let handle = forgery.handle.unwrap_or(forgery.profile.handle);
    send(stage, host, port, handle, &credential(&forgery)?)
}

/// Sends a HELLO with this credential; what was answered.
fn send(stage: &Stage, host: &Host, port: u16, handle: u16, credential: &[u8]) -> Result<Report> {
    let hash = ring::digest::digest(&ring::digest::SHA256, credential);
    let word =
        |from: usize, to: usize| hash.as_ref()[from..to].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let option = OptionBytes::new(HELLO, 0, handle, word(0, 4) as u32, word(4, 12));
    let (options, payload) = (hex(&option_bytes(&option)), hex(credential));
    let args = ["--options", &options, "--payload", &payload, "--wait", "60"];
    raw(host, stage.to, stage.from(host, port), &args)
}

/// The credential as it is documented, made without the enforcer's own code, which would refuse to.
fn credential(forgery: &Forgery) -> Result<Vec<u8>> {
    let issued = forgery.authority.issue(&forgery.certificate)?;
    let other = forgery.authority.issue(&forgery.certificate)?;
    let key = if forgery.other_key { &other.key_pem } else { &issued.key_pem };
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| anyhow!("{error:?}"))?;
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der(), &random)
        .map_err(|error| anyhow!("{error:?}"))?;
    let certificate =
        CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).map_err(|error| anyhow!("{error:?}"))?;
    // Written by the library, which also refuses times that contradict each other.
    let json = forgery.profile.to_json()?;
    let lengths = [certificate.len(), json.len()].map(|length| (length as u16).to_be_bytes()).concat();
    let covered = [&[1], &lengths[..], &certificate, json.as_bytes()].concat();
    let signature = key
        .sign(&random, &[b"enforcer trust profile v1\0", &covered[..]].concat())
        .map_err(|error| anyhow!("{error:?}"))?;
    Ok([&covered[..], signature.as_ref()].concat())
}
