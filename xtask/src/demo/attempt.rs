//! Makes attempts with real programs, and asks both ends' enforcers what they made of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::{Attempt, Outcome, Output, Record, Workload};

use super::cast::{Cast, page};
use super::script::{Expected, Path, Scene, Try};
use crate::step;

/// A refusal that takes longer is not "at once".
const AT_ONCE: Duration = Duration::from_millis(500);
/// The exit code of timeout(1) when time was up.
const TIMED_OUT: i32 = 124;
/// Verdicts reach the enforcers' records this soon, or not at all.
const RECORDS_WITHIN: Duration = Duration::from_millis(1500);

/// One attempt, made.
#[derive(Debug)]
pub struct Row {
    /// The scene's title.
    pub scene: &'static str,
    /// Who called.
    pub from: String,
    /// Who was called.
    pub to: String,
    /// On which port.
    pub port: u16,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// What must come of it.
    pub expected: &'static str,
    /// What came of it: the same words, or what is different.
    pub outcome: String,
    /// The rule that decided, or empty.
    pub rule: String,
    /// The reason at the client's end; empty without an enforcer there.
    pub client_reason: String,
    /// The reason at the server's end.
    pub server_reason: String,
    /// `hello`, `resume`, `external`, `out_of_band` or `none`.
    pub path: String,
    /// Microseconds the application waited for connect(2).
    pub micros: u64,
}

/// What an application saw.
struct Seen<'a> {
    attempt: &'a Try,
    from: &'a Workload,
    to: &'a Workload,
    family: &'static str,
    outcome: String,
    connection: Attempt,
}

impl Row {
    /// Whether this came out as the script says.
    pub fn is_as_expected(&self) -> bool {
        self.outcome == self.expected
    }
}

/// Makes every attempt of a scene, over IPv4 and then IPv6.
pub fn play(cast: &Cast, scene: &Scene) -> Result<Vec<Row>> {
    let mut seen = Vec::new();
    for attempt in &scene.attempts {
        let (from, to) = (cast.workload(attempt.from)?, cast.workload(attempt.to)?);
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let addresses = if attempt.loopback { loopback } else { to.host.ips() };
        for (address, family) in addresses.into_iter().zip(["ipv4", "ipv6"]) {
            let made = make(attempt, from, to, SocketAddr::new(address, attempt.port), family);
            seen.push(made.with_context(|| format!("{} -> {}:{}", attempt.from, attempt.to, attempt.port))?);
        }
    }
    let records = records(cast, &seen);
    Ok(seen.into_iter().map(|seen| row(cast, scene.title, &seen, &records)).collect())
}

/// One connection that is measured, then the same page with wget: both must fare alike.
fn make<'a>(
    attempt: &'a Try,
    from: &'a Workload,
    to: &'a Workload,
    at: SocketAddr,
    family: &'static str,
) -> Result<Seen<'a>> {
    let (page, patience) = (page(&to.name), attempt.patience());
    let millis = patience.as_millis().to_string();
    let connection = from.connect(&at.to_string(), &["--http", "/", "--timeout", &millis])?;
    let seconds = patience.as_secs().to_string();
    // The -T of Debian's static busybox 1.35 crashes.
    let wget = ["timeout", &seconds, "busybox", "wget", "-q", "-O", "-", &format!("http://{at}/")];
    let begin = Instant::now();
    let wget = of_wget(&from.exec(&wget)?, &page, begin.elapsed());
    let connect = of_connection(&connection, &page);
    let mut outcome = if connect == wget { wget } else { format!("{connect} by connect, {wget} by wget") };
    if matches!(attempt.expected, Expected::Denied) && matches!(outcome.as_str(), "refused" | "timed out") {
        outcome = "denied".to_owned();
    }
    Ok(Seen { attempt, from, to, family, outcome, connection })
}

fn of_connection(connection: &Attempt, page: &str) -> String {
    let took = Duration::from_micros(connection.micros);
    match connection.outcome {
        Outcome::Ok if connection.reply.ends_with(page) => "allowed".to_owned(),
        Outcome::Ok => format!("answered by another: {:?}", connection.reply.lines().last().unwrap_or_default()),
        Outcome::Refused | Outcome::Eperm => refused(took),
        Outcome::Timeout => "timed out".to_owned(),
        Outcome::Reset => "reset".to_owned(),
        Outcome::Closed => "closed".to_owned(),
        Outcome::Error => format!("errno {}", connection.errno),
    }
}

fn of_wget(output: &Output, page: &str, took: Duration) -> String {
    if output.status.success() {
        let other = || format!("answered by another: {:?}", output.stdout.lines().last().unwrap_or_default());
        return if output.stdout == page { "allowed".to_owned() } else { other() };
    }
    if output.code() == TIMED_OUT {
        return "timed out".to_owned();
    }
    match output.stderr.trim() {
        error if error.contains("refused") || error.contains("not permitted") => refused(took),
        error if error.contains("reset") => "reset".to_owned(),
        error => format!("failed with {}: {}", output.code(), error.lines().last().unwrap_or_default()),
    }
}

fn refused(took: Duration) -> String {
    if took < AT_ONCE { "refused".to_owned() } else { format!("refused after {} ms", took.as_millis()) }
}

/// Every enforcer's records, as soon as they tell of all that was seen.
fn records(cast: &Cast, seen: &[Seen]) -> HashMap<String, Vec<Record>> {
    let deadline = Instant::now() + RECORDS_WITHIN;
    loop {
        let read = |host: &tests::Host| match host.records() {
            Ok(records) => Some((host.name().to_owned(), records)),
            Err(error) => {
                step::say(format!("host {} does not tell its verdicts: {error:#}", host.name()));
                None
            }
        };
        let records: HashMap<_, _> = cast.enforced().filter_map(read).collect();
        let complete =
            records.len() == cast.enforced().count() && seen.iter().all(|seen| is_told(cast, seen, &records));
        if complete || Instant::now() > deadline {
            return records;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn is_told(cast: &Cast, seen: &Seen, records: &HashMap<String, Vec<Record>>) -> bool {
    let (client, server) = both_ends(seen, records);
    let client_due = cast.is_enforced(&seen.from.host);
    // A client's enforcer that refuses by its own rules never troubles the server's.
    let server_due = cast.is_enforced(&seen.to.host) && (seen.outcome == "allowed" || !client_due);
    (client.is_some() || !client_due) && (server.is_some() || !server_due)
}

fn both_ends<'a>(seen: &Seen, records: &'a HashMap<String, Vec<Record>>) -> (Option<&'a Record>, Option<&'a Record>) {
    let (local, remote) = (canonical(&seen.connection.local), canonical(&seen.connection.remote));
    let find = |host: &str, role: &str, own: &Option<SocketAddr>, other: &Option<SocketAddr>| {
        let same = |record: &&Record| {
            record.role == role && canonical(&record.local) == *own && canonical(&record.remote) == *other
        };
        // The newest last: the same ports may have served before.
        records.get(host).and_then(|records| records.iter().rev().find(same))
    };
    let client = find(seen.from.host.name(), "client", &local, &remote);
    let server = find(seen.to.host.name(), "server", &remote, &local);
    (client, server)
}

/// An address and port, however written; an IPv4 address of an IPv6 socket is an IPv4 address.
fn canonical(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn row(cast: &Cast, scene: &'static str, seen: &Seen, records: &HashMap<String, Vec<Record>>) -> Row {
    let (client, server) = both_ends(seen, records);
    let first = client.or(server);
    let tell = |field: fn(&Record) -> &String| first.map(field).cloned().unwrap_or_default();
    let reason = |record: Option<&Record>| record.map(|record| record.reason.clone()).unwrap_or_default();
    let (rule, path) = (tell(|record| &record.rule), tell(|record| &record.path));
    let mut outcome = seen.outcome.clone();
    if let (Expected::Allowed { rule: due, path: way }, "allowed") = (seen.attempt.expected, outcome.as_str()) {
        // Without an enforcer at either end there is nobody to name a rule.
        if cast.is_enforced(&seen.from.host) || cast.is_enforced(&seen.to.host) {
            outcome = describe(&rule, due, &path, way.filter(|way| way.applies_to(seen.family)));
        }
    }
    let loopback = if seen.attempt.loopback { " (loopback)" } else { "" };
    Row {
        scene,
        from: seen.attempt.from.to_owned(),
        to: format!("{}{loopback}", seen.attempt.to),
        port: seen.attempt.port,
        family: seen.family,
        expected: seen.attempt.expected.name(),
        outcome,
        rule,
        client_reason: reason(client),
        server_reason: reason(server),
        path,
        micros: seen.connection.micros,
    }
}

/// "allowed", or how it was allowed differently from what was due.
fn describe(rule: &str, due: &str, path: &str, way: Option<Path>) -> String {
    match way {
        _ if rule != due => format!("allowed by {rule:?}, not {due:?}"),
        Some(way) if way.name() != path => format!("allowed by {path:?}, not {:?}", way.name()),
        _ => "allowed".to_owned(),
    }
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Self::HelloFirst => "hello",
            Self::Resume => "resume",
            Self::External => "external",
        }
    }

    fn applies_to(self, family: &str) -> bool {
        self != Self::HelloFirst || family == "ipv4"
    }
}

#[cfg(test)]
mod tests_of_words {
    use super::*;

    #[test]
    fn a_refusal_must_come_at_once() {
        assert_eq!(refused(Duration::from_millis(3)), "refused");
        assert_eq!(refused(Duration::from_millis(1003)), "refused after 1003 ms");
    }

    #[test]
    fn the_wrong_rule_or_path_is_named() {
        assert_eq!(describe("decree/x", "decree/x", "resume", Some(Path::Resume)), "allowed");
        assert_eq!(describe("decree/x", "decree/x", "hello", None), "allowed");
        assert_eq!(describe("", "decree/x", "resume", None), r#"allowed by "", not "decree/x""#);
        assert_eq!(
            describe("decree/x", "decree/x", "hello", Some(Path::Resume)),
            r#"allowed by "hello", not "resume""#
        );
    }

    #[test]
    fn addresses_compare_however_written() {
        assert_eq!(canonical("[::ffff:10.77.0.1]:80"), canonical("10.77.0.1:80"));
        assert_eq!(canonical("[fd77:0::1]:80"), canonical("[fd77::1]:80"));
        assert_eq!(canonical("nonsense"), None);
    }
}
