//! What the loaded maps say of themselves (BTF) against the types this side reads and writes them with.
//!
//! Needs root and bpftool.

mod place;

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

use common::abi::{self, Config};
use common::datagram::DatagramPeer;
use common::flow::{Flow, FlowKey};
use common::host::Host;
use common::identity::{Credential, ListenerKey, Network, PeerAddr, PeerPu, Pu, Session, SessionPu};
use common::shield::{self, Resumes, Shield, Source};
use common::verdict::{Interval, Pair, Run};
use common::workload::{CgroupPattern, FileKey, FileVerdict, Unsorted, Watch};
use enforcer_user::load::{Kernel, unload};
use place::isolated;
use serde_json::Value;

/// A type as one side sees it.
#[derive(Debug, PartialEq, Eq)]
enum Shape {
    Integer { size: usize },
    Array { elements: usize, element: usize },
    Struct { size: usize, fields: Vec<(String, usize)> },
}

macro_rules! shape {
    ($ty:ty: $($field:ident),*) => {
        Shape::Struct {
            size: size_of::<$ty>(),
            fields: vec![$((stringify!($field).to_owned(), offset_of!($ty, $field))),*],
        }
    };
}

fn u32_key() -> Shape {
    Shape::Integer { size: 4 }
}

fn session_pu() -> Shape {
    shape!(SessionPu: session, handle, pad)
}

fn document() -> Shape {
    Shape::Array { elements: 2048, element: 1 }
}

/// Key and value of every pinned map that has any.
fn expected() -> Vec<(&'static str, Shape, Shape)> {
    vec![
        (
            "CONFIG",
            u32_key(),
            shape!(Config: heartbeat_ns, agent_timeout_ns, netns_cookie, generation, mark, flags, self_session),
        ),
        ("HOST", u32_key(), shape!(Host: trial_until_ns, trial_from, trial_flags, pu, agent)),
        (
            "SHIELD",
            u32_key(),
            shape!(Shield: source_interval_ns, source_burst_ns, all_interval_ns, all_burst_ns, secret, former_secret),
        ),
        ("HELLO_SOURCES", shape!(Source: network), Shape::Integer { size: 8 }),
        ("RESUMES", u32_key(), shape!(Resumes: entered, macs)),
        ("PU_CGROUPS", Shape::Integer { size: 8 }, u32_key()),
        ("WATCH", u32_key(), shape!(Watch: root, root_level, flags, patterns, unknown_file, offsets)),
        (
            "CGROUP_PATTERNS",
            u32_key(),
            shape!(CgroupPattern: prefix, prefix_mask, name, name_mask, suffix, suffix_mask),
        ),
        ("EXEC_FILES", shape!(FileKey: inode, device, pad), shape!(FileVerdict: ctime_sec, bits, pad)),
        ("EXEC_USERS", u32_key(), u32_key()),
        ("UNSORTED", u32_key(), shape!(Unsorted: since_ns, root, pad)),
        ("PU_IFACES", u32_key(), u32_key()),
        ("PU_SOCKETS", u32_key(), u32_key()),
        ("PU_LISTENERS", shape!(ListenerKey: addr, port, pad), u32_key()),
        ("PUS", u32_key(), shape!(Pu: identity, credential, credential_until_ns, handle, flags, pad)),
        ("CREDENTIALS", u32_key(), shape!(Credential: hash_index, len, hash_mac, csum, pad, bytes)),
        ("SESSIONS", u32_key(), shape!(Session: key_out, key_in, until_ns, peer_index, peer)),
        ("PEER_ADDRS", shape!(PeerAddr: addr, port, pad), u32_key()),
        ("FALLBACK_PATHS", Shape::Array { elements: 4, element: 4 }, Shape::Integer { size: 8 }),
        ("PEER_PUS", session_pu(), shape!(PeerPu: until_ns, issued_ms, identity, pad)),
        ("KNOWN_TO_PEER", session_pu(), Shape::Integer { size: 8 }),
        ("DATAGRAM_PEERS", shape!(DatagramPeer: addr, port, proto), session_pu()),
        ("DATAGRAM_TIMES", session_pu(), Shape::Integer { size: 8 }),
        ("DATAGRAM_PROGRAMS", u32_key(), u32_key()),
        (
            "NETWORKS",
            Shape::Struct { size: 20, fields: vec![("prefix_len".into(), 0), ("data".into(), 4)] },
            shape!(Network: external, flags),
        ),
        ("PAIRS", shape!(Pair: subject, object), shape!(Run: start, len)),
        ("INTERVALS", u32_key(), shape!(Interval: low, high, rule, observed_rule, flags)),
        (
            "FLOWS",
            shape!(FlowKey: local, remote, local_port, remote_port, proto, pad),
            shape!(
                Flow: state, role, path, flags, reason, local_handle, peer_handle, counted, pu, local_identity,
                peer_identity, session, local_isn, peer_isn, generation, rule, observed_rule, ifindex, pu_ifindex,
                next_out, ack_out, rtt_us, credential, confirm_mac, created_ns, bytes_out, packets_out, bytes_in, packets_in,
                seen_ns
            ),
        ),
        ("REASON_STATS", u32_key(), Shape::Integer { size: 8 }),
        ("HANDSHAKE_STATS", u32_key(), Shape::Integer { size: 8 }),
        ("LOSS_STATS", u32_key(), Shape::Integer { size: 8 }),
        ("IDENTITY_DOCS", u32_key(), document()),
        ("PU_DOCS", u32_key(), document()),
        ("SESSION_DOCS", u32_key(), document()),
    ]
}

#[test]
fn the_loaded_maps_have_the_layouts_of_this_side() {
    isolated(|place| {
        let kernel = Kernel::open(&place.options()).unwrap();
        let pinned = place.map_ids();
        let mut seen = RINGS.to_vec();
        let documented = documented();
        for (map, key, value) in expected() {
            let path = place.maps().join(map);
            let info = bpftool(&["map", "show", "pinned"], &path);
            for (what, shape) in [("bytes_key", &key), ("bytes_value", &value)] {
                assert_eq!(info[what], size(shape), "{map}");
            }
            let [key_type, value_type] = documented.get(map).unwrap_or_else(|| panic!("docs/maps.md lacks {map}"));
            for (what, shape, documented) in [("key", key, key_type), ("value", value, value_type)] {
                let (name, found) = described(&path, what, size(&shape));
                assert_eq!(found, shape, "{what} of {map}");
                // The prefix tree's key is of the library's making.
                let ours = matches!(found, Shape::Struct { .. }) && !name.starts_with("Key_");
                assert_eq!(*documented, ours.then_some(name), "docs/maps.md: {what} of {map}");
            }
            seen.push(map);
        }
        for ring in RINGS {
            assert!(documented.contains_key(ring), "docs/maps.md lacks {ring}");
        }
        let stale: Vec<_> = documented.keys().filter(|map| !pinned.contains_key(*map)).collect();
        assert!(stale.is_empty(), "docs/maps.md names maps that are not pinned: {stale:?}");
        let forgotten: Vec<_> = pinned.keys().filter(|map| !seen.contains(&map.as_str())).collect();
        assert!(forgotten.is_empty(), "maps without a layout here: {forgotten:?}");
        assert_eq!(pinned.len(), seen.len());
        let entries = |map: &str| bpftool(&["map", "show", "pinned"], &place.maps().join(map))["max_entries"].as_u64();
        assert_eq!(entries("REASON_STATS"), Some(abi::REASON_STATS.into()));
        assert_eq!(entries("HANDSHAKE_STATS"), Some(abi::HANDSHAKE_STATS.into()));
        assert_eq!(entries("LOSS_STATS"), Some(abi::LOSS_STATS.into()));
        assert_eq!(entries("HELLO_SOURCES"), Some(shield::SOURCES.into()));
        assert_eq!(entries("RESUMES"), Some(shield::RESUME_BUCKETS.into()));
        assert_eq!(entries("PUS"), Some(abi::MAX_PUS.into()));
        drop(kernel);
        unload(&place.unload()).unwrap();
    });
}

/// Maps without key and value.
const RINGS: [&str; 3] = ["HANDSHAKES", "TELEMETRY", "WORKLOADS"];

/// What docs/maps.md says of each map: the names of our types among its key and its value.
fn documented() -> BTreeMap<String, [Option<String>; 2]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/maps.md");
    let text = std::fs::read_to_string(path).expect("docs/maps.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(map, rest)| {
        let cell = rest.split(" | ").next().unwrap_or_default();
        let (key, value) = cell.split_once(" → ").unwrap_or((cell, ""));
        (map.to_owned(), [key, value].map(type_in))
    })
    .collect()
}

/// `Flow` in "`flow::Flow`"; functions and constants are no types.
fn type_in(text: &str) -> Option<String> {
    let name = text.strip_prefix('`')?.split_once('`')?.0.rsplit_once("::")?.1;
    name.chars()
        .nth(1)
        .is_some_and(char::is_lowercase)
        .then_some(name)
        .filter(|name| name.starts_with(char::is_uppercase))
        .map(str::to_owned)
}

fn size(shape: &Shape) -> usize {
    match shape {
        Shape::Integer { size } | Shape::Struct { size, .. } => *size,
        Shape::Array { elements, element } => elements * element,
    }
}

/// The map's own description of its key or value, which is `size` bytes long: the type's name and shape.
fn described(map: &Path, what: &str, size: usize) -> (String, Shape) {
    let dump = bpftool_at(&["btf", "dump", "map", "pinned"], map, &[what]);
    let types = dump["types"].as_array().expect("types");
    assert_eq!(types.len(), 1, "{dump}");
    let number = |value: &Value| value.as_u64().expect("a number") as usize;
    let found = &types[0];
    let shape = match found["kind"].as_str() {
        Some("INT") => Shape::Integer { size: number(&found["size"]) },
        Some("ARRAY") => {
            let elements = number(&found["nr_elems"]);
            Shape::Array { elements, element: size / elements }
        }
        Some("STRUCT") => {
            let field = |member: &Value| {
                let bits = number(&member["bits_offset"]);
                assert_eq!(bits % 8, 0);
                (member["name"].as_str().expect("a name").to_owned(), bits / 8)
            };
            let mut fields: Vec<_> = found["members"].as_array().expect("members").iter().map(field).collect();
            fields.sort_by_key(|(_, offset)| *offset);
            Shape::Struct { size: number(&found["size"]), fields }
        }
        other => panic!("{what} of {} is a {other:?}", map.display()),
    };
    (found["name"].as_str().unwrap_or_default().to_owned(), shape)
}

fn bpftool(arguments: &[&str], path: &Path) -> Value {
    bpftool_at(arguments, path, &[])
}

fn bpftool_at(arguments: &[&str], path: &Path, after: &[&str]) -> Value {
    let output = Command::new("bpftool").arg("-j").args(arguments).arg(path).args(after).output().expect("bpftool");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("bpftool {arguments:?} {}: {error}: {}", path.display(), String::from_utf8_lossy(&output.stdout))
    })
}
