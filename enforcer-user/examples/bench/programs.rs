//! The loaded programs, one run after another on one packet, with the maps of a running enforcer.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya_obj::programs::xdp::XdpAttachType;
use common::Addr;
use common::flow::{ESTABLISHED, FlowKey};
use common::identity::ListenerKey;
use common::wire::{OptionBytes, RESUME};
use enforcer_user::map_write::Maps;

use crate::Values;

const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const TCX_NEXT: u32 = u32::MAX;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// Runs of one measurement. A refusal writes a record: so many fit into the ring, and the agent has taken them out of it
/// before the next.
const REPEAT: u32 = 10_000;
const PAUSE: Duration = Duration::from_millis(150);

pub fn measure(bpffs: &Path, rounds: usize) -> Result<Values> {
    let pins = bpffs.join("v1");
    let maps = Maps::open(&pins.join("maps"))?;
    let flows = maps.flows.entries()?;
    let (key, before) = flows
        .iter()
        .find(|(key, flow)| key.proto == TCP && flow.state == ESTABLISHED)
        .context("no connection is established")?;
    let (session, _) = *maps.sessions.entries()?.first().context("there is no session")?;

    let program = |name: &str| pins.join("progs").join(name);
    let ingress = SchedClassifier::from_pin(program("tc_ingress"))?;
    let egress = SchedClassifier::from_pin(program("tc_egress"))?;
    let shield = Xdp::from_pin(program("xdp_shield"), XdpAttachType::Interface)?;

    let received = segment(key, false, ACK | PSH, &[], 100);
    // Without payload: the packets of a test run have a socket of no PU, which may send no data on the connection. To find
    // that out costs more than a connection's own socket ever does.
    let sent = segment(key, true, ACK, &[], 0);
    let syn = segment(key, false, SYN, &syn_options(None), 0);
    let forged = OptionBytes::new(RESUME, 0, 1, session, 0x0bad_0bad_0bad_0bad);
    let forged = segment(key, false, SYN, &syn_options(Some(&forged)), 0);

    // A listener on this very address: one on any address is looked for in the namespace of whoever runs the program, which
    // here is not the host's.
    let listener = ListenerKey { addr: key.local, port: key.local_port, pad: 0 };
    maps.pu_listeners.insert(&listener, &1)?;

    let mut values = Values::new();
    for _ in 0..rounds {
        let mut take = |name, (verdict, ns): (u32, f64), expected| {
            ensure!(verdict == expected, "{name}: the program answered {verdict}, not {expected}");
            values.entry(name).or_default().push(ns);
            Ok(())
        };
        take("tc_ingress_established_ns", timed(&ingress, &received)?, TCX_NEXT)?;
        take("tc_egress_established_ns", timed(&egress, &sent)?, TCX_NEXT)?;
        take("xdp_segment_ns", timed(&shield, &received)?, XDP_PASS)?;
        take("xdp_stranger_ns", timed(&shield, &syn)?, XDP_DROP)?;
        take("xdp_forged_resume_ns", timed(&shield, &forged)?, XDP_DROP)?;
        std::thread::sleep(PAUSE);
    }
    let counted = maps.flows.get(key)?.context("the connection has ended meanwhile")?;
    let runs = rounds as u64 * u64::from(REPEAT);
    ensure!(
        counted.packets_in >= before.packets_in + runs && counted.packets_out >= before.packets_out + runs,
        "the programs did not take the segments for the connection's"
    );
    let worst = values["tc_ingress_established_ns"].iter().zip(&values["tc_egress_established_ns"]);
    let worst = worst.map(|(ingress, egress)| ingress.max(*egress)).collect();
    values.insert("tc_established_ns", worst);
    Ok(values)
}

/// What the program answered, and the mean nanoseconds of a run as the kernel took them.
fn timed<P>(program: &P, frame: &[u8]) -> Result<(u32, f64)>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
{
    let options = TestRunOptions { data_in: Some(frame), repeat: REPEAT, ..TestRunOptions::default() };
    let result = program.test_run(options).context("BPF_PROG_TEST_RUN")?;
    Ok((result.return_value, result.duration.as_nanos() as f64))
}

/// The options of a Linux SYN: MSS, SACK permitted, timestamps, window scale; then ours.
fn syn_options(ours: Option<&OptionBytes>) -> Vec<u8> {
    let mut options = vec![2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    if let Some(ours) = ours {
        options.extend([ours.kind, ours.len]);
        options.extend(ours.exid);
        options.extend([ours.version_type, ours.flags]);
        options.extend(ours.handle);
        options.extend(ours.index);
        options.extend(ours.mac);
    }
    options
}

/// A TCP segment of the connection, from the PU (`outbound`) or to it.
fn segment(key: &FlowKey, outbound: bool, flags: u8, options: &[u8], payload: usize) -> Vec<u8> {
    let (local, remote) = ((key.local, key.local_port), (key.remote, key.remote_port));
    let ((source, sport), (destination, dport)) = if outbound { (local, remote) } else { (remote, local) };
    let v4 = |addr: Addr| addr[3].to_ne_bytes();
    let header = 20 + options.len();
    // To the address of the loopback device, on which test runs take place: what is for another one is not judged.
    let mut frame = vec![0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend([0x45, 0]);
    frame.extend(((20 + header + payload) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(v4(source));
    frame.extend(v4(destination));
    frame.extend(sport.to_be_bytes());
    frame.extend(dport.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    frame.extend([(header as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(options);
    frame.resize(frame.len() + payload, 0);
    frame
}
