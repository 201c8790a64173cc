//! A laboratory: hosts on a switch, made in milliseconds, removed without trace.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::netns::Netns;
use crate::process::Place;
use crate::run;

/// What a lab is made of, where it differs from the default.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// MTU of every host's `eth0` and of the switch, in bytes.
    pub mtu: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { mtu: 1500 }
    }
}

/// Hosts as network namespaces on a bridge, in 10.77.0.0/24 and fd77::/64.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    hosts: Mutex<u8>,
}

/// What the hosts of a lab have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) run: String,
    pub(crate) directory: PathBuf,
    pub(crate) switch: Arc<Netns>,
    pub(crate) namespaces: Mutex<Vec<Arc<Netns>>>,
    pub(crate) keep: Arc<AtomicBool>,
    options: Options,
}

impl Lab {
    /// A lab without hosts. `name` is letters and digits; it becomes part of every name the lab makes.
    pub fn new(name: &str) -> Result<Self> {
        Self::with(name, Options::default())
    }

    /// A lab with options of its own.
    pub fn with(name: &str, options: Options) -> Result<Self> {
        let run = run::begin(name)?;
        let made = switch(&run, options.mtu).and_then(|switch| {
            let cgroup = run::cgroup_root(&run)?;
            fs::create_dir(&cgroup).with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
            Ok(switch)
        });
        match made {
            Ok(switch) => Ok(Self {
                shared: Arc::new(Shared {
                    directory: run::directory(&run),
                    run,
                    switch: Arc::new(switch),
                    namespaces: Mutex::default(),
                    keep: Arc::default(),
                    options,
                }),
                hosts: Mutex::new(0),
            }),
            Err(error) => {
                let _ = run::end(&run);
                Err(error)
            }
        }
    }

    /// Adds a host. The first gets 10.77.0.1 and fd77::1, the second .2, and so on.
    pub fn host(&self, name: &str) -> Result<Host> {
        let mut count = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(*count < 250, "the lab's network is full");
        ensure!(
            (1..=11).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "a host's name is one to eleven letters and digits, not {name:?}"
        );
        let shared = &self.shared;
        let number = *count + 1;
        let (v4, v6) = addresses(number);
        let netns = Arc::new(Netns::create(&run::netns_name(&shared.run, name))?);
        wire(shared, &netns, name, v4, v6)?;
        let cgroup = run::cgroup_root(&shared.run)?.join(name);
        let logs = shared.directory.join(name);
        for directory in [&cgroup, &logs] {
            fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        shared.namespaces.lock().unwrap_or_else(PoisonError::into_inner).push(netns.clone());
        *count = number;
        let place = Place { netns, cgroup, logs, keep: shared.keep.clone() };
        Ok(Host::new(shared.clone(), name, place, v4, v6))
    }

    /// The run's name, part of the names of namespaces, cgroups and pins.
    pub fn run(&self) -> &str {
        &self.shared.run
    }

    /// The directory of the run's configurations, keys, sockets and logs.
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// Writes a policy file that every enforcer of the lab reads (unless its configuration says otherwise).
    pub fn write_policy(&self, file: &str, text: &str) -> Result<PathBuf> {
        let path = self.shared.policy_directory()?.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Leaves everything standing and running when the lab is dropped; the next lab on the machine sweeps it away.
    pub fn keep(self) {
        self.shared.keep.store(true, Ordering::Relaxed);
        run::forget(&self.shared.run);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.shared.keep.load(Ordering::Relaxed) {
            if let Err(error) = run::end(&self.shared.run) {
                eprintln!("lab: {} is not wholly removed: {error:#}", self.shared.run);
            }
        }
    }
}

impl Shared {
    /// MTU of the lab's network, in bytes.
    pub(crate) fn mtu(&self) -> u32 {
        self.options.mtu
    }

    /// Where the lab's policy files are.
    pub(crate) fn policy_directory(&self) -> Result<PathBuf> {
        let path = self.directory.join("policy");
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Makes every host forget which link address an IP address had.
    pub(crate) fn forget_neighbours(&self) -> Result<()> {
        let namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        for netns in namespaces.iter() {
            for family in ["-4", "-6"] {
                netns.command("ip", &[family, "neigh", "flush", "all"])?;
            }
        }
        Ok(())
    }
}

fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(10, 77, 0, number), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()))
}

fn switch(run: &str, mtu: u32) -> Result<Netns> {
    let switch = Netns::create(&run::netns_name(run, "sw"))?;
    switch.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    switch.ip(&format!(
        "link add br0 mtu {mtu} type bridge stp_state 0 mcast_snooping 0\nlink set br0 up\nlink set lo up\n"
    ))?;
    // Bridged packets meet the switch's iptables only while a test wants to lose some of them.
    bridge_firewall(&switch, false)?;
    Ok(switch)
}

/// Whether bridged packets pass the switch's iptables.
pub(crate) fn bridge_firewall(switch: &Netns, on: bool) -> Result<()> {
    for family in ["iptables", "ip6tables"] {
        let name = format!("net/bridge/bridge-nf-call-{family}");
        // Without br_netfilter there is nothing to switch off.
        if on || Path::new("/proc/sys").join(&name).exists() {
            switch.sysctl(&name, if on { "1" } else { "0" })?;
        }
    }
    Ok(())
}

fn wire(shared: &Shared, netns: &Netns, host: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    let mtu = shared.options.mtu;
    shared.switch.ip(&format!(
        "link add p-{host} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\nlink set p-{host} master br0 up\n",
        netns.name
    ))?;
    // An address that waits for duplicate detection cannot be used for a second.
    for interface in ["all", "default", "eth0"] {
        netns.sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
    }
    netns.sysctl("net/ipv4/ip_local_port_range", "10000 65535")?;
    netns.ip(&format!("link set lo up\n{}link set eth0 up\n", add_addresses(v4.into(), v6.into())))
}

/// `ip` commands that give `eth0` two addresses, usable at once.
pub(crate) fn add_addresses(v4: IpAddr, v6: IpAddr) -> String {
    format!("addr add {v4}/24 brd + dev eth0\naddr add {v6}/64 dev eth0 nodad\n")
}
