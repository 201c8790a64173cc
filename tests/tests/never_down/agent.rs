//! The agent is killed, stopped, starved, or cannot start again: what is known goes on, what is new is refused by name.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::{Outcome, Pair, enforcer_binary};

use crate::stage::{Stage, assert_refused, counted, eventually, until_the_kernel_notices};

/// Without an agent at the server's end: closed for what is new, under its own reason, and not for anything else.
fn assert_fails_closed(stage: &Stage, newcomer: &tests::Workload, what: &str) -> Result<()> {
    stage.assert_known(what)?;
    stage.assert_first_contact(newcomer, Outcome::Refused, what)
}

#[test]
fn a_killed_and_a_stopped_agent_fail_closed_for_what_is_new() -> Result<()> {
    let stage = Stage::new("killed")?;
    let [killed, stopped, back] = stage.newcomers(["killed", "stopped", "back"])?;
    let b = &stage.pair.b;

    let counts = counted(b, || {
        b.kill9_enforcer()?;
        until_the_kernel_notices();
        assert_fails_closed(&stage, &killed, "kill -9")?;
        b.restart_enforcer()
    })?;
    assert_refused(&counts, &[("agent_down", 2), ("no_rule", 2)]);
    stage.assert_first_contact(&killed, Outcome::Ok, "started again")?;
    // Known is who has met the other end since its keys changed: a restarted agent has new ones.
    stage.assert_known("started again")?;

    // Stopped for longer than anybody waits; a minute is no other than three seconds.
    let counts = counted(b, || {
        b.signal_enforcer(Signal::SIGSTOP)?;
        std::thread::sleep(Duration::from_secs(3));
        let held = assert_fails_closed(&stage, &stopped, "SIGSTOP");
        b.signal_enforcer(Signal::SIGCONT)?;
        held
    })?;
    assert_refused(&counts, &[("agent_down", 2), ("no_rule", 2)]);
    eventually("the agent says that it lives", Duration::from_secs(5), || {
        Ok(stage.assert_first_contact(&stopped, Outcome::Ok, "SIGCONT").is_ok())
    })?;
    stage.assert_first_contact(&back, Outcome::Ok, "SIGCONT")?;
    stage.assert_all_live()
}

/// A memory cgroup of one process, in whichever hierarchy the controller is.
struct Memory(PathBuf);

impl Memory {
    fn new(name: &str, pid: u32, bytes: u64) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let v1 = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find_map(|fields| match fields[..] {
            [_, mount, "cgroup", options, ..] if options.split(',').any(|option| option == "memory") => Some(mount),
            _ => None,
        });
        let v1 = v1.map(PathBuf::from);
        let (root, limit) = match &v1 {
            Some(mount) => (mount.clone(), "memory.limit_in_bytes"),
            None => (tests::cgroup2_mount()?, "memory.max"),
        };
        if v1.is_none() {
            fs::write(root.join("cgroup.subtree_control"), "+memory").context("the memory controller")?;
        }
        let memory = Self(root.join(format!("enf-memory-{name}-{}", std::process::id())));
        fs::create_dir(&memory.0)?;
        fs::write(memory.0.join(limit), bytes.to_string())?;
        fs::write(memory.0.join("cgroup.procs"), pid.to_string())?;
        Ok(memory)
    }

    /// How many processes were killed because there was no room.
    fn kills(&self) -> u64 {
        let read = |file: &str| fs::read_to_string(self.0.join(file)).unwrap_or_default();
        let text = read("memory.oom_control") + &read("memory.events");
        text.lines().filter_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok()).sum()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

#[test]
fn an_agent_that_gets_no_memory_is_killed_and_the_next_one_takes_over() -> Result<()> {
    let stage = Stage::new("oom")?;
    let [newcomer] = stage.newcomers(["newcomer"])?;
    let b = &stage.pair.b;
    let memory = Memory::new(stage.pair.lab.run(), b.agent_pid()?, 2 << 20)?;
    let counts = counted(b, || {
        // A policy is read: that takes more than it gets.
        let rules: String =
            (0..20_000).map(|number| format!("  - r{number}: allow app=x{number} -> app=y tcp/1\n")).collect();
        stage.pair.lab.write_policy("large.yaml", &format!("name: large\nrules:\n{rules}"))?;
        let ended = b.wait_for_enforcer(Duration::from_secs(20));
        fs::remove_file(stage.pair.lab.directory().join("policy/large.yaml"))?;
        ensure!(ended?.signal() == Some(libc::SIGKILL), "it was not killed");
        ensure!(memory.kills() == 1, "killed {} times", memory.kills());
        until_the_kernel_notices();
        assert_fails_closed(&stage, &newcomer, "out of memory")?;
        b.restart_enforcer()
    })?;
    assert_refused(&counts, &[("agent_down", 2), ("no_rule", 2)]);
    stage.assert_first_contact(&newcomer, Outcome::Ok, "started again")?;
    stage.assert_all_live()
}

#[test]
fn a_configuration_that_cannot_be_read_keeps_what_is_in_force() -> Result<()> {
    let stage = Stage::new("unreadable")?;
    let [newcomer] = stage.newcomers(["newcomer"])?;
    let b = &stage.pair.b;
    let (config, aside) = (b.enforcer_config(), b.directory().join("aside.toml"));
    let (binary, file) = (enforcer_binary()?.to_string_lossy().into_owned(), config.to_string_lossy().into_owned());
    let starts = |words: &str| -> Result<()> {
        let output = b.exec_within(&[&binary, "run", "--config", &file], Duration::from_secs(30))?;
        ensure!(output.code() == 4 && output.stderr.contains(words), "{}: {}", output.code(), output.stderr);
        Ok(())
    };
    let counts = counted(b, || {
        b.stop_enforcer();
        fs::rename(&config, &aside)?;
        starts("no such file")?;
        fs::create_dir(&config)?;
        starts("is a directory")?;
        fs::remove_dir(&config)?;
        let text = fs::read_to_string(&aside)?;
        // In the middle of a table's name: elsewhere what is left might be a configuration.
        fs::write(&config, &text[..text.find("[datapath").context("no table")? + 5])?;
        starts("unclosed table")?;
        fs::write(&config, [text.as_bytes(), b"\xff\xfe"].concat())?;
        starts("utf-8")?;
        until_the_kernel_notices();
        assert_fails_closed(&stage, &newcomer, "no configuration")?;
        fs::rename(&aside, &config)?;
        b.restart_enforcer()
    })?;
    assert_refused(&counts, &[("agent_down", 2), ("no_rule", 2)]);
    stage.assert_first_contact(&newcomer, Outcome::Ok, "mended")?;
    stage.assert_all_live()
}

/// A file system with room for so little.
struct Disk(PathBuf);

impl Disk {
    fn new(place: &Path) -> Result<Self> {
        fs::create_dir(place)?;
        let flags = nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOSUID;
        nix::mount::mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("size=128k"))?;
        Ok(Self(place.to_owned()))
    }

    fn fill(&self) -> Result<()> {
        let full = fs::write(self.0.join("filler"), vec![0; 1 << 20]).expect_err("there is room");
        ensure!(full.raw_os_error() == Some(libc::ENOSPC), "{full}");
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_loses_records_and_nothing_else() -> Result<()> {
    let pair = Pair::new("fulldisk")?;
    let disk = Disk::new(&pair.b.directory().join("disk"))?;
    let (records, state) = (disk.0.join("flows.jsonl"), disk.0.join("observe.json"));
    pair.b
        .start_enforcer(&format!("records.file = {records:?}\nrecords.interval = \"0s\"\nobserve.state = {state:?}"))?;
    let stage = Stage::on(pair)?;
    let [newcomer, later] = stage.newcomers(["newcomer", "later"])?;
    let b = &stage.pair.b;
    eventually("records", Duration::from_secs(5), || Ok(fs::metadata(&records).is_ok_and(|file| file.len() > 0)))?;
    disk.fill()?;
    let lost = "enforcer_records_dropped_total{cause=\"write\"}";
    let counts = counted(b, || {
        stage.assert_known("a full disk")?;
        stage.assert_first_contact(&newcomer, Outcome::Ok, "a full disk")?;
        eventually("lost records are counted", Duration::from_secs(5), || Ok(b.counters()?.get(lost) > 0))?;
        // What cannot be kept is not done by halves.
        let refused = b.enforcer(&["observe", "on"])?;
        ensure!(refused.code() == 1 && refused.stderr.to_lowercase().contains("no space"), "{}", refused.stderr);
        ensure!(b.counters()?.get("enforcer_observe_mode{namespace=\"/\"}") == 0);
        stage.assert_known("after the refused switch")
    })?;
    assert!(counts.get(lost) > 0);
    assert_refused(&counts, &[("no_rule", 4)]);
    assert!(b.enforcer_log().contains("flow records are lost until this is mended"), "{}", b.enforcer_log());
    // A full disk is no obstacle to a start.
    b.restart_enforcer()?;
    stage.assert_known("started on a full disk")?;
    disk.clear()?;
    let before = b.counters()?.get(lost);
    stage.assert_first_contact(&later, Outcome::Ok, "room again")?;
    let written = "enforcer_records_written_total";
    eventually("records are written again", Duration::from_secs(5), || Ok(b.counters()?.get(written) > 0))?;
    assert!(b.counters()?.get(lost) <= before + 8, "only what was under way is lost");
    b.stop_enforcer();
    stage.assert_all_live()
}
