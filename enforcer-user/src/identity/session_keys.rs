//! The keys of a session, from both enforcers' prekeys.

use common::wire::MacKey;
use ring::hkdf;
use zeroize::Zeroizing;

use super::{id::EnforcerId, prekey::PublicPrekey};

const CONTEXT: &[u8] = b"enforcer session keys v1";

/// One key for each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectionKeys {
    /// Key of packets this enforcer sends.
    pub outbound: MacKey,
    /// Key of packets the peer sends.
    pub inbound: MacKey,
}

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Party<'a> {
    /// The enforcer.
    pub id: &'a EnforcerId,
    /// Its prekey.
    pub prekey: PublicPrekey,
}

/// HKDF-SHA256 (RFC 5869) of the `shared` secret of both prekeys. Both ends get the same two keys, swapped; an
/// enforcer's session with itself has one key for both directions.
pub fn derive(shared: &Zeroizing<[u8; 32]>, own: Party<'_>, peer: Party<'_>) -> DirectionKeys {
    let (low, high) = if own <= peer { (own, peer) } else { (peer, own) };
    // Lengths first, so that no two pairs of ids give the same bytes.
    let lengths = [low, high].map(|party| (party.id.as_str().len() as u32).to_be_bytes());
    let epochs = [low, high].map(|party| party.prekey.epoch.to_be_bytes());
    let info = [
        CONTEXT,
        &lengths[0],
        low.id.as_str().as_bytes(),
        &lengths[1],
        high.id.as_str().as_bytes(),
        &low.prekey.key,
        &epochs[0],
        &high.prekey.key,
        &epochs[1],
    ];
    let mut bytes = Zeroizing::new([0; 32]);
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&shared[..]);
    extracted
        .expand(&info, hkdf::HKDF_SHA256)
        .and_then(|expanded| expanded.fill(&mut bytes[..]))
        .expect("32 bytes are within HKDF-SHA256's bounds");
    let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let upward = MacKey { k0: word(0), k1: word(8) };
    let downward = MacKey { k0: word(16), k1: word(24) };
    match own.id.cmp(peer.id) {
        std::cmp::Ordering::Less => DirectionKeys { outbound: upward, inbound: downward },
        std::cmp::Ordering::Greater => DirectionKeys { outbound: downward, inbound: upward },
        std::cmp::Ordering::Equal => DirectionKeys { outbound: upward, inbound: upward },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Prekeys;

    fn id(name: &str) -> EnforcerId {
        EnforcerId::new("acme", name).unwrap()
    }

    #[test]
    fn both_ends_get_the_same_keys_swapped() {
        let (mut a, mut b) = (Prekeys::new(60, 60, 0).unwrap(), Prekeys::new(60, 60, 0).unwrap());
        let (ida, idb) = (id("a"), id("b"));
        let (pa, pb) = (Party { id: &ida, prekey: a.current() }, Party { id: &idb, prekey: b.current() });
        let at_a = derive(&a.agree(pa.prekey.epoch, &pb.prekey.key).unwrap(), pa, pb);
        let at_b = derive(&b.agree(pb.prekey.epoch, &pa.prekey.key).unwrap(), pb, pa);
        assert_eq!((at_a.outbound, at_a.inbound), (at_b.inbound, at_b.outbound));
        assert_ne!(at_a.outbound, at_a.inbound);
    }

    #[test]
    fn a_session_with_itself_has_one_key() {
        let mut a = Prekeys::new(60, 60, 0).unwrap();
        let old = a.current();
        a.rotate(0).unwrap();
        let new = a.current();
        let own = id("a");
        let (before, after) = (Party { id: &own, prekey: old }, Party { id: &own, prekey: new });
        let same = derive(&a.agree(new.epoch, &new.key).unwrap(), after, after);
        assert_eq!(same.outbound, same.inbound);
        let client = derive(&a.agree(new.epoch, &old.key).unwrap(), after, before);
        let server = derive(&a.agree(old.epoch, &new.key).unwrap(), before, after);
        assert_eq!(client, server);
        assert_eq!(client.outbound, client.inbound);
    }

    #[test]
    fn everything_enters_the_keys() {
        let secret = Zeroizing::new([7; 32]);
        let key = |byte, epoch| PublicPrekey { key: [byte; 32], epoch };
        let (ida, idb, idc) = (id("a"), id("b"), id("c"));
        let own = Party { id: &ida, prekey: key(1, 1) };
        let base = derive(&secret, own, Party { id: &idb, prekey: key(2, 2) });
        for (secret, peer) in [
            (7, Party { id: &idc, prekey: key(2, 2) }),
            (7, Party { id: &idb, prekey: key(3, 2) }),
            (7, Party { id: &idb, prekey: key(2, 3) }),
            (8, Party { id: &idb, prekey: key(2, 2) }),
        ] {
            let other = derive(&Zeroizing::new([secret; 32]), own, peer);
            assert_ne!(other.outbound, base.outbound);
            assert_ne!(other.inbound, base.inbound);
        }
    }
}
