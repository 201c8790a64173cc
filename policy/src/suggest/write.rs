//! From groups to rules, and to the text of a policy file.

use std::{collections::BTreeMap, collections::BTreeSet, fmt};

use super::{
    Newly, SuggestedRule, Suggestion,
    collect::{Facts, Other, Ports},
    cover::{Block, Cover},
    outside,
    select::{Selected, Selectors},
};
use crate::model::{Namespace, Networks, Operator, PortRange, Rule, Selector, Side, Verb};

/// Pairs that are named in a rule's comment.
const EXAMPLES: usize = 5;
/// Pairs that are looked at for them.
const LOOKED_AT: usize = 100_000;
/// Port ranges of one protocol beyond which a rule opens all between the lowest and the highest.
const MAX_RANGES: usize = 16;

/// One end of a rule.
struct End {
    side: Side,
    label: String,
    /// PUs or others it means, by number, in order.
    meant: Vec<u32>,
    /// Addresses covered, and those of them that were recorded.
    addresses: (u64, u64),
}

pub(super) fn suggestion(cover: Cover) -> Suggestion {
    let namespace = cover.facts.within.clone().unwrap_or_else(|| common_namespace(&cover.facts));
    let mut selectors = Selectors::new(&cover);
    let mut writer = Writer { cover: &cover, namespace: &namespace, rules: Vec::new(), names: BTreeMap::new() };
    for block in &cover.inside {
        let (from, to) = (group_end(selectors.select(&block.from)), group_end(selectors.select(&block.to)));
        writer.rule(block, &from, &to, &cover.facts.inside);
    }
    for block in &cover.out {
        let (from, to) = (group_end(selectors.select(&block.from)), other_end(&cover.facts, &block.to));
        writer.rule(block, &from, &to, &cover.facts.out);
    }
    for block in &cover.inward {
        let (from, to) = (other_end(&cover.facts, &block.from), group_end(selectors.select(&block.to)));
        writer.rule(block, &from, &to, &cover.facts.inward);
    }
    let rules = writer.rules;
    let seen = cover.facts.seen;
    let mut notes = Vec::new();
    if rules.is_empty() {
        notes.push("Nothing that was recorded was allowed, so nothing is suggested.".to_owned());
    }
    if seen.refused > 0 {
        notes.push(format!("{} refused attempts are not covered.", seen.refused));
    }
    if seen.unusable > 0 {
        notes.push(format!(
            "{} records could not be used: nobody knows who opened, or who an end is (connections older than their PU).",
            seen.unusable
        ));
    }
    let name =
        format!("suggested{}", label(namespace.as_str(), '-').map_or(String::new(), |label| format!("-{label}")));
    Suggestion { name, namespace, rules, seen, notes }
}

struct Writer<'a> {
    cover: &'a Cover,
    namespace: &'a Namespace,
    rules: Vec<SuggestedRule>,
    names: BTreeMap<String, u32>,
}

impl Writer<'_> {
    fn rule(&mut self, block: &Block, from: &End, to: &End, recorded: &BTreeMap<(u32, u32), Ports>) {
        let (named, nameless): (Vec<_>, Vec<_>) = block.ports.iter().copied().partition(|(proto, _)| {
            matches!(*proto, PortRange::TCP | PortRange::UDP | PortRange::ICMP | PortRange::ICMP6)
        });
        for (ports, every_protocol) in [(named, false), (nameless, true)] {
            if ports.is_empty() {
                continue;
            }
            let (ranges, unused) = if every_protocol { (Vec::new(), 0) } else { ranges(&ports) };
            let rule = Rule { ports: ranges, ..Rule::new(Verb::Allow, from.side.clone(), to.side.clone()) };
            let counted = self.count(from, to, &ports, &rule, recorded);
            let outside = if from.addresses.0 > 0 { from.addresses } else { to.addresses };
            let newly = Newly {
                pairs: counted.newly,
                examples: counted.examples,
                ports: unused,
                addresses: outside.0,
                addresses_seen: outside.1,
                every_protocol,
            };
            let name = self.name(&from.label, &to.label);
            let text = rule.to_string();
            let (flows, pairs) = (counted.flows, counted.pairs);
            self.rules.push(SuggestedRule { name, text, rule, flows, pairs, newly });
        }
    }

    fn name(&mut self, from: &str, to: &str) -> String {
        let name = format!("{from}-to-{to}");
        let times = self.names.entry(name.clone()).or_default();
        *times += 1;
        if *times == 1 { name } else { format!("{name}-{times}") }
    }

    /// What a rule covers, from the rule as it is: whom its selectors mean, not whom they were made for.
    fn count(
        &self,
        from: &End,
        to: &End,
        ports: &[(u8, u16)],
        rule: &Rule,
        recorded: &BTreeMap<(u32, u32), Ports>,
    ) -> Counted {
        let mut is_object = BTreeSet::new();
        is_object.extend(to.meant.iter().copied());
        let mut counted = Counted::default();
        let mut complete = 0u64;
        for subject in &from.meant {
            for ((_, object), used) in recorded.range((*subject, 0)..=(*subject, u32::MAX)) {
                if !is_object.contains(object) {
                    continue;
                }
                let flows: Vec<u64> = used
                    .iter()
                    .filter(|((proto, port), _)| rule.covers(*proto, *port))
                    .map(|(_, flows)| *flows)
                    .collect();
                counted.pairs += u64::from(!flows.is_empty());
                counted.flows = flows.into_iter().fold(counted.flows, u64::saturating_add);
                complete += u64::from(ports.iter().all(|port| used.contains_key(port)));
            }
        }
        // The rule says nothing of connections neither end of which is in its namespace.
        let out_of_scope = self.outsiders(from) * self.outsiders(to);
        let all = from.meant.len() as u64 * to.meant.len() as u64;
        counted.newly = all.saturating_sub(out_of_scope).saturating_sub(complete);
        if counted.newly > 0 {
            counted.examples = self.examples(from, to, ports, recorded);
        }
        counted
    }

    fn examples(
        &self,
        from: &End,
        to: &End,
        ports: &[(u8, u16)],
        recorded: &BTreeMap<(u32, u32), Ports>,
    ) -> Vec<String> {
        let pairs = from.meant.iter().flat_map(|subject| to.meant.iter().map(|object| (*subject, *object)));
        let mut examples = Vec::new();
        for (subject, object) in pairs.take(LOOKED_AT) {
            if !self.is_in_scope(from, subject) && !self.is_in_scope(to, object) {
                continue;
            }
            let used = recorded.get(&(subject, object));
            let mut open: Vec<(u8, u16)> =
                ports.iter().filter(|port| used.is_none_or(|used| !used.contains_key(port))).copied().collect();
            if open.is_empty() {
                continue;
            }
            open.truncate(MAX_RANGES);
            let open: Vec<String> = ranges(&open).0.iter().map(PortRange::to_string).collect();
            examples.push(format!(
                "{} -> {} {}",
                self.described(from, subject),
                self.described(to, object),
                open.join(" ")
            ));
            if examples.len() == EXAMPLES {
                break;
            }
        }
        examples
    }

    fn outsiders(&self, end: &End) -> u64 {
        end.meant.iter().filter(|number| !self.is_in_scope(end, **number)).count() as u64
    }

    fn is_in_scope(&self, end: &End, number: u32) -> bool {
        match end.side {
            Side::Net(_) => false,
            Side::Tags(_) => self.namespace.contains(&self.cover.facts.pus[number as usize].namespace),
        }
    }

    fn described(&self, end: &End, number: u32) -> String {
        let text = match (&end.side, &self.cover.facts.others.get(number as usize)) {
            (Side::Net(_), Some(Other::Name(name))) => name.to_string(),
            (Side::Net(_), Some(Other::Address(address))) => address.to_string(),
            _ => {
                let pu = &self.cover.facts.pus[number as usize];
                if pu.name.is_empty() { format!("a PU of {}", pu.namespace) } else { pu.name.clone() }
            }
        };
        printable(&text)
    }
}

#[derive(Default)]
struct Counted {
    flows: u64,
    pairs: u64,
    newly: u64,
    examples: Vec<String>,
}

fn group_end(selected: Selected) -> End {
    let label = selector_label(&selected.selector);
    End { side: Side::Tags(selected.selector), label, meant: selected.meant, addresses: (0, 0) }
}

fn other_end(facts: &Facts, numbers: &[u32]) -> End {
    let of = |number: &u32| &facts.others[*number as usize];
    let names = numbers.iter().filter_map(|number| match of(number) {
        Other::Name(name) => Some(name.clone()),
        Other::Address(_) => None,
    });
    let addresses = numbers.iter().filter_map(|number| match of(number) {
        Other::Address(address) => Some(*address),
        Other::Name(_) => None,
    });
    let names: Vec<_> = names.collect();
    let seen = addresses.clone().count() as u64;
    let include = outside::prefixes(addresses);
    let size = outside::size(&include);
    let meant = if size == seen {
        numbers.to_vec()
    } else {
        let covered = (0..).zip(&facts.others).filter(|(number, other)| match other {
            Other::Name(_) => numbers.binary_search(number).is_ok(),
            Other::Address(address) => include.iter().any(|net| net.contains(address)),
        });
        covered.map(|(number, _)| number).collect()
    };
    let label = match (names.as_slice(), include.is_empty()) {
        ([name], true) => label(&name.to_string(), '-').unwrap_or_else(|| "outside".into()),
        _ => "outside".into(),
    };
    End { side: Side::Net(Networks { include, names, except: Vec::new() }), label, meant, addresses: (size, seen) }
}

/// Ports as ranges; how many of them nobody used, where they would be too many.
fn ranges(ports: &[(u8, u16)]) -> (Vec<PortRange>, u64) {
    let mut by_protocol: BTreeMap<u8, Vec<PortRange>> = BTreeMap::new();
    for &(protocol, port) in ports {
        let list = by_protocol.entry(protocol).or_default();
        match list.last_mut() {
            Some(last) if last.high.checked_add(1) == Some(port) => last.high = port,
            _ => list.push(PortRange { protocol, low: port, high: port }),
        }
    }
    let mut unused = 0;
    for list in by_protocol.values_mut() {
        if let ([first, .., last], true) = (list.as_slice(), list.len() > MAX_RANGES) {
            let all = PortRange { high: last.high, ..*first };
            let size = |range: &PortRange| u64::from(range.high - range.low) + 1;
            unused += size(&all) - list.iter().map(size).sum::<u64>();
            *list = vec![all];
        }
    }
    // In the order in which they are looked for.
    let order = [PortRange::TCP, PortRange::UDP, PortRange::ICMP, PortRange::ICMP6];
    let ranges = order.iter().filter_map(|protocol| by_protocol.remove(protocol)).flatten().collect();
    (ranges, unused)
}

/// The nearest namespace that holds every PU of an allowed connection.
fn common_namespace(facts: &Facts) -> Namespace {
    let inside = facts.inside.keys().flat_map(|(from, to)| [*from, *to]);
    let used = inside.chain(facts.out.keys().map(|(from, _)| *from)).chain(facts.inward.keys().map(|(_, to)| *to));
    let mut common: Option<Vec<&str>> = None;
    for number in used.collect::<BTreeSet<_>>() {
        let parts: Vec<&str> = facts.pus[number as usize].namespace.as_str().split('/').skip(1).collect();
        common = Some(match common {
            None => parts,
            Some(common) => common.into_iter().zip(parts).take_while(|(a, b)| a == b).map(|(part, _)| part).collect(),
        });
    }
    format!("/{}", common.unwrap_or_default().join("/")).parse().unwrap_or_default()
}

fn selector_label(selector: &Selector) -> String {
    let Some([clauses, ..]) = selector.alternatives.get(..1) else { return "any".into() };
    let value = clauses.iter().find_map(|clause| match &clause.operator {
        Operator::Equals(value) => Some(value.clone()),
        Operator::In(list) if list.len() <= 2 => Some(list.join("-and-")),
        Operator::In(_) => Some(format!("{}s", clause.key)),
        _ => None,
    });
    value.and_then(|value| label(&value, '/')).unwrap_or_else(|| "any".into())
}

/// What of a text can stand in a rule's name: of a path, after the last `separator`.
fn label(text: &str, separator: char) -> Option<String> {
    let text = if separator == '/' { text.rsplit('/').find(|part| !part.is_empty())? } else { text };
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.') { c } else { '-' };
    let label: String = text.chars().map(fits).take(40).collect();
    let label = label.trim_matches(['-', '.']);
    (!label.is_empty()).then(|| label.to_owned())
}

/// Names come from peers: none shall end the comment it stands in.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{85}') { '?' } else { c })
        .collect()
}

/// A rule's line as YAML takes it.
fn scalar(line: &str) -> String {
    let plain = !line.contains(": ") && !line.contains(" #") && !line.ends_with(':');
    if plain { line.to_owned() } else { format!("'{}'", line.replace('\'', "''")) }
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = &self.seen;
        writeln!(
            f,
            "# Suggested from {} records of {} PUs, {} addresses and {} connections.",
            seen.records, seen.pus, seen.addresses, seen.flows
        )?;
        writeln!(
            f,
            "# Every recorded connection that was allowed stays allowed. What a rule allows beside stands above it."
        )?;
        for note in &self.notes {
            writeln!(f, "# {}", printable(note))?;
        }
        writeln!(f, "name: {}\nnamespace: {}", self.name, quoted_namespace(&self.namespace))?;
        if self.rules.is_empty() {
            return writeln!(f, "rules: []");
        }
        writeln!(f, "rules:")?;
        for rule in &self.rules {
            let nothing = if rule.newly.is_nothing() { "; newly allows nothing" } else { "" };
            writeln!(f, "  # {} connections, {} pairs{nothing}", rule.flows, rule.pairs)?;
            write!(f, "{}", rule.newly)?;
            writeln!(f, "  - {}: {}", rule.name, scalar(&rule.text))?;
        }
        Ok(())
    }
}

/// A namespace may hold what YAML reads as something else.
fn quoted_namespace(namespace: &Namespace) -> String {
    format!("'{}'", namespace.as_str().replace('\'', "''"))
}

impl fmt::Display for Newly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pairs > 0 {
            let more = self.pairs - self.examples.len() as u64;
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            writeln!(
                f,
                "  # NEWLY ALLOWS {} pairs what they did not do: {}{more}",
                self.pairs,
                self.examples.join("; ")
            )?;
        }
        if self.ports > 0 {
            writeln!(f, "  # NEWLY OPENS {} ports nobody used, between those that were", self.ports)?;
        }
        if self.addresses > self.addresses_seen {
            writeln!(f, "  # COVERS {} addresses, of which {} were seen", self.addresses, self.addresses_seen)?;
        }
        if self.every_protocol {
            writeln!(f, "  # OPENS every protocol and port: rules have no name for the one that was used")?;
        }
        Ok(())
    }
}
