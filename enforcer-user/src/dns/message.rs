//! One DNS message: the question, and the addresses an answer gives for it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::{RData, SVCB, SVCParam};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, RCODE, ResourceRecord};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Chosen by who asks.
    pub id: u16,
    /// In lower case, without the final dot.
    pub name: String,
    /// Type of record (IANA, "Resource Record (RR) TYPEs").
    pub kind: u16,
}

/// An address, and for how many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The address.
    pub address: IpAddr,
    /// The least time to live on the way to it, seconds.
    pub ttl: u32,
}

/// A message of one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Of a client.
    Question(Question),
    /// Of a server, with what it found; nothing if it reports an error.
    Answer(Question, Vec<Found>),
}

/// Types whose answers may bring the addresses along in the additional section (RFC 9460 section 4.2): SVCB and HTTPS.
const SERVICES: [u16; 2] = [64, 65];
/// Names that are followed from one to the next.
const CHAIN_MAX: usize = 16;
/// Records that are looked at.
const RECORDS_MAX: usize = 512;

/// Reads a message as it is sent over UDP. `None` for what is malformed, and for what nothing is learned from: other
/// classes and operations, several questions, names that are no host names.
pub fn read(bytes: &[u8]) -> Option<Message> {
    let packet = Packet::parse(bytes).ok()?;
    let [asked] = packet.questions.as_slice() else { return None };
    if asked.qclass != QCLASS::CLASS(CLASS::IN) || packet.opcode() != OPCODE::StandardQuery {
        return None;
    }
    let question = Question { id: packet.id(), name: text(&asked.qname)?, kind: asked.qtype.into() };
    if !packet.has_flags(PacketFlag::RESPONSE) {
        return Some(Message::Question(question));
    }
    let found = if packet.rcode() == RCODE::NoError { found(&packet, &question) } else { Vec::new() };
    Some(Message::Answer(question, found))
}

/// The addresses of the name asked for, and of what it is another name for.
fn found(packet: &Packet<'_>, question: &Question) -> Vec<Found> {
    let additional = if SERVICES.contains(&question.kind) { packet.additional_records.as_slice() } else { &[] };
    let records: Vec<(String, &ResourceRecord<'_>)> = packet
        .answers
        .iter()
        .chain(additional)
        .take(RECORDS_MAX)
        .filter(|record| record.class == CLASS::IN)
        .filter_map(|record| Some((text(&record.name)?, record)))
        .collect();
    let mut names = BTreeMap::from([(question.name.clone(), u32::MAX)]);
    for _ in 0..CHAIN_MAX {
        let known = names.len();
        for (owner, record) in &records {
            let (Some(&ttl), Some(target)) = (names.get(owner), leads_to(&record.rdata)) else { continue };
            names.entry(target).or_insert(ttl.min(record.ttl));
        }
        if names.len() == known {
            break;
        }
    }
    let mut found = Vec::new();
    for (owner, record) in &records {
        let Some(ttl) = names.get(owner).map(|ttl| record.ttl.min(*ttl)) else { continue };
        found.extend(addresses(&record.rdata).into_iter().map(|address| Found { address, ttl }));
    }
    found
}

fn leads_to(data: &RData<'_>) -> Option<String> {
    match data {
        RData::CNAME(name) => text(&name.0),
        RData::HTTPS(https) => text(&https.0.target),
        RData::SVCB(service) => text(&service.target),
        _ => None,
    }
}

fn addresses(data: &RData<'_>) -> Vec<IpAddr> {
    match data {
        RData::A(a) => vec![Ipv4Addr::from_bits(a.address).into()],
        RData::AAAA(aaaa) => vec![Ipv6Addr::from_bits(aaaa.address).into()],
        RData::HTTPS(https) => hints(&https.0),
        RData::SVCB(service) => hints(service),
        _ => Vec::new(),
    }
}

/// Addresses of the target, to connect to before its own records are there.
fn hints(service: &SVCB<'_>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for param in service.iter_params() {
        match param {
            SVCParam::Ipv4Hint(list) => all.extend(list.iter().map(|bits| IpAddr::from(Ipv4Addr::from_bits(*bits)))),
            SVCParam::Ipv6Hint(list) => all.extend(list.iter().map(|bits| IpAddr::from(Ipv6Addr::from_bits(*bits)))),
            _ => {}
        }
    }
    all
}

/// The name as policies have it. `None` for the root, and for labels that hold what no host name does: a dot inside a
/// label would make one name look like another.
fn text(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for bytes in name.as_bytes() {
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if bytes.is_empty() || !bytes.iter().all(fits) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(bytes.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}
