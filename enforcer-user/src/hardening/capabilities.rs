//! Capabilities: the agent keeps what `docs/capabilities.md` lists, and what its configuration makes necessary.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

use crate::config::Config;

/// What every agent needs, with the reason. `docs/capabilities.md` says the same at length.
pub const NEEDED: &[(Capability, &str)] = &[
    (Capability::CAP_BPF, "to load programs, make maps and reopen their pins"),
    (Capability::CAP_NET_ADMIN, "to attach programs to interfaces and cgroups and to make the TAP device"),
    (Capability::CAP_PERFMON, "for the pointer arithmetic on packets in the programs"),
    (Capability::CAP_SYS_PTRACE, "to attribute sockets older than their PU (pidfd_getfd)"),
    (Capability::CAP_DAC_OVERRIDE, "to reach cgroups, pins and /proc/PID/fd of other users"),
];

/// What only some configurations need, with the key that makes it so.
pub const CONDITIONAL: &[(Capability, &str)] = &[
    (Capability::CAP_SETUID, "`[[plugin]]`"),
    (Capability::CAP_SETGID, "`[[plugin]]`"),
    (Capability::CAP_KILL, "`[[plugin]]`"),
    (Capability::CAP_CHOWN, "`admin.group`"),
    (Capability::CAP_NET_BIND_SERVICE, "`metrics.listen`"),
];

/// What an agent with this configuration needs.
pub fn needed(config: &Config) -> CapsHashSet {
    let conditional = CONDITIONAL.iter().map(|(capability, _)| *capability).filter(|capability| match capability {
        Capability::CAP_CHOWN => config.admin.group.is_some(),
        Capability::CAP_NET_BIND_SERVICE => config.metrics_address().is_some_and(|address| address.port() < 1024),
        _ => !config.plugin.is_empty(),
    });
    NEEDED.iter().map(|(capability, _)| *capability).chain(conditional).collect()
}

/// Gives up all others, in this thread and for whatever it executes; what is left.
pub(super) fn reduce(config: &Config) -> io::Result<String> {
    let needed = needed(config);
    let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = held.intersection(&needed).copied().collect();
    // Without CAP_SETPCAP the bounding set is what who started the agent left: a unit's own, as a rule.
    if held.contains(&Capability::CAP_SETPCAP) {
        let bounding = caps::read(None, CapSet::Bounding).map_err(io::Error::other)?;
        for capability in bounding.difference(&needed) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(io::Error::other)?;
        }
    }
    // Kernels before 4.3 have no ambient set, and nothing to clear then.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::set(None, CapSet::Effective, &kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(io::Error::other)?;
    Ok(names(&kept))
}

fn names(capabilities: &CapsHashSet) -> String {
    let mut names: Vec<_> = capabilities.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, std::path::Path::new("e.toml")).expect("a configuration")
    }

    #[test]
    fn a_plain_agent_needs_five_and_others_what_they_ask_for() {
        assert_eq!(names(&needed(&config(""))), "CAP_BPF CAP_DAC_OVERRIDE CAP_NET_ADMIN CAP_PERFMON CAP_SYS_PTRACE",);
        let more = |text: &str| -> Vec<String> {
            let mut more: Vec<_> =
                needed(&config(text)).difference(&needed(&config(""))).map(ToString::to_string).collect();
            more.sort_unstable();
            more
        };
        assert_eq!(more("[admin]\ngroup = \"adm\""), ["CAP_CHOWN"]);
        assert_eq!(more("[metrics]\nlisten = \"127.0.0.1:80\""), ["CAP_NET_BIND_SERVICE"]);
        let plugin = "[[plugin]]\nname = \"p\"\ncommand = [\"/bin/true\"]";
        assert_eq!(more(plugin), ["CAP_KILL", "CAP_SETGID", "CAP_SETUID"]);
    }

    /// In a thread of its own: capabilities are a thread's, but the bounding set is not touched without CAP_SETPCAP.
    #[test]
    fn what_is_given_up_is_gone() {
        std::thread::spawn(|| {
            let before = caps::read(None, CapSet::Permitted).expect("readable");
            let kept = reduce(&config("")).expect("reduced");
            let now = caps::read(None, CapSet::Effective).expect("readable");
            assert_eq!(names(&now), kept);
            assert!(now.is_subset(&needed(&config(""))), "{kept}");
            assert!(now.is_subset(&before));
            assert_eq!(caps::read(None, CapSet::Permitted).expect("readable"), now);
            assert!(!caps::has_cap(None, CapSet::Bounding, Capability::CAP_SYS_ADMIN).expect("readable"));
        })
        .join()
        .expect("the thread ends well");
    }
}
