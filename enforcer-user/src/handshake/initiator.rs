//! The client's end: a HELLO_REPLY on a SYN-ACK.

use std::sync::Arc;

use common::{
    flow::{CLIENT, CONFIRMING, Flow, PATH_HELLO},
    wire::{self, CONFIRM, HELLO_REPLY, OptionBytes, Transcript},
};

use super::{
    Frame, HandshakeError, LocalPu, Own, Session,
    build::DenyProof,
    sessions::{IN_FLIGHT, same_mac},
};
use crate::identity::{VerifiedCredential, Verifier};

/// A server that proved itself live; the connection may be released if the caller's policy allows it.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The server's credential.
    pub peer: Arc<VerifiedCredential>,
    /// The session, with the index the server chose; to be written to `SESSIONS` before the frame is re-injected.
    pub session: Session,
    /// What the client's ACK carries.
    pub confirm: OptionBytes,
    /// Initial sequence number of the server.
    pub peer_isn: u32,
    isn: u32,
    local: LocalPu,
}

/// A HELLO_REPLY whose credential was found right. Its sender may still be replaying: only the MAC proves it live.
#[derive(Clone, Debug)]
pub struct Shown {
    option: OptionBytes,
    peer: Arc<VerifiedCredential>,
}

/// Verifies the credential in the HELLO_REPLY in `frame` at `now` (Unix seconds): the slow part, which needs nothing but the
/// verifier.
///
/// # Errors
/// With the reason to count, and to send in a DENY.
pub fn verify(verifier: &mut Verifier, frame: &Frame<'_>, now: u64) -> Result<Shown, HandshakeError> {
    if !frame.is_syn_ack() {
        return Err(HandshakeError::Unexpected("a SYN-ACK"));
    }
    let option = frame.option().filter(|option| option.packet_type() == HELLO_REPLY);
    let option = option.ok_or(HandshakeError::Unexpected("HELLO_REPLY on a SYN-ACK"))?;
    let peer = verifier.verify(frame.payload(), now)?;
    peer.check_handle(option.handle())?;
    Ok(Shown { option, peer })
}

/// Verifies the HELLO_REPLY in `frame` at `now` (Unix seconds), for the connection that `local` opened with the initial
/// sequence number `isn`: [`verify`], then [`Shown::authenticate`].
///
/// # Errors
/// With the reason to count, and to send in a DENY.
pub fn authenticate(
    verifier: &mut Verifier,
    own: &mut Own<'_>,
    local: LocalPu,
    isn: u32,
    frame: &Frame<'_>,
    now: u64,
) -> Result<Reply, HandshakeError> {
    verify(verifier, frame, now)?.authenticate(own, local, isn, frame, now)
}

impl Shown {
    /// Proves the sender of `frame` live, for the connection that `local` opened with the initial sequence number `isn`, and
    /// opens or finds the session.
    ///
    /// # Errors
    /// With the reason to count, and to send in a DENY.
    pub fn authenticate(
        self,
        own: &mut Own<'_>,
        local: LocalPu,
        isn: u32,
        frame: &Frame<'_>,
        now: u64,
    ) -> Result<Reply, HandshakeError> {
        let Self { option, peer } = self;
        let transcript = Transcript { sender_isn: frame.seq(), peer_isn: isn, peer_handle: local.handle };
        // The credential on our SYN may be older than the one we would attach now: try every prekey the server may have
        // seen, the likeliest first.
        let mut prekeys = own.prekeys.live();
        prekeys.sort_by_key(|prekey| prekey.epoch != local.epoch);
        for prekey in prekeys {
            let (key, keys) = own.keys(prekey, &peer)?;
            let mac = wire::mac(&keys.inbound, HELLO_REPLY, option.flags, option.handle(), option.index(), &transcript);
            if !same_mac(mac, option.mac()) {
                continue;
            }
            if option.index() == 0 || frame.ack() != isn.wrapping_add(1) {
                return Err(HandshakeError::ReplyMac);
            }
            // The server opened it in time; that its answer was on its way meanwhile makes nothing new of it.
            let index = own.sessions.open(key, keys, now.saturating_sub(IN_FLIGHT))?.index;
            own.sessions.set_peer_index(index, option.index());
            let session = own.sessions.get(index).cloned().ok_or(HandshakeError::SessionEnded)?;
            let transcript = Transcript { sender_isn: isn, peer_isn: frame.seq(), peer_handle: option.handle() };
            let confirm = wire::sealed(&keys.outbound, CONFIRM, 0, local.handle, index, &transcript);
            return Ok(Reply { peer, session, confirm, peer_isn: frame.seq(), isn, local });
        }
        Err(HandshakeError::ReplyMac)
    }

    /// As [`Self::authenticate`], for an answer to a RESUME: the server resumed `session` but shows its credential because this
    /// enforcer has not seen it, or no longer. The MAC is the session's, whatever prekey the credential shows by now.
    ///
    /// # Errors
    /// As [`Self::authenticate`]; a credential of another enforcer is [`HandshakeError::ReplyMac`].
    pub fn authenticate_in(
        self,
        session: Session,
        local: LocalPu,
        isn: u32,
        frame: &Frame<'_>,
    ) -> Result<Reply, HandshakeError> {
        let Self { option, peer } = self;
        let transcript = Transcript { sender_isn: frame.seq(), peer_isn: isn, peer_handle: local.handle };
        let mac =
            wire::mac(&session.keys.inbound, HELLO_REPLY, option.flags, option.handle(), option.index(), &transcript);
        let whole = same_mac(mac, option.mac()) && option.index() == session.peer_index;
        if !whole || *peer.enforcer() != session.key.peer || frame.ack() != isn.wrapping_add(1) {
            return Err(HandshakeError::ReplyMac);
        }
        let transcript = Transcript { sender_isn: isn, peer_isn: frame.seq(), peer_handle: option.handle() };
        let confirm = wire::sealed(&session.keys.outbound, CONFIRM, 0, local.handle, session.index, &transcript);
        Ok(Reply { peer, session, confirm, peer_isn: frame.seq(), isn, local })
    }
}

impl Reply {
    /// Handle of the server's PU.
    pub fn peer_handle(&self) -> u16 {
        self.peer.profile().handle
    }

    /// With this the server can be sent a DENY that it believes.
    pub fn deny_proof(&self) -> DenyProof<'_> {
        DenyProof { key: &self.session.keys.outbound, peer_index: self.session.peer_index }
    }

    /// The flow entry as far as the handshake knows it. Identity of the peer, generation, rules, interfaces, counters
    /// and times are the caller's.
    pub fn flow(&self) -> Flow {
        Flow {
            state: CONFIRMING,
            role: CLIENT,
            path: PATH_HELLO,
            local_handle: self.local.handle,
            peer_handle: self.peer_handle(),
            pu: self.local.pu,
            local_identity: self.local.identity,
            session: self.session.index,
            local_isn: self.isn,
            peer_isn: self.peer_isn,
            confirm_mac: self.confirm.mac(),
            ..Flow::default()
        }
    }
}
