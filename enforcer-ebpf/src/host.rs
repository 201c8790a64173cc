//! The host PU: whatever of this host is in no other PU. And enforcement on trial, which ends by itself.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::generated::bpf_get_current_pid_tgid};
use common::{
    abi::{CONFIG_HOST, CONFIG_TRIAL, CONFIG_UNMANAGED_DENY, Config, PU_UNSORTED},
    drop_reason::Reason,
    flow::{CLIENT, ESTABLISHED, FLAG_LOG, PATH_EXTERNAL, SERVER},
    verdict::position,
};

use crate::{
    attribute::{UNMANAGED, ifindex, pu_info},
    emit::{config, count_reason, now},
    flow_table::{account_out, enter},
    judge::{Verdict, judge},
    maps::{HOST, NETWORKS},
    outbound::Packet,
    outbound_open::LOOPBACK,
    packet::{FIN, RST, SYN, TCP},
};

/// The PU of a process that is in no other; the agent is in none as long as it lives.
#[inline(always)]
pub fn of_current() -> u32 {
    let Some(config) = config() else { return UNMANAGED };
    if config.flags & CONFIG_HOST == 0 {
        return UNMANAGED;
    }
    let Some(host) = HOST.get(0) else { return UNMANAGED };
    // SAFETY: a helper without arguments.
    let process = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    if process == host.agent && now().wrapping_sub(config.heartbeat_ns) as i64 <= config.agent_timeout_ns as i64 {
        return UNMANAGED;
    }
    host.pu
}

/// The PU of a packet socket that is in no other.
#[inline(always)]
pub fn of_packet_socket() -> u32 {
    if config().is_none_or(|config| config.flags & CONFIG_HOST == 0) {
        return UNMANAGED;
    }
    HOST.get(0).map_or(UNMANAGED, |host| host.pu)
}

/// Whether a PU was on trial, and nobody confirmed it in time: it is none any more.
#[inline(always)]
pub fn is_withdrawn(pu: u32) -> bool {
    config().is_some_and(|config| config.flags & CONFIG_TRIAL != 0) && is_over(pu)
}

#[inline(never)]
fn is_over(pu: u32) -> bool {
    let Some(host) = HOST.get(0) else { return false };
    // What stands for processes not sorted out is older than this trial, unless all is on trial.
    let tried = pu >= host.trial_from && (pu < PU_UNSORTED || host.trial_from == 0);
    (tried || pu == host.pu) && now() >= host.trial_until_ns
}

/// Whether what is no PU may neither open nor accept connections.
#[inline(always)]
pub fn denies_unmanaged(config: &Config) -> bool {
    config.flags & CONFIG_UNMANAGED_DENY != 0 && (config.flags & CONFIG_TRIAL == 0 || !denies_no_more())
}

#[inline(never)]
fn denies_no_more() -> bool {
    HOST.get(0).is_some_and(|host| host.trial_flags & CONFIG_UNMANAGED_DENY != 0 && now() >= host.trial_until_ns)
}

/// A segment of the host PU outside any connection that its rules allow by address, or that stays on this host: the
/// connection is older than the PU, and switching the host PU on must not end the session it is done in. Whose segment it
/// really is, the stack knows.
#[inline(never)]
pub fn is_older(packet: &Packet, pu: u32, inbound: bool) -> bool {
    if packet.config.flags & CONFIG_HOST == 0 || packet.tcp.flags & SYN != 0 {
        return false;
    }
    if HOST.get(0).is_none_or(|host| host.pu != pu) {
        return false;
    }
    let Some(info) = pu_info(pu) else { return false };
    let network = NETWORKS.get(&Key::new(128, packet.key.remote)).map_or(0, |network| network.external);
    let service = position(TCP, packet.key.local_port);
    let (role, verdict) = match judge(network, info.identity, service).filter(|verdict| verdict.allow) {
        Some(verdict) => (SERVER, Some(verdict)),
        None => (CLIENT, judge(info.identity, network, position(TCP, packet.key.remote_port))),
    };
    let Some(verdict) = verdict.filter(|verdict| verdict.allow) else {
        return ifindex(packet.ctx) == LOOPBACK
            && judge(info.identity, info.identity, service).is_some_and(|verdict| verdict.allow);
    };
    // Only what the connection's own socket sends says that there is one; its last words end it.
    if !inbound && packet.tcp.flags & (FIN | RST) == 0 && packet.tcp.payload != 0 {
        begin(packet, pu, info.identity, network, role, &verdict);
    }
    true
}

#[inline(always)]
fn begin(packet: &Packet, pu: u32, identity: u32, network: u32, role: u8, verdict: &Verdict) {
    let entered: Result<(), Reason> = enter(packet.key, |flow| {
        flow.state = ESTABLISHED;
        flow.role = role;
        flow.path = PATH_EXTERNAL;
        flow.pu = pu;
        flow.local_identity = identity;
        flow.peer_identity = network;
        flow.rule = verdict.rule;
        flow.observed_rule = verdict.observed_rule;
        flow.flags = if verdict.log { FLAG_LOG } else { 0 };
        flow.generation = packet.config.generation;
        flow.ifindex = ifindex(packet.ctx);
        flow.created_ns = now();
        account_out(flow, packet.ip, packet.tcp, packet.ctx.len());
    });
    // Without room it is not told of, but goes on.
    if entered.is_ok() {
        count_reason(Reason::Allowed, role == SERVER);
    }
}
