//! The configuration and what it names.

use std::{os::unix::fs::PermissionsExt, path::Path};

use super::Check;
use crate::{
    admin::{Client, Request, Response},
    config::{Config, ConfigError, PolicyText, error_text},
};

pub(super) fn checks(file: &Path, loaded: &Result<Config, ConfigError>, config: &Config) -> Vec<Check> {
    let cost = "the agent does not start";
    let configuration = match loaded {
        Ok(_) => Check::ok("configuration", file.display().to_string()),
        Err(error) => Check::missing("configuration", error.to_string(), cost, "correct it; see docs/configuration.md"),
    };
    let identity = &config.identity;
    vec![
        configuration,
        readable("authority", "identity.ca", &identity.ca),
        readable("certificate", "identity.certificate", &identity.certificate),
        private("key", &identity.key),
        policy(config),
        host(config),
        agent(config),
    ]
}

fn host(config: &Config) -> Check {
    let host = &config.host;
    match (host.managed, host.management.is_empty()) {
        (false, _) => Check::ok("host PU", "the host is not managed (`host.managed`)"),
        (true, false) => {
            Check::ok("host PU", format!("reachable whatever the policy says: {}", host.management.join(", ")))
        }
        (true, true) => Check::limited(
            "host PU",
            "`host.management` is empty",
            "a mistake in the policy locks everybody out of this host",
            "name how you administer it, such as \"tcp/22\"; or try every change with `enforcer run --confirm 60s`",
        ),
    }
}

fn readable(name: &str, key: &str, path: &Path) -> Check {
    match std::fs::read(path) {
        Ok(_) => Check::ok(name, path.display().to_string()),
        Err(error) => Check::missing(
            name,
            format!("{}: {}", path.display(), error_text(&error)),
            "the agent does not start",
            &format!("`enforcer ca init` and `enforcer ca issue` make it; set `{key}`"),
        ),
    }
}

fn private(name: &str, path: &Path) -> Check {
    let check = readable(name, "identity.key", path);
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => Check::limited(
            name,
            format!("{} is open to others (mode {:o})", path.display(), metadata.permissions().mode() & 0o777),
            "whoever reads it can be this host",
            &format!("`chmod 600 {}`, and issue a new one", path.display()),
        ),
        _ => check,
    }
}

fn policy(config: &Config) -> Check {
    let cost = "the agent does not start";
    let remedy = "`enforcer policy check FILE` tells more";
    let texts = match PolicyText::read_all(&config.policy.paths) {
        Ok(texts) => texts,
        Err(error) => return Check::missing("policy", error.to_string(), cost, "correct `policy.paths`"),
    };
    match policy::parse_files(texts.iter().map(|text| (text.file.as_str(), text.text.as_str()))) {
        Ok(rules) if rules.is_empty() => Check::limited(
            "policy",
            "no rules",
            "nothing is allowed to PUs",
            "write rules and name them in `policy.paths`",
        ),
        Ok(rules) => Check::ok("policy", format!("{} rules in {} files", rules.len(), texts.len())),
        Err(errors) => {
            let first = errors.iter().next().map(ToString::to_string).unwrap_or_default();
            Check::missing("policy", first, cost, remedy)
        }
    }
}

/// A running agent; without one, whether something else is in its way.
fn agent(config: &Config) -> Check {
    let status = Client::connect(&config.paths.socket).and_then(|mut client| client.ask(&Request::Status));
    if let Ok(Response::Status(status)) = status {
        let state = if status.ready { "runs" } else { "is starting" };
        return Check::ok("agent", format!("{state}, version {}", status.version));
    }
    let tap = &config.datapath.tap;
    if nix::net::if_::if_nametoindex(tap.as_str()).is_ok() {
        return Check::limited(
            "agent",
            format!("does not run, yet an interface {tap} exists"),
            "if it belongs to something else, the agent does not start",
            "`ip link delete` it, or set `datapath.tap`",
        );
    }
    Check::limited("agent", "does not run", "known pairs go on, new ones are refused", "`enforcer run`")
}
