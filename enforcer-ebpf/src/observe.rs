//! Observe mode: connections older than their PU go on.

use common::{
    drop_reason::Reason,
    flow::{CLIENT, ESTABLISHED, PATH_NONE, SERVER},
};

use crate::{
    attribute::{ifindex, pu_info},
    emit::now,
    flow_table::{account_in, account_out, enter},
    outbound::{PASS, Packet},
    packet::{FIN, RST, SYN},
};

/// Lets a segment of no known connection pass, and notes the connection so that it is told of.
#[inline(never)]
pub fn take_over(packet: &Packet, pu: u32, inbound: bool) -> i32 {
    // The last words of connections that have ended carry nothing: each of them would leave an entry behind.
    if packet.tcp.flags & (SYN | FIN | RST) != 0 || packet.tcp.payload == 0 {
        return PASS;
    }
    let Some(info) = pu_info(pu) else { return PASS };
    // Without room it is not told of, but passes.
    let _ = enter(packet.key, |flow| {
        flow.state = ESTABLISHED;
        // Nobody saw who opened; services have the lower port.
        flow.role = if packet.key.local_port < packet.key.remote_port { SERVER } else { CLIENT };
        flow.path = PATH_NONE;
        flow.reason = Reason::NoFlow as u16;
        flow.pu = pu;
        flow.local_identity = info.identity;
        flow.generation = packet.config.generation;
        flow.ifindex = ifindex(packet.ctx);
        flow.pu_ifindex = packet.source.interface(packet.ctx);
        flow.created_ns = now();
        if inbound {
            account_in(flow, packet.tcp, packet.ctx.len());
        } else {
            account_out(flow, packet.ip, packet.tcp, packet.ctx.len());
        }
    });
    PASS
}
