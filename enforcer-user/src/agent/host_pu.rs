//! The host PU: everything of this host that is in no other PU. How it begins and ends, and the enforcer's own rules that
//! keep it reachable.

use std::{os::fd::BorrowedFd, sync::Arc};

use common::{abi, host::Host};
use policy::{Head, Location, Namespace, PolicyRule, Tier, parse_rule};

use super::{
    Shared, profiles,
    pus::{self, Wanted},
    state::State,
};
use crate::{
    admin::PuTarget,
    config::{Config, workload},
    map_write::MapWriteError,
    sys,
    workload::{TagSet, TagSource, adopt, host},
};

/// Name of the policy of the enforcer's own rules; no policy file may have it.
pub(super) const BUILTIN: &str = "builtin";

/// Makes the host a PU, brings it up to date, or ends it, as the configuration says. Sockets older than it are marked when this
/// returns.
///
/// # Errors
/// If it cannot be a PU: its tags do not fit.
pub(super) fn start(shared: &Shared) -> anyhow::Result<()> {
    let host = &shared.config.host;
    let present = shared.state().host_pu();
    if !host.managed {
        present.into_iter().for_each(|index| pus::end(shared, index));
        return Ok(());
    }
    let labels = workload::tags(&host.labels);
    let Some(index) = present else {
        let wanted = Wanted {
            key: Some(host::HOST_PU.into()),
            target: PuTarget::Cgroup(shared.config.cgroup_root()?),
            name: Some(host.name.clone()),
            any_name: true,
            namespace: host.namespace.clone(),
            tags: TagSet::from_iter([(TagSource::Config, labels)]),
            complete: true,
        };
        pus::add(shared, wanted)?;
        return Ok(());
    };
    let edit = |set: &mut TagSet| {
        set.set(TagSource::Config, labels.clone());
    };
    let namespace = host.namespace.clone().unwrap_or_else(|| shared.config.namespace.clone());
    let change = profiles::Change { name: Some(host.name.clone()), namespace: Some(namespace), edit: &edit };
    profiles::change(shared, index, &change)?;
    bind(shared, index)
}

/// Leads the kernel to the host PU: new sockets first, then those that are there.
pub(super) fn bind(shared: &Shared, index: u32) -> anyhow::Result<()> {
    {
        let mut state = shared.state();
        state.change_host(|host| (host.pu, host.agent) = (index, std::process::id()))?;
        state.config.update(|config| config.flags |= abi::CONFIG_HOST)?;
    }
    let marked = pass_on(shared, 0, index)?;
    if marked > 0 {
        tracing::info!(pu = index, sockets = marked, "took over sockets of the host");
    }
    Ok(())
}

/// What bore the mark of the host PU is unmanaged again.
pub(super) fn release(shared: &Shared, index: u32) {
    if let Err(error) = pass_on(shared, index, 0) {
        tracing::error!(%error, "sockets keep the mark of the host PU, and are refused");
    }
}

/// Marks the sockets that bear `from` as `to`'s, outside of all other PUs.
fn pass_on(shared: &Shared, from: u32, to: u32) -> anyhow::Result<usize> {
    let managed = |cgroup: u64| shared.maps.pu_cgroups.get(&cgroup).ok().flatten().is_some();
    let rest = adopt::Rest { from, to, namespace: sys::netns_cookie()?, managed: &managed };
    Ok(rest.adopt(&shared.config.cgroup_root()?, &shared.maps.pu_sockets)?)
}

/// A socket of the agent that others connect to is the host's like any other service.
pub(super) fn serves(shared: &Shared, listener: BorrowedFd<'_>) {
    let Some(index) = shared.state().host_pu() else { return };
    if let Err(error) = shared.maps.pu_sockets.insert(listener, index) {
        tracing::warn!(%error, "the host's own programs cannot reach the metrics");
    }
}

/// The enforcer's own rules, which no policy can take back: what the host PU needs to stay reachable and alive.
pub(super) fn rules(config: &Config, enforcer: &str) -> Vec<Arc<PolicyRule>> {
    if !config.host.managed {
        return Vec::new();
    }
    let host = format!("@host:pu={enforcer}");
    let (anywhere, loopback) = ("net 0.0.0.0/0,::/0", "net 127.0.0.0/8,::1/128");
    let mut lines = vec![
        format!("itself: allow {host} -> {host}"),
        format!("loopback: allow {host} -> {loopback} udp icmp icmp6"),
        format!("loopback: allow {loopback} -> {host} udp"),
        format!("dhcp: allow {host} -> {anywhere} udp/67,547"),
        format!("dhcp: allow {anywhere} -> {host} udp/68,546"),
    ];
    for exemption in config.host.exemptions() {
        let ports = &exemption.ports;
        if exemption.from.is_empty() {
            lines.push(format!("management: allow {anywhere} -> {host} {ports}"));
            lines.push(format!("management: allow any -> {host} {ports}"));
        } else {
            let from: Vec<String> = exemption.from.iter().map(ToString::to_string).collect();
            lines.push(format!("management: allow net {} -> {host} {ports}", from.join(",")));
        }
    }
    let head = Arc::new(Head { name: BUILTIN.into(), namespace: Namespace::root(), tier: Tier::Exempt });
    let rule = |(position, line): (u32, &String)| match parse_rule(line) {
        Ok(rule) => {
            let location = Location { file: "[host]".into(), line: position, column: 1 };
            Some(Arc::new(PolicyRule::new(head.clone(), position, location, rule)))
        }
        Err(error) => {
            tracing::error!(line, %error, "a rule of the enforcer itself is none");
            None
        }
    };
    (1..).zip(&lines).filter_map(rule).collect()
}

impl State {
    /// The index of the host PU.
    pub fn host_pu(&self) -> Option<u32> {
        self.pus.values().find(|pu| pu.is_host()).map(|pu| pu.index)
    }

    /// Changes the entry of `HOST`.
    pub fn change_host(&self, change: impl FnOnce(&mut Host)) -> Result<(), MapWriteError> {
        let mut host = self.maps.host.get(&0)?.unwrap_or_default();
        change(&mut host);
        self.maps.host.insert(&0, &host)
    }

    /// There is no host PU any more.
    pub fn forget_host(&mut self) -> Result<(), MapWriteError> {
        self.config.update(|config| config.flags &= !abi::CONFIG_HOST)?;
        self.change_host(|host| host.pu = 0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_rule_is_one_and_management_is_among_them() {
        let text = "[host]\nmanaged = true\nmanagement = ['tcp/22', 'tcp/8443 from 10.0.0.0/8']\n";
        let config = Config::parse(text, Path::new("e.toml")).unwrap();
        let rules = rules(&config, "web-1.example");
        assert_eq!(rules.len(), 8);
        assert!(rules.iter().all(|rule| rule.tier() == Tier::Exempt));
        let management: Vec<String> = rules
            .iter()
            .filter(|rule| rule.full_name() == "builtin/management")
            .map(|r| r.rule().to_string())
            .collect();
        assert_eq!(
            management,
            [
                "management: allow net 0.0.0.0/0,::/0 -> @host:pu=web-1.example tcp/22",
                "management: allow any -> @host:pu=web-1.example tcp/22",
                "management: allow net 10.0.0.0/8 -> @host:pu=web-1.example tcp/8443",
            ]
        );
        assert!(super::rules(&Config::default(), "h").is_empty());
    }
}
