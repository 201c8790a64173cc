//! The first SYNs from and to sockets of processes and cgroups that are not sorted out: kept until these are somebody's or
//! nobody's.

use std::time::Duration;

use common::{
    abi::{CONFIG_TRIAL, CONFIG_UNMANAGED_DENY, PU_UNSORTED},
    drop_reason::Reason,
    event::{HELD_OUTGOING, Held},
};

use super::{
    Shared,
    contact::{Refusal, internal},
    waiting,
};
use crate::{
    handshake::{Frame, build},
    sys,
};

/// SYNs that wait for all sockets that are not sorted out; what is more is refused.
const LIMIT: usize = 512;
/// Between two looks at whether to stop.
const TURN: Duration = Duration::from_millis(100);

/// A SYN from or to a socket that was not sorted out when the kernel looked.
pub(super) fn held(shared: &Shared, held: &Held) -> Result<(), Refusal> {
    if waiting::is_late(shared, held, sys::monotonic_ns()) {
        return Err(Reason::PuIncomplete.into());
    }
    let pu = {
        let mut waiting = shared.waiting.lock();
        // Looked at under this lock, so that no SYN comes to wait after its socket was sorted out.
        match became(shared, held) {
            Some(pu) => pu,
            None => return waiting::keep(&mut waiting, held, LIMIT),
        }
    };
    go_on(shared, held, pu);
    Ok(())
}

/// Waits for a moment for sockets to be sorted out, and lets their SYNs go on; `noted` is how many were before.
pub(super) fn turn(shared: &Shared, noted: u64) -> u64 {
    let noted = shared.maps.pu_sockets.sorted_out().wait(noted, TURN);
    let mut sorted_out = Vec::new();
    {
        let mut waiting = shared.waiting.lock();
        if let Some(unsorted) = waiting.get_mut(&PU_UNSORTED) {
            unsorted.retain(|held| {
                let pu = became(shared, held);
                sorted_out.extend(pu.map(|pu| (*held, pu)));
                pu.is_none()
            });
        }
    }
    for (held, pu) in sorted_out {
        go_on(shared, &held, pu);
    }
    noted
}

/// The PU that the socket of a SYN is one of now; `None` if it still is not sorted out. Of a listener only the kernel knows, and
/// tells when it sees the SYN again.
fn became(shared: &Shared, held: &Held) -> Option<u32> {
    let sockets = shared.maps.pu_sockets.sorted_out();
    if held.kind == HELD_OUTGOING {
        return sockets.socket(u64::from(held.object) << 32 | u64::from(held.subject));
    }
    sockets.port(held.key.local_port, held.time_ns).then_some(PU_UNSORTED)
}

fn go_on(shared: &Shared, held: &Held, pu: u32) {
    let held = Held { pu, ..*held };
    match (held.kind, pu) {
        (HELD_OUTGOING, 0) => waiting::finish(shared, &held, leave),
        (HELD_OUTGOING, _) => waiting::finish(shared, &held, waiting::held),
        _ => waiting::finish(shared, &held, waiting::go_on),
    }
}

/// The SYN of a socket that is nobody's.
fn leave(shared: &Shared, held: &Held, frame: &Frame<'_>) -> Result<(), Refusal> {
    if denies_unmanaged(shared) {
        return Err(Reason::UnmanagedDenied.into());
    }
    shared.tap.inject(&build::complete(frame), held.ifindex, 0, 0).map_err(internal)
}

/// As the kernel asks it.
fn denies_unmanaged(shared: &Shared) -> bool {
    let flags = shared.state().config.current().flags;
    let is_over = || {
        let host = shared.maps.host.get(&0).ok().flatten().unwrap_or_default();
        host.trial_flags & CONFIG_UNMANAGED_DENY != 0 && sys::monotonic_ns() >= host.trial_until_ns
    };
    flags & CONFIG_UNMANAGED_DENY != 0 && (flags & CONFIG_TRIAL == 0 || !is_over())
}
