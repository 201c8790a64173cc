//! `enforcer upgrade` under traffic.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Calls, Counters, Host, Outcome, Pair, Proc, enforcer_binary};

use crate::stage::{stopped, transfer};

/// Connections that carry data while both ends are upgraded: half of them IPv4, half IPv6.
const LIVE: u64 = 10_000;

/// Another file with the same program in it.
pub fn copy_of_enforcer(host: &Host, name: &str) -> Result<PathBuf> {
    let to = host.directory().join(name);
    fs::copy(enforcer_binary()?, &to).context("copying the enforcer")?;
    Ok(to)
}

/// Whether the process runs this file, whatever it is called.
pub fn runs(pid: u32, file: &Path) -> Result<bool> {
    let (a, b) = (fs::metadata(format!("/proc/{pid}/exe"))?, fs::metadata(file)?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Of everything pinned in a directory, its id and (of links) the program's.
pub fn pinned(host: &Host, what: &str, directory: &str) -> Result<BTreeMap<String, (u64, u64)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(host.bpffs().join("v1").join(directory))? {
        let path = entry?.path();
        let text = path.to_string_lossy().into_owned();
        let shown: Value = host.exec(&["bpftool", "--json", what, "show", "pinned", &text])?.json()?;
        let id = shown["id"].as_u64().with_context(|| format!("no id: {shown}"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(name, (id, shown["prog_id"].as_u64().unwrap_or_default()));
    }
    Ok(found)
}

fn calls(mut process: Proc) -> Result<Vec<Calls>> {
    ensure!(process.wait(Duration::from_secs(30))?.is_some(), "still calling");
    serde_json::from_str(&process.stdout()).with_context(|| process.stderr())
}

#[test]
fn ten_thousand_live_connections_do_not_notice_an_upgrade() -> Result<()> {
    let pair = Pair::new("upgrade")?;
    let _server = pair.server.serve(&["--quiet", "--listen", "[::]:8020", "--listen", "[::]:8021"])?;
    let forbidden = pair.server.serve(&["--listen", "[::]:9100"])?;
    pair.introduce(8020)?;
    // Each of them has its first contact while an agent is being replaced.
    let newcomers: Vec<_> = (0..24)
        .map(|number| {
            let name = format!("new{number}");
            pair.a.workload_by_cgroup(&name, &["app=client", &format!("number={number}")])
        })
        .collect::<Result<_>>()?;
    let [v4, _] = pair.addresses(8020);
    let mut live = transfer(&pair, LIVE)?;
    let flows = |host: &Host| -> Result<i64> { Ok(host.counters()?.flows()) };
    ensure!(flows(&pair.a)? == LIVE as i64 && flows(&pair.b)? == LIVE as i64);

    let hosts = [&pair.a, &pair.b];
    let before = hosts.map(Host::counters);
    let [allowed, denied] = [8021, 9100].map(|port| {
        let [v4, v6] = pair.addresses(port);
        pair.client.spawn_tool(&["calls", &v4, &v6, "--seconds", "8", "--timeout", "5000"])
    });
    let (allowed, denied) = (allowed?, denied?);
    let connect = || -> Result<Vec<_>> {
        newcomers
            .iter()
            .map(|newcomer| {
                let attempt = newcomer.connect(&v4, &["--payload", "ping", "--timeout", "5000"])?;
                std::thread::sleep(Duration::from_millis(60));
                Ok(attempt)
            })
            .collect()
    };
    let (upgraded, contacts) = std::thread::scope(|scope| {
        let contacts = scope.spawn(connect);
        let upgraded: Vec<Result<()>> = hosts.iter().map(|host| upgrade(host)).collect();
        (upgraded, contacts.join())
    });
    upgraded.into_iter().collect::<Result<()>>()?;
    let contacts = contacts.map_err(|_| anyhow::anyhow!("the newcomers panicked"))??;
    for contact in &contacts {
        assert_eq!((contact.outcome, contact.reply.as_str()), (Outcome::Ok, "ping"), "a first contact: {contact:?}");
    }
    let (allowed, denied) = (calls(allowed)?, calls(denied)?);
    assert!(allowed.iter().all(|calls| calls.outcome == Outcome::Ok && calls.count > 10), "{allowed:?}");
    assert!(denied.iter().all(|calls| calls.outcome == Outcome::Refused && calls.count > 10), "{denied:?}");
    assert_eq!((allowed.len(), denied.len()), (2, 2), "{allowed:?} {denied:?}");

    // Nothing missing, nothing of another connection, none lost.
    let told = stopped(&mut live)?;
    assert_eq!((told.open, told.lost, told.wrong), (LIVE, 0, 0), "{told:?}");
    assert_eq!(told.sent, told.echoed, "{told:?}");
    assert!(told.least > 0, "{told:?}");
    // Every refusal is one of the denied pair's, counted once, where it was made.
    let [a, b] = before;
    let (a, b) = (&pair.a.counters()? - &a?, &pair.b.counters()? - &b?);
    let refused: u64 = denied.iter().map(|calls| calls.count).sum();
    // The server's end judges, and the client's is told.
    let made: u64 = allowed.iter().map(|calls| calls.count).sum::<u64>() + refused;
    for (counts, received) in [(&b, counts_in(&b)), (&a, counts_in(&a))] {
        assert_eq!(counts.verdicts_in("no_rule"), refused as i64, "{:?}", counts.refusals());
        assert!(received <= made as i64 / 200, "{received} of {made}: {:?}", counts.refusals());
    }
    assert_eq!(forbidden.accepted()?, 0);
    pair.settled_within(Duration::from_secs(20))
}

/// Refusals that say nothing of a verdict: a segment that TCP sent twice and that comes after its connection has ended, and two RESUMEs
/// with one MAC by chance, of which the second begins anew. Any other reason fails here.
fn counts_in(counts: &Counters) -> i64 {
    let beside = ["no_flow", "unconfirmed", "resume_replayed"].map(|reason| counts.verdicts_in(reason));
    let all: i64 = counts.refusals().values().sum();
    assert_eq!(all, beside.iter().sum::<i64>() + counts.verdicts_in("no_rule"), "{:?}", counts.refusals());
    beside.iter().sum()
}

/// Upgrades a host's enforcer to a copy of itself: other process, other programs, the same links and maps.
fn upgrade(host: &Host) -> Result<()> {
    let new = copy_of_enforcer(host, "enforcer-new")?;
    let former = host.agent_pid()?;
    let (maps, links) = (pinned(host, "map", "maps")?, pinned(host, "link", "links")?);
    let output = host.upgrade_enforcer(&new, &[])?;
    output.ok().with_context(|| host.enforcer_log())?;
    ensure!(output.stdout.contains("16 programs load") || output.stdout.contains("programs load"), "{}", output.stdout);
    let pid = host.agent_pid()?;
    ensure!(pid != former && runs(pid, &new)?, "{}", output.stdout);
    ensure!(pinned(host, "map", "maps")? == maps, "other maps");
    let now = pinned(host, "link", "links")?;
    ensure!(now.len() == links.len(), "{now:?} {links:?}");
    for (name, (link, program)) in &links {
        let (same_link, other_program) = now.get(name).with_context(|| format!("no {name}"))?;
        ensure!(other_program != program, "{name} runs the former program");
        // A tracepoint's link takes no other program.
        let replaced = name.starts_with("process_") || name == "cgroup_mkdir";
        ensure!(replaced || same_link == link, "{name} was attached anew");
    }
    ensure!(pinned(host, "prog", "progs")?.keys().all(|name| !name.ends_with("_former") && !name.ends_with("_next")));
    Ok(())
}
