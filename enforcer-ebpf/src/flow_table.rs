//! Entering, finding and ending flows.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_coarse_ns,
};
use common::{
    abi,
    drop_reason::Reason,
    event::EVENT_START,
    flow::{ESTABLISHED, FLAG_FIN_IN, FLAG_FIN_OUT, FLAG_LOG, FLAG_RST, Flow, FlowKey},
};

use crate::{
    cleared::clear,
    emit::{count, flow_event},
    maps::{FLOW_SCRATCH, FLOWS},
    packet::{FIN, Ip, RST, SYN, Tcp},
};

/// The flow of this connection, if it belongs to the same kind of attribution.
#[inline(always)]
pub fn find(key: &FlowKey, pu_ifindex: u32) -> Lookup {
    match FLOWS.get_ptr_mut(key) {
        None => Lookup::None,
        // SAFETY: map values stay readable for the run of the program.
        Some(flow) => unsafe {
            if (*flow).pu_ifindex == pu_ifindex { Lookup::Ours(&mut *flow) } else { Lookup::Elsewhere }
        },
    }
}

/// Result of [`find`].
pub enum Lookup {
    /// No entry.
    None,
    /// Enforced at the PU's own interface, which this is not.
    Elsewhere,
    /// To be enforced here.
    Ours(&'static mut Flow),
}

/// Coarse monotonic time (the tick's), for expiry and last use.
#[inline(always)]
pub fn coarse_now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Enters a flow. `fill` gets a zeroed entry off the stack.
#[inline(always)]
pub fn enter(key: &FlowKey, fill: impl FnOnce(&mut Flow)) -> Result<(), Reason> {
    put(key, filled(fill)?, BPF_ANY).map_err(|_| full())
}

/// As [`enter`]; false if another processor entered the same at the same time.
#[inline(always)]
pub fn enter_once(key: &FlowKey, fill: impl FnOnce(&mut Flow)) -> Result<bool, Reason> {
    let flow = filled(fill)?;
    match put(key, flow, BPF_NOEXIST) {
        Ok(()) => Ok(true),
        Err(EXISTS) if is_entered(key, flow) => Ok(false),
        Err(EXISTS) => put(key, flow, BPF_ANY).map(|()| true).map_err(|_| full()),
        Err(_) => Err(full()),
    }
}

const EXISTS: i32 = -17;

#[inline(always)]
fn filled(fill: impl FnOnce(&mut Flow)) -> Result<&'static Flow, Reason> {
    let scratch = FLOW_SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: the slot is this CPU's and nothing that runs in between uses it.
    let flow = unsafe {
        clear::<Flow>(&mut *scratch.cast());
        &mut *scratch
    };
    fill(flow);
    Ok(flow)
}

#[inline(always)]
fn put(key: &FlowKey, flow: &Flow, how: u32) -> Result<(), i32> {
    FLOWS.insert(key, flow, how as u64)?;
    if flow.state == ESTABLISHED {
        started(key, flow);
    }
    Ok(())
}

#[inline(always)]
fn full() -> Reason {
    count(abi::LOSS_FLOW_TABLE);
    Reason::TableFull
}

#[inline(always)]
fn is_entered(key: &FlowKey, flow: &Flow) -> bool {
    // SAFETY: map values stay readable for the run of the program; plain words.
    FLOWS.get_ptr_mut(key).is_some_and(|entered| unsafe {
        (*entered).state == flow.state && (*entered).pu == flow.pu && (*entered).generation == flow.generation
    })
}

/// The flow has become what its state says; whether the caller is the first to say so. Two processors may look at the
/// first segments of a connection at once.
#[inline(always)]
pub fn begins(flow: &mut Flow) -> bool {
    // `peer_handle`, `counted` and `pu`: the kernel changes words of eight bytes at least at once.
    let word = (&raw mut flow.peer_handle).cast::<u64>();
    const { assert!(offset_of!(Flow, peer_handle).is_multiple_of(8)) };
    const COUNTED: u64 = 1 << ((offset_of!(Flow, counted) - offset_of!(Flow, peer_handle)) * 8);
    fetch_or(word, COUNTED) & COUNTED == 0
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
fn fetch_or(word: *mut u64, bits: u64) -> u64 {
    use core::intrinsics::{AtomicOrdering, atomic_or};
    // SAFETY: within a map value of that alignment; the target has the instruction, but the language no type for it.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(word, bits) }
}

#[cfg(not(target_arch = "bpf"))]
fn fetch_or(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: the caller's word is valid and aligned.
    unsafe { &*word.cast::<core::sync::atomic::AtomicU64>() }.fetch_or(bits, core::sync::atomic::Ordering::SeqCst)
}

/// Tells of a flow that was allowed to start, if its rule wants that.
#[inline(always)]
pub fn started(key: &FlowKey, flow: &Flow) {
    if flow.flags & FLAG_LOG != 0 {
        flow_event(EVENT_START, key, flow, flow.reason, 0);
    }
}

/// Forgets a flow.
#[inline(always)]
pub fn remove(key: &FlowKey) {
    let _ = FLOWS.remove(key);
}

/// Accounts for a packet the PU sent.
#[inline(always)]
pub fn account_out(flow: &mut Flow, ip: &Ip, tcp: &Tcp, len: u32) {
    flow.bytes_out += (len - 14) as u64;
    flow.packets_out += 1;
    let end =
        tcp.seq.wrapping_add(len.wrapping_sub(ip.l4 + tcp.header)).wrapping_add((tcp.flags & (SYN | FIN) != 0) as u32);
    flow.next_out = end;
    flow.ack_out = tcp.ack;
    flow.seen_ns = coarse_now();
    if tcp.flags & FIN != 0 {
        flow.flags |= FLAG_FIN_OUT;
    }
    if tcp.flags & RST != 0 {
        flow.flags |= FLAG_RST;
    }
}

/// Accounts for a packet the PU receives.
#[inline(always)]
pub fn account_in(flow: &mut Flow, tcp: &Tcp, len: u32) {
    flow.bytes_in += (len - 14) as u64;
    flow.packets_in += 1;
    flow.seen_ns = coarse_now();
    if tcp.flags & FIN != 0 {
        flow.flags |= FLAG_FIN_IN;
    }
    // Anybody can send a reset; the stack heeds it only at the very next sequence number (RFC 5961 section 3.2).
    if tcp.flags & RST != 0 && tcp.seq == flow.ack_out {
        flow.flags |= FLAG_RST;
    }
}
