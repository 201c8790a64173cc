//! A network namespace behind a host, at the end of a veth: what a container is to the network.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::netns::Netns;
use crate::process::Place;
use crate::run;

/// A guest of a host behind the host's `veth-NAME`: routed (10.78.0.2 and fd78::2), or at a port of its bridge.
///
/// It dereferences to its [`Place`].
#[derive(Debug)]
pub struct Guest {
    interface: String,
    ips: [IpAddr; 2],
    place: Place,
}

impl Host {
    /// Makes a guest that can be reached from this host and from `neighbours`.
    pub fn guest(&self, name: &str, neighbours: &[&Self]) -> Result<Guest> {
        let interface = format!("veth-{name}");
        let host = &self.place().netns;
        let netns = Arc::new(Netns::create(&run::netns_name(&self.shared().run, &format!("{}-{name}", self.name())))?);
        for family in ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"] {
            host.sysctl(family, "1")?;
        }
        for interface in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
        }
        host.ip(&format!(
            "link add {interface} type veth peer name eth0 netns {}\naddr add 10.78.0.1/24 dev {interface}\naddr add fd78::1/64 dev {interface} nodad\nlink set {interface} up\n",
            netns.name
        ))?;
        netns.ip("link set lo up\naddr add 10.78.0.2/24 dev eth0\naddr add fd78::2/64 dev eth0 nodad\nlink set eth0 up\nroute add default via 10.78.0.1\nroute add ::/0 via fd78::1\n")?;
        for neighbour in neighbours {
            let (v4, v6) = (self.v4(), self.v6());
            neighbour.place().netns.ip(&format!("route add 10.78.0.0/24 via {v4}\nroute add fd78::/64 via {v6}\n"))?;
        }
        let cgroup = self.cgroup().join(format!("guest-{name}"));
        fs::create_dir(&cgroup).with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
        let ips = [Ipv4Addr::new(10, 78, 0, 2).into(), Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2).into()];
        Ok(Guest::new(interface, ips, Place { netns, cgroup, ..self.place().clone() }))
    }
}

impl Guest {
    pub(crate) fn new(interface: String, ips: [IpAddr; 2], place: Place) -> Self {
        Self { interface, ips, place }
    }

    /// The host's end of the veth.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// A port of the guest over IPv4 and over IPv6.
    pub fn addresses(&self, port: u16) -> [String; 2] {
        self.ips.map(|ip| SocketAddr::new(ip, port).to_string())
    }
}

impl Deref for Guest {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
