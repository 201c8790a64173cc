//! Made-up policies and PUs of any size, the same at every run: what scale is measured with.

use std::sync::Arc;

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
}
