//! cgroup/skb ingress: what a PU's socket is about to hear, whoever else hears it too.
//!
//! TC looks one socket up for a packet. Several may hear it: multicast and broadcast, raw sockets, and groups that share a
//! port, of which a program of theirs may choose another than was looked up. Here each is asked for itself.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::bpf_sk_fullsock,
    macros::cgroup_skb,
    programs::{SkBuffContext, TcContext},
};
use common::{
    abi::{CONFIG_HAS_PU, Config},
    drop_reason::Reason,
    flow::{CUT, ESTABLISHED, SERVER},
};

use crate::{
    attribute::{Source, UNMANAGED, ifindex, stored},
    cleared::cleared,
    emit::{At, Parties, config, refused},
    flow_table::{Lookup, coarse_now, find},
    host::is_withdrawn,
    icmp_errors,
    judge::rejudge,
    maps::JUDGED_SCRATCH,
    other_protocols::{is_approved, is_neighbour_discovery, judge_beside, judge_received, ports},
    outbound::{PASS, scratch},
    packet::{Ip, Parsed, TCP, is_to_many, network_header},
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const SOCK_STREAM: u32 = 1;

#[cgroup_skb(ingress)]
pub fn sock_ingress(ctx: SkBuffContext) -> i32 {
    let ctx = TcContext::new(ctx.skb.skb);
    // SAFETY: skb->sk and what the helper answers are null-checked before use, as the verifier demands.
    let pu = unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return ALLOW;
        }
        let full: *mut bpf_sock = bpf_sk_fullsock(sk);
        // One socket hears a TCP segment, and what it may hear was judged when the connection was opened.
        if full.is_null() || (*full).type_ == SOCK_STREAM {
            return ALLOW;
        }
        stored(full.cast()).unwrap_or(UNMANAGED)
    };
    if pu == UNMANAGED || is_withdrawn(pu) {
        return ALLOW;
    }
    let Some(config) = config() else { return REFUSE };
    if is_approved(&ctx, config, pu) { ALLOW } else { heard(&ctx, config, pu) }
}

#[inline(never)]
fn heard(ctx: &TcContext, config: &Config, pu: u32) -> i32 {
    let Some(parsed) = scratch(Source::Socket) else { return REFUSE };
    if config.flags & CONFIG_HAS_PU == 0 {
        return ALLOW;
    }
    if network_header(ctx, &mut parsed.ip).is_err() {
        return refuse(parsed, pu, Reason::Malformed);
    }
    let Some((sport, dport)) = ports(ctx, &parsed.ip) else { return refuse(parsed, pu, Reason::Malformed) };
    parsed.ip.key_of_receiver(sport, dport, &mut parsed.key);
    let many = is_to_many(ctx, &parsed.ip);
    if is_neighbour_discovery(&parsed.ip, (sport, dport)) || !many && !is_judged_at(ifindex(ctx)) {
        return ALLOW;
    }
    if icmp_errors::is_one(&parsed.ip, (sport, dport)) {
        return of_error(ctx, &parsed.ip, pu);
    }
    match find(&parsed.key, 0) {
        Lookup::Ours(flow) if flow.pu == pu && !many && flow.state != CUT => ALLOW,
        Lookup::Ours(flow) if flow.pu == pu && flow.state == ESTABLISHED => {
            if flow.generation != config.generation && !rejudge(&parsed.key, flow, config.generation) {
                return REFUSE;
            }
            flow.bytes_in += ctx.len() as u64;
            flow.packets_in += 1;
            flow.seen_ns = coarse_now();
            ALLOW
        }
        _ if parsed.ip.proto == TCP => refuse(parsed, pu, Reason::NoFlow),
        Lookup::Ours(flow) if flow.pu != pu && flow.state == ESTABLISHED => verdict(judge_beside(parsed, pu, SERVER)),
        Lookup::Elsewhere => verdict(judge_beside(parsed, pu, SERVER)),
        _ => verdict(judge_received(ctx, config, parsed, pu)),
    }
}

/// A raw socket hears the errors of its PU's own flows.
#[inline(never)]
fn of_error(ctx: &TcContext, outer: &Ip, pu: u32) -> i32 {
    let Some(quote) = icmp_errors::place() else { return REFUSE };
    if !icmp_errors::read_quote(ctx, outer, quote, true) {
        return refuse(quote, pu, Reason::Malformed);
    }
    match find(&quote.key, 0) {
        Lookup::Ours(flow) if flow.pu == pu && flow.state != CUT => ALLOW,
        _ => refuse(quote, pu, Reason::NoFlow),
    }
}

#[inline(always)]
fn verdict(of_tc: i32) -> i32 {
    if of_tc == PASS { ALLOW } else { REFUSE }
}

#[inline(never)]
fn refuse(parsed: &Parsed, pu: u32, reason: Reason) -> i32 {
    cleared!(parties: Parties);
    parties.pu = pu;
    refused(&parsed.key, parties, reason, At { role: SERVER, inbound: true, by_peer: false });
    REFUSE
}

/// Whether TC looks at what comes by this interface: elsewhere nothing a PU sends is noted, so that no answer would be known.
#[inline(always)]
fn is_judged_at(ifindex: u32) -> bool {
    // SAFETY: only whether there is an entry.
    unsafe { JUDGED_SCRATCH.get(ifindex) }.is_some()
}
