//! Two enforced hosts with a man in the middle, and how an attack is judged: by the client's errno, by every counter of
//! both ends, by their records, and by what the listener saw.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::abi::{PIN_DIR, reason_stat};
use common::drop_reason::{ALL, Reason};
use common::wire::{OPTION_LEN, OptionBytes};
use enforcer_user::map_write::Maps;
use serde::Deserialize;
use tests::segment::{RST, option_from};
use tests::{Attempt, Fate, Host, Lab, Mitm, Outcome, Place, Segment, Server, Way, Workload};

/// Where the server listens.
pub const PORT: u16 = 8020;
/// What clients send.
pub const PAYLOAD: &str = "ping";
/// How long a client waits for the connection, and again for the answer, milliseconds.
const PATIENCE: &str = "2000";
/// The same where nothing will come: less than TCP waits before it repeats a SYN.
const LITTLE_PATIENCE: &str = "300";

/// One end of the attempts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum End {
    Client,
    Server,
}

/// So often an end counts a reason; `inbound` is toward its PU.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    pub end: End,
    pub reason: Reason,
    pub inbound: bool,
    pub times: u64,
}

/// The client's enforcer refuses, once, something on its way to the client.
pub const fn client(reason: Reason) -> Count {
    Count { end: End::Client, reason, inbound: true, times: 1 }
}

/// The server's enforcer refuses, once, something on its way to the server.
pub const fn server(reason: Reason) -> Count {
    Count { end: End::Server, reason, inbound: true, times: 1 }
}

/// The client's enforcer refuses, once, something its PU sends.
pub const fn outbound(reason: Reason) -> Count {
    Count { end: End::Client, reason, inbound: false, times: 1 }
}

impl Count {
    pub const fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }
}

type Refusals = BTreeMap<(End, &'static str, bool), u64>;

/// The hosts, the man in the middle, a client and a server that may talk.
pub struct Stage {
    pub mitm: Mitm,
    pub server: Server,
    pub client: Workload,
    pub a: Host,
    pub b: Host,
    pub at_a: Maps,
    pub at_b: Maps,
    /// Where the server is, in the family of this stage.
    pub to: SocketAddr,
    /// What was expected to be recorded: end, reason, the client's address.
    recorded: Mutex<Vec<(End, Reason, String)>>,
    _server: Workload,
    pub lab: Lab,
}

/// Runs `test` on a stage of its own for each family, both at once: most of the time goes by in waiting.
pub fn for_both_families(name: &str, test: impl Fn(&Stage) -> Result<()> + Sync) -> Result<()> {
    let run = |family: usize| {
        let stage = Stage::set(&format!("{name}{}", [4, 6][family]), family)?;
        test(&stage).and_then(|()| stage.all_was_recorded()).with_context(|| {
            let log = |host: &Host| host.enforcer_log();
            format!("to {}\nclient's enforcer: {}\nserver's enforcer: {}", stage.to, log(&stage.a), log(&stage.b))
        })
    };
    std::thread::scope(|scope| {
        let six = scope.spawn(|| run(1));
        let four = run(0);
        let six = six.join().map_err(|_| anyhow::anyhow!("the IPv6 half panicked"))?;
        four.and(six)
    })
}

impl Stage {
    fn set(name: &str, family: usize) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        // Each attempt is one SYN and one SYN-ACK, so that counters can be told exactly.
        b.sysctl("net/ipv4/tcp_synack_retries", "0")?;
        lab.write_policy("rules.yaml", "name: attack\nrules:\n  - in: allow app=client -> app=server tcp/8020\n")?;
        let mitm = a.man_in_the_middle()?;
        a.start_enforcer("")?;
        b.start_enforcer("")?;
        let maps = |host: &Host| Maps::open(&host.bpffs().join(PIN_DIR).join("maps"));
        let (at_a, at_b) = (maps(&a)?, maps(&b)?);
        let client = a.workload("client", &["app=client"])?;
        let workload = b.workload("server", &["app=server"])?;
        let server = workload.serve(&["--listen", &format!("[::]:{PORT}")])?;
        let to = SocketAddr::new(b.ips()[family], PORT);
        Ok(Self { mitm, server, client, a, b, at_a, at_b, to, recorded: Mutex::default(), _server: workload, lab })
    }

    /// A host without enforcer on the same network.
    pub fn plain_host(&self, name: &str) -> Result<Host> {
        self.lab.host(name)
    }

    /// An address of that host, in the family of this stage.
    pub fn from(&self, host: &Host, port: u16) -> SocketAddr {
        SocketAddr::new(host.ips()[usize::from(self.to.is_ipv6())], port)
    }

    /// The client's address in the family of this stage.
    pub fn client_ip(&self) -> IpAddr {
        self.a.ips()[usize::from(self.to.is_ipv6())]
    }

    /// Makes the client's host forget whom it met: its next connection is a first contact.
    pub fn forget(&self) -> Result<()> {
        self.at_a.peer_addrs.retain(|_, _| false)?;
        Ok(())
    }

    /// A connection nobody attacks, which must work; its segments as the man in the middle saw them.
    pub fn good(&self, what: &str) -> Result<Vec<tests::Sighting>> {
        let accepted = self.server.accepted()?;
        self.mitm.play(one_connection(|_, _| Fate::Forward));
        let attempt = self.connect(PATIENCE)?;
        ensure!(attempt.outcome == Outcome::Ok && attempt.reply == PAYLOAD, "{what}: {attempt:?}");
        eventually(&format!("{what}: the listener's log"), || Ok(self.server.accepted()? == accepted + 1))?;
        // Its end belongs to it, not to what comes next.
        eventually(&format!("{what}: the end"), || {
            Ok(self.server.events()?.iter().any(|event| event.event == "close" && event.peer == attempt.local))
        })?;
        Ok(self.mitm.seen())
    }

    /// An attack on one connection of the client, by a script that sees nothing else. The attempt must end as
    /// `outcome`, both ends must count exactly `counts` and nothing else, and the listener must notice nothing.
    pub fn attack(
        &self,
        what: &str,
        script: impl FnMut(Way, &mut Segment) -> Fate + Send + 'static,
        outcome: Outcome,
        counts: &[Count],
    ) -> Result<()> {
        self.attack_counting(what, script, outcome, |_| counts.to_vec())
    }

    /// As [`Self::attack`], where the number of refusals depends on how many segments the client managed to send.
    pub fn attack_counting(
        &self,
        what: &str,
        script: impl FnMut(Way, &mut Segment) -> Fate + Send + 'static,
        outcome: Outcome,
        counts: impl FnOnce(&[tests::Sighting]) -> Vec<Count>,
    ) -> Result<()> {
        let (before, heard) = (self.refusals()?, self.heard()?);
        self.mitm.play(one_connection(script));
        let patience = if outcome == Outcome::Timeout { LITTLE_PATIENCE } else { PATIENCE };
        let attempt = self.connect(patience)?;
        // The client knows of a refusal before the DENY to the server has passed.
        self.mitm.play_on(|_, segment| if segment.flags() & RST == 0 { Fate::Drop } else { Fate::Forward });
        ensure!(attempt.outcome == outcome, "{what}: {outcome:?} expected, not {attempt:?}");
        let counts = counts(&self.mitm.seen());
        self.settle(what, &before, &counts)?;
        ensure!(self.heard()? == heard, "{what}: the listener noticed: {:?}", self.server.events()?);
        self.expect_records(&counts, &attempt.local);
        Ok(())
    }

    /// One attempt of the client, who waits so many milliseconds.
    fn connect(&self, patience: &str) -> Result<Attempt> {
        self.client.connect(&self.to.to_string(), &["--payload", PAYLOAD, "--timeout", patience])
    }

    /// As [`Self::attack`], with an attempt that works all the same; what the man in the middle saw.
    pub fn nuisance(
        &self,
        what: &str,
        script: impl FnMut(Way, &mut Segment) -> Fate + Send + 'static,
        counts: &[Count],
    ) -> Result<Vec<tests::Sighting>> {
        let (before, heard) = (self.refusals()?, self.heard()?);
        self.mitm.play(one_connection(script));
        let attempt = self.connect(PATIENCE)?;
        ensure!(attempt.outcome == Outcome::Ok && attempt.reply == PAYLOAD, "{what}: {attempt:?}");
        self.settle(what, &before, counts)?;
        ensure!(self.heard()?.0 == heard.0 + 1, "{what}: {:?}", self.server.events()?);
        Ok(self.mitm.seen())
    }

    /// Waits until the refusals since `before` are exactly `counts`.
    pub fn settle(&self, what: &str, before: &Refusals, counts: &[Count]) -> Result<()> {
        let mut expected = Refusals::new();
        for count in counts.iter().filter(|count| count.times > 0) {
            *expected.entry((count.end, count.reason.name(), count.inbound)).or_default() += count.times;
        }
        let since = || -> Result<Refusals> {
            let mut now = self.refusals()?;
            for (key, value) in &mut now {
                *value -= before.get(key).copied().unwrap_or(0);
            }
            now.retain(|_, value| *value != 0);
            Ok(now)
        };
        let _ = eventually(what, || Ok(since()? == expected));
        // What comes too much comes a little later.
        std::thread::sleep(Duration::from_millis(5));
        let found = since()?;
        ensure!(found == expected, "{what}: both ends should have counted {expected:?}, not {found:?}");
        Ok(())
    }

    /// Everything both ends refused so far.
    pub fn refusals(&self) -> Result<Refusals> {
        let mut all = Refusals::new();
        for (end, maps) in [(End::Client, &self.at_a), (End::Server, &self.at_b)] {
            let counters = maps.stats.reasons()?;
            for reason in ALL.iter().filter(|reason| **reason != Reason::Allowed) {
                for inbound in [false, true] {
                    let value = counters.get(reason_stat(*reason as u16, inbound) as usize).copied();
                    all.insert((end, reason.name(), inbound), value.unwrap_or(0));
                }
            }
        }
        Ok(all)
    }

    /// Connections and bytes that reached the listener.
    pub fn heard(&self) -> Result<(usize, u64)> {
        Ok((self.server.accepted()?, self.server.received()?))
    }

    /// Each of these counts must be found in its end's records, once the test is over.
    pub fn expect_records(&self, counts: &[Count], client: &str) {
        let mut recorded = self.recorded.lock().expect("no test panicked with it");
        // Who is asked to start over is not refused: that is counted, not recorded.
        let refusals = counts.iter().filter(|count| {
            count.times > 0 && ![Reason::UnknownSession, Reason::UnknownHandle].contains(&count.reason)
        });
        recorded.extend(refusals.map(|count| (count.end, count.reason, client.to_owned())));
    }

    fn all_was_recorded(&self) -> Result<()> {
        let expected = self.recorded.lock().expect("no test panicked with it").clone();
        let mut missing = expected.clone();
        let _ = eventually("records", || {
            let records = [(End::Client, self.a.records()?), (End::Server, self.b.records()?)];
            missing.retain(|(end, reason, address)| {
                let of_end = records.iter().filter(|(which, _)| which == end).flat_map(|(_, records)| records);
                !of_end.into_iter().any(|record| {
                    // What a PU forges may be a server's packet: the role is not the end's.
                    let client = if *end == End::Client { &record.local } else { &record.remote };
                    record.verdict == "deny" && record.reason == reason.name() && client == address
                })
            });
            Ok(missing.is_empty())
        });
        ensure!(missing.is_empty(), "of {} refusals these are not recorded: {missing:?}", expected.len());
        Ok(())
    }
}

/// What came back for segments made by hand.
#[derive(Debug, Deserialize)]
pub struct Report {
    pub answers: Vec<Answer>,
}

/// A segment that came back.
#[derive(Debug, Deserialize)]
pub struct Answer {
    pub flags: String,
    pub seq: u32,
    options: String,
}

impl Report {
    /// The flags of each answer.
    pub fn flags(&self) -> Vec<&str> {
        self.answers.iter().map(|answer| answer.flags.as_str()).collect()
    }

    /// The answer, if it is one.
    pub fn only(&self) -> Result<&Answer> {
        ensure!(self.answers.len() == 1, "not one answer but {self:?}");
        Ok(&self.answers[0])
    }
}

impl Answer {
    /// The identity option it ends with.
    pub fn identity(&self) -> Result<OptionBytes> {
        let text = self.options.as_bytes().rchunks(2 * OPTION_LEN).next().unwrap_or_default();
        let digits: Vec<u8> =
            text.iter().filter_map(|digit| char::from(*digit).to_digit(16)).map(|d| d as u8).collect();
        let bytes: Vec<u8> =
            digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
        option_from(&bytes).with_context(|| format!("no identity in {self:?}"))
    }
}

/// Sends a segment made by hand, by `lab-tool raw`.
pub fn raw(place: &Place, to: SocketAddr, from: SocketAddr, args: &[&str]) -> Result<Report> {
    let (to, from) = (to.to_string(), from.to_string());
    place.tool(&[&["raw", "--to", &to, "--from", &from], args].concat())
}

/// As the tools take bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits until `done`, a second at most.
pub fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(1);
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not within a second");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A script for the next connection only: every other segment is dropped unseen by `script`, so that the late remains of
/// an earlier connection disturb nothing.
pub fn one_connection(
    mut script: impl FnMut(Way, &mut Segment) -> Fate + Send + 'static,
) -> impl FnMut(Way, &mut Segment) -> Fate + Send + 'static {
    let mut port = None;
    move |way, segment| {
        let of_client = if way == Way::FromHost { segment.source() } else { segment.destination() }.port();
        if way == Way::FromHost && segment.is_syn() && port.is_none() {
            port = Some(of_client);
        }
        if port == Some(of_client) { script(way, segment) } else { Fate::Drop }
    }
}
