//! A PU with raw sockets writes identity itself: its own enforcer refuses, and nothing gets on the wire.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use common::drop_reason::Reason::{self, ForgedByPu, NoFlow};
use common::wire::{CHALLENGE, CONFIRM, DENY, HELLO, HELLO_REPLY, OptionBytes, RESUME, RESUME_REPLY, RETRY};
use tests::segment::option_bytes;
use tests::{Fate, Segment, Way};

use crate::stage::{Stage, for_both_families, hex, outbound, raw};
use crate::tampering::mend_hash;

const TYPES: [(&str, u8); 8] = [
    ("HELLO", HELLO),
    ("HELLO_REPLY", HELLO_REPLY),
    ("RESUME", RESUME),
    ("RESUME_REPLY", RESUME_REPLY),
    ("CONFIRM", CONFIRM),
    ("RETRY", RETRY),
    ("CHALLENGE", CHALLENGE),
    ("DENY", DENY),
];

#[test]
fn a_pu_cannot_write_identity_itself() -> Result<()> {
    for_both_families("forged", |stage| {
        let seen = stage.good("first contact")?;
        let hello = seen[0].original.clone();
        ensure!(hello.identity().is_some_and(|option| option.packet_type() == HELLO), "{hello:?}");
        let mut port = 30_000;
        for (name, packet_type) in TYPES {
            for flags in ["S", "SA", "A", "RA", "PA"] {
                port += 1;
                let option = hex(&option_bytes(&OptionBytes::new(packet_type, 0, 7, 8, 9)));
                let what = format!("{name} with flags {flags} by a raw socket");
                refused(stage, &what, port, ForgedByPu, &["--flags", flags, "--ack", "77", "--options", &option])?;
            }
        }
        // A version that is not ours yet is ours to write, too.
        let next = OptionBytes { version_type: 0x21, ..OptionBytes::new(HELLO, 0, 7, 8, 9) };
        refused(stage, "the next version", 31_001, ForgedByPu, &["--options", &hex(&option_bytes(&next))])?;
        for (port, flags) in [(31_002, "SA"), (31_003, "A"), (31_004, "RA")] {
            refused(stage, &format!("flags {flags} out of nowhere"), port, NoFlow, &["--flags", flags, "--ack", "77"])?;
        }
        let (options, payload) = (hex(&hello.options), hex(&hello.payload));
        let stolen = ["--options", &options, "--payload", &payload];
        refused(stage, "the PU's own HELLO by a raw socket", 31_005, ForgedByPu, &stolen)?;
        frames(stage, &hello)?;
        past_the_queue(stage, &hello)?;
        payload_alone(stage, &hello)?;
        half_open(stage)?;
        live(stage)?;
        stage.good("resumption, untouched").map(drop)
    })
}

/// The PU's raw socket sends; its enforcer counts the reason, and the man in the middle sees nothing of it.
fn refused(stage: &Stage, what: &str, port: u16, reason: Reason, args: &[&str]) -> Result<()> {
    let from = SocketAddr::new(stage.client_ip(), port);
    nothing_passes(stage, what, from, reason, || {
        raw(&stage.client, stage.to, from, &[args, &["--wait", "0"]].concat()).map(drop)
    })
}

fn nothing_passes(
    stage: &Stage,
    what: &str,
    from: SocketAddr,
    reason: Reason,
    send: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = stage.refusals()?;
    stage.mitm.play_on(|_, _| Fate::Forward);
    send()?;
    let counts = [outbound(reason)];
    stage.settle(what, &before, &counts)?;
    stage.expect_records(&counts, &from.to_string());
    let passed = stage.mitm.seen().into_iter().find(|seen| seen.original.source() == from);
    ensure!(passed.is_none(), "{what}: on the wire is {passed:?}");
    Ok(())
}

/// The same by whole frames, beneath the IP layer.
fn frames(stage: &Stage, hello: &Segment) -> Result<()> {
    for (port, name, packet_type) in
        [(32_001, "HELLO", HELLO), (32_002, "RESUME", RESUME), (32_003, "CONFIRM", CONFIRM)]
    {
        let mut forged = hello.clone();
        forged.set_source_port(port);
        if let Some(option) = forged.identity_mut() {
            option[4] = 0x10 | packet_type;
        }
        if packet_type != HELLO {
            forged.payload.clear();
        }
        if packet_type == CONFIRM {
            forged.set_flags(tests::segment::ACK);
        }
        nothing_passes(stage, &format!("{name} by a packet socket"), forged.source(), ForgedByPu, || {
            send_frame(stage, &forged)
        })?;
    }
    Ok(())
}

/// A packet socket that would go around the programs at the interface's egress is not to be had.
fn past_the_queue(stage: &Stage, hello: &Segment) -> Result<()> {
    let before = stage.refusals()?;
    stage.mitm.play_on(|_, _| Fate::Forward);
    let mut forged = hello.clone();
    forged.set_source_port(32_101);
    let frame = hex(&forged.to_frame());
    let args = ["raw", "--frame", &frame, "--interface", "eth0", "--bypass"];
    let report: serde_json::Value = stage.client.tool(&args)?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    let passed = stage.mitm.seen().into_iter().find(|seen| seen.original.source() == forged.source());
    ensure!(passed.is_none(), "past the queue: on the wire is {passed:?}");
    ensure!(report["sent"] == 0 && report["errno"] == 1, "EPERM expected, not {report}");
    stage.settle("past the queue", &before, &[outbound(ForgedByPu)])?;
    // Who is no PU may.
    let report: serde_json::Value = stage.a.tool(&args)?;
    ensure!(report["sent"] == 1, "{report}");
    Ok(())
}

fn send_frame(stage: &Stage, segment: &Segment) -> Result<()> {
    let frame = hex(&segment.to_frame());
    let report: serde_json::Value = stage.client.tool(&["raw", "--frame", &frame, "--interface", "eth0"])?;
    ensure!(report["sent"] == 1 || report["errno"] != 0, "{report}");
    Ok(())
}

/// A SYN with a credential as payload, but no option: what leaves is what the enforcer says of the PU, not the PU.
fn payload_alone(stage: &Stage, hello: &Segment) -> Result<()> {
    stage.forget()?;
    let from = SocketAddr::new(stage.client_ip(), 33_001);
    stage.mitm.play(|_, _| Fate::Drop);
    let mut forged = hello.payload.clone();
    let end = forged.len() - 1;
    forged[end] ^= 1;
    raw(&stage.client, stage.to, from, &["--payload", &hex(&forged), "--wait", "0"])?;
    let seen = stage.mitm.seen();
    let sent = seen.iter().map(|seen| &seen.original).find(|segment| segment.source() == from);
    let sent = sent.context("a PU may open connections by hand")?;
    let mut mended = sent.clone();
    mend_hash(&mut mended);
    ensure!(sent.payload == hello.payload && mended == *sent, "the PU's payload is on the wire: {sent:?}");
    Ok(())
}

/// While its own SYN is unanswered, a PU may take it back, but not in the name of an enforcer.
fn half_open(stage: &Stage) -> Result<()> {
    let from = SocketAddr::new(stage.client_ip(), 34_001);
    let to = stage.to.to_string();
    stage.mitm.play(|_, _| Fate::Drop);
    let mut attempt = stage.client.spawn_tool(&["connect", &to, "--from", &from.to_string(), "--timeout", "700"])?;
    crate::stage::eventually("a SYN", || Ok(!stage.mitm.seen().is_empty()))?;
    for (name, packet_type) in [("DENY", DENY), ("RETRY", RETRY), ("CONFIRM", CONFIRM)] {
        let option = hex(&option_bytes(&OptionBytes::new(packet_type, 1, 0, 0, 0)));
        let before = stage.refusals()?;
        raw(&stage.client, stage.to, from, &["--flags", "RA", "--options", &option, "--wait", "0"])?;
        stage.settle(&format!("{name} on an unanswered SYN"), &before, &[outbound(ForgedByPu)])?;
    }
    let resets = stage.mitm.seen().into_iter().find(|seen| seen.original.flags() & tests::segment::RST != 0);
    ensure!(resets.is_none(), "on the wire is {resets:?}");
    attempt.kill9()
}

/// On a live connection of its own.
fn live(stage: &Stage) -> Result<()> {
    let from = SocketAddr::new(stage.client_ip(), 35_001);
    let to = stage.to.to_string();
    stage.mitm.play(|_, _| Fate::Forward);
    let args = ["hold", &to, "--count", "1", "--ping", "20"];
    let mut hold = stage.client.spawn_tool(&args)?;
    hold.wait_for_line("READY", std::time::Duration::from_secs(2))?;
    let seen = stage.mitm.seen();
    let answered =
        |seen: &[tests::Sighting]| seen.iter().any(|s| s.way == Way::ToHost && !s.original.payload.is_empty());
    crate::stage::eventually("pings", || Ok(answered(&stage.mitm.seen())))?;
    let own = seen.iter().find(|seen| seen.original.is_syn()).context("a SYN")?.original.source();
    ensure!(own != from, "the tool chooses its port");
    for (name, packet_type, flags) in [("CONFIRM", CONFIRM, "PA"), ("DENY", DENY, "RA"), ("HELLO", HELLO, "A")] {
        let option = hex(&option_bytes(&OptionBytes::new(packet_type, 0, 7, 8, 9)));
        let before = stage.refusals()?;
        let args = ["--flags", flags, "--ack", "77", "--options", &option, "--payload", "00", "--wait", "0"];
        raw(&stage.client, stage.to, own, &args)?;
        stage.settle(&format!("{name} on a live connection"), &before, &[outbound(ForgedByPu)])?;
    }
    hold.kill9()
}
