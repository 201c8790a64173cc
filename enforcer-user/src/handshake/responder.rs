//! The server's end: a HELLO on a SYN, later the CONFIRM.

use std::sync::Arc;

use common::{
    flow::{Flow, PATH_HELLO, SERVER, SYN_RECEIVED},
    wire::{self, CONFIRM, HELLO, HELLO_COOKIE, HELLO_REPLY, OptionBytes, Transcript},
};

use super::{Frame, HandshakeError, LocalPu, Own, Session, sessions::same_mac};
use crate::identity::{VerifiedCredential, Verifier};

/// A SYN whose HELLO was found right. Its sender may still be replaying: only CONFIRM proves it live.
#[derive(Clone, Debug)]
pub struct Hello {
    peer: Arc<VerifiedCredential>,
    isn: u32,
}

/// A connection that may go on to SYN-ACK, if the caller's policy allows it.
#[derive(Clone, Debug)]
pub struct Accept {
    /// The client's credential.
    pub peer: Arc<VerifiedCredential>,
    /// The session; to be written to `SESSIONS` before the frame is re-injected.
    pub session: Session,
    /// Initial sequence number of the client.
    pub peer_isn: u32,
    local: LocalPu,
}

/// Verifies the HELLO in `frame` at `now` (Unix seconds).
///
/// # Errors
/// With the reason to count, and to send in a DENY.
pub fn authenticate(verifier: &mut Verifier, frame: &Frame<'_>, now: u64) -> Result<Hello, HandshakeError> {
    if !frame.is_syn() {
        return Err(HandshakeError::Unexpected("a SYN"));
    }
    let option = frame.option().filter(|option| option.packet_type() == HELLO && option.flags & !HELLO_COOKIE == 0);
    let option = option.ok_or(HandshakeError::Unexpected("HELLO on a SYN"))?;
    let peer = verifier.verify_hello(&option, frame.payload(), now)?;
    Ok(Hello { peer, isn: frame.seq() })
}

impl Hello {
    /// The client's credential.
    pub fn peer(&self) -> &Arc<VerifiedCredential> {
        &self.peer
    }

    /// Opens or finds the session for the connection to `local`.
    ///
    /// # Errors
    /// If the prekeys do not agree, the session would have ended, or there is no room for it.
    pub fn accept(self, own: &mut Own<'_>, local: LocalPu, now: u64) -> Result<Accept, HandshakeError> {
        // The prekey that the SYN-ACK's credential will show to the client.
        let prekey = own.prekeys.get(local.epoch).ok_or(HandshakeError::OwnPrekey(local.epoch))?;
        let (key, keys) = own.keys(prekey, &self.peer)?;
        let session = own.sessions.open(key, keys, now)?.clone();
        Ok(Accept { peer: self.peer, session, peer_isn: self.isn, local })
    }
}

impl Accept {
    /// Handle of the client's PU.
    pub fn peer_handle(&self) -> u16 {
        self.peer.profile().handle
    }

    /// The flow entry as far as the handshake knows it. Identity of the peer, generation, rules, interfaces and
    /// times are the caller's.
    pub fn flow(&self) -> Flow {
        Flow {
            state: SYN_RECEIVED,
            role: SERVER,
            path: PATH_HELLO,
            local_handle: self.local.handle,
            peer_handle: self.peer_handle(),
            pu: self.local.pu,
            local_identity: self.local.identity,
            session: self.session.index,
            peer_isn: self.peer_isn,
            ..Flow::default()
        }
    }

    /// The option of the SYN-ACK with this initial sequence number, as the kernel writes it.
    pub fn reply(&self, isn: u32) -> OptionBytes {
        let transcript = Transcript { sender_isn: isn, peer_isn: self.peer_isn, peer_handle: self.peer_handle() };
        let Session { index, keys, .. } = &self.session;
        wire::sealed(&keys.outbound, HELLO_REPLY, 0, self.local.handle, *index, &transcript)
    }

    /// Verifies the client's CONFIRM, as the kernel does, given the initial sequence number of the SYN-ACK. Returns
    /// the index the client chose.
    ///
    /// # Errors
    /// [`HandshakeError::ConfirmMac`] if anything in it is wrong.
    pub fn confirm(&self, option: &OptionBytes, isn: u32) -> Result<u32, HandshakeError> {
        let transcript = Transcript { sender_isn: self.peer_isn, peer_isn: isn, peer_handle: self.local.handle };
        let mac = wire::mac(
            &self.session.keys.inbound,
            CONFIRM,
            option.flags,
            self.peer_handle(),
            option.index(),
            &transcript,
        );
        let same = same_mac(mac, option.mac());
        if same && option.packet_type() == CONFIRM && option.handle() == self.peer_handle() && option.index() != 0 {
            return Ok(option.index());
        }
        Err(HandshakeError::ConfirmMac)
    }
}
