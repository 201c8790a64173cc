//! Azure: attested data, PKCS #7 signed by a certificate of the metadata service that chains to public authorities.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;

use super::{Certificate, SKEW, Statement, read_certificates, required, tags};
use crate::facts::{
    FactError,
    cms::{SignedData, parse_certificate},
    http::Client,
    loose_base64,
};

const WHAT: &str = "Azure attested document";

/// Whom certificates of the metadata service are issued to: the public cloud, the US government's, China's.
const NAMES: [&str; 3] = ["metadata.azure.com", "metadata.azure.us", "metadata.azure.cn"];

/// Members that become tags; the signed document knows no more.
const MEMBERS: &[(&str, &str)] = &[("subscriptionId", "account"), ("vmId", "instance"), ("sku", "sku")];

/// Fetches attested data for a fresh nonce and verifies it at `now`, Unix seconds, with the certificates of `directory`.
///
/// # Errors
/// If it cannot be had or verified.
pub fn fetch(client: &Client, endpoint: &str, directory: &Path, now: u64) -> Result<Statement, FactError> {
    // Ten digits are what the service takes.
    let nonce = format!("{:010}", rand::random::<u64>() % 10_000_000_000);
    let url = format!("{endpoint}/metadata/attested/document?api-version=2020-09-01&nonce={nonce}");
    let answer = client.get(&url, &[("metadata", "true")])?;
    verify(&answer.body, &nonce, &read_certificates(directory)?, now)
}

/// Verifies the answer of `/metadata/attested/document` at `now`, Unix seconds. Of `certificates`, those that are issued by
/// themselves are trusted, the others may lead to them.
///
/// # Errors
/// If the signature, its chain, the name, the nonce or the times are not right.
pub fn verify(answer: &[u8], nonce: &str, certificates: &[Certificate], now: u64) -> Result<Statement, FactError> {
    let envelope: Value =
        serde_json::from_slice(answer).map_err(|error| FactError::malformed(WHAT, format!("is no JSON ({error})")))?;
    if envelope.get("encoding").and_then(Value::as_str) != Some("pkcs7") {
        return Err(FactError::malformed(WHAT, "has another encoding than `pkcs7`"));
    }
    let der = loose_base64(WHAT, required(WHAT, &envelope, "signature")?.as_bytes())?;
    let signed = SignedData::parse(WHAT, &der)?;
    let content = trusted_content(&signed, certificates, now)?;
    let document: Value =
        serde_json::from_slice(content).map_err(|error| FactError::malformed(WHAT, format!("is no JSON ({error})")))?;
    if document.get("nonce").and_then(Value::as_str) != Some(nonce) {
        return Err(FactError::untrusted(WHAT, "answers another request: its nonce is not the one that was sent"));
    }
    let expires = time(&document, "expiresOn")?;
    if now >= expires + SKEW.as_secs() {
        return Err(FactError::expired(WHAT, format!("expired {} s ago", now - expires)));
    }
    let created = time(&document, "createdOn")?;
    if created > now + SKEW.as_secs() {
        return Err(FactError::expired(WHAT, format!("was made {} s from now; check the clock", created - now)));
    }
    required(WHAT, &document, "vmId")?;
    required(WHAT, &document, "subscriptionId")?;
    Ok(Statement { tags: tags(WHAT, "azure", &document, MEMBERS)?, expires: Some(expires) })
}

/// The content, once the signer is known to be the metadata service.
fn trusted_content<'a>(
    signed: &'a SignedData<'_>,
    certificates: &[Certificate],
    now: u64,
) -> Result<&'a [u8], FactError> {
    let untrusted = |problem: String| FactError::untrusted(WHAT, problem);
    let signer = signed
        .certificates()
        .iter()
        .find(|der| parse_certificate(der).is_some_and(|certificate| signed.names(&certificate)))
        .ok_or_else(|| untrusted("does not bring the certificate of its signer".into()))?;
    let signer_der = CertificateDer::from(*signer);
    let entity = EndEntityCert::try_from(&signer_der)
        .map_err(|error| untrusted(format!("is signed by an unusable certificate ({error})")))?;
    let (roots, others): (Vec<_>, Vec<_>) = certificates.iter().map(|found| &found.der).partition(|der| is_root(der));
    let anchors: Vec<_> = roots.into_iter().filter_map(|der| webpki::anchor_from_trusted_cert(der).ok()).collect();
    let brought = signed.certificates().iter().map(|der| CertificateDer::from(*der));
    let between: Vec<_> = others.into_iter().cloned().chain(brought).collect();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
    entity
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &between, time, KeyUsage::server_auth(), None, None)
        .map_err(|error| {
            let remedy =
                "put the authorities of Azure's metadata service, intermediates too, into `cloud.certificates`";
            untrusted(format!("is signed by a certificate without a trusted chain ({error}); {remedy}"))
        })?;
    let certificate =
        parse_certificate(signer).ok_or_else(|| untrusted("is signed by an unusable certificate".into()))?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let is_service = names.iter().flat_map(|names| &names.value.general_names).any(|name| match name {
        GeneralName::DNSName(name) => NAMES
            .iter()
            .any(|service| name.strip_suffix(service).is_some_and(|before| before.is_empty() || before.ends_with('.'))),
        _ => false,
    });
    if !is_service {
        return Err(untrusted(format!("is not signed by {}", NAMES.join(", "))));
    }
    signed.verify(WHAT, &certificate)
}

fn is_root(der: &[u8]) -> bool {
    parse_certificate(der).is_some_and(|found| found.issuer().as_raw() == found.subject().as_raw())
}

/// `11/20/18 22:07:39 -0000`, as the documentation of the service has it; Unix seconds.
fn time(document: &Value, member: &str) -> Result<u64, FactError> {
    let text = document.get("timeStamp").and_then(|stamp| stamp.get(member)).and_then(Value::as_str);
    let parsed = text.and_then(|text| {
        let (date, rest) = text.split_once(' ')?;
        let (time, zone) = rest.split_once(' ')?;
        let mut date = date.split('/');
        let (month, day, year) = (date.next()?, date.next()?, date.next()?);
        if !matches!(zone, "-0000" | "+0000") || date.next().is_some() || year.len() != 2 {
            return None;
        }
        let time = humantime::parse_rfc3339(&format!("20{year}-{month}-{day}T{time}Z")).ok()?;
        time.duration_since(UNIX_EPOCH).ok()
    });
    parsed
        .map(|time| time.as_secs())
        .ok_or_else(|| FactError::malformed(WHAT, format!("lacks the time `timeStamp.{member}`, or it is malformed")))
}
