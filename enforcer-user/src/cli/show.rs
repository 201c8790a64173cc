//! `enforcer status|pus|peers|flows`

use std::{ops::ControlFlow, path::Path, process::ExitCode};

use serde_json::json;

use super::{
    Failure, Output,
    args::{FlowsArgs, PusOutput},
    output::{Table, printable},
    text,
};
use crate::admin::{
    Client, Request, Response,
    view::{FlowView, RecordView, StatusView},
};

/// Exits with 1 while the agent is not ready, so that scripts can wait for it.
pub(super) fn status(socket: &Path, out: &mut Output) -> Result<ExitCode, Failure> {
    let status = match Client::connect(socket)?.ask(&Request::Status)? {
        Response::Status(status) => status,
        other => return Err(unexpected(&other)),
    };
    if out.is_json() {
        out.json(&status)?;
    } else {
        print_status(&status, out)?;
    }
    Ok(ExitCode::from(if status.ready { 0 } else { 1 }))
}

pub(super) fn pus(socket: &Path, output: Option<PusOutput>, out: &mut Output) -> Result<ExitCode, Failure> {
    let pus = match Client::connect(socket)?.ask(&Request::Pus)? {
        Response::Pus(pus) => pus,
        other => return Err(unexpected(&other)),
    };
    if out.is_json() {
        out.json(&json!({ "pus": pus }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if output == Some(PusOutput::Wide) {
        let mut table = Table::new(["ID", "NAME", "KEY", "STATE", "TAG", "SOURCE", "CARRIED"]);
        for pu in pus {
            let state = if pu.incomplete { "incomplete" } else { "complete" };
            for tag in &pu.all_tags {
                table.row([
                    pu.id.clone(),
                    pu.name.clone(),
                    pu.key.clone(),
                    state.to_owned(),
                    format!("{}={}", tag.key, tag.value),
                    tag.sources.join(","),
                    if tag.carried { "yes" } else { "no" }.to_owned(),
                ]);
            }
        }
        out.table(&table)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["ID", "NAME", "NAMESPACE", "TARGET", "TAGS", "HANDLE", "BYTES", "EXPIRES", "ERROR"]);
    for pu in pus {
        table.row([
            pu.id,
            pu.name,
            pu.namespace,
            pu.target,
            text::tags(&pu.tags),
            pu.handle.to_string(),
            pu.credential_bytes.to_string(),
            pu.credential_expires_s.map(text::seconds).unwrap_or_default(),
            pu.error.unwrap_or_default(),
        ]);
    }
    out.table(&table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn peers(
    socket: &Path,
    forget: Option<String>,
    keep_checked: bool,
    out: &mut Output,
) -> Result<ExitCode, Failure> {
    let request = match forget {
        None => Request::Peers,
        Some(name) => Request::Forget { peer: Some(name).filter(|name| !name.is_empty()), keep_checked },
    };
    let peers = match Client::connect(socket)?.ask(&request)? {
        Response::Peers(peers) => peers,
        Response::Forgotten(sessions) => {
            if out.is_json() {
                out.json(&json!({ "forgotten": sessions }))?;
            } else {
                out.line(format!("{sessions} sessions forgotten; the next contact is a first contact"))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        other => return Err(unexpected(&other)),
    };
    if out.is_json() {
        out.json(&json!({ "peers": peers }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["ENFORCER", "ADDRESSES", "SESSIONS", "EXPIRES", "PU", "NAMESPACE", "TAGS"]);
    for peer in peers {
        let expires = peer.sessions.iter().map(|session| session.expires_s).max().map(text::seconds);
        let (sessions, expires) = (peer.sessions.len().to_string(), expires.unwrap_or_default());
        // The enforcer's own columns stand in its first line only.
        let mut head = [peer.enforcer, peer.addresses.join(" "), sessions, expires];
        let none = crate::admin::view::PeerPuView::default();
        for pu in if peer.pus.is_empty() { std::slice::from_ref(&none) } else { &peer.pus } {
            let [enforcer, addresses, sessions, expires] = std::mem::take(&mut head);
            let tags = text::tags(&pu.tags);
            table.row([enforcer, addresses, sessions, expires, pu.name.clone(), pu.namespace.clone(), tags]);
        }
    }
    out.table(&table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn flows(socket: &Path, args: FlowsArgs, out: &mut Output) -> Result<ExitCode, Failure> {
    let flows = if args.offline {
        let config = crate::config::Config::load(&args.config)?;
        crate::agent::offline_flows(&config, args.limit).map_err(|error| Failure::failed(format!("{error:#}")))?
    } else {
        let mut client = Client::connect(socket)?;
        if args.follow {
            return follow(&mut client, out);
        }
        match client.ask(&Request::Flows { limit: args.limit })? {
            Response::Flows(flows) => flows,
            other => return Err(unexpected(&other)),
        }
    };
    if out.is_json() {
        out.json(&flows)?;
        return Ok(ExitCode::SUCCESS);
    }
    out.table(&flow_table(&flows.flows))?;
    if flows.total > flows.flows.len() as u64 {
        out.line(format!("… {} of {} (--limit)", flows.flows.len(), flows.total))?;
    }
    if !flows.records.is_empty() {
        out.line("")?;
        let mut table = Table::new([
            "TIME",
            "EVENT",
            "ROLE",
            "PU",
            "LOCAL",
            "REMOTE",
            "PEER",
            "VERDICT",
            "REASON",
            "RULE",
            "NAMESPACE",
            "PATH",
            "IN",
            "OUT",
        ]);
        for record in flows.records {
            let reason = reason(&record);
            table.row([
                record.time,
                record.event,
                record.role,
                record.pu,
                record.local,
                record.remote,
                record.peer,
                record.verdict,
                reason,
                record.rule,
                record.rule_namespace,
                record.path,
                text::bytes(record.bytes_in),
                text::bytes(record.bytes_out),
            ]);
        }
        out.table(&table)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The agent answered something else than was asked for.
pub(super) fn unexpected(response: &Response) -> Failure {
    Failure::failed(format!("the agent gave an answer that does not fit the question ({response:.60?}); restart it"))
}

fn print_status(status: &StatusView, out: &mut Output) -> Result<(), Failure> {
    let policy = &status.policy;
    let uptime = text::seconds(i64::try_from(status.uptime_s).unwrap_or(i64::MAX));
    out.line(format!("enforcer  {} {}, up {uptime}", printable(&status.name), printable(&status.version)))?;
    out.line(format!("ready     {}", text::yes(status.ready)))?;
    out.line(format!("PUs       {}, sessions {}, live flows {}", status.pus, status.sessions, status.flows))?;
    let line = format!(
        "{} in {}, generation {}",
        text::count(policy.rules as usize, "rule"),
        text::count(policy.files as usize, "file"),
        policy.generation
    );
    out.line(format!("policy    {line}"))?;
    if let Some(left) = status.trial_s {
        let left = text::seconds(i64::try_from(left).unwrap_or(i64::MAX));
        out.line(format!("trial     goes back in {left}, unless you run `enforcer confirm`"))?;
    }
    if let Some(host) = &status.host_pu {
        let management = match status.management.as_slice() {
            [] => "nothing (no management exemption)".to_owned(),
            some => some.join(", "),
        };
        out.line(format!(
            "host      is the PU {}; reachable whatever the policy says: {}",
            printable(host),
            printable(&management)
        ))?;
    }
    if !status.observed.is_empty() {
        out.line(format!("observed  {} (NOT enforced)", printable(&status.observed.join(" "))))?;
    }
    if let Some(error) = &policy.error {
        out.line(format!("          not in force: {}", printable(error)))?;
    }
    for fact in &status.facts {
        let age = fact.age_s.and_then(|age| i64::try_from(age).ok()).map(text::seconds);
        let state = match age {
            Some(age) => format!("{}, {age} ago", printable(&fact.detail)),
            None => "nothing yet".into(),
        };
        out.line(format!("facts     {} {}: {state}", fact.source, printable(&fact.name)))?;
        if let Some(error) = &fact.error {
            out.line(format!("          {}", printable(error)))?;
        }
    }
    for layer in &status.hardening {
        let state = if layer.state == "on" { String::new() } else { format!("NOT in force ({}): ", layer.state) };
        out.line(format!("hardening {}: {state}{}", printable(&layer.name), printable(&layer.detail)))?;
    }
    out.line("")?;
    let mut table = Table::new(["INTERFACE", "STATE", "TC", "XDP", "WHY"]);
    for interface in &status.interfaces {
        let interface = interface.clone();
        let why = if interface.reason.is_empty() { interface.xdp_reason } else { interface.reason };
        table.row([interface.name, interface.state, interface.tc, interface.xdp, why]);
    }
    out.table(&table)?;
    let failed = status.interfaces.iter().filter(|interface| interface.state == "failed").count();
    if failed > 0 {
        let what = text::count(failed, "interface");
        out.line(format!("PROBLEM: {what} not enforced, see WHY; attaching is tried again every two seconds"))?;
    }
    out.line("")?;
    let mut table = Table::new(["MAP", "ENTRIES", "MAX", "LOST"]);
    for map in &status.maps {
        table.row([map.name.clone(), map.entries.to_string(), map.max.to_string(), String::new()]);
    }
    for (name, lost) in &status.losses {
        table.row([name.clone(), String::new(), String::new(), lost.to_string()]);
    }
    out.table(&table)?;
    Ok(())
}

pub(super) fn flow_table(flows: &[FlowView]) -> Table {
    let mut table = Table::new([
        "ROLE",
        "PU",
        "LOCAL",
        "REMOTE",
        "PROTO",
        "PEER",
        "STATE",
        "RULE",
        "NAMESPACE",
        "PATH",
        "IN",
        "OUT",
        "RTT",
        "AGE",
    ]);
    for flow in flows {
        let flow = flow.clone();
        table.row([
            flow.role,
            flow.pu,
            flow.local,
            flow.remote,
            flow.proto,
            flow.peer,
            if flow.state == "cut" { format!("cut ({})", flow.reason) } else { flow.state },
            flow.rule,
            flow.rule_namespace,
            flow.path,
            text::bytes(flow.bytes_in),
            text::bytes(flow.bytes_out),
            if flow.rtt_us == 0 { String::new() } else { format!("{}us", flow.rtt_us) },
            text::seconds(i64::try_from(flow.age_us / 1_000_000).unwrap_or(i64::MAX)),
        ]);
    }
    table
}

fn follow(client: &mut Client, out: &mut Output) -> Result<ExitCode, Failure> {
    let mut failure = None;
    client.follow(&Request::Follow, |response| {
        let written = match &response {
            Response::Record(record) if out.is_json() => out.json_line(record),
            Response::Missed(count) if out.is_json() => out.json_line(&json!({ "missed": count })),
            Response::Record(record) => out.line(record_line(record)),
            Response::Missed(count) => out.line(format!("… {count} records missed: this reader is too slow")),
            other => {
                failure = Some(unexpected(other));
                return ControlFlow::Break(());
            }
        };
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error.into());
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or_else(|| Err(Failure::new(super::failure::UNREACHABLE, "the agent has ended")), Err)
}

fn record_line(record: &RecordView) -> String {
    let arrow = if record.role == "server" { "<-" } else { "->" };
    let mut line = format!(
        "{} {:<5} {:<5} {} {} {} {} {} {}",
        record.time,
        record.event,
        record.verdict,
        printable(&record.pu),
        record.local,
        arrow,
        record.remote,
        printable(&record.peer),
        reason(record),
    );
    if !record.rule.is_empty() {
        line.push_str(&format!(" rule={} namespace={}", printable(&record.rule), printable(&record.rule_namespace)));
    }
    if !record.observed_rule.is_empty() {
        let (rule, namespace) = (printable(&record.observed_rule), printable(&record.observed_rule_namespace));
        line.push_str(&format!(" observed={rule} observed_namespace={namespace}"));
    }
    line.push_str(&format!(" path={}", record.path));
    if record.event == "end" || record.event == "cut" {
        line.push_str(&format!(" in={} out={} rtt={}us", record.bytes_in, record.bytes_out, record.rtt_us));
    }
    line
}

fn reason(record: &RecordView) -> String {
    match (record.peer_reason, record.observed_reason.as_str()) {
        (true, _) => format!("{} (peer)", record.reason),
        (false, "") => record.reason.clone(),
        (false, observed) => format!("{} (not enforced: {observed})", record.reason),
    }
}
