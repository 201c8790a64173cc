//! Two enforcers in memory on a network that loses, doubles, reorders, corrupts and replays: whatever comes out of it,
//! nobody believes anything that was not said to him, and no verdict differs from the evaluator's.

#[path = "../fuzz/src/seeds.rs"]
#[allow(dead_code, reason = "the fuzzer's own crate uses the rest")]
mod seeds;

use std::collections::HashMap;
use std::sync::Arc;

use common::wire::{HELLO, OptionBytes};
use enforcer_user::handshake::initiator::{self, Reply};
use enforcer_user::handshake::responder::{self, Accept};
use enforcer_user::handshake::{Frame, LocalPu, Own, Sessions};
use enforcer_user::identity::ca::IssueOptions;
use enforcer_user::identity::credential::prepare;
use enforcer_user::identity::{
    Anchors, EnforcerId, OwnIdentity, Prekeys, PreparedCredential, Tags, TrustProfile, Verifier,
};
use policy::{Action, Identity, PolicyRule, RuleId};
use seeds::{NOW, TRUST_DOMAIN};
use tests::Dice;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Connections at once, each between other PUs than its neighbours.
const CONNECTIONS: u16 = 18;
/// Worlds, each with sessions of its own.
const WORLDS: u64 = 60;
/// Frames delivered while the network misbehaves.
const FAULTY: usize = 1500;
const FIRST_PORT: u16 = 40_000;
const SERVICE: u16 = 8000;

const POLICY: &str = "name: p
rules:
  - allow app=a -> app=b tcp
  - allow app=b user=prod -> app=a or app=c tcp/8000-8001
  - deny user=guest -> any
  - allow app=c -> any tcp/8002
";

/// One PU as its enforcer knows it.
struct Pu {
    local: LocalPu,
    identity: Identity,
    credential: PreparedCredential,
}

struct Machine {
    own: OwnIdentity,
    prekeys: Prekeys,
    sessions: Sessions,
    verifier: Verifier,
    pus: Vec<Pu>,
}

impl Machine {
    fn new(name: &str) -> Self {
        let authority = seeds::authority();
        let id = EnforcerId::new(TRUST_DOMAIN, name).expect("an id");
        let day = std::time::Duration::from_secs(86_400);
        let issued = authority.issue(&IssueOptions::for_enforcer(&id, NOW - 500, day)).expect("a certificate");
        let own = OwnIdentity::from_pem(&issued.cert_pem, &issued.key_pem).expect("an identity");
        let prekeys = Prekeys::new(3600, 600, NOW).expect("prekeys");
        let anchors = Anchors::from_certificates([authority.certificate().clone()]).expect("anchors");
        let tag_sets =
            [[("app", "a"), ("user", "prod")], [("app", "b"), ("user", "prod")], [("app", "c"), ("user", "guest")]];
        let pus = tag_sets.iter().zip(1_u16..).map(|(set, number)| {
            let mut tags = Tags::new();
            for (key, value) in set {
                tags.entry((*key).into()).or_default().insert((*value).into());
            }
            let profile = TrustProfile {
                enforcer: id.clone(),
                pu: format!("pu-{number}"),
                handle: number * 0x0101,
                namespace: "/".into(),
                tags,
                issued: NOW - 10,
                issued_ms: 0,
                expires: NOW + 300,
                prekey: prekeys.current(),
            };
            let credential = prepare(&own, &profile).expect("a credential");
            let epoch = prekeys.current().epoch;
            let local = LocalPu { pu: number.into(), identity: number.into(), handle: profile.handle, epoch };
            Pu { local, identity: identity_of(&profile), credential }
        });
        let pus = pus.collect();
        Self { own, prekeys, sessions: Sessions::new(16), verifier: Verifier::new(anchors, TRUST_DOMAIN, 30), pus }
    }
}

fn identity_of(profile: &TrustProfile) -> Identity {
    Identity::Pu { namespace: profile.namespace.parse().expect("a namespace"), tags: profile.tags.clone() }
}

/// A connection as its client sees it.
struct Connection {
    client: usize,
    server: usize,
    isn: u32,
    reply: Option<Reply>,
    refused: bool,
}

/// The same as the server sees it.
struct Accepted {
    accept: Accept,
    server: usize,
    isn: u32,
    confirmed: bool,
}

struct World {
    dice: Dice,
    a: Machine,
    b: Machine,
    rules: Vec<Arc<PolicyRule>>,
    connections: Vec<Connection>,
    /// By ports and the client's ISN: like a server with SYN cookies, it can finish whatever it answered.
    accepted: HashMap<((u16, u16), u32), Accepted>,
    wire: Vec<Vec<u8>>,
    seen: Vec<Vec<u8>>,
}

/// A frame from the client's host, or to it.
struct Tcp<'a> {
    backward: bool,
    ports: (u16, u16),
    flags: u8,
    numbers: (u32, u32),
    option: OptionBytes,
    payload: &'a [u8],
}

impl Tcp<'_> {
    fn bytes(&self) -> Vec<u8> {
        let option = &self.option;
        let mut options = vec![option.kind, option.len];
        options.extend(option.exid);
        options.extend([option.version_type, option.flags]);
        options.extend([&option.handle[..], &option.index, &option.mac].concat());
        let mut frame = seeds::syn_with(&options);
        let (source, target) = if self.backward { (self.ports.1, self.ports.0) } else { self.ports };
        if self.backward {
            frame[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
        }
        frame[34..36].copy_from_slice(&source.to_be_bytes());
        frame[36..38].copy_from_slice(&target.to_be_bytes());
        frame[38..42].copy_from_slice(&self.numbers.0.to_be_bytes());
        frame[42..46].copy_from_slice(&self.numbers.1.to_be_bytes());
        frame[47] = self.flags;
        frame.extend(self.payload);
        let length = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        frame
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let connections = (0..CONNECTIONS).map(|number| Connection {
            client: usize::from(number) % 3,
            server: usize::from(number) / 3 % 3,
            isn: dice.roll() as u32,
            reply: None,
            refused: false,
        });
        Self {
            connections: connections.collect(),
            dice,
            a: Machine::new("host-a"),
            b: Machine::new("host-b"),
            rules: policy::parse_file("p.yaml", POLICY).expect("a policy"),
            accepted: HashMap::new(),
            wire: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn allowed(&self, subject: &Identity, object: &Identity, port: u16) -> bool {
        let numbered = self.rules.iter().zip(1..).map(|(rule, number)| (RuleId(number), rule.as_ref()));
        policy::evaluate(numbered, subject, object, 6, port, policy::Moment::START).action == Action::Allow
    }

    /// What the evaluator says of a connection, by the PUs as they truly are.
    fn truth(&self, number: usize) -> bool {
        let connection = &self.connections[number];
        let (subject, object) = (&self.a.pus[connection.client], &self.b.pus[connection.server]);
        self.allowed(&subject.identity, &object.identity, SERVICE + connection.server as u16)
    }

    fn ports(&self, number: usize) -> (u16, u16) {
        (FIRST_PORT + number as u16, SERVICE + self.connections[number].server as u16)
    }

    fn send(&mut self, frame: Vec<u8>) {
        self.seen.push(frame.clone());
        self.wire.push(frame);
    }

    /// What each client sends when nothing has come for a while.
    fn retransmit(&mut self) {
        for number in 0..self.connections.len() {
            let (connection, ports) = (&self.connections[number], self.ports(number));
            let pu = &self.a.pus[connection.client];
            let frame = match &connection.reply {
                Some(reply) => acknowledgement(ports, connection.isn, reply),
                None => Tcp {
                    backward: false,
                    ports,
                    flags: SYN,
                    numbers: (connection.isn, 0),
                    option: OptionBytes::new(
                        HELLO,
                        0,
                        pu.local.handle,
                        pu.credential.hash_index(),
                        pu.credential.hash_mac(),
                    ),
                    payload: pu.credential.bytes(),
                }
                .bytes(),
            };
            if !connection.refused {
                self.send(frame);
            }
        }
    }

    /// Takes any frame off the wire and delivers it, or not, or not only it, or not as it was.
    fn deliver(&mut self, faulty: bool) {
        let at = self.dice.below(self.wire.len());
        let mut frame = self.wire.swap_remove(at);
        if faulty {
            match self.dice.below(8) {
                0 => return,
                1 => self.wire.push(frame.clone()),
                2 | 3 => {
                    for _ in 0..=self.dice.below(2) {
                        let at = self.dice.below(frame.len());
                        frame[at] ^= 1 << self.dice.below(8);
                    }
                }
                4 => frame = self.seen[self.dice.below(self.seen.len())].clone(),
                5 => frame.truncate(self.dice.below(frame.len())),
                _ => {}
            }
        }
        let Ok(parsed) = Frame::parse(&frame) else { return };
        let tuple = [parsed.source(), parsed.destination()];
        let ends = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| common::addr_v4(u32::from_ne_bytes(ip)));
        if tuple == ends {
            self.at_server(&parsed);
        } else if tuple == [ends[1], ends[0]] {
            self.at_client(&parsed);
        }
    }

    fn at_server(&mut self, frame: &Frame<'_>) {
        let ports = (frame.source_port(), frame.destination_port());
        let server = usize::from(ports.1.wrapping_sub(SERVICE));
        if server >= self.b.pus.len() {
            return;
        }
        if !frame.is_syn() {
            return self.confirm(frame, ports);
        }
        let Ok(hello) = responder::authenticate(&mut self.b.verifier, frame, NOW) else { return };
        let genuine = self.a.pus.iter().any(|pu| pu.credential.bytes() == frame.payload());
        assert!(genuine, "a credential nobody signed was believed");
        let local = self.b.pus[server].local;
        let mut own = Own { id: self.b.own.id(), prekeys: &mut self.b.prekeys, sessions: &mut self.b.sessions };
        let accept = hello.accept(&mut own, local, NOW).expect("a session");
        let subject = identity_of(accept.peer.profile());
        if !self.allowed(&subject, &self.b.pus[server].identity, ports.1) {
            return;
        }
        let isn = self.dice.roll() as u32;
        let key = (ports, accept.peer_isn);
        let entry = self.accepted.entry(key).or_insert(Accepted { accept, server, isn, confirmed: false });
        let answer = Tcp {
            backward: true,
            ports,
            flags: SYN | ACK,
            numbers: (entry.isn, entry.accept.peer_isn.wrapping_add(1)),
            option: entry.accept.reply(entry.isn),
            payload: self.b.pus[entry.server].credential.bytes(),
        }
        .bytes();
        self.send(answer);
    }

    fn confirm(&mut self, frame: &Frame<'_>, ports: (u16, u16)) {
        let Some(entry) = self.accepted.get_mut(&(ports, frame.seq().wrapping_sub(1))) else { return };
        let Some(option) = frame.option() else { return };
        if entry.accept.confirm(&option, entry.isn).is_err() {
            return;
        }
        // The client named by the ports meant exactly this.
        let number = usize::from(ports.0.wrapping_sub(FIRST_PORT));
        let connection = &self.connections[number];
        let reply = connection.reply.as_ref().expect("a confirmation nobody made was believed");
        assert_eq!(option, reply.confirm);
        assert_eq!((entry.accept.peer_isn, entry.isn), (connection.isn, reply.peer_isn));
        assert_eq!(entry.server, connection.server);
        assert_eq!(identity_of(entry.accept.peer.profile()), self.a.pus[connection.client].identity);
        entry.confirmed = true;
        assert!(self.truth(number), "a connection that is not allowed was confirmed");
    }

    fn at_client(&mut self, frame: &Frame<'_>) {
        let number = usize::from(frame.destination_port().wrapping_sub(FIRST_PORT));
        if number >= self.connections.len() || self.ports(number).1 != frame.source_port() {
            return;
        }
        let (isn, local) = {
            let connection = &self.connections[number];
            (connection.isn, self.a.pus[connection.client].local)
        };
        let mut own = Own { id: self.a.own.id(), prekeys: &mut self.a.prekeys, sessions: &mut self.a.sessions };
        let Ok(reply) = initiator::authenticate(&mut self.a.verifier, &mut own, local, isn, frame, NOW) else {
            return;
        };
        // The server's end made exactly this for exactly this SYN.
        let entry = &self.accepted[&(self.ports(number), isn)];
        assert_eq!((entry.accept.peer_isn, entry.isn), (isn, frame.seq()));
        assert_eq!(frame.option(), Some(entry.accept.reply(entry.isn)));
        let connection = &mut self.connections[number];
        assert_eq!(frame.payload(), self.b.pus[connection.server].credential.bytes());
        let object = identity_of(reply.peer.profile());
        let subject = &self.a.pus[connection.client].identity;
        if !self.allowed(subject, &object, frame.source_port()) {
            self.connections[number].refused = true;
            return;
        }
        let connection = &mut self.connections[number];
        let ack = acknowledgement((frame.destination_port(), frame.source_port()), isn, &reply);
        connection.reply = Some(reply);
        self.send(ack);
    }
}

fn acknowledgement(ports: (u16, u16), isn: u32, reply: &Reply) -> Vec<u8> {
    let numbers = (isn.wrapping_add(1), reply.peer_isn.wrapping_add(1));
    Tcp { backward: false, ports, flags: ACK, numbers, option: reply.confirm, payload: &[] }.bytes()
}

#[test]
fn a_bad_network_changes_no_verdict() {
    for seed in 1..=WORLDS {
        let mut world = World::new(seed);
        for _ in 0..FAULTY {
            if world.wire.is_empty() {
                world.retransmit();
            }
            world.deliver(true);
        }
        // Then it behaves: whatever is allowed comes about, and nothing else does.
        for _ in 0..3 {
            world.retransmit();
            while !world.wire.is_empty() {
                world.deliver(false);
            }
        }
        let mut allowed = 0;
        for number in 0..world.connections.len() {
            let key = (world.ports(number), world.connections[number].isn);
            let confirmed = world.accepted.get(&key).is_some_and(|entry| entry.confirmed);
            assert_eq!(confirmed, world.truth(number), "world {seed}, connection {number}");
            assert_eq!(world.connections[number].reply.is_some(), confirmed, "world {seed}, connection {number}");
            allowed += usize::from(confirmed);
        }
        assert!(allowed > 0 && allowed < world.connections.len());
        assert_eq!((world.a.sessions.len(), world.b.sessions.len()), (1, 1), "one session serves all");
    }
}
