//! What a PU of this host is to its peers: the tags that travel, the profile that is signed, and what happens when they
//! change.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{
    abi,
    identity::{PeerPu, SessionPu},
};

use super::{
    Shared, clock,
    names::PuDoc,
    state::{LocalPu, State},
};
use crate::{
    admin::{AdminError, ErrorKind},
    identity::{
        PreparedCredential, Tags, TrustProfile,
        credential::{self, PrepareError},
    },
    map_write::{MapWriteError, patiently},
    workload::{TagSet, TagSource, finder, tags::Carried},
};

/// What is to change about a PU.
pub(super) struct Change<'a> {
    /// Another name.
    pub name: Option<String>,
    /// Another namespace.
    pub namespace: Option<String>,
    /// Changes the tags.
    pub edit: &'a dyn Fn(&mut TagSet),
}

/// Replaces the tags of one source; whether anything changed. The profile is signed again, live flows are judged again here
/// at once, and where their other ends are as soon as those have been told.
pub(super) fn set_tags(shared: &Shared, pu: u32, source: TagSource, tags: &Tags) -> Result<bool, AdminError> {
    let edit = |set: &mut TagSet| {
        set.set(source, tags.clone());
    };
    change(shared, pu, &Change { name: None, namespace: None, edit: &edit })
}

/// Changes a PU; whether anything changed. If the tags do not fit, the PU keeps those it had.
pub(super) fn change(shared: &Shared, pu: u32, change: &Change<'_>) -> Result<bool, AdminError> {
    let mut refused = None;
    let changed = patiently(|| match shared.state().change(pu, change) {
        Ok(changed) => Ok(changed),
        Err(ChangeError::Map(error)) => Err(error),
        Err(ChangeError::Refused(error)) => {
            refused = Some(error);
            Ok(false)
        }
    });
    match refused {
        Some(error) => Err(error),
        None => changed.map_err(AdminError::internal),
    }
}

/// All tags of a PU are there: from now on it may communicate as policy says.
pub(super) fn complete(shared: &Shared, pu: u32) -> Result<(), AdminError> {
    {
        let mut guard = shared.state();
        let state = &mut *guard;
        let Some(mut local) = state.pus.remove(&pu) else {
            return Err(AdminError::new(ErrorKind::NotFound, format!("no PU {pu}")));
        };
        let news = !std::mem::replace(&mut local.complete, true);
        let done = if news { state.remember(&local).and_then(|()| state.mark(&local)) } else { Ok(()) };
        tracing::debug!(pu = %local.name, "complete");
        state.pus.insert(pu, local);
        done.map_err(AdminError::internal)?;
    }
    super::waiting::release(shared, pu);
    Ok(())
}

enum ChangeError {
    Refused(AdminError),
    Map(MapWriteError),
}

impl From<MapWriteError> for ChangeError {
    fn from(error: MapWriteError) -> Self {
        Self::Map(error)
    }
}

fn refused(error: impl std::fmt::Display) -> ChangeError {
    ChangeError::Refused(AdminError::new(ErrorKind::Invalid, error.to_string()))
}

fn failed(error: anyhow::Error) -> ChangeError {
    match error.downcast() {
        Ok(error) => ChangeError::Map(error),
        Err(error) => ChangeError::Refused(AdminError::internal(error)),
    }
}

impl State {
    /// Chooses the tags that travel, of a PU that its source calls `key`.
    pub fn choose(&self, key: &str, name: &str, namespace: &str, set: &TagSet) -> Result<Carried, PrepareError> {
        let bare = self.profile(name, namespace, &Tags::new(), 0, clock::now() * 1000);
        let room = credential::room_for_tags(&self.own, &bare)?;
        let carry = if key.starts_with(finder::EXECUTED) { &self.carry_executed } else { &self.carry };
        carry.select(set, room).map_err(|error| error.of_pu(name))
    }

    /// Signs the Trust Profile of a PU, later than any before.
    pub fn sign(&self, pu: &mut LocalPu) -> Result<PreparedCredential, PrepareError> {
        let issued = later_than(pu.issued_ms, now_ms());
        let profile = self.profile(&pu.name, &pu.namespace, &pu.tags, pu.handle, issued);
        let signed = credential::prepare(&self.own, &profile)?;
        pu.issued_ms = issued;
        Ok(signed)
    }

    fn profile(&self, name: &str, namespace: &str, tags: &Tags, handle: u16, issued_ms: u64) -> TrustProfile {
        let issued = issued_ms / 1000;
        TrustProfile {
            enforcer: self.own.id().clone(),
            pu: name.to_owned(),
            handle,
            namespace: namespace.to_owned(),
            tags: tags.clone(),
            issued,
            issued_ms: (issued_ms % 1000) as u16,
            expires: issued + self.profile_lifetime,
            prekey: self.prekeys.current(),
        }
    }

    /// Enters a PU everywhere but where its target leads to it, and but for its verdicts on external networks. What an error
    /// leaves behind is the caller's to remove.
    pub fn install(&mut self, mut pu: LocalPu, credential: PreparedCredential) -> anyhow::Result<()> {
        let index = pu.index;
        let entered = self.enter(&mut pu).and_then(|()| self.show(&mut pu, credential));
        self.pus.insert(index, pu);
        entered
    }

    /// As [`Self::install`], without a credential.
    pub fn enter(&mut self, pu: &mut LocalPu) -> anyhow::Result<()> {
        let label = self.label(&pu.name);
        pu.identity = self.intern(&pu.namespace, &pu.tags, &label)?;
        self.names.set_pu(pu.index, &pu.name);
        self.remember(pu)?;
        let self_session = self.config.current().self_session;
        self.alias(self_session, pu.handle, pu.identity)?;
        let own = SessionPu { session: self_session, handle: pu.handle, pad: 0 };
        self.maps.known_to_peer.insert(&own, &u64::MAX)?;
        self.names.set_peer(self_session, pu.identity, label);
        self.config.update(|config| config.flags |= abi::CONFIG_HAS_PU)?;
        Ok(())
    }

    fn label(&self, name: &str) -> String {
        format!("{}/{name}", self.own.id().name())
    }

    /// In a session of this enforcer with itself: which identity a handle of a PU stands for.
    fn alias(&self, session: u32, handle: u16, identity: u32) -> Result<(), MapWriteError> {
        let entry = PeerPu { until_ns: u64::MAX, issued_ms: 0, identity, pad: 0 };
        self.maps.peer_pus.insert(&SessionPu { session, handle, pad: 0 }, &entry)
    }

    /// Leaves the PU to the next agent.
    fn remember(&self, pu: &LocalPu) -> anyhow::Result<()> {
        // What people and their tokens say is found nowhere else.
        let mut tags = TagSet::new();
        for source in [TagSource::User, TagSource::Token] {
            tags.set(source, pu.set.get(source).cloned().unwrap_or_default());
        }
        for (key, values) in &pu.tags {
            for value in values {
                let first = pu.set.sources(key, value).into_iter().next();
                let one = Tags::from([(key.clone(), [value.clone()].into())]);
                tags.add(first.unwrap_or(TagSource::User), one);
            }
        }
        let doc = PuDoc {
            id: pu.id.clone(),
            name: pu.name.clone(),
            namespace: pu.namespace.clone(),
            tags,
            key: pu.key.clone(),
            complete: pu.complete,
            handle: pu.handle,
            target: pu.target.clone(),
        };
        Ok(self.maps.pu_docs.insert(pu.index, &serde_json::to_vec(&doc)?)?)
    }

    /// Puts a credential where the kernel takes it from.
    fn show(&mut self, pu: &mut LocalPu, credential: PreparedCredential) -> anyhow::Result<()> {
        let until = clock::monotonic(credential.expires());
        self.pu_slots.set_credential(pu.index, pu.identity, pu.handle, &credential.map_value(), until)?;
        self.mark(pu)?;
        pu.credential = Some(credential);
        pu.error = None;
        Ok(())
    }

    /// Changes a PU. With a room that has not rested yet nothing has changed, and the same call may be repeated.
    fn change(&mut self, index: u32, change: &Change<'_>) -> Result<bool, ChangeError> {
        let gone = || ChangeError::Refused(AdminError::new(ErrorKind::NotFound, format!("no PU {index}")));
        let before = self.pus.get(&index).ok_or_else(gone)?.clone();
        let mut pu = before.clone();
        (change.edit)(&mut pu.set);
        pu.name = change.name.clone().unwrap_or(pu.name);
        pu.namespace = change.namespace.clone().unwrap_or(pu.namespace);
        let carried = self.choose(&pu.key, &pu.name, &pu.namespace, &pu.set).map_err(refused)?;
        (pu.tags, pu.left_out) = (carried.tags, carried.left_out);
        if pu.set == before.set && pu.name == before.name && pu.namespace == before.namespace {
            return Ok(false);
        }
        tell(&before, &pu);
        if pu.tags == before.tags && pu.namespace == before.namespace && pu.name == before.name {
            self.remember(&pu).map_err(failed)?;
            self.pus.insert(index, pu);
            return Ok(true);
        }
        let moved = pu.tags != before.tags || pu.namespace != before.namespace;
        if moved {
            let identity = self.intern(&pu.namespace, &pu.tags, &self.label(&pu.name)).map_err(failed)?;
            // Before anything shows the new identity: connections outside are not asked for, only looked up.
            self.judge_externals_for(identity)?;
            // To peers the PU is another one; what they remember of the former must not stand for it.
            pu.handle = self.free_handle();
        }
        let signed = self.sign(&mut pu).map_err(refused)?;
        let done = self.enter(&mut pu).and_then(|()| self.show(&mut pu, signed));
        self.pus.insert(index, if done.is_ok() { pu } else { before.clone() });
        done.map_err(failed)?;
        if moved {
            self.replace_handle(&before, index).map_err(failed)?;
            self.moved = true;
            self.announce(index);
        }
        Ok(true)
    }

    /// Flows that were made under a PU's former handle are its own still.
    fn replace_handle(&mut self, before: &LocalPu, index: u32) -> anyhow::Result<()> {
        let Some(identity) = self.pus.get(&index).map(|pu| pu.identity) else { return Ok(()) };
        self.retired.insert(before.handle);
        self.maps.known_to_peer.retain(|known, _| known.handle != before.handle)?;
        let own: Vec<u32> = self
            .sessions
            .iter()
            .filter(|session| session.key.peer == *self.own.id())
            .map(|session| session.index)
            .chain([self.config.current().self_session])
            .collect();
        for session in own {
            let key = SessionPu { session, handle: before.handle, pad: 0 };
            if self.maps.peer_pus.get(&key)?.is_some() {
                self.alias(session, before.handle, identity)?;
            }
        }
        Ok(())
    }

    /// Signs all profiles again that are half-way to their end, or all.
    pub fn renew(&mut self, all: bool) {
        let now = clock::now();
        let half = self.profile_lifetime / 2;
        // A profile that ends later than one signed now is from a clock that has been set back since.
        let from_the_future = now + self.profile_lifetime + AHEAD.as_secs();
        let due: Vec<u32> = self
            .pus
            .values()
            .filter(|pu| {
                let expires = pu.credential.as_ref().map(|signed| signed.expires());
                all || expires.is_none_or(|expires| expires < now + half || expires > from_the_future)
            })
            .map(|pu| pu.index)
            .collect();
        for index in due {
            let Some(mut pu) = self.pus.remove(&index) else { continue };
            let renewed = self.sign(&mut pu).map_err(anyhow::Error::from).and_then(|signed| self.show(&mut pu, signed));
            if let Err(error) = renewed {
                tracing::error!(pu = %pu.name, %error, "cannot renew a Trust Profile");
                pu.error = Some(error.to_string());
            }
            self.pus.insert(index, pu);
        }
    }
}

/// Says which tags changed, and who says so.
fn tell(before: &LocalPu, pu: &LocalPu) {
    let only_in = |one: &TagSet, other: &TagSet| -> String {
        let has = |source: TagSource, key: &str, value: &str| {
            other.get(source).and_then(|tags| tags.get(key)).is_some_and(|values| values.contains(value))
        };
        let new = one.iter().filter(|(source, key, value)| !has(*source, key, value));
        new.map(|(source, key, value)| format!("{key}={value} ({source})")).collect::<Vec<_>>().join(" ")
    };
    tracing::info!(
        pu = %pu.name,
        added = only_in(&pu.set, &before.set),
        removed = only_in(&before.set, &pu.set),
        namespace = %pu.namespace,
        identity = if pu.tags == before.tags && pu.namespace == before.namespace { "unchanged" } else { "changed" },
        "tags changed"
    );
}

/// How far ahead of the clock a profile may be issued so that it is later than the one before.
const AHEAD: Duration = Duration::from_secs(5);

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The time to issue a profile at that follows on one of `last`; without regard to it if the clock was set back.
fn later_than(last: u64, now: u64) -> u64 {
    if last > now + AHEAD.as_millis() as u64 { now } else { now.max(last + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_profile_is_issued_later_than_the_one_before() {
        assert_eq!(later_than(0, 5000), 5000);
        assert_eq!(later_than(5000, 5000), 5001);
        assert_eq!(later_than(5400, 5000), 5401, "as many changes in a moment as come");
        assert_eq!(later_than(50_000_000, 5000), 5000, "the clock was set back: peers would refuse the future");
    }
}
