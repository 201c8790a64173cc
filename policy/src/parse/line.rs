use std::net::IpAddr;

use ipnet::IpNet;

use super::error::Fault;
use super::lex::{Kind, Token, tokens};
use crate::model::{
    Clause, DomainPattern, Ends, Moment, Networks, Operator, PortRange, Rule, Selector, Side, Verb, is_keyword,
    looks_like_ports, starts_port_list,
};

/// A whole rule line.
pub(super) fn rule(text: &str) -> Result<Rule, Fault> {
    let mut cursor = Cursor::new(text)?;
    let rule = cursor.rule()?;
    cursor.finish(
        "a port list, `egress`, `ingress`, `until MOMENT`, `encrypt`, `log`, `observe` or the end of the rule",
    )?;
    Ok(rule)
}

/// One side alone.
pub(super) fn side(text: &str) -> Result<Side, Fault> {
    let mut cursor = Cursor::new(text)?;
    let side = cursor.side()?;
    cursor.finish("a clause or the end of the selector")?;
    Ok(side)
}

/// Port lists alone.
pub(super) fn ports(text: &str) -> Result<Vec<PortRange>, Fault> {
    let mut cursor = Cursor::new(text)?;
    let mut ports = Vec::new();
    while cursor.at_ports() {
        cursor.ports(&mut ports)?;
    }
    cursor.finish(PORTS)?;
    Ok(ports)
}

/// What may be listed after `net`.
pub(super) enum Listed {
    Net(IpNet),
    Name(DomainPattern),
}

/// A network, or a name whose addresses are meant.
pub(super) fn listed(word: &str) -> Result<Listed, String> {
    // Only a name has a letter that is no hexadecimal digit and neither of the characters of addresses.
    let name = word.starts_with("*.")
        || (!word.contains([':', '/']) && word.contains('.') && word.contains(|c: char| c.is_alphabetic()));
    if name {
        return word.parse().map(Listed::Name).map_err(|error| format!("{error}"));
    }
    network(word).map(Listed::Net)
}

/// A prefix with no host bits set, or an address.
pub(super) fn network(word: &str) -> Result<IpNet, String> {
    const EXPECTED: &str =
        "expected a network such as 10.0.0.0/8 or 2001:db8::/32, or a name such as example.org or *.example.org";
    let net = match word.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => match word.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => return Err(format!("`{word}` is not a network: {EXPECTED}")),
        },
    };
    if net.trunc() != net {
        return Err(format!(
            "`{word}` has bits set beyond its prefix: expected {}, or {} for the address alone",
            net.trunc(),
            IpNet::from(net.addr())
        ));
    }
    Ok(net)
}

/// Demands that every excepted prefix cuts something out.
///
/// Beside names anything may be excepted: where they lead is not known beforehand.
pub(super) fn check_except(networks: &Networks, except: &IpNet) -> Result<(), String> {
    if !networks.names.is_empty() || networks.include.iter().any(|net| net.contains(except)) {
        return Ok(());
    }
    Err(format!("`{except}` excepts nothing: expected a prefix inside one of those before `except`"))
}

/// Names of rules and policies appear in logs and as `policy/rule`.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let well_formed =
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if well_formed {
        return Ok(());
    }
    Err(format!("name {name:?} is malformed: expected letters, digits, `_`, `-` and `.`"))
}

/// Rejects an alternative that would require two different things of the reader.
pub(super) fn check_sides(subject: &Side, object: &Side) -> Result<(), String> {
    match (subject, object) {
        (Side::Net(_), Side::Net(_)) => {
            Err("both sides are external networks: expected a selector of PUs on one side".to_owned())
        }
        _ => Ok(()),
    }
}

const PORTS: &str = "a port list such as tcp/443,8000-8999, udp/53, icmp/8, icmp6 or tcp";

struct Cursor {
    tokens: Vec<Token>,
    at: usize,
    end: usize,
}

impl Cursor {
    fn new(text: &str) -> Result<Self, Fault> {
        Ok(Self { tokens: tokens(text)?, at: 0, end: text.trim_end().len() })
    }

    fn rule(&mut self) -> Result<Rule, Fault> {
        let name = self.name()?;
        let verb = if self.take_word("allow") {
            Verb::Allow
        } else if self.take_word("deny") {
            Verb::Deny
        } else if self.take_word("pass") {
            Verb::Pass
        } else {
            return Err(self.expected("`allow`, `deny` or `pass`"));
        };
        let subject = self.side()?;
        if !self.take(&Kind::Arrow) {
            return Err(self.expected("another clause, `|`, or `->` and the object"));
        }
        let object_at = self.offset();
        let object = self.side()?;
        check_sides(&subject, &object).map_err(|message| Fault::new(object_at, message))?;
        let mut rule = Rule { name, ..Rule::new(verb, subject, object) };
        self.tail(&mut rule)?;
        Ok(rule)
    }

    fn name(&mut self) -> Result<Option<String>, Fault> {
        let Some(Kind::Word(word)) = self.peek() else {
            return Ok(None);
        };
        let Some(name) = word.strip_suffix(':') else {
            return Ok(None);
        };
        check_name(name).map_err(|message| Fault::new(self.offset(), message))?;
        let name = name.to_owned();
        self.at += 1;
        Ok(Some(name))
    }

    fn tail(&mut self, rule: &mut Rule) -> Result<(), Fault> {
        loop {
            let at = self.offset();
            if self.at_ports() {
                self.ports(&mut rule.ports)?;
            } else if let Some(ends) = self.ends() {
                if rule.ends != Ends::Both && rule.ends != ends {
                    return Err(Fault::new(at, BOTH_ENDS));
                }
                check_ends(ends, &rule.subject, &rule.object).map_err(|message| Fault::new(at, message))?;
                rule.ends = ends;
            } else if self.take_word("until") {
                let at = self.offset();
                if rule.until.is_some() {
                    return Err(Fault::new(at, "`until` is given twice: expected it once"));
                }
                let word = self.text("a moment such as 2026-12-31T23:59:59Z after `until`")?;
                rule.until = Some(moment(&word).map_err(|message| Fault::new(at, message))?);
            } else if self.take_word("log") {
                rule.log = true;
            } else if self.take_word("observe") {
                check_observe(rule.verb).map_err(|message| Fault::new(at, message))?;
                rule.observe = true;
            } else if self.take_word("encrypt") {
                check_encrypt(rule.verb).map_err(|message| Fault::new(at, message))?;
                rule.encrypt = true;
            } else {
                return Ok(());
            }
        }
    }

    fn ends(&mut self) -> Option<Ends> {
        if self.take_word("egress") {
            return Some(Ends::Egress);
        }
        self.take_word("ingress").then_some(Ends::Ingress)
    }

    fn side(&mut self) -> Result<Side, Fault> {
        if self.take_word("any") {
            return Ok(Side::any());
        }
        if self.take_word("net") {
            return self.networks().map(Side::Net);
        }
        let mut alternatives = Vec::new();
        loop {
            let mut clauses = vec![self.clause()?];
            loop {
                self.take_word("and");
                match self.peek() {
                    Some(Kind::Quoted(_) | Kind::Bang) => clauses.push(self.clause()?),
                    Some(Kind::Word(word)) if !ends_clauses(word) => clauses.push(self.clause()?),
                    _ => break,
                }
            }
            alternatives.push(clauses);
            if !self.take(&Kind::Pipe) && !self.take_word("or") {
                return Ok(Side::Tags(Selector { alternatives }));
            }
        }
    }

    fn clause(&mut self) -> Result<Clause, Fault> {
        const EXPECTED: &str =
            "a clause such as k=v, k!=v, k in (a,b), k not in (a,b), k=pre*, k or !k, or `any`, or `net …`";
        if self.take(&Kind::Bang) {
            let key = self.key("a tag key after `!`")?;
            if matches!(self.peek(), Some(Kind::Equal | Kind::NotEqual)) {
                return Err(self.expected("nothing after `!key`; a value is refused with `k!=v`"));
            }
            return Ok(Clause { key, operator: Operator::NotExists });
        }
        let at = self.offset();
        let bare = matches!(self.peek(), Some(Kind::Word(_)));
        let key = self.key(EXPECTED)?;
        let operator = if self.take(&Kind::Equal) {
            self.equals()?
        } else if self.take(&Kind::NotEqual) {
            Operator::NotEquals(self.literal("a value after `!=`")?)
        } else if self.take_word("in") {
            Operator::In(self.list()?)
        } else if self.take_word("not") {
            if !self.take_word("in") {
                return Err(self.expected("`in (…)` after `not`"));
            }
            Operator::NotIn(self.list()?)
        } else if bare && looks_like_ports(&key) {
            return Err(Fault::new(
                at,
                format!(
                    "`{key}` is neither a port list nor a tag key: expected {PORTS}; a key like this must stand in quotes"
                ),
            ));
        } else {
            Operator::Exists
        };
        Ok(Clause { key, operator })
    }

    fn key(&mut self, expected: &str) -> Result<String, Fault> {
        match self.peek() {
            Some(Kind::Word(word)) if is_keyword(word) || starts_port_list(word) => {
                let hint = format!("{expected}; a key that is also a keyword must stand in quotes");
                Err(self.expected(&hint))
            }
            _ => self.text(expected),
        }
    }

    fn equals(&mut self) -> Result<Operator, Fault> {
        if self.peek() == Some(&Kind::Star) {
            return Err(self.expected("a value; that a key exists is written as the key alone"));
        }
        let value = self.text("a value after `=`")?;
        if !self.star_follows() {
            return Ok(Operator::Equals(value));
        }
        let star = self.at;
        self.at += 1;
        if let (Some(star), Some(next)) = (self.tokens.get(star), self.tokens.get(self.at))
            && star.end == next.start
            && matches!(next.kind, Kind::Word(_) | Kind::Quoted(_) | Kind::Star)
        {
            return Err(self.expected("a space: `*` may only end a value"));
        }
        Ok(Operator::Prefix(value))
    }

    fn list(&mut self) -> Result<Vec<String>, Fault> {
        if !self.take(&Kind::Open) {
            return Err(self.expected("`(` and a list of values"));
        }
        let mut values = vec![self.literal("a value")?];
        while self.take(&Kind::Comma) {
            values.push(self.literal("a value after `,`")?);
        }
        if !self.take(&Kind::Close) {
            return Err(self.expected("`,` and another value, or `)`"));
        }
        Ok(values)
    }

    /// A value that may not be a prefix.
    fn literal(&mut self, expected: &str) -> Result<String, Fault> {
        let value = self.text(expected)?;
        if self.star_follows() {
            return Err(
                self.expected("a whole value: a prefix may only follow `=`; quote a `*` that is meant literally")
            );
        }
        Ok(value)
    }

    fn text(&mut self, expected: &str) -> Result<String, Fault> {
        match self.peek() {
            Some(Kind::Word(text) | Kind::Quoted(text)) => {
                let text = text.clone();
                self.at += 1;
                Ok(text)
            }
            _ => Err(self.expected(expected)),
        }
    }

    fn star_follows(&self) -> bool {
        let Some(before) = self.at.checked_sub(1).and_then(|at| self.tokens.get(at)) else {
            return false;
        };
        self.tokens.get(self.at).is_some_and(|token| token.kind == Kind::Star && token.start == before.end)
    }

    fn networks(&mut self) -> Result<Networks, Fault> {
        let mut networks = Networks::default();
        loop {
            let at = self.offset();
            let word = self.network_word()?;
            match listed(&word).map_err(|message| Fault::new(at, message))? {
                Listed::Net(net) => networks.include.push(net),
                Listed::Name(name) => networks.names.push(name),
            }
            if !self.take(&Kind::Comma) {
                break;
            }
        }
        if !self.take_word("except") {
            return Ok(networks);
        }
        loop {
            let at = self.offset();
            let word = self.network_word()?;
            let net = network(&word).map_err(|message| Fault::new(at, message))?;
            check_except(&networks, &net).map_err(|message| Fault::new(at, message))?;
            networks.except.push(net);
            if !self.take(&Kind::Comma) {
                return Ok(networks);
            }
        }
    }

    /// A word; `*.example.org` comes as a star and a word.
    fn network_word(&mut self) -> Result<String, Fault> {
        let star = self.peek() == Some(&Kind::Star);
        if star
            && let [star, word, ..] = &self.tokens[self.at..]
            && let Kind::Word(text) = &word.kind
            && star.end == word.start
        {
            let pattern = format!("*{text}");
            self.at += 2;
            return Ok(pattern);
        }
        self.text("a network such as 10.0.0.0/8 or 2001:db8::/32, or a name such as example.org or *.example.org")
    }

    fn at_ports(&self) -> bool {
        matches!(self.peek(), Some(Kind::Word(word)) if starts_port_list(word))
    }

    fn ports(&mut self, ports: &mut Vec<PortRange>) -> Result<(), Fault> {
        let at = self.offset();
        let word = self.text(PORTS)?;
        let (name, first) = match word.split_once('/') {
            Some((name, first)) => (name, Some(first)),
            None => (word.as_str(), None),
        };
        let Some(protocol) = PortRange::protocol_by_name(name) else {
            return Err(Fault::new(at, format!("expected {PORTS}")));
        };
        let Some(first) = first else {
            ports.push(PortRange::all(protocol));
            return Ok(());
        };
        let first_at = at + name.len() + 1;
        ports.push(range(protocol, first).map_err(|message| Fault::new(first_at, message))?);
        while self.take(&Kind::Comma) {
            let at = self.offset();
            let word = self.text("a port or range after `,`")?;
            ports.push(range(protocol, &word).map_err(|message| Fault::new(at, message))?);
        }
        Ok(())
    }

    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    fn take(&mut self, kind: &Kind) -> bool {
        let found = self.peek() == Some(kind);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, expected: &str) -> bool {
        let found = matches!(self.peek(), Some(Kind::Word(word)) if word == expected);
        self.at += usize::from(found);
        found
    }

    fn offset(&self) -> usize {
        self.tokens.get(self.at).map_or(self.end, |t| t.start)
    }

    fn expected(&self, expected: &str) -> Fault {
        let message = match self.peek() {
            Some(found) => format!("found {found}: expected {expected}"),
            None => format!("found the end of the text: expected {expected}"),
        };
        Fault::new(self.offset(), message)
    }

    fn finish(&self, expected: &str) -> Result<(), Fault> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected(expected)),
        }
    }
}

/// Refuses `encrypt` where nothing would be sent.
pub(super) fn check_encrypt(verb: Verb) -> Result<(), String> {
    match verb {
        Verb::Allow => Ok(()),
        _ => Err(format!("`encrypt` has no meaning in a {verb} rule: expected it on `allow` only")),
    }
}

/// Refuses to observe what has no outcome of its own to report.
pub(super) fn check_observe(verb: Verb) -> Result<(), String> {
    match verb {
        Verb::Pass => Err("`observe` has no meaning in a pass rule: expected it on `allow` or `deny`".to_owned()),
        _ => Ok(()),
    }
}

/// Refuses to speak for the end of an external network: it has none.
pub(super) fn check_ends(ends: Ends, subject: &Side, object: &Side) -> Result<(), String> {
    let (word, side) = match ends {
        Ends::Both => return Ok(()),
        Ends::Egress => ("egress", subject),
        Ends::Ingress => ("ingress", object),
    };
    match side {
        Side::Net(_) => Err(format!("`{word}` speaks for the end of a PU: expected a selector of PUs on that side")),
        Side::Tags(_) => Ok(()),
    }
}

/// The moment of an `until`.
pub(super) fn moment(text: &str) -> Result<Moment, String> {
    text.parse().map_err(|error| format!("{error}"))
}

const BOTH_ENDS: &str = "both `egress` and `ingress`: expected one of them, or neither for both ends";

fn ends_clauses(word: &str) -> bool {
    matches!(word, "or" | "egress" | "ingress" | "until" | "encrypt" | "log" | "observe") || starts_port_list(word)
}

fn range(protocol: u8, text: &str) -> Result<PortRange, String> {
    let (low, high) = match text.split_once('-') {
        Some((low, high)) => (bounds(protocol, low)?.0, bounds(protocol, high)?.1),
        None => bounds(protocol, text)?,
    };
    if low > high {
        return Err(format!("range `{text}` runs backwards: expected the lower bound first"));
    }
    Ok(PortRange { protocol, low, high })
}

/// Lowest and highest port that one bound of a range stands for: an ICMP type means all its codes.
fn bounds(protocol: u8, text: &str) -> Result<(u16, u16), String> {
    if !PortRange::is_icmp(protocol) {
        let port = number::<u16>(text).ok_or_else(|| {
            format!("`{text}` is not a port: expected a number from 0 to 65535, or a range such as 9000-9010")
        })?;
        return Ok((port, port));
    }
    let bad = || format!("`{text}` is not an ICMP type: expected a type from 0 to 255, or type:code");
    let (kind, code) = match text.split_once(':') {
        Some((kind, code)) => (kind, Some(number::<u8>(code).ok_or_else(bad)?)),
        None => (text, None),
    };
    let kind = number::<u8>(kind).ok_or_else(bad)?;
    Ok((u16::from_be_bytes([kind, code.unwrap_or(0)]), u16::from_be_bytes([kind, code.unwrap_or(u8::MAX)])))
}

/// `FromStr` of integers takes a leading `+`; a port has none.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.chars().all(|c| c.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
