use std::{collections::BTreeSet, net::IpAddr, path::Path, time::Duration};

use common::{
    addr_v4,
    drop_reason::Reason,
    event::{EVENT_CUT, EVENT_DENY, EVENT_END},
    flow::{CLIENT, PATH_EXTERNAL, PATH_RESUME, SERVER},
};
use policy::{Action, FlowRecord, ObservedBy, Role};

use super::*;
use crate::flow_log::{RuleName, Tagged};

struct Shop;

impl Names for Shop {
    fn pu(&self, pu: u32) -> String {
        format!("pu{pu}")
    }
    fn peer(&self, _: u32, identity: u32) -> String {
        format!("h2/i{identity}")
    }
    fn rule(&self, rule: u32) -> RuleName {
        RuleName { namespace: "/shop".into(), policy: "shop".into(), rule: format!("r{rule}").into() }
    }
    fn identity(&self, identity: u32) -> Option<Arc<Tagged>> {
        let tags = [("app".to_owned(), BTreeSet::from([format!("i{identity}")]))].into();
        Some(Arc::new(Tagged { namespace: "/shop".into(), tags }))
    }
    fn fqdn(&self, _: u32, _: IpAddr) -> BTreeSet<String> {
        ["api.example".to_owned()].into()
    }
}

fn v4(last: u8) -> common::Addr {
    addr_v4(u32::from_ne_bytes([192, 0, 2, last]))
}

fn event(client_port: u16) -> Event {
    Event {
        time_ns: crate::sys::monotonic_ns(),
        created_ns: crate::sys::monotonic_ns() - 1_000_000,
        kind: EVENT_END,
        role: CLIENT,
        path: PATH_RESUME,
        key: FlowKey {
            local: v4(1),
            remote: v4(2),
            local_port: client_port,
            remote_port: 5432,
            proto: 6,
            ..Default::default()
        },
        pu: 1,
        local_identity: 11,
        peer_identity: 22,
        session: 5,
        rule: 7,
        rtt_us: 100,
        bytes_out: 10,
        packets_out: 1,
        bytes_in: 1000,
        packets_in: 2,
        ..Event::default()
    }
}

fn flow(event: &Event) -> Flow {
    Flow {
        state: ESTABLISHED,
        role: event.role,
        path: event.path,
        pu: event.pu,
        local_identity: event.local_identity,
        peer_identity: event.peer_identity,
        rule: event.rule,
        created_ns: event.created_ns,
        bytes_out: event.bytes_out,
        packets_out: event.packets_out,
        bytes_in: event.bytes_in,
        packets_in: event.packets_in,
        ..Flow::default()
    }
}

/// What is written once the recorder has ended.
fn written(config: &Records, feed: impl FnOnce(&Recorder)) -> (Vec<FlowRecord>, [u64; 3]) {
    let recorder = Recorder::start(config, "h1", Arc::new(Shop)).expect("starts").expect("wanted");
    feed(&recorder);
    let counters = recorder.counters.clone();
    drop(recorder);
    let records = config.files().iter().flat_map(|file| read(file)).collect();
    (records, counters.dropped().map(|(_, count)| count))
}

fn read(file: &Path) -> Vec<FlowRecord> {
    let text = std::fs::read_to_string(file).expect("readable");
    assert!(text.ends_with('\n'), "whole lines");
    text.lines().map(|line| FlowRecord::parse(line).expect(line)).collect()
}

fn config(directory: &Path) -> Records {
    Records { file: directory.join("log/flows.jsonl"), ..Records::default() }
}

#[test]
fn an_interval_is_one_record_for_each_service() {
    let directory = tempfile::tempdir().expect("directory");
    let (records, dropped) = written(&config(directory.path()), |recorder| {
        for port in 40_000..41_000 {
            recorder.take(&event(port));
        }
        recorder.take(&Event { rtt_us: 0, kind: EVENT_START, ..event(1) });
        recorder.take(&Event { key: FlowKey { remote_port: 80, ..event(2).key }, rtt_us: 0, ..event(2) });
        recorder.flush(|_| true);
    });
    assert_eq!((records.len(), dropped), (2, [0; 3]));
    let db = records.iter().find(|record| record.port == 5432).expect("the database");
    assert_eq!((db.flows, db.bytes_sent, db.bytes_received, db.packets_received), (1000, 10_000, 1_000_000, 2000));
    assert_eq!((db.rtt_us, db.rtt_max_us, db.role, db.verdict), (Some(100), Some(100), Role::Client, Action::Allow));
    assert_eq!((db.from.pu.as_str(), db.to.pu.as_str(), db.rule.as_str()), ("h1/pu1", "h2/i22", "shop/r7"));
    assert_eq!(db.rule_namespace, "/shop");
    assert_eq!((db.reason.as_str(), db.path.as_str(), &db.observed), ("allowed", "resume", &None));
    assert!(db.from.tags["app"].contains("i11") && db.from.address.is_none() && db.from_port.is_none());
    assert!(db.since < db.time, "{} {}", db.since, db.time);
    let web = records.iter().find(|record| record.port == 80).expect("the web");
    assert_eq!((web.flows, web.rtt_us), (1, None));
}

#[test]
fn seen_from_the_server_sent_is_still_what_the_client_sent() {
    let directory = tempfile::tempdir().expect("directory");
    let key = FlowKey { local_port: 5432, remote_port: 40_000, ..event(0).key };
    let (records, _) = written(&config(directory.path()), |recorder| {
        recorder.take(&Event { role: SERVER, key, ..event(0) });
        recorder.flush(|_| true);
    });
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((record.port, record.bytes_sent, record.bytes_received), (5432, 1000, 10));
    assert_eq!((record.from.pu.as_str(), record.to.pu.as_str()), ("h2/i22", "h1/pu1"));
}

#[test]
fn verdicts_and_what_would_have_been_are_told_apart() {
    let directory = tempfile::tempdir().expect("directory");
    let no_rule = Reason::NoRule as u16;
    let (records, _) = written(&config(directory.path()), |recorder| {
        recorder.take(&Event { kind: EVENT_DENY, reason: no_rule, rule: 0, peer_reason: 1, ..event(1) });
        recorder.take(&Event { kind: EVENT_CUT, reason: Reason::Revoked as u16, observed_rule: 9, ..event(2) });
        recorder.take(&Event { reason: no_rule, rule: 0, ..event(3) });
        recorder.take(&Event { observed_rule: 9, ..event(4) });
        recorder.take(&Event { peer_identity: 0, path: PATH_EXTERNAL, reason: Reason::NoIdentity as u16, ..event(5) });
        recorder.flush(|_| true);
    });
    assert_eq!(records.len(), 5);
    let told = |reason: &'static str| records.iter().filter(move |record| record.reason == reason);
    let denied = told("no_rule").next().expect("denied");
    assert_eq!((denied.verdict, denied.peer_reason, &denied.observed), (Action::Deny, true, &None));
    let cut = told("revoked").next().expect("cut").observed.clone().expect("observed");
    assert_eq!((cut.by, cut.verdict, cut.rule.as_str()), (ObservedBy::Rule, Action::Allow, "shop/r9"));
    assert_eq!(cut.rule_namespace, "/shop");
    let mut lifted: Vec<_> = told("allowed").filter_map(|record| Some((record, record.observed.clone()?))).collect();
    lifted.sort_by_key(|(_, observed)| observed.reason.clone());
    let of: Vec<_> = lifted.iter().map(|(_, observed)| (observed.by, observed.reason.as_str())).collect();
    let expected = [(ObservedBy::Rule, "deny_rule"), (ObservedBy::Mode, "no_identity"), (ObservedBy::Mode, "no_rule")];
    assert_eq!(of, expected);
    let stranger = lifted[1].0;
    assert_eq!((stranger.to.address, &stranger.to.namespace), (Some([192, 0, 2, 2].into()), &None));
    assert!(stranger.to.fqdn.contains("api.example"));
}

#[test]
fn what_lives_on_is_told_of_in_every_interval_and_counted_once() {
    let directory = tempfile::tempdir().expect("directory");
    let start = event(40_000);
    let more = |times: u64| Event {
        bytes_out: 10 * times,
        packets_out: times,
        bytes_in: 1000 * times,
        packets_in: 2 * times,
        ..start
    };
    let (records, _) = written(&config(directory.path()), |recorder| {
        // The writer takes a moment.
        let flush = |live: Option<&Event>| {
            recorder.flush(|each| {
                if let Some(event) = live {
                    each(&event.key, &flow(event));
                }
                true
            });
            std::thread::sleep(Duration::from_millis(20));
        };
        flush(Some(&start));
        flush(Some(&more(3)));
        flush(Some(&more(3)));
        recorder.take(&more(4));
        flush(None);
        // The same ports again, by another connection.
        recorder.take(&Event { created_ns: start.created_ns + 1, ..start });
        flush(None);
    });
    let moved: Vec<_> = records.iter().map(|record| (record.flows, record.bytes_sent)).collect();
    assert_eq!(moved, [(1, 10), (0, 20), (0, 10), (1, 10)]);
}

#[test]
fn a_scan_does_not_crowd_out_what_is_allowed() {
    let directory = tempfile::tempdir().expect("directory");
    let small = Records { max_groups: 16, ..config(directory.path()) };
    let (records, dropped) = written(&small, |recorder| {
        for port in 1..=100 {
            let key = FlowKey { remote_port: port, ..event(1).key };
            recorder.take(&Event { kind: EVENT_DENY, reason: Reason::NoRule as u16, key, ..event(1) });
        }
        for port in 1..=10 {
            let key = FlowKey { remote_port: port, ..event(1).key };
            recorder.take(&Event { key, ..event(1) });
        }
        recorder.flush(|_| true);
    });
    let allowed = records.iter().filter(|record| record.verdict == Action::Allow).count();
    assert_eq!((records.len(), allowed, dropped), (16, 8, [94, 0, 0]));
}

#[test]
fn without_aggregation_every_event_is_a_line() {
    let directory = tempfile::tempdir().expect("directory");
    let single = Records { interval: Duration::ZERO, ..config(directory.path()) };
    let (records, _) = written(&single, |recorder| {
        recorder.take(&Event { kind: EVENT_START, ..event(40_001) });
        recorder.take(&event(40_001));
        assert!(!recorder.is_due());
    });
    let told: Vec<_> = records.iter().map(|record| (record.from_port, record.flows)).collect();
    assert_eq!(told, [(Some(40_001), 1), (Some(40_001), 0)]);
    assert_eq!(records[0].from.address, Some([192, 0, 2, 1].into()));
}

#[test]
fn the_file_is_rotated_and_no_more_kept_than_asked_for() {
    let directory = tempfile::tempdir().expect("directory");
    let small = Records { max_bytes: 2000, keep: 2, ..config(directory.path()) };
    let (records, _) = written(&small, |recorder| {
        for port in 1..=30 {
            recorder.take(&Event { key: FlowKey { remote_port: port, ..event(1).key }, ..event(1) });
            recorder.flush(|_| true);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let ports: Vec<u16> = records.iter().map(|record| record.port).collect();
    assert!(ports.len() < 20 && ports.ends_with(&[29, 30]), "{ports:?}");
    assert!(ports.is_sorted(), "oldest first: {ports:?}");
    let names = std::fs::read_dir(directory.path().join("log")).expect("directory").count();
    assert!((2..=3).contains(&names), "{names}");
}

#[test]
fn a_disk_that_refuses_costs_records_and_nothing_else() {
    for file in ["/dev/full", "/proc/nowhere/flows"] {
        let config = Records { file: file.into(), ..Records::default() };
        let recorder = Recorder::start(&config, "h1", Arc::new(Shop)).expect("starts").expect("wanted");
        recorder.take(&event(1));
        recorder.flush(|_| true);
        let counters = recorder.counters.clone();
        drop(recorder);
        assert_eq!(counters.dropped().map(|(_, count)| count), [0, 0, 1], "{file}");
    }
}

#[test]
fn a_slow_disk_holds_nobody_up() {
    let directory = tempfile::tempdir().expect("directory");
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("pipe");
    // Held open and never read: the writer blocks once the pipe is full.
    let reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).expect("opened");
    let config = Records { file: pipe, ..Records::default() };
    let recorder = Recorder::start(&config, "h1", Arc::new(Shop)).expect("starts").expect("wanted");
    let begun = Instant::now();
    for _ in 0..1000 {
        recorder.take(&event(1));
        recorder.flush(|_| true);
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(recorder.counters.dropped_queue.load(Ordering::Relaxed) > 100);
    let drain = std::thread::spawn(move || {
        let mut reader = reader;
        let mut buffer = [0; 65536];
        while std::io::Read::read(&mut reader, &mut buffer).is_ok_and(|read| read > 0) {}
    });
    drop(recorder);
    drop(drain);
}

#[test]
fn no_file_no_recorder() {
    let config = Records { file: "".into(), ..Records::default() };
    assert!(Recorder::start(&config, "h1", Arc::new(Shop)).expect("starts").is_none());
    assert!(config.files().is_empty());
}
