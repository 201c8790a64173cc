//! CONFIRM on its way out: the initiator's proof, on its ACK and on data until the peer is heard.
//!
//! sockops writes it for sockets it sees. For PUs behind their own interface it is written here, on segments without
//! data; data that comes first is cut off and sent again by TCP.

use common::{
    drop_reason::Reason,
    flow::{CLIENT, Flow},
    wire::{CONFIRM, OptionBytes},
};

use crate::{
    attribute::Source,
    emit::{At, Parties, count_handshake, refused},
    flow_table::account_out,
    outbound::{DROP, PASS, Packet},
    rewrite::attach,
};

/// The CONFIRM of a flow.
#[inline(always)]
pub fn option(flow: &Flow) -> OptionBytes {
    OptionBytes::new(CONFIRM, 0, flow.local_handle, flow.session, flow.confirm_mac)
}

/// Whether the packet carries exactly this flow's CONFIRM.
#[inline(always)]
pub fn matches(packet: &Packet, flow: &Flow) -> bool {
    packet.tcp.option.is_some_and(|carried| {
        carried.packet_type() == CONFIRM
            && carried.flags == 0
            && carried.handle() == flow.local_handle
            && carried.index() == flow.session
            && carried.mac() == flow.confirm_mac
    })
}

#[inline(always)]
pub fn outbound(packet: &Packet, flow: &mut Flow) -> i32 {
    let at = At { role: CLIENT, inbound: false, by_peer: false };
    if packet.tcp.option.is_some() {
        if !matches(packet, flow) {
            refused(packet.key, &Parties::of(flow), Reason::ForgedByPu, at);
            return DROP;
        }
        count_handshake(CONFIRM, false);
    } else if packet.source == Source::Interface || packet.tcp.payload == 0 {
        if let Err(reason) = attach(packet.ctx, packet.ip, packet.tcp.header, &option(flow), None) {
            refused(packet.key, &Parties::of(flow), reason, at);
            return DROP;
        }
        count_handshake(CONFIRM, false);
        // What was attached is not in sequence; data that was cut off comes again.
        account_out(flow, packet.ip, packet.tcp, packet.ip.l4 + packet.tcp.header);
        return PASS;
    }
    account_out(flow, packet.ip, packet.tcp, packet.ctx.len());
    PASS
}
