use std::sync::Arc;

use super::error::{Fault, PolicyError};
use super::line::{self, Listed};
use super::yaml_tree::{Content, Node, Scalar, documents};
use crate::model::{
    Clause, Ends, Head, Location, Namespace, Networks, Operator, PolicyRule, PortRange, Rule, Selector, Side, Tier,
    Verb,
};

type Parsed<T> = Result<T, PolicyError>;

const POLICY_KEYS: [&str; 5] = ["name", "namespace", "tier", "priority", "rules"];
pub(super) const RULE_KEYS: [&str; 10] =
    ["name", "action", "from", "to", "ports", "ends", "until", "encrypt", "log", "observe"];
const SIDE_KEYS: [&str; 4] = ["any", "tags", "net", "except"];

/// Reads a policy file, adding to `rules` what is well-formed and to `errors` what is not.
pub(super) fn file(file: &Arc<str>, text: &str, rules: &mut Vec<PolicyRule>, errors: &mut Vec<PolicyError>) {
    let documents = match documents(file, text) {
        Ok(documents) => documents,
        Err(error) => return errors.push(error),
    };
    for document in &documents {
        match &document.content {
            Content::Scalar(scalar) if scalar.is_null() => {}
            Content::List(policies) => {
                for node in policies {
                    policy(node, rules, errors);
                }
            }
            _ => policy(document, rules, errors),
        }
    }
}

/// Reads what stands before the rules of a policy, from a text with nothing else.
pub(super) fn head(file: &Arc<str>, text: &str) -> Option<Head> {
    let [document] = &documents(file, text).ok()?[..] else { return None };
    let node = match &document.content {
        Content::List(policies) => match policies.as_slice() {
            [node] => node,
            _ => return None,
        },
        _ => document,
    };
    let (head, rules) = parts(node).ok()?;
    rules.is_empty().then_some(head)
}

/// Reads one entry of a list of rules, from a text with nothing else; its place in that text and the rule.
pub(super) fn entry(file: &Arc<str>, text: &str) -> Option<(Location, Rule)> {
    let [document] = &documents(file, text).ok()?[..] else { return None };
    match &document.content {
        Content::List(entries) => match entries.as_slice() {
            [node] => Some((node.location.clone(), rule(node).ok()?)),
            _ => None,
        },
        _ => None,
    }
}

/// The head of a policy and the nodes of its rules.
fn parts(node: &Node) -> Parsed<(Head, &[Node])> {
    let fields = Fields::new(node, "a policy", &POLICY_KEYS)?;
    let name_node = fields.require("name")?;
    let name = text(name_node)?;
    line::check_name(name).map_err(|message| name_node.error(message))?;
    let namespace = match fields.get("namespace") {
        Some(node) => text(node)?.parse().map_err(|error| node.error(format!("{error}")))?,
        None => Namespace::root(),
    };
    let tier = tier(&fields)?;
    let rules = fields.require("rules")?;
    let rules = match &rules.content {
        Content::List(rules) => rules.as_slice(),
        Content::Scalar(scalar) if scalar.is_null() => &[],
        _ => {
            return Err(rules.error(format!("found {}: expected a list of rules", rules.kind())));
        }
    };
    Ok((Head { name: name.into(), namespace, tier }, rules))
}

fn policy(node: &Node, rules: &mut Vec<PolicyRule>, errors: &mut Vec<PolicyError>) {
    let (head, nodes) = match parts(node) {
        Ok((head, nodes)) => (Arc::new(head), nodes),
        Err(error) => return errors.push(error),
    };
    for (index, node) in nodes.iter().enumerate() {
        match rule(node).and_then(|rule| in_tier(node, rule, head.tier)) {
            Ok(rule) => rules.push(PolicyRule::new(
                head.clone(),
                u32::try_from(index + 1).unwrap_or(u32::MAX),
                node.location.clone(),
                rule,
            )),
            Err(error) => errors.push(error),
        }
    }
}

/// The tier and, where the order counts, the priority.
fn tier(fields: &Fields<'_>) -> Parsed<Tier> {
    let named = fields.get("tier");
    let priority = fields.get("priority");
    let ordered = match named.map(text).transpose()? {
        None | Some("normal") => {
            return match priority {
                None => Ok(Tier::Normal),
                Some(node) => Err(node.error(
                    "`priority` in the normal tier, where deny beats allow whatever the order: expected `tier: admin` or `tier: baseline` with it",
                )),
            };
        }
        Some("admin") => Tier::Admin,
        Some("baseline") => Tier::Baseline,
        Some(other) => {
            let node = named.unwrap_or(fields.node);
            return Err(node.error(format!("found `{other}`: expected `admin`, `normal` or `baseline`")));
        }
    };
    let node = fields.require("priority")?;
    let priority = text(node)?;
    let number = priority.chars().all(|c| c.is_ascii_digit()).then(|| priority.parse().ok()).flatten();
    let number = number.ok_or_else(|| {
        node.error(format!(
            "`{priority}` is not a priority: expected a number from 0 to 65535, the smallest asked first"
        ))
    })?;
    Ok(ordered(number))
}

/// Refuses what only has a meaning where rules are asked one after the other.
fn in_tier(node: &Node, rule: Rule, tier: Tier) -> Parsed<Rule> {
    if rule.verb == Verb::Pass && !tier.is_ordered() {
        return Err(node.error(
            "`pass` in the normal tier: expected `allow` or `deny`, or a policy of `tier: admin` or `tier: baseline`",
        ));
    }
    Ok(rule)
}

fn rule(node: &Node) -> Parsed<Rule> {
    match &node.content {
        Content::Scalar(scalar) => line::rule(&scalar.text).map_err(|f| scalar.locate(&node.location, f)),
        Content::Map(entries) => match entries.as_slice() {
            [(key, value)] if is_named_line(key, value) => named_line(key, value),
            _ => rule_mapping(node),
        },
        Content::List(_) => Err(node.error(
            "found a list: expected a rule line such as `allow app=web -> app=db tcp/5432`, or a mapping with `action`, `from` and `to`",
        )),
    }
}

/// `- web: allow …` is a mapping to YAML, but to its author a rule line with a name.
fn is_named_line(key: &Node, value: &Node) -> bool {
    match (&key.content, &value.content) {
        (Content::Scalar(key), Content::Scalar(value)) => {
            !RULE_KEYS.contains(&key.text.as_str())
                && ["allow", "deny", "pass"].iter().any(|verb| value.text.split_whitespace().next() == Some(verb))
        }
        _ => false,
    }
}

fn named_line(key: &Node, value: &Node) -> Parsed<Rule> {
    let name = text(key)?;
    line::check_name(name).map_err(|message| key.error(message))?;
    let mut rule = line::rule(text(value)?).map_err(|fault| locate(value, fault))?;
    rule.name = Some(name.to_owned());
    Ok(rule)
}

fn rule_mapping(node: &Node) -> Parsed<Rule> {
    let fields = Fields::new(node, "a rule", &RULE_KEYS)?;
    let name = match fields.get("name") {
        Some(node) => {
            let name = text(node)?;
            line::check_name(name).map_err(|message| node.error(message))?;
            Some(name.to_owned())
        }
        None => None,
    };
    let action_node = fields.require("action")?;
    let verb = match text(action_node)? {
        "allow" => Verb::Allow,
        "deny" => Verb::Deny,
        "pass" => Verb::Pass,
        other => {
            return Err(action_node.error(format!("found `{other}`: expected `allow`, `deny` or `pass`")));
        }
    };
    let subject = side(fields.require("from")?)?;
    let object_node = fields.require("to")?;
    let object = side(object_node)?;
    line::check_sides(&subject, &object).map_err(|message| object_node.error(message))?;
    let encrypt = fields.flag("encrypt")?;
    if let (true, Some(node)) = (encrypt, fields.get("encrypt")) {
        line::check_encrypt(verb).map_err(|message| node.error(message))?;
    }
    let observe = fields.flag("observe")?;
    if let (true, Some(node)) = (observe, fields.get("observe")) {
        line::check_observe(verb).map_err(|message| node.error(message))?;
    }
    let ends = match fields.get("ends") {
        Some(node) => ends(node, &subject, &object)?,
        None => Ends::Both,
    };
    let until = |node: &Node| line::moment(text(node)?).map_err(|message| node.error(message));
    Ok(Rule {
        name,
        ports: fields.get("ports").map(ports).transpose()?.unwrap_or_default(),
        ends,
        until: fields.get("until").map(until).transpose()?,
        encrypt,
        log: fields.flag("log")?,
        observe,
        ..Rule::new(verb, subject, object)
    })
}

fn ends(node: &Node, subject: &Side, object: &Side) -> Parsed<Ends> {
    let ends = match text(node)? {
        "both" => Ends::Both,
        "egress" => Ends::Egress,
        "ingress" => Ends::Ingress,
        other => return Err(node.error(format!("found `{other}`: expected `egress`, `ingress` or `both`"))),
    };
    line::check_ends(ends, subject, object).map_err(|message| node.error(message))?;
    Ok(ends)
}

fn side(node: &Node) -> Parsed<Side> {
    match &node.content {
        Content::Scalar(scalar) => line::side(&scalar.text).map_err(|f| scalar.locate(&node.location, f)),
        Content::List(items) => alternatives(node, items),
        Content::Map(_) => side_mapping(node),
    }
}

/// A list of selectors, of which one must hold.
fn alternatives(node: &Node, items: &[Node]) -> Parsed<Side> {
    let mut alternatives = Vec::new();
    for item in items {
        match line::side(text(item)?).map_err(|fault| locate(item, fault))? {
            Side::Tags(selector) => alternatives.extend(selector.alternatives),
            Side::Net(_) => {
                return Err(item.error(
                    "found a network among alternatives: expected a selector of tags; write networks as {net: [...]}",
                ));
            }
        }
    }
    if alternatives.is_empty() {
        return Err(node.error("found an empty list: expected at least one selector, or `any`"));
    }
    Ok(Side::Tags(Selector { alternatives }))
}

fn side_mapping(node: &Node) -> Parsed<Side> {
    let fields = Fields::new(node, "a side", &SIDE_KEYS)?;
    let one_of = || node.error("expected exactly one of `any: true`, `tags` and `net`");
    match (fields.get("any"), fields.get("tags"), fields.get("net")) {
        (Some(any), None, None) if fields.get("except").is_none() => match fields.flag("any")? {
            true => Ok(Side::any()),
            false => Err(any.error("found `false`: expected `true`, or `tags` or `net` in its place")),
        },
        (None, Some(tags), None) if fields.get("except").is_none() => tag_mapping(tags),
        (None, None, Some(net)) => {
            let mut meant = Networks::default();
            for (word, node) in words(net)? {
                match line::listed(word).map_err(|message| node.error(message))? {
                    Listed::Net(net) => meant.include.push(net),
                    Listed::Name(name) => meant.names.push(name),
                }
            }
            for (word, node) in fields.get("except").map(words).transpose()?.unwrap_or_default() {
                let net = line::network(word).map_err(|message| node.error(message))?;
                line::check_except(&meant, &net).map_err(|message| node.error(message))?;
                meant.except.push(net);
            }
            Ok(Side::Net(meant))
        }
        _ => Err(one_of()),
    }
}

/// `tags: {app: web, user: [a, b]}`, or a selector in its text form.
fn tag_mapping(node: &Node) -> Parsed<Side> {
    let entries = match &node.content {
        Content::Map(entries) if !entries.is_empty() => entries,
        Content::Scalar(scalar) if !scalar.is_null() => {
            return match side(node)? {
                Side::Net(_) => Err(node.error("found a network: expected tags; write `net` in place of `tags`")),
                tags => Ok(tags),
            };
        }
        _ => {
            return Err(
                node.error(format!("found {}: expected a mapping of tag keys to values, or a selector", node.kind()))
            );
        }
    };
    let mut clauses: Vec<Clause> = Vec::new();
    for (key_node, value) in entries {
        let key = text(key_node)?;
        if clauses.iter().any(|clause| clause.key == key) {
            return Err(key_node.error(format!("key `{key}` is given twice: expected each key once")));
        }
        let operator = match &value.content {
            Content::List(items) if !items.is_empty() => {
                Operator::In(items.iter().map(tag_value).collect::<Parsed<_>>()?)
            }
            Content::List(_) => {
                return Err(value.error("found an empty list: expected at least one value"));
            }
            _ => Operator::Equals(tag_value(value)?),
        };
        clauses.push(Clause { key: key.to_owned(), operator });
    }
    Ok(Side::Tags(Selector { alternatives: vec![clauses] }))
}

/// YAML's quotes cannot say whether a `*` is meant as a prefix, so it is not taken at all here.
fn tag_value(node: &Node) -> Parsed<String> {
    let value = text(node)?;
    if value.ends_with('*') {
        return Err(node.error(format!(
            "`{value}` ends in `*`: expected a whole value; write prefixes in a selector, such as `from: k=pre*`"
        )));
    }
    Ok(value.to_owned())
}

/// Networks and names, each with the node it stands in.
fn words(node: &Node) -> Parsed<Vec<(&str, &Node)>> {
    let items = match &node.content {
        Content::List(items) if !items.is_empty() => items.as_slice(),
        Content::List(_) => {
            return Err(node.error("found an empty list: expected at least one network"));
        }
        _ => std::slice::from_ref(node),
    };
    let mut list = Vec::new();
    for item in items {
        list.extend(text(item)?.split(',').map(|word| (word.trim(), item)));
    }
    Ok(list)
}

fn ports(node: &Node) -> Parsed<Vec<PortRange>> {
    let one = |node: &Node| match &node.content {
        Content::Scalar(scalar) => line::ports(&scalar.text).map_err(|f| scalar.locate(&node.location, f)),
        _ => Err(node.error(format!("found {}: expected ports such as tcp/443", node.kind()))),
    };
    let items = match &node.content {
        Content::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    };
    let mut ports = Vec::new();
    for item in items {
        ports.extend(one(item)?);
    }
    if ports.is_empty() {
        return Err(node.error(
            "found no ports: expected at least one such as tcp/443; leave `ports` out to mean every protocol and port",
        ));
    }
    Ok(ports)
}

fn scalar(node: &Node) -> Parsed<&Scalar> {
    match &node.content {
        Content::Scalar(scalar) if !scalar.is_null() => Ok(scalar),
        _ => Err(node.error(format!("found {}: expected a text", node.kind()))),
    }
}

fn text(node: &Node) -> Parsed<&str> {
    scalar(node).map(|scalar| scalar.text.as_str())
}

fn locate(node: &Node, fault: Fault) -> PolicyError {
    match &node.content {
        Content::Scalar(scalar) => scalar.locate(&node.location, fault),
        _ => node.error(fault.message),
    }
}

/// The entries of a mapping whose keys have been checked.
struct Fields<'a> {
    node: &'a Node,
    what: &'static str,
    entries: Vec<(&'a str, &'a Node)>,
}

impl<'a> Fields<'a> {
    fn new(node: &'a Node, what: &'static str, known: &[&str]) -> Parsed<Self> {
        let expected = known.join(", ");
        let Content::Map(pairs) = &node.content else {
            return Err(
                node.error(format!("found {}: expected {what}, a mapping with the keys {expected}", node.kind()))
            );
        };
        let mut entries: Vec<(&str, &Node)> = Vec::new();
        for (key_node, value) in pairs {
            let key = text(key_node)?;
            if !known.contains(&key) {
                return Err(key_node.error(format!("unknown key `{key}` in {what}: expected one of {expected}")));
            }
            if entries.iter().any(|(seen, _)| *seen == key) {
                return Err(key_node.error(format!("key `{key}` is given twice: expected each key once")));
            }
            entries.push((key, value));
        }
        Ok(Self { node, what, entries })
    }

    fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(found, _)| *found == key).map(|&(_, node)| node)
    }

    fn require(&self, key: &str) -> Parsed<&'a Node> {
        self.get(key).ok_or_else(|| self.node.error(format!("{} without `{key}`: expected that key", self.what)))
    }

    fn flag(&self, key: &str) -> Parsed<bool> {
        let Some(node) = self.get(key) else {
            return Ok(false);
        };
        match &node.content {
            Content::Scalar(scalar) if scalar.plain && scalar.text == "true" => Ok(true),
            Content::Scalar(scalar) if scalar.plain && scalar.text == "false" => Ok(false),
            _ => Err(node.error(format!("`{key}` is neither true nor false: expected `true` or `false`"))),
        }
    }
}
