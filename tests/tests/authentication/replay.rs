//! What was right in one connection is wrong in another; and a credential without its key opens nothing.

use anyhow::{Context, Result, ensure};
use common::drop_reason::Reason::{ConfirmMac, NoFlow, ReplyMac, ResumeReplayed, Unconfirmed};
use common::wire::{CONFIRM, HELLO, HELLO_REPLY, OptionBytes, RESUME, RESUME_REPLY, RETRY};
use tests::Outcome::{Refused, Timeout};
use tests::segment::{ACK, option_bytes};
use tests::{Fate, Segment, Sighting, Way};

use crate::stage::{Stage, client, eventually, for_both_families, hex, raw, server};
use crate::tampering::confirms;

#[test]
fn answers_of_another_connection_are_refused() -> Result<()> {
    for_both_families("replyreplay", |stage| {
        let old = carrying(&stage.good("first contact")?, HELLO_REPLY)?;
        stage.forget()?;
        let replay = replace_syn_ack(old.clone(), false);
        // The DENY acknowledges the replayed number, which the server never sent.
        stage.attack("HELLO_REPLY replayed", replay, Refused, &[client(ReplyMac), server(NoFlow)])?;
        let replay = replace_syn_ack(old, true);
        let both = [client(ReplyMac), server(ReplyMac)];
        stage.attack("HELLO_REPLY replayed under the new ISN", replay, Refused, &both)?;
        stage.good("first contact again")?;
        let old = carrying(&stage.good("resumption")?, RESUME_REPLY)?;
        for (new_isn, what) in [(false, "RESUME_REPLY replayed"), (true, "RESUME_REPLY replayed under the new ISN")] {
            stage.attack(what, replace_syn_ack(old.clone(), new_isn), Timeout, &[client(ReplyMac)])?;
        }
        // A credential's answer to the RESUME of a known PU: genuine once, and not now.
        stage.forget()?;
        let old = carrying(&stage.good("first contact once more")?, HELLO_REPLY)?;
        stage.attack("HELLO_REPLY replayed to a RESUME", replace_syn_ack(old, true), Refused, &both)?;
        stage.good("resumption, untouched").map(drop)
    })
}

#[test]
fn confirmations_of_another_connection_are_refused() -> Result<()> {
    for_both_families("confirmreplay", |stage| {
        let first = carrying(&stage.good("first contact")?, CONFIRM)?;
        let resumed = carrying(&stage.good("resumption")?, CONFIRM)?;
        for (what, old) in [("of a first contact", first), ("of a resumption", resumed)] {
            let old = old.identity().context("a CONFIRM")?;
            for again in [false, true] {
                if again {
                    stage.forget()?;
                }
                let replay = move |way, segment: &mut Segment| {
                    if way == Way::FromHost && !segment.is_syn() {
                        segment.set_identity(&old);
                    }
                    Fate::Forward
                };
                let path = if again { "first contact" } else { "resumption" };
                let what = format!("CONFIRM {what} replayed on a {path}");
                stage.attack_counting(&what, replay, Timeout, |seen| vec![server(ConfirmMac).times(confirms(seen))])?;
            }
        }
        stage.good("resumption, untouched").map(drop)
    })
}

#[test]
fn a_stolen_credential_opens_nothing() -> Result<()> {
    for_both_families("stolen", |stage| {
        let seen = stage.good("first contact")?;
        thief(stage, &carrying(&seen, HELLO)?, &carrying(&seen, CONFIRM)?, 40_001)?;
        let seen = stage.good("resumption")?;
        resumes_again(stage, &carrying(&seen, RESUME)?, 40_002)?;
        stage.forget()?;
        thief_elsewhere(stage, &carrying(&stage.good("first contact again")?, HELLO)?)?;
        stage.good("resumption, untouched").map(drop)
    })
}

/// The thief sits at the client's own address and repeats its SYN from another port. He gets the answer; and then?
fn thief(stage: &Stage, syn: &Segment, confirm: &Segment, port: u16) -> Result<()> {
    let (before, heard) = (stage.refusals()?, stage.heard()?);
    stage.mitm.play(|_, _| Fate::Drop);
    let mut syn = syn.clone();
    syn.set_source_port(port);
    stage.mitm.inject(Way::FromHost, &syn)?;
    let mut answer = None;
    eventually("the server's answer to the thief", || {
        let seen = stage.mitm.seen();
        answer = seen.into_iter().map(|seen| seen.original).find(|s| s.destination().port() == port && s.is_syn_ack());
        Ok(answer.is_some())
    })?;
    let answer = answer.context("just found")?;
    ensure!(answer.identity().is_some(), "the answer carries the server's identity");
    let mut ack = confirm.clone();
    ack.set_source_port(port);
    ack.set_flags(ACK);
    ack.set_seq(syn.seq().wrapping_add(1));
    ack.set_ack(answer.seq().wrapping_add(1));
    ack.payload.clear();
    // The CONFIRM of the connection he listened to.
    stage.mitm.inject(Way::FromHost, &ack)?;
    ack.payload = b"let me in".to_vec();
    stage.mitm.inject(Way::FromHost, &ack)?;
    let old = ack.identity().context("a CONFIRM")?;
    ack.set_identity(&OptionBytes::new(CONFIRM, 0, old.handle(), old.index(), 0x0123_4567_89ab_cdef));
    stage.mitm.inject(Way::FromHost, &ack)?;
    ack.take_identity();
    stage.mitm.inject(Way::FromHost, &ack)?;
    let counts = [server(ConfirmMac).times(3), server(Unconfirmed)];
    stage.settle("a thief at the client's address", &before, &counts)?;
    stage.expect_records(&counts, &ack.source().to_string());
    ensure!(stage.heard()? == heard, "the thief was heard: {:?}", stage.server.events()?);
    Ok(())
}

/// The thief repeats a RESUME, from another port, and from the client's own once the connection is over. He is asked who he is, and the
/// listener hears nothing.
fn resumes_again(stage: &Stage, syn: &Segment, port: u16) -> Result<()> {
    let own = syn.source().port();
    let has_flow = |port| Ok(stage.at_b.flows.entries()?.iter().any(|(key, _)| key.remote_port == port));
    eventually("the end of the connection", || has_flow(own).map(|there| !there))?;
    for port in [port, own] {
        let (before, heard) = (stage.refusals()?, stage.heard()?);
        stage.mitm.play(|_, _| Fate::Drop);
        let mut syn = syn.clone();
        syn.set_source_port(port);
        stage.mitm.inject(Way::FromHost, &syn)?;
        let counts = [server(ResumeReplayed)];
        stage.settle(&format!("a RESUME repeated from port {port}"), &before, &counts)?;
        let seen = stage.mitm.seen();
        let answers = seen.iter().map(|seen| &seen.original).filter(|answer| answer.destination().port() == port);
        let types: Vec<u8> = answers.filter_map(Segment::identity).map(|option| option.packet_type()).collect();
        ensure!(types == [RETRY], "the answer to a repeated RESUME: {seen:?}");
        ensure!(!has_flow(port)?, "a repeated RESUME left a flow");
        ensure!(stage.heard()? == heard, "the thief was heard: {:?}", stage.server.events()?);
    }
    Ok(())
}

/// The thief uses the credential from his own host.
fn thief_elsewhere(stage: &Stage, syn: &Segment) -> Result<()> {
    let host = stage.plain_host("thief")?;
    // His own stack must not reset what he tries by hand.
    for iptables in ["iptables", "ip6tables"] {
        let rule = "-w -A OUTPUT -p tcp --tcp-flags RST RST -j DROP";
        host.exec(&[&[iptables][..], &rule.split(' ').collect::<Vec<_>>()].concat())?.ok()?;
    }
    let (before, heard) = (stage.refusals()?, stage.heard()?);
    let option = syn.identity().context("a HELLO")?;
    let from = stage.from(&host, 40_003);
    let (options, payload) = (hex(&option_bytes(&option)), hex(&syn.payload));
    let report = raw(&host, stage.to, from, &["--options", &options, "--payload", &payload])?;
    let answer = report.answers.first().context("no answer to a right credential")?;
    ensure!(answer.flags == "SA" && answer.identity()?.packet_type() == HELLO_REPLY, "{report:?}");
    let guess = hex(&option_bytes(&OptionBytes::new(CONFIRM, 0, option.handle(), 1, 2)));
    let numbers = ["--flags", "A", "--seq", "1000001", "--ack", &answer.seq.wrapping_add(1).to_string()];
    let confirm = [&numbers[..], &["--options", &guess, "--payload", "00", "--wait", "1"]].concat();
    raw(&host, stage.to, from, &confirm)?;
    stage.settle("a thief elsewhere", &before, &[server(ConfirmMac)])?;
    stage.expect_records(&[server(ConfirmMac)], &from.to_string());
    ensure!(stage.heard()? == heard, "the thief was heard: {:?}", stage.server.events()?);
    Ok(())
}

/// The first segment that carries this type of identity.
fn carrying(seen: &[Sighting], packet_type: u8) -> Result<Segment> {
    let mut segments = seen.iter().map(|seen| &seen.original);
    let found = segments.find(|s| s.identity().is_some_and(|option| option.packet_type() == packet_type));
    found.cloned().with_context(|| format!("no segment of type {packet_type}"))
}

/// Gives the client an old SYN-ACK in place of its own, fitted to its SYN.
fn replace_syn_ack(old: Segment, new_isn: bool) -> impl FnMut(Way, &mut Segment) -> Fate + Send + 'static {
    move |way, segment| {
        if way == Way::ToHost && segment.is_syn_ack() {
            let mut replayed = old.clone();
            replayed.set_destination_port(segment.destination().port());
            replayed.set_ack(segment.ack());
            if new_isn {
                replayed.set_seq(segment.seq());
            }
            *segment = replayed;
        }
        Fate::Forward
    }
}
