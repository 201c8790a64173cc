//! Counting and telling: per-CPU counters, telemetry records, frames held for the agent.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    cty::c_void,
    helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes},
    programs::TcContext,
};
use common::{
    abi::{self, Config},
    drop_reason::Reason,
    event::{EVENT_DENY, FRAME_MAX},
    flow::{Flow, FlowKey, PATH_NONE},
};

use crate::{
    flow_table::coarse_now,
    maps::{BUDGET_SCRATCH, CONFIG, HANDSHAKE_STATS, HANDSHAKES, LOSS_STATS, REASON_STATS, TELEMETRY},
    packet::{bounded, raw},
};

/// The configuration; every program needs it first.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn bump(counter: Option<*mut u64>) {
    if let Some(counter) = counter {
        // SAFETY: a per-CPU slot; programs on one CPU do not interrupt each other here.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
pub fn count_reason(reason: Reason, inbound: bool) {
    bump(REASON_STATS.get_ptr_mut(abi::reason_stat(reason as u16, inbound)));
}

/// Counts under an entry of `REASON_STATS`.
#[inline(always)]
pub fn count_at(entry: u32) {
    bump(REASON_STATS.get_ptr_mut(entry));
}

#[inline(always)]
pub fn count_handshake(packet_type: u8, inbound: bool) {
    bump(HANDSHAKE_STATS.get_ptr_mut(abi::handshake_stat(packet_type & 0x0f, inbound)));
}

#[inline(always)]
pub fn count(which: u32) {
    bump(LOSS_STATS.get_ptr_mut(which));
}

/// Who was refused, as far as is known.
#[repr(align(8))]
#[derive(Clone, Copy, Default)]
pub struct Parties {
    pub pu: u32,
    pub local_identity: u32,
    pub peer_identity: u32,
    pub session: u32,
    pub rule: u32,
    pub observed_rule: u32,
}

impl Parties {
    #[inline(always)]
    pub fn of(flow: &Flow) -> Self {
        Self {
            pu: flow.pu,
            local_identity: flow.local_identity,
            peer_identity: flow.peer_identity,
            session: flow.session,
            rule: flow.rule,
            observed_rule: flow.observed_rule,
        }
    }
}

/// Where in a connection's life a refusal happened.
#[derive(Clone, Copy)]
pub struct At {
    pub role: u8,
    pub inbound: bool,
    /// The reason came from the peer.
    pub by_peer: bool,
}

/// Counts a refusal and records it.
#[inline(always)]
pub fn refused(key: &FlowKey, parties: &Parties, reason: Reason, at: At) {
    count_reason(reason, at.inbound);
    record_refusal(key, parties, reason as u32, at.role as u32 | (at.inbound as u32) << 8 | (at.by_peer as u32) << 16);
}

/// Records of refusals made in a tick.
#[repr(C)]
pub struct Budget {
    tick_ns: u64,
    records: u64,
}

/// Whether this CPU may record one more refusal. Under a flood a record costs more than the refusal itself, and pushes out of
/// the ring what the next one would not tell anew.
#[inline(always)]
fn may_record() -> bool {
    within(BUDGET_SCRATCH.get_ptr_mut(0), abi::RECORDS_A_TICK)
}

/// Takes one from a CPU's budget for this tick; whether it was left.
#[inline(always)]
pub fn within(budget: Option<*mut Budget>, limit: u64) -> bool {
    let Some(budget) = budget else { return true };
    // SAFETY: this CPU's slot; a program that interrupts another here costs at most a miscounted record.
    let budget = unsafe { &mut *budget };
    let tick = coarse_now();
    if budget.tick_ns != tick {
        budget.tick_ns = tick;
        budget.records = 0;
    }
    budget.records += 1;
    budget.records <= limit
}

#[inline(never)]
fn record_refusal(key: &FlowKey, parties: &Parties, reason: u32, at: u32) {
    if !may_record() {
        count(abi::LOSS_RECORD_LIMIT);
        return;
    }
    let Some(mut entry) = TELEMETRY.reserve(0) else {
        count(abi::LOSS_TELEMETRY_RING);
        return;
    };
    // SAFETY: `event` is the reservation; every field is written, in place because the stack is small.
    unsafe {
        let event = entry.as_mut_ptr();
        (*event).time_ns = now();
        (*event).kind = EVENT_DENY;
        (*event).role = at as u8;
        (*event).path = PATH_NONE;
        (*event).direction = (at >> 8) as u8;
        (*event).reason = reason as u16;
        (*event).peer_reason = (at >> 16) as u16;
        (*event).key = *key;
        (*event).pu = parties.pu;
        (*event).local_identity = parties.local_identity;
        (*event).peer_identity = parties.peer_identity;
        (*event).session = parties.session;
        (*event).rule = parties.rule;
        (*event).observed_rule = parties.observed_rule;
        (*event).rtt_us = 0;
        (*event).generation = 0;
        (*event).created_ns = 0;
        (*event).bytes_out = 0;
        (*event).packets_out = 0;
        (*event).bytes_in = 0;
        (*event).packets_in = 0;
    }
    entry.submit(BPF_RB_NO_WAKEUP as u64);
}

/// Records the start, end or cut of a flow.
#[inline(never)]
pub fn flow_event(kind: u8, key: &FlowKey, flow: &Flow, reason: u16, rtt_us: u32) {
    let Some(mut entry) = TELEMETRY.reserve(0) else {
        count(abi::LOSS_TELEMETRY_RING);
        return;
    };
    // SAFETY: `event` is the reservation; every field is written, in place because the stack is small.
    unsafe {
        let event = entry.as_mut_ptr();
        (*event).time_ns = now();
        (*event).kind = kind;
        (*event).role = flow.role;
        (*event).path = flow.path;
        (*event).direction = 0;
        (*event).reason = reason;
        (*event).peer_reason = 0;
        (*event).key = *key;
        (*event).pu = flow.pu;
        (*event).local_identity = flow.local_identity;
        (*event).peer_identity = flow.peer_identity;
        (*event).session = flow.session;
        (*event).rule = flow.rule;
        (*event).observed_rule = flow.observed_rule;
        (*event).rtt_us = rtt_us;
        (*event).generation = flow.generation;
        (*event).created_ns = flow.created_ns;
        (*event).bytes_out = flow.bytes_out;
        (*event).packets_out = flow.packets_out;
        (*event).bytes_in = flow.bytes_in;
        (*event).packets_in = flow.packets_in;
    }
    entry.submit(BPF_RB_NO_WAKEUP as u64);
}

/// What the agent is told about a held frame.
#[derive(Clone, Copy)]
pub struct Hold {
    pub kind: u32,
    pub pu: u32,
    pub subject: u32,
    pub object: u32,
    /// Taken at the egress of a PU's own interface.
    pub at_pu_interface: bool,
}

/// Copies the frame to the agent. The caller drops the original; an error names why nobody will answer.
#[inline(never)]
pub fn hold(ctx: &TcContext, key: &FlowKey, what: &Hold) -> Result<(), Reason> {
    let config = config().ok_or(Reason::Internal)?;
    let now = now();
    if now.wrapping_sub(config.heartbeat_ns) > config.agent_timeout_ns && now > config.heartbeat_ns {
        return Err(Reason::AgentDown);
    }
    let len = bounded(ctx.len(), FRAME_MAX as u32).ok_or(Reason::Malformed)?;
    let Some(mut entry) = HANDSHAKES.reserve(0) else {
        count(abi::LOSS_HANDSHAKE_RING);
        return Err(Reason::RingFull);
    };
    let held = entry.as_mut_ptr();
    // SAFETY: `held` is the reservation, large enough for a whole record; every field the agent reads is written.
    let copied = unsafe {
        (*held).time_ns = now;
        (*held).kind = what.kind;
        (*held).len = len;
        (*held).ifindex = (*ctx.skb.skb).ifindex;
        (*held).at_pu_interface = what.at_pu_interface as u32;
        (*held).pu = what.pu;
        (*held).subject = what.subject;
        (*held).object = what.object;
        (*held).offset = 0;
        (*held).key = *key;
        bpf_skb_load_bytes(raw(ctx), 0, core::ptr::addr_of_mut!((*held).frame).cast::<c_void>(), len)
    };
    if copied != 0 {
        entry.discard(0);
        return Err(Reason::Internal);
    }
    count(abi::HELD);
    entry.submit(BPF_RB_FORCE_WAKEUP as u64);
    Ok(())
}
