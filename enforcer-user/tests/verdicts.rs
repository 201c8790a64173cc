//! The loaded programs against the brute-force evaluator: random rules and PUs, changing all the time, one frame a
//! verdict, no difference.
//!
//! Needs root.

mod place;
mod prog;
#[path = "../../policy/tests/support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use Action::{Drop, Pass, Redirect};
use common::drop_reason::Reason;
use common::flow::{
    CLIENT, CONFIRMING, CUT, ESTABLISHED, FLAG_LOG, Flow, FlowKey, PATH_EXTERNAL, PATH_RESUME, SERVER, SYN_RECEIVED,
    SYN_SENT,
};
use common::identity::Session;
use common::verdict::Pair;
use common::wire::{DENY, MacKey, RESUME, RESUME_REPLY};
use enforcer_user::load::MapSizes;
use enforcer_user::map_write::{intervals, network_table, patiently};
use ipnet::IpNet;
use place::{ip, isolated};
use policy::{Capabilities, Compiled, Decision, Delta, Identity, IdentityId, Moment, PolicyRule, evaluate};
use prog::segment::{ACK, SYN, Segment, packet};
use prog::{Action, Bench, addr, credential, key, sealed, type_and_reason};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use support::{ADDRESSES, PROBES, policy_rule, pu};

/// Verdicts that are compared, at least.
const CASES: u64 = 100_000;
/// PUs of a world, each behind an interface of its own and each also a PU of the peer.
const PUS: usize = 4;
const SESSION: u32 = 0x5e55_1011;
const PEER_SESSION: u32 = 0x9e3e_2022;
const KEY_OUT: MacKey = MacKey { k0: 1, k1: 2 };
const KEY_IN: MacKey = MacKey { k0: 3, k1: 4 };
const ISN: u32 = 1000;
const PEER_ISN: u32 = 2000;
const SPORT: u16 = 40_000;
const GENERATION: u32 = 1;

#[derive(Clone, Debug)]
enum Change {
    Insert(Index, Arc<PolicyRule>),
    Replace(Index, Arc<PolicyRule>),
    Remove(Index),
    Several(Vec<Arc<PolicyRule>>),
    SetIdentity(Index, Identity),
    Advance(Moment),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        2 => (at(), policy_rule()).prop_map(|(at, rule)| Change::Insert(at, rule)),
        2 => (at(), policy_rule()).prop_map(|(at, rule)| Change::Replace(at, rule)),
        2 => at().prop_map(Change::Remove),
        1 => vec(policy_rule(), 30..50).prop_map(Change::Several),
        2 => (at(), pu()).prop_map(|(at, pu)| Change::SetIdentity(at, pu)),
        1 => (0u64..70).prop_map(|seconds| Change::Advance(Moment::from_unix(seconds))),
    ]
}

/// The bench and the interfaces of its PUs.
struct Stage {
    bench: Bench,
    interfaces: Vec<u32>,
    decisions: u64,
    /// Verdicts that were expected, by reason and direction.
    expected: BTreeMap<(Reason, bool), u64>,
}

/// Rules and PUs as they should be, beside what is written into the kernel.
struct World<'a> {
    stage: &'a mut Stage,
    rules: Vec<Arc<PolicyRule>>,
    pus: Vec<Identity>,
    compiled: Compiled,
    identity_networks: Vec<IpNet>,
}

fn handle(pu: usize) -> u16 {
    0x100 + pu as u16
}

fn number(pu: usize) -> u32 {
    pu as u32 + 1
}

/// Both ends of a connection between PUs.
fn ends(v6: bool) -> (IpAddr, IpAddr) {
    match v6 {
        false => ("172.16.0.1".parse().unwrap(), "172.16.0.2".parse().unwrap()),
        true => ("fd12::1".parse().unwrap(), "fd12::2".parse().unwrap()),
    }
}

impl<'a> World<'a> {
    fn new(stage: &'a mut Stage, rules: Vec<Arc<PolicyRule>>, pus: Vec<Identity>) -> Self {
        let compiled = Compiled::new(&rules, Capabilities { encrypt: true }).unwrap();
        let identity_networks = ["172.16.0.0/12", "fd12::/16"].map(|net| net.parse().unwrap()).to_vec();
        let mut world = Self { stage, rules, pus, compiled, identity_networks };
        for at in 0..world.pus.len() {
            world.compiled.add_identity(IdentityId(number(at)), &world.pus[at]).unwrap();
        }
        world.write_all();
        world
    }

    fn apply(&mut self, change: Change) {
        let length = self.rules.len();
        match change {
            Change::Insert(at, rule) => self.rules.insert(at.index(length + 1), rule),
            Change::Replace(at, rule) if length > 0 => self.rules[at.index(length)] = rule,
            Change::Remove(at) if length > 0 => drop(self.rules.remove(at.index(length))),
            Change::Several(rules) => {
                self.rules.truncate(length / 2);
                self.rules.extend(rules);
            }
            Change::SetIdentity(at, identity) => {
                let at = at.index(self.pus.len());
                self.compiled.add_identity(IdentityId(number(at)), &identity).unwrap();
                self.pus[at] = identity;
                return self.write_all();
            }
            Change::Advance(now) => {
                let delta = self.compiled.advance(now);
                return self.write_affected(&delta);
            }
            _ => return,
        }
        let delta = self.compiled.update_rules(&self.rules).unwrap();
        self.write_affected(&delta);
        if delta.externals_changed {
            self.write_externals();
        }
        self.write_networks();
    }

    /// As the agent does it: what the change cannot have touched is left as it is.
    fn write_affected(&mut self, delta: &Delta) {
        let written: Vec<Pair> = self.stage.bench.pairs.iter().copied().collect();
        for pair in written {
            if delta.affects(IdentityId(pair.subject), IdentityId(pair.object)) {
                self.write_pair(pair);
            }
        }
    }

    fn write_all(&mut self) {
        for subject in 0..self.pus.len() {
            for object in 0..self.pus.len() {
                self.write_pair(Pair { subject: number(subject), object: number(object) });
            }
        }
        self.write_externals();
        self.write_networks();
    }

    fn write_pair(&mut self, pair: Pair) {
        let verdict = self.compiled.pair(IdentityId(pair.subject), IdentityId(pair.object));
        patiently(|| self.stage.bench.pairs.write(pair, &intervals(&verdict))).unwrap();
    }

    fn write_externals(&mut self) {
        for (_, external) in self.compiled.external_prefixes() {
            for pu in 0..self.pus.len() {
                self.write_pair(Pair { subject: number(pu), object: external.0 });
                self.write_pair(Pair { subject: external.0, object: number(pu) });
            }
        }
    }

    fn write_networks(&mut self) {
        let table = network_table(self.compiled.external_prefixes(), &self.identity_networks);
        self.stage.bench.networks.replace(&table).unwrap();
    }

    fn decide(&self, subject: &Identity, object: &Identity, protocol: u8, port: u16) -> Decision {
        evaluate(self.compiled.rules(), subject, object, protocol, port, self.compiled.now())
    }

    /// What the rules say of opening a connection to, or from, this very address.
    fn decide_external(&self, pu: usize, address: IpAddr, outbound: bool, protocol: u8, port: u16) -> Decision {
        let (pu, external) = (&self.pus[pu], Identity::external(address));
        if outbound { self.decide(pu, &external, protocol, port) } else { self.decide(&external, pu, protocol, port) }
    }

    fn check(&mut self, v6: bool) {
        for local in 0..self.pus.len() {
            for peer in 0..self.pus.len() {
                for (protocol, port) in PROBES.into_iter().filter(|(protocol, _)| *protocol == 6) {
                    assert_eq!(protocol, 6);
                    self.server(local, peer, port, v6);
                    self.client(local, peer, port, v6);
                    self.live(local, peer, port, v6);
                }
            }
            for address in ADDRESSES {
                let address: IpAddr = address.parse().unwrap();
                for outbound in [true, false] {
                    for (protocol, port) in PROBES {
                        match protocol {
                            6 => self.external_tcp(local, address, port, outbound),
                            1 | 17 | 47 | 58 => self.external_other(local, address, protocol, port, outbound),
                            // A protocol without ports has no other than 0, and 0 and 255 are none.
                            _ => {}
                        }
                    }
                }
            }
        }
    }

    fn count(&mut self, reason: Reason, inbound: bool) {
        *self.stage.expected.entry((reason, inbound)).or_default() += 1;
    }

    /// A peer's PU opens a connection to a local one: the incoming end judges.
    fn server(&mut self, local: usize, peer: usize, port: u16, v6: bool) {
        let (pu, host) = ends(v6);
        // Each RESUME is good for one connection.
        let isn = PEER_ISN.wrapping_add(self.stage.decisions as u32);
        let option = sealed(KEY_IN, RESUME, 0, handle(peer), SESSION, (isn, 0, 0));
        let syn = Segment::syn(host, pu, SPORT, port, isn).with(option);
        let decision = self.decide(&self.pus[peer], &self.pus[local], 6, port);
        let (action, out) = self.stage.run("tc_pu_egress", local, &syn.frame());
        let flow = self.stage.take(&key(pu, port, host, SPORT));
        match refusal(&decision) {
            None => {
                assert_eq!(action, Pass, "{decision:?}");
                let flow = flow.unwrap();
                assert_eq!((flow.state, flow.path, flow.role), (SYN_RECEIVED, PATH_RESUME, SERVER));
                assert_flow(&flow, &decision);
            }
            Some(reason) => {
                assert_eq!((action, flow), (Redirect, None), "{decision:?}");
                let told = type_and_reason(Segment::parse(&out).last_option());
                assert_eq!(told, (DENY, Some(reason)), "{decision:?}");
                self.count(reason, true);
            }
        }
    }

    /// A local PU opens a connection to a peer's: by address if an external rule says so, else the peer's answer is
    /// judged.
    fn client(&mut self, local: usize, peer: usize, port: u16, v6: bool) {
        let (pu, host) = ends(v6);
        let at = key(pu, SPORT, host, port);
        let syn = Segment::syn(pu, host, SPORT, port, ISN);
        let by_address = self.decide_external(local, host, true, 6, port);
        let (action, _) = self.stage.run("tc_pu_ingress", local, &syn.frame());
        let flow = self.stage.take(&at);
        if refusal(&by_address) != Some(Reason::NoRule) {
            return self.by_address(&by_address, action, flow, true, Redirect);
        }
        assert_eq!(action, Pass);
        let flow = flow.unwrap();
        assert_eq!((flow.state, flow.path, flow.role), (SYN_SENT, PATH_RESUME, CLIENT));

        let decision = self.decide(&self.pus[local], &self.pus[peer], 6, port);
        self.stage.bench.maps.flows.insert(&at, &flow).unwrap();
        let transcript = (PEER_ISN, ISN, handle(local));
        let option = sealed(KEY_IN, RESUME_REPLY, 0, handle(peer), SESSION, transcript);
        let answer = Segment { flags: SYN | ACK, ack: ISN + 1, ..Segment::syn(host, pu, port, SPORT, PEER_ISN) };
        let (action, out) = self.stage.run("tc_pu_egress", local, &answer.with(option).frame());
        assert_eq!(action, Pass, "the answer or a reset in its place");
        let flow = self.stage.take(&at);
        let segment = Segment::parse(&out);
        match refusal(&decision) {
            None => {
                let flow = flow.unwrap();
                assert_eq!((flow.state, segment.flags), (CONFIRMING, SYN | ACK), "{decision:?}");
                assert_flow(&flow, &decision);
            }
            Some(reason) => {
                assert_eq!((flow, segment.flags & SYN), (None, 0), "{decision:?}");
                self.count(reason, true);
            }
        }
    }

    /// A live flow meets the policy of another generation at its next packet.
    fn live(&mut self, local: usize, peer: usize, port: u16, v6: bool) {
        let (pu, host) = ends(v6);
        let outbound = port.is_multiple_of(2);
        let (at, subject, object) = if outbound {
            (key(pu, SPORT, host, port), local, peer)
        } else {
            (key(pu, port, host, SPORT), peer, local)
        };
        let interface = self.stage.interfaces[local];
        let flow = Flow {
            state: ESTABLISHED,
            role: if outbound { CLIENT } else { SERVER },
            path: PATH_RESUME,
            local_identity: number(local),
            peer_identity: number(peer),
            generation: GENERATION + 1,
            pu: number(local),
            pu_ifindex: interface,
            ..Flow::default()
        };
        self.stage.bench.maps.flows.insert(&at, &flow).unwrap();
        let bare = Segment { flags: ACK, ..Segment::syn(host, pu, at.remote_port, at.local_port, PEER_ISN) };
        let (action, _) = self.stage.run("tc_pu_egress", local, &bare.frame());
        let decision = self.decide(&self.pus[subject], &self.pus[object], 6, port);
        let flow = self.stage.take(&at).unwrap();
        assert_eq!(flow.generation, GENERATION);
        assert_eq!(flow.rule, decision.rule.map_or(0, |rule| rule.0), "{decision:?}");
        match refusal(&decision) {
            None => assert_eq!((action, flow.state), (Pass, ESTABLISHED), "{decision:?}"),
            Some(_) => {
                assert_eq!((action, flow.state, flow.reason), (Redirect, CUT, Reason::Revoked as u16), "{decision:?}");
                self.count(Reason::Revoked, false);
            }
        }
    }

    /// TCP to or from a host without enforcer.
    fn external_tcp(&mut self, local: usize, address: IpAddr, port: u16, outbound: bool) {
        let (pu, _) = ends(address.is_ipv6());
        let decision = self.decide_external(local, address, outbound, 6, port);
        let (program, syn, at) = if outbound {
            ("tc_pu_ingress", Segment::syn(pu, address, SPORT, port, ISN), key(pu, SPORT, address, port))
        } else {
            ("tc_pu_egress", Segment::syn(address, pu, SPORT, port, PEER_ISN), key(pu, port, address, SPORT))
        };
        let (action, _) = self.stage.run(program, local, &syn.frame());
        let flow = self.stage.take(&at);
        self.by_address(&decision, action, flow, outbound, if outbound { Redirect } else { Drop });
    }

    fn by_address(&mut self, decision: &Decision, action: Action, flow: Option<Flow>, outbound: bool, refused: Action) {
        match refusal(decision) {
            None => {
                assert_eq!(action, Pass, "{decision:?}");
                let flow = flow.unwrap();
                assert_eq!((flow.state, flow.path), (ESTABLISHED, PATH_EXTERNAL));
                assert_flow(&flow, decision);
                self.count(Reason::Allowed, !outbound);
            }
            Some(reason) => {
                assert_eq!((action, flow), (refused, None), "{decision:?}");
                let unnamed = if outbound { Reason::OutsideIdentityNetworks } else { Reason::NoIdentity };
                self.count(if reason == Reason::NoRule { unnamed } else { reason }, !outbound);
            }
        }
    }

    /// Datagrams to or from a host without enforcer.
    fn external_other(&mut self, local: usize, address: IpAddr, protocol: u8, port: u16, outbound: bool) {
        let (pu, _) = ends(address.is_ipv6());
        let decision = self.decide_external(local, address, outbound, protocol, port);
        let (source, target) = if outbound { (pu, address) } else { (address, pu) };
        let [high, low] = port.to_be_bytes();
        let [sport, _] = [SPORT.to_be_bytes(), [0; 2]];
        let (ports, payload) = match protocol {
            17 => ((SPORT, port), [sport[0], sport[1], high, low, 0, 8, 0, 0]),
            // An echo's identifier, here 0, is the port of the end that asks.
            1 | 58 => {
                let ports = match (protocol, high) {
                    (1, 8) | (58, 128) => (0, port),
                    (1, 0) => (u16::from_be_bytes([8, low]), 0),
                    (58, 129) => (u16::from_be_bytes([128, low]), 0),
                    _ => (port, port),
                };
                (ports, [high, low, 0, 0, 0, 0, 0, 0])
            }
            _ => ((0, 0), [0; 8]),
        };
        let (local_port, remote_port) = if outbound { ports } else { (ports.1, ports.0) };
        let at =
            FlowKey { local: addr(pu), remote: addr(address), local_port, remote_port, proto: protocol, pad: [0; 3] };
        let program = if outbound { "tc_pu_ingress" } else { "tc_pu_egress" };
        let (action, _) = self.stage.run(program, local, &packet(source, target, protocol, &payload));
        let flow = self.stage.take(&at);
        match refusal(&decision) {
            None => {
                assert_eq!(action, Pass, "{protocol}/{port} {decision:?}");
                assert_flow(&flow.unwrap(), &decision);
                self.count(Reason::Allowed, !outbound);
            }
            Some(reason) => {
                assert_eq!((action, flow), (Drop, None), "{protocol}/{port} {decision:?}");
                self.count(if reason == Reason::NoRule { Reason::ProtocolDenied } else { reason }, !outbound);
            }
        }
    }
}

impl Stage {
    fn run(&mut self, program: &str, pu: usize, frame: &[u8]) -> (Action, Vec<u8>) {
        self.decisions += 1;
        self.bench.run_on(program, frame, self.interfaces[pu])
    }

    /// The flow that was entered, which makes room for the next.
    fn take(&self, at: &FlowKey) -> Option<Flow> {
        let flow = self.bench.maps.flows.get(at).unwrap();
        if flow.is_some() {
            self.bench.maps.flows.remove(at).unwrap();
        }
        flow
    }
}

/// The kernel's reason for what the rules refuse.
fn refusal(decision: &Decision) -> Option<Reason> {
    match (decision.action, decision.rule) {
        (policy::Action::Allow, _) => None,
        (policy::Action::Deny, Some(_)) => Some(Reason::DenyRule),
        (policy::Action::Deny, None) => Some(Reason::NoRule),
    }
}

/// Rule, observe rule and record as the evaluator has them.
fn assert_flow(flow: &Flow, decision: &Decision) {
    assert_eq!(flow.rule, decision.rule.map_or(0, |rule| rule.0), "{decision:?}");
    assert_eq!(flow.observed_rule, decision.observed.map_or(0, |(_, rule)| rule.0), "{decision:?}");
    assert_eq!(flow.flags & FLAG_LOG != 0, decision.log, "{decision:?}");
    assert_eq!(flow.generation, GENERATION);
}

#[test]
fn the_kernel_agrees_with_the_evaluator() {
    isolated(|place| {
        let mut bench = Bench::sized(place, MapSizes { flows: Some(100), ..MapSizes::default() });
        let session =
            Session { key_out: KEY_OUT, key_in: KEY_IN, until_ns: u64::MAX, peer_index: PEER_SESSION, peer: 1 };
        bench.session(SESSION, &session);
        let credential = credential(600, 1);
        let interfaces: Vec<u32> = (0..PUS)
            .map(|pu| {
                ip(&format!("link add d{pu} type veth peer name e{pu}"));
                let index = enforcer_user::link_net::by_name(&format!("d{pu}")).unwrap().unwrap().index;
                bench.pu(number(pu), index, number(pu), handle(pu), &credential);
                bench.peer_pu(SESSION, handle(pu), number(pu));
                bench.known(SESSION, handle(pu));
                index
            })
            .collect();
        for v6 in [false, true] {
            bench.peer_at(ends(v6).1, SESSION);
        }
        let before = bench.counts();
        let stage = RefCell::new(Stage { bench, interfaces, decisions: 0, expected: BTreeMap::new() });
        let world = (vec(policy_rule(), 0..25), vec(pu(), PUS..=PUS), vec(change(), 0..4), any::<bool>());
        let config = Config { cases: 60, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
        TestRunner::new(config)
            .run(&world, |(rules, pus, changes, v6)| {
                let mut stage = stage.borrow_mut();
                let mut world = World::new(&mut stage, rules, pus);
                world.check(v6);
                for (change, nth) in changes.into_iter().zip(1_u32..) {
                    world.apply(change);
                    world.check(v6 ^ (nth % 2 == 1));
                }
                Ok(())
            })
            .unwrap();
        let stage = stage.into_inner();
        let counted: HashMap<(&str, bool), u64> = stage
            .bench
            .counts()
            .since(&before)
            .reasons
            .into_iter()
            .map(|(reason, inbound, count)| ((reason, inbound), count))
            .collect();
        let expected: HashMap<(&str, bool), u64> =
            stage.expected.iter().map(|((reason, inbound), count)| ((reason.name(), *inbound), *count)).collect();
        assert_eq!(counted, expected);
        assert!(stage.decisions >= CASES, "only {} verdicts", stage.decisions);
        stage.bench.finish();
    });
}
