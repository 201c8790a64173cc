//! Upgrades that cannot succeed: the running agent, or the former one with its programs, goes on, and the reason is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, MapData};
use tests::{Host, Lab, Outcome, Output, enforcer_binary};

use crate::stage::{Stage, assert_refused, counted, eventually};
use crate::upgrade::{copy_of_enforcer, pinned, runs};

/// A program that answers `enforcer upgrade --check` well, and then does this.
fn stub(host: &Host, name: &str, run: &str) -> Result<PathBuf> {
    let file = host.directory().join(name);
    fs::write(&file, format!("#!/bin/sh\n[ \"$1\" = upgrade ] && exit 0\n{run}\n"))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    Ok(file)
}

/// A copy of the enforcer in which these bytes are others; how often they were is checked to be not 0.
fn damaged(
    host: &Host,
    name: &str,
    within: impl Fn(&[u8]) -> Option<std::ops::Range<usize>>,
    from: &[u8],
    to: &[u8],
) -> Result<PathBuf> {
    let file = copy_of_enforcer(host, name)?;
    let mut bytes = fs::read(&file)?;
    let range = within(&bytes).context("nothing to damage")?;
    let mut changed = 0;
    let mut at = range.start;
    while let Some(found) = bytes[at..range.end].windows(from.len()).position(|window| window == from) {
        bytes[at + found..at + found + to.len()].copy_from_slice(to);
        at += found + from.len();
        changed += 1;
    }
    ensure!(changed > 0, "{name}: nothing was damaged");
    fs::write(&file, bytes)?;
    Ok(file)
}

/// Where most instructions for the kernel lie in the binary: the largest section of code of an ELF file for the machine BPF (247)
/// within it.
fn kernel_code(bytes: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut starts =
        bytes.windows(20).enumerate().filter(|(_, head)| head.starts_with(b"\x7fELF") && head[18..] == [247, 0]);
    let object = bytes.get(starts.next()?.0..)?;
    let start = bytes.len() - object.len();
    let word = |at: usize| Some(usize::from(u16::from_le_bytes(object.get(at..at + 2)?.try_into().ok()?)));
    let long = |at: usize| usize::try_from(u64::from_le_bytes(object.get(at..at + 8)?.try_into().ok()?)).ok();
    let (table, size, count) = (long(40)?, word(58)?, word(60)?);
    const EXECUTABLE: usize = 4;
    let code = (0..count)
        .map(|section| table + section * size)
        .filter(|header| long(header + 8).is_some_and(|flags| flags & EXECUTABLE != 0));
    let (at, length) =
        code.filter_map(|header| Some((long(header + 24)?, long(header + 32)?))).max_by_key(|code| code.1)?;
    (start + at + length <= bytes.len()).then_some(start + at..start + at + length)
}

/// What must hold of the server's host, whatever the upgrade came to.
struct Upgrade {
    stage: Stage,
    /// The agent at the beginning.
    pid: u32,
}

impl Upgrade {
    fn new(name: &str) -> Result<Self> {
        let stage = Stage::new(name)?;
        let pid = stage.pair.b.agent_pid()?;
        Ok(Self { stage, pid })
    }

    fn host(&self) -> &Host {
        &self.stage.pair.b
    }

    /// The upgrade failed, for this reason; the same process is the agent, and what was in force is.
    fn assert_untouched(&self, output: &Output, code: i32, words: &[&str]) -> Result<()> {
        self.assert_failed(output, code, words)?;
        ensure!(output.stderr.contains("nothing is changed"), "{}", output.stderr);
        ensure!(self.host().agent_pid()? == self.pid, "another agent: {}", output.stderr);
        self.assert_enforcing(words[0])
    }

    fn assert_failed(&self, output: &Output, code: i32, words: &[&str]) -> Result<()> {
        ensure!(output.code() == code, "{}: {}{}", output.code(), output.stdout, output.stderr);
        for word in words {
            ensure!(output.stderr.contains(word), "{word:?} is not in: {}", output.stderr);
        }
        let left: Vec<_> = ["maps", "progs"]
            .iter()
            .map(|directory| Ok(fs::read_dir(self.host().bpffs().join("v1").join(directory))?.collect::<Vec<_>>()))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with("_former") || name.ends_with("_next"))
            .collect();
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    }

    /// Known pairs pass, unknown ones have a first contact, denied ones are denied; each counted once.
    fn assert_enforcing(&self, what: &str) -> Result<()> {
        let name: String = what.bytes().filter(u8::is_ascii_alphabetic).map(char::from).take(20).collect();
        let [newcomer] = self.stage.newcomers([name.as_str()])?;
        let counts = counted(self.host(), || {
            self.stage.assert_known(what)?;
            self.stage.assert_first_contact(&newcomer, Outcome::Ok, what)
        })?;
        assert_refused(&counts, &[("no_rule", 2)]);
        Ok(())
    }
}

#[test]
fn what_cannot_take_over_changes_nothing() -> Result<()> {
    let upgrade = Upgrade::new("refused")?;
    let b = &upgrade.host().clone();
    let new = copy_of_enforcer(b, "enforcer-new")?;
    let programs = pinned(b, "prog", "progs")?;

    // A configuration that the new version refuses.
    let config = fs::read_to_string(b.enforcer_config())?;
    fs::write(b.enforcer_config(), config.replace("agent_timeout", "agent_timeuot"))?;
    let output = b.upgrade_enforcer(&new, &[])?;
    ensure!(output.code() == 4 && output.stderr.contains("agent_timeuot"), "{}", output.stderr);
    fs::write(b.enforcer_config(), &config)?;
    upgrade.assert_enforcing("a refused configuration")?;
    ensure!(b.agent_pid()? == upgrade.pid);

    // A policy that is broken: the running agent has the last good one, but an upgrade should not begin with that.
    upgrade.stage.pair.decree("  - call: allwo app=client\n")?;
    let output = b.upgrade_enforcer(&new, &[])?;
    upgrade.stage.pair.decree("  - call: allow app=client -> app=server tcp/8000-8999\n")?;
    upgrade.assert_failed(&output, 1, &["pair.yaml:3"])?;

    // Programs that the verifier refuses: an instruction that there is not where they return.
    let (exit, unknown) = ([0x95, 0, 0, 0, 0, 0, 0, 0], [0xff, 0, 0, 0, 0, 0, 0, 0]);
    let unverified = damaged(b, "enforcer-unverified", kernel_code, &exit, &unknown)?;
    let output = b.upgrade_enforcer(&unverified, &[])?;
    upgrade.assert_untouched(&output, 1, &["eBPF program", "last insn is not an exit or jmp"])?;

    // A pinned map of another shape, under a name that a new version expects otherwise.
    let (pin, aside) = (b.bpffs().join("v1/maps/EXEC_USERS"), b.bpffs().join("v1/maps/EXEC_USERS_aside"));
    fs::rename(&pin, &aside)?;
    HashMap::<MapData, u32, u64>::create(1024, 1)?.pin(&pin)?;
    let output = b.upgrade_enforcer(&new, &[])?;
    fs::remove_file(&pin)?;
    fs::rename(&aside, &pin)?;
    upgrade.assert_untouched(&output, 1, &["EXEC_USERS is pinned with a value size of 8, this version has 4"])?;

    // A program that ends at once, and one that is never prepared.
    let output = b.upgrade_enforcer(&stub(b, "stub-ends", "exit 3")?, &[])?;
    upgrade.assert_untouched(&output, 1, &["ended before it was ready", "exit status: 3"])?;
    let output = b.upgrade_enforcer(&stub(b, "stub-sleeps", "exec sleep 60")?, &["--timeout", "500ms"])?;
    upgrade.assert_untouched(&output, 1, &["not ready in time"])?;
    ensure!(pinned(b, "prog", "progs")? == programs, "other programs");
    upgrade.stage.assert_all_live()
}

#[test]
fn what_takes_over_and_fails_is_rolled_back() -> Result<()> {
    let upgrade = Upgrade::new("rolledback")?;
    let b = &upgrade.host().clone();
    let former = copy_of_enforcer(b, "enforcer-former")?;
    // What runs is not what lies there any more, as after the installation of a package.
    b.upgrade_enforcer(&former, &[])?.ok()?;
    fs::remove_file(&former)?;
    let first = b.agent_pid()?;
    let links = pinned(b, "link", "links")?;

    // It says it is prepared, the running agent makes way, and nothing comes of it.
    let output =
        b.upgrade_enforcer(&stub(b, "stub-never", "echo prepared >&0\nexec sleep 60")?, &["--timeout", "1s"])?;
    upgrade.assert_failed(&output, 1, &["not ready in time", "the former version runs again"])?;
    let second = b.agent_pid()?;
    ensure!(second != first && !runs(second, &enforcer_binary()?)?, "{}", output.stderr);
    upgrade.assert_enforcing("never ready")?;

    // Its programs are in force already when it finds that it cannot go on: it looks for the TUN device elsewhere.
    let lost = damaged(b, "enforcer-lost", |bytes| Some(0..bytes.len()), b"/dev/net/tun", b"/dev/net/nut")?;
    let output = b.upgrade_enforcer(&lost, &[])?;
    upgrade.assert_failed(&output, 1, &["/dev/net/nut", "the former version runs again"])?;
    let log = b.enforcer_log();
    ensure!(log.contains("the programs of the former agent are in force again"), "{log}");
    let third = b.agent_pid()?;
    ensure!(third != second && !runs(third, &enforcer_binary()?)?, "{}", output.stderr);
    upgrade.assert_enforcing("no device")?;
    let now = pinned(b, "link", "links")?;
    ensure!(now.keys().eq(links.keys()), "{now:?} {links:?}");

    // And an upgrade that can succeed does.
    let new = copy_of_enforcer(b, "enforcer-new")?;
    b.upgrade_enforcer(&new, &[])?.ok()?;
    ensure!(runs(b.agent_pid()?, &new)?);
    upgrade.assert_enforcing("in the end")?;
    upgrade.stage.assert_all_live()
}

#[test]
fn what_is_on_trial_or_a_service_is_not_replaced() -> Result<()> {
    let lab = Lab::new("notnow")?;
    let host = lab.host("a")?;
    host.write_enforcer_config("")?;
    let new = copy_of_enforcer(&host, "enforcer-new")?;
    let assert_refused = |word: &str| -> Result<()> {
        let pid = host.agent_pid()?;
        let output = host.upgrade_enforcer(&new, &[])?;
        ensure!(output.code() == 1 && output.stderr.contains(word), "{}", output.stderr);
        ensure!(output.stderr.contains("nothing is changed"), "{}", output.stderr);
        ensure!(host.agent_pid()? == pid, "another agent");
        Ok(())
    };
    host.run_enforcer(&["--confirm", "60s"])?;
    assert_refused("is on trial")?;
    host.enforcer(&["confirm"])?.ok()?;
    host.stop_enforcer();

    // As a service manager starts it.
    let (binary, config) = (enforcer_binary()?, host.enforcer_config());
    let (binary, config) = (binary.to_string_lossy(), config.to_string_lossy());
    let _agent = host.spawn(&["env", "NOTIFY_SOCKET=@nobody", &*binary, "run", "--config", &*config])?;
    eventually("the agent is ready", Duration::from_secs(30), || Ok(host.enforcer(&["pus"])?.code() == 0))?;
    assert_refused("the agent is a service: after `enforcer upgrade --check`, `systemctl restart enforcer` replaces it")
}
