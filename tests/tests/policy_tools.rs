//! `enforcer policy apply`, `diff` and `simulate` with a running agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::{Host, Outcome, Output, Pair};

const NARROW: &str = "name: pair\nrules:\n  - call: allow app=client -> app=server tcp/8020\n";

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A file that is not in the watched directory yet.
fn draft(host: &Host, name: &str, text: &str) -> Result<PathBuf> {
    let directory = host.directory().join("drafts");
    fs::create_dir_all(&directory)?;
    let path = directory.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

fn policy(host: &Host, args: &[&str]) -> Result<Output> {
    host.enforcer(&[&["policy"], args].concat())
}

fn generation(host: &Host) -> Result<i64> {
    Ok(host.counters()?.get("enforcer_policy_generation"))
}

fn connect(pair: &Pair, port: u16) -> Result<Outcome> {
    Ok(pair.client.connect(&pair.b.socket_v4(port), &["--payload", "ping"])?.outcome)
}

/// The other host watches the same directory; it is told by nobody.
fn wait_for_rules(host: &Host, text: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(3);
    while !policy(host, &["show"])?.stdout.contains(text) {
        ensure!(Instant::now() < deadline, "{} has no rule with {text}", host.name());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn apply_is_all_or_nothing() -> Result<()> {
    let pair = Pair::new("apply")?;
    let _servers = [pair.server.serve(&["--listen", "[::]:8020"])?, pair.server.serve(&["--listen", "[::]:8021"])?];
    pair.introduce(8020)?;
    pair.introduce(8021)?;
    let watched = pair.lab.write_policy("other.yaml", "name: other\nrules: []\n")?;
    let directory = watched.parent().expect("a directory").to_owned();
    let listing = || -> Result<Vec<(String, String)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            files.push((text(&path).to_owned(), fs::read_to_string(&path)?));
        }
        files.sort();
        Ok(files)
    };
    let narrow = draft(&pair.b, "pair.yaml", NARROW)?;
    let (before, was) = (listing()?, generation(&pair.b)?);

    let dry = policy(&pair.b, &["apply", "--dry-run", text(&narrow)])?;
    assert_eq!(dry.status.code(), Some(1), "{}", dry.stderr);
    assert!(
        dry.stdout.starts_with(&format!("would be replaced in {}: pair.yaml\n", directory.display())),
        "{}",
        dry.stdout
    );
    let row: Vec<&str> = dry.stdout.lines().last().expect("a row").split_whitespace().collect();
    let ports = "tcp/8000-8019 tcp/8021-8999 allow (pair/call) deny (default)";
    assert_eq!(row[1..].join(" "), format!("server {ports}"), "{}", dry.stdout);
    assert!(row[0].ends_with("client"), "{}", dry.stdout);
    assert_eq!((listing()?, generation(&pair.b)?), (before.clone(), was), "nothing has changed");

    // One broken file among several, wherever it stands: none of them is applied.
    let good = draft(&pair.b, "good.yaml", "name: good\nrules:\n  - deny any -> app=server\n")?;
    for (broken, expected) in [
        ("name: late\nrules:\n  - allow any\n", "late.yaml:3:14: "),
        ("name: pair\nrules:\n  - call: allow any -> any\n", "`pair/call` is already taken"),
        ("name: late\nrules:\n  - allow any -> any encrypt\n", "encryption is not available"),
    ] {
        let broken = draft(&pair.b, "late.yaml", broken)?;
        let refused = policy(&pair.b, &["apply", text(&good), text(&broken)])?;
        assert_eq!((refused.status.code(), refused.stdout.as_str()), (Some(1), ""));
        assert!(refused.stderr.contains("nothing is applied, the policy is as before: "), "{}", refused.stderr);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
        assert_eq!((listing()?, generation(&pair.b)?), (before.clone(), was));
    }
    assert_eq!(connect(&pair, 8021)?, Outcome::Ok);

    let applied = policy(&pair.b, &["apply", text(&narrow)])?;
    assert_eq!(applied.status.code(), Some(0), "{}", applied.stderr);
    assert!(applied.stdout.ends_with(&format!("in force: 1 rule, generation {}\n", was + 1)), "{}", applied.stdout);
    assert_eq!(connect(&pair, 8021)?, Outcome::Refused, "in force when the command returns");
    assert_eq!(connect(&pair, 8020)?, Outcome::Ok);
    assert_eq!(fs::read_to_string(directory.join("pair.yaml"))?, NARROW);
    let again: Value = pair.b.enforcer_json(&["policy", "apply", text(&narrow)])?;
    assert_eq!((&again["unchanged"], &again["replaced"]), (&json!(["other.yaml", "pair.yaml"]), &json!([])));

    // What is not named goes only if asked for.
    wait_for_rules(&pair.a, "tcp/8020")?;
    let pruned = policy(&pair.b, &["apply", "--prune", text(&good)])?;
    assert_eq!(pruned.status.code(), Some(0), "{}", pruned.stderr);
    assert_eq!(listing()?.len(), 1);
    wait_for_rules(&pair.a, "good/#1")?;
    assert_eq!(connect(&pair, 8020)?, Outcome::Refused);
    Ok(())
}

#[test]
fn what_is_in_force_stays_when_no_directory_is_watched() -> Result<()> {
    let pair = Pair::new("applynodir")?;
    let file = draft(&pair.a, "pair.yaml", Pair::POLICY)?;
    pair.a.start_enforcer(&format!("policy.paths = [{file:?}]"))?;
    let refused = policy(&pair.a, &["apply", text(&file)])?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.stderr.contains("no directory of policy files is watched: name one in `policy.paths`"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn diff_asks_the_agent_whom_it_knows() -> Result<()> {
    let pair = Pair::new("diffknown")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let old = draft(&pair.a, "old.yaml", Pair::POLICY)?;
    let new = draft(&pair.a, "new.yaml", NARROW)?;
    let diff = || policy(&pair.a, &["diff", text(&old), text(&new)]);
    let stranger = diff()?;
    assert_eq!(
        (stranger.status.code(), stranger.stdout.as_str()),
        (Some(0), "no pair of 1 identities and networks is judged otherwise\n")
    );
    pair.introduce(8020)?;
    let met = diff()?;
    assert_eq!(met.status.code(), Some(1), "{}", met.stderr);
    assert!(met.stdout.starts_with("1 pair of 2 identities and networks judged otherwise\n"), "{}", met.stdout);
    let row: Vec<&str> = met.stdout.lines().last().expect("a row").split_whitespace().collect();
    assert_eq!(row[..2], ["client", "host-b/server"], "{}", met.stdout);
    Ok(())
}

#[test]
fn simulate_reads_what_the_agent_recorded() -> Result<()> {
    let pair = Pair::with("simulate", "records.file = \"flows.jsonl\"\nrecords.interval = \"1s\"")?;
    let mut servers = Vec::new();
    for listen in ["[::]:8020", "[::]:8021", "[::]:9999"] {
        servers.push(pair.server.serve(&["--listen", listen])?);
    }
    for _ in 0..3 {
        assert_eq!(connect(&pair, 8020)?, Outcome::Ok);
    }
    assert_eq!(connect(&pair, 8021)?, Outcome::Ok);
    assert_eq!(connect(&pair, 9999)?, Outcome::Refused);
    pair.settled()?;
    let new =
        draft(&pair.b, "new.yaml", "name: next\nrules:\n  - keep: allow app=client -> app=server tcp/8020,9999\n")?;
    let config = pair.b.enforcer_config();
    let simulate =
        || pair.b.enforcer_json::<Value>(&["policy", "simulate", text(&new), "--config", text(&config), "--all"]);
    let deadline = Instant::now() + Duration::from_secs(5);
    let (mut simulated, mut seen) = (Value::Null, Vec::new());
    while Instant::now() < deadline {
        // The file is not there before there is something to tell.
        if pair.b.directory().join("flows.jsonl").exists() {
            simulated = simulate()?;
            let sums = ["newly_denied", "newly_allowed", "stay_allowed", "stay_denied"];
            seen = sums.iter().map(|sum| simulated["summary"][sum].as_u64().unwrap_or(0)).collect();
            if seen == [1, 1, 3, 0] {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let recorded = fs::read_to_string(pair.b.directory().join("flows.jsonl"))?;
    assert_eq!(seen, [1, 1, 3, 0], "{simulated:#}\n{recorded}");
    let first = &simulated["connections"][0];
    assert_eq!((&first["port"], &first["flows"]), (&json!("tcp/8021"), &json!(1)), "{simulated:#}");
    assert_eq!(first["before"], json!({"action": "allow", "rule": "pair/call", "namespace": "/"}));
    assert_eq!(first["after"], json!({"action": "deny", "rule": null}));
    assert_eq!(simulated["connections"][1]["after"], json!({"action": "allow", "rule": "next/keep", "namespace": "/"}));
    let told = policy(&pair.b, &["simulate", text(&new), "--records", text(&pair.b.directory().join("flows.jsonl"))])?;
    assert!(
        told.stdout.contains(": 1 connection newly denied, 1 connection newly allowed, 3 connections stay allowed"),
        "{}",
        told.stdout
    );
    Ok(())
}
