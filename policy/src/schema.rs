//! The shape of a policy file as a JSON Schema, for editors: keys, values, descriptions.
//!
//! The types here say for machines what [`crate::parse`] reads; tests hold the two together. What is inside a rule line or
//! a selector is for the parser alone (`enforcer policy check`).
#![allow(dead_code, reason = "the types are only described, never made")]

use std::collections::BTreeMap;

use schemars::{JsonSchema, generate::SchemaSettings};

/// The JSON Schema (draft 2020-12) of a policy file.
pub fn schema() -> serde_json::Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    generator.into_root_schema_for::<PolicyFile>().to_value()
}

/// Policies of the enforcer: one, or a list of them. See docs/policy.md.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum PolicyFile {
    /// Several policies.
    Many(Vec<Policy>),
    /// One policy.
    One(Policy),
    /// An empty file: no rules, so nothing is allowed.
    Empty(()),
}

/// Rules that belong together.
#[derive(JsonSchema)]
#[schemars(
    deny_unknown_fields,
    extend(
        "if" = {"properties": {"tier": {"enum": ["admin", "baseline"]}}, "required": ["tier"]},
        "then" = {"required": ["priority"]},
        "else" = {"properties": {"priority": false}}
    )
)]
struct Policy {
    /// Its name, in verdicts, logs and metrics.
    #[schemars(regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    name: String,
    /// Where it lives, such as /acme/prod; it speaks of PUs there and beneath. The root if left out.
    #[schemars(regex(pattern = "^/$|^(/[^/]+)+$"))]
    #[schemars(default, skip_serializing_if = "unsaid")]
    namespace: String,
    /// When it is asked: admin first, then normal, then baseline. In the normal tier deny beats allow; in the others the
    /// first rule that matches answers.
    #[schemars(default, skip_serializing_if = "unsaid")]
    tier: Tier,
    /// Order within the tier, the smallest first; only with the admin and baseline tiers, and required there.
    #[schemars(default, skip_serializing_if = "unsaid")]
    priority: u16,
    /// The rules.
    rules: Rules,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Rules {
    Some(Vec<RuleEntry>),
    None(()),
}

#[derive(Default, JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Tier {
    Admin,
    #[default]
    Normal,
    Baseline,
}

/// A rule as a line, as a line with a name, or as a mapping.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum RuleEntry {
    /// `[name:] allow|deny|pass SUBJECT -> OBJECT [PORTS...] [egress|ingress] [until TIME] [encrypt] [log] [observe]`
    Line(RuleLine),
    /// `NAME: LINE`
    Named(NamedLine),
    /// A rule key by key.
    Mapping(Box<RuleMapping>),
}

#[derive(JsonSchema)]
#[schemars(transparent)]
struct RuleLine(#[schemars(regex(pattern = "^\\s*([A-Za-z0-9_.-]+:\\s+)?(allow|deny|pass)\\s(.|\\n)*->"))] String);

#[derive(JsonSchema)]
#[schemars(
    transparent,
    extend(
        "minProperties" = 1,
        "maxProperties" = 1,
        "propertyNames" = {
            "pattern": "^[A-Za-z0-9_.-]+$",
            "not": {"enum": ["name", "action", "from", "to", "ports", "ends", "until", "encrypt", "log", "observe"]}
        }
    )
)]
struct NamedLine(BTreeMap<String, BareLine>);

#[derive(JsonSchema)]
#[schemars(transparent)]
struct BareLine(#[schemars(regex(pattern = "^\\s*(allow|deny|pass)\\s(.|\\n)*->"))] String);

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct RuleMapping {
    /// Its name, unique within the policy.
    #[schemars(regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    #[schemars(default, skip_serializing_if = "unsaid")]
    name: String,
    /// What becomes of the connection.
    action: ActionWord,
    /// Who opens it.
    from: SideValue,
    /// To whom.
    to: SideValue,
    /// To which ports, such as tcp/443,8000-8999; every protocol and port if left out.
    #[schemars(default, skip_serializing_if = "unsaid")]
    ports: Ports,
    /// For which end it speaks: that of the PU which opens (egress), that of the PU opened to (ingress), or both.
    #[schemars(default, skip_serializing_if = "unsaid")]
    ends: EndsWord,
    /// When it ends, such as 2026-12-31T23:59:59Z.
    #[schemars(extend("format" = "date-time"))]
    #[schemars(default, skip_serializing_if = "unsaid")]
    until: String,
    /// Payload must be encrypted; only with allow.
    #[schemars(default, skip_serializing_if = "unsaid")]
    encrypt: bool,
    /// Log connections it has a say in.
    #[schemars(default, skip_serializing_if = "unsaid")]
    log: bool,
    /// Report what it would do, change nothing.
    #[schemars(default, skip_serializing_if = "unsaid")]
    observe: bool,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum ActionWord {
    /// It may be opened.
    Allow,
    /// It is refused.
    Deny,
    /// The next tier decides; only in the admin and baseline tiers.
    Pass,
}

#[derive(Default, JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum EndsWord {
    #[default]
    Both,
    Egress,
    Ingress,
}

/// One side of a rule.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum SideValue {
    /// A selector such as `app=web user=prod`, `any`, or `net 10.0.0.0/8`.
    Selector(Text),
    /// Selectors, of which one must hold.
    Alternatives(#[schemars(length(min = 1))] Vec<Text>),
    /// Every PU.
    Any(AnyPu),
    /// PUs by their tags.
    Tags(ByTags),
    /// External networks.
    Net(ByNet),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct AnyPu {
    #[schemars(extend("const" = true))]
    any: bool,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ByTags {
    /// Each key with a value, or with values of which one must be there; or a selector.
    tags: TagsValue,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum TagsValue {
    Selector(Text),
    Mapping(#[schemars(extend("minProperties" = 1))] BTreeMap<String, TagValues>),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum TagValues {
    One(TagValue),
    Some(#[schemars(length(min = 1))] Vec<TagValue>),
}

/// A whole value: prefixes are written in selectors.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum TagValue {
    Text(#[schemars(regex(pattern = "[^*]$"))] String),
    Number(f64),
    Flag(bool),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ByNet {
    /// Networks, addresses and DNS names, such as 10.0.0.0/8, 2001:db8::1, example.org, *.example.org.
    net: Words,
    /// Networks cut out of them.
    #[schemars(default, skip_serializing_if = "unsaid")]
    except: Words,
}

#[derive(Default, JsonSchema)]
#[schemars(transparent)]
struct Words(OneOrMany);

/// A text, or a list of them.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum OneOrMany {
    One(Text),
    Many(#[schemars(length(min = 1))] Vec<Text>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

#[derive(Default, JsonSchema)]
#[schemars(transparent)]
struct Ports(OneOrMany);

#[derive(JsonSchema)]
#[schemars(transparent)]
struct Text(#[schemars(length(min = 1))] String);

/// Keys that may be left out have no default worth telling.
fn unsaid<T>(_: &T) -> bool {
    true
}
