//! UPDATE: the tags of a PU changed while its connections live.
//!
//! A segment on the connection itself, so that it finds the peer whatever lies between; no stack ever sees it. Its MAC is under
//! the session's key and covers both initial sequence numbers and the credential, so that it can be moved to no other
//! connection and carry no other credential.

use common::{
    flow::{Flow, FlowKey},
    identity::Session,
    wire::{CREDENTIAL_MAX, OptionBytes, Transcript, UPDATE, UPDATE_HEARD, update_mac},
};

use super::{Frame, HandshakeError, build, sessions::same_mac};
use crate::identity::credential;

/// What an UPDATE turned out to be. Its MAC was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// The peer's PU has another credential: the payload.
    News,
    /// The peer has heard of the credential this enforcer told of.
    Heard,
}

/// The segment that tells the peer of `flow` of the new `credential`, whose hash's second part is `hash`; to the link-layer
/// address `to`.
pub fn news(key: &FlowKey, flow: &Flow, session: &Session, credential: &[u8], hash: u64, to: [u8; 6]) -> Vec<u8> {
    let option = option(flow, session, 0, hash);
    // Where some stack takes it for a segment after all, it is one that came before.
    let seq = flow.next_out.wrapping_sub(credential.len() as u32);
    build::on_flow(key, to, seq, flow.ack_out, &option, credential)
}

/// The segment that tells the peer of `flow` that its news were heard; `hash` is the second part of their hash.
pub fn heard(key: &FlowKey, flow: &Flow, session: &Session, hash: u64, to: [u8; 6]) -> Vec<u8> {
    let option = option(flow, session, UPDATE_HEARD, hash);
    build::on_flow(key, to, flow.next_out, flow.ack_out, &option, &[])
}

fn option(flow: &Flow, session: &Session, flags: u8, hash: u64) -> OptionBytes {
    let transcript = Transcript { sender_isn: flow.local_isn, peer_isn: flow.peer_isn, peer_handle: 0 };
    let mac = update_mac(&session.key_out, flags, flow.local_handle, session.peer_index, &transcript, hash);
    OptionBytes::new(UPDATE, flags, flow.local_handle, session.peer_index, mac)
}

/// Checks the UPDATE in `frame` that came on `flow`, up to but without the credential in it. `told` is the second part of the
/// hash of the credential this enforcer told of, if it did.
///
/// # Errors
/// [`HandshakeError::Update`] if anything is wrong.
pub fn verify(frame: &Frame<'_>, flow: &Flow, session: &Session, told: Option<u64>) -> Result<Update, HandshakeError> {
    let wrong = HandshakeError::Update;
    let option = frame.option().filter(|option| option.packet_type() == UPDATE).ok_or(wrong("no UPDATE"))?;
    if option.index() != flow.session {
        return Err(wrong("another session"));
    }
    let payload = frame.payload();
    let (update, hash) = match option.flags {
        0 if (1..=CREDENTIAL_MAX).contains(&payload.len()) => (Update::News, credential::hash_mac_of(payload)),
        UPDATE_HEARD if payload.is_empty() => (Update::Heard, told.ok_or(wrong("an answer to nothing"))?),
        _ => return Err(wrong("malformed")),
    };
    let transcript = Transcript { sender_isn: flow.peer_isn, peer_isn: flow.local_isn, peer_handle: 0 };
    let mac = update_mac(&session.key_in, option.flags, option.handle(), option.index(), &transcript, hash);
    if !same_mac(mac, option.mac()) {
        return Err(wrong("wrong MAC"));
    }
    Ok(update)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::wire::MacKey;

    const KEY: FlowKey = FlowKey {
        local: [0, 0, common::V4_MAPPED, 1],
        remote: [0, 0, common::V4_MAPPED, 2],
        local_port: 1000,
        remote_port: 2000,
        proto: 6,
        pad: [0; 3],
    };

    /// The two ends of one connection: flow and session of either.
    fn ends() -> [(Flow, Session); 2] {
        let keys = [MacKey { k0: 1, k1: 2 }, MacKey { k0: 3, k1: 4 }];
        let flow = |isns: [u32; 2], session, handle| Flow {
            local_isn: isns[0],
            peer_isn: isns[1],
            session,
            local_handle: handle,
            next_out: isns[0] + 500,
            ack_out: isns[1] + 700,
            ..Flow::default()
        };
        let session = |out: usize, peer_index| Session {
            key_out: keys[out],
            key_in: keys[1 - out],
            until_ns: 0,
            peer_index,
            peer: 0,
        };
        [(flow([10, 20], 7, 1), session(0, 8)), (flow([20, 10], 8, 2), session(1, 7))]
    }

    #[test]
    fn news_and_their_answer_are_understood_and_nothing_else() {
        let [(a, at_a), (b, at_b)] = ends();
        let credential = vec![b'c'; 900];
        let hash = credential::hash_mac_of(&credential);
        let news = news(&KEY, &a, &at_a, &credential, hash, [1; 6]);
        let frame = Frame::parse(&news).unwrap();
        assert_eq!(verify(&frame, &b, &at_b, None), Ok(Update::News));
        assert_eq!(frame.payload(), credential);
        assert_eq!(frame.seq().wrapping_add(900), a.next_out, "nothing new to a stack");
        let heard = heard(&KEY, &b, &at_b, hash, [1; 6]);
        let answer = Frame::parse(&heard).unwrap();
        assert_eq!(verify(&answer, &a, &at_a, Some(hash)), Ok(Update::Heard));
        assert!(verify(&answer, &a, &at_a, Some(hash ^ 1)).is_err(), "heard of something else");
        assert!(verify(&answer, &a, &at_a, None).is_err(), "nothing was told");
        assert!(verify(&frame, &a, &at_a, Some(hash)).is_err(), "reflected");
        for other in [Flow { local_isn: 21, ..b }, Flow { peer_isn: 11, ..b }, Flow { session: 9, ..b }] {
            assert!(verify(&frame, &other, &at_b, None).is_err(), "of another connection");
        }
        // Every bit counts, but for the headers below the option, which the connection's own key was found by.
        let at = news.len() - 920;
        for byte in at..news.len() {
            let mut bytes = news.clone();
            bytes[byte] ^= 1;
            let damaged = Frame::parse(&bytes).unwrap();
            assert!(verify(&damaged, &b, &at_b, None).is_err(), "byte {byte}");
        }
        assert!(verify(&Frame::parse(&news[..news.len()]).unwrap(), &b, &at_b, None).is_ok());
    }
}
