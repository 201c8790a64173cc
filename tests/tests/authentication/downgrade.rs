//! Identity taken out on the way, packet by packet; and payload that tries to go ahead of CONFIRM.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::drop_reason::Reason::{IdentityMissing, NoIdentity, PeerNoIdentity, Unconfirmed};
use tests::Outcome::{Refused, Timeout};
use tests::{Fate, Segment, Sighting, Way};

use crate::stage::{PAYLOAD, Stage, client, eventually, for_both_families, one_connection, server};
use crate::tampering::{Packet, confirms, on};

type Removal = fn(&mut Segment);

/// How middleboxes take an option out.
const REMOVALS: [(&str, Removal); 3] = [
    ("taken out", |segment| {
        segment.take_identity();
    }),
    ("overwritten with no-operation", |segment| {
        if let Some(option) = segment.identity_mut() {
            option.fill(1);
        }
    }),
    ("taken out with the payload", |segment| {
        if segment.take_identity() {
            segment.payload.clear();
        }
    }),
];

#[test]
fn connections_without_identity_are_refused() -> Result<()> {
    for_both_families("downgrade", |stage| {
        for (how, remove) in REMOVALS {
            let what = |packet: &str| format!("option of {packet} {how}");
            stage.forget()?;
            stage.attack(&what("HELLO"), on(Packet::Syn, remove), Timeout, &[server(NoIdentity)])?;
            stage.attack(&what("HELLO_REPLY"), on(Packet::SynAck, remove), Refused, &[client(PeerNoIdentity)])?;
            unconfirmed(stage, &what("CONFIRM after HELLO"), remove)?;
            stage.forget()?;
            stage.good("first contact")?;
            stage.attack(&what("RESUME"), on(Packet::Syn, remove), Timeout, &[server(NoIdentity)])?;
            stage.attack(&what("RESUME_REPLY"), on(Packet::SynAck, remove), Refused, &[client(IdentityMissing)])?;
            unconfirmed(stage, &what("CONFIRM after RESUME"), remove)?;
        }
        let strip_all = |_, segment: &mut Segment| {
            if segment.take_identity() {
                segment.payload.clear();
            }
            Fate::Forward
        };
        stage.attack("every option taken out", strip_all, Timeout, &[server(NoIdentity)])?;
        stage.good("resumption, untouched").map(drop)
    })
}

fn unconfirmed(stage: &Stage, what: &str, remove: Removal) -> Result<()> {
    let script = on(Packet::Confirm, remove);
    stage.attack_counting(what, script, Timeout, |seen| vec![server(Unconfirmed).times(confirms(seen))])
}

#[test]
fn no_payload_passes_before_confirm() -> Result<()> {
    for_both_families("early", |stage| {
        early(stage, "first contact")?;
        early(stage, "resumption")
    })
}

/// CONFIRM is held back while the data goes on without it; then CONFIRM is let go, and all is well.
fn early(stage: &Stage, path: &str) -> Result<()> {
    let (before, heard) = (stage.refusals()?, stage.heard()?);
    stage.mitm.play(one_connection(|way, segment| {
        let confirm = way == Way::FromHost && !segment.is_syn() && segment.take_identity();
        if confirm && segment.payload.is_empty() { Fate::Drop } else { Fate::Forward }
    }));
    let to = stage.to.to_string();
    let mut attempt = stage.client.spawn_tool(&["connect", &to, "--payload", PAYLOAD, "--timeout", "3000"])?;
    let early = |seen: &[Sighting]| {
        let passed = seen.iter().filter(|seen| seen.way == Way::FromHost && !seen.original.is_syn());
        passed.filter(|seen| seen.forwarded.as_ref().is_some_and(|segment| segment.identity().is_none())).count() as u64
    };
    eventually("data, sent and sent again", || Ok(early(&stage.mitm.seen()) >= 2))?;
    stage.mitm.play_on(|_, segment| if segment.payload.is_empty() { Fate::Forward } else { Fate::Drop });
    let seen = stage.mitm.seen();
    let counts = [server(Unconfirmed).times(early(&seen))];
    stage.settle(&format!("data before CONFIRM, {path}"), &before, &counts)?;
    ensure!(stage.heard()? == heard, "data was heard before CONFIRM: {:?}", stage.server.events()?);
    let held = seen.iter().find(|seen| seen.original.identity().is_some() && seen.forwarded.is_none());
    let held = held.context("no CONFIRM was held")?.original.clone();
    stage.expect_records(&counts, &held.source().to_string());
    stage.mitm.inject(Way::FromHost, &held)?;
    eventually("the connection, once confirmed", || Ok(stage.heard()? == (heard.0 + 1, heard.1)))?;
    stage.mitm.play_on(|_, _| Fate::Forward);
    ensure!(attempt.wait(Duration::from_secs(4))?.is_some_and(|status| status.success()), "{}", attempt.stderr());
    ensure!(attempt.stdout().contains(r#""outcome":"ok""#), "{}", attempt.stdout());
    ensure!(stage.heard()? == (heard.0 + 1, heard.1 + PAYLOAD.len() as u64), "{:?}", stage.server.events()?);
    stage.settle("nothing more was refused", &before, &counts)
}
