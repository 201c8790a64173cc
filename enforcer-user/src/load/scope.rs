//! Where a packet is judged: once, at the interface that the stack sees it at.

use super::Interfaces;
use crate::link_net::Interface;

/// What the programs at an interface are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Packets of this host's sockets are judged here. `stacked`: and pass another enforced interface below.
    Judged {
        /// Told to the interface below, so that it does not judge them again.
        stacked: bool,
    },
    /// What passes is judged at its master; only a PU of its own, and packet sockets, are looked at here.
    Port,
}

/// What an interface is to be, and what to say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    /// `None`: nothing of ours belongs there.
    pub(super) role: Option<Role>,
    /// Why so; empty if there is nothing to say.
    pub(super) why: String,
}

/// Links that take the frames of the interface they lie on by their own link-layer address.
const BY_ADDRESS: [&str; 2] = ["macvlan", "macvtap"];

/// What `interface` is to be. `pu`: a PU is behind it. `enforced` gives the name of an interface where host packets are
/// judged, `name_of` that of any.
pub(super) fn scope(
    wanted: &Interfaces,
    interface: &Interface,
    pu: bool,
    enforced: impl Fn(u32) -> Option<String>,
    name_of: impl Fn(u32) -> String,
) -> Scope {
    let below = interface.lower.and_then(enforced);
    let port = interface.port_of().map(|master| format!("port of {} {}", master.kind, name_of(master.index)));
    let named = matches!(wanted, Interfaces::Named(_)) && wanted.contains(&interface.name);
    let judged = |why: String| {
        let stacked = below.is_some() && BY_ADDRESS.iter().any(|kind| interface.is_a(kind));
        Scope { role: Some(Role::Judged { stacked }), why }
    };
    if named {
        let doubled = |port| format!("{port}: packets may be judged twice and refused; name the master instead");
        return judged(port.map(doubled).unwrap_or_default());
    }
    if *wanted != Interfaces::All && !pu {
        let mut why = "not among `datapath.interfaces`".to_owned();
        if let Some(below) = below {
            why.push_str(&match interface.is_a("ipvlan") {
                true => format!("; judged at {below}, below it"),
                false => format!("; its packets are not judged at {below} either"),
            });
        }
        return Scope { role: None, why };
    }
    if let Some(port) = port {
        return Scope { role: Some(Role::Port), why: format!("{port}, where its packets are judged") };
    }
    match below {
        Some(below) if interface.is_a("ipvlan") => Scope { role: None, why: format!("judged at {below}, below it") },
        _ => judged(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link_net::{Kind, Master};

    fn interface(kind: &str, lower: Option<u32>, master: Option<&str>) -> Interface {
        Interface {
            index: 5,
            name: "x".into(),
            kind: Kind::Virtual(kind.into()),
            mtu: 1500,
            address: [0; 6],
            up: true,
            master: master.map(|kind| Master { index: 9, kind: kind.into() }),
            lower,
            peer_namespace: None,
        }
    }

    fn of(wanted: &Interfaces, interface: &Interface, pu: bool) -> Scope {
        let enforced = |index| (index == 2).then(|| "eth0".to_owned());
        scope(wanted, interface, pu, enforced, |index| format!("if{index}"))
    }

    const JUDGED: Option<Role> = Some(Role::Judged { stacked: false });

    #[test]
    fn auto_judges_once() {
        let auto = |interface: Interface| of(&Interfaces::All, &interface, false);
        assert_eq!(auto(interface("veth", None, None)), Scope { role: JUDGED, why: String::new() });
        for master in ["bridge", "bond", "team"] {
            let port = auto(interface("veth", None, Some(master)));
            let why = format!("port of {master} if9, where its packets are judged");
            assert_eq!(port, Scope { role: Some(Role::Port), why });
        }
        assert_eq!(auto(interface("veth", None, Some("vrf"))).role, JUDGED, "a VRF takes no packets");
        assert_eq!(auto(interface("vlan", Some(2), None)).role, JUDGED, "the kernel tells tagged frames apart");
        assert_eq!(auto(interface("macvlan", Some(2), None)).role, Some(Role::Judged { stacked: true }));
        assert_eq!(auto(interface("macvlan", Some(3), None)).role, JUDGED, "nothing looks below");
        assert_eq!(auto(interface("ipvlan", Some(2), None)).role, None);
        assert_eq!(auto(interface("ipvlan", Some(3), None)).role, JUDGED);
    }

    #[test]
    fn names_are_taken_literally() {
        let (here, elsewhere) = (Interfaces::Named(vec!["x".into()]), Interfaces::Named(vec!["eth0".into()]));
        let port = interface("veth", None, Some("bridge"));
        let doubled = of(&here, &port, false);
        assert_eq!(doubled.role, JUDGED);
        assert!(doubled.why.contains("name the master"), "{}", doubled.why);
        assert_eq!(of(&elsewhere, &port, false).role, None);
        assert_eq!(of(&elsewhere, &port, true).role, Some(Role::Port), "a PU is judged wherever it is");
        assert_eq!(of(&elsewhere, &interface("veth", None, None), true).role, JUDGED);
        let vlan = of(&elsewhere, &interface("vlan", Some(2), None), false);
        assert_eq!(vlan.role, None);
        assert!(vlan.why.ends_with("its packets are not judged at eth0 either"), "{}", vlan.why);
    }
}
