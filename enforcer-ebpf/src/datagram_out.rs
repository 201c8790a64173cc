//! A PU sends a datagram to where identity is sent: known peer, first contact, or an answer.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_INGRESS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::lpm_trie::Key,
    cty::c_void,
    helpers::generated::{bpf_check_mtu, bpf_clone_redirect, bpf_redirect, bpf_skb_load_bytes},
    programs::TcContext,
};
use common::{
    abi::{self, Config, MARK_BARE},
    datagram::{BARE, DatagramPeer, Fields, TRAILER_LEN, Trailer},
    drop_reason::Reason,
    event::{DATAGRAM_PARTS_MAX, FRAME_MAX, HELD_DATAGRAM},
    flow::{
        CLIENT, CUT, FLAG_CREDENTIAL_SENT, FLAG_LOG, Flow, FlowKey, PATH_EXTERNAL, PATH_HELLO, PATH_RESUME, SERVER,
        SYN_RECEIVED, SYN_SENT,
    },
    identity::{NETWORK_IDENTITY, Pu, Session, SessionPu},
    verdict::position,
    wire::{CONFIRM, RESUME, RESUME_REPLY},
};

use crate::{
    attribute::{Source, UNMANAGED, ifindex, is_complete, pu_info},
    cleared::cleared,
    datagram::{HEADER, holds_trailer, sealed, udp_length},
    datagram_rewrite::{attach, drop_fragment_header, strip_bare, unreachable},
    emit::{At, Parties, config, count, count_handshake, count_reason, now, refused},
    flow_table::{Lookup, coarse_now, enter, find, remove},
    hook_tc_egress::own,
    icmp_errors,
    judge::{judge, rejudge},
    maps::{DATAGRAM_PEERS, FLOWS, HANDSHAKES, KNOWN_TO_PEER, NETWORKS, PACKET_SCRATCH, PEER_PUS, SESSIONS},
    other_protocols::{PASSED, first_of, is_echo, judge_beside, ports, sent_first},
    outbound::{DROP, PASS, scratch},
    outbound_open::LOOPBACK,
    packet::{ETH_LEN, Ip, Kind, Parsed, UDP, bounded, parse, raw, read},
    turn_around::{Way, send_back},
};

/// How long what a peer refused is not tried again, nanoseconds.
const AGAIN_NS: u64 = 5_000_000_000;

/// Bytes of a packet that every path takes: IPv6's least MTU (RFC 8200 section 5), which those of IPv4 have, too, today.
const EVERY_PATH: u32 = 1280;

/// Bytes of a datagram in one record.
const PART: u32 = FRAME_MAX as u32;

/// The flow is entered: its first datagram is to bear identity.
const OPENED: i32 = 0x4f50;

/// The packet at hand.
#[derive(Clone, Copy)]
pub struct Datagram<'a> {
    pub ctx: &'a TcContext,
    pub config: &'a Config,
    pub source: Source,
    pub ip: &'a Ip,
    pub key: &'a FlowKey,
}

/// Goes on with a datagram that a PU sent.
#[inline(always)]
pub fn sent(ctx: &TcContext, source: Source) -> i32 {
    let (Some(config), Some(parsed)) = (config(), scratch(source)) else { return DROP };
    if parsed.ip.later_fragment {
        return later_fragment(ctx, config, source, parsed);
    }
    let packet = Datagram { ctx, config, source, ip: &parsed.ip, key: &parsed.key };
    if icmp_errors::is_one(packet.ip, (packet.key.local_port, packet.key.remote_port)) {
        return icmp_errors::sent(ctx, source, packet.ip);
    }
    let sender = source.sender(ctx);
    if holds_trailer(ctx, packet.ip) {
        cleared!(parties: Parties);
        parties.pu = sender;
        refused(packet.key, parties, Reason::ForgedByPu, At { role: CLIENT, inbound: false, by_peer: false });
        return DROP;
    }
    let pu = match find(packet.key, source.interface(ctx)) {
        Lookup::Elsewhere => return PASS,
        Lookup::Ours(flow) if flow.path != PATH_EXTERNAL => {
            // What the agent sends on comes from no socket.
            if sender != UNMANAGED && sender != flow.pu {
                return judge_beside(parsed, sender, CLIENT);
            }
            match of_flow(&packet, flow) {
                Some(verdict) => return verdict,
                None => flow.pu,
            }
        }
        _ => sender,
    };
    match open(&packet, pu) {
        // Here, because the stack of that and of what follows are too much together.
        OPENED => match find(packet.key, source.interface(ctx)) {
            Lookup::Ours(flow) => identified(&packet, flow),
            _ => {
                count_reason(Reason::Internal, false);
                DROP
            }
        },
        verdict => verdict,
    }
}

/// A fragment whose first one the agent keeps, or kept: it waits with it, or goes on like it.
#[inline(never)]
fn later_fragment(ctx: &TcContext, config: &Config, source: Source, parsed: &mut Parsed) -> i32 {
    let pu = source.sender(ctx);
    let ports = first_of(ctx, &parsed.ip, pu).unwrap_or_default();
    parsed.ip.key_of_sender((ports >> 16) as u16, ports as u16, &mut parsed.key);
    let packet = Datagram { ctx, config, source, ip: &parsed.ip, key: &parsed.key };
    let waits = match find(packet.key, source.interface(ctx)) {
        Lookup::Ours(flow) if flow.pu == pu && flow.state != CUT => Some(flow.state == SYN_SENT && flow.session == 0),
        _ => None,
    };
    let reason = match waits {
        Some(false) => return PASS,
        Some(true) => match hold(&packet, HELD_DATAGRAM, pu) {
            Ok(()) => return taken(),
            Err(reason) => reason,
        },
        None => Reason::Fragment,
    };
    cleared!(parties: Parties);
    parties.pu = pu;
    refused(packet.key, parties, reason, At { role: CLIENT, inbound: false, by_peer: false });
    DROP
}

/// `None`: as if there were no flow.
#[inline(always)]
fn of_flow(packet: &Datagram, flow: &mut Flow) -> Option<i32> {
    if flow.state == CUT {
        let still =
            flow.generation == packet.config.generation && coarse_now().wrapping_sub(flow.confirm_mac) < AGAIN_NS;
        return if still || flow.role == SERVER { Some(refuse_of(packet, flow)) } else { None };
    }
    if flow.generation != packet.config.generation {
        if !rejudge(packet.key, flow, packet.config.generation) {
            flow.confirm_mac = coarse_now();
            return Some(refuse_of(packet, flow));
        }
        // Its tags changed: to its peers the PU is another one.
        if let Some(info) = pu_info(flow.pu).filter(|info| flow.session != 0 && info.handle != flow.local_handle) {
            if flow.role == CLIENT {
                return None;
            }
            flow.local_handle = info.handle;
            flow.state = SYN_RECEIVED;
        }
    }
    Some(match flow.state {
        SYN_SENT if flow.session == 0 => wait(packet, flow),
        SYN_SENT | SYN_RECEIVED => identified(packet, flow),
        _ => {
            account(packet, flow);
            note_first(packet);
            PASS
        }
    })
}

/// Later fragments follow this one.
#[inline(always)]
fn note_first(packet: &Datagram) {
    if packet.ip.first_fragment {
        sent_first(packet.ctx, packet.source, packet.ip, PASSED);
    }
}

#[inline(always)]
fn account(packet: &Datagram, flow: &mut Flow) {
    flow.bytes_out += (packet.ctx.len() - 14) as u64;
    flow.packets_out += 1;
    flow.seen_ns = coarse_now();
}

#[inline(never)]
fn refuse_of(packet: &Datagram, flow: &Flow) -> i32 {
    let reason = Reason::from_number(flow.reason).unwrap_or(Reason::Revoked);
    refuse(packet, &Parties::of(flow), reason, flow.role)
}

/// Refuses what a PU sends; its socket hears of it at once.
#[inline(never)]
fn refuse(packet: &Datagram, parties: &Parties, reason: Reason, role: u8) -> i32 {
    refused(packet.key, parties, reason, At { role, inbound: false, by_peer: false });
    // SAFETY: the context is valid for the whole program.
    let segments = unsafe { (*packet.ctx.skb.skb).gso_size } != 0;
    // What is judged by address alone is dropped, as it always was.
    if role == SERVER || segments || reason as u16 == Reason::ProtocolDenied as u16 {
        return DROP;
    }
    match unreachable(packet.ctx, packet.ip, packet.key, Way::Out) {
        Ok(()) => send_back(packet.ctx, packet.source, Way::Out, packet.config.mark),
        Err(_) => DROP,
    }
}

/// A datagram without a flow.
#[inline(never)]
fn open(packet: &Datagram, pu: u32) -> i32 {
    cleared!(parties: Parties);
    parties.pu = pu;
    match try_open(packet, pu, parties) {
        Ok(result) => result,
        Err(reason) => refuse(packet, parties, reason, CLIENT),
    }
}

#[inline(always)]
fn try_open(packet: &Datagram, pu: u32, parties: &mut Parties) -> Result<i32, Reason> {
    let info = pu_info(pu).ok_or(Reason::NoCredential)?;
    parties.local_identity = info.identity;
    if !is_complete(info) {
        return Err(Reason::PuIncomplete);
    }
    let key = packet.key;
    let opens = packet.ip.proto == UDP || is_echo(packet.ip, key.remote_port);
    let network = NETWORKS.get(&Key::new(128, key.remote)).copied().unwrap_or_default();
    // Who hears what is sent to many, no handshake could tell.
    let many = read::<[u8; 2]>(packet.ctx, 0).is_none_or(|first| first[0] & 1 != 0);
    if !opens || many || network.flags & NETWORK_IDENTITY == 0 {
        return Err(Reason::ProtocolDenied);
    }
    let Some((index, handle, identity)) = known_peer(packet, info) else { return Ok(first_contact(packet, pu, info)) };
    parties.session = index;
    parties.peer_identity = identity;
    let Some(verdict) = judge(info.identity, identity, position(key.proto, key.remote_port)) else {
        return Ok(first_contact(packet, pu, info));
    };
    parties.rule = verdict.rule;
    parties.observed_rule = verdict.observed_rule;
    if !verdict.allow {
        return Err(verdict.reason());
    }
    enter(key, |flow| {
        begin(packet, flow, pu, info);
        flow.path = PATH_RESUME;
        flow.session = index;
        flow.peer_handle = handle;
        flow.peer_identity = identity;
        flow.rule = verdict.rule;
        flow.observed_rule = verdict.observed_rule;
        flow.flags = if verdict.log { FLAG_LOG } else { 0 };
    })?;
    Ok(OPENED)
}

#[inline(always)]
fn begin(packet: &Datagram, flow: &mut Flow, pu: u32, info: &Pu) {
    flow.state = SYN_SENT;
    flow.role = CLIENT;
    flow.pu = pu;
    flow.local_identity = info.identity;
    flow.local_handle = info.handle;
    flow.generation = packet.config.generation;
    flow.ifindex = ifindex(packet.ctx);
    flow.pu_ifindex = packet.source.interface(packet.ctx);
    flow.created_ns = now();
    flow.seen_ns = coarse_now();
}

/// The PU last met at this address and port, if its session lives, it is still known there, and it knows this one:
/// session, handle and identity.
#[inline(never)]
fn known_peer(packet: &Datagram, info: &Pu) -> Option<(u32, u16, u32)> {
    let at = DatagramPeer { addr: packet.key.remote, port: packet.key.remote_port, proto: packet.key.proto as u16 };
    let now = coarse_now();
    // SAFETY: the agent replaces entries whole; a torn session only makes a MAC wrong.
    unsafe {
        let met = *DATAGRAM_PEERS.get(at)?;
        if ifindex(packet.ctx) == LOOPBACK && met.session != packet.config.self_session {
            return None;
        }
        let session = SESSIONS.get(met.session)?;
        let known = KNOWN_TO_PEER.get(SessionPu { session: met.session, handle: info.handle, pad: 0 })?;
        let peer = PEER_PUS.get(met)?;
        let lives = session.until_ns > now && session.peer_index != 0 && *known > now && peer.until_ns > now;
        lives.then_some((met.session, met.handle, peer.identity))
    }
}

/// Nobody was met there: the agent keeps the datagram and asks who it is.
#[inline(never)]
fn first_contact(packet: &Datagram, pu: u32, info: &Pu) -> i32 {
    let entered = enter(packet.key, |flow| {
        begin(packet, flow, pu, info);
        flow.path = PATH_HELLO;
    });
    let result = entered.and_then(|()| hold(packet, HELD_DATAGRAM, pu));
    cleared!(parties: Parties);
    parties.pu = pu;
    parties.local_identity = info.identity;
    match result {
        Ok(()) => held(packet),
        Err(reason) => {
            remove(packet.key);
            refuse(packet, parties, reason, CLIENT)
        }
    }
}

/// One more datagram for a peer that has not answered yet.
#[inline(never)]
fn wait(packet: &Datagram, flow: &Flow) -> i32 {
    match hold(packet, HELD_DATAGRAM, flow.pu) {
        Ok(()) => held(packet),
        Err(reason) => {
            let parties = Parties::of(flow);
            remove(packet.key);
            refuse(packet, &parties, reason, CLIENT)
        }
    }
}

/// The agent keeps it; later fragments are to wait with it.
#[inline(always)]
fn held(packet: &Datagram) -> i32 {
    if packet.ip.first_fragment {
        let ports = (packet.key.local_port as u32) << 16 | packet.key.remote_port as u32;
        sent_first(packet.ctx, packet.source, packet.ip, ports);
    }
    taken()
}

/// Drops the packet, but not so that its sender takes it for an error.
#[inline(always)]
fn taken() -> i32 {
    // SAFETY: a helper call; there is no such interface.
    unsafe { bpf_redirect(0, 0) as i32 }
}

/// Copies the whole frame to the agent, in parts if it is longer than one record.
#[inline(never)]
pub fn hold(packet: &Datagram, kind: u32, pu: u32) -> Result<(), Reason> {
    let (ctx, config) = (packet.ctx, packet.config);
    let now = now();
    if now.wrapping_sub(config.heartbeat_ns) > config.agent_timeout_ns && now > config.heartbeat_ns {
        return Err(Reason::AgentDown);
    }
    let total = ctx.len();
    let mut offset = 0;
    // Lengths are compared with what is constant in each turn: older verifiers (6.1) follow every turn's every outcome otherwise.
    for _ in 0..DATAGRAM_PARTS_MAX {
        let last = total <= offset + PART;
        let len = if last { bounded(total - offset, PART).ok_or(Reason::Malformed)? } else { PART };
        let Some(mut entry) = HANDSHAKES.reserve(0) else {
            count(abi::LOSS_HANDSHAKE_RING);
            return Err(Reason::RingFull);
        };
        let held = entry.as_mut_ptr();
        // SAFETY: `held` is the reservation, large enough for a whole record; every field the agent reads is written.
        let copied = unsafe {
            (*held).time_ns = now;
            (*held).kind = kind;
            (*held).len = len;
            (*held).ifindex = (*ctx.skb.skb).ifindex;
            // Of the way out: at a PU's own interface, its ingress.
            (*held).at_pu_interface = (packet.source == Source::Interface) as u32;
            (*held).pu = pu;
            (*held).subject = total;
            (*held).object = (*ctx.skb.skb).gso_size;
            (*held).offset = offset;
            copy_key(packet.key, core::ptr::addr_of_mut!((*held).key));
            bpf_skb_load_bytes(raw(ctx), offset, core::ptr::addr_of_mut!((*held).frame).cast::<c_void>(), len)
        };
        if copied != 0 {
            entry.discard(0);
            return Err(Reason::Internal);
        }
        if last {
            entry.submit(BPF_RB_FORCE_WAKEUP as u64);
            count(abi::HELD);
            return Ok(());
        }
        entry.submit(BPF_RB_NO_WAKEUP as u64);
        offset += PART;
    }
    Err(Reason::Malformed)
}

/// By words: as a whole it would be copied by a call, byte by byte, which is too much for the verifier in a loop.
///
/// # Safety
/// `to` must be valid.
#[inline(always)]
unsafe fn copy_key(from: &FlowKey, to: *mut FlowKey) {
    let (from, to) = (core::ptr::from_ref(from).cast::<u64>(), to.cast::<u64>());
    for word in 0..size_of::<FlowKey>() / 8 {
        // SAFETY: both are as long as a key, and aligned like one.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
    }
}

/// Sends a datagram of this flow with its identity.
#[inline(never)]
fn identified(packet: &Datagram, flow: &mut Flow) -> i32 {
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let Some(session) = (unsafe { SESSIONS.get(flow.session) }) else {
        return refuse(packet, &Parties::of(flow), Reason::SessionExpired, flow.role);
    };
    account(packet, flow);
    if flow.state == SYN_RECEIVED {
        flow.flags |= FLAG_CREDENTIAL_SENT;
    }
    if !has_room(packet) {
        return send_ahead(packet);
    }
    let len = packet.ip.end - packet.ip.l4;
    if len < HEADER || packet.ip.proto == UDP && udp_length(packet.ctx, packet.ip) != len {
        return refuse(packet, &Parties::of(flow), Reason::Malformed, flow.role);
    }
    let mut trailer = Trailer { len: ((len - HEADER) as u16).to_be_bytes(), ..Trailer::default() };
    fill(packet.ctx, packet.ip, flow, session, &mut trailer);
    if attach(packet.ctx, packet.ip, &trailer).is_err() {
        return DROP;
    }
    count_handshake(type_of(flow), false);
    PASS
}

/// Makes a trailer of `flow` out of the flags and the length in it.
#[inline(never)]
fn fill(ctx: &TcContext, ip: &Ip, flow: &Flow, session: &Session, trailer: &mut Trailer) {
    let fields = Fields {
        packet_type: type_of(flow),
        flags: trailer.flags,
        handle: flow.local_handle,
        peer_handle: flow.peer_handle,
        len: u16::from_be_bytes(trailer.len),
        index: session.peer_index,
        sender_index: flow.session,
        time: now(),
    };
    *trailer = Trailer::new(&fields, sealed(ctx, ip, &session.key_out, &fields));
}

/// What a flow's packets say until the peer is heard.
#[inline(always)]
fn type_of(flow: &Flow) -> u8 {
    match (flow.state, flow.path) {
        (SYN_SENT, PATH_HELLO) => CONFIRM,
        (SYN_SENT, _) => RESUME,
        _ => RESUME_REPLY,
    }
}

/// Whether the packet is one that a trailer can be put behind, and stays with it within what every path takes, and within the
/// interface's MTU. What the path itself takes is not for a program at an interface to know.
#[inline(always)]
fn has_room(packet: &Datagram) -> bool {
    const TRAILER: u32 = TRAILER_LEN as u32;
    let len = packet.ip.end + TRAILER - ETH_LEN;
    if len > EVERY_PATH && ifindex(packet.ctx) != LOOPBACK {
        return false;
    }
    let mut mtu = 0u32;
    // SAFETY: a helper call on our own context; the context is valid for the whole program.
    unsafe {
        (*packet.ctx.skb.skb).gso_size == 0
            && !packet.ip.first_fragment
            && packet.ip.end + TRAILER <= u16::MAX as u32
            && bpf_check_mtu(packet.ctx.as_ptr(), 0, &mut mtu, TRAILER as i32, 0) == 0
    }
}

/// A copy goes ahead of the packet, and will be made bare.
#[inline(never)]
fn send_ahead(packet: &Datagram) -> i32 {
    note_first(packet);
    let ctx = packet.ctx;
    // SAFETY: helper calls on our own context, which is valid for the whole program.
    unsafe {
        let mark = (*ctx.skb.skb).mark;
        ctx.skb.set_mark(packet.config.mark ^ MARK_BARE);
        let back = if packet.source == Source::Interface { BPF_F_INGRESS as u64 } else { 0 };
        bpf_clone_redirect(ctx.skb.skb, ifindex(ctx), back);
        if packet.source == Source::Socket {
            ctx.skb.set_mark(mark);
            return PASS;
        }
        // The copy waits in the interface's queue: behind it.
        ctx.skb.set_mark(packet.config.mark);
        bpf_redirect(ifindex(ctx), back) as i32
    }
}

/// Makes the copy of a datagram that goes ahead of it one of nothing but its identity.
#[inline(always)]
pub fn bare(ctx: &TcContext) -> i32 {
    let Some(config) = config() else { return DROP };
    // The program that made this copy is not done with its own.
    let Some(parsed) = PACKET_SCRATCH.get_ptr_mut(2) else { return DROP };
    // SAFETY: nothing else uses this place.
    let parsed = unsafe { &mut *parsed };
    if parse(ctx, parsed, false) != Kind::Other || !strip(ctx, parsed) {
        return DROP;
    }
    ctx.skb.set_mark(config.mark);
    own(ctx, config, true);
    PASS
}

#[inline(never)]
fn strip(ctx: &TcContext, parsed: &mut Parsed) -> bool {
    let Some((sport, dport)) = ports(ctx, &parsed.ip) else { return false };
    parsed.ip.key_of_sender(sport, dport, &mut parsed.key);
    let key = &parsed.key;
    let Some(flow) = FLOWS.get_ptr_mut(key) else { return false };
    // SAFETY: map values stay readable for the run of the program.
    let flow = unsafe { &mut *flow };
    if !matches!(flow.state, SYN_SENT | SYN_RECEIVED) {
        return false;
    }
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let Some(session) = (unsafe { SESSIONS.get(flow.session) }) else { return false };
    if parsed.ip.v6 && parsed.ip.first_fragment && drop_fragment_header(ctx, &mut parsed.ip).is_err() {
        return false;
    }
    let mut trailer = Trailer { flags: BARE, ..Trailer::default() };
    fill(ctx, &parsed.ip, flow, session, &mut trailer);
    if strip_bare(ctx, &parsed.ip, &trailer).is_err() {
        return false;
    }
    count_handshake(type_of(flow), false);
    true
}
