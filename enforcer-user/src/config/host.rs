//! `[host]`: what is known of this host, and whether it is a PU itself.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use policy::parse_rule;
use serde::{Deserialize, Serialize};

use super::{
    check::{Problem, ensure, is_namespace},
    workload::{Values, plain},
};

/// `[host]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// What is known of this host; every PU on it has these as `@host:KEY`.
    pub tags: BTreeMap<String, Values>,
    /// Whether everything on this host that is in no other PU is one PU.
    pub managed: bool,
    /// Name of that PU.
    pub name: String,
    /// Its namespace. Default: the configured one.
    pub namespace: Option<String>,
    /// Its tags.
    pub labels: BTreeMap<String, Values>,
    /// What reaches it whatever the policy says, such as `tcp/22` or `tcp/22 from 10.0.0.0/8`.
    pub management: Vec<String>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            tags: BTreeMap::new(),
            managed: false,
            name: "host".into(),
            namespace: None,
            labels: BTreeMap::new(),
            management: vec!["tcp/22".into()],
        }
    }
}

/// An entry of `host.management`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exemption {
    /// Protocol and ports as rules write them.
    pub ports: String,
    /// From where; empty: from anywhere, peers with identity included.
    pub from: Vec<IpNet>,
}

impl Exemption {
    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (ports, from) = match text.split_once(" from ") {
            Some((ports, from)) => (ports.trim(), Some(from)),
            None => (text.trim(), None),
        };
        let expected =
            || format!("{text:?}: expected ports such as \"tcp/22\", or \"tcp/22 from 10.0.0.0/8,fd00::/8\"");
        let rule = parse_rule(&format!("allow any -> any {ports}")).map_err(|_| expected())?;
        if rule.ports.is_empty() || rule.log || rule.observe || rule.encrypt || rule.until.is_some() {
            return Err(expected());
        }
        let network = |one: &str| {
            let one = one.trim();
            one.parse::<IpNet>().ok().or_else(|| one.parse::<IpAddr>().ok().map(IpNet::from)).ok_or_else(expected)
        };
        let from = from.map_or(Ok(Vec::new()), |list| list.split(',').map(network).collect::<Result<Vec<_>, _>>())?;
        if let Some(loose) = from.iter().find(|network| **network != network.trunc()) {
            return Err(format!("{loose} has host bits set; write {}", loose.trunc()));
        }
        Ok(Self { ports: ports.into(), from })
    }
}

impl Host {
    /// `host.management`, of a configuration that has been checked.
    pub fn exemptions(&self) -> Vec<Exemption> {
        self.management.iter().filter_map(|text| Exemption::parse(text).ok()).collect()
    }

    pub(super) fn check(&self, unmanaged_denied: bool) -> Result<(), Problem> {
        plain(&self.tags).map_err(|(key, problem)| (format!("host.tags.{key}"), problem))?;
        ensure(!self.tags.contains_key("pu"), "host.tags.pu", || {
            "`@host:pu` is the host PU's own; name it otherwise".into()
        })?;
        plain(&self.labels).map_err(|(key, problem)| (format!("host.labels.{key}"), problem))?;
        let name_fits = (1..=128).contains(&self.name.len()) && !self.name.chars().any(char::is_control);
        ensure(name_fits, "host.name", || "must be 1 to 128 characters, none of them control characters".into())?;
        ensure(self.namespace.as_deref().is_none_or(is_namespace), "host.namespace", || {
            "must be an absolute path such as \"/acme/prod\", without empty segments".into()
        })?;
        for text in &self.management {
            Exemption::parse(text).map_err(|problem| ("host.management".into(), problem))?;
        }
        ensure(!self.managed || !unmanaged_denied, "host.managed", || {
            "leaves nothing unmanaged but the kernel's sockets and this agent's, which `datapath.unmanaged = \"deny\"` \
             would cut off; leave that at \"allow\""
                .into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemptions_are_ports_and_perhaps_networks() {
        let ssh = Exemption::parse("tcp/22").unwrap();
        assert_eq!(ssh, Exemption { ports: "tcp/22".into(), from: vec![] });
        let some = Exemption::parse("tcp/22,2222 udp/51820 from 10.0.0.0/8, fd00::1").unwrap();
        assert_eq!(some.ports, "tcp/22,2222 udp/51820");
        assert_eq!(some.from, ["10.0.0.0/8".parse::<IpNet>().unwrap(), "fd00::1/128".parse().unwrap()]);
        for wrong in
            ["", "22", "ssh", "tcp/0-", "tcp/22 from", "tcp/22 from home", "tcp/22 from 10.0.0.1/8", "tcp/22 log"]
        {
            assert!(Exemption::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
