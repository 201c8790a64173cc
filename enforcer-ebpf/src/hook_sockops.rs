//! sockops: CONFIRM on the initiator's ACK and first data, listeners of PUs, and the end of flows.

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB,
        BPF_SOCK_OPS_WRITE_HDR_OPT_CB, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT,
        BPF_TCP_ESTABLISHED, BPF_TCP_FIN_WAIT1, BPF_TCP_LISTEN, bpf_sock_ops,
    },
    helpers::generated::{bpf_reserve_hdr_opt, bpf_store_hdr_opt},
    macros::sock_ops,
    programs::SockOpsContext,
};
use common::{
    addr_v4,
    event::EVENT_END,
    flow::{CONFIRMING, CUT, ESTABLISHED, FLAG_CLOSED, FLAG_RST, FLAG_SOCKET, Flow, FlowKey},
    identity::ListenerKey,
    wire::OPTION_LEN,
};

use crate::{
    attribute::{UNMANAGED, stored},
    cleared::cleared,
    confirm,
    emit::flow_event,
    flow_table::remove,
    maps::{FLOWS, PU_LISTENERS},
    packet::TCP,
};

const AF_INET: u32 = 2;
const CALL_ON_STATE: u32 = BPF_SOCK_OPS_STATE_CB_FLAG;
const CALL_ON_HEADER: u32 = BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx, CALL_ON_STATE | CALL_ON_HEADER),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(&ctx, CALL_ON_STATE),
        BPF_SOCK_OPS_HDR_OPT_LEN_CB => header_length(&ctx),
        BPF_SOCK_OPS_WRITE_HDR_OPT_CB => header_write(&ctx),
        BPF_SOCK_OPS_STATE_CB => state_changed(&ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn pu_of(ctx: &SockOpsContext) -> u32 {
    // SAFETY: the context is valid; the socket is null-checked.
    unsafe {
        let sk = (*ctx.ops).__bindgen_anon_2.sk;
        if sk.is_null() { UNMANAGED } else { stored(sk.cast()).unwrap_or(UNMANAGED) }
    }
}

#[inline(always)]
fn identify(ctx: &SockOpsContext, key: &mut FlowKey) {
    key.proto = TCP;
    if ctx.family() == AF_INET {
        addresses_v4(ctx.ops, key)
    } else {
        addresses_v6(ctx.ops, key)
    }
    key.local_port = ctx.local_port() as u16;
    key.remote_port = u32::from_be(ctx.remote_port()) as u16;
}

// Two functions of their own: merged into one, the compiler would compute the field's offset, which the verifier
// refuses on a context.

#[inline(never)]
fn addresses_v4(ops: *mut bpf_sock_ops, key: &mut FlowKey) {
    // SAFETY: the context is valid; volatile keeps each read at its own constant offset.
    unsafe {
        key.local = addr_v4(read_volatile(&raw const (*ops).local_ip4));
        key.remote = addr_v4(read_volatile(&raw const (*ops).remote_ip4));
    }
}

#[inline(never)]
fn addresses_v6(ops: *mut bpf_sock_ops, key: &mut FlowKey) {
    // SAFETY: as above.
    unsafe {
        key.local[0] = read_volatile(&raw const (*ops).local_ip6[0]);
        key.local[1] = read_volatile(&raw const (*ops).local_ip6[1]);
        key.local[2] = read_volatile(&raw const (*ops).local_ip6[2]);
        key.local[3] = read_volatile(&raw const (*ops).local_ip6[3]);
        key.remote[0] = read_volatile(&raw const (*ops).remote_ip6[0]);
        key.remote[1] = read_volatile(&raw const (*ops).remote_ip6[1]);
        key.remote[2] = read_volatile(&raw const (*ops).remote_ip6[2]);
        key.remote[3] = read_volatile(&raw const (*ops).remote_ip6[3]);
    }
}

#[inline(always)]
fn flow_of(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: map values stay readable for the run of the program.
    FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    if pu_of(ctx) != UNMANAGED {
        let _ = ctx.set_cb_flags((ctx.cb_flags() | CALL_ON_STATE) as i32);
    }
}

#[inline(always)]
fn established(ctx: &SockOpsContext, flags: u32) {
    cleared!(key: FlowKey);
    identify(ctx, key);
    if let Some(flow) = flow_of(key) {
        flow.flags |= FLAG_SOCKET;
        // SAFETY: the context is valid; a plain word.
        flow.rtt_us = unsafe { (*ctx.ops).srtt_us } >> 3;
        let _ = ctx.set_cb_flags((ctx.cb_flags() | flags) as i32);
    }
}

#[inline(always)]
fn header_length(ctx: &SockOpsContext) {
    cleared!(key: FlowKey);
    identify(ctx, key);
    // Asked for by another enforcer, of a cgroup around this one or within.
    let Some(flow) = flow_of(key) else { return };
    if flow.state == CONFIRMING {
        // SAFETY: a helper call on our own context.
        unsafe { bpf_reserve_hdr_opt(ctx.ops, OPTION_LEN as u32, 0) };
    } else {
        let _ = ctx.set_cb_flags((ctx.cb_flags() & !CALL_ON_HEADER) as i32);
    }
}

#[inline(always)]
fn header_write(ctx: &SockOpsContext) {
    cleared!(key: FlowKey);
    identify(ctx, key);
    if let Some(flow) = flow_of(key) {
        let option = confirm::option(flow);
        // SAFETY: a helper call on our own context and twenty bytes we own.
        unsafe { bpf_store_hdr_opt(ctx.ops, core::ptr::from_ref(&option).cast_mut().cast(), OPTION_LEN as u32, 0) };
    }
}

#[inline(always)]
fn state_changed(ctx: &SockOpsContext) {
    // SAFETY: the context is valid; plain words.
    let (old, new, rtt) = unsafe {
        let args = &(*ctx.ops).__bindgen_anon_1.args;
        (args[0], args[1], (*ctx.ops).srtt_us >> 3)
    };
    if new != BPF_TCP_CLOSE {
        return;
    }
    cleared!(key: FlowKey);
    identify(ctx, key);
    if old == BPF_TCP_LISTEN {
        let _ = PU_LISTENERS.remove(listener(key));
        return;
    }
    let Some(flow) = flow_of(key) else { return };
    if flow.pu_ifindex != 0 {
        return;
    }
    if matches!(flow.state, ESTABLISHED | CONFIRMING) {
        flow_event(EVENT_END, key, flow, flow.reason, rtt);
    }
    // The stack says that a socket is closed before it sends the reset that breaks the connection off.
    if flow.flags & FLAG_RST == 0 && matches!(old, BPF_TCP_ESTABLISHED | BPF_TCP_CLOSE_WAIT | BPF_TCP_FIN_WAIT1) {
        flow.flags |= FLAG_CLOSED;
    } else if flow.state != CUT {
        remove(key);
    }
}

#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let pu = pu_of(ctx);
    if pu != UNMANAGED {
        cleared!(key: FlowKey);
        identify(ctx, key);
        let _ = PU_LISTENERS.insert(listener(key), pu, 0);
        let _ = ctx.set_cb_flags((ctx.cb_flags() | CALL_ON_STATE) as i32);
    }
}

#[inline(always)]
fn listener(key: &FlowKey) -> ListenerKey {
    ListenerKey { addr: key.local, port: key.local_port, pad: 0 }
}
