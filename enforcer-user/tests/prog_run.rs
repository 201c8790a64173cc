//! Every kernel program, packet by packet: what comes out byte for byte, with which checksums, counted where.
//!
//! Needs root.

#[path = "prog_run/arriving.rs"]
mod arriving;
#[path = "prog_run/datagrams.rs"]
mod datagrams;
#[path = "prog_run/handshake.rs"]
mod handshake;
#[path = "prog_run/leaving.rs"]
mod leaving;
#[path = "prog_run/limits.rs"]
mod limits;
#[path = "prog_run/malformed.rs"]
mod malformed;
mod place;
mod prog;
#[path = "prog_run/shield.rs"]
mod shield;

use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd;

use Action::{Drop, Pass, Redirect};
use common::abi::{
    CONFIG_STRANGERS_REJECT, CONFIG_UNMANAGED_DENY, HELD, LOSS_FLOW_TABLE, LOSS_HANDSHAKE_RING, PU_TOO_DEEP,
};
use common::drop_reason::Reason;
use common::flow::{
    CLIENT, CONFIRMING, CUT, ESTABLISHED, FLAG_CREDENTIAL_SENT, FLAG_LOG, FLAG_RETRIED, Flow, PATH_EXTERNAL,
    PATH_HELLO, PATH_RESUME, SERVER, SYN_RECEIVED, SYN_SENT,
};
use common::identity::{Credential, ListenerKey, NETWORK_IDENTITY, Network, PeerPu, Session, SessionPu};
use common::verdict::{Interval, Pair, VERDICT_ALLOW, VERDICT_LOG, position};
use common::wire::{
    CONFIRM, CREDENTIAL_MAX, DENY, HELLO, HELLO_REPLY, MacKey, RESUME, RESUME_AGAIN, RESUME_REPLY, RETRY,
};
use enforcer_user::load::MapSizes;
use enforcer_user::map_write::Prefix;
use place::{Place, isolated};
use prog::segment::{ACK, FIN, PSH, RST, SYN, Segment, packet, udp};
use prog::{Action, Bench, Delta, IN, OUT, addr, credential, key, option, sealed, type_and_reason};

const PU: u32 = 1;
const IDENTITY: u32 = 11;
const HANDLE: u16 = 0x0102;
const PEER_IDENTITY: u32 = 22;
const PEER_HANDLE: u16 = 0x0304;
/// The session's index here, and the one the peer chose.
const SESSION: u32 = 0x5e55_1011;
const PEER_SESSION: u32 = 0x9e3e_2022;
const KEY_OUT: MacKey = MacKey { k0: 0x0706_0504_0302_0100, k1: 0x0f0e_0d0c_0b0a_0908 };
const KEY_IN: MacKey = MacKey { k0: 0x1716_1514_1312_1110, k1: 0x1f1e_1d1c_1b1a_1918 };

const SPORT: u16 = 40_000;
const PORT: u16 = 8020;
const ISN: u32 = 0xffff_fff0;
const PEER_ISN: u32 = 0x8000_0001;

const ALLOW_RULE: u32 = 7;
const DENY_RULE: u32 = 9;
const OBSERVED: u32 = 5;

/// Addresses of both ends: PU, peer, external host.
fn families() -> [[IpAddr; 3]; 2] {
    [["10.0.0.1", "10.0.0.2", "203.0.113.7"], ["fd00::1", "fd00::2", "2001:db8::7"]]
        .map(|ends| ends.map(|text| text.parse().unwrap()))
}

/// A bench with the PU, a session, a peer's PU and a policy: [`PORT`] is allowed both ways, the next one denied by a
/// rule, any other by none; the external host may be reached and may come on 443.
fn bench(place: &Place) -> Bench {
    with(place, MapSizes { flows: Some(1000), ..MapSizes::default() })
}

fn with(place: &Place, sizes: MapSizes) -> Bench {
    let mut bench = Bench::sized(place, sizes);
    let v0 = bench.ifindex;
    bench.pu(PU, v0, IDENTITY, HANDLE, &the_credential());
    bench.session(SESSION, &session());
    bench.peer_pu(SESSION, PEER_HANDLE, PEER_IDENTITY);
    bench.known(SESSION, HANDLE);
    let tcp = |low, high, rule, observed_rule, flags| Interval {
        low: position(6, low),
        high: position(6, high),
        rule,
        observed_rule,
        flags,
    };
    let rules =
        [tcp(PORT, PORT, ALLOW_RULE, OBSERVED, VERDICT_ALLOW | VERDICT_LOG), tcp(PORT + 1, PORT + 1, DENY_RULE, 0, 0)];
    for (subject, object) in [(IDENTITY, PEER_IDENTITY), (PEER_IDENTITY, IDENTITY)] {
        bench.pairs.write(Pair { subject, object }, &rules).unwrap();
    }
    let https = [tcp(443, 443, ALLOW_RULE, 0, VERDICT_ALLOW), tcp(444, 444, DENY_RULE, 0, 0)];
    for (subject, object) in [(IDENTITY, EXTERNAL), (EXTERNAL, IDENTITY)] {
        bench.pairs.write(Pair { subject, object }, &https).unwrap();
    }
    let mut networks = std::collections::HashMap::new();
    for [_, peer, external] in families() {
        bench.peer_at(peer, SESSION);
        networks.insert(Prefix::new(peer, 8).unwrap(), Network { external: 0, flags: NETWORK_IDENTITY });
        networks.insert(Prefix::new(external, 24).unwrap(), Network { external: EXTERNAL, flags: 0 });
    }
    bench.networks.replace(&networks).unwrap();
    bench
}

const EXTERNAL: u32 = 0x8000_0001;
/// Longer than the coarse clock, by which entries expire, lags behind.
const TICK: u64 = 100_000_000;

/// Of odd length, so that its sum ends in half a word.
fn the_credential() -> Credential {
    credential(611, 3)
}

fn session() -> Session {
    Session { key_out: KEY_OUT, key_in: KEY_IN, until_ns: u64::MAX, peer_index: PEER_SESSION, peer: 1 }
}

/// The PU's side of the connection.
fn flow(bench: &Bench, local: IpAddr, local_port: u16, remote: IpAddr, remote_port: u16) -> Option<Flow> {
    bench.maps.flows.get(&key(local, local_port, remote, remote_port)).unwrap()
}

fn counted(reasons: &[(Reason, bool)], handshakes: &[(u8, bool)]) -> Delta {
    let mut handshakes = handshakes.to_vec();
    handshakes.sort_by_key(|(kind, inbound)| (*inbound, *kind));
    Delta {
        reasons: reasons.iter().map(|(reason, inbound)| (reason.name(), *inbound, 1)).collect(),
        handshakes: handshakes.iter().map(|(kind, inbound)| (*kind, *inbound, 1)).collect(),
        losses: Vec::new(),
    }
}

/// Runs `step`, then asserts exactly what was counted meanwhile.
#[track_caller]
fn counting<T>(bench: &Bench, reasons: &[(Reason, bool)], handshakes: &[(u8, bool)], step: impl FnOnce() -> T) -> T {
    let before = bench.counts();
    let result = step();
    let mut found = bench.counts().since(&before);
    found.losses.clear();
    assert_eq!(found, counted(reasons, handshakes));
    result
}

/// The answer a SYN of `syn` gets from its own host: a reset the client believes.
#[track_caller]
fn assert_local_reset(syn: &Segment, frame: &[u8]) {
    let answer = Segment::parse(frame);
    assert_eq!((answer.source, answer.sport), (syn.target, syn.dport));
    assert_eq!((answer.target, answer.dport), (syn.source, syn.sport));
    assert_eq!((answer.flags, answer.ack, answer.seq), (RST | ACK, syn.seq.wrapping_add(1), 0));
    assert!(answer.payload.is_empty());
}

fn resume(isn: u32, handle: u16) -> [u8; 20] {
    sealed(KEY_IN, RESUME, 0, handle, SESSION, (isn, 0, 0))
}

/// Lets the same RESUME be taken once more.
fn forget_resume(bench: &Bench, isn: u32, handle: u16) {
    let mac = u64::from_be_bytes(resume(isn, handle)[12..].try_into().unwrap());
    let table = enforcer_user::map_write::Table::open(bench.maps.directory(), "RESUMES").unwrap();
    table.insert(&common::shield::resume_bucket(mac), &common::shield::Resumes::default()).unwrap();
}

fn confirm() -> [u8; 20] {
    sealed(KEY_IN, CONFIRM, 0, PEER_HANDLE, PEER_SESSION, (PEER_ISN, ISN, HANDLE))
}

/// A flow of the PU as server whose SYN-ACK has left.
fn received(bench: &Bench) -> Flow {
    Flow {
        state: SYN_RECEIVED,
        role: SERVER,
        path: PATH_RESUME,
        local_handle: HANDLE,
        peer_handle: PEER_HANDLE,
        pu: PU,
        local_identity: IDENTITY,
        peer_identity: PEER_IDENTITY,
        session: SESSION,
        local_isn: ISN,
        peer_isn: PEER_ISN,
        generation: 1,
        rule: ALLOW_RULE,
        ifindex: bench.ifindex,
        pu_ifindex: bench.ifindex,
        ..Flow::default()
    }
}

/// A flow of the PU as client whose SYN has left.
fn sent(bench: &Bench) -> Flow {
    Flow { state: SYN_SENT, role: CLIENT, peer_isn: 0, peer_handle: 0, peer_identity: 0, rule: 0, ..received(bench) }
}
