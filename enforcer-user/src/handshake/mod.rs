//! The handshake of two enforcers as a pure state machine: frames and times in, decisions and frames out.
//!
//! A held frame is taken apart by [`Frame::parse`]. At the server [`responder::authenticate`] verifies the HELLO and
//! [`responder::Hello::accept`] opens or finds the session; at the client [`initiator::authenticate`] does both for the
//! HELLO_REPLY, whose MAC proves the server live, and yields the CONFIRM. Judging lies between, with the caller.

pub mod build;
pub mod datagram;
pub mod frame;
pub mod initiator;
pub mod responder;
pub mod sessions;
pub mod update;

use common::drop_reason::Reason;

pub use frame::{Frame, FrameError};
pub use sessions::{Session, SessionDoc, SessionKey, Sessions};

use crate::identity::{
    DirectionKeys, EnforcerId, Prekeys, PublicPrekey, VerifiedCredential,
    prekey::PrekeyError,
    session_keys::{self, Party},
    verify::CredentialError,
};

/// The end of a connection on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalPu {
    /// Index of the PU.
    pub pu: u32,
    /// Its identity.
    pub identity: u32,
    /// Its handle, as in its credential.
    pub handle: u16,
    /// Epoch of the prekey in its credential.
    pub epoch: u32,
}

/// Why a handshake packet was refused. Each is one [`Reason`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The frame is not one that can be held.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Not a packet of the expected type.
    #[error("expected {0}")]
    Unexpected(&'static str),
    /// The credential is wrong.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The peer's signed prekey is unusable.
    #[error("prekey: {0}")]
    PeerPrekey(PrekeyError),
    /// The prekey of the local PU's credential is gone: the credential is overdue for renewal.
    #[error("the local PU's credential has no living prekey (epoch {0})")]
    OwnPrekey(u32),
    /// The session would have ended already.
    #[error("the session would have ended already")]
    SessionEnded,
    /// No room for another session.
    #[error("all {0} sessions are in use")]
    SessionsFull(usize),
    /// The answer's MAC is wrong, or of another connection.
    #[error("wrong MAC in the answer")]
    ReplyMac,
    /// A message about changed tags that is not one.
    #[error("UPDATE: {0}")]
    Update(&'static str),
    /// The confirmation's MAC is wrong, or of another connection.
    #[error("wrong MAC in the confirmation")]
    ConfirmMac,
}

impl HandshakeError {
    /// The reason under which this is counted and reported.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Frame(error) => error.reason(),
            Self::Unexpected(_) => Reason::HelloMalformed,
            Self::Credential(error) => error.reason(),
            Self::PeerPrekey(_) => Reason::ProfileMismatch,
            Self::OwnPrekey(_) => Reason::NoCredential,
            Self::SessionEnded => Reason::SessionExpired,
            Self::SessionsFull(_) => Reason::TableFull,
            Self::ReplyMac => Reason::ReplyMac,
            Self::Update(_) => Reason::UpdateVoid,
            Self::ConfirmMac => Reason::ConfirmMac,
        }
    }
}

/// This enforcer's share in every handshake.
pub struct Own<'a> {
    /// Its id.
    pub id: &'a EnforcerId,
    /// Its prekeys.
    pub prekeys: &'a mut Prekeys,
    /// Its sessions.
    pub sessions: &'a mut Sessions,
}

impl Own<'_> {
    /// Keys and end of the session between the own prekey `own` and the peer's.
    fn keys(
        &mut self,
        own: PublicPrekey,
        peer: &VerifiedCredential,
    ) -> Result<(SessionKey, DirectionKeys), HandshakeError> {
        let key = SessionKey { peer: peer.enforcer().clone(), own, remote: peer.prekey() };
        if let Some(session) = self.sessions.find(&key) {
            return Ok((key, session.keys));
        }
        let shared = self.prekeys.agree(own.epoch, &key.remote.key).map_err(|error| match error {
            PrekeyError::NonContributory => HandshakeError::PeerPrekey(error),
            _ => HandshakeError::OwnPrekey(own.epoch),
        })?;
        let keys = session_keys::derive(
            &shared,
            Party { id: self.id, prekey: own },
            Party { id: &key.peer, prekey: key.remote },
        );
        Ok((key, keys))
    }

    /// The session this enforcer has with itself under its current prekey, for PUs on one host; opened if need be.
    ///
    /// # Errors
    /// If there is no room for another session.
    pub fn self_session(&mut self, now: u64) -> Result<Session, HandshakeError> {
        let own = self.prekeys.current();
        let shared = self.prekeys.agree(own.epoch, &own.key).map_err(HandshakeError::PeerPrekey)?;
        let party = Party { id: self.id, prekey: own };
        let keys = session_keys::derive(&shared, party, party);
        let key = SessionKey { peer: self.id.clone(), own, remote: own };
        let index = self.sessions.open(key, keys, now)?.index;
        self.sessions.set_peer_index(index, index);
        self.sessions.get(index).cloned().ok_or(HandshakeError::SessionEnded)
    }
}

#[cfg(test)]
mod tests;
