//! A full flow table: what an agent with many connections has to look after.

use std::path::Path;

use common::addr_v4;
use common::flow::{ESTABLISHED, Flow, FlowKey, PATH_RESUME, SERVER};
use enforcer_user::map_write::Maps;
use enforcer_user::sys::monotonic_ns;

use crate::Values;

pub fn fill(bpffs: &Path, count: u32) -> anyhow::Result<Values> {
    let maps = Maps::open(&bpffs.join("v1/maps"))?;
    let now = monotonic_ns();
    for number in 0..count {
        let key = FlowKey {
            local: addr_v4(u32::from_be_bytes([10, 77, 0, 1]).to_be()),
            remote: addr_v4((0x0a80_0000 + number / 50_000).to_be()),
            local_port: 8020,
            remote_port: 10_000 + (number % 50_000) as u16,
            proto: 6,
            pad: [0; 3],
        };
        let flow = Flow {
            state: ESTABLISHED,
            role: SERVER,
            path: PATH_RESUME,
            pu: 1,
            created_ns: now,
            seen_ns: now,
            ..Flow::default()
        };
        maps.flows.insert(&key, &flow)?;
    }
    Ok(Values::from([("flows", vec![maps.flows.len()? as f64])]))
}
