//! Everything that is not plain TCP: for a PU it is denied unless an external-network rule allows it by address.

use aya_ebpf::{btf_maps::lpm_trie::Key, programs::TcContext};
use common::{
    abi::{CONFIG_HAS_PU, CONFIG_UNMANAGED_DENY, Config},
    drop_reason::Reason,
    event::{HELD_ANSWER, HELD_QUESTION},
    flow::{CLIENT, ESTABLISHED, FLAG_LOG, FlowKey, PATH_EXTERNAL, SERVER},
    verdict::position,
};

use crate::{
    attribute::{Source, UNMANAGED, ifindex, is_complete, observes, pu_info},
    cleared::cleared,
    emit::{At, Parties, config, count_reason, now, refused},
    flow_table::{Lookup, coarse_now, enter, find},
    judge::{Verdict, judge, rejudge},
    maps::NETWORKS,
    names,
    outbound::{DROP, PASS},
    packet::{ICMP, ICMPV6, Ip, Parsed, TCP, UDP, read},
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

/// A packet on an interface without link-layer header, where identity is not carried yet: none leaves or reaches a PU.
#[inline(never)]
pub fn bare(ctx: &TcContext, source: Source, parsed: &mut Parsed, way: Way) -> i32 {
    let ip = &parsed.ip;
    if ip.later_fragment {
        return PASS;
    }
    let inbound = way == Way::In;
    let Some((sport, dport)) = ports(ctx, ip) else { return unparsable(ctx, source, way) };
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
    let ip = &parsed.ip;
    if ip.later_fragment {
        return PASS;
    }
    let Some((sport, dport)) = ports(ctx, ip) else { return unparsable(ctx, source, Way::Out) };
    ip.key_of_sender(sport, dport, &mut parsed.key);
    let key = &parsed.key;
    match find(key, source.interface(ctx)) {
        Lookup::Elsewhere => return PASS,
        Lookup::Ours(flow) if ip.proto != TCP && flow.state == ESTABLISHED => {
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
        let denied =
            ip.proto == UDP && config.flags & CONFIG_UNMANAGED_DENY != 0 && !is_dhcp(sport, dport) && from_socket(ctx);
        if !denied {
            return PASS;
        }
        cleared!(parties: Parties);
        refused(key, parties, Reason::UnmanagedDenied, At { role: CLIENT, inbound: false, by_peer: false });
        return DROP;
    }
    if is_neighbour_discovery(ip, dport) {
        return PASS;
    }
    by_address(ctx, config, source, ip, key, pu, CLIENT)
}

#[inline(never)]
pub fn inbound(ctx: &TcContext, config: &Config, source: Source, parsed: &mut Parsed) -> i32 {
    let ip = &parsed.ip;
    if ip.later_fragment {
        return PASS;
    }
    let Some((sport, dport)) = ports(ctx, ip) else { return unparsable(ctx, source, Way::In) };
    ip.key_of_receiver(sport, dport, &mut parsed.key);
    let key = &parsed.key;
    match find(key, source.interface(ctx)) {
        Lookup::Elsewhere => return PASS,
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
    if source == Source::Socket && ip.proto != TCP && ip.proto != UDP {
        return PASS;
    }
    let pu = source.receiver(ctx, ip, key, false);
    if pu == UNMANAGED || is_neighbour_discovery(ip, dport) || is_icmp_error(ip, dport) {
        return PASS;
    }
    by_address(ctx, config, source, ip, key, pu, SERVER)
}

#[inline(always)]
fn by_address(ctx: &TcContext, config: &Config, source: Source, ip: &Ip, key: &FlowKey, pu: u32, role: u8) -> i32 {
    cleared!(parties: Parties);
    parties.pu = pu;
    let result = external(ctx, config, source, ip, key, role, parties);
    match result {
        Ok(()) => PASS,
        Err(reason) => {
            refused(key, parties, reason, At { role, inbound: role == SERVER, by_peer: false });
            DROP
        }
    }
}

#[inline(always)]
fn external(
    ctx: &TcContext,
    config: &Config,
    source: Source,
    ip: &Ip,
    key: &FlowKey,
    role: u8,
    parties: &mut Parties,
) -> Result<(), Reason> {
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
    let (subject, object, port) = if role == CLIENT {
        (info.identity, network.external, key.remote_port)
    } else {
        (network.external, info.identity, key.local_port)
    };
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
    if !verdict.allow {
        return Err(reason);
    }
    enter(key, |flow| {
        flow.state = ESTABLISHED;
        flow.role = role;
        flow.path = PATH_EXTERNAL;
        flow.pu = parties.pu;
        flow.local_identity = info.identity;
        flow.peer_identity = network.external;
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
    count_reason(Reason::Allowed, role == SERVER);
    if ip.proto == UDP && names::will_resolve(config, key, role) {
        names::show(ctx, key, parties.pu, HELD_QUESTION, source);
    }
    Ok(())
}

/// Ports of TCP and UDP; type and code of ICMP stand in both, so that an answer finds its question; zero otherwise.
#[inline(always)]
fn ports(ctx: &TcContext, ip: &Ip) -> Option<(u16, u16)> {
    if ip.l4 > 1024 {
        return None;
    }
    match ip.proto {
        TCP | UDP => {
            let ports: [u8; 4] = read(ctx, ip.l4)?;
            Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
        }
        ICMP | ICMPV6 => {
            let head: [u8; 2] = read(ctx, ip.l4)?;
            let question = match (ip.proto, head[0]) {
                (ICMP, 0) => 8,
                (ICMPV6, 129) => 128,
                (_, other) => other,
            };
            let kind = u16::from_be_bytes([question, head[1]]);
            Some((kind, kind))
        }
        _ => Some((0, 0)),
    }
}

/// Router and neighbour discovery (RFC 4861), without which a host has no network at all.
#[inline(always)]
fn is_neighbour_discovery(ip: &Ip, kind: u16) -> bool {
    ip.proto == ICMPV6 && matches!(kind >> 8, 133..=137)
}

/// Errors that quote a packet: unreachable, too big, time exceeded, parameter problem.
#[inline(always)]
fn is_icmp_error(ip: &Ip, kind: u16) -> bool {
    match ip.proto {
        ICMP => matches!(kind >> 8, 3 | 11 | 12),
        ICMPV6 => matches!(kind >> 8, 1..=4),
        _ => false,
    }
}

/// DHCP and DHCPv6 clients asking a server, without which a host loses its address.
#[inline(always)]
fn is_dhcp(sport: u16, dport: u16) -> bool {
    sport == 68 && dport == 67 || sport == 546 && dport == 547
}
