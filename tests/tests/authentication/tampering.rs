//! Flipped bits: in every field of the option and every part of the credential, in each of the three packets, on first
//! contact and on resumption. Checksums are right afterwards, so that the stacks would accept what was changed.

use anyhow::{Result, ensure};
use common::drop_reason::Reason::{self, *};
use ring::digest::{SHA256, digest};
use tests::Outcome::{self, *};
use tests::segment::RST;
use tests::{Fate, Segment, Sighting, Way};

use crate::stage::{Count, Stage, client, for_both_families, server};

/// One of the three packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packet {
    Syn,
    SynAck,
    /// The ACK, and data until the server is heard.
    Confirm,
}

/// A bit of the option: field, byte, mask.
type Bit = (&'static str, usize, u8);

const KIND: Bit = ("kind", 0, 0x01);
const LEN: Bit = ("length", 1, 0x08);
const EXID: Bit = ("experiment's first byte", 2, 0x80);
const EXID_LOW: Bit = ("experiment's second byte", 3, 0x01);
const VERSION: Bit = ("version", 4, 0x20);
const FLAGS: Bit = ("flags", 5, 0x01);
const HANDLE: Bit = ("handle", 6, 0x80);
const HANDLE_LOW: Bit = ("handle's low byte", 7, 0x01);
const INDEX: Bit = ("index", 8, 0x80);
const INDEX_LOW: Bit = ("index's low byte", 11, 0x01);
const MAC: Bit = ("MAC", 12, 0x80);
const MAC_LOW: Bit = ("MAC's last byte", 19, 0x01);

#[test]
fn flipped_bits_on_first_contact_are_refused() -> Result<()> {
    for_both_families("flipfirst", |stage| {
        hello(stage)?;
        hello_payload(stage)?;
        hello_reply(stage)?;
        confirm(stage, true)?;
        stage.forget()?;
        stage.good("first contact, untouched").map(drop)
    })
}

#[test]
fn flipped_bits_on_resumption_are_refused() -> Result<()> {
    for_both_families("flipresume", |stage| {
        stage.good("first contact")?;
        resume(stage)?;
        resume_reply(stage)?;
        confirm(stage, false)?;
        stage.good("resumption, untouched").map(drop)
    })
}

fn hello(stage: &Stage) -> Result<()> {
    let both = |reason| vec![server(reason), client(reason)];
    let table = [
        (vec![KIND, LEN, EXID, EXID_LOW], Timeout, vec![server(NoIdentity)]),
        (vec![VERSION, ("type to none", 4, 0x01)], Timeout, vec![server(HelloMalformed)]),
        (vec![("type to CONFIRM", 4, 0x04), ("type to DENY", 4, 0x09)], Timeout, vec![server(HelloMalformed)]),
        // The hash is an unknown session's index: the client starts over, once.
        (vec![("type to RESUME", 4, 0x02)], Timeout, vec![server(UnknownSession).times(2), client(RetryLoop)]),
        // What anybody could have sent is not answered.
        (vec![FLAGS], Timeout, vec![server(HelloMalformed)]),
        (vec![HANDLE, HANDLE_LOW], Refused, both(ProfileMismatch)),
        (vec![INDEX, INDEX_LOW, MAC, MAC_LOW], Timeout, vec![server(HelloTampered)]),
    ];
    flip_all(stage, "HELLO", Packet::Syn, table)
}

fn hello_payload(stage: &Stage) -> Result<()> {
    for (part, _) in PARTS {
        let flip = on(Packet::Syn, move |segment| flip_payload(segment, part));
        stage.attack(&format!("HELLO, {part} flipped"), flip, Timeout, &[server(HelloTampered)])?;
    }
    // An attacker mends the hash as well: it is no secret. The signature is what holds.
    for (part, reason) in PARTS {
        let flip = on(Packet::Syn, move |segment| {
            flip_payload(segment, part);
            mend_hash(segment);
        });
        stage.attack(&format!("HELLO, {part} flipped, hash mended"), flip, Timeout, &[server(reason)])?;
    }
    let shorter = on(Packet::Syn, |segment| segment.payload.truncate(segment.payload.len() - 1));
    stage.attack("HELLO cut short", shorter, Timeout, &[server(HelloTampered)])?;
    let longer = on(Packet::Syn, |segment| {
        segment.payload.push(0);
        mend_hash(segment);
    });
    stage.attack("HELLO made longer, hash mended", longer, Timeout, &[server(HelloMalformed)])?;
    let none = on(Packet::Syn, |segment| segment.payload.clear());
    stage.attack("HELLO without credential", none, Timeout, &[server(HelloTampered)])
}

fn hello_reply(stage: &Stage) -> Result<()> {
    let both = |reason| vec![client(reason), server(reason)];
    let table = [
        (vec![KIND, LEN, EXID, EXID_LOW], Refused, vec![client(PeerNoIdentity)]),
        (vec![VERSION, ("type to RESUME", 4, 0x01), ("type to none", 4, 0x02)], Timeout, vec![client(HelloMalformed)]),
        // There is no session yet that a RESUME_REPLY could belong to.
        (vec![("type to RESUME_REPLY", 4, 0x06)], Timeout, vec![client(SessionExpired)]),
        (vec![FLAGS], Refused, both(ReplyMac)),
        (vec![HANDLE, HANDLE_LOW], Refused, both(ProfileMismatch)),
        (vec![INDEX, INDEX_LOW, MAC, MAC_LOW], Refused, both(ReplyMac)),
    ];
    flip_all(stage, "HELLO_REPLY", Packet::SynAck, table)?;
    for (part, reason) in PARTS {
        let flip = on(Packet::SynAck, move |segment| flip_payload(segment, part));
        stage.attack(&format!("HELLO_REPLY, {part} flipped"), flip, Refused, &both(reason))?;
    }
    let none = on(Packet::SynAck, |segment| segment.payload.clear());
    stage.attack("HELLO_REPLY without credential", none, Refused, &both(HelloMalformed))?;
    let ack = on(Packet::SynAck, |segment| segment.set_ack(segment.ack() ^ 1));
    stage.attack("HELLO_REPLY for another SYN", ack, Timeout, &[client(ReplyMac)])
}

fn resume(stage: &Stage) -> Result<()> {
    let table = [
        (vec![KIND, LEN, EXID, EXID_LOW], Timeout, vec![server(NoIdentity)]),
        (vec![VERSION, ("type to HELLO_REPLY", 4, 0x01)], Timeout, vec![server(HelloMalformed)]),
        (vec![("type to HELLO", 4, 0x02)], Timeout, vec![server(HelloTampered)]),
        (vec![FLAGS, HANDLE, HANDLE_LOW, MAC, MAC_LOW], Timeout, vec![server(ResumeMac)]),
    ];
    flip_all(stage, "RESUME", Packet::Syn, table)?;
    let isn = on(Packet::Syn, |segment| segment.set_seq(segment.seq() ^ 1));
    stage.attack("RESUME with another ISN", isn, Timeout, &[server(ResumeMac)])?;
    let payload = on(Packet::Syn, |segment| segment.payload = b"early".to_vec());
    stage.attack("RESUME with payload", payload, Timeout, &[server(HelloMalformed)])?;
    // An unknown index only costs the client a round trip: it introduces itself.
    for (field, byte, mask) in [INDEX, INDEX_LOW] {
        let mut first = true;
        let flip = on(Packet::Syn, move |segment| {
            if std::mem::take(&mut first) {
                flip_option(segment, byte, mask);
            }
        });
        let seen = stage.nuisance(&format!("RESUME, {field} flipped"), flip, &[server(UnknownSession)])?;
        let syns: Vec<_> = seen.into_iter().filter(|seen| seen.original.is_syn()).collect();
        ensure!(syns.len() == 2 && syns[1].original.payload.len() > 100, "RETRY is answered by a HELLO: {syns:?}");
    }
    Result::Ok(())
}

fn resume_reply(stage: &Stage) -> Result<()> {
    let table = [
        (vec![KIND, LEN, EXID, EXID_LOW], Refused, vec![client(IdentityMissing)]),
        (vec![VERSION, ("type to none", 4, 0x04), ("type to RETRY", 4, 0x02)], Timeout, vec![client(HelloMalformed)]),
        (vec![("type to HELLO_REPLY", 4, 0x06)], Refused, vec![client(HelloMalformed), server(HelloMalformed)]),
        (vec![FLAGS, HANDLE, HANDLE_LOW, INDEX, INDEX_LOW, MAC, MAC_LOW], Timeout, vec![client(ReplyMac)]),
    ];
    flip_all(stage, "RESUME_REPLY", Packet::SynAck, table)?;
    let isn = on(Packet::SynAck, |segment| segment.set_seq(segment.seq() ^ 1));
    stage.attack("RESUME_REPLY with another ISN", isn, Timeout, &[client(ReplyMac)])?;
    let ack = on(Packet::SynAck, |segment| segment.set_ack(segment.ack() ^ 1));
    stage.attack("RESUME_REPLY for another SYN", ack, Timeout, &[client(ReplyMac)])?;
    let payload = on(Packet::SynAck, |segment| segment.payload = b"early".to_vec());
    stage.attack("RESUME_REPLY with payload", payload, Timeout, &[client(HelloMalformed)])
}

/// The client is connected, for it has seen the server's proof; nothing it sends arrives.
fn confirm(stage: &Stage, first_contact: bool) -> Result<()> {
    let path = if first_contact { "after HELLO" } else { "after RESUME" };
    let table = [
        (vec![KIND, LEN, EXID, EXID_LOW], Unconfirmed),
        (vec![VERSION, ("type to HELLO", 4, 0x04), ("type to RETRY", 4, 0x03)], ConfirmMac),
        (vec![FLAGS, HANDLE, HANDLE_LOW, INDEX, INDEX_LOW, MAC, MAC_LOW], ConfirmMac),
    ];
    for (bits, reason) in table {
        for (field, byte, mask) in bits {
            if first_contact {
                stage.forget()?;
            }
            let what = format!("CONFIRM {path}, {field} flipped");
            let flip = on(Packet::Confirm, move |segment| flip_option(segment, byte, mask));
            stage.attack_counting(&what, flip, Timeout, |seen| vec![server(reason).times(confirms(seen))])?;
            let payload =
                stage.mitm.seen().iter().any(|seen| {
                    seen.way == Way::FromHost && seen.forwarded.is_some() && seen.original.payload == b"ping"
                });
            ensure!(payload, "{what}: the client's data was on its way, too");
            let introduced =
                stage.mitm.seen().iter().any(|seen| seen.original.is_syn() && !seen.original.payload.is_empty());
            ensure!(introduced == first_contact, "{what}: of the wrong path");
        }
    }
    Result::Ok(())
}

/// How many segments behind the SYN were let through to the server.
pub fn confirms(seen: &[Sighting]) -> u64 {
    let passed = seen.iter().filter(|seen| seen.way == Way::FromHost).filter_map(|seen| seen.forwarded.as_ref());
    passed.filter(|segment| !segment.is_syn() && segment.flags() & RST == 0).count() as u64
}

type Row = (Vec<Bit>, Outcome, Vec<Count>);

fn flip_all(stage: &Stage, name: &str, packet: Packet, table: impl IntoIterator<Item = Row>) -> Result<()> {
    for (bits, outcome, counts) in table {
        for (field, byte, mask) in bits {
            let flip = on(packet, move |segment| flip_option(segment, byte, mask));
            stage.attack(&format!("{name}, {field} flipped"), flip, outcome, &counts)?;
        }
    }
    Result::Ok(())
}

/// A script that changes one of the packets, each time it comes, and lets everything pass.
pub fn on(
    packet: Packet,
    mut change: impl FnMut(&mut Segment) + Send + 'static,
) -> impl FnMut(Way, &mut Segment) -> Fate + Send + 'static {
    move |way, segment| {
        let this = match (way, segment.is_syn(), segment.is_syn_ack()) {
            (Way::FromHost, true, _) => Some(Packet::Syn),
            (Way::ToHost, _, true) => Some(Packet::SynAck),
            (Way::FromHost, ..) if segment.flags() & RST == 0 => Some(Packet::Confirm),
            _ => None,
        };
        if this == Some(packet) {
            change(segment);
        }
        Fate::Forward
    }
}

fn flip_option(segment: &mut Segment, byte: usize, mask: u8) {
    if let Some(option) = segment.identity_mut() {
        option[byte] ^= mask;
    }
}

/// The parts of a credential, and why one with a flipped bit in it is refused once its hash is right.
const PARTS: [(&str, Reason); 6] = [
    ("version", HelloMalformed),
    ("length of the certificate", HelloMalformed),
    ("length of the profile", HelloMalformed),
    ("certificate", CredentialSignature),
    ("profile", CredentialSignature),
    ("signature", CredentialSignature),
];

fn flip_payload(segment: &mut Segment, part: &str) {
    let payload = &mut segment.payload;
    let length = |at: usize| usize::from(u16::from_be_bytes([payload[at], payload[at + 1]]));
    let (certificate, profile) = (length(1), length(3));
    let at = match part {
        "version" => 0,
        "length of the certificate" => 2,
        "length of the profile" => 4,
        // The last byte of the authority's signature.
        "certificate" => 5 + certificate - 1,
        // In the middle of the tags, prekey, times.
        "profile" => 5 + certificate + profile / 2,
        _ => payload.len() - 1,
    };
    payload[at] ^= 1;
}

/// What the option of a HELLO says of its payload.
pub fn mend_hash(segment: &mut Segment) {
    let hash = digest(&SHA256, &segment.payload);
    if let Some(option) = segment.identity_mut() {
        option[8..].copy_from_slice(&hash.as_ref()[..12]);
    }
}
