//! The sessions of this enforcer, by index and by what they were made of.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::HandshakeError;
use crate::identity::{AuthorityId, DirectionKeys, EnforcerId, PublicPrekey};

/// How long a session is kept beyond its end, seconds: as long as TCP repeats the packets of a handshake that began before it
/// (tcp_syn_retries 6 gives up a SYN after 127 s). Nothing new begins in it.
pub const IN_FLIGHT: u64 = 135;

/// What a session is made of: a peer, and a prekey of either side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The peer.
    pub peer: EnforcerId,
    /// This enforcer's prekey.
    pub own: PublicPrekey,
    /// The peer's prekey.
    pub remote: PublicPrekey,
}

/// The keyed relation of two enforcers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Index this enforcer chose; never 0.
    pub index: u32,
    /// What it is made of.
    pub key: SessionKey,
    /// Its keys.
    pub keys: DirectionKeys,
    /// Its end, Unix seconds: that of the older prekey.
    pub until: u64,
    /// Index the peer chose, 0 until it is known.
    pub peer_index: u32,
}

/// All sessions of this enforcer.
pub struct Sessions {
    by_index: HashMap<u32, Session>,
    by_key: HashMap<SessionKey, u32>,
    capacity: usize,
}

impl Sessions {
    /// Room for `capacity` sessions.
    pub fn new(capacity: usize) -> Self {
        Self { by_index: HashMap::new(), by_key: HashMap::new(), capacity }
    }

    /// The session of this index.
    pub fn get(&self, index: u32) -> Option<&Session> {
        self.by_index.get(&index)
    }

    /// The session made of `key`.
    pub fn find(&self, key: &SessionKey) -> Option<&Session> {
        self.by_key.get(key).and_then(|index| self.by_index.get(index))
    }

    /// The session made of `key`, with a random unused index if it is new.
    ///
    /// # Errors
    /// If one of the prekeys has ended at `now` (Unix seconds), or there is no room.
    pub fn open(&mut self, key: SessionKey, keys: DirectionKeys, now: u64) -> Result<&Session, HandshakeError> {
        let until = u64::from(key.own.epoch.min(key.remote.epoch));
        if until <= now {
            return Err(HandshakeError::SessionEnded);
        }
        let index = match self.by_key.get(&key) {
            Some(index) => *index,
            None => {
                if self.by_index.len() >= self.capacity {
                    return Err(HandshakeError::SessionsFull(self.capacity));
                }
                let index = self.unused_index();
                self.insert(Session { index, key, keys, until, peer_index: 0 });
                index
            }
        };
        self.by_index.get(&index).ok_or(HandshakeError::SessionEnded)
    }

    /// Takes over a session that is in the kernel's maps already. An existing one of the same index is replaced.
    pub fn adopt(&mut self, index: u32, doc: SessionDoc, keys: DirectionKeys, peer_index: u32) {
        self.remove(index);
        let key = SessionKey { peer: doc.peer, own: doc.own.into(), remote: doc.remote.into() };
        let until = u64::from(key.own.epoch.min(key.remote.epoch));
        self.insert(Session { index, key, keys, until, peer_index });
    }

    /// Notes the index the peer chose. Returns whether that was news.
    pub fn set_peer_index(&mut self, index: u32, peer_index: u32) -> bool {
        self.by_index
            .get_mut(&index)
            .is_some_and(|session| std::mem::replace(&mut session.peer_index, peer_index) != peer_index)
    }

    /// Removes the session of this index.
    pub fn remove(&mut self, index: u32) -> Option<Session> {
        let session = self.by_index.remove(&index)?;
        // Another session may have been adopted under the same key since.
        if self.by_key.get(&session.key) == Some(&index) {
            self.by_key.remove(&session.key);
        }
        Some(session)
    }

    /// Removes all sessions that ended [`IN_FLIGHT`] before `now` (Unix seconds) and that `may_go`, and returns them.
    pub fn expire(&mut self, now: u64, may_go: impl Fn(u32) -> bool) -> Vec<Session> {
        let over = |session: &&Session| session.until.saturating_add(IN_FLIGHT) <= now && may_go(session.index);
        let ended: Vec<u32> = self.by_index.values().filter(over).map(|session| session.index).collect();
        ended.into_iter().filter_map(|index| self.remove(index)).collect()
    }

    /// All sessions, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.by_index.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_index.is_empty()
    }

    fn insert(&mut self, session: Session) {
        self.by_key.insert(session.key.clone(), session.index);
        self.by_index.insert(session.index, session);
    }

    fn unused_index(&self) -> u32 {
        loop {
            let index = rand::random();
            if index != 0 && !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }
}

impl Session {
    /// The value of the map `SESSIONS`. `until_ns` is [`Self::until`] on the monotonic clock, `peer` the agent's
    /// number of the peer.
    pub fn map_value(&self, until_ns: u64, peer: u32) -> common::identity::Session {
        common::identity::Session {
            key_out: self.keys.outbound,
            key_in: self.keys.inbound,
            until_ns,
            peer_index: self.peer_index,
            peer,
        }
    }

    /// What outlives the agent beside [`Self::map_value`], as JSON; `authority` vouched for the peer.
    pub fn doc(&self, authority: &AuthorityId) -> SessionDoc {
        SessionDoc {
            peer: self.key.peer.clone(),
            own: self.key.own.into(),
            remote: self.key.remote.into(),
            authority: *authority,
        }
    }
}

impl From<&common::identity::Session> for DirectionKeys {
    fn from(session: &common::identity::Session) -> Self {
        Self { outbound: session.key_out, inbound: session.key_in }
    }
}

/// Document of a session, for the map `SESSION_DOCS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionDoc {
    /// The peer.
    pub peer: EnforcerId,
    /// This enforcer's prekey.
    pub own: PrekeyDoc,
    /// The peer's prekey.
    pub remote: PrekeyDoc,
    /// The authority that vouched for the peer when it was met last.
    #[serde(default, with = "base64_key")]
    pub authority: AuthorityId,
}

/// A public prekey in a [`SessionDoc`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrekeyDoc {
    /// Epoch.
    pub epoch: u32,
    #[serde(with = "base64_key")]
    key: [u8; 32],
}

impl From<PublicPrekey> for PrekeyDoc {
    fn from(prekey: PublicPrekey) -> Self {
        Self { epoch: prekey.epoch, key: prekey.key }
    }
}

impl From<PrekeyDoc> for PublicPrekey {
    fn from(doc: PrekeyDoc) -> Self {
        Self { key: doc.key, epoch: doc.epoch }
    }
}

mod base64_key {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(key: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(key))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let key = URL_SAFE_NO_PAD.decode(text).ok().and_then(|key| key.try_into().ok());
        key.ok_or_else(|| serde::de::Error::custom("expected 32 bytes in base64url"))
    }
}

/// Whether two MACs are equal; one word is compared in constant time.
pub(super) fn same_mac(a: u64, b: u64) -> bool {
    std::hint::black_box(a ^ b) == 0
}

#[cfg(test)]
fn test_keys(seed: u64) -> DirectionKeys {
    use common::wire::MacKey;
    DirectionKeys { outbound: MacKey { k0: seed, k1: 1 }, inbound: MacKey { k0: seed, k1: 2 } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(peer: &str, own: u32, remote: u32) -> SessionKey {
        SessionKey {
            peer: EnforcerId::new("acme", peer).unwrap(),
            own: PublicPrekey { key: [1; 32], epoch: own },
            remote: PublicPrekey { key: [2; 32], epoch: remote },
        }
    }

    #[test]
    fn the_same_key_finds_the_same_session() {
        let mut sessions = Sessions::new(10);
        let first = sessions.open(key("a", 100, 200), test_keys(1), 0).unwrap().clone();
        assert_ne!(first.index, 0);
        assert_eq!((first.until, first.peer_index), (100, 0));
        assert_eq!(*sessions.open(key("a", 100, 200), test_keys(1), 0).unwrap(), first);
        let others = [key("b", 100, 200), key("a", 101, 200), key("a", 100, 201)];
        for (seed, other) in (2..).zip(others) {
            assert_ne!(sessions.open(other, test_keys(seed), 0).unwrap().index, first.index);
        }
        assert_eq!(sessions.len(), 4);
        assert!(sessions.set_peer_index(first.index, 9));
        assert!(!sessions.set_peer_index(first.index, 9));
        assert!(!sessions.set_peer_index(0, 9));
        assert_eq!(sessions.get(first.index).unwrap().peer_index, 9);
    }

    #[test]
    fn sessions_end_with_the_older_prekey() {
        let mut sessions = Sessions::new(10);
        let a = sessions.open(key("a", 100, 200), test_keys(1), 99).unwrap().index;
        sessions.open(key("b", 300, 200), test_keys(2), 99).unwrap();
        assert_eq!(sessions.open(key("c", 300, 99), test_keys(3), 99), Err(HandshakeError::SessionEnded));
        let late = 100 + IN_FLIGHT;
        assert_eq!(sessions.expire(late - 1, |_| true), []);
        assert_eq!(sessions.expire(late, |index| index != a), [], "a connection needs it");
        let still = sessions.open(key("a", 100, 200), test_keys(1), 100);
        assert_eq!(still, Err(HandshakeError::SessionEnded), "nothing new begins in it");
        assert_eq!(sessions.get(a).map(|session| session.until), Some(100), "but what began goes on");
        assert_eq!(sessions.expire(late, |_| true).iter().map(|session| session.index).collect::<Vec<_>>(), [a]);
        assert_eq!((sessions.len(), sessions.find(&key("a", 100, 200))), (1, None));
    }

    #[test]
    fn the_bound_holds() {
        let mut sessions = Sessions::new(1);
        sessions.open(key("a", 100, 200), test_keys(1), 0).unwrap();
        assert_eq!(sessions.open(key("b", 100, 200), test_keys(2), 0), Err(HandshakeError::SessionsFull(1)));
        assert!(sessions.open(key("a", 100, 200), test_keys(1), 0).is_ok());
    }

    #[test]
    fn documents_bring_a_session_back() {
        let mut before = Sessions::new(10);
        let index = before.open(key("a", 100, 200), test_keys(1), 0).unwrap().index;
        before.set_peer_index(index, 5);
        let session = before.get(index).unwrap().clone();
        let json = serde_json::to_string(&session.doc(&[7; 32])).unwrap();
        let value = session.map_value(7, 3);
        assert_eq!((value.until_ns, value.peer, value.peer_index), (7, 3, 5));
        let mut after = Sessions::new(10);
        after.adopt(index, serde_json::from_str(&json).unwrap(), (&value).into(), value.peer_index);
        assert_eq!(after.get(index), Some(&session));
        assert_eq!(after.find(&session.key), Some(&session));
        assert_eq!(after.remove(index), Some(session));
        assert!(after.is_empty());
    }
}
