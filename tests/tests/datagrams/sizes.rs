//! Datagrams of every size: what fits, what the path would not take with identity, fragments, jumbo frames.

use tests::Options;

use super::*;

fn well(count: usize) -> Exchange {
    Exchange { back: count, errno: 0 }
}

/// The largest payload of a packet of `mtu` bytes, by family.
fn largest(family: usize, mtu: usize) -> usize {
    mtu - [28, 48][family]
}

#[test]
fn a_first_contact_may_be_of_any_size() -> Result<()> {
    let stage = Stage::new("dgfirst")?;
    let c = stage.lab.host("c")?;
    c.start_enforcer("")?;
    let stranger = c.workload("stranger", &["app=other"])?;
    for (at, (family, to)) in (0..).zip(addresses(&stage.b).into_iter().enumerate()) {
        let mut servers = Vec::new();
        // Each at a port where nobody was met.
        let sizes =
            [largest(family, 1500) - TRAILER_LEN, largest(family, 1500), largest(family, 1500) + 1, 3000, 60_000];
        for (port, size) in (PORT..).zip(sizes) {
            let server = serve(&stage.server, &to, port)?;
            let before = stage.counters()?;
            assert_eq!(
                exchange(&stage.client, &to, port, "connected", size, 1)?,
                WELL,
                "{size}\n{}",
                stage.a.enforcer_log()
            );
            assert_eq!(heard(&server), [size]);
            assert_eq!(exchange(&stage.client, &to, port, "unconnected", size, 2)?, well(2), "{size}");
            for (host, before) in [(&stage.a, &before[0]), (&stage.b, &before[1])] {
                refusals(host, before, &[])?;
            }
            servers.push(server);
        }
        // Who is refused hears of it whatever it sent, and nothing of it arrives.
        let before = (c.counters()?, stage.b.counters()?);
        assert_eq!(exchange(&stranger, &to, PORT, "connected", 3000, 1)?, REFUSED);
        refusals(&c, &before.0, &[("no_rule", "in", 1)])?;
        refusals(&stage.b, &before.1, &[("no_rule", "in", 1)])?;
        assert_eq!(exchange(&stranger, &to, PORT, "connected", 3000, 1)?, REFUSED, "by what is known");
        assert_eq!(heard(&servers[0]).len(), 3, "{at}");
    }
    Ok(())
}

#[test]
fn the_first_datagram_of_a_flow_is_not_made_larger_than_its_path() -> Result<()> {
    let lab = Lab::new("dgpath")?;
    lab.write_policy("datagrams.yaml", POLICY)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let guest = b.guest("box", &[&a])?;
    const MTU: usize = 1300;
    b.exec(&["ip", "link", "set", guest.interface(), "mtu", &MTU.to_string()])?.ok()?;
    guest.exec(&["ip", "link", "set", "eth0", "mtu", &MTU.to_string()])?.ok()?;
    a.start_enforcer("")?;
    b.start_enforcer("datapath.interfaces = [\"auto\"]")?;
    let client = a.workload("client", &["app=client"])?;
    b.enforcer(&["pu", "add", "--interface", guest.interface(), "--name", "box", "--tag", "app=server"])?.ok()?;
    for (family, to) in ["10.78.0.2", "fd78::2"].into_iter().enumerate() {
        let size = largest(family, MTU);
        let server = serve(&guest, to, PORT)?;
        let before = (a.counters()?, b.counters()?);
        for round in 0..2 {
            assert_eq!(exchange(&client, to, PORT, "connected", size, 1)?, WELL, "round {round}");
        }
        assert_eq!(heard(&server), [size, size]);
        // What is larger than the path is nobody's doing but the sender's, whose stack learns of it by an error of the flow.
        assert_eq!(exchange(&client, to, PORT, "connected", size + 40, 1)?.back, 0, "lost, as without an enforcer");
        assert_eq!(exchange(&client, to, PORT, "connected", size + 40, 1)?, WELL, "in fragments");
        refusals(&a, &before.0, &[])?;
        let refused: Vec<_> = (&b.counters()? - &before.1).refusals().into_keys().map(str::to_owned).collect();
        assert!(refused.is_empty(), "{refused:?}");
    }
    Ok(())
}

#[test]
fn echoes_come_in_fragments_too() -> Result<()> {
    let (stage, _guest) = Stage::with_guest("dgpings")?;
    let Stage { client, a, b, .. } = &stage;
    for to in ["10.78.0.2", "fd78::2"] {
        let before = (a.counters()?, b.counters()?);
        for round in 0..2 {
            let output = client.exec(&["ping", "-n", "-c", "2", "-i", "0.2", "-W", "3", "-s", "4000", to])?;
            assert!(output.stdout.contains("2 received"), "{round}: {}\n{}", output.stdout, b.enforcer_log());
        }
        refusals(a, &before.0, &[])?;
        refusals(b, &before.1, &[])?;
    }
    Ok(())
}

#[test]
fn jumbo_frames_carry_identity() -> Result<()> {
    let stage = Stage::of(Lab::with("dgjumbo", Options { mtu: 9000 })?)?;
    for (family, to) in addresses(&stage.b).into_iter().enumerate() {
        let server = serve(&stage.server, &to, PORT)?;
        let before = stage.counters()?;
        let sizes = [8000, largest(family, 9000) - TRAILER_LEN + 1, largest(family, 9000), 20_000];
        for size in sizes {
            assert_eq!(exchange(&stage.client, &to, PORT, "connected", size, 1)?, WELL, "{size}");
        }
        assert_eq!(exchange(&stage.client, &to, PORT, "gso", 4000, 5)?, well(5));
        assert_eq!(heard(&server), [&sizes[..], &[4000; 5]].concat());
        for (host, before) in [(&stage.a, &before[0]), (&stage.b, &before[1])] {
            refusals(host, before, &[])?;
        }
    }
    Ok(())
}

#[test]
fn a_known_pair_sends_no_more_than_the_datagrams_themselves() -> Result<()> {
    let stage = Stage::new("dgcount")?;
    for (family, to) in addresses(&stage.b).into_iter().enumerate() {
        let server = serve(&stage.server, &to, PORT)?;
        assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL);
        // The last one that takes identity, and what QUIC sends first, over IPv4.
        let sizes = [33, 512, if family == 0 { 1200 } else { 1196 }, largest(family, 1280) - TRAILER_LEN];
        let capture = stage.b.capture("eth0", &format!("udp port {PORT}"))?;
        for size in sizes {
            assert_eq!(exchange(&stage.client, &to, PORT, "connected", size, 2)?, well(2));
        }
        let (frames, _) = capture.finish()?;
        assert_eq!(frames.len(), sizes.len() * 4, "a question and an answer, twice");
        // Above, one goes ahead each way until the peer is heard.
        let capture = stage.b.capture("eth0", &format!("udp port {PORT}"))?;
        for size in [1252, 1350, largest(family, 1500)] {
            assert_eq!(exchange(&stage.client, &to, PORT, "connected", size, 2)?, well(2));
        }
        let (frames, _) = capture.finish()?;
        assert!((3 * 6..=3 * 8).contains(&frames.len()), "{}", frames.len());
        assert_eq!(heard(&server).len(), 1 + sizes.len() * 2 + 6);
    }
    Ok(())
}

/// What `lab-tool ask` says.
#[derive(Debug, Deserialize)]
struct Asked {
    found: Vec<String>,
}

#[test]
fn a_resolver_may_be_a_pu() -> Result<()> {
    let stage = Stage::new("dgdns")?;
    stage.lab.write_policy("dns.yaml", "name: dns\nrules:\n  - ask: allow app=client -> app=server udp/53 tcp/53\n")?;
    let servers = [stage.b.socket_v4(53), stage.b.socket_v6(53)];
    let [four, six] = servers.each_ref().map(String::as_str);
    // The second name's answer is too long for a datagram.
    let records = ["www.example.org A 60 192.0.2.10", "many.example.org A 60 198.51.100.0/24"];
    let line = ["resolver", "--listen", four, "--listen", six, "--record", records[0], "--record", records[1]];
    let mut resolver = stage.server.spawn_tool(&line)?;
    resolver.wait_for_line("READY", Duration::from_secs(5))?;
    let ask_by = |how: &[&str], name: &str, server: &str| -> Result<usize> {
        let line = ["ask", name, "--server", server, "--then", "1"];
        let asked: Asked = stage.client.tool(&[&line[..], how].concat())?;
        Ok(asked.found.len())
    };
    let ask = |name: &str, server: &str| ask_by(&[], name, server);
    let deadline = Instant::now() + Duration::from_secs(10);
    while ask("www.example.org", four).unwrap_or_default() == 0 {
        ensure!(Instant::now() < deadline, "the policy is not in force");
    }
    let before = stage.b.counters()?;
    for server in servers.each_ref().map(String::as_str) {
        for _ in 0..3 {
            assert_eq!(ask("www.example.org", server)?, 1, "{server}");
        }
        let many = |how: &[&str]| ask_by(how, "many.example.org", server);
        assert_eq!((many(&[])?, many(&["--tcp"])?), (0, 250), "{server}: cut short, and whole");
    }
    refusals(&stage.b, &before, &[])?;
    let counted = &stage.b.counters()? - &before;
    assert!(counted.verdicts_in("allowed") >= 10, "each question bears identity");
    Ok(())
}
