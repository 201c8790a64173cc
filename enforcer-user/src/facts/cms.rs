//! Signed data (CMS, RFC 5652; PKCS #7), as clouds sign what they say of an instance.
//!
//! AWS sends BER of indefinite length, so this reads BER. One signer, content enclosed, is all that is accepted.

use ring::{
    digest,
    signature::{self, UnparsedPublicKey, VerificationAlgorithm},
};
use x509_parser::{
    asn1_rs::{Any, Class, FromBer, Oid, Tag},
    certificate::X509Certificate,
    prelude::FromDer,
};

use super::FactError;

/// Certificates in one message that are looked at.
const CERTIFICATES_MAX: usize = 16;
/// Depth of octet strings within octet strings.
const NESTING_MAX: usize = 4;

// RFC 5652, sections 4, 5.1, 11.1, 11.2.
const ID_DATA: &str = "1.2.840.113549.1.7.1";
const ID_SIGNED_DATA: &str = "1.2.840.113549.1.7.2";
const ID_CONTENT_TYPE: &str = "1.2.840.113549.1.9.3";
const ID_MESSAGE_DIGEST: &str = "1.2.840.113549.1.9.4";
// RFC 8017, appendix C; RFC 5758.
const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";
const SHA256_WITH_RSA: &str = "1.2.840.113549.1.1.11";
const SHA384_WITH_RSA: &str = "1.2.840.113549.1.1.12";
const SHA512_WITH_RSA: &str = "1.2.840.113549.1.1.13";
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const ECDSA_WITH_SHA256: &str = "1.2.840.10045.4.3.2";

/// A parsed message. Its content is only to be had with a certificate that verifies it.
#[derive(Debug)]
pub struct SignedData<'a> {
    content: Vec<u8>,
    content_type: String,
    certificates: Vec<&'a [u8]>,
    issuer: &'a [u8],
    serial: &'a [u8],
    digest: Digest,
    algorithm: String,
    // As they are signed: a SET (RFC 5652, section 5.4).
    attributes: Option<Vec<u8>>,
    signature: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digest {
    Sha256,
    Sha384,
    Sha512,
}

/// What the parser says of bytes it cannot read.
type Parsed<T> = Result<T, &'static str>;

impl<'a> SignedData<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// If it is malformed, or of a kind that is not used here. `what` names it in the error.
    pub fn parse(what: &str, bytes: &'a [u8]) -> Result<Self, FactError> {
        parse(bytes).map_err(|problem| FactError::malformed(what, format!("is no signed message: {problem}")))
    }

    /// The certificates it brings along; nobody vouched for them.
    pub fn certificates(&self) -> &[&'a [u8]] {
        &self.certificates
    }

    /// Whether this is the certificate the signer names, by issuer and serial number.
    pub fn names(&self, certificate: &X509Certificate<'_>) -> bool {
        certificate.issuer().as_raw() == self.issuer && trimmed(certificate.raw_serial()) == trimmed(self.serial)
    }

    /// The content, if the key of this certificate signed it. Whether the certificate is to be trusted is the caller's
    /// question.
    ///
    /// # Errors
    /// If it did not, or with an algorithm that is not accepted. `what` names the message in the error.
    pub fn verify(&self, what: &str, certificate: &X509Certificate<'_>) -> Result<&[u8], FactError> {
        let untrusted = |problem: &str| FactError::untrusted(what, problem);
        let key = certificate.public_key();
        let algorithm = self.algorithm(&key.algorithm.algorithm.to_id_string()).ok_or_else(|| {
            untrusted("is signed with an algorithm that is not accepted; RSA or P-256 with SHA-2 are")
        })?;
        let signed = match &self.attributes {
            Some(attributes) => {
                self.check_attributes(attributes).map_err(untrusted)?;
                attributes.as_slice()
            }
            // RFC 5652, section 5.3: there must be attributes if the content is of any other type.
            None if self.content_type == ID_DATA => self.content.as_slice(),
            None => return Err(untrusted("lacks signed attributes")),
        };
        UnparsedPublicKey::new(algorithm, &key.subject_public_key.data)
            .verify(signed, &self.signature)
            .map_err(|_| untrusted("has a wrong signature"))?;
        Ok(&self.content)
    }

    fn algorithm(&self, key: &str) -> Option<&'static dyn VerificationAlgorithm> {
        match (key, self.algorithm.as_str(), self.digest) {
            (RSA_ENCRYPTION, RSA_ENCRYPTION | SHA256_WITH_RSA, Digest::Sha256) => {
                Some(&signature::RSA_PKCS1_2048_8192_SHA256)
            }
            (RSA_ENCRYPTION, RSA_ENCRYPTION | SHA384_WITH_RSA, Digest::Sha384) => {
                Some(&signature::RSA_PKCS1_2048_8192_SHA384)
            }
            (RSA_ENCRYPTION, RSA_ENCRYPTION | SHA512_WITH_RSA, Digest::Sha512) => {
                Some(&signature::RSA_PKCS1_2048_8192_SHA512)
            }
            (EC_PUBLIC_KEY, ECDSA_WITH_SHA256, Digest::Sha256) => Some(&signature::ECDSA_P256_SHA256_ASN1),
            _ => None,
        }
    }

    /// The attributes name this very content (RFC 5652, section 5.6).
    fn check_attributes(&self, attributes: &[u8]) -> Parsed<()> {
        let (set, _) = next(attributes)?;
        let (mut content_type, mut message_digest) = (None, None);
        for attribute in items(set.body) {
            let attribute = attribute?.expect(Tag::Sequence)?;
            let (kind, rest) = next(attribute.body)?;
            let (values, _) = next(rest)?;
            let slot = match kind.oid()?.as_str() {
                ID_CONTENT_TYPE => &mut content_type,
                ID_MESSAGE_DIGEST => &mut message_digest,
                _ => continue,
            };
            let mut values = items(values.expect(Tag::Set)?.body);
            let (Some(value), None) = (values.next(), values.next()) else {
                return Err("has a signed attribute without a single value");
            };
            if slot.replace(value?).is_some() {
                return Err("has a signed attribute twice");
            }
        }
        let content_type = content_type.ok_or("lacks the signed content type")?;
        let message_digest = message_digest.ok_or("lacks the signed digest")?;
        if content_type.oid()? != self.content_type {
            return Err("signs another type of content");
        }
        let computed = digest::digest(self.digest.ring(), &self.content);
        if message_digest.expect(Tag::OctetString)?.body != computed.as_ref() {
            return Err("has another content than was signed");
        }
        Ok(())
    }
}

impl Digest {
    // RFC 5754, section 2.
    fn from_oid(oid: &str) -> Option<Self> {
        match oid {
            "2.16.840.1.101.3.4.2.1" => Some(Self::Sha256),
            "2.16.840.1.101.3.4.2.2" => Some(Self::Sha384),
            "2.16.840.1.101.3.4.2.3" => Some(Self::Sha512),
            _ => None,
        }
    }

    fn ring(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }
}

/// Certificates of a PEM or DER file, parsed; what is no certificate is left out.
pub(super) fn parse_certificate(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, certificate)| certificate)
}

fn parse(bytes: &[u8]) -> Parsed<SignedData<'_>> {
    let (message, behind) = next(bytes)?;
    if !behind.is_empty() {
        return Err("there are bytes behind it");
    }
    let (kind, rest) = next(message.expect(Tag::Sequence)?.body)?;
    if kind.oid()? != ID_SIGNED_DATA {
        return Err("it is of another type than signed data");
    }
    let (data, _) = next(next(rest)?.0.context(0)?.body)?;
    let (version, rest) = next(data.expect(Tag::Sequence)?.body)?;
    version.expect(Tag::Integer)?;
    let (algorithms, rest) = next(rest)?;
    algorithms.expect(Tag::Set)?;
    let (enclosed, rest) = next(rest)?;
    let (content_type, content) = next(enclosed.expect(Tag::Sequence)?.body)?;
    let content = next(content).map_err(|_| "it does not enclose its content")?.0.context(0)?;
    let content = next(content.body)?.0.octets(NESTING_MAX)?;
    let (certificates, signers) = certificates_and_signers(rest)?;
    let mut signers = items(signers.body);
    let (Some(signer), None) = (signers.next(), signers.next()) else {
        return Err("it does not have exactly one signer");
    };
    signed_by(signer?, SignedContent { content, content_type: content_type.oid()?, certificates })
}

struct SignedContent<'a> {
    content: Vec<u8>,
    content_type: String,
    certificates: Vec<&'a [u8]>,
}

fn certificates_and_signers<'a>(mut rest: &'a [u8]) -> Parsed<(Vec<&'a [u8]>, Item<'a>)> {
    let mut certificates = Vec::new();
    loop {
        let (item, behind) = next(rest)?;
        rest = behind;
        if item.is_context(0) {
            for certificate in items(item.body).take(CERTIFICATES_MAX) {
                certificates.push(certificate?.whole);
            }
        } else if !item.is_context(1) {
            return Ok((certificates, item.expect(Tag::Set)?));
        }
    }
}

fn signed_by<'a>(signer: Item<'a>, signed: SignedContent<'a>) -> Parsed<SignedData<'a>> {
    let (version, rest) = next(signer.expect(Tag::Sequence)?.body)?;
    version.expect(Tag::Integer)?;
    let (named, rest) = next(rest)?;
    let (issuer, serial) =
        next(named.expect(Tag::Sequence).map_err(|_| "its signer is not named by issuer and serial number")?.body)?;
    let serial = next(serial)?.0.expect(Tag::Integer)?.body;
    let (digest, rest) = algorithm(rest)?;
    let digest = Digest::from_oid(&digest).ok_or("its digest is none of SHA-2")?;
    let (mut item, mut rest) = next(rest)?;
    let mut attributes = None;
    if item.is_context(0) {
        attributes = Some(item.as_set()?);
        (item, rest) = next(rest)?;
    }
    let (kind, _) = next(item.expect(Tag::Sequence)?.body)?;
    let signature = next(rest)?.0.octets(NESTING_MAX)?;
    let SignedContent { content, content_type, certificates } = signed;
    Ok(SignedData {
        content,
        content_type,
        certificates,
        issuer: issuer.whole,
        serial,
        digest,
        algorithm: kind.oid()?,
        attributes,
        signature,
    })
}

/// An AlgorithmIdentifier's OID; parameters are none or NULL for all that are accepted.
fn algorithm(bytes: &[u8]) -> Parsed<(String, &[u8])> {
    let (identifier, rest) = next(bytes)?;
    let (oid, _) = next(identifier.expect(Tag::Sequence)?.body)?;
    Ok((oid.oid()?, rest))
}

/// An element.
#[derive(Clone, Copy)]
struct Item<'a> {
    class: Class,
    tag: Tag,
    constructed: bool,
    definite: bool,
    body: &'a [u8],
    whole: &'a [u8],
}

fn next(bytes: &[u8]) -> Parsed<(Item<'_>, &[u8])> {
    let (rest, any) = Any::from_ber(bytes).map_err(|_| "it is truncated or no BER")?;
    let item = Item {
        class: any.header.class(),
        tag: any.header.tag(),
        constructed: any.header.constructed(),
        definite: any.header.length().is_definite(),
        body: any.data,
        whole: &bytes[..bytes.len() - rest.len()],
    };
    Ok((item, rest))
}

/// The elements one after another; an error is the last.
fn items(mut bytes: &[u8]) -> impl Iterator<Item = Parsed<Item<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let read = next(bytes);
        bytes = read.map_or(&[], |(_, rest)| rest);
        Some(read.map(|(item, _)| item))
    })
}

impl<'a> Item<'a> {
    fn expect(self, tag: Tag) -> Parsed<Self> {
        if self.class == Class::Universal && self.tag == tag { Ok(self) } else { Err("an element is of another type") }
    }

    fn is_context(&self, number: u32) -> bool {
        self.class == Class::ContextSpecific && self.tag == Tag(number) && self.constructed
    }

    fn context(self, number: u32) -> Parsed<Self> {
        if self.is_context(number) { Ok(self) } else { Err("an element lacks its tag") }
    }

    fn oid(self) -> Parsed<String> {
        let item = self.expect(Tag::Oid)?;
        if item.body.is_empty() {
            Err("an object identifier is empty")
        } else {
            Ok(Oid::new(item.body.into()).to_id_string())
        }
    }

    /// An octet string, put together if it comes in pieces (X.690, section 8.7).
    fn octets(self, depth: usize) -> Parsed<Vec<u8>> {
        let item = self.expect(Tag::OctetString)?;
        if !item.constructed {
            return Ok(item.body.into());
        }
        let depth = depth.checked_sub(1).ok_or("an octet string is nested too deep")?;
        let mut whole = Vec::new();
        for piece in items(item.body) {
            whole.extend(piece?.octets(depth)?);
        }
        Ok(whole)
    }

    /// The same bytes with the tag of a SET in place of `[0]`: what the signature is over.
    fn as_set(&self) -> Parsed<Vec<u8>> {
        if !self.definite {
            return Err("its signed attributes are not DER");
        }
        let mut bytes = self.whole.to_vec();
        *bytes.first_mut().ok_or("its signed attributes are empty")? = 0x31;
        Ok(bytes)
    }
}

/// A number without leading zeros.
fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

#[cfg(test)]
mod tests;
