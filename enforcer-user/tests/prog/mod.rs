//! The kernel's programs on a bench: loaded for real, fed with single frames by `BPF_PROG_TEST_RUN`.
//!
//! The PU under test sits behind an interface of its own, so `tc_pu_ingress` is its way out and `tc_pu_egress` the way
//! to it. The frames carry complete checksums, as a network card without offload sees them.
#![allow(dead_code, reason = "no test file uses all of it")]

pub mod segment;

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::IpAddr;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use common::abi::{handshake_stat, reason_stat};
use common::drop_reason::{self, Reason};
use common::flow::FlowKey;
use common::identity::{Credential, PeerAddr, PeerPu, Session, SessionPu};
use common::wire::{self, CREDENTIAL_MAX, MacKey, OptionBytes};
use common::{Addr, addr_v4};
use enforcer_user::load::{Interfaces, Kernel, LoadOptions, MapSizes, UnloadOptions, unload};
use enforcer_user::map_write::{ConfigWriter, Maps, Networks, Pairs, Pus};
use enforcer_user::{link_net, sys};

use crate::place::Place;

/// What a program decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    Redirect,
}

/// The bench.
pub struct Bench {
    pub maps: Maps,
    pub pairs: Pairs,
    pub networks: Networks,
    pub pus: Pus,
    pub config: ConfigWriter,
    pub ifindex: u32,
    programs: BTreeMap<&'static str, SchedClassifier>,
    xdp: Xdp,
    _kernel: Kernel,
    unload: UnloadOptions,
}

/// Programs attached to the traffic control hooks.
pub const TC: [&str; 4] = ["tc_ingress", "tc_egress", "tc_pu_ingress", "tc_pu_egress"];

impl Bench {
    pub fn new(place: &Place) -> Self {
        Self::sized(place, MapSizes { flows: Some(50_000), ..MapSizes::default() })
    }

    pub fn sized(place: &Place, sizes: MapSizes) -> Self {
        let options = LoadOptions { interfaces: Interfaces::Named(vec!["lo".into()]), sizes, ..place.options() };
        let kernel = Kernel::open(&options).unwrap();
        let program = |name: &'static str| place.bpffs.join("v1/progs").join(name);
        let programs = TC.map(|name| (name, SchedClassifier::from_pin(program(name)).unwrap()));
        let maps = place.maps();
        let mut config = ConfigWriter::open(&maps).unwrap();
        config
            .update(|config| {
                config.agent_timeout_ns = 3_600_000_000_000;
                config.generation = 1;
                config.mark = 0x1234_5678;
            })
            .unwrap();
        config.beat().unwrap();
        Self {
            maps: Maps::open(&maps).unwrap(),
            pairs: Pairs::open(&maps).unwrap(),
            networks: Networks::open(&maps).unwrap(),
            pus: Pus::open(&maps).unwrap(),
            config,
            ifindex: link_net::by_name("v0").unwrap().unwrap().index,
            programs: programs.into(),
            xdp: Xdp::from_pin(program("xdp_shield"), XdpAttachType::Interface).unwrap(),
            _kernel: kernel,
            unload: place.unload(),
        }
    }

    /// Takes everything out of the kernel again.
    pub fn finish(self) {
        let options = self.unload.clone();
        drop(self);
        unload(&options).unwrap();
    }

    /// Runs a traffic control program on a frame that came on `ifindex`.
    pub fn run_on(&self, program: &str, frame: &[u8], ifindex: u32) -> (Action, Vec<u8>) {
        self.run_as(program, frame, ifindex, 0)
    }

    /// The same of a frame that is several, each with `segment` bytes of payload, at the PU's interface.
    pub fn run_merged(&self, program: &str, frame: &[u8], segment: u32) -> (Action, Vec<u8>) {
        self.run_as(program, frame, self.ifindex, segment)
    }

    fn run_as(&self, program: &str, frame: &[u8], ifindex: u32, segment: u32) -> (Action, Vec<u8>) {
        // Offsets in `struct __sk_buff`.
        const IFINDEX: usize = 40;
        const GSO_SIZE: usize = 176;
        let mut context = [0u8; 192];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&segment.to_ne_bytes());
        let mut out = vec![0u8; 16384];
        let mut frame = frame.to_vec();
        if program == "tc_ingress" {
            // What bears another link-layer address is not for this interface.
            let interface = link_net::by_index(ifindex).unwrap().expect("the bench's interface");
            frame[..6].copy_from_slice(&interface.address);
        }
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = self.programs[program].test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value as i32 {
            -1 => Action::Pass,
            2 => Action::Drop,
            7 => Action::Redirect,
            other => panic!("{program} answered {other}"),
        };
        (action, out)
    }

    /// Runs a traffic control program on a frame at the PU's interface.
    pub fn run(&self, program: &str, frame: &[u8]) -> (Action, Vec<u8>) {
        self.run_on(program, frame, self.ifindex)
    }

    /// The way out of the PU.
    pub fn out(&self, frame: &[u8]) -> (Action, Vec<u8>) {
        self.run("tc_pu_ingress", frame)
    }

    /// The way to the PU.
    pub fn to(&self, frame: &[u8]) -> (Action, Vec<u8>) {
        self.run("tc_pu_egress", frame)
    }

    /// Runs the shield.
    pub fn shield(&self, frame: &[u8]) -> Action {
        let result = self.xdp.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() }).unwrap();
        match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            other => panic!("xdp_shield answered {other}"),
        }
    }

    /// The counters.
    pub fn counts(&self) -> Counts {
        Counts {
            reasons: self.maps.stats.reasons().unwrap(),
            handshakes: self.maps.stats.handshakes().unwrap(),
            losses: self.maps.stats.losses().unwrap(),
        }
    }

    /// A local PU behind `ifindex`.
    pub fn pu(&mut self, pu: u32, ifindex: u32, identity: u32, handle: u16, credential: &Credential) {
        self.pus.set_credential(pu, identity, handle, credential, u64::MAX).unwrap();
        self.maps.pu_ifaces.insert(&ifindex, &pu).unwrap();
    }

    /// A verified PU of a peer.
    pub fn peer_pu(&self, session: u32, handle: u16, identity: u32) {
        let entry = PeerPu { until_ns: u64::MAX, identity, ..PeerPu::default() };
        self.maps.peer_pus.insert(&SessionPu { session, handle, pad: 0 }, &entry).unwrap();
    }

    /// The session's enforcer answers at `address`.
    pub fn peer_at(&self, address: IpAddr, session: u32) {
        self.maps.peer_addrs.insert(&PeerAddr { addr: addr(address), port: 0, pad: 0 }, &session).unwrap();
    }

    /// The peer has seen the credential of this PU.
    pub fn known(&self, session: u32, handle: u16) {
        self.maps.known_to_peer.insert(&SessionPu { session, handle, pad: 0 }, &u64::MAX).unwrap();
    }

    /// What the peer's enforcer makes of a session.
    pub fn session(&self, index: u32, session: &Session) {
        self.maps.sessions.insert(&index, session).unwrap();
    }
}

/// Counters at one moment.
#[derive(Clone, Debug)]
pub struct Counts {
    reasons: Vec<u64>,
    handshakes: Vec<u64>,
    losses: Vec<u64>,
}

/// What was counted between two moments: reasons by name and direction, handshake packets, losses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    pub reasons: Vec<(&'static str, bool, u64)>,
    pub handshakes: Vec<(u8, bool, u64)>,
    pub losses: Vec<(u32, u64)>,
}

/// The way out, in [`Delta`].
pub const OUT: bool = false;
/// The way in, in [`Delta`].
pub const IN: bool = true;

impl Counts {
    pub fn since(&self, before: &Counts) -> Delta {
        let mut delta = Delta::default();
        let grown = |now: &[u64], then: &[u64], at: u32| now[at as usize] - then[at as usize];
        for inbound in [OUT, IN] {
            for reason in drop_reason::ALL {
                let by = grown(&self.reasons, &before.reasons, reason_stat(*reason as u16, inbound));
                if by > 0 {
                    delta.reasons.push((reason.name(), inbound, by));
                }
            }
            for kind in 0..16 {
                let by = grown(&self.handshakes, &before.handshakes, handshake_stat(kind, inbound));
                if by > 0 {
                    delta.handshakes.push((kind, inbound, by));
                }
            }
        }
        for which in 0..common::abi::LOSS_STATS {
            let by = grown(&self.losses, &before.losses, which);
            if by > 0 {
                delta.losses.push((which, by));
            }
        }
        let known: u64 = delta.reasons.iter().map(|(_, _, by)| by).sum();
        let all: u64 = self.reasons.iter().zip(&before.reasons).map(|(now, then)| now - then).sum();
        assert_eq!(known, all, "counted under a number that is no reason");
        delta
    }
}

/// An address as the maps hold it.
pub fn addr(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(v4) => addr_v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            std::array::from_fn(|word| u32::from_ne_bytes(octets[word * 4..word * 4 + 4].try_into().unwrap()))
        }
    }
}

/// The key of a connection as the end at `local` sees it.
pub fn key(local: IpAddr, local_port: u16, remote: IpAddr, remote_port: u16) -> FlowKey {
    FlowKey { local: addr(local), remote: addr(remote), local_port, remote_port, proto: 6, pad: [0; 3] }
}

/// A credential of `len` arbitrary bytes.
pub fn credential(len: usize, seed: u8) -> Credential {
    let mut bytes = [0; CREDENTIAL_MAX + 4];
    for (at, byte) in bytes[..len].iter_mut().enumerate() {
        *byte = (at as u8).wrapping_mul(31).wrapping_add(seed);
    }
    let words = bytes.chunks_exact(4).map(|word| u64::from(u32::from_ne_bytes(word.try_into().unwrap())));
    let mut sum: u64 = words.sum();
    while sum >> 32 != 0 {
        sum = (sum & 0xffff_ffff) + (sum >> 32);
    }
    Credential {
        hash_index: 0x0a0b_0c0d,
        len: len as u32,
        hash_mac: 0x0102_0304_0506_0708,
        csum: sum as u32,
        pad: 0,
        bytes,
    }
}

/// An option with its MAC as another implementation of SipHash-2-4 computes it.
pub fn sealed(
    key: MacKey,
    packet_type: u8,
    flags: u8,
    handle: u16,
    index: u32,
    (sender_isn, peer_isn, peer_handle): (u32, u32, u16),
) -> [u8; 20] {
    let mut hasher = siphasher::sip::SipHasher24::new_with_keys(key.k0, key.k1);
    let mut message = vec![packet_type, flags];
    message.extend(handle.to_le_bytes());
    message.extend(index.to_le_bytes());
    message.extend(sender_isn.to_le_bytes());
    message.extend(peer_isn.to_le_bytes());
    message.extend(u64::from(peer_handle).to_le_bytes());
    hasher.write(&message);
    option(packet_type, flags, handle, index, hasher.finish())
}

/// The option, byte for byte as the wire format describes it.
pub fn option(packet_type: u8, flags: u8, handle: u16, index: u32, mac: u64) -> [u8; 20] {
    let mut bytes = vec![254, 20, 0x5a, 0x54, 0x10 | packet_type, flags];
    bytes.extend(handle.to_be_bytes());
    bytes.extend(index.to_be_bytes());
    bytes.extend(mac.to_be_bytes());
    bytes.try_into().unwrap()
}

/// Type and flags of an option of ours.
pub fn type_and_reason(bytes: [u8; 20]) -> (u8, Option<Reason>) {
    assert_eq!(bytes[..4], [wire::OPTION_KIND, 20, 0x5a, 0x54], "not our option");
    assert_eq!(size_of::<OptionBytes>(), bytes.len());
    (bytes[4] & 15, Reason::from_number(bytes[5].into()))
}

/// Monotonic time, as the maps have it.
pub fn now() -> u64 {
    sys::monotonic_ns()
}
