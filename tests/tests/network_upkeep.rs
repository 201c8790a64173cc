//! What keeps a network running goes on where hosts are enforced: leases, routes that are traced, groups that are joined, neighbours that are found. And none of it
//! is a way around policy for a PU.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Host, Lab, Outcome, Output, Pair, Place, Proc};

/// An address behind a router, outside the identity networks: nothing but a rule by address leads there.
const FAR: [&str; 2] = ["203.0.113.5", "2001:db8:5::5"];
const TO_FAR: &str = "  - trace: allow app=client -> net 203.0.113.0/24, 2001:db8:5::/64 udp/33434-33534 icmp icmp6\n";

/// A DHCP server for 10.77.0.150 to .160.
fn serve_leases(host: &Host) -> Result<Proc> {
    let directory = host.directory();
    let (config, leases) = (directory.join("udhcpd.conf"), directory.join("udhcpd.leases"));
    fs::write(&leases, "")?;
    let text = format!(
        "start 10.77.0.150\nend 10.77.0.160\ninterface eth0\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\noption lease 600\n",
        leases.display(),
        directory.join("udhcpd.pid").display()
    );
    fs::write(&config, text)?;
    // It says nothing when it is ready; whoever asks, asks more than once.
    host.spawn(&["busybox", "udhcpd", "-f", &config.to_string_lossy()])
}

/// Asks for a lease from `place`; the address that was given, if any.
fn lease(place: &Place, directory: &Path, name: &str) -> Result<Option<String>> {
    let (script, given) = (directory.join(format!("{name}.sh")), directory.join(format!("{name}.lease")));
    fs::write(&script, format!("#!/bin/sh\n[ \"$1\" = bound ] && echo \"$ip\" >{}\nexit 0\n", given.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let script = script.to_string_lossy().into_owned();
    let line = ["busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "3", "-T", "1", "-A", "1", "-s", &script];
    let output = place.exec(&line)?;
    let given = fs::read_to_string(given).ok().map(|text| text.trim().to_owned());
    ensure!(given.is_some() == output.status.success(), "{}{}", output.stdout, output.stderr);
    Ok(given)
}

#[test]
fn hosts_get_their_leases_and_pus_do_not() -> Result<()> {
    for overrides in ["datapath.unmanaged = \"deny\"", "host.managed = true"] {
        let lab = Lab::new("dhcp")?;
        lab.write_policy("pair.yaml", Pair::POLICY)?;
        let (a, d) = (lab.host("a")?, lab.host("d")?);
        let _server = serve_leases(&d)?;
        a.start_enforcer(overrides)?;
        let pu = a.workload("client", &["app=client"])?;
        let given = lease(&a, a.directory(), "host")?
            .with_context(|| format!("{overrides}: no lease\n{}", a.enforcer_log()))?;
        ensure!(given.starts_with("10.77.0.15") || given == "10.77.0.160", "{overrides}: {given}");
        let given = lease(&pu, a.directory(), "pu")?;
        assert_eq!(given, None, "{overrides}: a PU speaks DHCP by no rule");
        let records = a.records()?;
        let refused = |record: &&tests::Record| record.pu == "client" && record.verdict == "deny";
        assert!(records.iter().any(|record| refused(&record)), "{overrides}: {records:#?}");
    }
    Ok(())
}

fn trace(from: &Place, v6: bool, by_icmp: bool) -> Result<Output> {
    let program = if v6 { "traceroute6" } else { "traceroute" };
    let fixed = ["busybox", program, "-n", "-q", "1", "-w", "1", "-m", "3"];
    let how: &[&str] = if by_icmp { &["-I"] } else { &[] };
    from.exec(&[&fixed[..], how, &[FAR[usize::from(v6)]]].concat())
}

#[test]
fn routes_are_traced_where_a_rule_allows_it() -> Result<()> {
    let pair = Pair::new("trace")?;
    let far = pair.b.guest("far", &[&pair.a])?;
    for (way, via) in [(FAR[0], pair.b.v4().to_string()), (FAR[1], pair.b.v6().to_string())] {
        let family = if way.contains(':') { "-6" } else { "-4" };
        let of_guest = if way.contains(':') { "fd78::2" } else { "10.78.0.2" };
        far.exec(&["ip", family, "addr", "add", way, "dev", "lo"])?.ok()?;
        pair.b.exec(&["ip", family, "route", "add", way, "via", of_guest])?.ok()?;
        pair.a.exec(&["ip", family, "route", "add", way, "via", &via])?.ok()?;
    }
    let ways = [(false, false), (false, true), (true, false)];
    let capture = pair.b.capture("eth0", &format!("host {} or host {}", FAR[0], FAR[1]))?;
    for (v6, by_icmp) in ways {
        let before = pair.a.counters()?;
        let output = trace(&pair.client, v6, by_icmp)?;
        let hop = if v6 { pair.b.v6().to_string() } else { pair.b.v4().to_string() };
        // The head of the answer names the target; hops come below it.
        let hops: String = output.stdout.lines().skip(1).collect();
        assert!(!hops.contains(&hop) && !hops.contains(FAR[usize::from(v6)]), "{}", output.stdout);
        let counted = &pair.a.counters()? - &before;
        assert!(counted.refusals().values().sum::<i64>() >= 1, "{:?}", counted.refusals());
    }
    let (frames, _) = capture.finish()?;
    assert!(frames.is_empty(), "{} packets left without a rule", frames.len());
    pair.decree(TO_FAR)?;
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    for (v6, by_icmp) in ways {
        let hop = if v6 { pair.b.v6().to_string() } else { pair.b.v4().to_string() };
        loop {
            let output = trace(&pair.client, v6, by_icmp)?;
            let hops: Vec<&str> = output.stdout.lines().skip(1).collect();
            let found = hops.len() == 2 && hops[0].contains(&hop) && hops[1].contains(FAR[usize::from(v6)]);
            if found {
                break;
            }
            // The new policy is read within a second or two.
            let patience = std::time::Instant::now() < deadline;
            ensure!(patience, "v6 {v6}, ICMP {by_icmp}: {}{}\n{}", output.stdout, output.stderr, pair.a.enforcer_log());
        }
    }
    Ok(())
}

/// Joins a group of each family, and writes an IGMP report of its own making.
const GROUPS: &str = r#"
import socket, struct, time
four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("=4s4si", socket.inet_aton("239.7.7.7"), b"\0" * 4, socket.if_nametoindex("eth0")))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("=16si", socket.inet_pton(socket.AF_INET6, "ff15::777"), socket.if_nametoindex("eth0")))
print("JOINED", flush=True)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP)
raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
try:
    raw.sendto(b"\x16\x00\x00\x00" + socket.inet_aton("239.9.9.9"), ("239.9.9.9", 0))
except OSError:
    pass
print("WRITTEN", flush=True)
time.sleep(30)
"#;

#[test]
fn groups_are_joined_and_neighbours_found() -> Result<()> {
    let pair = Pair::new("groups")?;
    let _server = pair.server.serve(&["--listen", "[::]:8020"])?;
    let capture = pair.b.capture("eth0", "igmp or ( ip6 and ip6[6] == 0 )")?;
    let before = pair.a.counters()?;
    let mut member = pair.client.spawn(&["/usr/bin/python3", "-u", "-c", GROUPS])?;
    member.wait_for_line("WRITTEN", Duration::from_secs(10))?;
    std::thread::sleep(Duration::from_millis(1200));
    let (frames, _) = capture.finish()?;
    let told = |group: &[u8]| frames.iter().any(|frame| frame.windows(group.len()).any(|part| part == group));
    assert!(told(&[239, 7, 7, 7]), "no report of the IPv4 group in {} frames", frames.len());
    let v6: std::net::Ipv6Addr = "ff15::777".parse()?;
    assert!(told(&v6.octets()), "no report of the IPv6 group in {} frames", frames.len());
    assert!(!told(&[239, 9, 9, 9]), "what a PU writes itself is no kernel's report");
    let counted = &pair.a.counters()? - &before;
    assert_eq!(counted.verdicts_out("protocol_denied"), 1, "{:?}", counted.refusals());
    for to in pair.addresses(8020) {
        for host in [&pair.a, &pair.b] {
            for family in ["-4", "-6"] {
                host.exec(&["ip", family, "neigh", "flush", "all"])?.ok()?;
            }
        }
        let attempt = pair.client.connect(&to, &["--payload", "ping", "--timeout", "5000"])?;
        assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
    }
    Ok(())
}
