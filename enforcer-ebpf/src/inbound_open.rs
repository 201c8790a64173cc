//! Somebody opens a connection to a PU: external network, RESUME, HELLO, or a stranger.

use aya_ebpf::btf_maps::lpm_trie::Key;
use common::{
    abi::{CONFIG_STRANGERS_REJECT, PU_UNSORTED},
    drop_reason::Reason,
    event::{HELD_HELLO, HELD_INCOMING, HELD_JUDGE},
    flow::{ESTABLISHED, FLAG_LOG, Flow, PATH_EXTERNAL, PATH_HELLO, PATH_RESUME, SERVER, SYN_RECEIVED, SYN_SENT},
    identity::{PeerPu, Pu, Session, SessionPu},
    verdict::position,
    wire::{CHALLENGE, DENY, HELLO, OptionBytes, RESUME, RETRY, Transcript, mac, sealed},
};

use crate::{
    attribute::Source,
    attribute::{ifindex, is_complete, observes, pu_info},
    cleared::cleared,
    emit::{At, Hold, Parties, count_handshake, count_reason, hold, now, refused},
    flow_table::{account_in, coarse_now, enter},
    gate,
    judge::{Verdict, judge},
    maps::{KNOWN_TO_PEER, NETWORKS, PEER_PUS, SESSIONS},
    outbound::{DROP, PASS, Packet},
    resumes,
    turn_around::{Way, into_reset, into_retry, send_back},
};

/// What becomes of a SYN.
enum Outcome {
    /// To the listener.
    Admit,
    /// The agent has it.
    Held,
    /// Not allowed: tell the client.
    Refuse,
    /// The client must introduce itself first.
    Retry,
    /// The client must show first that it hears what is sent to its address.
    Challenge,
    /// Silence.
    Drop,
}

/// What becomes of a SYN that is not let in, and why.
struct Refusal {
    outcome: Outcome,
    reason: Reason,
}

impl Refusal {
    #[inline(always)]
    fn new(outcome: Outcome, reason: Reason) -> Self {
        Self { outcome, reason }
    }
}

#[inline(never)]
pub fn opened(packet: &Packet, pu: u32, existing: Option<&mut Flow>) -> i32 {
    if let Some(flow) = existing {
        if flow.state == SYN_SENT {
            return drop_syn(packet, &Parties::of(flow), Reason::SimultaneousOpen);
        }
        if flow.state == SYN_RECEIVED && is_repeated(packet, flow) {
            if flow.path == PATH_HELLO && is_known_to_peer(flow) {
                // Told out of band meanwhile, because our credential does not get through to it on a SYN-ACK.
                flow.path = PATH_RESUME;
            }
            account_in(flow, packet.tcp, packet.ctx.len());
            return PASS;
        }
        if flow.state == ESTABLISHED && (flow.peer_isn == packet.tcp.seq || !flow.is_over()) {
            // The stack answers with a challenge; a client that really forgot the connection resets it and tries again.
            account_in(flow, packet.tcp, packet.ctx.len());
            return PASS;
        }
    }
    cleared!(parties: Parties);
    parties.pu = pu;
    let (outcome, reason) = match judge_syn(packet, pu, parties) {
        Ok(outcome) => (outcome, Reason::Allowed),
        Err(refusal) => (refusal.outcome, refusal.reason),
    };
    match outcome {
        Outcome::Admit => PASS,
        Outcome::Held => DROP,
        Outcome::Drop => drop_syn(packet, parties, reason),
        Outcome::Refuse => refuse(packet, parties, reason),
        Outcome::Retry => retry(packet, parties, reason),
        Outcome::Challenge => challenge(packet),
    }
}

/// The very SYN that is being answered, once more. Entering it anew would forget the answer's sequence number.
#[inline(always)]
fn is_repeated(packet: &Packet, flow: &Flow) -> bool {
    let Some(option) = &packet.tcp.option else { return false };
    if option.packet_type() != RESUME
        || flow.peer_isn != packet.tcp.seq
        || flow.session != option.index()
        || flow.peer_handle != option.handle()
    {
        return false;
    }
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    unsafe { SESSIONS.get(option.index()) }.is_some_and(|session| genuine(packet, session, option))
}

#[inline(always)]
fn is_known_to_peer(flow: &Flow) -> bool {
    let known = SessionPu { session: flow.session, handle: flow.local_handle, pad: 0 };
    // SAFETY: read-only value of a scalar.
    unsafe { KNOWN_TO_PEER.get(known) }.is_some_and(|until| *until > coarse_now())
}

#[inline(never)]
fn judge_syn(packet: &Packet, pu: u32, parties: &mut Parties) -> Result<Outcome, Refusal> {
    if pu == PU_UNSORTED {
        return to_agent(packet, HELD_INCOMING, pu, 0, 0);
    }
    let info = pu_info(pu).ok_or(Refusal::new(Outcome::Drop, Reason::NoCredential))?;
    parties.local_identity = info.identity;
    if !is_complete(info) {
        return to_agent(packet, HELD_INCOMING, pu, 0, info.identity);
    }
    let Some(option) = packet.tcp.option else { return stranger(packet, pu, info, parties) };
    match option.packet_type() {
        HELLO => match gate::first_contact(packet, &option) {
            Reason::Allowed => {
                count_handshake(HELLO, true);
                to_agent(packet, HELD_HELLO, pu, 0, info.identity)
            }
            Reason::Challenged => Err(Refusal::new(Outcome::Challenge, Reason::Challenged)),
            reason => Err(Refusal::new(Outcome::Drop, reason)),
        },
        RESUME => resumed(packet, pu, info, &option, parties),
        _ => Err(Refusal::new(Outcome::Drop, Reason::HelloMalformed)),
    }
}

#[inline(always)]
fn to_agent(packet: &Packet, kind: u32, pu: u32, subject: u32, object: u32) -> Result<Outcome, Refusal> {
    let what = Hold { kind, pu, subject, object, at_pu_interface: packet.source == Source::Interface };
    match hold(packet.ctx, packet.key, &what) {
        Ok(()) => Ok(Outcome::Held),
        Err(Reason::AgentDown) => Err(Refusal::new(Outcome::Refuse, Reason::AgentDown)),
        Err(reason) => Err(Refusal::new(Outcome::Drop, reason)),
    }
}

#[inline(never)]
fn stranger(packet: &Packet, pu: u32, info: &Pu, parties: &mut Parties) -> Result<Outcome, Refusal> {
    let network = NETWORKS.get(&Key::new(128, packet.ip.src)).copied().unwrap_or_default();
    let mut verdict = Verdict::NONE;
    if network.external != 0 {
        verdict =
            judge(network.external, info.identity, position(packet.ip.proto, packet.tcp.dport)).unwrap_or(verdict);
    }
    let reason = if verdict.rule == 0 { Reason::NoIdentity } else { Reason::DenyRule };
    verdict = verdict.lift(observes(info), reason);
    if !verdict.allow {
        if verdict.rule != 0 {
            parties.rule = verdict.rule;
            parties.peer_identity = network.external;
        }
        return Err(Refusal::new(silence(packet), reason));
    }
    enter(packet.key, |flow| {
        begin(packet, flow, pu, info, &verdict);
        flow.state = ESTABLISHED;
        flow.path = PATH_EXTERNAL;
        flow.peer_identity = network.external;
    })
    .map_err(|reason| Refusal::new(Outcome::Drop, reason))?;
    count_reason(Reason::Allowed, true);
    Ok(Outcome::Admit)
}

#[inline(always)]
fn silence(packet: &Packet) -> Outcome {
    if packet.config.flags & CONFIG_STRANGERS_REJECT != 0 { Outcome::Refuse } else { Outcome::Drop }
}

/// A known session: authenticated and judged here and now.
#[inline(never)]
fn resumed(
    packet: &Packet,
    pu: u32,
    info: &Pu,
    option: &OptionBytes,
    parties: &mut Parties,
) -> Result<Outcome, Refusal> {
    let now = coarse_now();
    // SAFETY: the agent replaces sessions whole; a torn read only makes a MAC wrong.
    let session = unsafe { SESSIONS.get(option.index()) }
        .filter(|session| session.until_ns > now)
        .ok_or(Refusal::new(Outcome::Retry, Reason::UnknownSession))?;
    parties.session = option.index();
    if !genuine(packet, session, option) {
        return Err(Refusal::new(Outcome::Drop, Reason::ResumeMac));
    }
    if packet.tcp.payload != 0 {
        return Err(Refusal::new(Outcome::Drop, Reason::HelloMalformed));
    }
    if resumes::is_taken(option.mac()) {
        return Err(Refusal::new(Outcome::Retry, Reason::ResumeReplayed));
    }
    let peer =
        peer_pu(option.index(), option.handle(), now).ok_or(Refusal::new(Outcome::Retry, Reason::UnknownHandle))?;
    parties.peer_identity = peer.identity;
    let Some(verdict) = judge(peer.identity, info.identity, position(packet.ip.proto, packet.tcp.dport)) else {
        return to_agent(packet, HELD_JUDGE, pu, peer.identity, info.identity);
    };
    // From here on it is answered, one way or the other: whoever sends it again does not mean to open a connection.
    resumes::take(option.mac());
    let verdict = verdict.lift(observes(info), verdict.reason());
    parties.rule = verdict.rule;
    parties.observed_rule = verdict.observed_rule;
    if !verdict.allow {
        return Err(Refusal::new(Outcome::Refuse, verdict.reason()));
    }
    enter(packet.key, |flow| {
        begin(packet, flow, pu, info, &verdict);
        flow.state = SYN_RECEIVED;
        flow.path = PATH_RESUME;
        flow.peer_identity = peer.identity;
        flow.peer_handle = option.handle();
        flow.session = option.index();
    })
    .map_err(|reason| Refusal::new(Outcome::Refuse, reason))?;
    count_handshake(RESUME, true);
    Ok(Outcome::Admit)
}

#[inline(always)]
fn genuine(packet: &Packet, session: &Session, option: &OptionBytes) -> bool {
    let transcript = Transcript { sender_isn: packet.tcp.seq, ..Transcript::default() };
    mac(&session.key_in, RESUME, option.flags, option.handle(), option.index(), &transcript) == option.mac()
}

/// A verified PU of a peer, if it may still be taken at its word.
#[inline(always)]
pub fn peer_pu(session: u32, handle: u16, now: u64) -> Option<PeerPu> {
    // SAFETY: the agent writes entries once and removes them.
    unsafe { PEER_PUS.get(SessionPu { session, handle, pad: 0 }) }.copied().filter(|peer| peer.until_ns > now)
}

#[inline(always)]
fn begin(packet: &Packet, flow: &mut Flow, pu: u32, info: &Pu, verdict: &Verdict) {
    flow.role = SERVER;
    flow.pu = pu;
    flow.local_identity = info.identity;
    flow.local_handle = info.handle;
    flow.peer_isn = packet.tcp.seq;
    flow.generation = packet.config.generation;
    flow.rule = verdict.rule;
    flow.observed_rule = verdict.observed_rule;
    flow.reason = verdict.lifted;
    flow.flags = if verdict.log { FLAG_LOG } else { 0 };
    flow.ifindex = ifindex(packet.ctx);
    flow.pu_ifindex = packet.source.interface(packet.ctx);
    flow.created_ns = now();
    account_in(flow, packet.tcp, packet.ctx.len());
}

#[inline(always)]
fn drop_syn(packet: &Packet, parties: &Parties, reason: Reason) -> i32 {
    refused(packet.key, parties, reason, At { role: SERVER, inbound: true, by_peer: false });
    DROP
}

/// Tells the client why, in a reset it believes (with a MAC where there is a session).
#[inline(never)]
fn refuse(packet: &Packet, parties: &Parties, reason: Reason) -> i32 {
    refused(packet.key, parties, reason, At { role: SERVER, inbound: true, by_peer: false });
    // SAFETY: the agent replaces sessions whole.
    let option = match unsafe { SESSIONS.get(parties.session) } {
        Some(session) => {
            let transcript = Transcript { peer_isn: packet.tcp.seq, ..Transcript::default() };
            sealed(&session.key_out, DENY, reason as u8, 0, session.peer_index, &transcript)
        }
        None => OptionBytes::new(DENY, reason as u8, 0, 0, 0),
    };
    count_handshake(DENY, false);
    match into_reset(packet.ctx, packet.ip, packet.tcp, packet.tcp.option.is_some().then_some(&option)) {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(_) => DROP,
    }
}

/// Asks the client to introduce itself; its enforcer turns the RETRY back into the SYN it answers. Nobody is asked more often
/// than he may introduce himself.
#[inline(never)]
fn retry(packet: &Packet, parties: &Parties, reason: Reason) -> i32 {
    if !gate::may_answer(&packet.ip.src) {
        return drop_syn(packet, parties, reason);
    }
    count_reason(reason, true);
    repeat(packet, RETRY, &OptionBytes::new(RETRY, reason as u8, 0, 0, 0))
}

/// Asks the client to send its HELLO once more, with this cookie in it.
#[inline(never)]
fn challenge(packet: &Packet) -> i32 {
    count_reason(Reason::Challenged, true);
    repeat(packet, CHALLENGE, &OptionBytes::new(CHALLENGE, 0, 0, 0, gate::cookie_for(packet)))
}

/// Sends a SYN back with another option in the place of ours.
#[inline(never)]
fn repeat(packet: &Packet, packet_type: u8, option: &OptionBytes) -> i32 {
    let Some(old) = &packet.tcp.option else { return DROP };
    count_handshake(packet_type, false);
    match into_retry(packet.ctx, packet.ip, packet.tcp, old, option) {
        Ok(()) => send_back(packet.ctx, packet.source, Way::In, packet.config.mark),
        Err(_) => DROP,
    }
}
