//! Hosts whose address is not on `eth0` but on what lies above it, as hypervisors and container hosts have it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::guest::Guest;
use crate::host::Host;
use crate::lab::add_addresses;
use crate::netns::Netns;
use crate::process::Place;
use crate::run;

impl Host {
    /// Moves the host's addresses to a bridge `br0`, of which `eth0` becomes a port.
    pub fn move_to_bridge(&self) -> Result<()> {
        let netns = &self.place().netns;
        netns.ip("link add br0 type bridge stp_state 0 mcast_snooping 0\n")?;
        netns.sysctl("net/ipv6/conf/br0/accept_dad", "0")?;
        // A link address of its own: that of the lowest port changes as ports come and go.
        self.move_to("br0", "link set br0 address 02:77:00:00:00:01\nlink set eth0 master br0\n")
    }

    /// Undoes [`Self::move_to_bridge`].
    pub fn move_off_bridge(&self) -> Result<()> {
        self.move_to("eth0", "link del br0\n")
    }

    /// Moves the host's addresses to a macvlan on `eth0`.
    pub fn move_to_macvlan(&self) -> Result<()> {
        let netns = &self.place().netns;
        netns.ip("link add mac0 link eth0 type macvlan mode bridge\n")?;
        netns.sysctl("net/ipv6/conf/mac0/accept_dad", "0")?;
        self.move_to("mac0", "")
    }

    fn move_to(&self, interface: &str, commands: &str) -> Result<()> {
        let addresses =
            add_addresses(self.v4().into(), self.v6().into()).replace("dev eth0", &format!("dev {interface}"));
        let netns = &self.place().netns;
        netns.ip(&format!("addr flush dev eth0 scope global\n{commands}link set {interface} up\n{addresses}"))?;
        self.shared().forget_neighbours()
    }

    /// Makes a guest at a port of the host's bridge, in the lab's own network: 10.77.0.`number` and fd77::`number`.
    ///
    /// # Errors
    /// If the host has no bridge ([`Self::move_to_bridge`]).
    pub fn bridged_guest(&self, name: &str, number: u8) -> Result<Guest> {
        let interface = format!("veth-{name}");
        let netns = Arc::new(Netns::create(&run::netns_name(&self.shared().run, &format!("{}-{name}", self.name())))?);
        for interface in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
        }
        self.place().netns.ip(&format!(
            "link add {interface} type veth peer name eth0 netns {}\nlink set {interface} master br0\nlink set {interface} up\n",
            netns.name
        ))?;
        let ips: [IpAddr; 2] =
            [Ipv4Addr::new(10, 77, 0, number).into(), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()).into()];
        netns.ip(&format!("link set lo up\n{}link set eth0 up\n", add_addresses(ips[0], ips[1])))?;
        let cgroup = self.cgroup().join(format!("guest-{name}"));
        fs::create_dir(&cgroup).with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
        Ok(Guest::new(interface, ips, Place { netns, cgroup, ..self.place().clone() }))
    }
}
