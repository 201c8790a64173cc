//! A three-tier application of real programs (nginx, a CGI service, Redis), watched, suggested for, applied and enforced: it
//! still works, and an intruder gets nothing. Once of processes on two hosts, once of containers.

mod containers;
mod processes;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use policy::{Action, FlowRecord};
use serde_json::Value;
use tests::{Host, Lab, Record};

/// What the operator has written before: nothing is allowed, and something is known to be wrong.
const GUARD: &str = "name: guard\nrules:\n  - no-intruder: deny app=intruder -> app=db\n";

/// What the suggestion has to be, the address of whoever calls from outside left out.
const TIERS: [&str; 2] =
    ["api-to-db: allow app=api -> app=db tcp/6379", "web-to-api: allow app=web -> app=api tcp/8080"];

/// nginx in front of the service; everything it writes lies below one directory.
fn nginx_config(api: &str, scratch: &str) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {scratch}/{kind};\n"))
        .concat();
    format!(
        "user root;\nworker_processes 1;\ndaemon off;\npid {scratch}/nginx.pid;\nerror_log {scratch}/error.log;\n\
         events {{ worker_connections 64; }}\nhttp {{\n    access_log off;\n{temporary}    server {{\n        \
         listen 80;\n        location / {{ proxy_pass http://{api}:8080/cgi-bin/hits; proxy_connect_timeout 3s; }}\n    }}\n}}\n"
    )
}

/// The service: counts in the database, answers the count.
fn cgi_script(db: &str) -> String {
    format!("#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nexec redis-cli -h {db} -p 6379 incr hits\n")
}

/// Calls the front end from outside; the count, or why there is none.
fn visit(outside: &Host, address: &str) -> Result<u64> {
    let url = format!("http://{address}/");
    let output = outside.exec(&["curl", "--silent", "--show-error", "--fail", "--max-time", "4", &url])?;
    let said = output.ok()?.trim().to_owned();
    let count = said.strip_prefix("visits ").unwrap_or(&said);
    count.parse().with_context(|| format!("the application answered {said:?}"))
}

/// Visits until the application answers: its parts start at their own pace.
fn visit_within(outside: &Host, address: &str, limit: Duration) -> Result<u64> {
    let deadline = Instant::now() + limit;
    loop {
        match visit(outside, address) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
            count => return count,
        }
    }
}

fn assert_works(outside: &Host, address: &str) -> Result<()> {
    let before = visit(outside, address)?;
    for n in 1..=5 {
        ensure!(visit(outside, address)? == before + n, "the count is off");
    }
    Ok(())
}

fn observe(hosts: &[&Host], on: bool) -> Result<()> {
    for host in hosts {
        let answer: Value = host.enforcer_json(&["observe", if on { "on" } else { "off" }, "--namespace", "/demo"])?;
        let expected = if on { serde_json::json!(["/demo"]) } else { serde_json::json!([]) };
        ensure!(answer["observed"] == expected, "{answer}");
    }
    Ok(())
}

fn recorded(hosts: &[&Host]) -> Result<Vec<FlowRecord>> {
    let mut records = Vec::new();
    for host in hosts {
        let text = std::fs::read_to_string(host.flow_records()).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            records.push(FlowRecord::parse(line).with_context(|| line.to_owned())?);
        }
    }
    Ok(records)
}

/// Waits until an allowed connection to each of these ports was recorded by every host that has an end of it.
fn wait_for_records(hosts: &[&Host], ports: &[u16], wanted: impl Fn(&FlowRecord) -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let records = recorded(hosts)?;
        let found = |port: &u16| {
            records.iter().any(|record| record.port == *port && record.verdict == Action::Allow && wanted(record))
        };
        if ports.iter().all(found) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not recorded: {records:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Has a policy suggested from the hosts' records, checks what it says, and puts it in force.
fn suggest_and_apply(lab: &Lab, hosts: &[&Host], outside: &Host) -> Result<()> {
    let file = lab.directory().join("suggested.yaml");
    let file = file.to_string_lossy();
    let records: Vec<PathBuf> = hosts.iter().map(|host| host.flow_records()).collect();
    let records: Vec<_> = records.iter().map(|path| path.to_string_lossy()).collect();
    let line = [
        &["policy", "suggest", "--namespace", "/demo", "--out", &file, "--json", "--records"][..],
        &records.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
    ]
    .concat();
    let suggestion: Value = hosts[0].enforcer(&line)?.json()?;
    let rules: Vec<String> = suggestion["rules"]
        .as_array()
        .context("rules")?
        .iter()
        .map(|rule| format!("{}: {}", rule["name"].as_str().unwrap_or("?"), rule["text"].as_str().unwrap_or("?")))
        .collect();
    let text = std::fs::read_to_string(file.as_ref())?;
    let visitor = format!("outside-to-web: allow net {}/32 -> app=web tcp/80", outside.v4());
    ensure!(rules == [TIERS[0], TIERS[1], &visitor], "{text}");
    for rule in suggestion["rules"].as_array().into_iter().flatten() {
        ensure!(rule["flows"].as_u64().is_some_and(|flows| flows > 0) && rule["newly"]["pairs"] == 0, "{text}");
    }
    ensure!(text.matches("newly allows nothing").count() == 3, "{text}");
    hosts[0].enforcer(&["policy", "check", &file])?.ok()?;
    lab.write_policy("suggested.yaml", &text)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    for host in hosts {
        while host.counters()?.get("enforcer_policy_rules") != 4 {
            ensure!(Instant::now() < deadline, "the policy is not in force");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Waits for the record of a refusal, as `enforcer flows` tells it.
fn refusal(host: &Host, wanted: impl Fn(&Record) -> bool) -> Result<Record> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let records = host.records()?;
        if let Some(record) = records.iter().find(|record| record.verdict == "deny" && wanted(record)) {
            return Ok(record.clone());
        }
        ensure!(Instant::now() < deadline, "no such refusal: {records:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
