//! What a change of rules changes: which pairs of known identities are judged otherwise, on which ports, by which rules.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::compile::{Capabilities, CompileError, Compiled, IdentityId, Interval, PairVerdict};
use crate::known::Known;
use crate::model::{Action, DomainPattern, Moment, PolicyRule, PortRange, RuleId, Side as RuleSide};

/// At most so many pairs are listed.
pub const MAX_CHANGES: usize = 10_000;

/// Every change of verdict between known identities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PairsDiff {
    /// The pairs judged otherwise.
    pub changes: Vec<PairChange>,
    /// How many identities and external networks were looked at.
    pub ends: usize,
    /// There are more such pairs than [`MAX_CHANGES`].
    #[serde(default)]
    pub truncated: bool,
}

/// A pair judged otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PairChange {
    /// Who opens: the identity's name, or `net PREFIX`.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Where to.
    pub ports: Vec<PortsChange>,
}

/// Ports on which a pair is judged otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PortsChange {
    /// Such as `tcp/80-90`; `any` for every protocol and port.
    pub ports: Vec<String>,
    /// The verdict by the old rules.
    pub before: Judged,
    /// The verdict by the new rules.
    pub after: Judged,
}

/// A verdict and the rule behind it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Judged {
    /// Allow or deny.
    pub action: Action,
    /// Full name of the rule that decides; `None` for the default.
    pub rule: Option<String>,
    /// Namespace that rule lives in, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl Judged {
    pub(crate) fn new(action: Action, rule: Option<&PolicyRule>) -> Self {
        let namespace = rule.map(|rule| rule.namespace().to_string());
        Self { action, rule: rule.map(PolicyRule::full_name), namespace }
    }
}

/// Compares two sets of rules over the known identities and the external networks that any of the rules names, by prefix
/// or by DNS name. A name stands for an address of which nothing else is known, but that it is IPv4.
///
/// # Errors
/// If either set cannot be compiled.
pub fn diff_pairs(
    old: &[Arc<PolicyRule>],
    new: &[Arc<PolicyRule>],
    known: &[Known],
    capabilities: Capabilities,
    now: Moment,
) -> Result<PairsDiff, CompileError> {
    let compile = || -> Result<Compiled, CompileError> {
        let mut compiled = Compiled::new(old, capabilities)?;
        compiled.advance(now);
        for (number, known) in (1..).zip(known) {
            compiled.add_identity(IdentityId(number), &known.identity)?;
        }
        Ok(compiled)
    };
    let mut before = compile()?;
    let mut after = compile()?;
    let delta = after.update_rules(new)?;
    let names = stand_ins(old.iter().chain(new));
    for compiled in [&mut before, &mut after] {
        let known = names.iter().map(|(address, pattern)| (*address, BTreeSet::from([example(pattern)])));
        compiled.set_names(known.collect());
    }

    let pus = alike(known, &before, &after);
    let networks = networks(&before, &after, &names);
    let mut diff = PairsDiff { ends: known.len() + networks.len(), changes: Vec::new(), truncated: false };
    let everybody: Vec<&End> = pus.iter().chain(&networks).collect();
    let touched = |end: &&&End| end.network || end.after.is_none_or(|id| delta.touches(id));
    let touched_ends: Vec<&End> = everybody.iter().filter(touched).copied().collect();
    for from in &everybody {
        // Most changes touch few: of the others only their pairs with those need a look.
        let others = if touched(&from) { &everybody } else { &touched_ends };
        for to in others {
            // Two networks never meet a rule.
            let untouched = !from.network && !to.network && !may_differ(&delta, from, to);
            if untouched || (from.network && to.network) {
                continue;
            }
            let ports = changes(&Side::of(&before, from.before, to.before), &Side::of(&after, from.after, to.after));
            if ports.is_empty() {
                continue;
            }
            for (from, to) in from.names.iter().flat_map(|from| to.names.iter().map(move |to| (from, to))) {
                if diff.changes.len() == MAX_CHANGES {
                    diff.truncated = true;
                    return Ok(diff);
                }
                diff.changes.push(PairChange { from: from.clone(), to: to.clone(), ports: ports.clone() });
            }
        }
    }
    Ok(diff)
}

fn may_differ(delta: &crate::compile::Delta, from: &End, to: &End) -> bool {
    match (from.after, to.after) {
        (Some(from), Some(to)) => delta.affects(from, to),
        _ => true,
    }
}

/// Those that are judged alike on either side of a connection, by the number of one of them before and after.
struct End {
    names: Vec<String>,
    before: Option<IdentityId>,
    after: Option<IdentityId>,
    network: bool,
}

/// The known identities, those together of which no rule of either set tells one from the other.
fn alike(known: &[Known], before: &Compiled, after: &Compiled) -> Vec<End> {
    let mut ends: Vec<End> = Vec::new();
    let mut at = HashMap::new();
    for (number, known) in (1..).zip(known) {
        let id = IdentityId(number);
        let kind = (known.identity.namespace(), before.sides_of(id), after.sides_of(id));
        let index = *at.entry(kind).or_insert(ends.len());
        match ends.get_mut(index) {
            Some(end) => end.names.push(known.name.clone()),
            None => {
                let names = vec![known.name.clone()];
                ends.push(End { names, before: Some(id), after: Some(id), network: false });
            }
        }
    }
    ends
}

/// An address for each name that rules mean. They are of a range for benchmarks (RFC 2544), which no rule is about.
fn stand_ins<'a>(rules: impl Iterator<Item = &'a Arc<PolicyRule>>) -> BTreeMap<IpAddr, DomainPattern> {
    const FIRST: u32 = 0xc612_0000;
    let sides = rules.flat_map(|rule| [&rule.rule().subject, &rule.rule().object]);
    let patterns: BTreeSet<&DomainPattern> = sides
        .flat_map(|side| match side {
            RuleSide::Net(networks) => networks.names.as_slice(),
            RuleSide::Tags(_) => &[],
        })
        .collect();
    let address = |index: u32| IpAddr::from((FIRST + index).to_be_bytes());
    (0..1 << 17).map(address).zip(patterns.into_iter().cloned()).collect()
}

/// A name that a pattern means, and as few others as can be.
fn example(pattern: &DomainPattern) -> String {
    let text = pattern.to_string();
    text.strip_prefix("*.").map_or(text.clone(), |name| format!("any.{name}"))
}

/// Every prefix that rules of either set name: the addresses of which it is the longest match; and every name.
fn networks(before: &Compiled, after: &Compiled, names: &BTreeMap<IpAddr, DomainPattern>) -> Vec<End> {
    let (old, new) = (before.external_prefixes(), after.external_prefixes());
    let is_name = |net: &IpNet| net.prefix_len() == net.max_prefix_len() && names.contains_key(&net.addr());
    let prefixes: BTreeSet<IpNet> = old.iter().chain(&new).map(|(net, _)| *net).filter(|net| !is_name(net)).collect();
    let (old, new): (HashMap<_, _>, HashMap<_, _>) = (old.into_iter().collect(), new.into_iter().collect());
    let within = |list: &HashMap<IpNet, IdentityId>, net: &IpNet| {
        std::iter::successors(Some(*net), IpNet::supernet).find_map(|net| list.get(&net).copied())
    };
    let end = |net: &IpNet| End {
        names: vec![format!("net {net}")],
        before: within(&old, net),
        after: within(&new, net),
        network: true,
    };
    let named = |(address, pattern): (&IpAddr, &DomainPattern)| End {
        names: vec![format!("net {pattern}")],
        before: before.external_identity(*address),
        after: after.external_identity(*address),
        network: true,
    };
    prefixes.iter().map(end).chain(names.iter().map(named)).collect()
}

/// A pair's verdicts and whose rules they name.
struct Side<'a> {
    compiled: &'a Compiled,
    verdict: PairVerdict,
}

impl<'a> Side<'a> {
    fn of(compiled: &'a Compiled, from: Option<IdentityId>, to: Option<IdentityId>) -> Self {
        let verdict = match (from, to) {
            (Some(from), Some(to)) => compiled.pair(from, to),
            _ => PairVerdict::default(),
        };
        Self { compiled, verdict }
    }

    fn at(&self, key: u32) -> (Action, RuleId) {
        let holds = |interval: &&Interval| interval.lo <= key && key <= interval.hi;
        let found = self.verdict.intervals.iter().find(holds);
        found.map_or((Action::Deny, RuleId::NONE), |interval| (interval.action, interval.rule))
    }

    fn judged(&self, (action, rule): (Action, RuleId)) -> Judged {
        Judged::new(action, self.compiled.rule(rule).map(Arc::as_ref))
    }
}

/// Highest key: port 65535 of protocol 255.
const LAST: u32 = 0xff_ffff;

fn changes(before: &Side, after: &Side) -> Vec<PortsChange> {
    let mut starts: BTreeSet<u32> = BTreeSet::from([0]);
    for interval in before.verdict.intervals.iter().chain(&after.verdict.intervals) {
        starts.extend([interval.lo, interval.hi.saturating_add(1)]);
    }
    let starts: Vec<u32> = starts.into_iter().filter(|start| *start <= LAST).collect();
    let mut found: Vec<(PortsChange, Vec<(u32, u32)>)> = Vec::new();
    for (index, &low) in starts.iter().enumerate() {
        let high = starts.get(index + 1).map_or(LAST, |next| next - 1);
        let (was, is) = (before.at(low), after.at(low));
        if was.0 == is.0 {
            continue;
        }
        let change = PortsChange { ports: Vec::new(), before: before.judged(was), after: after.judged(is) };
        match found.iter_mut().find(|(known, _)| (&known.before, &known.after) == (&change.before, &change.after)) {
            Some((_, ranges)) => match ranges.last_mut() {
                Some((_, end)) if *end + 1 == low => *end = high,
                _ => ranges.push((low, high)),
            },
            None => found.push((change, vec![(low, high)])),
        }
    }
    let named = |(change, ranges): (PortsChange, Vec<(u32, u32)>)| PortsChange { ports: ports_text(&ranges), ..change };
    found.into_iter().map(named).collect()
}

/// Ranges of keys as the rule language would say them.
fn ports_text(ranges: &[(u32, u32)]) -> Vec<String> {
    let mut texts = Vec::new();
    for &(low, high) in ranges {
        if (low, high) == (0, LAST) {
            return vec!["any".to_owned()];
        }
        let protocols = |key: u32| (key >> 16) as u8;
        let mut first = protocols(low);
        let last = protocols(high);
        // A part of a protocol at either end, and whole protocols between them.
        let part = |protocol: u8| {
            let base = u32::from(protocol) << 16;
            let bound = |key: u32| (key - base) as u16;
            PortRange { protocol, low: bound(low.max(base)), high: bound(high.min(base | 0xffff)) }
        };
        if !part(first).is_all() || first == last {
            texts.push(part(first).to_string());
            if first == last {
                continue;
            }
            first += 1;
        }
        let whole = if part(last).is_all() { last } else { last - 1 };
        match whole.cmp(&first) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => texts.push(PortRange::all(first).to_string()),
            std::cmp::Ordering::Greater => texts.push(format!("protocols {first}-{whole}")),
        }
        if whole != last {
            texts.push(part(last).to_string());
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Identity;
    use crate::parse::parse_file;

    fn known() -> Vec<Known> {
        let pu = |name: &str, tags: &[(&str, &str)]| Known {
            name: name.to_owned(),
            identity: Identity::pu("/shop".parse().unwrap(), tags.iter().copied()),
        };
        vec![pu("web", &[("app", "web")]), pu("db", &[("app", "db")]), pu("guest", &[("user", "guest")])]
    }

    fn diff(old: &str, new: &str) -> Vec<String> {
        let rules = |text: &str| parse_file("p.yaml", &format!("name: p\nrules:\n{text}")).unwrap();
        let now = Moment::from_unix(1_800_000_000);
        let diff = diff_pairs(&rules(old), &rules(new), &known(), Capabilities::default(), now).unwrap();
        let line = |pair: &PairChange, ports: &PortsChange| {
            let rule = |judged: &Judged| judged.rule.clone().unwrap_or_else(|| "default".into());
            let (before, after) = (&ports.before, &ports.after);
            format!(
                "{} -> {} {}: {} {} / {} {}",
                pair.from,
                pair.to,
                ports.ports.join(" "),
                before.action,
                rule(before),
                after.action,
                rule(after)
            )
        };
        diff.changes.iter().flat_map(|pair| pair.ports.iter().map(move |ports| line(pair, ports))).collect()
    }

    #[test]
    fn pairs_ports_and_rules_are_named() {
        let old = "  - a: allow app=web -> app=db tcp/80-90\n";
        assert_eq!(diff(old, old), [""; 0]);
        assert_eq!(diff(old, &old.replace("a:", "b:")), [""; 0], "another rule, the same verdicts");
        assert_eq!(
            diff(old, "  - a: allow app=web -> app=db tcp/85-95 udp\n  - g: deny user=guest -> any\n"),
            ["web -> db tcp/80-84: allow p/a / deny default", "web -> db tcp/91-95 udp: deny default / allow p/a"]
        );
        assert_eq!(diff(old, ""), ["web -> db tcp/80-90: allow p/a / deny default"]);
        assert_eq!(
            diff("  - a: allow any -> app=db\n", "  - a: allow any -> app=db\n  - g: deny user=guest -> any\n"),
            ["guest -> db any: allow p/a / deny p/g"]
        );
    }

    #[test]
    fn external_networks_are_compared_prefix_by_prefix() {
        let old = "  - out: allow app=web -> net 10.0.0.0/8 tcp/443\n";
        let new = "  - out: allow app=web -> net 10.0.0.0/8 except 10.1.0.0/16 tcp/443\n  - in: allow net 192.0.2.1 -> app=web\n";
        assert_eq!(
            diff(old, new),
            [
                "web -> net 10.1.0.0/16 tcp/443: allow p/out / deny default",
                "net 192.0.2.1/32 -> web any: deny default / allow p/in"
            ]
        );
    }

    #[test]
    fn names_are_looked_at_like_networks() {
        let old = "  - out: allow app=web -> net *.example.org tcp/443\n";
        let new = "  - out: allow app=web -> net *.example.org,example.net tcp/443\n  - no: deny app=web -> net www.example.org\n";
        assert_eq!(
            diff(old, new),
            [
                "web -> net example.net tcp/443: deny default / allow p/out",
                "web -> net www.example.org tcp/443: allow p/out / deny p/no",
            ]
        );
        assert_eq!(
            diff(old, "  - out: allow app=web -> net 0.0.0.0/0 tcp/443\n"),
            ["web -> net 0.0.0.0/0 tcp/443: deny default / allow p/out"],
            "the name is in there"
        );
    }

    #[test]
    fn those_judged_alike_are_looked_at_once_and_told_one_by_one() {
        let many: Vec<Known> = (0..3000)
            .map(|number| Known {
                name: format!("web-{number}"),
                identity: Identity::pu(
                    "/shop".parse().unwrap(),
                    [("app", "web".to_owned()), ("id", number.to_string())],
                ),
            })
            .chain(known())
            .collect();
        let rules = |text: &str| parse_file("p.yaml", &format!("name: p\nrules:\n{text}")).unwrap();
        let old = rules("  - allow app=web -> app=db tcp/1\n");
        let one = rules("  - allow app=web -> app=db tcp/1\n  - deny id=77 -> app=db tcp/1\n");
        let all = rules("  - allow app=web -> app=web\n");
        let now = Moment::from_unix(1_800_000_000);
        let diff = |new: &[_]| diff_pairs(&old, new, &many, Capabilities::default(), now).unwrap();
        let narrow = diff(&one);
        assert_eq!((narrow.ends, narrow.changes.len(), narrow.truncated), (3003, 1, false));
        assert_eq!((narrow.changes[0].from.as_str(), narrow.changes[0].to.as_str()), ("web-77", "db"));
        let wide = diff(&all);
        assert_eq!((wide.changes.len(), wide.truncated), (MAX_CHANGES, true));
    }

    #[test]
    fn ranges_over_protocols_read_well() {
        let text = |ranges: &[(u32, u32)]| ports_text(ranges).join(" ");
        assert_eq!(text(&[(0, LAST)]), "any");
        assert_eq!(text(&[(6 << 16, (7 << 16) - 1)]), "tcp");
        assert_eq!(
            text(&[(0, (6 << 16) + 79), ((6 << 16) + 81, LAST)]),
            "protocols 0-5 tcp/0-79 tcp/81-65535 protocols 7-255"
        );
        assert_eq!(text(&[((5 << 16) + 1, (7 << 16) + 1)]), "protocol 5/1-65535 tcp protocol 7/0-1");
    }
}
