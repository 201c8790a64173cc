//! Arms: two hosts on one veth, bare or with something that guards them.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Attempt, Host, Lab, Load, Place, Proc, Workload, lab_tool};

use super::tunnels;

/// Where echo servers listen.
pub const ECHO: u16 = 8020;
/// Where servers listen that only swallow.
const SINK: u16 = 8021;
/// Where servers listen that send datagrams back.
const DATAGRAMS: u16 = ECHO;
/// The processor of client and server, the same in every arm. One for both: woken across processors, they would measure how fast a
/// sleeping one gets up, and whatever keeps it awake would make connections faster.
pub const PROCESSOR: &str = "1";

/// Sizes of tables.
pub struct Sizes {
    /// Rules of the enforced arms, few to many.
    pub rules: [usize; 3],
    /// Rules of the nftables arms, few to many.
    pub linear: [usize; 3],
    /// Rules and identities to compile.
    pub compile: (usize, usize),
    /// PUs and flows of the agent whose memory is taken.
    pub memory: (usize, usize),
    /// MiB of a file to hash.
    pub hash: usize,
    /// Records to suggest from.
    pub records: u64,
    /// Live connections of a host that is upgraded.
    pub live: usize,
}

impl Sizes {
    /// As the targets want it.
    pub const FULL: Self = Self {
        rules: [10, 1_000, 100_000],
        linear: [1, 1_000, 10_000],
        compile: (100_000, 10_000),
        memory: (1_000, 100_000),
        hash: 64,
        records: 1_000_000,
        live: 10_000,
    };
    /// To see that it works.
    pub const SMALL: Self = Self {
        rules: [10, 20, 30],
        linear: [1, 2, 3],
        compile: (1_000, 100),
        memory: (3, 1_000),
        hash: 1,
        records: 1_000,
        live: 100,
    };
}

/// What stands between the two hosts.
#[derive(Clone, Copy)]
pub enum Guard<'a> {
    /// Nothing.
    None,
    /// An enforcer on each host, with so many rules; both processes are PUs.
    Enforcer(usize),
    /// The same with another build of the enforcer.
    OtherEnforcer(usize, &'a Path),
    /// A stateful nftables ruleset on each host, with so many rules; the last one lets the connection pass.
    Nftables(usize),
    /// The server's host answers SYNs by itself, with cookies, and hands on connections of those who echo them.
    Synproxy,
    /// Every SYN waits for a program's verdict, at the client's host and at the server's.
    Nfqueue,
    /// A tunnel by Nebula, AES-256-GCM.
    Nebula,
    /// A tunnel by wireguard-go.
    Wireguard,
}

/// A client and a server, and what is between them.
pub struct Arm {
    name: &'static str,
    /// The host with the client.
    pub a: Host,
    /// The host with the server.
    pub b: Host,
    /// Where the client finds the server.
    server: Ipv4Addr,
    client: Workload,
    _processes: Vec<Proc>,
    _server: Workload,
    _lab: Lab,
}

impl Arm {
    /// Makes the hosts, guards them, and starts the servers.
    ///
    /// # Errors
    /// Something cannot be made or does not start.
    pub fn new(name: &'static str, guard: Guard<'_>) -> Result<Self> {
        let lab = Lab::new("bench")?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        join(&a, &b)?;
        let mut processes = Vec::new();
        let mut server_address = b.v4();
        match guard {
            Guard::None => {}
            Guard::Enforcer(rules) | Guard::OtherEnforcer(rules, _) => {
                if let Guard::OtherEnforcer(_, binary) = guard {
                    for host in [&a, &b] {
                        host.use_enforcer(binary.to_owned());
                    }
                }
                lab.write_policy("bench.yaml", &policy(rules))?;
                for host in [&a, &b] {
                    host.start_enforcer("").with_context(|| format!("with {rules} rules"))?;
                }
            }
            Guard::Nftables(rules) => {
                for (host, hook) in [(&a, "output"), (&b, "input")] {
                    apply(host, &ruleset(hook, rules))?;
                }
            }
            Guard::Synproxy => {
                // Connections are what SYNPROXY began, nothing else.
                apply(&b, SYNPROXY)?;
                for (name, value) in [("netfilter/nf_conntrack_tcp_loose", "0"), ("ipv4/tcp_syncookies", "2")] {
                    b.sysctl(&format!("net/{name}"), value)?;
                }
            }
            Guard::Nfqueue => {
                for (host, chain) in [(&a, "OUTPUT"), (&b, "INPUT")] {
                    let mut queue = host.spawn(&tool(&["queue"])?)?;
                    queue.wait_for_line("READY", Duration::from_secs(5))?;
                    processes.push(queue);
                    let rule = ["iptables", "-A", chain, "-p", "tcp", "--syn", "-j", "NFQUEUE", "--queue-num", "0"];
                    host.exec(&rule)?.ok()?;
                }
            }
            Guard::Nebula => (server_address, processes) = tunnels::nebula(&a, &b)?,
            Guard::Wireguard => (server_address, processes) = tunnels::wireguard(&a, &b)?,
        }
        let workload = |host: &Host, name: &str, tags: &[&str]| match guard {
            Guard::Enforcer(_) | Guard::OtherEnforcer(..) => host.workload(name, tags),
            _ => host.plain_workload(name),
        };
        let client = workload(&a, "client", &["app=bench", "side=client"])?;
        let server = workload(&b, "server", &["app=bench", "side=server"])?;
        for (port, reply) in [(ECHO, "echo"), (SINK, "sink")] {
            let line = pinned(&["serve", "--quiet", "--listen", &format!("[::]:{port}"), "--reply", reply])?;
            let mut process = server.spawn(&line)?;
            process.wait_for_line("READY", Duration::from_secs(5))?;
            processes.push(process);
        }
        let line = pinned(&["hear", "--echo", &format!("[::]:{DATAGRAMS}")])?;
        let mut process = server.spawn(&line)?;
        process.wait_for_line("READY", Duration::from_secs(5))?;
        processes.push(process);
        let arm =
            Self { name, a, b, server: server_address, client, _processes: processes, _server: server, _lab: lab };
        // First contact, and whatever else happens only once.
        arm.load("crr", Duration::from_millis(20), &[])?;
        Ok(arm)
    }

    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs a load generator of this kind for so long.
    ///
    /// # Errors
    /// It cannot be started, or fails.
    pub fn load(&self, kind: &str, length: Duration, args: &[&str]) -> Result<Load> {
        let port = match kind {
            "stream" => SINK,
            _ if args.contains(&"--datagrams") => DATAGRAMS,
            _ => ECHO,
        };
        let (to, seconds) = (self.socket(port), length.as_secs_f64().to_string());
        let mut line = vec![kind, to.as_str(), "--seconds", &seconds];
        if kind == "crr" {
            line.extend(["--close", "fin"]);
        }
        line.extend(args);
        self.client.exec_within(&pinned(&line)?, length + Duration::from_secs(30))?.json()
    }

    fn socket(&self, port: u16) -> String {
        format!("{}:{port}", self.server)
    }

    /// One connection that stays open until the process is dropped.
    ///
    /// # Errors
    /// The process cannot be started, or does not connect.
    pub fn hold(&self, port: u16) -> Result<Proc> {
        let mut process = self.client.spawn_tool(&["hold", &self.socket(port)])?;
        process.wait_for_line("READY", Duration::from_secs(5))?;
        Ok(process)
    }

    /// So many connections that carry data until the process is dropped, half of them over IPv6.
    ///
    /// # Errors
    /// The process cannot be started, or one does not connect.
    pub fn transfer(&self, count: usize) -> Result<Proc> {
        let (v4, v6, half) = (self.b.socket_v4(ECHO), self.b.socket_v6(ECHO), (count / 2).to_string());
        let mut process = self.client.spawn_tool(&["transfer", &v4, &v6, "--count", &half])?;
        let ready = process.wait_for_line("READY", Duration::from_secs(60))?;
        ensure!(ready == format!(r#"READY {{"open":{},"failed":0}}"#, count / 2 * 2), "{ready}");
        Ok(process)
    }

    /// Link-layer address of the server's interface.
    ///
    /// # Errors
    /// It cannot be asked for.
    pub fn link_address_of_server(&self) -> Result<[u8; 6]> {
        let shown = self.b.exec(&["ip", "-o", "link", "show", "eth0"])?;
        let text = shown.ok()?.split("link/ether ").nth(1).context("eth0 has no link-layer address")?;
        let mut address = [0; 6];
        for (place, digits) in address.iter_mut().zip(text.split([':', ' '])) {
            *place = u8::from_str_radix(digits, 16).context("no link-layer address")?;
        }
        Ok(address)
    }

    /// One connection of a process of its own.
    ///
    /// # Errors
    /// The process cannot be started. A connection that fails is an answer.
    pub fn connect(&self) -> Result<Attempt> {
        self.client.connect(&self.socket(ECHO), &[])
    }
}

/// One veth from host to host instead of the lab's switch, and ports that last.
fn join(a: &Host, b: &Host) -> Result<()> {
    let ip = |host: &Place, line: &str| -> Result<()> {
        let words: Vec<&str> = ["ip"].into_iter().chain(line.split(' ')).collect();
        host.exec(&words)?.ok().map(drop)
    };
    for host in [a, b] {
        ip(host, "link del eth0")?;
    }
    ip(a, &format!("link add eth0 type veth peer name eth0 netns {}", b.netns()))?;
    for host in [a, b] {
        ip(host, &format!("addr add {}/24 dev eth0", host.v4()))?;
        ip(host, &format!("addr add {}/64 dev eth0 nodad", host.v6()))?;
        ip(host, "link set eth0 up")?;
        // The client closes first, so its ports wait: they may be used again after a second (RFC 6191).
        host.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    }
    Ok(())
}

/// A policy of so many rules, of which one, in the middle, is for us.
pub fn policy(rules: usize) -> String {
    let mut text = String::from("name: bench\nrules:\n");
    for number in 0..rules {
        let _ = if number == rules / 2 {
            writeln!(
                text,
                "  - ours: allow app=bench side=client -> app=bench side=server tcp/{ECHO}-{SINK} udp/{DATAGRAMS}"
            )
        } else {
            let (from, to, port) = (number % 997, number % 1009, 1024 + number % 60_000);
            writeln!(text, "  - r{number}: allow app=app{from} user=prod -> app=app{to} user=prod tcp/{port}")
        };
    }
    text
}

/// A stateful ruleset whose last rule is the one that matches.
fn ruleset(hook: &str, rules: usize) -> String {
    let mut text = format!(
        "table inet bench {{\n chain guard {{\n  type filter hook {hook} priority 0; policy drop;\n  ct state established,related accept\n  ct state invalid drop\n  icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept\n"
    );
    for number in 1..rules {
        let _ = writeln!(text, "  ip saddr 10.99.{}.{} tcp dport {ECHO} accept", number / 250, number % 250 + 1);
    }
    let _ = writeln!(text, "  ip saddr 10.77.0.0/24 tcp dport {{ {ECHO}, {SINK} }} accept\n }}\n}}");
    text
}

/// As nftables' own documentation has it: SYNs are not tracked before they are proven.
const SYNPROXY: &str = "table inet bench {
 chain early { type filter hook prerouting priority raw; tcp dport 8020 tcp flags syn notrack; }
 chain guard {
  type filter hook input priority 0;
  tcp dport 8020 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
  ct state invalid drop
 }
}
";

fn apply(host: &Host, rules: &str) -> Result<()> {
    let file = host.directory().join("rules.nft");
    fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
    host.exec(&["nft", "-f", &file.to_string_lossy()])?.ok().map(drop)
}

fn tool(args: &[&str]) -> Result<Vec<String>> {
    let tool = lab_tool()?.to_string_lossy().into_owned();
    Ok([tool].into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect())
}

/// The traffic tool on the processor that is measured.
fn pinned(args: &[&str]) -> Result<Vec<String>> {
    let start = ["taskset", "-c", PROCESSOR].map(str::to_owned);
    Ok(start.into_iter().chain(tool(args)?).collect())
}

#[cfg(test)]
mod tests_of_arms {
    use super::ruleset;

    #[test]
    fn a_policy_has_as_many_rules_as_asked_for() {
        for count in [1, 10, 1_000] {
            let rules = policy::parse_file("bench.yaml", &super::policy(count)).expect("parses");
            assert_eq!(rules.len(), count);
        }
    }

    #[test]
    fn a_ruleset_has_as_many_accepting_rules_as_asked_for() {
        for count in [1, 10, 1_000] {
            assert_eq!(ruleset("input", count).matches("tcp dport").count(), count);
        }
    }
}
