//! What must not leave the host with a bug report.

use serde_json::Value;

/// Stands for what was taken out.
const TAKEN: &str = "(redacted)";
/// A name that holds one of these names a secret; so does one whose last word is `key`.
const NAMES: [&str; 5] = ["token", "secret", "passw", "authorization", "cookie"];
/// Longer runs of letters and digits are keys, hashes or tokens; names are shorter.
const RUN: usize = 40;

/// Secrets that are known by their text, and the look of others.
#[derive(Default)]
pub(super) struct Redactor {
    known: Vec<String>,
}

impl Redactor {
    /// Every line of a file that holds a secret, but what all such files say.
    pub fn learn(&mut self, text: &str) {
        let lines = text.lines().map(str::trim).filter(|line| line.len() >= 8 && !line.starts_with("-----"));
        self.known.extend(lines.map(str::to_owned));
    }

    /// A configuration: what its keys call a secret, arguments of what it executes, and whatever looks like one.
    pub fn config(&self, value: Value) -> Value {
        self.below("", value)
    }

    /// Any document: every text in it.
    pub fn document(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text)),
            Value::Array(values) => values.into_iter().map(|value| self.document(value)).collect(),
            Value::Object(members) => {
                members.into_iter().map(|(name, value)| (self.text(&name), self.document(value))).collect()
            }
            other => other,
        }
    }

    fn below(&self, name: &str, value: Value) -> Value {
        match value {
            Value::String(_) if names_secret(name) => TAKEN.into(),
            Value::String(text) => Value::String(self.text(&text)),
            // The program says which plugin it is, its arguments may be anything.
            Value::Array(values) if name == "command" => values
                .into_iter()
                .enumerate()
                .map(|(number, value)| if number == 0 { self.below("", value) } else { TAKEN.into() })
                .collect(),
            Value::Array(values) => values.into_iter().map(|value| self.below(name, value)).collect(),
            Value::Object(members) => members
                .into_iter()
                .map(|(name, value)| {
                    let value = self.below(&name, value);
                    (name, value)
                })
                .collect(),
            other => other,
        }
    }

    /// A text without what is known to be secret, or looks it.
    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for known in &self.known {
            text = text.replace(known.as_str(), TAKEN);
        }
        let mut out = String::with_capacity(text.len());
        let (mut in_pem, mut after) = (false, false);
        for line in text.split_inclusive('\n') {
            if line.contains("-----BEGIN") {
                in_pem = true;
                out.push_str(TAKEN);
            }
            if in_pem {
                in_pem = !line.contains("-----END");
                continue;
            }
            for piece in line.split_inclusive(|c: char| c.is_whitespace() || "\"'`,;()<>[]{}".contains(c)) {
                let word = piece.trim_end_matches(|c: char| c.is_whitespace() || "\"'`,;()<>[]{}".contains(c));
                let (made, next) = self.word(word, after);
                if !word.is_empty() {
                    after = next;
                }
                out.push_str(&made);
                out.push_str(&piece[word.len()..]);
            }
        }
        out
    }

    /// A word, and whether the next one is a secret because of it.
    fn word(&self, word: &str, after: bool) -> (String, bool) {
        if word.is_empty() || word == TAKEN.trim_matches(['(', ')']) {
            return (word.to_owned(), false);
        }
        if after {
            return (TAKEN.to_owned(), false);
        }
        if ["Bearer", "Basic"].contains(&word) || (word.starts_with("--") && names_secret(word) && !word.contains('='))
        {
            return (word.to_owned(), true);
        }
        if let Some((scheme, rest)) = word.split_once("://") {
            let rest = rest.split_once('@').filter(|(user, _)| !user.contains('/')).map_or(rest, |(_, host)| host);
            let rest = rest.split(['?', '#']).next().unwrap_or_default();
            return (format!("{scheme}://{rest}"), false);
        }
        if let Some((name, value)) = word.split_once(['=', ':'])
            && names_secret(name)
            && !name.contains('/')
        {
            return match value {
                "" => (word.to_owned(), true),
                _ => (format!("{name}={TAKEN}"), false),
            };
        }
        if looks_secret(word) { (TAKEN.to_owned(), false) } else { (word.to_owned(), false) }
    }
}

fn names_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let last = name.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    last == "key" || NAMES.iter().any(|secret| name.contains(secret))
}

fn looks_secret(word: &str) -> bool {
    let run = |part: &str| part.len() >= RUN && part.chars().all(|c| c.is_ascii_alphanumeric() || "+-_".contains(c));
    // A token in three parts; anything that one word cannot be.
    word.starts_with("eyJ") || word.split(['/', '.', '=', ':']).any(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_looks_secret_goes_and_the_rest_stays() {
        let mut redactor = Redactor::default();
        redactor.learn("-----BEGIN PRIVATE KEY-----\nAbCd1234\n-----END PRIVATE KEY-----\n");
        for (text, expected) in [
            ("nothing to see", "nothing to see"),
            ("key AbCd1234 here", "key (redacted) here"),
            ("Authorization: Bearer abc.def", "Authorization: (redacted) abc.def"),
            ("x Bearer abc", "x Bearer (redacted)"),
            ("password=hunter2 user=me", "password=(redacted) user=me"),
            ("run --api-token 1234 --user me", "run --api-token (redacted) --user me"),
            ("https://me:pw@host/a?b=c#d", "https://host/a"),
            ("a eyJhbGciOi.eyJz.sig b", "a (redacted) b"),
            ("-----BEGIN X-----\nabc\n-----END X-----\nafter", "(redacted)after"),
            ("/sys/fs/cgroup/enforcer.pus/web-1 10.77.0.2:8020", "/sys/fs/cgroup/enforcer.pus/web-1 10.77.0.2:8020"),
        ] {
            assert_eq!(redactor.text(text), expected);
        }
        let hash = "0123456789abcdef".repeat(4);
        assert_eq!(redactor.text(&format!("sha256:{hash}")), TAKEN);
    }

    #[test]
    fn a_configuration_keeps_its_settings_and_loses_its_secrets() {
        let config = json!({
            "identity": {"key": "/etc/enforcer/a.key", "certificate": "/etc/enforcer/a.crt", "prekey_rotation": "1h"},
            "plugin": [{"name": "p", "command": ["/bin/p", "hunter2"]}],
            "feed": {"sources": ["https://f/x?t=hunter2"]},
            "datapath": {"max_flows": 7, "xdp": "auto"},
        });
        let expected = json!({
            "identity": {"key": TAKEN, "certificate": "/etc/enforcer/a.crt", "prekey_rotation": "1h"},
            "plugin": [{"name": "p", "command": ["/bin/p", TAKEN]}],
            "feed": {"sources": ["https://f/x"]},
            "datapath": {"max_flows": 7, "xdp": "auto"},
        });
        assert_eq!(Redactor::default().config(config), expected);
    }
}
