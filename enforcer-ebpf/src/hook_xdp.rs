//! XDP: the shield. Only refuses, and only what TC would refuse for the same reason; everything else goes on to TC.

use aya_ebpf::{EbpfContext, bindings::xdp_action, btf_maps::lpm_trie::Key, macros::xdp, programs::XdpContext};
use common::{
    abi::{CONFIG_STRANGERS_REJECT, Config, PU_UNSORTED},
    addr_v4,
    drop_reason::Reason,
    flow::{FlowKey, SERVER},
    identity::ListenerKey,
    wire::{HELLO, OptionBytes, RESUME, Transcript, mac},
};

use crate::{
    attribute::{Source, is_complete, is_forwarded, is_heard_by_ipv6, is_observed, pu_info},
    cleared::cleared,
    emit::{At, Parties, config, refused},
    flow_table::coarse_now,
    gate,
    host::is_withdrawn,
    maps::{FLOWS, NETWORKS, PU_LISTENERS, SESSIONS},
    outbound::scratch,
    packet::{ACK, Ip, Parsed, RST, SYN, Tcp, ip, read, tcp},
    resumes,
};

#[xdp]
pub fn xdp_shield(ctx: XdpContext) -> u32 {
    shield(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn shield(ctx: &XdpContext) -> Option<u32> {
    let parsed = scratch(Source::Socket)?;
    ip(ctx, &mut parsed.ip).ok()?;
    let ip = &parsed.ip;
    if !ip.is_plain_tcp() || ip.l4 > 1024 {
        return None;
    }
    let flags: u8 = read(ctx, ip.l4 + 13)?;
    if flags & (SYN | ACK | RST) != SYN {
        return None;
    }
    tcp(ctx, ip, &mut parsed.tcp)?;
    let tcp = &parsed.tcp;
    let config = config()?;
    ip.key_of_receiver(tcp.sport, tcp.dport, &mut parsed.key);
    let key = &parsed.key;
    match &tcp.option {
        Some(option) if option.packet_type() == RESUME => resumed(ctx, parsed, option),
        Some(option) if option.packet_type() == HELLO && gate::is_spent(&ip.src) => {
            unanswered(ctx, parsed, 0, Reason::HelloBudget)
        }
        Some(_) => None,
        None => stranger(ctx, config, ip, key),
    }
}

/// A known session: forged, or sent before.
#[inline(always)]
fn resumed(ctx: &XdpContext, parsed: &Parsed, option: &OptionBytes) -> Option<u32> {
    let Parsed { ip, tcp, key } = parsed;
    // SAFETY: the agent replaces sessions whole.
    let session = unsafe { SESSIONS.get(option.index()) }.filter(|session| session.until_ns > coarse_now());
    let Some(session) = session else {
        return if gate::is_spent(&ip.src) { unanswered(ctx, parsed, 0, Reason::UnknownSession) } else { None };
    };
    let transcript = Transcript { sender_isn: tcp.seq, ..Transcript::default() };
    if mac(&session.key_in, RESUME, option.flags, option.handle(), option.index(), &transcript) != option.mac() {
        return Some(refuse(key, option.index(), Reason::ResumeMac));
    }
    if !resumes::is_taken(option.mac()) || !gate::is_spent(&ip.src) || is_of_flow(key, tcp) {
        return None;
    }
    unanswered(ctx, parsed, option.index(), Reason::ResumeReplayed)
}

/// Whether this SYN is the one that made the connection, sent again.
#[inline(always)]
fn is_of_flow(key: &FlowKey, tcp: &Tcp) -> bool {
    // SAFETY: read-only value of a scalar.
    unsafe { FLOWS.get(key) }.is_some_and(|flow| flow.peer_isn == tcp.seq)
}

/// Traffic control would answer this, were it not that its source has had all the answers it may have.
#[inline(always)]
fn unanswered(ctx: &XdpContext, parsed: &Parsed, session: u32, reason: Reason) -> Option<u32> {
    if refuse_silently(ctx, parsed, session, reason) { Some(xdp_action::XDP_DROP) } else { None }
}

#[inline(never)]
fn refuse_silently(ctx: &XdpContext, parsed: &Parsed, session: u32, reason: Reason) -> bool {
    let Some(pu) = listening(ctx, &parsed.ip, &parsed.key) else { return false };
    if is_withdrawn(pu) || !pu_info(pu).is_some_and(is_complete) {
        return false;
    }
    cleared!(parties: Parties);
    parties.pu = pu;
    parties.session = session;
    refused(&parsed.key, parties, reason, At { role: SERVER, inbound: true, by_peer: false });
    true
}

#[inline(always)]
fn stranger(ctx: &XdpContext, config: &Config, ip: &Ip, key: &FlowKey) -> Option<u32> {
    if config.flags & CONFIG_STRANGERS_REJECT != 0 {
        return None;
    }
    let pu = listening(ctx, ip, key)?;
    // A listener that was not sorted out when it began to listen is something else by now.
    if pu == PU_UNSORTED || is_observed(pu) || is_withdrawn(pu) {
        return None;
    }
    if NETWORKS.get(&Key::new(128, ip.src)).is_some_and(|network| network.external != 0) {
        return None;
    }
    cleared!(parties: Parties);
    parties.pu = pu;
    refused(key, parties, Reason::NoIdentity, At { role: SERVER, inbound: true, by_peer: false });
    Some(xdp_action::XDP_DROP)
}

/// The PU that would hear this packet.
#[inline(always)]
fn listening(ctx: &XdpContext, ip: &Ip, key: &FlowKey) -> Option<u32> {
    // SAFETY: read-only values of scalars.
    let here = unsafe { PU_LISTENERS.get(ListenerKey { addr: key.local, port: key.local_port, pad: 0 }) };
    if let Some(pu) = here {
        return Some(*pu);
    }
    let pu = any_listener(ctx, ip, key)?;
    // A listener on any address says nothing of packets this host hands on.
    if is_forwarded(ctx.as_ptr(), ctx.ingress_ifindex() as u32, ip) { None } else { Some(*pu) }
}

/// The PU that listens on any address, if it is the one that hears this packet.
#[inline(always)]
fn any_listener(ctx: &XdpContext, ip: &Ip, key: &FlowKey) -> Option<&'static u32> {
    let mut listener = ListenerKey { addr: [0; 4], port: key.local_port, pad: 0 };
    if !ip.v6 {
        listener.addr = addr_v4(0);
        // SAFETY: read-only value of a scalar.
        if let Some(pu) = unsafe { PU_LISTENERS.get(listener) } {
            return Some(pu);
        }
        listener.addr = [0; 4];
        // A listener on `::` may leave IPv4 to another.
        if !is_heard_by_ipv6(ctx.as_ptr(), key) {
            return None;
        }
    }
    // SAFETY: as above.
    unsafe { PU_LISTENERS.get(listener) }
}

#[inline(always)]
fn refuse(key: &FlowKey, session: u32, reason: Reason) -> u32 {
    cleared!(parties: Parties);
    parties.session = session;
    refused(key, parties, reason, At { role: SERVER, inbound: true, by_peer: false });
    xdp_action::XDP_DROP
}
