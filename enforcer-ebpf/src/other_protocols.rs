//! Everything that is not plain TCP: for a PU it is denied unless an external-network rule allows it by address.

use aya_ebpf::{btf_maps::lpm_trie::Key, programs::TcContext};
use common::{
    Addr,
    abi::{CONFIG_HAS_PU, Config},
    drop_reason::Reason,
    event::{HELD_ANSWER, HELD_QUESTION},
    flow::{CLIENT, ESTABLISHED, FLAG_LOG, Flow, FlowKey, PATH_EXTERNAL, SERVER},
    verdict::position,
};

use crate::{
    attribute::{Source, UNMANAGED, ifindex, is_complete, observes, pu_info},
    cleared::{Clear, cleared},
    datagram::{HAND_ON, ends_with_trailer, holds_trailer},
    emit::{At, Parties, config, count_reason, now, refused},
    flow_table::{Lookup, coarse_now, enter_once, find},
    host, icmp_errors,
    judge::{Verdict, judge, rejudge},
    maps::{FRAGMENTS_SCRATCH, JUDGED_SCRATCH, NETWORKS},
    names,
    outbound::{DROP, PASS},
    packet::{Bytes, ICMP, ICMPV6, Ip, Parsed, TCP, UDP, fragment_id, is_of_the_link, is_own_copy, is_to_many, read},
    turn_around::Way,
};

/// Whether a local socket sent this packet.
#[inline(always)]
pub fn from_socket(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid; the pointer is only compared.
    unsafe { !(*ctx.skb.skb).__bindgen_anon_2.sk.is_null() }
}

/// A packet whose headers make no sense: dropped where it would leave or reach a PU.
#[inline(never)]
pub fn unparsable(ctx: &TcContext, source: Source, way: Way) -> i32 {
    let outbound = way == Way::Out;
    // The stack takes more extension headers than are walked here, so what cannot be read may still reach a PU.
    let nobody = if outbound {
        source.sender(ctx) == UNMANAGED
    } else {
        config().is_some_and(|config| config.flags & CONFIG_HAS_PU == 0)
    };
    if source == Source::Socket && nobody {
        return PASS;
    }
    cleared!(key: FlowKey);
    cleared!(parties: Parties);
    refused(key, parties, Reason::Malformed, At { role: CLIENT, inbound: !outbound, by_peer: false });
    DROP
}

/// Neither IPv4 nor IPv6. A PU behind an interface resolves addresses itself; a socket of a PU that writes such frames has
/// no need to.
#[inline(never)]
pub fn of_no_internet(ctx: &TcContext, source: Source, way: Way) -> i32 {
    if source == Source::Interface && is_of_the_link(ctx) {
        return PASS;
    }
    cleared!(parties: Parties);
    parties.pu = source.sender(ctx);
    if parties.pu == UNMANAGED {
        return PASS;
    }
    cleared!(key: FlowKey);
    refused(key, parties, Reason::ProtocolDenied, At { role: CLIENT, inbound: way == Way::In, by_peer: false });
    DROP
}

/// A packet on an interface without link-layer header, where identity is not carried yet: none leaves or reaches a PU.
#[inline(never)]
pub fn bare(ctx: &TcContext, source: Source, parsed: &mut Parsed, way: Way) -> i32 {
    let ip = &parsed.ip;
    if ip.later_fragment {
        return PASS;
    }
    let inbound = way == Way::In;
    let Some((sport, dport)) = ports(ctx, ip) else { return unparsable(ctx, source, way) };
    if inbound && source == Source::Socket && is_to_many(ctx, ip) {
        return to_many(ctx, source, parsed, (sport, dport));
    }
    let pu = if inbound {
        ip.key_of_receiver(sport, dport, &mut parsed.key);
        if ip.proto != TCP && ip.proto != UDP {
            return PASS;
        }
        source.receiver(ctx, ip, &parsed.key, true)
    } else {
        ip.key_of_sender(sport, dport, &mut parsed.key);
        source.sender(ctx)
    };
    if pu == UNMANAGED {
        return PASS;
    }
    cleared!(parties: Parties);
    parties.pu = pu;
    let role = if inbound { SERVER } else { CLIENT };
    refused(&parsed.key, parties, Reason::NoLinkHeader, At { role, inbound, by_peer: false });
    DROP
}

#[inline(never)]
pub fn outbound(ctx: &TcContext, config: &Config, source: Source, parsed: &mut Parsed) -> i32 {
    if parsed.ip.later_fragment {
        return later_fragment(ctx, source, parsed);
    }
    let result = first_or_whole(ctx, config, source, parsed);
    if parsed.ip.first_fragment && result == PASS {
        sent_first(ctx, source, &parsed.ip, PASSED);
    }
    result
}

/// The packets of which PUs have sent the first fragment.
#[repr(C, align(8))]
pub struct FragmentKey {
    source: Addr,
    target: Addr,
    pu: u32,
    id: u32,
    proto: u64,
}

/// Of a packet's fragments: the others pass. Otherwise its ports, for them to be decided by its flow.
pub const PASSED: u32 = 0;

// SAFETY: integers and arrays of integers only, aligned to eight bytes, of a size that is a multiple of eight.
unsafe impl Clear for FragmentKey {}

#[inline(always)]
fn fragment_key(ctx: &TcContext, ip: &Ip, pu: u32, key: &mut FragmentKey) {
    key.source = ip.src;
    key.target = ip.dst;
    key.pu = pu;
    key.id = fragment_id(ctx, ip);
    key.proto = ip.proto as u64;
}

/// Notes what becomes of a packet's later fragments: [`PASSED`], or its ports.
#[inline(never)]
pub fn sent_first(ctx: &TcContext, source: Source, ip: &Ip, what: u32) {
    let pu = source.sender(ctx);
    if pu != UNMANAGED {
        cleared!(key: FragmentKey);
        fragment_key(ctx, ip, pu, key);
        let _ = FRAGMENTS_SCRATCH.insert(&*key, what, 0);
    }
}

/// What was noted of the packet that a later fragment of `pu` belongs to.
#[inline(never)]
pub fn first_of(ctx: &TcContext, ip: &Ip, pu: u32) -> Option<u32> {
    cleared!(key: FragmentKey);
    fragment_key(ctx, ip, pu, key);
    // SAFETY: read-only value of a scalar.
    unsafe { FRAGMENTS_SCRATCH.get(&*key) }.copied()
}

/// A fragment without ports follows the one that has them.
#[inline(never)]
fn later_fragment(ctx: &TcContext, source: Source, parsed: &mut Parsed) -> i32 {
    let pu = source.sender(ctx);
    if pu == UNMANAGED {
        return PASS;
    }
    let ip = &parsed.ip;
    match first_of(ctx, ip, pu) {
        Some(PASSED) => return PASS,
        Some(_) => return HAND_ON,
        None => {}
    }
    ip.key_of_sender(0, 0, &mut parsed.key);
    cleared!(parties: Parties);
    parties.pu = pu;
    denied(&parsed.key, parties, Reason::Fragment, CLIENT)
}

#[inline(always)]
fn first_or_whole(ctx: &TcContext, config: &Config, source: Source, parsed: &mut Parsed) -> i32 {
    let ip = &parsed.ip;
    let Some((sport, dport)) = ports(ctx, ip) else { return unparsable(ctx, source, Way::Out) };
    ip.key_of_sender(sport, dport, &mut parsed.key);
    let key = &parsed.key;
    match find(key, source.interface(ctx)) {
        Lookup::Elsewhere => return PASS,
        Lookup::Ours(flow) if ip.proto != TCP && is_for_datagrams(ctx, config, ip, flow) => return HAND_ON,
        Lookup::Ours(flow) if ip.proto != TCP && flow.state == ESTABLISHED => {
            if let Some(other) = another(ctx, source, flow.pu) {
                return judge_beside(parsed, other, CLIENT);
            }
            if flow.generation == config.generation || rejudge(key, flow, config.generation) {
                flow.bytes_out += (ctx.len() - 14) as u64;
                flow.packets_out += 1;
                flow.seen_ns = coarse_now();
                if names::resolving(config, key, flow) {
                    names::show(ctx, key, flow.pu, HELD_QUESTION, source);
                }
                return PASS;
            }
            return DROP;
        }
        _ => {}
    }
    let pu = source.sender(ctx);
    if pu == UNMANAGED {
        let denied = ip.proto == UDP && host::denies_unmanaged(config) && !is_dhcp(sport, dport) && from_socket(ctx);
        if !denied {
            return PASS;
        }
        cleared!(parties: Parties);
        refused(key, parties, Reason::UnmanagedDenied, At { role: CLIENT, inbound: false, by_peer: false });
        return DROP;
    }
    if is_neighbour_discovery(ip, (sport, dport)) {
        return PASS;
    }
    by_address(ctx, config, source, ip, key, pu, CLIENT, true)
}

/// Whether the programs of datagrams are to decide this packet of a flow with identity.
#[inline(always)]
fn is_for_datagrams(ctx: &TcContext, config: &Config, ip: &Ip, flow: &Flow) -> bool {
    flow.path != PATH_EXTERNAL
        && (flow.state != ESTABLISHED || flow.generation != config.generation || holds_trailer(ctx, ip))
}

/// The PU that sends within a flow of another's, by a shared port, a raw or a packet socket.
#[inline(always)]
fn another(ctx: &TcContext, source: Source, pu: u32) -> Option<u32> {
    if source == Source::Interface {
        return None;
    }
    let sender = source.sender(ctx);
    (sender != pu && sender != UNMANAGED).then_some(sender)
}

/// Each socket is asked for itself; what is decided here would be decided for all. But what a socket of this host sent comes
/// around, without link-layer header, before it passes any interface's egress: it is judged as what that socket sends, as
/// far as it can be told which it was.
#[inline(never)]
fn to_many(ctx: &TcContext, source: Source, parsed: &mut Parsed, (sport, dport): (u16, u16)) -> i32 {
    if parsed.ip.proto != UDP || !is_own_copy(ctx) {
        return PASS;
    }
    core::mem::swap(&mut parsed.ip.src, &mut parsed.ip.dst);
    parsed.ip.key_of_receiver(dport, sport, &mut parsed.key);
    let pu = source.receiver(ctx, &parsed.ip, &parsed.key, false);
    if pu == UNMANAGED {
        return PASS;
    }
    judge_beside(parsed, pu, CLIENT)
}

#[inline(never)]
pub fn inbound(ctx: &TcContext, config: &Config, source: Source, parsed: &mut Parsed) -> i32 {
    let ip = &parsed.ip;
    if ip.later_fragment {
        return PASS;
    }
    let Some((sport, dport)) = ports(ctx, ip) else { return unparsable(ctx, source, Way::In) };
    if source == Source::Socket && is_to_many(ctx, ip) {
        return to_many(ctx, source, parsed, (sport, dport));
    }
    ip.key_of_receiver(sport, dport, &mut parsed.key);
    let key = &parsed.key;
    // An error belongs to the flow it quotes, not to one of errors.
    let error = icmp_errors::is_one(ip, (sport, dport));
    let found = if error { Lookup::None } else { find(key, source.interface(ctx)) };
    if let Lookup::Ours(flow) = &found {
        approve(ctx, config, source, flow.pu);
    }
    match found {
        Lookup::Elsewhere => return PASS,
        Lookup::Ours(flow) if ip.proto != TCP && is_for_datagrams(ctx, config, ip, flow) => return HAND_ON,
        Lookup::Ours(flow) if ip.proto != TCP && flow.state == ESTABLISHED => {
            if flow.generation == config.generation || rejudge(key, flow, config.generation) {
                flow.bytes_in += (ctx.len() - 14) as u64;
                flow.packets_in += 1;
                flow.seen_ns = coarse_now();
                if names::resolving(config, key, flow) && names::show(ctx, key, flow.pu, HELD_ANSWER, source) {
                    return DROP;
                }
                return PASS;
            }
            return DROP;
        }
        _ => {}
    }
    approve(ctx, config, source, UNMANAGED);
    if source == Source::Socket {
        let interface = ifindex(ctx);
        // SAFETY: only whether there is an entry.
        if unsafe { JUDGED_SCRATCH.get(interface) }.is_none() {
            let _ = JUDGED_SCRATCH.insert(interface, 1, 0);
        }
    }
    if error || (ip.proto == UDP || is_echo(ip, dport)) && ends_with_trailer(ctx, ip) {
        return HAND_ON;
    }
    if source == Source::Socket && ip.proto != TCP && ip.proto != UDP {
        return PASS;
    }
    let pu = source.receiver(ctx, ip, key, false);
    if pu == UNMANAGED || is_neighbour_discovery(ip, (sport, dport)) {
        return PASS;
    }
    approve(ctx, config, source, pu);
    by_address(ctx, config, source, ip, key, pu, SERVER, false)
}

/// Notes whose a packet is that goes on to the stack, for its socket to be compared with: by then its addresses may have been
/// translated. Nothing else sets so high a priority without CAP_NET_ADMIN, nor knows the mark.
#[inline(always)]
pub fn approve(ctx: &TcContext, config: &Config, source: Source, pu: u32) {
    if source == Source::Socket {
        // SAFETY: the context is valid for the whole program; volatile keeps the write to one field.
        unsafe {
            (&raw mut (*ctx.skb.skb).priority).write_volatile(if pu == UNMANAGED { 0 } else { config.mark ^ pu })
        };
    }
}

/// Whether TC found this packet to be `pu`'s.
#[inline(always)]
pub fn is_approved(ctx: &TcContext, config: &Config, pu: u32) -> bool {
    // SAFETY: as above.
    config.mark != 0 && unsafe { (*ctx.skb.skb).priority } == config.mark ^ pu
}

/// Judges what one socket of `pu` is about to hear.
#[inline(never)]
pub fn judge_received(ctx: &TcContext, config: &Config, parsed: &Parsed, pu: u32) -> i32 {
    by_address(ctx, config, Source::Socket, &parsed.ip, &parsed.key, pu, SERVER, false)
}

/// Judges a packet on whose addresses and ports another PU converses: beside that flow no other can be entered.
#[inline(never)]
pub fn judge_beside(parsed: &Parsed, pu: u32, role: u8) -> i32 {
    cleared!(parties: Parties);
    parties.pu = pu;
    match permitted(&parsed.ip, &parsed.key, role, parties) {
        Ok(_) => PASS,
        Err(reason) => denied(&parsed.key, parties, reason, role),
    }
}

/// What no rule allows by address may be allowed by identity, where it could be sent: `hand_on` leaves that to others.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined; a structure would take the stack's room")]
fn by_address(
    ctx: &TcContext,
    config: &Config,
    source: Source,
    ip: &Ip,
    key: &FlowKey,
    pu: u32,
    role: u8,
    hand_on: bool,
) -> i32 {
    cleared!(parties: Parties);
    parties.pu = pu;
    let result = match permitted(ip, key, role, parties) {
        Ok(verdict) => note(ctx, config, source, key, role, parties, &verdict),
        Err(reason) => Err(reason),
    };
    match result {
        Ok(()) => PASS,
        Err(Reason::ProtocolDenied) if hand_on && may_bear_identity(ip, key) => HAND_ON,
        Err(reason) => denied(key, parties, reason, role),
    }
}

/// What bears identity, or belongs to a flow that does.
#[inline(always)]
fn may_bear_identity(ip: &Ip, key: &FlowKey) -> bool {
    ip.proto == UDP || is_echo(ip, key.remote_port) || icmp_errors::is_one(ip, (key.local_port, key.remote_port))
}

#[inline(always)]
fn denied(key: &FlowKey, parties: &Parties, reason: Reason, role: u8) -> i32 {
    refused(key, parties, reason, At { role, inbound: role == SERVER, by_peer: false });
    DROP
}

/// What external-network rules say.
#[inline(always)]
fn permitted(ip: &Ip, key: &FlowKey, role: u8, parties: &mut Parties) -> Result<Verdict, Reason> {
    let info = pu_info(parties.pu).ok_or(Reason::NoCredential)?;
    parties.local_identity = info.identity;
    if !is_complete(info) {
        return Err(Reason::PuIncomplete);
    }
    if ip.extended {
        return Err(Reason::ExtensionHeader);
    }
    if ip.proto == TCP {
        return Err(Reason::Fragment);
    }
    let network = NETWORKS.get(&Key::new(128, key.remote)).copied().unwrap_or_default();
    let (subject, object, port, other) = if role == CLIENT {
        (info.identity, network.external, key.remote_port, key.local_port)
    } else {
        (network.external, info.identity, key.local_port, key.remote_port)
    };
    // An answer nobody asked for is judged as its question, whatever identifier it bears.
    let port = if is_echo(ip, other) && !is_echo(ip, port) { other } else { port };
    let mut verdict = Verdict::NONE;
    let mut reason = Reason::ProtocolDenied;
    if network.external != 0 {
        match judge(subject, object, position(ip.proto, port)) {
            Some(judged) => verdict = judged,
            None => reason = Reason::Undecided,
        }
    }
    if verdict.rule != 0 {
        reason = Reason::DenyRule;
    }
    let verdict = verdict.lift(observes(info), reason);
    parties.rule = verdict.rule;
    parties.peer_identity = network.external;
    if verdict.allow { Ok(verdict) } else { Err(reason) }
}

/// Enters the flow of a packet that may pass.
#[inline(always)]
fn note(
    ctx: &TcContext,
    config: &Config,
    source: Source,
    key: &FlowKey,
    role: u8,
    parties: &Parties,
    verdict: &Verdict,
) -> Result<(), Reason> {
    let first = enter_once(key, |flow| {
        flow.state = ESTABLISHED;
        flow.role = role;
        flow.path = PATH_EXTERNAL;
        flow.pu = parties.pu;
        flow.local_identity = parties.local_identity;
        flow.peer_identity = parties.peer_identity;
        flow.rule = verdict.rule;
        flow.observed_rule = verdict.observed_rule;
        flow.reason = verdict.lifted;
        flow.flags = if verdict.log { FLAG_LOG } else { 0 };
        flow.generation = config.generation;
        flow.ifindex = ifindex(ctx);
        flow.pu_ifindex = source.interface(ctx);
        flow.created_ns = now();
        flow.seen_ns = coarse_now();
    })?;
    if first {
        count_reason(Reason::Allowed, role == SERVER);
    }
    if key.proto == UDP && names::will_resolve(config, key, role) {
        names::show(ctx, key, parties.pu, HELD_QUESTION, source);
    }
    Ok(())
}

/// Ports of TCP and UDP; zero otherwise. Of ICMP, type and code stand in both, but an echo's are the port of the end that
/// answers, and its identifier the port of the one that asks.
#[inline(always)]
pub fn ports(ctx: &impl Bytes, ip: &Ip) -> Option<(u16, u16)> {
    if ip.l4 > 1024 {
        return None;
    }
    match ip.proto {
        TCP | UDP => {
            let ports: [u8; 4] = read(ctx, ip.l4)?;
            Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
        }
        ICMP | ICMPV6 => {
            let head: [u8; 8] = read(ctx, ip.l4)?;
            let id = u16::from_be_bytes([head[4], head[5]]);
            let of = |question| u16::from_be_bytes([question, head[1]]);
            Some(match (ip.proto, head[0]) {
                (ICMP, 8) | (ICMPV6, 128) => (id, of(head[0])),
                (ICMP, 0) => (of(8), id),
                (ICMPV6, 129) => (of(128), id),
                (_, other) => (of(other), of(other)),
            })
        }
        _ => Some((0, 0)),
    }
}

/// Router and neighbour discovery (RFC 4861), without which a host has no network at all. `ports` as of [`ports`].
#[inline(always)]
pub fn is_neighbour_discovery(ip: &Ip, ports: (u16, u16)) -> bool {
    ip.proto == ICMPV6 && ports.0 == ports.1 && matches!(ports.0 >> 8, 133..=137)
}

#[inline(always)]
pub fn is_echo(ip: &Ip, kind: u16) -> bool {
    ip.proto == ICMP && kind >> 8 == 8 || ip.proto == ICMPV6 && kind >> 8 == 128
}

/// DHCP and DHCPv6 clients asking a server, without which a host loses its address.
#[inline(always)]
fn is_dhcp(sport: u16, dport: u16) -> bool {
    sport == 68 && dport == 67 || sport == 546 && dport == 547
}
