//! The flows while no agent runs: the kernel goes on enforcing and telling, and the pinned maps hold what it told.

use super::{admin::newest_first, names::offline_names};
use crate::{
    admin::view::FlowsView,
    config::Config,
    flow_log::{Clock, flow_view, record_view},
    load::Pins,
    map_write::Maps,
    ring,
};

/// Live flows, at most `limit`, and the telemetry that no agent has taken yet; it stays for the agent.
///
/// # Errors
/// If there are no pinned maps, or they are another version's.
pub(crate) fn flows(config: &Config, limit: usize) -> anyhow::Result<FlowsView> {
    let pins = Pins::new(&config.paths.bpffs);
    let maps = Maps::open(&pins.maps)?;
    let names = offline_names(&maps, &config.paths.socket);
    let clock = Clock::now();
    let mut all = maps.flows.entries()?;
    let total = all.len() as u64;
    newest_first(&mut all);
    let records = ring::peek_events(&pins.maps)?;
    Ok(FlowsView {
        flows: all.iter().take(limit).map(|(key, flow)| flow_view(key, flow, &names, &clock)).collect(),
        total,
        records: records.iter().map(|event| record_view(event, &names, &clock)).collect(),
    })
}
