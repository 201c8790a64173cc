//! One function for each parser of foreign bytes. It returns whether the bytes were accepted, and panics if the parser
//! does, or if what it accepted does not hold together.

use std::cell::RefCell;
use std::path::Path;

use common::wire::{OPTION_LEN, OptionBytes};
use enforcer_user::admin::Request;
use enforcer_user::config::{Config, Oidc};
use enforcer_user::dns::{Conn, Datagram, Learned, Learner, Message, read};
use enforcer_user::facts::{
    self,
    cloud::{Certificate, aws},
    feed::Feed,
    jwks::KeySet,
};
use enforcer_user::handshake::{Frame, build, datagram};
use enforcer_user::identity::{Anchors, TrustProfile, Verifier};
use enforcer_user::workload::container_common::{Unit, is_container_id};
use enforcer_user::workload::cri::proto::{ListContainersResponse, ListPodSandboxResponse, PodSandboxStatusResponse};
use enforcer_user::workload::{cri, docker};
use policy::{Capabilities, Compiled};
use prost::Message as _;

use super::seeds::{self, NOW};

/// Frames held by the kernel: whatever is accepted can be stripped, completed and answered, and the results are frames.
pub fn frame(bytes: &[u8]) -> bool {
    let Ok(frame) = Frame::parse(bytes) else { return false };
    let carried = frame.option();
    assert_eq!(frame.bytes(), &bytes[..frame.bytes().len()]);
    assert!(frame.bytes().ends_with(frame.payload()));
    let stripped = build::strip(&frame);
    let stripped = Frame::parse(&stripped).expect("a stripped frame is a frame");
    assert!(stripped.payload().is_empty());
    assert_eq!((stripped.seq(), stripped.option()), (frame.seq(), carried));
    let completed = build::complete(&frame);
    let again = build::complete(&Frame::parse(&completed).expect("a completed frame is a frame"));
    assert_eq!(completed, again, "completing twice changes nothing");
    let denied = build::deny(&frame, common::drop_reason::Reason::NoRule, None);
    let denied = Frame::parse(&denied).expect("a DENY is a frame");
    assert_eq!((denied.source(), denied.destination()), (frame.destination(), frame.source()));
    assert_eq!((denied.source_port(), denied.destination_port()), (frame.destination_port(), frame.source_port()));
    let reset = build::reset_receiver(&frame);
    assert!(Frame::parse(&reset).expect("a reset is a frame").payload().is_empty());
    true
}

/// Datagrams held by the kernel: whatever is accepted goes on, is answered and refused as datagrams.
pub fn datagram(bytes: &[u8]) -> bool {
    let Ok(datagram) = datagram::Datagram::parse(bytes) else { return false };
    if let Some((trailer, before)) = datagram.trailer() {
        assert_eq!([before, &trailer.bytes()].concat(), datagram.payload());
    }
    for piece in datagram.onward(100) {
        datagram::Datagram::parse(&piece).expect("a piece is a datagram");
    }
    let whole = datagram.with(&[datagram.payload()], false);
    let whole = datagram::Datagram::parse(&whole).expect("a completed datagram is one");
    assert_eq!(whole.payload(), datagram.payload());
    let back = whole.with(&[whole.payload()], true);
    let there = datagram::Datagram::parse(&back).expect("an answer is a datagram").with(&[whole.payload()], true);
    let there = datagram::Datagram::parse(&there).expect("its answer is one");
    assert_eq!(there.payload(), datagram.payload());
    let denied = datagram.deny(common::drop_reason::Reason::NoRule, 7);
    let denied = datagram::Datagram::parse(&denied).expect("a DENY is a datagram");
    assert!(denied.trailer().is_some_and(|(trailer, before)| trailer.fields().time == 7 && before.is_empty()));
    if with_verifier(|verifier| datagram::authenticate(verifier, &datagram, NOW)).is_ok() {
        let (trailer, before) = datagram.trailer().expect("a HELLO has one");
        assert!(before.ends_with(&seeds::credentials()[0]), "of the only one there is");
        assert_eq!(trailer.packet_type(), common::wire::HELLO);
    }
    assert!(datagram.given_back(&common::flow::Flow::default(), &common::identity::Session::default()).is_none());
    true
}

/// The options of a TCP header, around and including ours.
pub fn option(bytes: &[u8]) -> bool {
    let options = &bytes[..bytes.len().min(40) & !3];
    let frame_bytes = seeds::syn_with(options);
    let frame = Frame::parse(&frame_bytes).expect("a frame of any options");
    let Some(option) = frame.option() else { return false };
    let written = OptionBytes {
        version_type: option.version_type,
        ..OptionBytes::new(0, option.flags, option.handle(), option.index(), option.mac())
    };
    assert_eq!(written, option);
    assert_eq!(&options[options.len() - OPTION_LEN..][..4], &[option.kind, option.len, option.exid[0], option.exid[1]]);
    option.packet_type() != 0
}

/// A line of flow records: what is accepted is one record both ways it is read, and what is suggested from it is a policy.
pub fn record(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let mut observations = policy::Observations::new(None);
    let taken = observations.add_line(text).is_ok();
    if let Ok(record) = policy::FlowRecord::parse(text) {
        assert!(taken, "a record that suggest refuses: {text}");
        let printed = serde_json::to_string(&record).expect("a record is text");
        assert_eq!(policy::FlowRecord::parse(&printed).ok().as_ref(), Some(&record), "{printed}");
    }
    let suggested = observations.suggest().to_string();
    if let Err(errors) = policy::parse_file("suggested.yaml", &suggested) {
        panic!("{errors:?}\n{suggested}");
    }
    taken
}

/// Credentials on the wire: none is accepted but the one that was signed, bit for bit.
pub fn credential(bytes: &[u8]) -> bool {
    with_verifier(|verifier| {
        let accepted = verifier.verify(bytes, NOW).is_ok();
        assert_eq!(accepted, bytes == seeds::credential(), "another credential was accepted");
        accepted
    })
}

/// Certificates: none is accepted but the one that was issued.
pub fn certificate(bytes: &[u8]) -> bool {
    with_verifier(|verifier| {
        let accepted = verifier.verify_certificate(bytes, NOW).is_ok();
        assert_eq!(accepted, bytes == seeds::certificate(), "another certificate was accepted");
        accepted
    })
}

/// The JSON of a Trust Profile: what is read can be written and read again.
pub fn profile(bytes: &[u8]) -> bool {
    let Ok(profile) = TrustProfile::from_json(bytes) else { return false };
    let written = profile.to_json().expect("what was read can be written");
    assert_eq!(TrustProfile::from_json(written.as_bytes()).as_ref(), Ok(&profile));
    true
}

/// One rule a line: what is read can be printed and read again.
pub fn rule(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    match policy::parse_rule(text) {
        Ok(rule) => {
            let printed = rule.to_string();
            assert_eq!(policy::parse_rule(&printed).as_ref(), Ok(&rule), "{printed}");
            true
        }
        Err(error) => {
            check_place(text, error.line as usize, error.column as usize);
            false
        }
    }
}

/// A policy file: what is read compiles, and every error points into the text.
pub fn policy_file(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    match policy::parse_file("policy.yaml", text) {
        Ok(rules) => {
            let compiled = Compiled::new(&rules, Capabilities { encrypt: true }).expect("what was read compiles");
            assert_eq!(compiled.rules().count(), rules.len());
            true
        }
        Err(errors) => {
            assert!(errors.iter().next().is_some() && !errors.to_string().is_empty());
            errors.iter().for_each(|error| check_place(text, error.line as usize, error.column as usize));
            false
        }
    }
}

/// Kubernetes manifests: what they become is a policy that compiles, and every error points into the text.
pub fn manifests(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    match policy::import::import([("k8s.yaml", text)], &policy::import::Options::default()) {
        Ok(imported) => {
            let rules = policy::parse_file("policy.yaml", &imported.text)
                .unwrap_or_else(|errors| panic!("{errors}\n{}", imported.text));
            assert_eq!(rules.len(), imported.rules, "{}", imported.text);
            Compiled::new(&rules, Capabilities::default()).expect("what was made compiles");
            true
        }
        Err(errors) => {
            assert!(errors.iter().next().is_some() && !errors.to_string().is_empty());
            errors.iter().for_each(|error| check_place(text, error.line as usize, error.column as usize));
            false
        }
    }
}

/// DNS: as a message, as the stream of a resolver over TCP in pieces of any size and order, and as a frame that goes on.
pub fn dns(bytes: &[u8]) -> bool {
    if let Some(datagram) = Datagram::parse(bytes) {
        let pieces = datagram.onward(500);
        let parsed = |piece: &Vec<u8>| Datagram::parse(piece).expect("what goes on is a frame").payload().to_vec();
        let payload: Vec<u8> = pieces.iter().flat_map(parsed).collect();
        assert_eq!(payload, datagram.payload());
    }
    let conn = Conn { pu: 1, key: common::flow::FlowKey::default() };
    let mut learner = Learner::default();
    let mut seq = 0u32;
    let mut rest = bytes;
    while let Some((&[step, len], after)) = rest.split_first_chunk::<2>() {
        let (piece, after) = after.split_at(usize::from(len).min(after.len()));
        seq = seq.wrapping_add(i32::from(step as i8) as u32);
        learner.question_segment(conn, seq, piece, NOW);
        assert!(learner.answer_segment(conn, seq, piece, NOW).len() <= bytes.len());
        seq = seq.wrapping_add(piece.len() as u32);
        rest = after;
    }
    match read(bytes) {
        None => false,
        Some(Message::Question(question)) => {
            assert!(learner.question(conn, bytes, NOW));
            assert_eq!(question.name, question.name.to_lowercase());
            true
        }
        Some(Message::Answer(question, found)) => {
            assert_ne!(learner.answer(conn, bytes, NOW), Learned::Unreadable);
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
            assert!(!question.name.is_empty() && question.name.chars().all(fits), "{}", question.name);
            assert!(found.len() * 4 <= bytes.len() * 512);
            true
        }
    }
}

/// The configuration: errors point into the text.
pub fn config(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    match Config::parse(text, Path::new("enforcer.toml")) {
        Ok(_) => true,
        Err(error) => {
            assert!(error.to_string().starts_with("enforcer.toml"), "{error}");
            if let Some((line, column)) = error.place {
                check_place(text, line, column);
            }
            false
        }
    }
}

/// A line on the admin socket: what is read can be written and read again.
pub fn admin_request(bytes: &[u8]) -> bool {
    let Ok(request) = serde_json::from_slice::<Request>(bytes) else { return false };
    let written = serde_json::to_vec(&request).expect("what was read can be written");
    let again: Request = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(request, again);
    true
}

/// User tokens: none is believed but the one that was signed, bit for bit.
pub fn token(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let oidc = Oidc { issuer: Some("https://issuer.example".into()), ..Oidc::default() };
    let keys = KeySet::parse("keys", seeds::ISSUER_KEYS).expect("a key");
    let accepted = facts::token::session(text, &keys, &oidc, NOW).is_ok();
    // Space around it is not the token's.
    assert_eq!(accepted, text.trim() == seeds::TOKEN, "another token was believed");
    accepted && text == seeds::TOKEN
}

/// Signed statements of clouds: whatever is believed says what was signed.
pub fn cloud_document(bytes: &[u8]) -> bool {
    let certificate = Certificate::new("eu-test-1", seeds::REGION_CERTIFICATE);
    let signed = aws::verify_der(seeds::IDENTITY_DOCUMENT, std::slice::from_ref(&certificate));
    match aws::verify_der(bytes, &[certificate]) {
        Ok(statement) => {
            assert_eq!(Ok(statement), signed, "another statement was believed");
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// Answers of plugins: whatever is taken has plain keys.
pub fn plugin_answer(bytes: &[u8]) -> bool {
    let Ok(sifted) = facts::plugin::parse("plugin", bytes) else { return false };
    assert!(sifted.tags.keys().all(|key| !key.starts_with('@') && !key.is_empty()));
    true
}

/// Documents of a feed: said twice they say no more.
pub fn feed(bytes: &[u8]) -> bool {
    let Ok(feed) = Feed::parse("feed", bytes) else { return false };
    let mut twice = feed.clone();
    twice.merge(&feed);
    assert_eq!(twice, feed);
    true
}

/// What the Docker Engine API answers: as a stream of events, and as each kind of answer. Whatever is read names its container
/// by an id, and no label becomes a tag of the enforcer's own.
pub fn docker(bytes: &[u8]) -> bool {
    let mut lines = docker::Lines::default();
    let events: Vec<Vec<u8>> = if lines.push(bytes).is_ok() { lines.collect() } else { Vec::new() };
    let mut accepted = false;
    for event in events.iter().filter_map(|line| docker::Event::parse(line).ok()) {
        if let docker::Event::Changed(id) | docker::Event::Started(id) | docker::Event::Ended(id) = event {
            assert!(is_container_id(&id), "{id:?}");
        }
        accepted = true;
    }
    let _ = serde_json::from_slice::<docker::Inspected>(bytes).is_ok_and(|inspected| inspected.pid().is_some());
    let _ = serde_json::from_slice::<Vec<docker::NetworkListed>>(bytes)
        .map(|networks| networks.iter().filter_map(docker::NetworkListed::bridge).count());
    let image = serde_json::from_slice::<docker::Image>(bytes).ok();
    for container in serde_json::from_slice::<Vec<docker::Listed>>(bytes).unwrap_or_default() {
        accepted = true;
        check_unit(&container.unit(image.as_ref(), Some("/a")), "@container:");
    }
    accepted
}

/// What a runtime answers over CRI: pods, containers and a status, each read from the same bytes.
pub fn cri(bytes: &[u8]) -> bool {
    let pods = ListPodSandboxResponse::decode(bytes).unwrap_or_default();
    let containers = ListContainersResponse::decode(bytes).unwrap_or_default().containers;
    let status = cri::status(&PodSandboxStatusResponse::decode(bytes).unwrap_or_default());
    for pod in pods.items.iter() {
        let inside: Vec<_> = cri::containers_of(pod, &containers).collect();
        let unit = cri::unit(pod, &inside, &status, "containerd", None, Some("/cluster/{namespace}"));
        let segments = unit.namespace.as_deref().unwrap_or_default().split('/').count();
        assert_eq!(segments, 3, "{unit:?}");
        check_unit(&unit, "@");
    }
    !pods.items.is_empty()
}

fn check_unit(unit: &Unit, own: &str) {
    for (source, tags) in &unit.tags {
        for key in tags.keys() {
            assert!(!key.is_empty() && (!key.starts_with('@') || key.starts_with(own)), "{key:?}");
            assert!(source.may_set(key), "{source} may not set {key:?}");
        }
    }
}

/// Line and column, from 1, of a place in `text` or right behind it.
fn check_place(text: &str, line: usize, column: usize) {
    assert!(line >= 1 && column >= 1, "{line}:{column}");
    assert!(line <= text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() + 1, "line {line} of {text:?}");
}

fn with_verifier<T>(look: impl FnOnce(&mut Verifier) -> T) -> T {
    thread_local! {
        static VERIFIER: RefCell<Verifier> = {
            let anchors = Anchors::from_certificates([seeds::authority().certificate().clone()]).expect("anchors");
            RefCell::new(Verifier::new(anchors, seeds::TRUST_DOMAIN, 30))
        };
    }
    VERIFIER.with_borrow_mut(look)
}
