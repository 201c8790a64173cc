//! Connections and streams, arm against arm.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::{Host, Outcome};

use super::arms::{Arm, Guard, Sizes};
use super::pairs::{Plan, interleave, load, shares};
use super::rows::Rows;
use super::{Tools, inside, profile};
use crate::step;

const OF_BARE: &str = "of bare";

/// Rows of loads, their kinds and arguments.
const LOADS: [(&str, &str, &[&str]); 5] = [
    ("crr_resume", "crr", &[]),
    ("rr", "rr", &[]),
    ("rr_udp", "rr", &["--datagrams"]),
    ("stream_1", "stream", &[]),
    ("stream_4", "stream", &["--parallel", "4"]),
];

/// The enforcer against nothing: connections, requests, streams, what a contact adds, and the programs' own time.
///
/// # Errors
/// An arm cannot be made, or a measurement fails.
pub fn enforced(plan: &Plan, tools: &Tools, rows: &mut Rows) -> Result<()> {
    step::say("a bare pair of hosts, and an enforced one");
    let bare = Arm::new("bare", Guard::None)?;
    let enforced = Arm::new("enforced", Guard::Enforcer(10))?;
    let arms = [&bare, &enforced];

    let crr = load(plan, &arms, "crr", &[])?;
    rows.add("crr_bare_per_s", "1/s", &crr.iter().map(|loads| loads[0].rate).collect::<Vec<_>>());
    rows.add("crr_resume", OF_BARE, &shares(&crr, 1));
    let added = crr.iter().map(|loads| loads[1].median_micros - loads[0].median_micros).collect::<Vec<_>>();
    rows.add("resume_added_us", "µs", &added);
    for (name, kind, args) in &LOADS[1..] {
        rows.add(name, OF_BARE, &shares(&load(plan, &arms, kind, args)?, 1));
    }
    let ends = [("first_contact_client_us", &enforced.a), ("first_contact_server_us", &enforced.b)];
    let before = ends.map(|(_, host)| decided(host));
    rows.add("first_contact_added_us", "µs", &first_contacts(plan, &bare, &enforced)?);
    for ((name, host), before) in ends.into_iter().zip(before) {
        let (before, after) = (before?, decided(host)?);
        rows.add(name, "µs", &[1e6 * (after.0 - before.0) / (after.1 - before.1)]);
    }
    for (name, forget) in [("contacts_per_core", &[][..]), ("contacts_per_core_checked", &["--keep-checked"])] {
        rows.add(name, "1/s", &contacts_per_core(plan, &enforced, forget)?);
    }
    inside::programs(plan, tools, &enforced, rows)?;
    profile::show(&enforced)
}

/// This build against another: what the datapath's own figures are of the other's, both as loaded programs in one run.
///
/// # Errors
/// As of [`enforced`].
pub fn against(plan: &Plan, other: &Path, rows: &mut Rows) -> Result<()> {
    step::say(format!("this enforcer against {}", other.display()));
    let theirs = Arm::new("other", Guard::OtherEnforcer(10, other))?;
    let ours = Arm::new("enforced", Guard::Enforcer(10))?;
    // There was a time without identity in datagrams.
    for (name, kind, args) in LOADS.into_iter().filter(|(name, ..)| *name != "rr_udp") {
        let rounds = load(plan, &[&theirs, &ours], kind, args)?;
        rows.add(&format!("{name}_of_other"), "of the other's", &shares(&rounds, 1));
    }
    for arm in [&theirs, &ours] {
        step::say(format!("the programs of the arm {}", arm.name()));
        profile::show(arm)?;
    }
    Ok(())
}

/// Microseconds that a connection takes longer if neither end knows the other: for each round, the median enforced minus the
/// median bare. Every connection is a process's only one.
fn first_contacts(plan: &Plan, bare: &Arm, enforced: &Arm) -> Result<Vec<f64>> {
    let rounds = interleave(plan.rounds, &[bare, enforced], |arm| {
        let mut micros = Vec::new();
        for _ in 0..plan.contacts {
            if arm.name() == enforced.name() {
                forget(&arm.a, &[])?;
                forget(&arm.b, &[])?;
            }
            let attempt = arm.connect()?;
            ensure!(attempt.outcome == Outcome::Ok, "{attempt:?}");
            micros.push(attempt.micros);
        }
        micros.sort_unstable();
        Ok(micros[micros.len() / 2] as f64)
    })?;
    Ok(rounds.iter().map(|micros| micros[1] - micros[0]).collect())
}

/// Seconds that an agent has spent on first contacts, from the frame's capture to its return, and their number.
fn decided(host: &Host) -> Result<(f64, f64)> {
    let page = host.connect("127.0.0.1:9464", &["--http", "/metrics", "--timeout", "5000"])?.reply;
    let read = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).with_context(|| format!("{} shows no {name}", host.name()))
    };
    Ok((read("enforcer_first_contact_seconds_sum")?, read("enforcer_first_contact_seconds_count")?))
}

/// First contacts a second that the busier of both agents could take part in if it had one processor for it, from the processor time
/// they took; one value a round.
fn contacts_per_core(plan: &Plan, arm: &Arm, how: &[&str]) -> Result<Vec<f64>> {
    let ends = [&arm.a, &arm.b];
    let one_round = |_| {
        let mut nanoseconds = [0; 2];
        for _ in 0..plan.contacts {
            for host in ends {
                forget(host, how)?;
            }
            let before = [processor_time(ends[0])?, processor_time(ends[1])?];
            let attempt = arm.connect()?;
            ensure!(attempt.outcome == Outcome::Ok, "{attempt:?}");
            for ((sum, host), before) in nanoseconds.iter_mut().zip(ends).zip(before) {
                *sum += processor_time(host)? - before;
            }
        }
        let busier = nanoseconds.into_iter().max().unwrap_or_default();
        Ok(1e9 * plan.contacts as f64 / busier.max(1) as f64)
    };
    (0..plan.rounds).map(one_round).collect()
}

/// Nanoseconds on a processor of all threads of a host's agent: the first number of proc(5)'s `schedstat`.
fn processor_time(host: &Host) -> Result<u64> {
    let tasks = format!("/proc/{}/task", host.enforcer_pid().context("no agent")?);
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
        let path = task?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let first = text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
        sum += first.with_context(|| format!("{} says {text:?}", path.display()))?;
    }
    Ok(sum)
}

/// Makes a host's enforcer forget its sessions, and every credential it has checked unless `how` says otherwise.
fn forget(host: &Host, how: &[&str]) -> Result<()> {
    host.enforcer(&[&["peers", "--forget"], how].concat())?.ok().map(drop)
}

/// The same connections under few and many rules.
///
/// # Errors
/// An arm cannot be made, or a measurement fails.
pub fn rules(plan: &Plan, sizes: &Sizes, rows: &mut Rows) -> Result<()> {
    step::say(format!("enforced pairs of hosts with {:?} rules", sizes.rules));
    let [few, more, many] = sizes.rules.map(Guard::Enforcer);
    let arms = [
        Arm::new("bare", Guard::None)?,
        Arm::new("few rules", few)?,
        Arm::new("more rules", more)?,
        Arm::new("many rules", many)?,
    ];
    let rounds = load(plan, &arms.each_ref(), "crr", &[])?;
    let all = [1, 2, 3].map(|arm| shares(&rounds, arm));
    for (name, shares) in ["crr_rules_10", "crr_rules_1000", "crr_rules_100000"].into_iter().zip(&all) {
        rows.add(name, OF_BARE, shares);
    }
    for (name, shares) in [("crr_rules_1000_of_10", &all[1]), ("crr_rules_100000_of_10", &all[2])] {
        let shares: Vec<f64> = shares.iter().zip(&all[0]).map(|(share, few)| share / few).collect();
        rows.add(name, "of 10 rules", &shares);
    }
    Ok(())
}

/// What others do: nftables with as many rules, and a verdict in userspace on every SYN.
///
/// # Errors
/// An arm cannot be made, or a measurement fails.
pub fn others(plan: &Plan, sizes: &Sizes, rows: &mut Rows) -> Result<()> {
    step::say(format!("pairs of hosts with nftables ({:?} rules) and with NFQUEUE", sizes.linear));
    let bare = Arm::new("bare", Guard::None)?;
    let [few, more, many] = sizes.linear;
    let nft = Arm::new("nftables", Guard::Nftables(few))?;
    let more = Arm::new("nftables, more rules", Guard::Nftables(more))?;
    let many = Arm::new("nftables, many rules", Guard::Nftables(many))?;
    let queue = Arm::new("nfqueue", Guard::Nfqueue)?;

    let rounds = load(plan, &[&bare, &nft, &more, &many, &queue], "crr", &[])?;
    let names = ["crr_nftables_1", "crr_nftables_1000", "crr_nftables_10000", "crr_nfqueue"];
    for (name, arm) in names.into_iter().zip(1..) {
        rows.add(name, OF_BARE, &shares(&rounds, arm));
    }
    for (name, kind) in [("rr_nftables_1", "rr"), ("stream_1_nftables_1", "stream")] {
        rows.add(name, OF_BARE, &shares(&load(plan, &[&bare, &nft], kind, &[])?, 1));
    }
    Ok(())
}

/// Overlays that prove identity by encrypting everything.
///
/// # Errors
/// An arm cannot be made, or a measurement fails.
pub fn tunnels(plan: &Plan, rows: &mut Rows) -> Result<()> {
    step::say("pairs of hosts joined by Nebula and by wireguard-go");
    let bare = Arm::new("bare", Guard::None)?;
    let nebula = Arm::new("nebula", Guard::Nebula)?;
    let wireguard = Arm::new("wireguard-go", Guard::Wireguard)?;
    for kind in ["crr", "rr", "stream"] {
        let rounds = load(plan, &[&bare, &nebula, &wireguard], kind, &[])?;
        let row = if kind == "stream" { "stream_1" } else { kind };
        rows.add(&format!("{row}_nebula"), OF_BARE, &shares(&rounds, 1));
        rows.add(&format!("{row}_wireguard_go"), OF_BARE, &shares(&rounds, 2));
    }
    Ok(())
}
