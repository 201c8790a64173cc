//! Made-up policies and PUs of any size, the same at every run: what scale is measured with.

use std::{fmt::Write, sync::Arc};

use crate::model::{Head, Identity, Location, Namespace, PolicyRule};
use crate::parse::parse_rule;

/// A policy of `rules` rules and `identities` PUs that it speaks about.
///
/// Most rules let one application talk to another where the user is right; beside them stand
/// groups, prefixes, exclusions, denials, observed rules and external networks. Every tenth is of a team's own
/// namespace, beneath the root, and narrows what that allows.
pub fn synthetic(rules: usize, identities: usize) -> (Vec<Arc<PolicyRule>>, Vec<Identity>) {
    let apps = (rules / 100).clamp(10, 2_000) as u64;
    let policy = (0..rules).map(|n| rule(n as u64, apps)).collect();
    let pus = (0..identities).map(|n| pu(n as u64, apps)).collect();
    (policy, pus)
}

/// The `n`th rule of a policy about `apps` applications; with the same `n`, always the same.
pub fn rule(n: u64, apps: u64) -> Arc<PolicyRule> {
    let mut dice = Dice::new(n);
    let (from, to) = (dice.below(apps), dice.below(apps));
    let user = ["prod", "dev", "test"][dice.below(3) as usize];
    let port = 1024 + dice.below(60_000);
    let group = dice.below(200);
    let team = dice.below(50);
    let in_team = dice.below(10) == 0;
    let text = match dice.below(100) {
        0..=49 if in_team => format!("allow any -> team=team{team} tcp/{port}-65535"),
        50..=69 if in_team => format!("allow team=team{team} -> any"),
        _ if in_team => format!("deny app=app{from} -> app=app{to} !quarantine tcp/{port}"),
        0..=79 => format!("allow app=app{from} user={user} -> app=app{to} user={user} tcp/{port} log"),
        80..=84 => format!(
            "allow group in (group{group},admins) user!=guest -> app=app{to} tcp/{port},{}-{}",
            port + 10,
            port + 20
        ),
        85..=88 => format!("allow image=registry{team}/* -> app=app{to} user={user} udp/{port}"),
        89..=91 => format!("deny team!=team{team} -> team=team{team} app=app{to} tcp/22"),
        92..=94 => format!("deny app=app{from} -> app=app{to} !quarantine tcp/{port}"),
        95..=96 => format!("allow app=app{from} -> app=app{to} observe"),
        97..=98 => format!("allow app=app{from} -> net 10.{}.0.0/16 except 10.{}.7.0/24 tcp/443", group, group),
        _ => format!("allow net 172.16.{group}.0/24 -> app=app{to} public tcp/443"),
    };
    let namespace = match in_team {
        true => format!("/team{team}").parse().unwrap_or_default(),
        false => Namespace::root(),
    };
    let mut rule = match parse_rule(&text) {
        Ok(rule) => rule,
        Err(error) => unreachable!("{text}: {error}"),
    };
    rule.name = Some(format!("r{n}"));
    let location = Location { file: "synthetic".into(), line: n as u32 + 1, column: 1 };
    Arc::new(PolicyRule::new(Arc::new(Head::new("synthetic", namespace)), n as u32 + 1, location, rule))
}

/// Writes the `n`th of many flow records, with its end of line, in place of what `line` holds; the same at every run.
///
/// A tenth of the `pus` PUs (ten at least) are workloads of their own, each with ten replicas that differ in accidental
/// tags, and one record in ten is of an address outside.
pub fn record_line(line: &mut String, n: u64, pus: u64) {
    line.clear();
    let spread = |factor: u64, bound: u64| (n.wrapping_mul(factor) >> 17) % bound;
    let workloads = (pus / 10).max(1);
    let client = spread(0x9e37_79b9_7f4a_7c15, workloads);
    // Each workload uses a handful of others.
    let server = (client * 7 + spread(0xc2b2_ae3d_27d4_eb4f, 6) * 13) % workloads;
    let end = |workload: u64, replica: u64| {
        format!(
            r#"{{"pu":"host-{replica}/w{workload}-{replica}","namespace":"/prod","tags":{{"@container:id":["{:016x}"],"@container:image":["registry.example/w{workload}:1.{}"],"app":["w{workload}"],"env":["prod"],"tier":["t{}"]}}}}"#,
            workload * 1000 + replica + 0x1234_5678_9abc,
            replica % 2,
            workload % 5,
        )
    };
    let from = end(client, spread(0xff51_afd7_ed55_8ccd, 10));
    let to = if n.is_multiple_of(10) {
        format!(r#"{{"address":"198.51.{}.{}"}}"#, client % 100, spread(0x2545_f491_4f6c_dd1d, 64))
    } else {
        end(server, spread(0xd6e8_feb8_6659_fd93, 10))
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        line,
        r#"{{"v":1,"time":"2026-03-01T12:01:00.000000Z","since":"2026-03-01T12:00:03.120000Z","enforcer":"host","role":"client","from":{from},"to":{to},"proto":"tcp","port":{},"verdict":"allow","reason":"allowed","path":"resume","flows":{},"bytes_sent":48211,"bytes_received":912834,"packets_sent":310,"packets_received":702,"rtt_us":181,"rtt_max_us":944}}"#,
        8000 + server % 3,
        1 + n % 9,
    );
}

fn pu(n: u64, apps: u64) -> Identity {
    let mut dice = Dice::new(n ^ 0xA5A5_0000_0000);
    let team = dice.below(50);
    let mut tags = vec![
        ("app", format!("app{}", dice.below(apps))),
        ("user", ["prod", "dev", "test", "guest"][dice.below(4) as usize].to_owned()),
        ("team", format!("team{team}")),
        ("image", format!("registry{}/image{}", dice.below(50), dice.below(500))),
        ("host", format!("host{}", dice.below(200))),
        ("pid", n.to_string()),
    ];
    for _ in 0..dice.below(4) {
        tags.push(("group", format!("group{}", dice.below(200))));
    }
    match dice.below(20) {
        0 => tags.push(("quarantine", "yes".to_owned())),
        1 | 2 => tags.push(("public", "yes".to_owned())),
        _ => {}
    }
    let namespace = format!("/team{team}/apps").parse().unwrap_or_default();
    Identity::pu(namespace, tags)
}

/// SplitMix64: a seed away from any `n`, without the state of a shared generator.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Capabilities, Compiled, IdentityId};

    #[test]
    fn the_same_at_every_run_and_connected() {
        let (rules, pus) = synthetic(500, 100);
        let again: Vec<String> = synthetic(500, 0).0.iter().map(|r| r.rule().to_string()).collect();
        assert_eq!(rules.iter().map(|r| r.rule().to_string()).collect::<Vec<_>>(), again);
        let mut compiled = Compiled::new(&rules, Capabilities::default()).unwrap();
        for (id, pu) in pus.iter().enumerate() {
            compiled.add_identity(IdentityId(id as u32), pu).unwrap();
        }
        let pairs = (0..100).flat_map(|s| (0..100).map(move |o| (IdentityId(s), IdentityId(o))));
        let talking = pairs.filter(|(s, o)| !compiled.pair(*s, *o).intervals.is_empty()).count();
        assert!(talking > 100, "{talking}");
    }

    #[test]
    fn records_can_be_read() {
        let mut line = String::new();
        for n in [0, 1, 999_999] {
            record_line(&mut line, n, 2_000);
            let record = crate::FlowRecord::parse(line.trim_end()).expect("a record");
            assert_eq!((record.to.address.is_some(), line.ends_with('\n')), (n == 0, true), "{line}");
        }
    }
}
