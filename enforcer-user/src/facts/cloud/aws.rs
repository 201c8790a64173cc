//! Amazon EC2: the instance identity document, signed with RSA-2048 (PKCS #7), fetched by IMDSv2.
//!
//! The certificates are AWS's, one a region ("AWS public certificates for instance identity document signatures" in the EC2
//! user guide, RSA-2048). They cannot be fetched from where they would prove anything, so the operator puts them on the host.

use std::path::Path;

use serde_json::Value;

use super::{Certificate, Statement, read_certificates, required, tags};
use crate::facts::{
    FactError, Fault,
    cms::{SignedData, parse_certificate},
    http::Client,
    loose_base64,
};

const WHAT: &str = "AWS instance identity document";

/// Members that become tags.
const MEMBERS: &[(&str, &str)] = &[
    ("accountId", "account"),
    ("region", "region"),
    ("availabilityZone", "zone"),
    ("instanceId", "instance"),
    ("instanceType", "type"),
    ("imageId", "image"),
    ("architecture", "arch"),
    ("marketplaceProductCodes", "product"),
];

/// Seconds; the token is used at once.
const TOKEN_LIFETIME: &str = "60";

/// Fetches the document and verifies it with the region's certificate from `directory`.
///
/// # Errors
/// If it cannot be had or verified.
pub fn fetch(client: &Client, endpoint: &str, directory: &Path) -> Result<Statement, FactError> {
    let token = client
        .put(&format!("{endpoint}/latest/api/token"), &[("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_LIFETIME)])
        .map_err(with_hint)?;
    let token = std::str::from_utf8(&token.body)
        .ok()
        .map(str::trim)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| FactError::malformed(format!("{endpoint}/latest/api/token"), "answers no IMDSv2 token"))?;
    let signed = client
        .get(&format!("{endpoint}/latest/dynamic/instance-identity/rsa2048"), &[("x-aws-ec2-metadata-token", token)])?;
    verify(&signed.body, &read_certificates(directory)?)
}

/// IMDSv2 answers with an IP hop limit of 1 unless told otherwise: behind a bridge the answer is lost.
fn with_hint(error: FactError) -> FactError {
    if error.fault != Fault::Unreachable {
        return error;
    }
    let hint = "on EC2, check that the metadata service is enabled, and that its hop limit reaches this host's network \
                namespace (`aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2`)";
    FactError::unreachable(format!("{error}"), hint)
}

/// Verifies the answer of `/latest/dynamic/instance-identity/rsa2048`: base64 of PKCS #7 around the document.
///
/// # Errors
/// If its signature is not by the certificate of the very region it names.
pub fn verify(answer: &[u8], certificates: &[Certificate]) -> Result<Statement, FactError> {
    verify_der(&loose_base64(WHAT, answer)?, certificates)
}

/// As [`verify`], without base64.
///
/// # Errors
/// As [`verify`].
pub fn verify_der(der: &[u8], certificates: &[Certificate]) -> Result<Statement, FactError> {
    let signed = SignedData::parse(WHAT, der)?;
    // What it says of its region counts only after a signature was found right.
    let mut signers = Vec::new();
    let none = "is signed by none of the configured certificates; add that of its region (`cloud.certificates`)";
    let mut content = Err(FactError::untrusted(WHAT, none));
    for Certificate { name, der } in certificates {
        let Some(certificate) = parse_certificate(der).filter(|certificate| signed.names(certificate)) else {
            continue;
        };
        match signed.verify(WHAT, &certificate) {
            Ok(verified) => {
                content = Ok(verified);
                signers.push(name.as_str());
            }
            Err(error) if content.is_err() => content = Err(error),
            Err(_) => {}
        }
    }
    let content = content?;
    let document: Value =
        serde_json::from_slice(content).map_err(|error| FactError::malformed(WHAT, format!("is no JSON ({error})")))?;
    let region = required(WHAT, &document, "region")?;
    if !signers.contains(&region) {
        let problem =
            format!("names the region `{region}`, but is signed by the certificate `{}`", signers.join("`, `"));
        return Err(FactError::untrusted(WHAT, problem));
    }
    required(WHAT, &document, "accountId")?;
    required(WHAT, &document, "instanceId")?;
    Ok(Statement { tags: tags(WHAT, "aws", &document, MEMBERS)?, expires: None })
}
