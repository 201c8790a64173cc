//! What most of these tests stand on: a client and a server that transfer, and what must hold whatever happens.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::{Counters, Host, Outcome, Pair, Proc, Server, Transferred, Workload};

/// Live connections of a [`Stage`], half IPv4, half IPv6.
pub const LIVE: u64 = 40;

pub struct Stage {
    pub pair: Pair,
    pub live: Proc,
    _server: Server,
}

impl Stage {
    pub fn new(name: &str) -> Result<Self> {
        Self::on(Pair::new(name)?)
    }

    /// On these hosts: the server listens, both ends have met, and [`LIVE`] connections transfer.
    pub fn on(pair: Pair) -> Result<Self> {
        let server = pair.server.serve(&["--listen", "[::]:8020", "--listen", "[::]:9100"])?;
        pair.introduce(8020)?;
        let live = transfer(&pair, LIVE)?;
        Ok(Self { pair, live, _server: server })
    }

    /// PUs of the client's host that the server's host has never met.
    pub fn newcomers<const N: usize>(&self, names: [&str; N]) -> Result<[Workload; N]> {
        let make = |name: &str| self.pair.a.workload_by_cgroup(name, &["app=client", &format!("new={name}")]);
        let made: Vec<_> = names.iter().map(|name| make(name)).collect::<Result<_>>()?;
        made.try_into().map_err(|_| anyhow::anyhow!("as many as names"))
    }

    /// Known pairs pass, and what is denied is denied.
    pub fn assert_known(&self, what: &str) -> Result<()> {
        for to in self.pair.addresses(8020) {
            assert_outcome(&self.pair.client, &to, Outcome::Ok, what)?;
        }
        for to in self.pair.addresses(9100) {
            assert_outcome(&self.pair.client, &to, Outcome::Refused, what)?;
        }
        Ok(())
    }

    /// A PU that was never met: over both families, with this end.
    pub fn assert_first_contact(&self, newcomer: &Workload, expected: Outcome, what: &str) -> Result<()> {
        for to in self.pair.addresses(8020) {
            assert_outcome(newcomer, &to, expected, what)?;
        }
        Ok(())
    }

    /// No connection was lost, and no byte.
    pub fn assert_all_live(mut self) -> Result<()> {
        let told = stopped(&mut self.live)?;
        ensure!((told.open, told.lost, told.wrong) == (LIVE, 0, 0), "{told:?}");
        ensure!(told.sent == told.echoed && told.least > 0, "{told:?}");
        Ok(())
    }
}

/// Connections from the client to the server that transfer.
pub fn transfer(pair: &Pair, count: u64) -> Result<Proc> {
    let [v4, v6] = pair.addresses(8020);
    let mut live =
        pair.client.spawn_tool(&["transfer", &v4, &v6, "--count", &(count / 2).to_string(), "--timeout", "20000"])?;
    let ready = live.wait_for_line("READY", Duration::from_secs(40))?;
    ensure!(ready == format!(r#"READY {{"open":{count},"failed":0}}"#), "{ready}");
    Ok(live)
}

/// What a `lab-tool transfer` says when it is told to stop.
pub fn stopped(process: &mut Proc) -> Result<Transferred> {
    process.signal(Signal::SIGTERM)?;
    let line = process.wait_for_line("DONE ", Duration::from_secs(30))?;
    serde_json::from_str(&line["DONE ".len()..]).context(line)
}

pub fn assert_outcome(from: &tests::Place, to: &str, expected: Outcome, what: &str) -> Result<()> {
    let attempt = from.connect(to, &["--payload", "ping", "--timeout", "5000"])?;
    ensure!(attempt.outcome == expected, "{what}: {attempt:?}, not {expected:?}");
    Ok(())
}

/// What a host counts while something is done.
pub fn counted(host: &Host, work: impl FnOnce() -> Result<()>) -> Result<Counters> {
    let before = host.counters()?;
    work()?;
    Ok(&host.counters()? - &before)
}

/// What was refused on the way in, by reason, and nothing else.
pub fn assert_refused(counts: &Counters, expected: &[(&str, i64)]) {
    let expected: std::collections::BTreeMap<String, i64> = expected
        .iter()
        .filter(|(_, count)| *count != 0)
        .map(|(reason, count)| (format!("{{reason=\"{reason}\",direction=\"in\"}}"), *count))
        .collect();
    let seen: std::collections::BTreeMap<String, i64> =
        counts.refusals().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    assert_eq!(seen, expected);
}

/// Waits for something that takes a moment.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds()? {
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A second and a half is longer than the kernel waits for a sign of life.
pub fn until_the_kernel_notices() {
    std::thread::sleep(tests::AGENT_TIMEOUT + Duration::from_millis(300));
}
