//! Full tables: what an agent with many connections, or with many peers, has to look after.

use std::path::Path;

use common::addr_v4;
use common::flow::{ESTABLISHED, FLAG_SOCKET, Flow, FlowKey, PATH_RESUME, SERVER};
use enforcer_user::map_write::Maps;
use enforcer_user::sys::monotonic_ns;

use crate::Values;

pub fn fill(bpffs: &Path, count: u32) -> anyhow::Result<Values> {
    let maps = Maps::open(&bpffs.join("v1/maps"))?;
    let now = monotonic_ns();
    for number in 0..count {
        maps.flows.insert(&key(number), &Flow { created_ns: now, seen_ns: now, ..established() })?;
    }
    Ok(Values::from([("flows", vec![maps.flows.len()? as f64])]))
}

/// The first number of a made-up identity; the agent gives away small ones.
const FIRST_PEER: u32 = 1_000_000;

/// Enters identities of peers, each `app=appN user=prod`, with one connection to PU 1 each. An agent that is started
/// afterwards knows them.
pub fn peers(bpffs: &Path, count: u32) -> anyhow::Result<Values> {
    let maps = Maps::open(&bpffs.join("v1/maps"))?;
    let now = monotonic_ns();
    for number in 0..count {
        let identity = FIRST_PEER + number;
        let doc = serde_json::json!({
            "name": format!("elsewhere/pu{number}"),
            "namespace": "/demo",
            "tags": [format!("app=app{}", number % 997), "user=prod", format!("instance={number}")],
        });
        maps.identity_docs.insert(identity, doc.to_string().as_bytes())?;
        // As if their sockets were there: they are kept as long as the measurement takes.
        let flow = Flow { peer_identity: identity, created_ns: now, seen_ns: now, flags: FLAG_SOCKET, ..established() };
        maps.flows.insert(&key(number), &flow)?;
    }
    Ok(Values::from([("identities", vec![f64::from(count)])]))
}

fn established() -> Flow {
    Flow { state: ESTABLISHED, role: SERVER, path: PATH_RESUME, pu: 1, ..Flow::default() }
}

fn key(number: u32) -> FlowKey {
    FlowKey {
        local: addr_v4(u32::from_be_bytes([10, 77, 0, 1]).to_be()),
        remote: addr_v4((0x0a80_0000 + number / 50_000).to_be()),
        local_port: 8020,
        remote_port: 10_000 + (number % 50_000) as u16,
        proto: 6,
        pad: [0; 3],
    }
}
