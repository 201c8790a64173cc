use simple_dns::rdata::{A, AAAA, CNAME, HTTPS, RData, SVCB};
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, ResourceRecord, TYPE};

use super::*;

const NOW: u64 = 1_000;

fn conn(port: u16) -> Conn {
    Conn { pu: 7, key: FlowKey { local_port: port, remote_port: 53, proto: 17, ..FlowKey::default() } }
}

fn ask(packet: &mut Packet<'_>, name: &'static str, kind: TYPE) {
    let name = Name::new(name).expect("a name");
    packet.questions.push(simple_dns::Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
}

fn question(id: u16, name: &'static str, kind: TYPE) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    ask(&mut packet, name, kind);
    packet.build_bytes_vec().expect("bytes")
}

fn record(name: &'static str, ttl: u32, data: RData<'static>) -> ResourceRecord<'static> {
    ResourceRecord::new(Name::new(name).expect("a name"), CLASS::IN, ttl, data)
}

fn a(name: &'static str, ttl: u32, last: u8) -> ResourceRecord<'static> {
    record(name, ttl, RData::A(A { address: u32::from_be_bytes([192, 0, 2, last]) }))
}

fn cname(name: &'static str, ttl: u32, target: &'static str) -> ResourceRecord<'static> {
    record(name, ttl, RData::CNAME(CNAME(Name::new(target).expect("a name"))))
}

fn answer(id: u16, name: &'static str, kind: TYPE, answers: Vec<ResourceRecord<'static>>) -> Vec<u8> {
    let mut packet = Packet::new_reply(id);
    ask(&mut packet, name, kind);
    packet.answers = answers;
    packet.build_bytes_vec_compressed().expect("bytes")
}

fn found(last: u8, ttl: u32) -> Found {
    Found { address: [192, 0, 2, last].into(), ttl }
}

/// What is learned from an answer to the same question.
fn learned(name: &'static str, kind: TYPE, answers: Vec<ResourceRecord<'static>>) -> Learned {
    let mut learner = Learner::default();
    assert!(learner.question(conn(1), &question(5, name, kind), NOW));
    learner.answer(conn(1), &answer(5, name, kind, answers), NOW)
}

#[test]
fn addresses_of_the_name_asked_for_by_whatever_names_it_goes() {
    let chain = vec![
        a("other.net", 60, 9),
        a("edge.cdn.net", 50, 1),
        cname("www.cdn.net", 300, "edge.cdn.net"),
        cname("WWW.Example.org", 40, "www.cdn.net"),
        a("edge.cdn.net", 20, 2),
    ];
    let expected = Learned::Name("www.example.org".into(), vec![found(1, 40), found(2, 20)]);
    assert_eq!(learned("www.Example.ORG", TYPE::A, chain), expected, "what nobody asked for is left out");
    let v6 = "2001:db8::7".parse::<std::net::Ipv6Addr>().expect("address");
    let six = vec![record("a.org", 9, RData::AAAA(AAAA { address: v6.to_bits() }))];
    assert_eq!(
        learned("a.org", TYPE::AAAA, six),
        Learned::Name("a.org".into(), vec![Found { address: v6.into(), ttl: 9 }])
    );
}

#[test]
fn hints_of_service_records_are_addresses_of_the_host() {
    let mut service = SVCB::new(1, Name::new("svc.cdn.net").expect("a name"));
    service.set_ipv4hint(&[u32::from_be_bytes([192, 0, 2, 3])]);
    let answers = vec![record("_8443._https.a.org", 30, RData::HTTPS(HTTPS(service))), a("svc.cdn.net", 10, 4)];
    let expected = Learned::Name("a.org".into(), vec![found(3, 30), found(4, 10)]);
    assert_eq!(learned("_8443._https.a.org", TYPE::HTTPS, answers), expected);
}

#[test]
fn only_what_this_pu_asked_is_believed() {
    let good = || answer(5, "a.org", TYPE::A, vec![a("a.org", 60, 1)]);
    let asked = || {
        let mut learner = Learner::default();
        assert!(learner.question(conn(1), &question(5, "a.org", TYPE::A), NOW));
        learner
    };
    assert_eq!(Learner::default().answer(conn(1), &good(), NOW), Learned::Unasked, "never");
    let other_pu = Conn { pu: 8, ..conn(1) };
    for (what, conn, message, now) in [
        ("another port", conn(2), good(), NOW),
        ("another PU", other_pu, good(), NOW),
        ("another id", conn(1), answer(6, "a.org", TYPE::A, vec![a("a.org", 60, 1)]), NOW),
        ("another name", conn(1), answer(5, "b.org", TYPE::A, vec![a("b.org", 60, 1)]), NOW),
        ("another type", conn(1), answer(5, "a.org", TYPE::AAAA, vec![a("a.org", 60, 1)]), NOW),
        ("too late", conn(1), good(), NOW + PATIENCE),
    ] {
        assert_eq!(asked().answer(conn, &message, now), Learned::Unasked, "{what}");
    }
    let mut learner = asked();
    let expected = Learned::Name("a.org".into(), vec![found(1, 60)]);
    assert_eq!(learner.answer(conn(1), &answer(9, "a.org", TYPE::A, vec![]), NOW), Learned::Unasked);
    assert_eq!(learner.answer(conn(1), &good(), NOW), expected, "a guess before it does no harm");
    assert_eq!(learner.answer(conn(1), &good(), NOW), Learned::Unasked, "a second answer");
    assert_eq!(learner.answer(conn(1), &question(5, "a.org", TYPE::A), NOW), Learned::Unreadable);
    assert_eq!(learner.answer(conn(1), b"no message", NOW), Learned::Unreadable);
}

#[test]
fn a_flood_of_questions_is_bounded_and_hurts_nobody_else() {
    let mut learner = Learner::default();
    let flood = |port: u16| question(port, "a.org", TYPE::A);
    for port in 0..5_000 {
        learner.question(conn(port), &flood(port), NOW);
    }
    assert_eq!(learner.asked.len(), OPEN_MAX);
    let quiet = Conn { pu: 9, ..conn(1) };
    assert!(learner.question(quiet, &question(1, "b.org", TYPE::A), NOW));
    // Asked and answered over and over within the time a question is remembered.
    for id in 0..20_000u16 {
        learner.question(quiet, &question(id, "b.org", TYPE::A), NOW);
        learner.answer(quiet, &answer(id, "b.org", TYPE::A, vec![]), NOW);
    }
    assert!(learner.order.len() < 10 * OPEN_MAX, "{}", learner.order.len());
    assert!(learner.question(conn(1), &flood(1), NOW + PATIENCE), "open questions are given up");
    assert_eq!((learner.asked.len(), learner.by_pu.len()), (1, 1));
}

#[test]
fn over_tcp_whatever_way_it_is_cut() {
    let with_length = |message: Vec<u8>| [(message.len() as u16).to_be_bytes().to_vec(), message].concat();
    let many: Vec<_> = (1..=200).map(|last| a("a.org", 60, last)).collect();
    let answers = with_length(answer(5, "a.org", TYPE::A, many));
    let questions = with_length(question(5, "a.org", TYPE::A));
    let mut learner = Learner::default();
    assert_eq!(learner.question_segment(conn(1), 100, &questions[..10], NOW), 0);
    assert_eq!(learner.question_segment(conn(1), 110, &questions[10..], NOW), 1);
    let mut got = Vec::new();
    for (at, piece) in answers.chunks(1000).enumerate() {
        got.extend(learner.answer_segment(conn(1), 7000 + 1000 * at as u32, piece, NOW));
    }
    let expected = (1..=200).map(|last| found(last, 60)).collect();
    assert_eq!(got, [Learned::Name("a.org".into(), expected)]);
}

#[test]
fn an_error_and_a_name_with_odd_labels_teach_nothing() {
    let mut learner = Learner::default();
    assert!(learner.question(conn(1), &question(5, "a.org", TYPE::A), NOW));
    let mut failed = answer(5, "a.org", TYPE::A, vec![a("a.org", 60, 1)]);
    failed[3] |= 2;
    assert_eq!(learner.answer(conn(1), &failed, NOW), Learned::Name("a.org".into(), vec![]));
    let mut dotted = question(6, "a-b.org", TYPE::A);
    dotted[14] = b'.';
    assert!(!learner.question(conn(1), &dotted, NOW), "a dot inside a label");
}
