//! A host of the lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::enforcer::{enforcer_binary, text};
use crate::lab::{Shared, add_addresses, bridge_firewall};
use crate::process::{Place, Proc};
use crate::run;

/// A host: a network namespace with `lo` and `eth0`, a cgroup subtree, and perhaps an enforcer.
///
/// It dereferences to its [`Place`], so `host.exec(&["ip", "addr"])` runs a command on it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    shared: Arc<Shared>,
    place: Place,
    addresses: Mutex<(Ipv4Addr, Ipv6Addr)>,
    enforcer: Mutex<Option<Proc>>,
    binary: OnceLock<PathBuf>,
}

/// A running `tcpdump` on a host's `eth0` (or another interface).
#[derive(Debug)]
pub struct Capture {
    tcpdump: Proc,
    file: PathBuf,
}

impl Host {
    pub(crate) fn new(shared: Arc<Shared>, name: &str, place: Place, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        let (addresses, enforcer) = (Mutex::new((v4, v6)), Mutex::new(None));
        Self(Arc::new(Inner { name: name.to_owned(), shared, place, addresses, enforcer, binary: OnceLock::new() }))
    }

    /// The host's name within its lab.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The host's IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.addresses().0
    }

    /// The host's IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.addresses().1
    }

    /// Both addresses, IPv4 first: what a test loops over to cover both families.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    /// `port` at the host's IPv4 address, as text.
    pub fn socket_v4(&self, port: u16) -> String {
        SocketAddr::from((self.v4(), port)).to_string()
    }

    /// `port` at the host's IPv6 address, as text.
    pub fn socket_v6(&self, port: u16) -> String {
        SocketAddr::from((self.v6(), port)).to_string()
    }

    /// The name of the host's network namespace, as `ip netns` knows it.
    pub fn netns(&self) -> &str {
        &self.0.place.netns.name
    }

    /// The directory of the host's own files: configuration, keys, socket, logs.
    pub fn directory(&self) -> &Path {
        &self.0.place.logs
    }

    /// Where the host's enforcer pins maps and links.
    pub fn bpffs(&self) -> PathBuf {
        run::bpffs(&self.0.shared.run, &self.0.name)
    }

    /// A socket of this process that listens on the host's loopback: for servers that a test plays itself.
    pub fn listen_on_loopback(&self, port: u16) -> Result<std::net::TcpListener> {
        let listen = || std::net::TcpListener::bind(("127.0.0.1", port)).context("cannot listen");
        self.0.place.netns.enter(listen)
    }

    /// A connection of this process from the host, for a client that a test plays itself.
    pub fn call(&self, to: &str) -> Result<std::net::TcpStream> {
        let call = || std::net::TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"));
        self.0.place.netns.enter(call)
    }

    /// Gives the host other addresses, and lets every host of the lab notice at once.
    pub fn move_ip(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
        self.0.place.netns.ip(&change_addresses(v4, v6))?;
        *self.lock_addresses() = (v4, v6);
        self.0.shared.forget_neighbours()
    }

    /// Exchanges the addresses of two hosts.
    pub fn swap_ips(&self, other: &Self) -> Result<()> {
        let (ours, theirs) = (self.addresses(), other.addresses());
        for host in [self, other] {
            host.0.place.netns.ip("addr flush dev eth0 scope global\n")?;
        }
        self.move_ip(theirs.0, theirs.1)?;
        other.move_ip(ours.0, ours.1)
    }

    /// Loses this percentage of the host's TCP and UDP packets on the wire, each way; 0 ends it.
    ///
    /// The packets are dropped on the switch, behind both hosts' enforcers, as a real network would.
    pub fn set_loss(&self, percent: f64) -> Result<()> {
        ensure!((0.0..=100.0).contains(&percent), "a loss of {percent} % cannot be");
        let switch = &self.0.shared.switch;
        let port = format!("p-{}", self.0.name);
        let chain = format!("LOSS-{}", self.0.name);
        bridge_firewall(switch, true)?;
        for iptables in ["iptables", "ip6tables"] {
            let run = |args: &str| switch.command(iptables, &args.split(' ').collect::<Vec<_>>());
            if run(&format!("-w -N {chain}")).is_ok() {
                run(&format!("-w -A FORWARD -j {chain}"))?;
            }
            run(&format!("-w -F {chain}"))?;
            if percent == 0.0 {
                continue;
            }
            for direction in ["in", "out"] {
                for protocol in ["tcp", "udp"] {
                    run(&format!(
                        "-w -A {chain} -p {protocol} -m physdev --physdev-{direction} {port} -m statistic --mode random --probability {} -j DROP",
                        percent / 100.0
                    ))?;
                }
            }
        }
        Ok(())
    }

    /// Puts a bad stretch between the host and the switch, which doubles packets and changes their order, each way.
    ///
    /// It lasts as long as the process; after that the host is cut off until [`Self::unshuffle`].
    pub fn shuffle(&self, double: u8, delay: u8) -> Result<Proc> {
        let (shared, name) = (&self.0.shared, self.name());
        // What a packet socket sees must be fit for the wire: no checksums left to the hardware.
        for netns in shared.namespaces.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            netns.command("ethtool", &["-K", "eth0", "tx", "off"])?;
        }
        shared.switch.ip(&format!(
            "link set p-{name} nomaster\nlink add s-{name} type veth peer name t-{name}\nlink set s-{name} up\nlink set t-{name} up\nlink set t-{name} master br0\n"
        ))?;
        let place = Place { netns: shared.switch.clone(), ..self.0.place.clone() };
        let (double, delay) = (double.to_string(), delay.to_string());
        let ends = [format!("p-{name}"), format!("s-{name}")];
        let mut process = place.spawn_tool(&["shuffle", &ends[0], &ends[1], "--double", &double, "--delay", &delay])?;
        process.wait_for_line("READY", Duration::from_secs(5))?;
        Ok(process)
    }

    /// Connects the host to the switch again as it was before [`Self::shuffle`].
    pub fn unshuffle(&self) -> Result<()> {
        let name = self.name();
        self.0.shared.switch.ip(&format!("link del s-{name}\nlink set p-{name} master br0\n"))
    }

    /// Sets a sysctl of the host, named by its path below `/proc/sys`, such as `net/ipv4/tcp_syncookies`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.0.place.netns.sysctl(name, value)
    }

    /// Starts to capture packets of an interface that match a tcpdump filter, as they are on the wire.
    pub fn capture(&self, interface: &str, filter: &str) -> Result<Capture> {
        let file = self.directory().join(format!("capture-{}.pcap", self.capture_number()));
        let mut args = vec!["tcpdump", "-Z", "root", "--immediate-mode", "-U", "-n", "-s", "0", "-i", interface, "-w"];
        let path = file.to_string_lossy();
        args.push(&path);
        args.extend(filter.split_whitespace());
        let mut tcpdump = self.spawn(&args).context("captures need tcpdump")?;
        for _ in 0..2000 {
            if tcpdump.stderr().contains("listening on") {
                break;
            }
            if tcpdump.wait(Duration::ZERO)?.is_some() {
                anyhow::bail!("tcpdump ended: {}", tcpdump.stderr());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Capture { tcpdump, file })
    }

    pub(crate) fn place(&self) -> &Place {
        &self.0.place
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(crate) fn enforcer_slot(&self) -> std::sync::MutexGuard<'_, Option<Proc>> {
        self.0.enforcer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the `enforcer` that this host alone uses from now on. The first call holds.
    pub fn use_enforcer(&self, path: PathBuf) {
        self.0.binary.get_or_init(|| path);
    }

    /// The `enforcer` of this host.
    pub(crate) fn binary(&self) -> Result<String> {
        self.0.binary.get().map_or_else(enforcer_binary, |path| Ok(path.clone())).map(text)
    }

    fn capture_number(&self) -> usize {
        let files = std::fs::read_dir(self.directory()).into_iter().flatten().flatten();
        files.filter(|file| file.file_name().to_string_lossy().starts_with("capture-")).count()
    }

    fn addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        *self.lock_addresses()
    }

    fn lock_addresses(&self) -> std::sync::MutexGuard<'_, (Ipv4Addr, Ipv6Addr)> {
        self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Host {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0.place
    }
}

impl Capture {
    /// Ends the capture; the frames in order, link header first, and the pcap file.
    pub fn finish(mut self) -> Result<(Vec<Vec<u8>>, PathBuf)> {
        // What was on the wire a moment ago is still on its way through tcpdump.
        std::thread::sleep(Duration::from_millis(50));
        self.tcpdump.signal(Signal::SIGINT)?;
        ensure!(self.tcpdump.wait(Duration::from_secs(5))?.is_some(), "tcpdump does not end");
        let bytes = std::fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        Ok((frames(&bytes)?, self.file))
    }
}

/// Splits a pcap file (draft-ietf-opsawg-pcap) in this machine's byte order into frames.
fn frames(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut rest = file.get(24..).context("a pcap file shorter than its header")?;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let length = rest.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        let end = 16 + length.context("a pcap file cut short")? as usize;
        frames.push(rest.get(16..end).context("a pcap file cut short")?.to_vec());
        rest = &rest[end..];
    }
    Ok(frames)
}

fn change_addresses(v4: Ipv4Addr, v6: Ipv6Addr) -> String {
    format!("addr flush dev eth0 scope global\n{}", add_addresses(v4.into(), v6.into()))
}
