//! The way out of a PU: what its packets must carry, and what it may send at all.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use common::{
    abi::Config,
    drop_reason::Reason,
    event::HELD_QUESTION,
    flow::{
        CLIENT, CONFIRMING, CUT, ESTABLISHED, FLAG_CLOSED, FLAG_CREDENTIAL_SENT, Flow, FlowKey, PATH_EXTERNAL,
        PATH_HELLO, SERVER, SYN_RECEIVED,
    },
    identity::{Pu, SessionPu},
    wire::{HELLO_REPLY, RESUME_REPLY, Transcript, sealed},
};

use crate::{
    attribute::{Source, UNMANAGED, is_observed, pu_info},
    cleared::cleared,
    confirm,
    emit::{At, Parties, count_handshake, refused},
    flow_table::{Lookup, account_out, coarse_now, find, remove},
    host,
    maps::{CREDENTIALS, KNOWN_TO_PEER, PACKET_SCRATCH, SESSIONS},
    names,
    observe::take_over,
    other_protocols,
    outbound_open::open,
    packet::{ACK, FIN, Ip, Kind, Parsed, RST, SYN, Tcp, is_tagged, parse},
    rewrite::attach,
    turn_around::{Way, into_reset, send_back},
};

/// Hand on to whatever follows.
pub const PASS: i32 = TC_ACT_UNSPEC;
/// Drop.
pub const DROP: i32 = TC_ACT_SHOT;

/// Everything a step needs to know about the packet.
pub struct Packet<'a> {
    pub ctx: &'a TcContext,
    pub config: &'a Config,
    pub source: Source,
    pub ip: &'a Ip,
    pub tcp: &'a Tcp,
    pub key: &'a FlowKey,
}

/// This CPU's place for a parsed packet.
#[inline(always)]
pub fn scratch(source: Source) -> Option<&'static mut Parsed> {
    // SAFETY: programs on one CPU do not interrupt each other between parsing and verdict, but for those of a PU's
    // interface, when an answer is cloned into it; these have a place of their own.
    PACKET_SCRATCH.get_ptr_mut(source as u32).map(|parsed| unsafe { &mut *parsed })
}

/// Judges one packet on its way out of a PU.
#[inline(always)]
pub fn outbound(ctx: &TcContext, config: &Config, source: Source) -> i32 {
    let Some(parsed) = scratch(source) else { return DROP };
    match parse(ctx, parsed, false) {
        Kind::Tcp => {}
        Kind::Other => return other_protocols::outbound(ctx, config, source, parsed),
        Kind::Bare => return other_protocols::bare(ctx, source, parsed, Way::Out),
        Kind::NotIp if is_tagged(ctx) => return other_protocols::unparsable(ctx, source, Way::Out),
        Kind::NotIp => return other_protocols::of_no_internet(ctx, source, Way::Out),
        Kind::Malformed => return other_protocols::unparsable(ctx, source, Way::Out),
    }
    let packet = Packet { ctx, config, source, ip: &parsed.ip, tcp: &parsed.tcp, key: &parsed.key };
    let opening = packet.tcp.flags & (SYN | ACK) == SYN;
    match find(packet.key, source.interface(ctx)) {
        Lookup::Elsewhere => PASS,
        Lookup::Ours(flow) if !opening => {
            if source == Source::Socket && is_foreign(&packet, flow) {
                return forged(&packet, flow);
            }
            of_flow(&packet, flow)
        }
        // A SYN on a known tuple is attributed like any other: whoever sends it gets no identity from the flow.
        Lookup::Ours(flow) => unowned(&packet, opening, Some(flow)),
        Lookup::None => unowned(&packet, opening, None),
    }
}

/// A packet whose sender no flow tells.
#[inline(always)]
fn unowned(packet: &Packet, opening: bool, existing: Option<&mut Flow>) -> i32 {
    let pu = packet.source.sender(packet.ctx);
    if pu == UNMANAGED {
        return unmanaged(packet, opening);
    }
    if opening { open(packet, pu, existing) } else { stray(packet, pu) }
}

/// Whether something else than the connection's own socket sent this: a TCP socket bears its port as its number, which
/// raw and packet sockets do not.
#[inline(always)]
fn is_foreign(packet: &Packet, flow: &Flow) -> bool {
    // SAFETY: the context is valid for the whole program; the socket is null-checked, as the verifier demands.
    let port = unsafe {
        let sk = (*packet.ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return false;
        }
        (*sk).src_port
    };
    port != packet.key.local_port as u32 && is_of_another(packet, flow)
}

/// Whether that sender is another PU, or nobody's and writes more than the stack does in its own name (resets, and
/// acknowledgements for sockets in TIME_WAIT).
#[inline(never)]
fn is_of_another(packet: &Packet, flow: &Flow) -> bool {
    let pu = packet.source.sender(packet.ctx);
    pu != flow.pu && (pu != UNMANAGED || packet.tcp.payload != 0)
}

#[inline(never)]
fn forged(packet: &Packet, flow: &Flow) -> i32 {
    refused(packet.key, &Parties::of(flow), Reason::ForgedByPu, At { role: flow.role, inbound: false, by_peer: false });
    DROP
}

#[inline(always)]
fn unmanaged(packet: &Packet, opening: bool) -> i32 {
    if opening && host::denies_unmanaged(packet.config) && other_protocols::from_socket(packet.ctx) {
        cleared!(parties: Parties);
        return refuse_locally(packet, parties, Reason::UnmanagedDenied);
    }
    PASS
}

/// A segment of a PU outside any connection: older than the PU, or forged.
#[inline(never)]
fn stray(packet: &Packet, pu: u32) -> i32 {
    if packet.tcp.option.is_none() && is_observed(pu) {
        return take_over(packet, pu, false);
    }
    if packet.tcp.option.is_none() && host::is_older(packet, pu, false) {
        return PASS;
    }
    let reason = if packet.tcp.option.is_some() { Reason::ForgedByPu } else { Reason::NoFlow };
    let role = if packet.tcp.flags & SYN != 0 { SERVER } else { CLIENT };
    cleared!(parties: Parties);
    parties.pu = pu;
    refused(packet.key, parties, reason, At { role, inbound: false, by_peer: false });
    DROP
}

#[inline(always)]
fn of_flow(packet: &Packet, flow: &mut Flow) -> i32 {
    if flow.state == ESTABLISHED {
        if flow.generation != packet.config.generation && !still_allowed(packet, flow) {
            return reset_sender(packet);
        }
        if packet.tcp.option.is_some() && flow.path != PATH_EXTERNAL {
            return settle_option(packet, flow);
        }
        if packet.tcp.flags & SYN != 0 && !is_of_listener(packet, flow) {
            return other_listener(packet, flow);
        }
        account_out(flow, packet.ip, packet.tcp, packet.ctx.len());
        if packet.tcp.flags & RST != 0 {
            last_word(packet, flow);
        } else if packet.tcp.payload > 0 && names::resolving(packet.config, packet.key, flow) {
            names::show(packet.ctx, packet.key, flow.pu, HELD_QUESTION, packet.source);
        }
        return PASS;
    }
    handshake(packet, flow)
}

/// A reset leaves: behind a socket that is gone there is nothing more to come.
#[inline(always)]
fn last_word(packet: &Packet, flow: &Flow) {
    if flow.flags & FLAG_CLOSED != 0 {
        remove(packet.key);
    }
}

#[inline(never)]
fn handshake(packet: &Packet, flow: &mut Flow) -> i32 {
    if flow.state == CUT {
        return reset_sender(packet);
    }
    if packet.tcp.flags & RST != 0 && packet.tcp.option.is_none() {
        account_out(flow, packet.ip, packet.tcp, packet.ctx.len());
        last_word(packet, flow);
        return PASS;
    }
    if flow.state == SYN_RECEIVED && packet.tcp.flags & (SYN | ACK) == SYN | ACK {
        return answer(packet, flow);
    }
    if flow.state == CONFIRMING {
        return confirm::outbound(packet, flow);
    }
    if flow.state == SYN_RECEIVED && is_challenge(packet) {
        return PASS;
    }
    let reason = if packet.tcp.option.is_some() { Reason::ForgedByPu } else { Reason::Unconfirmed };
    refused(packet.key, &Parties::of(flow), reason, At { role: flow.role, inbound: false, by_peer: false });
    DROP
}

/// Whether the stack still holds an older connection on these ports and asks the client, whose SYN was let in, to end it (RFC 5961
/// section 4.2): kept back, neither end would hear of the other until the older one had given up.
#[inline(always)]
fn is_challenge(packet: &Packet) -> bool {
    packet.tcp.flags & (SYN | FIN | RST | ACK) == ACK && packet.tcp.payload == 0 && packet.tcp.option.is_none()
}

/// The option on a settled flow: a CONFIRM still in flight when the peer was heard is fine, anything else was forged.
#[inline(never)]
fn settle_option(packet: &Packet, flow: &mut Flow) -> i32 {
    if confirm::matches(packet, flow) {
        account_out(flow, packet.ip, packet.tcp, packet.ctx.len());
        return PASS;
    }
    refused(packet.key, &Parties::of(flow), Reason::ForgedByPu, At { role: flow.role, inbound: false, by_peer: false });
    DROP
}

/// The SYN-ACK: RESUME_REPLY, or HELLO_REPLY with the credential if the peer has not seen this PU.
#[inline(always)]
fn answer(packet: &Packet, flow: &mut Flow) -> i32 {
    if !is_of_listener(packet, flow) {
        return other_listener(packet, flow);
    }
    match write_answer(packet, flow) {
        Ok(()) => {
            // Option and credential are not in sequence.
            account_out(flow, packet.ip, packet.tcp, packet.ip.l4 + packet.tcp.header);
            PASS
        }
        Err(reason) => {
            refused(packet.key, &Parties::of(flow), reason, At { role: SERVER, inbound: false, by_peer: false });
            DROP
        }
    }
}

/// Whether the listener that answers is the one that was judged: sockets that share a port may have a program that chooses
/// another among them. Answers with SYN cookies belong to no socket.
#[inline(never)]
fn is_of_listener(packet: &Packet, flow: &Flow) -> bool {
    packet.source == Source::Interface
        || !other_protocols::from_socket(packet.ctx)
        || packet.source.sender(packet.ctx) == flow.pu
}

/// Nothing of the connection stays: as long as its SYN is sent again, it is judged and chosen for again.
#[inline(never)]
fn other_listener(packet: &Packet, flow: &Flow) -> i32 {
    refused(packet.key, &Parties::of(flow), Reason::OtherListener, At { role: SERVER, inbound: false, by_peer: false });
    remove(packet.key);
    DROP
}

#[inline(never)]
fn write_answer(packet: &Packet, flow: &mut Flow) -> Result<(), Reason> {
    if packet.tcp.option.is_some() {
        return Err(Reason::ForgedByPu);
    }
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let session = unsafe { SESSIONS.get(flow.session) }.ok_or(Reason::SessionExpired)?;
    flow.local_isn = packet.tcp.seq;
    let transcript = Transcript { sender_isn: flow.local_isn, peer_isn: flow.peer_isn, peer_handle: flow.peer_handle };
    let known = SessionPu { session: flow.session, handle: flow.local_handle, pad: 0 };
    // SAFETY: read-only value of a scalar.
    let remembered = unsafe { KNOWN_TO_PEER.get(known) }.is_some_and(|until| *until > coarse_now());
    if remembered && flow.path != PATH_HELLO {
        let option = sealed(&session.key_out, RESUME_REPLY, 0, flow.local_handle, session.peer_index, &transcript);
        attach(packet.ctx, packet.ip, packet.tcp.header, &option, None)?;
        count_handshake(RESUME_REPLY, false);
        return Ok(());
    }
    let info = pu_info(flow.pu).ok_or(Reason::NoCredential)?;
    if flow.credential == 0 {
        // From here on the answer stays what it is, whatever becomes of the PU's tags.
        flow.credential = info.credential;
        flow.local_handle = info.handle;
    }
    // SAFETY: the agent writes a fresh slot before it names it in `PUS`.
    let credential = unsafe { CREDENTIALS.get(credential_slot(flow, info)) }.ok_or(Reason::NoCredential)?;
    let option = sealed(&session.key_out, HELLO_REPLY, 0, flow.local_handle, flow.session, &transcript);
    attach(packet.ctx, packet.ip, packet.tcp.header, &option, Some(credential))?;
    flow.flags |= FLAG_CREDENTIAL_SENT;
    flow.path = PATH_HELLO;
    count_handshake(HELLO_REPLY, false);
    Ok(())
}

/// The credential that belongs to the flow's session.
#[inline(always)]
pub fn credential_slot(flow: &Flow, info: &Pu) -> u32 {
    if flow.credential != 0 { flow.credential } else { info.credential }
}

/// Judges a live flow again after the policy changed. A flow that is no longer allowed is cut.
#[inline(always)]
pub fn still_allowed(packet: &Packet, flow: &mut Flow) -> bool {
    crate::judge::rejudge(packet.key, flow, packet.config.generation)
}

/// Answers a segment of a cut flow with the reset its sender accepts.
#[inline(never)]
fn reset_sender(packet: &Packet) -> i32 {
    if packet.tcp.flags & RST != 0 {
        return PASS;
    }
    match into_reset(packet.ctx, packet.ip, packet.tcp, None) {
        Ok(()) => send_back(packet.ctx, packet.source, Way::Out, packet.config.mark),
        Err(_) => DROP,
    }
}

/// Refuses a connection before anything left the host: the client sees ECONNREFUSED at once.
#[inline(always)]
pub fn refuse_locally(packet: &Packet, parties: &Parties, reason: Reason) -> i32 {
    refused(packet.key, parties, reason, At { role: CLIENT, inbound: false, by_peer: false });
    reset_sender(packet)
}
