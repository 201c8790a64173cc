//! TC where one interface lies on another: a packet is judged once, at the one that its socket or address belongs to.
//!
//! Ports of a bridge or bond only hand on what is judged at their master ([`tc_port_egress`], [`tc_port_ingress`]); what
//! leaves through an interface on top of another, enforced one is judged before it gets there ([`tc_stack_egress`]).

use aya_ebpf::{helpers::generated::bpf_sk_fullsock, macros::classifier, programs::TcContext};
use common::{
    drop_reason::Reason,
    flow::{CLIENT, FlowKey},
};

use crate::{
    attribute::{Source, UNMANAGED},
    cleared::cleared,
    emit::{At, Parties, config, refused},
    hook_tc_egress::own,
    outbound::{DROP, PASS},
};

/// IEEE 802.1: the low twelve bits of a tag are the VLAN, of which 0 is none.
const VLAN_MASK: u32 = 0x0fff;
/// linux/if_packet.h
const PACKET_OTHERHOST: u32 = 3;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Behind `tc_egress` where another enforced interface follows below: tells it that this packet is judged.
#[classifier]
pub fn tc_stack_egress(ctx: TcContext) -> i32 {
    if let Some(config) = config() {
        ctx.skb.set_mark(config.mark);
    }
    PASS
}

/// A port that a PU is behind: the master's program must look at what `tc_pu_ingress` let pass as the enforcer's own.
#[classifier]
pub fn tc_port_ingress(ctx: TcContext) -> i32 {
    if let Some(config) = config() {
        own(&ctx, config, false);
    }
    PASS
}

/// A port: what comes from its master was judged there. A PU's packet socket at the port itself goes around that.
#[classifier]
pub fn tc_port_egress(ctx: TcContext) -> i32 {
    // SAFETY: skb->sk and what the helper answers are null-checked before use, as the verifier demands.
    let family = unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return PASS;
        }
        let full = bpf_sk_fullsock(sk);
        if full.is_null() {
            return PASS;
        }
        (*full).family
    };
    if family == AF_INET || family == AF_INET6 {
        return PASS;
    }
    let pu = Source::Socket.sender(&ctx);
    if pu == UNMANAGED {
        return PASS;
    }
    cleared!(key: FlowKey);
    cleared!(parties: Parties);
    parties.pu = pu;
    refused(key, parties, Reason::ForgedByPu, At { role: CLIENT, inbound: false, by_peer: false });
    DROP
}

/// Whether the stack takes this frame at another interface, or not at all: it is for another link-layer address (a
/// macvlan's on top of this one), or of a VLAN. Where it is taken it is judged.
#[inline(always)]
pub fn is_taken_elsewhere(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid for the whole program; plain words.
    let (kind, tagged) = unsafe { ((*ctx.skb.skb).pkt_type, (*ctx.skb.skb).vlan_present) };
    kind == PACKET_OTHERHOST || tagged != 0 && is_of_vlan(ctx)
}

/// Whether this frame is judged at an interface of a VLAN on top of this one.
#[inline(always)]
pub fn is_of_vlan(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).vlan_present != 0 && (*ctx.skb.skb).vlan_tci & VLAN_MASK != 0 }
}
