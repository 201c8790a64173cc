//! A PU opens a connection: external network, RESUME, or HELLO.

use aya_ebpf::{EbpfContext, btf_maps::lpm_trie::Key, helpers::generated::bpf_get_socket_cookie, programs::TcContext};
use common::{
    abi::PU_UNSORTED,
    drop_reason::Reason,
    event::{HELD_OUTGOING, HELD_UNANSWERED},
    flow::{
        CLIENT, CUT, ESTABLISHED, FLAG_CHALLENGED, FLAG_LOG, FLAG_RETRIED, Flow, PATH_EXTERNAL, PATH_HELLO,
        PATH_OUT_OF_BAND, PATH_RESUME, SYN_SENT,
    },
    identity::{Credential, NETWORK_IDENTITY, PeerAddr, Pu, Session, SessionPu},
    verdict::position,
    wire::{HELLO, OptionBytes, RESUME, RESUME_AGAIN, Transcript, sealed},
};

use crate::{
    attribute::{Source, ifindex, is_complete, observes, pu_info},
    cleared::cleared,
    emit::{At, Hold, Parties, count_handshake, count_reason, hold, now, refused},
    flow_table::{account_out, coarse_now, enter, remove},
    judge::{Verdict, judge},
    maps::{CREDENTIALS, FALLBACK_PATHS, KNOWN_TO_PEER, NETWORKS, PEER_ADDRS, SESSIONS},
    outbound::{DROP, PASS, Packet, refuse_locally},
    rewrite::{attach, make_room},
};

/// How often a first contact is sent before it is told that nothing answers: two packets in a row are lost now and then, and the agent may keep the
/// first for a second.
const UNANSWERED: u64 = 3;

/// With which SYN a first contact is made out of band, where that is switched on: nothing has come back for a second.
const OUT_OF_BAND: u64 = 2;

/// Interface index of the loopback device in every network namespace.
pub const LOOPBACK: u32 = 1;

#[inline(never)]
pub fn open(packet: &Packet, pu: u32, existing: Option<&mut Flow>) -> i32 {
    cleared!(parties: Parties);
    parties.pu = pu;
    if pu == PU_UNSORTED {
        // What it will be, its socket will say.
        remove(packet.key);
        return match packet.tcp.option {
            Some(_) => refuse_locally(packet, parties, Reason::ForgedByPu),
            None => wait(packet, parties, socket_cookie(packet.ctx)),
        };
    }
    match try_open(packet, pu, existing, parties) {
        Ok(()) => PASS,
        Err(Reason::PuIncomplete) => wait(packet, parties, 0),
        Err(reason) => {
            remove(packet.key);
            refuse_locally(packet, parties, reason)
        }
    }
}

/// The agent keeps the SYN until it is known what the PU is, or the socket.
#[inline(never)]
fn wait(packet: &Packet, parties: &Parties, cookie: u64) -> i32 {
    let what = Hold {
        kind: HELD_OUTGOING,
        pu: parties.pu,
        subject: cookie as u32,
        object: (cookie >> 32) as u32,
        at_pu_interface: packet.source == Source::Interface,
    };
    match hold(packet.ctx, packet.key, &what) {
        Ok(()) => DROP,
        Err(reason) => refuse_locally(packet, parties, reason),
    }
}

/// The number of the socket that sends, under which the agent knows it too.
#[inline(always)]
fn socket_cookie(ctx: &TcContext) -> u64 {
    // SAFETY: a helper call on our own context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn try_open(packet: &Packet, pu: u32, existing: Option<&mut Flow>, parties: &mut Parties) -> Result<(), Reason> {
    let info =
        pu_info(pu).ok_or(if pu == common::abi::PU_TOO_DEEP { Reason::TooDeep } else { Reason::NoCredential })?;
    parties.local_identity = info.identity;
    if packet.tcp.option.is_some() {
        return Err(Reason::ForgedByPu);
    }
    if !is_complete(info) {
        return Err(Reason::PuIncomplete);
    }
    let network = NETWORKS.get(&Key::new(128, packet.ip.dst)).copied().unwrap_or_default();
    if network.external != 0 && external(packet, pu, info, network.external, parties)? {
        return Ok(());
    }
    if network.flags & NETWORK_IDENTITY == 0 {
        let verdict = Verdict::NONE.lift(observes(info), Reason::OutsideIdentityNetworks);
        return if verdict.allow {
            by_address(packet, pu, info, network.external, &verdict)
        } else {
            Err(Reason::OutsideIdentityNetworks)
        };
    }
    match known_session(packet, info) {
        Some((index, session)) => resume(packet, pu, info, existing, index, session, parties),
        None => hello(packet, pu, info, existing),
    }
}

/// Whether an external-network rule lets the connection out by address. A deny rule ends the attempt; where no rule of
/// this PU applies, the destination is an identity network's like any other.
#[inline(always)]
fn external(packet: &Packet, pu: u32, info: &Pu, network: u32, parties: &mut Parties) -> Result<bool, Reason> {
    let Some(verdict) = judge(info.identity, network, position(packet.ip.proto, packet.tcp.dport)) else {
        return Ok(false);
    };
    if !verdict.allow && verdict.rule == 0 {
        return Ok(false);
    }
    let verdict = verdict.lift(observes(info), Reason::DenyRule);
    if !verdict.allow {
        parties.rule = verdict.rule;
        parties.observed_rule = verdict.observed_rule;
        parties.peer_identity = network;
        return Err(Reason::DenyRule);
    }
    by_address(packet, pu, info, network, &verdict)?;
    Ok(true)
}

/// Lets the connection out without identity.
#[inline(always)]
fn by_address(packet: &Packet, pu: u32, info: &Pu, network: u32, verdict: &Verdict) -> Result<(), Reason> {
    enter(packet.key, |flow| {
        start(packet, flow, pu, info);
        flow.state = ESTABLISHED;
        flow.path = PATH_EXTERNAL;
        flow.peer_identity = network;
        flow.rule = verdict.rule;
        flow.observed_rule = verdict.observed_rule;
        flow.reason = verdict.lifted;
        flow.flags = if verdict.log { FLAG_LOG } else { 0 };
    })?;
    count_reason(Reason::Allowed, false);
    Ok(())
}

/// The session with the enforcer behind this address, if it is alive and its enforcer has seen this PU's credential.
#[inline(always)]
fn known_session(packet: &Packet, info: &Pu) -> Option<(u32, &'static Session)> {
    let index = session_at(packet)?;
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let session = unsafe { SESSIONS.get(index) }?;
    let now = coarse_now();
    if session.until_ns <= now || session.peer_index == 0 {
        return None;
    }
    // SAFETY: read-only value of a scalar.
    let known = unsafe { KNOWN_TO_PEER.get(SessionPu { session: index, handle: info.handle, pad: 0 }) }?;
    (*known > now).then_some((index, session))
}

#[inline(always)]
fn session_at(packet: &Packet) -> Option<u32> {
    if ifindex(packet.ctx) == LOOPBACK {
        return Some(packet.config.self_session);
    }
    let mut at = PeerAddr { addr: packet.ip.dst, port: packet.tcp.dport, pad: 0 };
    // SAFETY: read-only values of scalars.
    unsafe {
        if let Some(index) = PEER_ADDRS.get(at) {
            return Some(*index);
        }
        at.port = 0;
        PEER_ADDRS.get(at).copied()
    }
}

#[inline(always)]
fn resume(
    packet: &Packet,
    pu: u32,
    info: &Pu,
    existing: Option<&mut Flow>,
    index: u32,
    session: &Session,
    parties: &mut Parties,
) -> Result<(), Reason> {
    parties.session = index;
    let transcript = Transcript { sender_isn: packet.tcp.seq, ..Transcript::default() };
    // Who was asked to say it otherwise goes on saying it so.
    let again = existing
        .as_ref()
        .is_some_and(|flow| is_repeated(packet, flow) && flow.path != PATH_HELLO && flow.flags & FLAG_RETRIED != 0);
    let flags = if again { RESUME_AGAIN } else { 0 };
    let option = sealed(&session.key_out, RESUME, flags, info.handle, session.peer_index, &transcript);
    depart(packet, pu, info, existing, index, &option, None)
}

#[inline(always)]
fn hello(packet: &Packet, pu: u32, info: &Pu, existing: Option<&mut Flow>) -> Result<(), Reason> {
    let (option, credential) = introduction(info)?;
    depart(packet, pu, info, existing, 0, &option, Some(credential))
}

/// Option and credential of a first contact.
#[inline(always)]
pub fn introduction(info: &Pu) -> Result<(OptionBytes, &'static Credential), Reason> {
    if info.credential_until_ns <= coarse_now() {
        return Err(Reason::NoCredential);
    }
    // SAFETY: the agent writes a fresh slot before it names it in `PUS`.
    let credential = unsafe { CREDENTIALS.get(info.credential) }.ok_or(Reason::NoCredential)?;
    Ok((OptionBytes::new(HELLO, 0, info.handle, credential.hash_index, credential.hash_mac), credential))
}

#[inline(always)]
fn depart(
    packet: &Packet,
    pu: u32,
    info: &Pu,
    existing: Option<&mut Flow>,
    session: u32,
    option: &OptionBytes,
    credential: Option<&Credential>,
) -> Result<(), Reason> {
    let path = if session == 0 { PATH_HELLO } else { PATH_RESUME };
    match existing.filter(|flow| is_repeated(packet, flow)) {
        Some(flow) => {
            // What asked for more has answered.
            let silent = flow.state == SYN_SENT
                && flow.path == PATH_HELLO
                && path == PATH_HELLO
                && flow.flags & (FLAG_RETRIED | FLAG_CHALLENGED) == 0;
            // What becomes a RESUME with this SYN has not been tried as one.
            let beside = flow.state == SYN_SENT && flow.path == path && flow.packets_out == OUT_OF_BAND - 1;
            if flow.state == SYN_SENT {
                if path == PATH_HELLO || flow.path != PATH_OUT_OF_BAND {
                    flow.path = path;
                }
                flow.session = session;
                flow.flags &= !FLAG_CHALLENGED;
            }
            account_out(flow, packet.ip, packet.tcp, packet.ctx.len());
            if silent && flow.packets_out == UNANSWERED {
                unanswered(packet, flow);
            }
            if beside {
                contact_out_of_band(packet, pu);
            }
        }
        None => {
            enter(packet.key, |flow| {
                start(packet, flow, pu, info);
                flow.state = SYN_SENT;
                flow.path = path;
                flow.session = session;
            })?;
            if path == PATH_HELLO && is_refused_in_band(packet) {
                contact_out_of_band(packet, pu);
            }
        }
    }
    let mut header = packet.tcp.header;
    if header > 40 {
        header = make_room(packet.ctx, packet.ip, packet.tcp)?;
    }
    attach(packet.ctx, packet.ip, header, option, credential)?;
    count_handshake(option.packet_type(), false);
    Ok(())
}

/// Whether a first contact to this address is known not to be answered in band.
#[inline(always)]
fn is_refused_in_band(packet: &Packet) -> bool {
    if packet.config.fallback_port() == 0 {
        return false;
    }
    // SAFETY: read-only value of a scalar.
    unsafe { FALLBACK_PATHS.get(packet.ip.dst) }.is_some_and(|until| *until > coarse_now())
}

/// Shows the agent the SYN, which goes on by itself: whichever contact is answered first is the one that counts.
#[inline(never)]
fn contact_out_of_band(packet: &Packet, pu: u32) {
    if packet.config.fallback_port() == 0 || ifindex(packet.ctx) == LOOPBACK {
        return;
    }
    let at_pu_interface = packet.source == Source::Interface;
    let what = Hold { kind: HELD_UNANSWERED, pu, subject: 0, object: 0, at_pu_interface };
    // Without the agent nothing is lost but this.
    let _ = hold(packet.ctx, packet.key, &what);
}

/// Said once for each attempt: paths on which a SYN with data is lost look like this, and like peers that are down.
#[inline(never)]
fn unanswered(packet: &Packet, flow: &Flow) {
    let at = At { role: CLIENT, inbound: false, by_peer: false };
    refused(packet.key, &Parties::of(flow), Reason::HelloUnanswered, at);
}

/// Whether this SYN is sent again: its answer may be with the agent this very moment, so the flow is not entered anew.
#[inline(always)]
fn is_repeated(packet: &Packet, flow: &Flow) -> bool {
    flow.role == CLIENT && flow.local_isn == packet.tcp.seq && flow.state != CUT
}

#[inline(always)]
fn start(packet: &Packet, flow: &mut Flow, pu: u32, info: &Pu) {
    flow.role = CLIENT;
    flow.pu = pu;
    flow.local_identity = info.identity;
    flow.local_handle = info.handle;
    flow.local_isn = packet.tcp.seq;
    flow.generation = packet.config.generation;
    flow.ifindex = ifindex(packet.ctx);
    flow.pu_ifindex = packet.source.interface(packet.ctx);
    flow.created_ns = now();
    account_out(flow, packet.ip, packet.tcp, packet.ctx.len());
}
