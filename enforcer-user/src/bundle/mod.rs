//! `enforcer doctor --bundle`: one document with everything a bug report needs, and no secret.
//!
//! It works whatever is broken: each part is there, or why it is not. Keys of sessions and credentials are never read; of
//! connections there are numbers, no addresses; every text passes the [`Redactor`].

mod redact;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use aya::{maps::MapInfo, programs::ProgramInfo};
use common::{abi, drop_reason};
use serde_json::{Value, json};

use crate::{
    admin::{Client, Request, Response, view::FlowsView},
    config::Config,
    link_net, load,
    map_write::Maps,
    probe,
};

use redact::Redactor;

/// So much of the log's end.
const LOG: u64 = 256 << 10;
/// So many flows are counted.
const FLOWS: usize = 100_000;

/// Writes the bundle; never over something.
///
/// # Errors
/// If the file exists or cannot be written.
pub fn write(config_file: &Path, bundle: &Path) -> io::Result<()> {
    let document = collect(config_file);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(bundle)?;
    file.write_all(format!("{document:#}\n").as_bytes())
}

fn collect(config_file: &Path) -> Value {
    let loaded = Config::load(config_file);
    let config = loaded.as_ref().cloned().unwrap_or_default();
    let mut redactor = Redactor::default();
    redactor.learn(&config.identity.key.to_string_lossy());
    if let Ok(key) = fs::read_to_string(&config.identity.key) {
        redactor.learn(&key);
    }
    let shown = match &loaded {
        Ok(config) => redactor.config(serde_json::to_value(config).unwrap_or_default()),
        // What is wrong may be a secret in the wrong place.
        Err(error) => json!({ "error": { "place": error.place, "key": error.key } }),
    };
    let (agent, pid) = agent(&config);
    let mut checks = probe::examine(config_file);
    if loaded.is_err() {
        checks.checks.retain(|check| check.name != "configuration");
    }
    let pins = load::Pins::new(&config.paths.bpffs);
    let rest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "abi": abi::VERSION,
        "time": humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        "kernel": text("/proc/version"),
        "system": text("/etc/os-release"),
        "load": text("/proc/loadavg"),
        "probe": said(serde_json::to_value(&checks)),
        "agent": agent,
        "interfaces": said(interfaces()),
        "links": said(links(&pins)),
        "programs": said(each(&pins.programs, program)),
        "maps": said(each(&pins.maps, map)),
        "counters": said(counters(&pins)),
        "log": said(log(pid)),
    });
    let mut document = redactor.document(rest);
    if let Value::Object(members) = &mut document {
        members.insert("config".into(), shown);
    }
    document
}

/// What there is, or why it is not.
fn said<T: Into<Value>, E: std::fmt::Display>(result: Result<T, E>) -> Value {
    result.map_or_else(|error| json!({ "error": error.to_string() }), Into::into)
}

fn text(file: &str) -> Value {
    said(fs::read_to_string(file).map(|text| text.trim().to_owned()))
}

/// What the agent says, and its process.
fn agent(config: &Config) -> (Value, Option<u32>) {
    let mut client = match Client::connect(&config.paths.socket) {
        Ok(client) => client,
        Err(error) => return (json!({ "error": error.to_string() }), None),
    };
    let mut ask = |request: Request| match client.ask(&request) {
        Ok(Response::Status(status)) => said(serde_json::to_value(status)),
        Ok(Response::Flows(flows)) => flows_in_numbers(&flows),
        Ok(Response::Policy(policy)) => json!({
            "generation": policy.generation, "files": policy.files, "error": policy.error, "rules": policy.rules.len(),
        }),
        // Names and tags are the owner's to tell.
        Ok(Response::Pus(pus)) => pus
            .iter()
            .map(|pu| {
                json!({
                    "index": pu.index, "handle": pu.handle, "identity": pu.identity, "incomplete": pu.incomplete,
                    "observed": pu.observed, "tags": pu.all_tags.len(), "credential_bytes": pu.credential_bytes,
                    "credential_expires_s": pu.credential_expires_s, "error": pu.error,
                })
            })
            .collect(),
        Ok(Response::Peers(peers)) => {
            peers.iter().map(|peer| json!({ "sessions": peer.sessions, "pus": peer.pus.len() })).collect()
        }
        Ok(_) => json!({ "error": "an answer to another question" }),
        Err(error) => json!({ "error": error.to_string() }),
    };
    let answers = json!({
        "status": ask(Request::Status),
        "pus": ask(Request::Pus),
        "peers": ask(Request::Peers),
        "policy": ask(Request::Policy),
        "flows": ask(Request::Flows { limit: FLOWS }),
    });
    (answers, client.agent_pid())
}

fn flows_in_numbers(flows: &FlowsView) -> Value {
    let mut live = BTreeMap::<String, u64>::new();
    for flow in &flows.flows {
        *live
            .entry([&flow.role, &flow.proto, &flow.state, &flow.path, &flow.reason].map(String::as_str).join(" "))
            .or_default() += 1;
    }
    let mut recent = BTreeMap::<String, u64>::new();
    for record in &flows.records {
        *recent
            .entry(
                [&record.role, &record.proto, &record.event, &record.path, &record.reason]
                    .map(String::as_str)
                    .join(" "),
            )
            .or_default() += 1;
    }
    json!({ "total": flows.total, "live": live, "recent": recent })
}

fn interfaces() -> io::Result<Vec<Value>> {
    let one = |interface: link_net::Interface| {
        json!({
            "index": interface.index, "name": interface.name, "kind": interface.kind.name(), "mtu": interface.mtu,
            "up": interface.up, "master": interface.master.map(|master| master.index), "lower": interface.lower,
        })
    };
    Ok(link_net::list()?.into_iter().map(one).collect())
}

fn links(pins: &load::Pins) -> Result<Vec<Value>, load::LoadError> {
    let one = |(name, link): (String, crate::sys::LinkInfo)| json!({ "name": name, "id": link.id, "type": link.kind, "program": link.program, "target": link.target });
    Ok(load::pinned_links(&pins.links)?.into_iter().map(one).collect())
}

/// Something of everything pinned in a directory.
fn each(directory: &Path, show: fn(&Path) -> Result<Value, String>) -> io::Result<Vec<Value>> {
    let mut shown = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let mut one = said(show(&path));
        if let Value::Object(members) = &mut one {
            members.insert("name".into(), path.file_name().unwrap_or_default().to_string_lossy().into());
        }
        shown.push(one);
    }
    shown.sort_by_key(|one| one["name"].as_str().map(str::to_owned));
    Ok(shown)
}

fn program(pin: &Path) -> Result<Value, String> {
    let info = ProgramInfo::from_pin(pin).map_err(|error| error.to_string())?;
    Ok(json!({
        "id": info.id(), "tag": format!("{:016x}", info.tag()), "bytes": info.size_translated(),
        "instructions_verified": info.verified_instruction_count(),
    }))
}

fn map(pin: &Path) -> Result<Value, String> {
    let info = MapInfo::from_pin(pin).map_err(|error| error.to_string())?;
    let kind = info.map_type().map_or(u32::MAX, |kind| kind as u32);
    Ok(json!({
        "id": info.id(), "type": kind, "size_of_key": info.key_size(), "size_of_value": info.value_size(),
        "max_entries": info.max_entries(), "flags": info.map_flags(),
    }))
}

/// By the names they have in metrics; those that are 0 are left out.
fn counters(pins: &load::Pins) -> Result<Value, crate::map_write::MapWriteError> {
    let maps = Maps::open(&pins.maps)?;
    let counts = maps.stats.reasons()?;
    let mut reasons = BTreeMap::new();
    for reason in drop_reason::ALL {
        for (inbound, direction) in [(false, "out"), (true, "in")] {
            let count = counts.get(abi::reason_stat(*reason as u16, inbound) as usize).copied().unwrap_or_default();
            if count > 0 {
                reasons.insert(format!("{} {direction}", reason.name()), count);
            }
        }
    }
    let fill: BTreeMap<_, _> = maps
        .fill()?
        .into_iter()
        .map(|(name, entries, max)| (name, json!({ "entries": entries, "max": max })))
        .collect();
    Ok(
        json!({ "reasons": reasons, "handshakes": maps.stats.handshakes()?, "losses": maps.stats.losses()?, "fill": fill }),
    )
}

/// The end of the agent's log, if it is a file.
fn log(pid: Option<u32>) -> io::Result<Value> {
    let pid = pid.ok_or_else(|| io::Error::other("no agent runs"))?;
    let place = fs::read_link(format!("/proc/{pid}/fd/2"))?;
    if !place.is_file() {
        return Err(io::Error::other("not a file: see the journal (`journalctl -u enforcer`)"));
    }
    let mut file = File::open(&place)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG)))?;
    let mut bytes = Vec::new();
    file.take(LOG).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).lines().map(Value::from).collect())
}
