use std::time::{Duration, Instant, SystemTime};

use common::{
    addr_v4,
    drop_reason::Reason,
    event::{EVENT_DENY, EVENT_END},
    flow::{CUT, Flow, FlowKey, PATH_RESUME, SERVER},
};

use super::*;

struct Numbers;

impl Names for Numbers {
    fn pu(&self, pu: u32) -> String {
        format!("pu{pu}")
    }
    fn peer(&self, session: u32, identity: u32) -> String {
        if identity == 0 { String::new() } else { format!("s{session}/i{identity}") }
    }
    fn rule(&self, rule: u32) -> RuleName {
        RuleName { namespace: "/n".into(), policy: "p".into(), rule: format!("r{rule}").into() }
    }
}

fn log() -> FlowLog {
    FlowLog::new(Arc::new(Numbers))
}

fn event(number: u64) -> Event {
    Event { bytes_in: number, ..Default::default() }
}

fn key() -> FlowKey {
    FlowKey {
        local: addr_v4(u32::from_ne_bytes([10, 0, 0, 1])),
        remote: [u32::from_ne_bytes([0xfd, 0, 0, 0]), 0, 0, 1u32.to_be()],
        local_port: 8020,
        remote_port: 40000,
        proto: 6,
        pad: [0; 3],
    }
}

#[test]
fn keeps_the_latest_and_no_more() {
    let log = log();
    let numbers = |limit| log.recent(limit).iter().map(|record| record.bytes_in).collect::<Vec<_>>();
    assert_eq!(numbers(10), [0u64; 0]);
    (0..3).for_each(|number| log.push(&event(number)));
    assert_eq!(numbers(10), [0, 1, 2]);
    assert_eq!(numbers(2), [1, 2]);
    (3..CAPACITY as u64 + 2).for_each(|number| log.push(&event(number)));
    assert_eq!(numbers(usize::MAX), (2..CAPACITY as u64 + 2).collect::<Vec<_>>());
    assert_eq!(numbers(2), [CAPACITY as u64, CAPACITY as u64 + 1]);
    assert_eq!(numbers(0), [0u64; 0]);
    (0..CAPACITY as u64 - 2).for_each(|number| log.push(&event(number)));
    assert_eq!(log.recent(usize::MAX).len(), CAPACITY);
    assert_eq!(numbers(1), [CAPACITY as u64 - 3]);
}

#[test]
fn a_record_says_everything_the_kernel_said() {
    let clock = Clock::now();
    let event = Event {
        time_ns: clock.monotonic_ns() - 1_000_000_000,
        created_ns: clock.monotonic_ns() - 1_000_250_000,
        kind: EVENT_DENY,
        role: SERVER,
        path: PATH_RESUME,
        reason: Reason::DenyRule as u16,
        peer_reason: 1,
        key: key(),
        pu: 3,
        peer_identity: 7,
        session: 9,
        rule: 2,
        observed_rule: 0,
        rtt_us: 55,
        bytes_in: 1,
        bytes_out: 2,
        packets_in: 3,
        packets_out: 4,
        ..Default::default()
    };
    let view = record_view(&event, &Numbers, &clock);
    let shown = humantime::parse_rfc3339(&view.time).expect("RFC 3339");
    let age = SystemTime::now().duration_since(shown).expect("in the past");
    assert!((Duration::from_secs(1)..Duration::from_secs(20)).contains(&age), "{age:?}");
    let expected = RecordView {
        time: view.time.clone(),
        event: "deny".into(),
        role: "server".into(),
        local: "10.0.0.1:8020".into(),
        remote: "[fd00::1]:40000".into(),
        proto: "tcp".into(),
        pu: "pu3".into(),
        peer: "s9/i7".into(),
        verdict: "deny".into(),
        rule: "p/r2".into(),
        rule_namespace: "/n".into(),
        observed_rule: String::new(),
        observed_rule_namespace: String::new(),
        reason: "deny_rule".into(),
        observed_verdict: String::new(),
        observed_reason: String::new(),
        path: "resume".into(),
        peer_reason: true,
        bytes_in: 1,
        bytes_out: 2,
        packets_in: 3,
        packets_out: 4,
        rtt_us: 55,
        micros: 250,
    };
    assert_eq!(view, expected);
}

#[test]
fn foreign_numbers_are_shown_not_fatal() {
    let clock = Clock::now();
    let strange = Event { kind: 99, role: 9, path: 9, reason: 999, time_ns: u64::MAX, ..Default::default() };
    let view = record_view(&strange, &Numbers, &clock);
    assert_eq!((view.event.as_str(), view.reason.as_str(), view.path.as_str()), ("unknown", "reason_999", "none"));
    assert_eq!((view.local.as_str(), view.proto.as_str()), ("[::]:0", "0"));
    let view = record_view(&Event { kind: EVENT_END, ..Default::default() }, &Numbers, &clock);
    assert_eq!((view.verdict.as_str(), view.reason.as_str(), view.micros), ("allow", "allowed", 0));
}

#[test]
fn a_live_flow_is_shown_with_its_age() {
    let clock = Clock::now();
    let flow = Flow {
        state: CUT,
        reason: Reason::Revoked as u16,
        pu: 1,
        rule: 4,
        created_ns: clock.monotonic_ns() - 5_000_000,
        seen_ns: clock.monotonic_ns() + 1,
        ..Default::default()
    };
    let view = flow_view(&key(), &flow, &Numbers, &clock);
    assert_eq!((view.state.as_str(), view.reason.as_str(), view.rule.as_str()), ("cut", "revoked", "p/r4"));
    assert_eq!((view.age_us, view.idle_us, view.peer.as_str()), (5000, 0, ""));
}

#[tokio::test]
async fn followers_see_what_comes_and_are_told_what_they_missed() {
    let log = log();
    log.push(&event(1));
    let mut follower = log.follow();
    log.push(&event(2));
    let Some(FollowItem::Record(record)) = follower.recv().await else { panic!("no record") };
    assert_eq!(record.bytes_in, 2);

    let flood = CAPACITY as u64 * 2;
    (0..flood).for_each(|number| log.push(&event(number)));
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < flood {
        match follower.recv().await.expect("more") {
            FollowItem::Record(_) => seen += 1,
            FollowItem::Missed(count) => missed += count,
        }
    }
    assert!(missed > 0 && seen > 0);
    assert_eq!(seen + missed, flood);

    drop(follower);
    tokio::time::timeout(Duration::from_secs(5), async {
        while log.live.receiver_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the follower's task ends");
}

#[test]
fn a_million_events_are_cheap() {
    let log = log();
    let before = Instant::now();
    (0..1_000_000).for_each(|number| log.push(&event(number)));
    // Unoptimised and on a busy machine; a tenth of that in a release build.
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
}
