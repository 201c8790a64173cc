use std::fmt;

use ipnet::IpNet;

use super::{DomainPattern, Identity, Tags, is_keyword, is_word_char, looks_like_ports, starts_port_list};

/// One end of a rule: who is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// PUs by their tags. Never matches an external network.
    Tags(Selector),
    /// External networks by address. Never matches a PU.
    Net(Networks),
}

/// Alternatives, of which one must hold; each is a list of clauses that must all hold.
///
/// An empty list of clauses (`any`) holds for every PU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    /// The alternatives, at least one.
    pub alternatives: Vec<Vec<Clause>>,
}

/// One condition on the values a PU has for a tag key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Clause {
    /// The tag's key.
    pub key: String,
    /// What its values must be like.
    pub operator: Operator,
}

/// The condition of a [`Clause`]. The values of a key are a set, which may be empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `k=v`: some value is `v`.
    Equals(String),
    /// `k!=v`: no value is `v`; holds when the key is missing.
    NotEquals(String),
    /// `k in (a,b)`: some value is listed.
    In(Vec<String>),
    /// `k not in (a,b)`: no value is listed; holds when the key is missing.
    NotIn(Vec<String>),
    /// `k=pre*`: some value starts with `pre`.
    Prefix(String),
    /// `k`: the key has some value.
    Exists,
    /// `!k`: the key has no value.
    NotExists,
}

/// Addresses by prefix or by name: inside one of `include` or known by one of `names`, and inside none of `except`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Networks {
    /// Prefixes meant; these and the names are at least one.
    pub include: Vec<IpNet>,
    /// Names whose addresses are meant.
    pub names: Vec<DomainPattern>,
    /// Prefixes cut out of them.
    pub except: Vec<IpNet>,
}

impl Side {
    /// The side that matches every PU.
    pub fn any() -> Self {
        Self::Tags(Selector { alternatives: vec![vec![]] })
    }

    /// True when the identity is meant by this side.
    pub fn matches(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (Self::Tags(selector), Identity::Pu { tags, .. }) => selector.matches(tags),
            (Self::Net(meant), Identity::External { networks, names }) => meant.matches(networks, names),
            _ => false,
        }
    }
}

impl Selector {
    /// True when some alternative holds for the tags.
    pub fn matches(&self, tags: &Tags) -> bool {
        self.alternatives.iter().any(|clauses| clauses.iter().all(|clause| clause.matches(tags)))
    }
}

impl Clause {
    /// True when the condition holds for the tags.
    pub fn matches(&self, tags: &Tags) -> bool {
        let values = tags.get(&self.key);
        let some = |test: &dyn Fn(&String) -> bool| values.is_some_and(|set| set.iter().any(test));
        let has = |value: &String| values.is_some_and(|set| set.contains(value));
        match &self.operator {
            Operator::Equals(value) => has(value),
            Operator::NotEquals(value) => !has(value),
            Operator::In(list) => list.iter().any(has),
            Operator::NotIn(list) => !list.iter().any(has),
            Operator::Prefix(prefix) => some(&|value| value.starts_with(prefix.as_str())),
            Operator::Exists => some(&|_| true),
            Operator::NotExists => !some(&|_| true),
        }
    }
}

impl Networks {
    /// True when an address known to be inside all of `covering` and known by all of `names` is meant.
    pub fn matches<'a>(
        &self,
        covering: impl IntoIterator<Item = &'a IpNet> + Clone,
        names: impl IntoIterator<Item = &'a String>,
    ) -> bool {
        let holds = |prefixes: &[IpNet]| {
            covering.clone().into_iter().any(|net| prefixes.iter().any(|prefix| prefix.contains(net)))
        };
        (holds(&self.include) || names.into_iter().any(|name| self.means(name))) && !holds(&self.except)
    }

    /// True when a name is among those meant; it must be in lower case and without the final dot.
    pub fn means(&self, name: &str) -> bool {
        self.names.iter().any(|pattern| pattern.matches(name))
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tags(selector) => selector.fmt(f),
            Self::Net(networks) => networks.fmt(f),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.alternatives.iter().any(Vec::is_empty) {
            return f.write_str("any");
        }
        for (i, clauses) in self.alternatives.iter().enumerate() {
            if i > 0 {
                f.write_str(" | ")?;
            }
            for (j, clause) in clauses.iter().enumerate() {
                if j > 0 {
                    f.write_str(" ")?;
                }
                clause.fmt(f)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = Key { key: &self.key, alone: matches!(self.operator, Operator::Exists | Operator::NotExists) };
        match &self.operator {
            Operator::Equals(value) => write!(f, "{key}={}", Quoted(value)),
            Operator::NotEquals(value) => write!(f, "{key}!={}", Quoted(value)),
            Operator::In(list) => write!(f, "{key} in {}", List(list)),
            Operator::NotIn(list) => write!(f, "{key} not in {}", List(list)),
            Operator::Prefix(prefix) => write!(f, "{key}={}*", Quoted(prefix)),
            Operator::Exists => write!(f, "{key}"),
            Operator::NotExists => write!(f, "!{key}"),
        }
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |f: &mut fmt::Formatter<'_>, nets: &[IpNet]| {
            for (i, net) in nets.iter().enumerate() {
                write!(f, "{}{net}", if i > 0 { "," } else { "" })?;
            }
            Ok(())
        };
        f.write_str("net ")?;
        join(f, &self.include)?;
        for (i, name) in self.names.iter().enumerate() {
            write!(f, "{}{name}", if i > 0 || !self.include.is_empty() { "," } else { "" })?;
        }
        if !self.except.is_empty() {
            f.write_str(" except ")?;
            join(f, &self.except)?;
        }
        Ok(())
    }
}

struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (i, value) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i > 0 { "," } else { "" }, Quoted(value))?;
        }
        f.write_str(")")
    }
}

/// A key, in quotes where it would be read as something else.
struct Key<'a> {
    key: &'a str,
    /// No operator follows that would tell it from a port list.
    alone: bool,
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = starts_port_list(self.key) || (self.alone && looks_like_ports(self.key));
        if taken || !is_bare(self.key) { write_quoted(self.key, f) } else { f.write_str(self.key) }
    }
}

/// A value, in quotes where it would be read as something else.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_bare(self.0) { f.write_str(self.0) } else { write_quoted(self.0, f) }
    }
}

fn is_bare(word: &str) -> bool {
    !word.is_empty()
        && word.chars().all(is_word_char)
        && !is_keyword(word)
        // A trailing `-` would melt into a following arrow.
        && !word.ends_with('-')
}

fn write_quoted(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            c if c.is_control() => write!(f, "\\u{{{:x}}}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clause(operator: Operator) -> Clause {
        Clause { key: "k".into(), operator }
    }

    fn tags(values: &[&str]) -> Tags {
        match values {
            [] => Tags::new(),
            _ => Tags::from([("k".into(), values.iter().map(|v| (*v).to_owned()).collect())]),
        }
    }

    /// Columns: key missing, {a}, {b}, {a,b}.
    #[test]
    fn operators_on_sets_of_values() {
        let list = || vec!["a".to_owned(), "c".to_owned()];
        let table: [(Operator, [bool; 4]); 7] = [
            (Operator::Equals("a".into()), [false, true, false, true]),
            (Operator::NotEquals("a".into()), [true, false, true, false]),
            (Operator::In(list()), [false, true, false, true]),
            (Operator::NotIn(list()), [true, false, true, false]),
            (Operator::Prefix("a".into()), [false, true, false, true]),
            (Operator::Exists, [false, true, true, true]),
            (Operator::NotExists, [true, false, false, false]),
        ];
        let columns = [tags(&[]), tags(&["a"]), tags(&["b"]), tags(&["a", "b"])];
        for (operator, expected) in table {
            let clause = clause(operator);
            let got = columns.each_ref().map(|tags| clause.matches(tags));
            assert_eq!(got, expected, "{clause}");
        }
    }

    #[test]
    fn two_values_of_one_key_do_not_stand_in_for_a_missing_clause() {
        let selector = Selector {
            alternatives: vec![vec![
                clause(Operator::Equals("a".into())),
                Clause { key: "other".into(), operator: Operator::Exists },
            ]],
        };
        assert!(!selector.matches(&tags(&["a", "b"])));
    }

    #[test]
    fn excepted_networks_are_cut_out() {
        let networks = Networks {
            include: vec!["10.0.0.0/8".parse().unwrap()],
            except: vec!["10.1.0.0/16".parse().unwrap()],
            ..Networks::default()
        };
        let side = Side::Net(networks);
        let at = |address: &str| side.matches(&Identity::external(address.parse().unwrap()));
        assert!(at("10.2.0.1"));
        assert!(!at("10.1.0.1"));
        assert!(!at("11.0.0.1"));
        assert!(!at("::a00:1"));
    }

    #[test]
    fn any_is_every_pu_and_no_external_network() {
        let nobody = Identity::Pu { namespace: super::super::Namespace::root(), tags: Tags::new() };
        assert!(Side::any().matches(&nobody));
        assert!(!Side::any().matches(&Identity::external("10.0.0.1".parse().unwrap())));
    }
}
