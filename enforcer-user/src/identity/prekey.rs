//! X25519 prekeys: signed ahead of time, used for many agreements, replaced regularly.

use std::collections::VecDeque;

use ring::rand::SecureRandom;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::cache::Cache;

/// Agreements that are remembered, so that a peer's second PU costs no scalar multiplication.
const AGREEMENTS_MAX: usize = 4096;

/// Seconds by which a clock may be set back without anybody minding.
const CLOCK_STEP: u64 = 60;

/// A prekey as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicPrekey {
    /// X25519 public key (RFC 7748).
    pub key: [u8; 32],
    /// End of its life, Unix seconds; also its name among the prekeys of its enforcer that live.
    pub epoch: u32,
}

/// The prekeys of this enforcer: the current one and those before it that have not ended.
pub struct Prekeys {
    // Newest first, never empty.
    keys: VecDeque<Prekey>,
    interval: u32,
    overlap: u32,
    agreements: Cache<(u32, [u8; 32]), Zeroizing<[u8; 32]>>,
}

struct Prekey {
    public: PublicPrekey,
    secret: StaticSecret,
    created: u64,
    /// When it goes: its end, or sooner if the clock was set back.
    forgotten: u64,
}

/// Why two prekeys did not agree, or none could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrekeyError {
    /// No own prekey of this epoch lives (any more).
    #[error("no prekey of epoch {0}")]
    UnknownEpoch(u32),
    /// The peer's prekey is a point of small order: the result would be known to all.
    #[error("the peer's prekey is of small order")]
    NonContributory,
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// A rotation interval of zero, or times beyond the year 2106.
    #[error("prekey interval {interval} s and overlap {overlap} s: use at least a second, and end before 2106")]
    Interval {
        /// Rotation interval, seconds.
        interval: u32,
        /// Overlap, seconds.
        overlap: u32,
    },
}

impl Prekeys {
    /// Prekeys that are replaced every `interval` seconds and usable for `overlap` seconds longer; `now` in Unix
    /// seconds. The overlap should exceed the longest life of a credential and the permitted clock skew.
    ///
    /// # Errors
    /// Without random numbers, and on times out of bounds.
    pub fn new(interval: u32, overlap: u32, now: u64) -> Result<Self, PrekeyError> {
        if interval == 0 {
            return Err(PrekeyError::Interval { interval, overlap });
        }
        let mut prekeys = Self { keys: VecDeque::new(), interval, overlap, agreements: Cache::new(AGREEMENTS_MAX) };
        prekeys.rotate(now)?;
        Ok(prekeys)
    }

    /// The prekey to sign now.
    pub fn current(&self) -> PublicPrekey {
        self.keys[0].public
    }

    /// When [`Self::rotate_if_due`] will have something to do, Unix seconds.
    pub fn next_rotation(&self) -> u64 {
        self.keys[0].created.saturating_add(self.interval.into())
    }

    /// Makes a new current prekey if the time has come, and forgets those that ended. Returns whether there is a new
    /// one: all credentials are to be signed again then.
    ///
    /// # Errors
    /// Without random numbers; the old prekey stays current then.
    pub fn rotate_if_due(&mut self, now: u64) -> Result<bool, PrekeyError> {
        // Made in the future: the clock has been set back, and the prekey must not live for longer by that.
        let set_back = now.saturating_add(CLOCK_STEP) < self.keys[0].created;
        let due = set_back || now >= self.next_rotation();
        if due {
            self.rotate(now)?;
        }
        if set_back {
            let end = now.saturating_add(self.overlap.into());
            self.keys.iter_mut().skip(1).for_each(|key| key.forgotten = key.forgotten.min(end));
        }
        let current = self.current().epoch;
        self.keys.retain(|key| key.public.epoch == current || key.forgotten > now);
        let keys = &self.keys;
        self.agreements.retain(|(epoch, _), _| keys.iter().any(|key| key.public.epoch == *epoch));
        Ok(due)
    }

    /// Makes a new current prekey at once.
    ///
    /// # Errors
    /// As [`Self::rotate_if_due`].
    pub fn rotate(&mut self, now: u64) -> Result<(), PrekeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        ring::rand::SystemRandom::new().fill(&mut *bytes).map_err(|_| PrekeyError::Random)?;
        let end = now + u64::from(self.interval) + u64::from(self.overlap);
        let taken = |epoch: u64| self.keys.iter().any(|key| u64::from(key.public.epoch) == epoch);
        let unused = (end..).find(|epoch| !taken(*epoch)).unwrap_or(end);
        let epoch = u32::try_from(unused)
            .map_err(|_| PrekeyError::Interval { interval: self.interval, overlap: self.overlap })?;
        let secret = StaticSecret::from(*bytes);
        let public = PublicPrekey { key: PublicKey::from(&secret).to_bytes(), epoch };
        self.keys.push_front(Prekey { public, secret, created: now, forgotten: epoch.into() });
        Ok(())
    }

    /// All prekeys a peer may still use, newest first.
    pub fn live(&self) -> Vec<PublicPrekey> {
        self.keys.iter().map(|key| key.public).collect()
    }

    /// The own prekey of this epoch, if it lives.
    pub fn get(&self, epoch: u32) -> Option<PublicPrekey> {
        self.keys.iter().map(|key| key.public).find(|public| public.epoch == epoch)
    }

    /// The secret shared with the holder of `peer` (X25519), from memory if both met before.
    ///
    /// # Errors
    /// If the own prekey is unknown, or the peer's contributes nothing (RFC 7748 section 6.1).
    pub fn agree(&mut self, epoch: u32, peer: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, PrekeyError> {
        let own = self.keys.iter().find(|key| key.public.epoch == epoch).ok_or(PrekeyError::UnknownEpoch(epoch))?;
        if let Some(shared) = self.agreements.get(&(epoch, *peer)) {
            return Ok(shared.clone());
        }
        let agreed = own.secret.diffie_hellman(&PublicKey::from(*peer));
        if !agreed.was_contributory() {
            return Err(PrekeyError::NonContributory);
        }
        let shared = Zeroizing::new(agreed.to_bytes());
        self.agreements.insert((epoch, *peer), shared.clone());
        Ok(shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree_also_from_memory() {
        let (mut a, mut b) = (Prekeys::new(3600, 600, 1000).unwrap(), Prekeys::new(3600, 600, 1000).unwrap());
        let (pa, pb) = (a.current(), b.current());
        assert_eq!(pa.epoch, 5200);
        let first = a.agree(pa.epoch, &pb.key).unwrap();
        assert_eq!(first, b.agree(pb.epoch, &pa.key).unwrap());
        assert_eq!(first, a.agree(pa.epoch, &pb.key).unwrap());
        assert_eq!(a.agreements.len(), 1);
    }

    #[test]
    fn the_previous_prekey_lives_through_the_overlap() {
        let mut prekeys = Prekeys::new(3600, 600, 1000).unwrap();
        let peer = Prekeys::new(3600, 600, 1000).unwrap().current();
        let old = prekeys.current();
        let shared = prekeys.agree(old.epoch, &peer.key).unwrap();
        assert_eq!(prekeys.next_rotation(), 4600);
        assert_eq!(prekeys.rotate_if_due(4599), Ok(false));
        assert_eq!(prekeys.rotate_if_due(4600), Ok(true));
        let new = prekeys.current();
        assert_ne!(new.key, old.key);
        assert_eq!(prekeys.live(), [new, old]);
        assert_eq!(prekeys.agree(old.epoch, &peer.key), Ok(shared));
        assert_eq!(prekeys.rotate_if_due(5199), Ok(false));
        assert_eq!(prekeys.get(old.epoch), Some(old));
        assert_eq!(prekeys.rotate_if_due(5200), Ok(false));
        assert_eq!(prekeys.get(old.epoch), None);
        assert_eq!(prekeys.agree(old.epoch, &peer.key), Err(PrekeyError::UnknownEpoch(old.epoch)));
        assert_eq!(prekeys.agreements.len(), 0);
    }

    #[test]
    fn epochs_differ_even_within_a_second() {
        let mut prekeys = Prekeys::new(3600, 600, 1000).unwrap();
        prekeys.rotate(1000).unwrap();
        assert_eq!(prekeys.live().iter().map(|key| key.epoch).collect::<Vec<_>>(), [5201, 5200]);
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_prekey_older() {
        let mut prekeys = Prekeys::new(3600, 600, 1_000_000).unwrap();
        let future = prekeys.current();
        assert_eq!(prekeys.rotate_if_due(1_000_000 - CLOCK_STEP), Ok(false), "clocks are corrected all the time");
        assert_eq!(prekeys.rotate_if_due(500_000), Ok(true));
        let new = prekeys.current();
        assert_eq!((new.epoch, prekeys.next_rotation()), (504_200, 503_600));
        assert_eq!(prekeys.live(), [new, future], "what is in flight still finds its prekey");
        assert_eq!(prekeys.rotate_if_due(500_599), Ok(false));
        assert_eq!(prekeys.live(), [new, future]);
        assert_eq!(prekeys.rotate_if_due(500_600), Ok(false));
        assert_eq!(prekeys.live(), [new]);
    }

    #[test]
    fn points_of_small_order_are_refused() {
        let mut prekeys = Prekeys::new(3600, 600, 1000).unwrap();
        let epoch = prekeys.current().epoch;
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            assert_eq!(prekeys.agree(epoch, &point), Err(PrekeyError::NonContributory));
        }
        assert_eq!(prekeys.agreements.len(), 0);
    }

    #[test]
    fn senseless_times_are_refused() {
        assert!(matches!(Prekeys::new(0, 1, 1000), Err(PrekeyError::Interval { .. })));
        assert!(matches!(Prekeys::new(1, 1, u64::from(u32::MAX)), Err(PrekeyError::Interval { .. })));
    }
}
